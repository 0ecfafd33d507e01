"""Which problems are templates: every operand of every step traced to where it comes from.

A row becomes a `Template` only if each operand of each step is one number of its question, one
earlier result or a constant of `CONSTANTS`, and nothing else that it could be; if every
number of the question and every result is used; and if the last result is the answer. All other
rows are refused with a reason. Numbers whose reading leaves any doubt never change.
"""

import ast
import dataclasses
from fractions import Fraction
import re

from rim_jax.data.perturbed import numerals as numerals_lib
from rim_jax.data.perturbed.numerals import Numeral, Refused

# What is larger is no template: numbers are compared with each other, and trees of steps walked.
# GSM8K's largest question has 1,000 characters, and nothing above these ever fitted a row.
MAX_CHARACTERS = 20_000  # of a question
MAX_NUMBERS = 100  # of a question, and operations of a step; and the steps of a problem
_F = Fraction
# value -> (what the question must say, where the constant may stand in a step): '*' a factor,
# '/' a divisor, '-' what is subtracted from. Patterns are of words, case ignored.
CONSTANTS = {
    _F(100): [(r'%|percent', '*/-'), (r'cents?\b|¢', '*/'), (r'centimet|\bcm\b', '*/')],
    _F(1, 100): [(r'%|percent', '*'), (r'penn(?:y|ies)', '*')],
    _F(60): [(r'minute', '*/'), (r'second', '*/')],
    _F(24): [(r'hour', '*/')],
    _F(7): [(r'week|\bday', '*/')],
    _F(12): [(r'month|year|annual', '*/'), (r'inch|\bfeet|\bfoot', '*/')],
    _F(52): [(r'week', '*/')],
    _F(365): [(r'\bday|daily', '*/')],
    _F(16): [(r'ounce', '*/')],
    _F(3): [(r'yard', '*/')],
    _F(36): [(r'yard', '*/')],
    _F(1000): [(r'kilo|\bkg|\bkm|\bml\b|millil|\bgrams?\b', '*/')],
    _F(5, 100): [(r'nickel', '*')], _F(5): [(r'nickel', '*')],
    _F(10, 100): [(r'dime', '*')], _F(10): [(r'dime', '*')],
    _F(25, 100): [(r'quarters', '*')], _F(25): [(r'quarters', '*')],
}
# Numbers up to this are as often implied (two people, three parts) as they are written.
_SMALL = 12
_STEP = re.compile(r'([0-9.()+*/-]+)=(\d+(?:\.\d+)?|\.\d+)')
_NUMBER = re.compile(r'\d+\.\d+|\.\d+|\d+')
# Numbers that the world fixes: legs, wheels, sides; and what one unit has of another.
_WORLDLY = re.compile(
    r'[- ](?:\w+ )?(?:legs?|legged|wheels?|wheeled|sides?|sided|eyes?|wings?|fingers?|toes?|horns?|'
    r'arms?|hands|feet each|teeth|lives|tires?|bills?|coins?|pointers?|points?|corners?|'
    r'strings?|tentacles?|weekdays|seasons?|states|continents|'
    r'innings|quarters|halves|periods|planets|star|bedrooms?|bathrooms?|doors?|doored|stor(?:y|ies)|'
    r'generations?|twins?|triplets?|semesters?|trimesters?)\b')
# Names of units of one kind, and how many of one another has.
_UNITS = [
    ('ounce|oz|pound|lb|ton|gram|kilogram|kg|g', {16, 1000, 2000}),
    ('ounce|oz|cup|pint|quart|gallon|teaspoon|tablespoon|liter|milliliter|ml',
     {3, 4, 8, 16, 128, 1000}),
    ('inch|inche|feet|foot|ft|yard|mile|meter|centimeter|millimeter|kilometer|km|cm',
     {3, 10, 12, 36, 100, 1000, 1760, 5280}),
    ('second|minute|hour|day|week|month|year',
     {7, 12, 24, 28, 30, 31, 52, 60, 365, 366}),
]
_MEASURE = re.compile(
    rf"[- ](?:more )?(?:fluid )?((?:{'|'.join(names for names, _ in _UNITS)})s?\b)")
_ORDINALS = re.compile(
    r'\b(?:first|second|third|fourth|fifth|sixth|last|other|another|latter|former|remaining|'
    r'each other|respectively|oldest|youngest|eldest|middle|final|next|neither|either)\b', re.I)
_PEOPLE = re.compile(
    r'[- ](?:\w+ ){0,2}(?:friends?|siblings?|children|kids|sons?|daughters?|brothers?|sisters?|'
    r'people|boys|girls|men|women|persons?|types?|kinds?|different|flavou?rs?|colou?rs?|games?|'
    r'groups?|teams?|classes|members|roommates|cousins|students|employees|workers|players|'
    r'grand\w+|nephews|nieces|categories|sections|parts|pieces|ways|parents|adults|guys|others|'
    r'partners|sizes|brands|companies|stores|cities|towns|schools|rooms|stops|stages|rounds|'
    r'tests|exams|subjects|equal|of (?:them|his|her|their|the|these|those|us)|bowls|plates|shelves)'
    r'\b')


