"""RiM stage 1 alone: block t predicts the step after it, the last block the answer.

  python -m rim_jax.main --config=configs/stage1.py
      The chain task: about 3 minutes of 2 CPU cores; the same run as rim.py's first stage. With 4
      blocks the last block's answer is right on about all held-out questions.
  python -m rim_jax.main --config=configs/stage1.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage1', preset)
