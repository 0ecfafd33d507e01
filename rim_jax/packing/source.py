"""Records to batches: encoding, sizes, and the Grain pipeline over a packing plan.

The stream is random access: batch i is a function of the plan and i alone.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from rim_jax.config import Config, ModelConfig, flatten, rules
from rim_jax.data import encoded as encoded_lib
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from rim_jax.packing import rows as rows_lib

# Of what rows are made by; a run's card has them.
VERSIONS = {'layout': layout_lib.LAYOUT_VERSION, 'plan': order.PLAN_VERSION,
            'batch': batch_lib.BATCH_VERSION}


@dataclasses.dataclass(frozen=True)
class Codec:
  """How this run turns records into ids and rows: tokenizer, template, its method's layout."""
  tokenizer: Any  # see tokenizer.load_tokenizer
  template: layout_lib.Template
  config: Config
  memory_start: int  # rows of the embedding; the first memory id
  layout: Callable[..., layout_lib.Example]
  removal: order.Removal | None = None

  def encode_question(self, text: str) -> list[int]:
    return layout_lib.wrap_question(
        self.tokenizer.encode(text, is_first=not self.template.question_prefix), self.template)

  def encode(self, record) -> layout_lib.Encoded:
    """Segments are tokenised one by one, so that ids do not depend on their neighbours.

    All of them together decode to the texts joined.
    """
    return layout_lib.Encoded(
        self.encode_question(record.question), tuple(map(self.tokenizer.encode, record.steps)),
        self.tokenizer.encode(record.answer))

  def lay_out(self, encoded: layout_lib.Encoded, removed: int = 0) -> layout_lib.Example:
    """`removed`: tokens that its chain has lost, where the method removes any."""
    return self.layout(encoded, self.template, self.config.layout,
                       *([removed] if removed else []))


def make_codec(config: Config, tokenizer, layout, removal: order.Removal | None = None) -> Codec:
  """`layout` and `removal` as a Method has them.

  Special tokens alone may have no row: Gemma's tokenizer has one for images, its text model none.

  Raises: UserError where model.vocab_size is below the tokenizer's, or a template spells a token
    without a row.
  """
  vocab_size = config.model.vocab_size or tokenizer.vocab_size
  if vocab_size < tokenizer.num_text_ids:
    raise UserError(f'model.vocab_size={vocab_size} is below the tokenizer\'s '
                    f'{tokenizer.num_text_ids} ids; ' + (
                        "give the tokenizer of that model, or a model with a row for each id"
                        if config.model.init_from else 'use 0 (the same) or more'))
  template = layout_lib.make_template(tokenizer, config.layout)
  for key, ids in vars(template).items():
    if max(ids, default=0) >= vocab_size:
      raise UserError(f'layout.{key} spells a special token with id {max(ids)}, and the model has '
                      f'{vocab_size} rows; leave it out')
  return Codec(tokenizer, template, config, vocab_size, layout, removal)


def load_encoded(split, codec: Codec, say=print) -> encoded_lib.EncodedSplit:
  """The ids of a split's texts, as the codec's tokenizer and template have them."""
  return encoded_lib.load_encoded(
      split, codec.tokenizer, not codec.template.question_prefix, codec.config.data, say)


def measure(encoded: encoded_lib.EncodedSplit, codec: Codec, removed: int = 0) -> np.ndarray:
  """Sizes of every record under the method's layout: i64[N, 6].

  They are (tokens, slots, positions, n, tokens of the trunk, of them those of blocks).

  The layout itself is run on texts of these lengths, so its arithmetic exists once.
  Records that cannot be encoded get -1.
  """
  template, config = codec.template, codec.config.layout
  extra = len(layout_lib.wrap_question((), template))
  sizes = np.full((len(encoded), 6), -1, np.int64)
  block_size = layout_lib.get_block_size(config)
  for i in range(len(encoded)):
    counts = encoded.count_tokens(i)
    if not counts:
      continue
    question, answer, *steps = counts
    example = codec.lay_out(layout_lib.Encoded(
        range(question + extra), tuple(map(range, steps)), range(answer)), removed)
    blocks = block_size * example.num_blocks
    sizes[i] = (*layout_lib.count_example(example, config), example.num_steps,
                len(example.question) + blocks, blocks)
  return sizes


