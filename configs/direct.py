"""The direct answer: no blocks, no steps. RiM's network, data and examples.

  python -m rim_jax.main --config=configs/direct.py
      The chain task: about 3 minutes of 2 CPU cores, 11.4 %, near chance (seed 0).
  python -m rim_jax.main --config=configs/direct.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('direct', preset)
