"""Other numbers for a template: what keeps a problem sensible, drawing, and writing.

Numbers keep their type, size and roundness; every operation that gave an integer still
does; and all that was smaller than something else in the problem still is. Candidates are
proposed as floats, many at a time, and decided as exact fractions, one by one.
"""

from fractions import Fraction
import math
import re

import numpy as np

from rim_jax.data.perturbed import numerals as numerals_lib
from rim_jax.data.perturbed import templates as templates_lib
from rim_jax.data.perturbed.templates import Template

_NUM_PROPOSED = 1 << 16  # candidates of a template, of which those that hold are kept
_LARGEST_CHANGE = 3  # of a result, as a factor
_NARROW = re.compile(r'\bold\b|\bages?\b|\btall|\bheight|\bmph\b|miles per hour|miles an hour|'
                     r'\bweigh|\bspeed|\bsleep', re.I)
_DAILY = re.compile(r'\bday|daily|night', re.I)
# What a number of one unit is compared with: 5 days a week stay at most 7.
_LANDMARKS = (
    ('', 1), (r'\bday|week', 7), ('hour', 24), ('minute|second', 60), (r'month|year|inch', 12),
    (r'%|percent|cents|\bscore|\bexam|\bquiz|\btest|\bgrade|\bpoints', 100),
    (r'\bday|month', 30))


def list_choices(template: Template) -> list[list[Fraction]]:
  """The values that each number of a question may take; its own alone where it does not vary."""
  question = template.question
  narrow, daily = bool(_NARROW.search(question)), bool(_DAILY.search(question))
  return [_list_values(n, narrow or bool(re.match(
      '[- ](?:hours?|years?)' if daily else '[- ]years?', n.after)))
          if varies else [n.value]
          for n, varies in zip(template.numerals, template.varies)]


def _list_values(n, narrow):
  value = n.value
  low, high = (value * 3 / 4, value * 4 / 3) if narrow else (
      value / 2, value * (3 if value <= 10 else 2))
  if n.kind == 'percent':
    unit = Fraction(5 if value % 5 == 0 else 1)
    high = min(high, Fraction(99))
  elif '.' in n.text:
    decimals = len(n.text.partition('.')[2])
    whole = int(value * 10**decimals)
    rounds = (25, 10, 5, 1) if n.kind == 'money' and decimals == 2 else (5, 1)
    unit = Fraction(next(r for r in rounds if whole % r == 0), 10**decimals)
  else:
    zeros = len(n.text.replace(',', '')) - len(n.text.replace(',', '').rstrip('0'))
    unit = Fraction(10**max(0, zeros - 1, len(str(value)) - 4))
    low = max(low, Fraction(3 if value > 2 else 2))
    if n.text[0].isalpha():
      high = min(high, Fraction(99))
  values = [unit * i for i in range(math.ceil(low / unit), math.floor(high / unit) + 1)]
  if value.denominator > 1 and not (n.kind == 'money' and decimals == 2):  # no '$3.0'
    values = [v for v in values if v.denominator > 1]
  return values


def _compute(template, numbers, cast=Fraction):
  """The value of every operation of every step; numbers are fractions, or arrays and cast float."""
  steps = []
  for operands, tree in zip(template.operands, template.trees):
    leaves = [steps[o.index][-1] if o.source == 'result'
              else numbers[o.index] * cast(o.scale)
              if o.source == 'number' and template.varies[o.index] else cast(o.value)
              for o in operands]
    steps.append(templates_lib.evaluate(tree, leaves))
  return steps


def _make_chains(template):
  """What has an order: lists of (original value, source, key), rising, that must rise again.

  Counts, money and percent each among themselves, with the results that are of that kind.
  """
  money = _find_money(template)
  marks = {'count': [v for pattern, v in _LANDMARKS if re.search(pattern, template.question, re.I)],
           'money': [], 'percent': [100]}
  chains = []
  for kind, landmarks in marks.items():
    chain = [(n.value, 'number', j) for j, n in enumerate(template.numerals)
             if n.kind == kind or (n.kind == 'cents' and kind == 'count')]
    chain += [(v, 'result', i) for i, v in enumerate(template.results)
              if kind == ('money' if i in money else 'count')]
    chain += [(Fraction(v), 'mark', Fraction(v)) for v in landmarks]
    chains.append(sorted(chain, key=lambda item: item[0]))
  return chains


def _find_money(template):
  """The results that are amounts of money: those that an amount of money goes into.

  The ratio of two amounts is among them, though it is none; without it, other variants would fit.
  """
  money = set()
  for i, operands in enumerate(template.operands):
    if any(o.index in money if o.source == 'result' else
           o.source == 'number' and template.numerals[o.index].kind == 'money' for o in operands):
      money.add(i)
  return money