@dataclasses.dataclass(frozen=True)
class Operand:
  """A number in a step: its span there, and what it is.

  `source`: 'number' (index: of a numeral), 'result' (of an earlier step) or 'constant'.
  `scale`: what the source's value is multiplied by: 1/100 for 0.15 from '15%'.
  """
  start: int
  end: int
  value: Fraction
  source: str
  index: int
  scale: Fraction = Fraction(1)
  is_factor: bool = False  # of a multiplication or division


@dataclasses.dataclass(frozen=True)
class Template:
  """A problem whose numbers can be changed."""
  question: str
  steps: tuple[str, ...]
  numerals: tuple[Numeral, ...]
  varies: tuple[bool, ...]  # of each numeral
  operands: tuple[tuple[Operand, ...], ...]  # of each step
  trees: tuple[tuple, ...]  # of each step: (operator, left, right), a leaf is an operand's number
  results: tuple[Fraction, ...]


def make_template(question: str, steps: tuple[str, ...], answer: str) -> Template:
  """Raises: Refused, with the first reason found."""
  if not steps:
    raise Refused('no steps')
  if len(question) > MAX_CHARACTERS or len(steps) > MAX_NUMBERS:
    raise Refused('longer than a word problem')
  parsed = [_parse_step(step) for step in steps]
  results = tuple(result for _, _, result in parsed)
  if not re.fullmatch(r'\d{1,400}(?:\.\d{1,400})?', answer) or Fraction(answer) != results[-1]:
    raise Refused('the last step is not the answer')
  if min(results) <= 0:
    raise Refused('a result that is not positive')
  numerals = numerals_lib.read_numerals(question)
  if len(numerals) > MAX_NUMBERS:
    raise Refused('longer than a word problem')
  fixed = _find_twins(numerals, results)  # and what `_bind` adds to them
  operands = [tuple(_bind(leaf, i, question, numerals, results, fixed) for leaf in leaves)
              for i, (leaves, _, _) in enumerate(parsed)]
  _check_used(numerals, operands)
  varies = tuple(n.kind != 'fixed' and j not in fixed and not _is_doubtful(
      n, question, operands, j) for j, n in enumerate(numerals))
  if not any(varies):
    raise Refused('no number that can change')
  return Template(question, steps, tuple(numerals), varies, tuple(operands),
                  tuple(tree for _, tree, _ in parsed), results)


@dataclasses.dataclass(frozen=True)
class _Leaf:
  start: int
  end: int
  value: Fraction
  place: str  # '+', '-' (what is subtracted from), '_' (what is subtracted), '*', '/', '\\'


def _parse_step(step):
  """'a*b=c' -> its operands, its tree, and the result.

  Raises: Refused, also where it does not compute.
  """
  match = _STEP.fullmatch(step)
  if not match:
    raise Refused('a step that is no plain equation')
  text, leaves = match[1], []
  if len(re.findall('[-+*/(]', text)) > MAX_NUMBERS or len(step) > MAX_CHARACTERS // 10:
    raise Refused('longer than a word problem')
  try:
    tree = _walk(ast.parse(text, mode='eval').body, text, '', leaves)
    values = evaluate(tree, [leaf.value for leaf in leaves])
  except SyntaxError:
    raise Refused('a step that is no plain equation') from None
  except ZeroDivisionError:
    raise Refused('a step that does not compute') from None
  if not values:
    raise Refused('a step without its working')
  result = Fraction(match[2])
  if values[-1] != result:
    raise Refused('a step that does not compute')
  return leaves, tree, result


_OPERATIONS = {ast.Add: ('+', '+'), ast.Sub: ('-', '_'), ast.Mult: ('*', '*'),
               ast.Div: ('\\', '/')}


def _walk(node, text, place, leaves):
  if isinstance(node, ast.Constant):
    written = text[node.col_offset:node.end_col_offset]
    if not _NUMBER.fullmatch(written):
      raise Refused('a step that is no plain equation')
    leaves.append(_Leaf(node.col_offset, node.end_col_offset, Fraction(written), place))
    return len(leaves) - 1
  if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
    raise Refused('a step that is no plain equation')
  left, right = _OPERATIONS[type(node.op)]
  return (left, _walk(node.left, text, left, leaves), _walk(node.right, text, right, leaves))


def evaluate(tree, leaves) -> list:
  """The value of every operation of a tree, the whole's last; for fractions and arrays alike."""
  values = []

  def visit(node):
    if isinstance(node, int):
      return leaves[node]
    operator, a, b = node[0], visit(node[1]), visit(node[2])
    value = (a + b if operator == '+' else a - b if operator == '-'
             else a * b if operator == '*' else a / b)
    values.append(value)
    return value
  visit(tree)
  return values


