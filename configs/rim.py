"""RiM whole: stage 1 (each block grounded in a step), then stage 2 (the answer after every block).

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim', preset)
