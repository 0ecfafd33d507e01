"""A training split from another: its rows that are templates, with other numbers, each checked.

Owns the choice of rows, with the count of every reason against one, how many variants each
gives, and the two checks that stand between a variant and the data: an executor that shares
nothing with what wrote it, and the questions of the other splits.
"""

import bisect
import collections
from collections.abc import Iterator
import re
import time

from rim_jax.config import PerturbedConfig
from rim_jax.data.perturbed import executor
from rim_jax.data.perturbed import templates as templates_lib
from rim_jax.data.perturbed import variants as variants_lib
from rim_jax.data.perturbed.numerals import Refused
from rim_jax.data.records import Record, Variant
from rim_jax.errors import UserError

_REPORT_SECS = 10.0
_NUMBER = re.compile(
    r'\d[\d,.]*|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|'
    r'(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|an?|'
    r'half|twice|double|triple|thrice|dozen|hundred|thousand)\b')


def mask_numbers(question: str) -> str:
  """A question without its numbers, articles, case, signs and spaces: what all variants share."""
  masked = _NUMBER.sub(' ', question.lower())
  return ' '.join(re.findall(r'[a-z]+', masked))


def share_out(sizes: list[int], total: int) -> list[int]:
  """How many each gives of its size: `total` in all, as equal as can be; total <= sum(sizes)."""
  # The most that can be given to each, or all it has, without giving more than the total.
  level = bisect.bisect_right(
      range(max(sizes, default=0) + 1), total, key=lambda n: sum(min(s, n) for s in sizes)) - 1
  quotas = [min(size, level) for size in sizes]
  larger = [i for i, size in enumerate(sizes) if size > level]
  for i in larger[:total - sum(quotas)]:  # fewer are left than there are to give one more
    quotas[i] += 1
  return quotas


class Perturbed:
  """The variants of a training split: sized, and made one by one, the same every time.

  Template by template in the order of the rows. Where fewer are wanted than there are, all
  templates are cut to one number of variants; those that have fewer give all they have.

  Attributes:
    reasons: why rows are no template -> how many of them; 'template' for those that are.
  Raises: UserError where there are fewer variants than the config's total.
  """

  def __init__(self, records: list[Record], others: list[Record], config: PerturbedConfig,
               step_marks: bool = False, say=print):
    self.reasons = collections.Counter()
    self._step_marks, self._say, self._told = step_marks, say, time.monotonic()
    self._others = {mask_numbers(r.question) for r in others}
    self._drawn, masks = [], set()  # (record, its variants)
    for i, record in enumerate(records):
      self._tell('looking for templates, row', i, len(records))
      try:
        self._drawn.append((record, self._draw(record, config, masks)))
        self.reasons['template'] += 1
      except Refused as reason:
        self.reasons[str(reason)] += 1
    sizes = [len(drawn) for _, drawn in self._drawn]
    if not sizes or config.total > sum(sizes):
      raise UserError(
          f'data.perturbed.total={config.total}: the {len(sizes)} templates among '
          f'{len(records)} training rows give {sum(sizes)} variants with '
          f'data.perturbed.variants_per_problem={config.variants_per_problem}; lower total, or '
          'raise variants_per_problem')
    self._quotas = share_out(sizes, config.total or sum(sizes))

  def _draw(self, record, config, masks):
    """The variants of a row. Raises: Refused, where there is none."""
    steps = tuple(s[2:-2] if self._step_marks else s for s in record.steps)
    template = templates_lib.make_template(record.question, steps, record.answer)
    if executor.find_fault(record.question, steps, record.answer):
      raise Refused('a step that the executor cannot follow')
    mask = mask_numbers(record.question)
    if mask in self._others:
      raise Refused('a question of another split, numbers aside')
    if mask in masks:
      raise Refused('a question of another row, numbers aside')
    drawn = variants_lib.Drawn(
        template, config.variants_per_problem, config.seed, get_source_row(record))
    if not len(drawn):
      raise Refused('no other numbers that fit')
    masks.add(mask)
    return drawn

  def __len__(self):
    return sum(self._quotas)

  def __iter__(self) -> Iterator[Variant]:
    """Raises: RuntimeError for a variant that does not compute or is in another split."""
    made = 0
    for (record, drawn), quota in zip(self._drawn, self._quotas):
      for i in range(quota):
        self._tell('writing variant', made, len(self))
        question, steps, answer = drawn[i]
        origin = f'{record.origin}#{i + 1}'
        if fault := executor.find_fault(question, steps, answer):
          raise RuntimeError(f'{origin}: {fault}: {question!r}')
        if mask_numbers(question) in self._others:
          raise RuntimeError(f'{origin}: a question of another split: {question!r}')
        if self._step_marks:
          steps = tuple(f'<<{step}>>' for step in steps)
        yield Variant(question, steps, answer, origin, get_source_row(record), i + 1)
        made += 1

  def describe(self) -> list[str]:
    """Notes: templates and variants, and the rows left out by reason."""
    counts = self.reasons.most_common()
    left_out = '; '.join(f'{reason}: {n}' for reason, n in counts if reason != 'template')
    return [f"train: {len(self)} variants of {self.reasons['template']} templates, from "
            f'{sum(self.reasons.values())} rows; left out: {left_out or "none"}']

  def _tell(self, what, number, count):
    if time.monotonic() - self._told > _REPORT_SECS:
      self._told = time.monotonic()
      self._say(f'rim_gsm8k_perturbed: {what} {number:,} of {count:,}')


def get_source_row(record: Record) -> int:
  """The line of its file that a record was read from, 1-based."""
  return int(record.origin.rpartition(':')[2])
