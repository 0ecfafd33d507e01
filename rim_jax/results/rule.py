"""The rule by which an answer is the gold one, on text alone.

Needs the standard library only: an export carries a copy of this file, so that other programs judge
as a run does. `results/judge.py` applies it.

Source: docs/reference/judging.md, whose table the tests run.
"""

import decimal
import re

RULE_VERSION = 3  # counted up where any answer is judged otherwise; results without one have 1
TOLERANCE = decimal.Decimal('0.0001')  # of the gold answer's size
ANSWER_RULE = ('a whole gold answer must be met exactly; another number within 0.0001 of its size, '
               'or rounded to at least two decimals and three digits; what is not a number, as '
               'text; an answer that is empty or not closed is never right')
_CURRENCY = '$€£¥₹'
_WHOLE = r'(?:\d{1,3}(?:,\d{3})+|\d+)'
_NUMBER = re.compile(  # each part begins otherwise than what may precede it: linear
    rf'(?P<sign>[+-]?) ?[{_CURRENCY}]? ?(?P<inner>[+-]?)'
    rf'(?:(?P<over>{_WHOLE}) ?/ ?(?P<under>{_WHOLE})'
    rf'|(?P<decimal>(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,9}})?)) ?[{_CURRENCY}%]?\.?')
_MOST_DIGITS = 15  # of a fraction's parts: what divides to a whole number then is one
# Sums and quotients to 50 digits, so that no length or power makes them dear; `==` is exact anyway.
_EXACT = decimal.Context(prec=50, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])


def canonicalize(text: str) -> decimal.Decimal | str:
  """An answer as Decimal where it is a number, else as text with single spaces.

  In time linear in the text; a number keeps every digit, but for fractions, which have 50.
  """
  text = ' '.join(text.split())
  found = _NUMBER.fullmatch(text.replace('\N{MINUS SIGN}', '-'))
  if not found or (found['sign'] and found['inner']):
    return text
  if found['decimal']:
    number = decimal.Decimal(found['decimal'].replace(',', ''))
  else:
    over, under = (decimal.Decimal(found[k].replace(',', '')) for k in ('over', 'under'))
    if not under or max(over.adjusted(), under.adjusted()) >= _MOST_DIGITS:
      return text
    number = _EXACT.divide(over, under)
  return number.copy_negate() if '-' in (found['sign'], found['inner']) else number


def answers_match(a: str, b: str) -> bool:
  """Whether an answer `a` is the gold answer `b` under ANSWER_RULE."""
  x, y = canonicalize(a), canonicalize(b)
  if not (isinstance(x, decimal.Decimal) and isinstance(y, decimal.Decimal)):
    return type(x) is type(y) and x == y
  if x == y or y == y.to_integral_value():
    return x == y
  apart = _EXACT.abs(_EXACT.subtract(x, y))
  if apart <= _EXACT.multiply(TOLERANCE, y.copy_abs()):
    return True
  _, digits, exponent = x.as_tuple()
  if not isinstance(exponent, int) or exponent > -2 or len(digits) < 3:
    return False
  return apart <= _EXACT.scaleb(decimal.Decimal(5), exponent - 1)  # it rounds to that


def cut_answer(text: str, marker: str, suffix: str) -> str:
  """The answer in what was decoded: behind the last `marker`, up to `suffix`; '' where unparsed.

  Either may be ''. A suffix `}` that closes a brace of the answer does not end it. An answer
  without its suffix is unparsed.
  """
  if marker:
    text = text.rpartition(marker)[2]
  if suffix:
    end = find_end(text, suffix)
    text = '' if end is None else text[:end]
  return text if text.strip() else ''


def find_end(text: str, suffix: str) -> int | None:
  """Where an answer ends: at the first suffix outside of braces that opened in the answer.

  Braces count where the suffix begins with one, but for those that a backslash makes a character.
  An unpaired `{` leaves no such place: None.
  """
  if not suffix.startswith('}'):
    end = text.find(suffix)
    return None if end < 0 else end
  depth = 0
  for found in re.finditer(r'\\.|[{}]', text, re.DOTALL):  # a backslash takes one along
    if found[0] == '{':
      depth += 1
    elif found[0] == '}' and depth:
      depth -= 1
    elif text.startswith(suffix, found.start()):
      return found.start()
  return None


def is_right(answer: str, gold: str) -> bool:
  """Whether a parsed answer, '' where unparsed, is the gold one."""
  return bool(answer) and answers_match(answer, gold)
