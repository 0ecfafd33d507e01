"""Rows of a run whose data is not there: of typical records, so that a step can be planned."""

import dataclasses
import math
import types

import numpy as np

from rim_jax.config import Config
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from rim_jax.packing import rows as rows_lib
from rim_jax.packing.source import check_rows


@dataclasses.dataclass(frozen=True)
class Rows:
  """Shape of a step's batch, and what had to be assumed of the data to know it."""
  batch_rows: int
  row_slots: int
  assumed: tuple[str, ...]
  limits: batch_lib.RowLimits = batch_lib.RowLimits()


def estimate_rows(config: Config, layout, num_pieces: int) -> Rows:
  """Rows and slots of a step as the config gives them, or estimated from a typical record.

  The rule, for `layout.row_slots=0` or `train.batch_examples`: a record of grade-school maths has a
  question of 240 characters, 4 steps of 12 and an answer of 3; a tokenizer from a file takes 4
  characters to a token (2 in steps and answers). It is laid out by the run's own method; rows are
  rounded up to what the mesh and the micro-batches divide.

  Raises: UserError where `train.batch_rows` is not divisible by num_pieces.
  """
  example = _make_typical_example(config, layout)
  tokens, slots, _ = layout_lib.count_example(example, config.layout)
  if tokens > config.layout.row_tokens:
    raise UserError(f'layout.row_tokens={config.layout.row_tokens} is below the {tokens} tokens of '
                    'a typical record; raise it')
  assumed = []
  row_slots = config.layout.row_slots
  if not row_slots:
    row_slots = order.choose_row_slots(np.array([[tokens, slots]]), config.layout.row_tokens)
    assumed.append(f'layout.row_slots={row_slots}')
  batch_rows = config.train.batch_rows
  if not batch_rows:
    per_row = config.layout.row_tokens / tokens
    batch_rows = -(-max(1, round(config.train.batch_examples / per_row)) // num_pieces) * num_pieces
    assumed.append(f'train.batch_rows={batch_rows} for {config.train.batch_examples} examples')
  check_rows(batch_rows, '', num_pieces)
  if assumed:
    assumed.append(f'from a typical record of {tokens} tokens and {slots} slots')
  count = config.layout.row_tokens // tokens
  blocks = layout_lib.get_block_size(config.layout) * example.num_blocks
  return Rows(batch_rows, row_slots, tuple(assumed), batch_lib.RowLimits(
      count, count * (len(example.question) + blocks), count * blocks))


def make_typical_row(config: Config, layout) -> batch_lib.Batch:
  """One row of as many typical records as it holds, as `estimate_rows` assumes them."""
  example = _make_typical_example(config, layout)
  tokens, slots, _ = layout_lib.count_example(example, config.layout)
  count = config.layout.row_tokens // tokens
  return rows_lib.make_rows([[example] * count], config.layout.row_tokens, count * slots,
                            config.layout, memory_start=0)


def _make_typical_example(config: Config, lay_out):
  encoded, template = make_typical_record(config)
  return lay_out(encoded, template, config.layout)


def make_typical_record(config: Config) -> tuple[layout_lib.Encoded, layout_lib.Template]:
  """A record of typical lengths, and the template of its tokenizer; ids mean nothing."""
  if config.data.source == 'chain':
    steps = config.data.chain.max_steps
    question, step, answer = 2 * steps + 1, 1, 1
  elif config.data.source == 'prosqa':  # as many sentences as parents, and one that asks
    prosqa, (step, answer) = config.data.prosqa, (
        (6, 5) if config.tokenizer.kind == 'words' else (26, 18))
    parents = prosqa.parent_rate / (1 - math.exp(-prosqa.parent_rate))
    parents = min(parents, prosqa.max_children or parents)  # of all: no more than children
    concepts = (prosqa.min_nodes + prosqa.max_nodes) / 2 - 2
    facts = round(parents * concepts)
    steps, question = prosqa.min_hops + 1 if prosqa.steps == 'path' else facts, step * (1 + facts)
  else:
    steps, question, step, answer = 4, 240, 12, 3
  if config.tokenizer.kind == 'file' or config.model.init_from:
    question, step, answer = -(-question // 4), -(-step // 2), -(-answer // 2)
    tokenizer = types.SimpleNamespace(
        bos_id=0, eos_id=0, encode=lambda text, **_: range(-(-len(text) // 4)))
  else:
    tokenizer = tokenizer_lib.load_tokenizer(config.tokenizer)
  template = layout_lib.make_template(tokenizer, config.layout)
  around = sum(map(len, (template.bos, template.question_prefix, template.separator)))
  return layout_lib.Encoded(
      range(question + around), (range(step),) * steps, range(answer)), template
