"""iCoT: the written steps are taken away token by token, until the answer alone is left.

Stepwise internalization (arXiv 2405.14838); else as rim.py. Accuracy on valid is of what is written
at the time; results are of the bare end, whose program is direct answering's.

  python -m rim_jax.main --config=configs/icot.py
      The chain task: 17.3 % (seed 0; chance is 10).
  python -m rim_jax.main --config=configs/icot.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('icot', preset)
