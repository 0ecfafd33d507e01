"""Fading in stage 1 by each example's own number of steps, or by that of the longest example.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/absolute.py:gpt2 --jobs=1 \\
      --config.model.init_from=DIR --config.data.dir=GSM8K_AUG
      The longest solutions of GSM8K-Aug are said to have 13 steps (its files were not here).
      `curriculum.absolute_steps` is 10 by default. With more, short examples lose their weights
      sooner, the answer's among them: where 13 are the most, an example of 4 steps has none left
      after a third of the fading. Cost: 9 runs; see configs/presets.py. Score: not measured.
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/absolute.py --jobs=2
      The chain task, whose examples all have 4. Cost: 9 runs of about five minutes of 1 CPU core.
      Score: not measured.
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  relative = [({'fades_by': 'own'}, {'curriculum.schedule': 'relative'})]
  shift = int(base.layout.depth0_readout)  # one more readout counts as one more step
  absolute = [({'fades_by': str(steps)}, {'curriculum.schedule': 'absolute',
                                          'curriculum.absolute_steps': steps + shift})
              for steps in (10, 13)]
  return grid.make_sweep_dict(base, grid.cross([*relative, *absolute], grid.vary_seeds(3)))
