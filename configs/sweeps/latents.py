"""Which part of LOTUS teaches: more passes over latents, predicting their steps, or the stages?

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/latents.py --jobs=2

With `one_pass=True` latents are constant tokens, as RiM's blocks: no state is fed to them. With
`step_weight=0.0` they also have no targets. With both, the network learns only from the stages, and
each stage writes one step less. That is the ablation "pause as thought" of Coconut's authors (arXiv
2412.06769), with as many tokens for a step as LOTUS has. LOTUS itself is in configs/compare.py.

Cost: 9 runs of four to nine minutes of 1 CPU core. Score: one pass 100.0 / 48.6 / 100.0 %, one pass
without the loss 99.9 / 91.8 / 20.9, passes without the loss 97.9 / 15.8 / 99.9 (seeds 0 / 1 / 2).
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  base = presets.make('lotus', preset)
  cells = [(True, base.lotus.step_weight), (True, 0.0), (False, 0.0)]
  points = [({'one_pass': one_pass, 'step_weight': weight},
             {'lotus.one_pass': one_pass, 'lotus.step_weight': weight})
            for one_pass, weight in cells]
  return grid.make_sweep_dict(base, grid.repeat(points, 3))