def count_positions(split, codec: Codec, say=print) -> int:
  """Positions that training on a split reaches: the largest of any example, plus 1."""
  sizes = measure(load_encoded(split, codec, say), codec)
  usable, _ = find_usable(sizes, split, codec)
  return int(sizes[usable, 2].max())


def find_unfit(sizes: np.ndarray, split, codec: Codec) -> tuple[np.ndarray, list]:
  """Which records fit, bool[N], and one line for each that does not."""
  layout, most = codec.config.layout, np.iinfo(np.int64).max
  key, positions = find_reach(codec.config.model)
  limits = {'layout.row_tokens': layout.row_tokens, 'layout.row_slots': layout.row_slots or most,
            key: positions or most}  # of the first columns of the sizes
  reasons = []
  good = (sizes[:, 0] >= 0) & (sizes[:, :3] <= list(limits.values())).all(1)
  for i in np.flatnonzero(~good).tolist():
    record = split[i]
    if sizes[i, 0] < 0:
      try:
        codec.encode(record)
      except UserError as e:
        reasons.append(f'{record.origin}: {e}')
        continue
    reasons.append(f'{record.origin}: ' + ', '.join(
        f'needs {name}={size}, has {limit}'
        for (name, limit), size in zip(limits.items(), sizes[i].tolist()) if size > limit))
  return good, reasons


def find_usable(sizes: np.ndarray, split, codec: Codec) -> tuple[np.ndarray, list]:
  """Numbers of the records that fit, and one line for each that does not.

  Raises: UserError with the first of those lines, unless data.on_bad_rows is 'drop'.
  """
  good, reasons = find_unfit(sizes, split, codec)
  if reasons and codec.config.data.on_bad_rows == 'stop':
    more = f' (and {len(reasons) - 1} more such rows)' if len(reasons) > 1 else ''
    raise UserError(f'{reasons[0]}{more}; raise that key (those of a pretrained model are its own),'
                    ' or drop such rows with --config.data.on_bad_rows=drop')
  usable = np.flatnonzero(good)
  if not len(usable):
    raise UserError(f'{split.name}: none of its {len(split)} records can be used; '
                    f'the first: {reasons[0] if reasons else "the split is empty"}')
  return usable, reasons


def find_reach(model: ModelConfig) -> tuple[str, int]:
  """The key that says how many positions an example may have, and how many; 0: any number.

  A window is not computed, so no token of an example may lie beyond that of another.
  """
  found = {'model.sliding_window': model.sliding_window,
           'model.max_positions': model.max_positions if model.positions == 'learned' else 0}
  return min(found.items(), key=lambda pair: pair[1] or np.inf)


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """A stage's rows and what follows from them."""
  encoded: encoded_lib.EncodedSplit
  plan: order.Plan
  batch_rows: int
  num_steps: int  # S
  num_examples: int  # the budget
  max_blocks: int  # the largest k that a readout can have
  dropped: list
  limits: batch_lib.RowLimits
  reset_steps: tuple = ()  # completed updates after which the optimizer begins anew
  counted_from: int = 0  # the first step whose checkpoint is a result of the method
  skip: int = 0  # examples of the data's order that come before the stage's first

  def describe(self) -> str:
    plan = self.plan
    after = f' after the first {self.skip:,}' if self.skip else ''
    return (f'{self.num_examples:,} examples{after} in {plan.num_rows:,} rows of '
            f'{plan.row_tokens} tokens ({plan.useful_frac:.1%} useful), {plan.row_slots} slots; '
            f'{self.num_steps:,} steps of {self.batch_rows} rows = '
            f'{plan.examples_per_row * self.batch_rows:.1f} examples'
            + (f'; no chain is left from step {self.counted_from:,} on' if self.counted_from
               else ''))


