"""The Batch: packed token rows, their supervised slots, and who sees whom.

A row is t tokens holding several examples, each a trunk (question, blocks) and
its readouts. Row fields say what every token is; slot fields say what is
predicted, and from where. `visible` is the one visibility rule of the project,
on these fields alone: training, decoding and the tests all read it, in numpy
and in jax.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

BATCH_VERSION = 1
# Values of slot_kind. Metrics of blocks are of the first two after padding; the others are told as
# a mean of their own: targets on trunk tokens, of an auxiliary decoder, of the chain that teaches.
SLOT_PAD, SLOT_STEP, SLOT_ANSWER, SLOT_PARALLEL, SLOT_DECODED, SLOT_TEACHER = range(6)
SLOT_NAMES = ('', 'step', 'answer', 'parallel', 'decoded', 'teacher')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows i32[b, t] and slots i32[b, s].

  tokens      ids; vocab_size, +1, +2 are the memory rows <b>, <m>, </b>
  positions   as if no other readout existed (docs/concepts.md)
  example     number of the packed example in its row; 0 is padding
  block       0 the question, k block k; for a readout, the k that it reads, -1: nothing
  readout     0 the trunk, else the readout's ordinal in its example
  slot_index  where in the row the prediction is made
  slot_target the id predicted there
  slot_block  k of its readout
  slot_steps  n = max(T, 1) of its example
  slot_kind   SLOT_PAD, SLOT_STEP, SLOT_ANSWER, ...
  slot_tokens supervised tokens of its readout
  slot_pair   index in the row of the token whose states are its own states' target, else -1
  """
  tokens: jax.Array
  positions: jax.Array
  example: jax.Array
  block: jax.Array
  readout: jax.Array
  slot_index: jax.Array
  slot_target: jax.Array
  slot_block: jax.Array
  slot_steps: jax.Array
  slot_kind: jax.Array
  slot_tokens: jax.Array
  slot_pair: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fields:
  """What the visibility rule needs to know of tokens: i32[b, t] each."""
  positions: jax.Array
  example: jax.Array
  block: jax.Array
  readout: jax.Array


@dataclasses.dataclass(frozen=True)
class RowLimits:
  """The most that any row holds, known before it is made: shapes inside a program follow.

  0 is no limit but the row's own length.
  """
  examples: int = 1
  trunk_tokens: int = 0
  block_tokens: int = 0  # of them those of memory blocks


ONE_EXAMPLE = RowLimits()


def get_fields(batch: Batch) -> Fields:
  return Fields(batch.positions, batch.example, batch.block, batch.readout)


def make_empty_rows(num_rows: int, row_tokens: int, row_slots: int) -> Batch:
  """Rows of padding, as numpy arrays to be filled."""
  sizes = {f.name: row_slots if f.name.startswith('slot_') else row_tokens
           for f in dataclasses.fields(Batch)}
  empty: dict[str, Any] = {
      name: np.full((num_rows, size), -1 if name == 'slot_pair' else 0, np.int32)
      for name, size in sizes.items()}
  return Batch(**empty)


def visible(query: Fields, key: Fields, sees_question: bool = True, bidirectional: bool = False):
  """Which keys each query may attend to.

  A trunk token sees the trunk before it (`bidirectional`: and all of its own
  block); a readout of block k sees the trunk up to block k (without `sees_question`: blocks
  alone, but for one before the first, k = 0, which has nothing else) and its own earlier tokens.
  Nothing crosses examples, and padding sees nothing.
  Positions order the tokens: within a trunk, and within a readout, they rise by one.

  Shapes: query i32[b, t], key i32[b, c] -> bool[b, t, c]; numpy in, numpy out.
  Source: docs/concepts.md, "Who sees whom".
  """
  q = Fields(*(getattr(query, f.name)[..., :, None] for f in dataclasses.fields(Fields)))
  k = Fields(*(getattr(key, f.name)[..., None, :] for f in dataclasses.fields(Fields)))
  before = k.positions <= q.positions
  trunk_trunk = before
  if bidirectional:
    trunk_trunk = trunk_trunk | ((k.block == q.block) & (q.block > 0))
  readout_trunk = k.block <= q.block
  if not sees_question:
    readout_trunk = readout_trunk & ((k.block > 0) | (q.block == 0))
  of_trunk = k.readout == 0
  from_trunk = (q.readout == 0) & of_trunk & trunk_trunk
  from_readout = (q.readout > 0) & ((of_trunk & readout_trunk)
                                    | ((k.readout == q.readout) & before))
  return (q.example > 0) & (q.example == k.example) & (from_trunk | from_readout)
