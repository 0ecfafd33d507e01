"""When an answer is right: the one rule by which every answer is judged."""

import decimal
import re

TOLERANCE = decimal.Decimal('0.001')
ANSWER_RULE = ('answers are compared as numbers after removing $, %, thousands commas, a final '
               'dot and spaces: whole numbers exactly, others within 0.001; what is not a number, '
               'as text')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)')


def canonicalize(text: str):
  """An answer as Decimal where it is a number, else as text with single spaces."""
  bare = re.sub(r'[\s,$%]', '', text).removesuffix('.')
  if _NUMBER.fullmatch(bare):
    return decimal.Decimal(bare)
  return ' '.join(text.split())


def answers_match(a: str, b: str) -> bool:
  """Whether two answers are the same under ANSWER_RULE."""
  a, b = canonicalize(a), canonicalize(b)
  if isinstance(a, decimal.Decimal) and isinstance(b, decimal.Decimal):
    whole = a == a.to_integral_value() and b == b.to_integral_value()
    return a == b if whole else abs(a - b) <= TOLERANCE
  return type(a) is type(b) and a == b