def make_stage_plan(split, codec: Codec, num_shards: int = 1, say=print,
                    version: int = order.PLAN_VERSION) -> StagePlan:
  """The packing plan of a stage over a training split.

  Args:
    num_shards: pieces that the mesh splits a batch's rows into.
    version: of the plan, as the run began with it.
  Raises: UserError "train.batch_rows=... is not divisible by ...", or for bad rows.
  """
  config = codec.config
  encoded = load_encoded(split, codec, say)
  sizes = measure(encoded, codec)
  usable, dropped = find_usable(sizes, split, codec)
  row_slots = config.layout.row_slots or order.choose_row_slots(
      sizes[usable], config.layout.row_tokens)
  num_examples = config.train.num_examples or round(config.train.num_epochs * len(usable))
  too_many = rules.describe_budget(
      f'train.num_epochs={config.train.num_epochs:g} of {len(usable):,} records', num_examples)
  if too_many:
    raise UserError(too_many)
  if not num_examples:
    raise UserError(f'train.num_epochs={config.train.num_epochs:g} of {len(usable)} records is '
                    'no example; raise it')
  skip = config.train.skip_examples + round(config.train.skip_epochs * len(usable))
  least, cut = None, None
  if codec.removal:
    if skip:
      raise UserError(f'{config.method} takes its chain away from the first epoch on; set '
                      'train.skip_examples and train.skip_epochs to 0')
    least = measure(encoded, codec, order.ALL)
    longest = int((sizes - least)[usable, 0].max())
    cut = codec.removal.make_cut(len(sizes), longest, config)
  plan = order.make_plan(usable, sizes, num_examples, config.layout.row_tokens, row_slots,
                         config.layout.pack_window_rows, config.seed, cut, least, skip, version)
  pieces = num_shards * config.train.num_micro_batches
  batch_rows, origin = config.train.batch_rows, ''
  if not batch_rows:
    batch_rows = max(1, round(config.train.batch_examples / plan.examples_per_row))
    origin = f' (from train.batch_examples={config.train.batch_examples})'
  check_rows(batch_rows, origin, pieces)
  blocks, num_steps = codec.config.layout.num_blocks, -(-plan.num_rows // batch_rows)
  resets, counted = (), 0
  if codec.removal:
    key = codec.removal.rate_key
    resets, counted = codec.removal.find_steps(plan.parts, batch_rows, config)
    if not 0 < counted <= num_steps:
      raise UserError(
          f'the budget of {num_examples:,} examples, {num_examples / len(usable):.2f} epochs, ends '
          f'before the written chain is gone, and {config.method} is judged without it; raise the '
          f'budget, or {key}={flatten(config)[key]:g} (chains of up to {longest} tokens)')
  most = np.add.reduceat(sizes[plan.records, 4:], plan.starts[:-1]).max(0).tolist()
  return StagePlan(encoded, plan, batch_rows, num_steps, num_examples,
                   max(int(sizes[usable, 3].max()), blocks), dropped,
                   batch_lib.RowLimits(int(np.diff(plan.starts).max()), *most), resets, counted,
                   skip)


def check_rows(batch_rows, origin, pieces):
  if batch_rows % pieces:
    low = batch_rows // pieces * pieces
    raise UserError(
        f'train.batch_rows={batch_rows}{origin} is not divisible by slice x data x fsdp '
        f'x train.num_micro_batches = {pieces}; use --config.train.batch_examples=0 '
        f'--config.train.batch_rows={low or pieces}{f" or {low + pieces}" if low else ""}; a run '
        'that has begun keeps its rows: give it a number of devices that divides them')


class BatchSource:
  """Batch i of a stage, as numpy arrays: a Grain random-access source.

  Args:
    rows: those of a batch's rows that are made, rising; all of them by default. Each process
      makes what its devices hold.
  """

  def __init__(self, stage: StagePlan, codec: Codec, rows=None):
    self._stage, self._codec = stage, codec
    self.rows = np.arange(stage.batch_rows) if rows is None else rows

  def __len__(self):
    return self._stage.num_steps

  def get_records(self, i: int) -> list[np.ndarray]:
    """Record numbers of each of batch i's rows that are made here."""
    return [records for records, _ in self._get_rows(i)]

  def _get_rows(self, i):
    first = i * self._stage.batch_rows
    return [self._stage.plan.get_row(first + row) for row in self.rows.tolist()]

  def __getitem__(self, index: int) -> batch_lib.Batch:
    plan, codec = self._stage.plan, self._codec
    rows = [list(map(self._lay_out, records.tolist(), removed.tolist()))
            for records, removed in self._get_rows(index)]
    return rows_lib.make_rows(
        rows, plan.row_tokens, plan.row_slots, codec.config.layout, codec.memory_start)

  def _lay_out(self, number: int, removed: int) -> layout_lib.Example:
    question, answer, *steps = self._stage.encoded[number]
    return self._codec.lay_out(layout_lib.Encoded(
        layout_lib.wrap_question(question, self._codec.template), tuple(steps), answer), removed)
