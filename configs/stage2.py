"""RiM stage 2 alone, from a stage 1 run: every block predicts the answer.

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage2', preset)
