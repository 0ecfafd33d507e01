"""Examples into rows: the one place where positions, slots and shifted targets are made.

What a method's layout gives is listed once, in Python; what follows from it is computed for a whole
batch at a time, in numpy.

Array suffixes: e examples, r readouts, n whatever of them is written one by one.
"""

import array
from collections.abc import Sequence

import numpy as np

from rim_jax.config import LayoutConfig
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import NUM_MEMORY_ROWS, Example, get_block_size


def make_rows(rows: Sequence[Sequence[Example]], row_tokens: int, row_slots: int,
              config: LayoutConfig, memory_start: int) -> batch_lib.Batch:
  """A batch in whose rows these examples stand, one behind the other; numpy arrays.

  Memory ids begin at `memory_start`.
  Raises: ValueError where a row cannot hold its examples.
  """
  batch = batch_lib.make_empty_rows(len(rows), row_tokens, row_slots)
  listed = _Listed(rows)
  if len(listed.row_e):
    places = _Places(listed, row_tokens, row_slots, get_block_size(config))
    # Writing to a flat view, a place in all rows is one number.
    flat = batch_lib.Batch(**{name: x.reshape(-1) for name, x in vars(batch).items()})
    _write_trunks(flat, listed, places, get_block_size(config), memory_start)
    _write_readouts(flat, listed, places, memory_start)
    _write_parallel(flat, listed, places)
  return batch


class _Listed:
  """Examples and their readouts as columns of numbers, in the order of the rows."""

  def __init__(self, rows):
    examples, readouts, questions, ids, parallel = [], [], [], [], []
    of = 0
    for row, members in enumerate(rows):
      for number, example in enumerate(members, 1):
        questions += example.question
        for ordinal, readout in enumerate(example.readouts, 1):
          prefix, target, latents = readout.prefix, readout.target, readout.num_latents
          readouts += (of, ordinal, readout.block, readout.kind, latents, latents + len(prefix),
                       len(target), readout.mark, readout.pair)
          ids += prefix
          ids += target
        for index, target in example.parallel:
          parallel += (of, index, target)
        examples += (row, number, len(example.question), example.num_blocks, example.num_steps,
                     len(example.parallel))
        of += 1
    (self.row_e, self.number_e, self.num_question_e, self.num_blocks_e, self.num_steps_e,
     self.num_parallel_e) = _to_array(examples).reshape(-1, 6).T
    # Of readouts: their example; the tokens that are given, latents among them; their targets.
    (self.of_r, self.ordinal_r, self.block_r, self.kind_r, self.latents_r, self.given_r,
     self.count_r, self.mark_r, self.pair_r) = _to_array(readouts).reshape(-1, 9).T
    self.parallel_of_n, self.parallel_index_n, self.parallel_target_n = _to_array(
        parallel).reshape(-1, 3).T
    self.question_n, self.ids_n = _to_array(questions), _to_array(ids)  # ids: prefix, target, ...


def _to_array(numbers: list) -> np.ndarray:
  return np.frombuffer(array.array('i', numbers), np.int32)  # which is faster than np.array


class _Places:
  """Where examples and readouts begin: in all rows flattened (`at`), or in their own row (`in`)."""

  def __init__(self, listed: _Listed, row_tokens: int, row_slots: int, block_size: int):
    of_r, num_examples = listed.of_r, len(listed.row_e)
    self.trunk_e = listed.num_question_e + block_size * listed.num_blocks_e
    tokens_r = listed.given_r + listed.count_r - 1  # the last target is never an input
    tokens_e = self.trunk_e + _sum_up(tokens_r, of_r, num_examples)
    slots_e = _sum_up(listed.count_r, of_r, num_examples)
    self.in_e = _offset(tokens_e, listed.number_e == 1)
    slot_in_e = _offset(slots_e + listed.num_parallel_e, listed.number_e == 1)
    if ((self.in_e + tokens_e > row_tokens).any()
        or (slot_in_e + slots_e + listed.num_parallel_e > row_slots).any()):
      raise ValueError(f'a row of {row_tokens} tokens and {row_slots} slots cannot hold its '
                       'examples')
    first_r = listed.ordinal_r == 1
    self.tokens_r = tokens_r
    self.in_r = (self.in_e + self.trunk_e)[of_r] + _offset(tokens_r, first_r)
    self.at_e = self.in_e + row_tokens * listed.row_e
    self.at_r = self.in_r + row_tokens * listed.row_e[of_r]
    slot_at_e = slot_in_e + row_slots * listed.row_e
    self.slot_at_r = slot_at_e[of_r] + _offset(listed.count_r, first_r)
    self.parallel_at_e = slot_at_e + slots_e
    # A readout of a block begins right after that block, one of block -1 at position 0.
    self.position_r = np.where(
        listed.block_r < 0, 0, listed.num_question_e[of_r] + block_size * listed.block_r)