def _find_twins(numerals, results) -> set[int]:
  """Numbers written twice: which of them a step means is not known, so that they stay as they are.

  Raises: Refused for what could be bound to two things that change.
  """
  changing = [n.value for n in numerals if n.kind != 'fixed']
  if set(changing) & set(results):
    raise Refused('a result that stands in the question')
  if len(set(results)) < len(results):
    raise Refused('two equal results')
  large = {v for v in changing if v > 10}
  for a in changing:
    for b in changing:
      if a < b and (
          a + b in large or (b - a in large and b - a != a) or (a > 2 and a * b in large)):
        raise Refused('a number of the question that follows from others')
  return {j for j, n in enumerate(numerals) if n.kind != 'fixed' and changing.count(n.value) > 1}


def _bind(leaf, step, question, numerals, results, fixed):
  """What an operand is. Numerals that it might be as well as something fixed are fixed too."""
  written = [(j, n) for j, n in enumerate(numerals) if leaf.value in n.operands]
  constant = _is_constant(leaf, question)
  if leaf.value in results[:step]:
    if written or constant:
      raise Refused('an ambiguous operand')
    return Operand(leaf.start, leaf.end, leaf.value, 'result', results.index(leaf.value))
  changing = [j for j, n in written if n.kind != 'fixed' and j not in fixed]
  if len(changing) > 1:
    raise Refused('an ambiguous operand')
  if changing:
    j = changing[0]
    if constant or len(written) > 1:
      fixed.add(j)
    return Operand(leaf.start, leaf.end, leaf.value, 'number', j, leaf.value / numerals[j].value,
                   leaf.place in '*/')
  if written:
    return Operand(leaf.start, leaf.end, leaf.value, 'number', written[0][0],
                   is_factor=leaf.place in '*/')
  if not constant:
    raise Refused('an operand from nowhere' if leaf.value not in CONSTANTS
                  else 'a constant used otherwise')
  return Operand(leaf.start, leaf.end, leaf.value, 'constant', -1)


def _is_constant(leaf, question):
  return any(leaf.place in where and re.search(pattern, question, re.I)
             for pattern, where in CONSTANTS.get(leaf.value, ()))


def _check_used(numerals, operands):
  """Refuses numbers and results that stand for nothing: what they are there for is not known."""
  num_steps, operands = len(operands), [o for step in operands for o in step]
  used = {(o.source, o.index) for o in operands}
  if any(('result', i) not in used for i in range(num_steps - 1)):
    raise Refused('a result that no later step uses')
  factors = [o.value for o in operands if o.source == 'number' and o.is_factor]
  for value in set(factors):
    written = sum(value in n.operands for n in numerals)
    if value <= _SMALL and value.denominator == 1 and factors.count(value) > written:
      raise Refused('a small number that is a factor more often than it is written')
  for j, n in enumerate(numerals):
    if ('number', j) in used or n.optional:
      continue
    uses = sum(o.source == 'number' and o.value in n.operands for o in operands)
    # The same number may stand there again: each is used if there is an operand for each.
    same = [m for m in numerals if m.kind == n.kind and set(m.operands) & set(n.operands)]
    if uses < (1 if n.kind == 'fixed' else len(same)):
      raise Refused('a number of the question that no step uses')


def _is_doubtful(n, question, operands, j):
  """Whether a number might have a second role, in the steps or in the world, and stays as it is."""
  uses = sum(o.source == 'number' and o.index == j for step in operands for o in step)
  value, is_count, measure = n.value, n.kind == 'count', _MEASURE.match(n.after)
  return (
      value == 1 or (is_count and value <= 2) or (n.kind == 'percent' and value >= 100)
      or (uses > 1 and is_count and value <= _SMALL)
      or bool(re.match(r'[- ]?(?:dollars?[- ])?(?:bill|note|coin)s?\b', n.after))
      or (is_count and value.denominator == 1 and bool(
          _WORLDLY.match(n.after) or (measure and _is_conversion(value, measure[1], question))
          # A count that words may repeat: 'three friends, Tom, Ann and Bob', 'the other four'.
          or (value <= 6 and not measure and (
              n.text[0].isalpha() or _ORDINALS.search(question) or _PEOPLE.match(n.after)))
          or value - 1 in _iter_multipliers(question)  # three times as many: a division by 4 parts
          or any(len(step) == value for step in operands))))


def _is_conversion(value, unit, question):
  """Whether a number may be how many of its unit another one has: '16 ounces in a pound'."""
  for names, sizes in _UNITS:
    pattern = re.compile(rf'(?<![a-z])({names})s?\b', re.I)
    if pattern.match(unit) and (value in sizes or (value == 4 and unit.startswith('week'))):
      names = {'foot' if name.lower() == 'feet' else name.lower()
               for name in pattern.findall(question)}
      if len(names) > 1:
        return True
  return False


def _iter_multipliers(question):
  for word, value in (('twice|doubl', 2), ('thrice|tripl', 3), ('quadrupl', 4)):
    if re.search(word, question, re.I):
      yield value
  for match in re.finditer(r'(\w+) times', question):
    value = numerals_lib.WORDS.get(match[1].lower()) or (match[1].isdigit() and int(match[1]))
    if value:
      yield value
