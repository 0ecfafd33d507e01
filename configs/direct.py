"""The direct answer: no blocks, no steps.

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('direct', preset)
