"""The paper's search for a learning rate in [1e-5, 1e-3], for a method on a preset.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/learning_rate.py:gpt2,direct \\
      --config.model.init_from=DIR --config.data.dir=DATA

After the colon stand PRESET,METHOD; without a METHOD it is rim. It tries twelve rates, drawn
log-uniformly, with one seed. Without a preset it runs the chain task, to try the commands.

Cost: 12 runs of the preset. Score: not measured.
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  preset, _, method = preset.partition(',')
  base = presets.make(method or 'rim', preset)
  return grid.make_sweep_dict(base, grid.sample(
      'optim.learning_rate', 1e-5, 1e-3, 12, name='lr'))
