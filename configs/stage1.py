"""RiM stage 1 alone: block t predicts the step after it, the last block the answer.

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage1', preset)
