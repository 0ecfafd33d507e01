"""The same blocks as RiM, supervised with the answer only, without a stage 1.

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('pause', preset)