def _find_good(template, chains, places, numbers, cast=Fraction):
  """Which candidates are sensible: every operation as whole and positive as it was, all in order.

  `places`: decimal places of every operation of every step as it was, None where they have no end.
  `numbers`: for each number of the question a fraction, or with cast=float an array, for which
  rounding is forgiven.
  """
  steps = _compute(template, numbers, cast)
  slack, good = (0 if cast is Fraction else 1e-7), True
  for step, step_places, old in zip(steps, places, template.results):
    for new, count in zip(step, step_places):
      good &= new > 0
      if count is not None:
        scaled = new * 10**count
        good &= abs(scaled - (np.rint(scaled) if slack else round(scaled))) <= slack * scaled
    new, old = step[-1], cast(old)
    good &= (old <= new * _LARGEST_CHANGE) & (new <= old * _LARGEST_CHANGE)
  for chain in chains:
    values = [cast(key) if source == 'mark' else numbers[key] if source == 'number'
              else steps[key][-1] for _, source, key in chain]
    for (old_a, *_), (old_b, *_), a, b in zip(chain, chain[1:], values, values[1:]):
      good &= a < b + slack if old_a < old_b else abs(a - b) <= slack
  return good


def _count_places(value):
  """Decimal places; None for a fraction that has no end, or more than six."""
  return next((n for n in range(7) if (value * 10**n).denominator == 1), None)


class Drawn:
  """Distinct variants of a template, in random order; each is written when it is asked for.

  All sets of numbers that there are are looked at where they are few, and as many drawn ones
  otherwise; `limit` of those that make a sensible problem are kept.
  """

  def __init__(self, template: Template, limit: int, seed: int, row: int):
    self.template = template
    self._choices = list_choices(template)
    self._picks = np.asarray(self._draw(limit, seed, row), np.uint32)  # [variants, numerals]

  def __len__(self):
    return len(self._picks)

  def __getitem__(self, i: int) -> tuple[str, tuple[str, ...], str]:
    numbers = self._look_up(self._picks[i].tolist())  # as GSM8K writes them
    return (_write_question(self.template, numbers), *_write_steps(self.template, numbers))

  def _look_up(self, picks):
    return tuple(choice[i] for choice, i in zip(self._choices, picks))

  def _draw(self, limit, seed, row):
    template, choices = self.template, self._choices
    if not all(choices):
      return []
    chains = _make_chains(template)
    wholes = [[_count_places(v) for v in step]
              for step in _compute(template, [n.value for n in template.numerals])]
    indices = _propose([len(c) for c in choices], seed, row)
    arrays = [np.asarray([float(v) for v in c])[i] for c, i in zip(choices, indices)]
    with np.errstate(divide='ignore', invalid='ignore'):
      good = np.flatnonzero(_find_good(template, chains, wholes, arrays, float))
    kept = {tuple(n.value for n in template.numerals): None}  # not the problem itself
    for picks in zip(*(index[good].tolist() for index in indices)):
      numbers = self._look_up(picks)
      if numbers not in kept and _find_good(template, chains, wholes, numbers):
        kept[numbers] = picks
        if len(kept) > limit:
          break
    return list(kept.values())[1:]


def _propose(sizes, seed, row):
  """Index arrays, one below each size: all combinations in random order where they are few."""
  space = math.prod(sizes)
  # Raw Philox words: numpy does not promise that its generators' draws stay what they are.
  bits = np.random.Philox(np.random.SeedSequence((seed, row)))
  words = bits.random_raw(_NUM_PROPOSED)
  if space <= _NUM_PROPOSED:
    places = np.argsort(words[:space], kind='stable')
  else:
    if space >= 1 << 64:  # Python's integers, of as many words as it takes
      words = words.astype(object)
      for _ in range(space.bit_length() // 64):
        words = (words << 64) + bits.random_raw(_NUM_PROPOSED).astype(object)
    places = words % space
  indices = []
  for size in sizes:
    indices.append((places % size).astype(np.int64))
    places = places // size
  return indices


def _write_question(template, numbers):
  question, end, written = template.question, 0, ''
  commas = any(',' in n.text for n in template.numerals)
  for n, varies, value in zip(template.numerals, template.varies, numbers):
    before, text = question[end:n.start], question[n.start:n.end]
    if varies and value != n.value:
      text = numerals_lib.write_numeral(n, value, commas)
      before = numerals_lib.fit_article(before, text)
    written += before + text
    end = n.end
  return written + question[end:]


def _write_steps(template, numbers):
  """The steps and the answer; decimals, zeros and points as the original has them."""
  values = [step[-1] for step in _compute(template, numbers)]
  steps = []
  pad = '$' in template.question and any(re.search(r'\.\d0(?!\d)', s) for s in template.steps)
  for step, operands, result in zip(template.steps, template.operands, values):
    left, _, right = step.partition('=')
    written, end = '', 0
    for o in operands:
      value = (values[o.index] if o.source == 'result' else numbers[o.index] * o.scale
               if o.source == 'number' and template.varies[o.index] else o.value)
      text = left[o.start:o.end]
      written += left[end:o.start] + (
          text if value == o.value else _write_number(value, text, pad and o.scale == 1))
      end = o.end
    steps.append(f'{written}{left[end:]}={_write_number(result, right, pad)}')
  return tuple(steps), _write_number(values[-1], '1', False)


def _write_number(value, like, pad):
  """A terminating decimal in the form of another: its trailing zeros, its leading point."""
  places, whole = _count_places(value), like.partition('.')[2]
  if whole.endswith('0') or (pad and places == 1):
    places = max(places, len(whole), 2 if pad else 0)
  digits = f'{int(value * 10**places):0{places + 1}d}'
  text = f'{digits[:-places]}.{digits[-places:]}' if places else digits
  return text[1:] if like.startswith('.') and text.startswith('0.') else text
