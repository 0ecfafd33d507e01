"""RiM's blocks, supervised with the answer only: stage 2's layout without a stage 1.

  python -m rim_jax.main --config=configs/pause.py
      The chain task: about 4 minutes of 2 CPU cores, 7.1 %, chance (seed 0).
  python -m rim_jax.main --config=configs/pause.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('pause', preset)
