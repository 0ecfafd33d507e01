"""Recomputes a problem from its text alone: the check on problems that a program has written.

Shares no code, table or pattern with what writes them, so that a mistake there cannot excuse
itself here. It knows less, too: a number is any number of the question, whatever its unit.
"""

from fractions import Fraction
import functools
import re

_SMALL = {word: i for i, word in enumerate(
    'one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen'.split(), 1)}
_LARGE = {word: 10 * i for i, word in enumerate(
    'twenty thirty forty fifty sixty seventy eighty ninety'.split(), 2)}
_PARTS = {'half': 2, 'halv': 2, 'third': 3, 'quarter': 4, 'fourth': 4, 'fifth': 5, 'sixth': 6,
          'seventh': 7, 'eighth': 8, 'ninth': 9, 'tenth': 10}
_TIMES = {'twice': 2, 'doubl': 2, 'both': 2, 'pair': 2, 'couple': 2, 'thrice': 3, 'tripl': 3,
          'quadrupl': 4, 'dozen': 12, 'once': 1}
# What a word of the question lets a step use without its being written.
_KNOWN = {'day': '7 365', 'week': '7 52', 'daily': '7 365', 'hour': '60 24', 'minute': '60',
          'second': '60', 'month': '12', 'year': '12 52 365', 'annual': '12', 'inch': '12',
          'foot': '12 3', 'feet': '12 3', 'yard': '3 36', 'ounce': '16', 'pound': '16',
          'percent': '100 0.01', '%': '100 0.01', 'cent': '100', '¢': '100', 'cm': '100',
          'kilo': '1000', 'kg': '1000', 'km': '1000', 'ml': '1000', 'gram': '1000',
          'milli': '1000', 'nickel': '5 0.05', 'dime': '10 0.1', 'quarters': '25 0.25',
          'penn': '0.01'}
_NUMBER = re.compile(r'\d+\.\d*|\.\d+|\d+')
_EXPRESSION = re.compile(rf'\(*(?:{_NUMBER.pattern})\)*(?:[-+*/]\(*(?:{_NUMBER.pattern})\)*)*')


def find_fault(question: str, steps, answer: str) -> str:
  """What is wrong with a problem: a step, an operand from nowhere, the answer; '' for nothing."""
  known, value = _read_question(question), None
  for number, step in enumerate(steps, 1):
    left, equals, right = step.partition('=')
    try:
      computed, operands = _compute(left)
      value = Fraction(right)
    except (ValueError, ZeroDivisionError):
      return f'step {number}, {step}: not an equation'
    if not equals or computed != value:
      return f'step {number}, {step}: its left side is {computed}'
    strangers = [o for o in operands if o not in known]
    if strangers:
      return f'step {number}, {step}: {strangers[0]} is neither in the question nor a result'
    known.add(value)
  if value is None or Fraction(answer) != value:
    return f'the last step gives {value}, the answer is {answer}'
  return ''


def _read_question(question):
  """Every number that the words and digits of a question let a step use."""
  text = question.lower()
  found = {Fraction(n.replace(',', '')) for n in re.findall(r'\d[\d,]*(?:\.\d+)?', text)}
  found |= {Fraction(int(a), int(b)) for a, b in re.findall(r'(\d+)/0*([1-9]\d*)', text)}
  words = re.findall('[a-z]+', text)
  for word, following in zip(words, [*words[1:], '']):
    found |= _read_word(word, following)
  if '%' in text or 'percent' in text or 'cent' in text or '¢' in text:
    found |= {n / 100 for n in found}
  for stem, numbers in _KNOWN.items():
    if stem in text:
      found |= set(map(Fraction, numbers.split()))
  return found


@functools.lru_cache(maxsize=1 << 16)
def _read_word(word, following):
  """The numbers that a word may stand for, before another."""
  tens, ones = _LARGE.get(word, 0), _SMALL.get(word, 0)
  found = {tens, ones, tens + _SMALL.get(following, 0)} - {0}
  for stem, parts in _PARTS.items():
    if following.startswith(stem):
      found.add(Fraction(ones or 1, parts))
    if word.startswith(stem):
      found |= {parts, Fraction(1, parts), 1}
  found |= {times for stem, times in _TIMES.items() if word.startswith(stem)}
  return frozenset(map(Fraction, found))


def _compute(text: str) -> tuple[Fraction, list[Fraction]]:
  """(what + - * / and brackets come to, in exact fractions; the numbers in it).

  Raises: ValueError or ZeroDivisionError where it is no such expression.
  """
  if not _EXPRESSION.fullmatch(text):
    raise ValueError(text)
  try:  # of numbers, brackets and single operators between them: nothing else can come to run
    value = eval(_NUMBER.sub(r"F('\g<0>')", text), {'F': Fraction, '__builtins__': {}})
  except (SyntaxError, TypeError, RecursionError, MemoryError):
    raise ValueError(text) from None
  return value, list(map(Fraction, _NUMBER.findall(text)))
