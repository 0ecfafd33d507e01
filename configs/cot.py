"""Explicit chain of thought: the steps are written out, then the answer.

DOC
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('cot', preset)
