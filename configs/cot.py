"""Explicit chain of thought: the steps are written out, then the answer; else as rim.py.

  python -m rim_jax.main --config=configs/cot.py
      The chain task: about 3 minutes of 2 CPU cores, 100 % (seed 0).
  python -m rim_jax.main --config=configs/cot.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('cot', preset)
