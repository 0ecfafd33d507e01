"""When an answer is right: the one rule by which every answer is judged."""

import decimal
import re

from rim_jax.config import Config

TOLERANCE = decimal.Decimal('0.001')
ANSWER_RULE = ('answers are compared as numbers after removing $, %, thousands commas, a final '
               'dot and spaces: whole numbers exactly, others within 0.001; what is not a number, '
               'as text')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)')


def canonicalize(text: str) -> decimal.Decimal | str:
  """An answer as Decimal where it is a number, else as text with single spaces."""
  bare = re.sub(r'[\s,$%]', '', text).removesuffix('.')
  if _NUMBER.fullmatch(bare):
    return decimal.Decimal(bare)
  return ' '.join(text.split())


def answers_match(a: str, b: str) -> bool:
  """Whether two answers are the same under ANSWER_RULE."""
  x, y = canonicalize(a), canonicalize(b)
  if isinstance(x, decimal.Decimal) and isinstance(y, decimal.Decimal):
    whole = x == x.to_integral_value() and y == y.to_integral_value()
    return x == y if whole else abs(x - y) <= TOLERANCE
  return type(x) is type(y) and x == y


def parse_answer(text: str, config: Config) -> str:
  """The answer in a decoded readout: what stands between the answer's prefix and suffix.

  An answer readout begins after its forced prefix. What a method that writes steps has written
  holds its answer after the last prefix, or, without one, after the last step.
  """
  layout = config.layout
  if config.facts.learns_steps:
    marker = layout.answer_prefix or layout.step_separator
    text = text.rpartition(marker)[2]
  return text.split(layout.answer_suffix)[0] if layout.answer_suffix else text