def _sum_up(x_r, of_r, count) -> np.ndarray:
  return np.bincount(of_r, x_r, count).astype(np.int64)


def _offset(sizes, is_first) -> np.ndarray:
  """The sum of the sizes before each, since the last first one."""
  before = np.cumsum(sizes) - sizes
  return before - np.maximum.accumulate(np.where(is_first, before, 0))


def _spread(counts) -> tuple[np.ndarray, np.ndarray]:
  """Of runs of so many entries: the run of each entry, and its place there."""
  run_n = np.repeat(np.arange(len(counts)), counts)
  return run_n, np.arange(len(run_n)) - (np.cumsum(counts) - counts)[run_n]


def _write(flat, at_n, **fields):
  """Writes rows' or slots' fields at these places."""
  for name, x_n in fields.items():
    getattr(flat, name)[at_n] = x_n


def _write_trunks(flat, listed: _Listed, places: _Places, block_size: int, memory_start: int):
  e_n, place_n = _spread(places.trunk_e)
  at_n = places.at_e[e_n] + place_n
  _write(flat, at_n, positions=place_n, example=listed.number_e[e_n])
  in_block_n = place_n - listed.num_question_e[e_n]
  is_question_n = in_block_n < 0
  flat.tokens[at_n[is_question_n]] = listed.question_n
  at_n, in_block_n = at_n[~is_question_n], in_block_n[~is_question_n]
  block = np.full(block_size, memory_start + 1)  # <b>, <m> ..., </b>
  block[0], block[-1] = memory_start, memory_start + NUM_MEMORY_ROWS - 1
  number_n, token_n = np.divmod(in_block_n, block_size)
  _write(flat, at_n, tokens=block[token_n], block=number_n + 1)


def _write_readouts(flat, listed: _Listed, places: _Places, memory_start: int):
  """Readouts' tokens and slots: slot j predicts target j from the token before it."""
  of_r, first_target_r = listed.of_r, listed.given_r - listed.latents_r
  # ---- Tokens: latents, prefix, all targets but the last ----
  r_n, place_n = _spread(places.tokens_r)
  at_n = places.at_r[r_n] + place_n
  ids_r = np.cumsum(first_target_r + listed.count_r) - first_target_r - listed.count_r
  from_n = place_n - listed.latents_r[r_n]
  _write(
      flat, at_n,
      tokens=np.where(
          from_n < 0, memory_start + 1, listed.ids_n[np.maximum(ids_r[r_n] + from_n, 0)]),
      positions=places.position_r[r_n] + place_n,
      example=listed.number_e[of_r][r_n],
      block=listed.block_r[r_n],
      readout=listed.ordinal_r[r_n])
  # ---- Slots ----
  r_n, place_n = _spread(listed.count_r)
  at_n = places.slot_at_r[r_n] + place_n
  # With nothing given, the first is predicted from the trunk: at the end of the block.
  first_r = np.where(listed.given_r > 0, places.in_r + listed.given_r,
                     places.in_e[of_r] + places.position_r) - 1
  later_r = places.in_r + listed.given_r - 1
  _write(
      flat, at_n,
      slot_index=np.where(place_n == 0, first_r[r_n], later_r[r_n] + place_n),
      slot_target=listed.ids_n[(ids_r + first_target_r)[r_n] + place_n],
      slot_block=listed.block_r[r_n],
      slot_steps=listed.num_steps_e[of_r][r_n],
      slot_kind=listed.kind_r[r_n],
      slot_tokens=listed.count_r[r_n])
  # ---- Pairs: a readout's mark, and that of another readout of the same example ----
  paired = np.flatnonzero(listed.pair_r)
  other = paired - listed.ordinal_r[paired] + listed.pair_r[paired]
  mark_r = places.slot_at_r + listed.mark_r
  flat.slot_pair[mark_r[paired]] = flat.slot_index[mark_r[other]]


def _write_parallel(flat, listed: _Listed, places: _Places):
  """What trunk tokens predict beside, in the slots behind those of the readouts."""
  e_n = listed.parallel_of_n
  _write(
      flat, places.parallel_at_e[e_n] + _spread(listed.num_parallel_e)[1],
      slot_index=places.in_e[e_n] + listed.parallel_index_n,
      slot_target=listed.parallel_target_n,
      slot_block=listed.num_blocks_e[e_n],
      slot_steps=listed.num_steps_e[e_n],
      slot_kind=batch_lib.SLOT_PARALLEL,
      slot_tokens=listed.num_parallel_e[e_n])
