"""RiM stage 2 alone, from a stage 1 run: every block predicts the answer.

  python -m rim_jax.main --config=configs/stage2.py            (after configs/stage1.py)
  python -m rim_jax.main --config=configs/stage2.py --config.train.init_from=DIR
      The chain task: about 1 minute of 2 CPU cores; the same run as rim.py's second stage.
  python -m rim_jax.main --config=configs/stage2.py:gsm8k --config.data.dir=DIR (or gsm8k_perturbed)
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage2', preset)
