"""Decoding: prefill the trunk once, then every readout in parallel from that one cache.

What is forced at the beginning of the readouts goes in with the trunk, in one pass, as in training:
an answer's first token costs no second pass over the weights. The cache holds the trunk's tokens
and then the readouts', and `batch.visible`
on their fields says who attends to whom: the same rule, attention and positions
as in training, so decoding needs no mask of its own.
"""

import copy
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rim_jax import methods
from rim_jax.config import Config
from rim_jax.errors import UserError
from rim_jax.model import attention, sharding, transformer
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows, source


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trunks:
  """A batch of trunks, padded on the right; fields as in Batch, example 0 is padding."""
  tokens: jax.Array  # i32[b, t]
  fields: batch_lib.Fields  # i32[b, t] each
  num_question: jax.Array  # i32[b], tokens of the question
  num_blocks: int = dataclasses.field(metadata={'static': True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tail:
  """What stands behind trunks and is read with them: the readouts' prefixes, or nothing."""
  tokens: jax.Array  # i32[b, w], by time, then by readout
  fields: batch_lib.Fields  # i32[b, w] each


@dataclasses.dataclass(frozen=True)
class Readouts:
  """What is decoded after every trunk of a batch: constants of the program that does it."""
  prefix: tuple[int, ...]  # ids that are forced first
  blocks: tuple[int, ...]  # a readout after each; 0: right after the question
  max_new_tokens: int
  eos_id: int  # ends a readout
  num_ids: int  # ids from here on mean no text, and are never chosen


def make_trunks(questions, num_blocks: int, width: int | None, batch_size: int, config: Config,
                memory_start: int) -> Trunks:
  """Encoded questions (at most batch_size) with K blocks each, as numpy arrays.

  Args:
    width: tokens of a row; None: what `choose_width` has for the longest trunk.
  """
  if width is None:
    width = choose_width(
        max(map(len, questions)) + layout_lib.get_block_size(config.layout) * num_blocks)
  examples = [[layout_lib.Example(question, num_blocks, 1, ())] for question in questions]
  batch = rows.make_rows(examples + [[]] * (batch_size - len(examples)), width, 0, config.layout,
                         memory_start)
  num_question = np.asarray([*map(len, questions), *[1] * (batch_size - len(examples))], np.int32)
  return Trunks(batch.tokens, batch_lib.get_fields(batch), num_question, num_blocks)


def choose_width(num_tokens: int) -> int:
  """A width for trunks of this many tokens: 8, 12, 16, 24, 32, 48, ... so that few are compiled."""
  width = 8
  while width < num_tokens:
    width = width * 3 // 2 if width & (width - 1) == 0 else width // 3 * 4
  return width


def check_positions(num_question: int, num_blocks: int, num_more: int, config: Config,
                    where: str) -> None:
  """Raises: UserError where decoding would run beyond a learned position table, or a window."""
  need = num_question + layout_lib.get_block_size(config.layout) * num_blocks + num_more
  key, most = source.find_reach(config.model)
  if most and need > most:
    fewer = 'eval.num_blocks, eval.budget_blocks, eval.budget_tokens or ' if num_blocks else ''
    raise UserError(
        f'{where}: a question of {num_question} tokens with {num_blocks} blocks and {num_more} '
        f'more to decode needs {need} positions, and the model has {key}={most}; use fewer '
        f'{fewer}eval.max_new_tokens, shorter questions, or a network with more positions')


def decode(model, config: Config, readouts: Readouts, trunks: Trunks, draw=None):
  """Ids of the readouts, each until its eos: greedy, or drawn.

  The first token comes from the prefix's last token, or, with an empty prefix,
  from the trunk's: block k's last token (k = 0: the question's).

  Args:
    draw: (question numbers i32[b], sample number) to draw them at eval.temperature; what is drawn
      depends on these, the seed, the block and the place alone, not on the batch.
  Shapes: -> i32[b, r, max_new_tokens], r = len(blocks); eos from the first eos on.
  """
  filled = prefill(model, config, trunks, readouts.blocks, readouts.prefix)
  return read(model, config, readouts, trunks, filled, draw)


def prefill(model, config: Config, trunks: Trunks, blocks: tuple, prefix: tuple = ()):
  """The trunks, once for all readouts, and the readouts' prefixes behind them in the same pass.

  There are as many passes as answering takes; prefixes are part of the last one.

  Returns: (x [b, r, d] at the last token of each prefix, or, without one, of each of `blocks`,
    (keys, values) [l, b, c, n, k], Fields of those c tokens, the prefixes' last).
  """
  config = config.at_evaluation
  method, start_br = methods.get_method(config), get_starts(blocks, trunks, config)
  tail = make_tail(prefix, blocks, start_br)
  if method.prefill and any(blocks):
    return method.prefill(model, trunks, start_br, config, tail)
  tokens, fields = jax.tree.map(lambda *x: jnp.concatenate(x, 1), (trunks.tokens, trunks.fields),
                                (tail.tokens, tail.fields))
  inputs_btd = find_inputs(model, config, trunks) if any(blocks) else None
  if inputs_btd is not None:
    inputs_btd = jnp.concatenate([inputs_btd, model.embed(tail.tokens)], 1)
  x_btd, kv = model(tokens, fields.positions, attention.find_seen(fields, fields, config),
                    inputs_btd=inputs_btd, return_kv=True)
  return (x_btd[:, -len(blocks):] if prefix else transformer.take_tokens(x_btd, start_br - 1),
          kv, fields)


def make_tail(prefix: tuple, blocks: tuple, start_br) -> Tail:
  """The first tokens of every readout, `prefix`; by time, then by readout."""
  tokens = jnp.repeat(jnp.asarray(prefix, jnp.int32), len(blocks))
  return Tail(jnp.broadcast_to(tokens, (start_br.shape[0], tokens.size)),
              _make_fields(blocks, start_br, 0, len(prefix)))


def find_inputs(model, config: Config, trunks: Trunks):
  """Inputs of a trunk's last pass: [b, t, d], or None where tokens are embedded as they are."""
  limits = batch_lib.RowLimits(
      block_tokens=trunks.num_blocks * layout_lib.get_block_size(config.layout))
  config = config.at_evaluation
  return methods.get_method(config).feed(model, trunks.tokens, trunks.fields, config, limits)


def compute_states(model, config: Config, blocks: tuple, trunks: Trunks):
  """States of the closing tokens of `blocks` before the last layer: f32[b, r, d]."""
  x_btd, _ = model(trunks.tokens, trunks.fields.positions,
                   attention.find_seen(trunks.fields, trunks.fields, config),
                   inputs_btd=find_inputs(model, config, trunks),
                   num_layers=config.model.num_layers - 1)
  last_br = get_starts(blocks, trunks, config) - 1
  return transformer.take_tokens(x_btd, last_br).astype(jnp.float32)


def get_starts(blocks: tuple, trunks: Trunks, config: Config):
  """Where the readouts after `blocks` begin: i32[b, r], right after block k's last token."""
  block_r = jnp.asarray(blocks, jnp.int32)
  return trunks.num_question[:, None] + layout_lib.get_block_size(config.layout) * block_r[None]


def _make_fields(blocks: tuple, start_br, first, count: int) -> batch_lib.Fields:
  """Fields of `count` tokens of every readout from time `first` on: i32[b, count * r]."""
  num_rows, num_readouts = start_br.shape

  def spread(x):
    return jnp.broadcast_to(x, (num_rows, count, num_readouts)).reshape(num_rows, -1)
  return batch_lib.Fields(
      positions=spread(start_br[:, None] + (first + jnp.arange(count))[None, :, None]),
      example=spread(1), block=spread(jnp.asarray(blocks, jnp.int32)[None, None]),
      readout=spread(1 + jnp.arange(num_readouts)[None, None]))


def _make_room(filled, blocks: tuple, start_br, first: int, count: int):
  """What a prefill left, with room for `count` more tokens of every readout from time `first` on.

  They stand by time, then by readout: [time, readout].

  Returns: (keys and values, Fields). Tokens that are not written yet are invisible: their positions
    lie after every query's.
  """
  _, kv, fields = filled
  kv = jax.tree.map(lambda x: jnp.pad(
      x, ((0, 0), (0, 0), (0, count * len(blocks)), (0, 0), (0, 0))), kv)
  return kv, jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), fields,
                          _make_fields(blocks, start_br, first, count))


def read_prefix(model, config: Config, readouts: Readouts, trunks: Trunks, filled):
  """What `prefill` gives with the readouts' prefix, from what it gave without: in a second pass.

  It is for whoever changes the cache between the two.
  """
  if not readouts.prefix:
    return filled
  start_br = get_starts(readouts.blocks, trunks, config)
  tail = make_tail(readouts.prefix, readouts.blocks, start_br)
  cache, fields = _make_room(filled, readouts.blocks, start_br, 0, len(readouts.prefix))
  x_btd, cache = model(tail.tokens, tail.fields.positions,
                       attention.find_seen(tail.fields, fields, config),
                       cache=transformer.Cache(cache, filled[2].positions.shape[1]))
  return x_btd[:, -len(readouts.blocks):], cache, fields


def read(model, config: Config, readouts: Readouts, trunks: Trunks, filled, draw=None):
  """`decode` from what `prefill` gave with the readouts' prefix."""
  x_brd, num_prefix, width = filled[0], len(readouts.prefix), filled[2].positions.shape[1]
  eos_id, max_new_tokens = readouts.eos_id, readouts.max_new_tokens
  num_rows, num_readouts = trunks.tokens.shape[0], len(readouts.blocks)
  start_br = get_starts(readouts.blocks, trunks, config)
  cache, cache_fields = _make_room(  # the last new token is never an input
      filled, readouts.blocks, start_br, num_prefix, max_new_tokens - 1)

  def choose(x_brd, place):
    # Rows of the embedding beyond the tokenizer's ids are padding: they mean no text.
    logits_brv = model.compute_logits(x_brd)[..., :readouts.num_ids]
    if draw is None:
      return logits_brv.argmax(-1).astype(jnp.int32)
    return draw_ids(logits_brv / config.eval.temperature, config.seed, draw,
                    jnp.asarray(readouts.blocks, jnp.int32), place)

  first_br = choose(x_brd, 0)
  out = jnp.full((num_rows, num_readouts, max_new_tokens), eos_id, jnp.int32)
  out = out.at[:, :, 0].set(first_br)
  if max_new_tokens == 1:
    return out
  # Padding rows have nothing to say: they must not keep the loop alive.
  padding_b1 = trunks.fields.example[:, :1] == 0

  def go_on(carry):
    count, _, done_br, _, _ = carry
    return (count < max_new_tokens) & ~done_br.all()

  def extend(carry):
    count, last_br, done_br, out, cache = carry
    fields = _make_fields(readouts.blocks, start_br, num_prefix + count - 1, 1)
    x_brd, cache = model(last_br, fields.positions,
                         attention.find_seen(fields, cache_fields, config),
                         cache=transformer.Cache(cache, width + (count - 1) * num_readouts, True))
    next_br = jnp.where(done_br, eos_id, choose(x_brd, count))
    out = jax.lax.dynamic_update_index_in_dim(out, next_br, count, 2)
    return count + 1, next_br, done_br | (next_br == eos_id), out, cache

  done_br = (first_br == eos_id) | padding_b1
  return jax.lax.while_loop(go_on, extend, (1, first_br, done_br, out, cache))[3]


def draw_ids(logits_brv, seed: int, draw, block_r, place):
  """An id from every softmax, by a key of its own: f32[b, r, v] -> i32[b, r].

  Keys are folded from the seed, the sample, the question, the block and the place in the answer.
  """
  numbers_b, sample = draw

  def choose(logits_v, number, block):
    key = functools.reduce(jax.random.fold_in, (sample, number, block, place),
                           jax.random.key(seed))
    return jax.random.categorical(key, logits_v).astype(jnp.int32)
  over_readouts = jax.vmap(choose, (0, None, 0))
  return jax.vmap(over_readouts, (0, 0, None))(logits_brv, numbers_b, block_r)


class Decoder:
  """A network and the programs that decode it: one for each (width, batch size, readouts)."""

  def __init__(self, network: Network, max_new_tokens: int | None = None):
    self.network = network
    self._max_new_tokens = max_new_tokens or network.config.eval.max_new_tokens
    everywhere = sharding.get_replicated(network.mesh)
    self._decode = network.jit(decode, 1, everywhere)
    self._compute_states = network.jit(compute_states, 1, everywhere)

  def with_params(self, params: dict) -> 'Decoder':
    """The same programs on other parameters, e.g. those of a later step."""
    other = copy.copy(self)
    other.network = dataclasses.replace(self.network, params=params)
    return other

  def choose_batch_size(self, count: int) -> int:
    """Rows for so many questions, up to what the mesh divides.

    A power of two, so that few are compiled, and eval.batch_size at most.
    """
    shards = sharding.count_shards(sharding.BATCH, self.network.mesh)
    size = min(1 << max(count - 1, 0).bit_length(), self.network.config.eval.batch_size)
    return -(-size // shards) * shards

  def place(self, questions, num_blocks: int, batch_size: int) -> Trunks:
    """Encoded questions as trunks on the mesh."""
    trunks = make_trunks(questions, num_blocks, None, batch_size, self.network.config,
                         self.network.codec.memory_start)
    return sharding.place_batch(trunks, self.network.mesh)

  def make_readouts(self, prefix, blocks) -> Readouts:
    """Readouts in this network's ids, of as many tokens as this decoder writes."""
    tokenizer = self.network.codec.tokenizer
    return Readouts(tuple(prefix), tuple(blocks), self._max_new_tokens, tokenizer.eos_id,
                    tokenizer.vocab_size)

  def run(self, trunks: Trunks, prefix, blocks, draw=None):
    """Ids i32[b, r, max_new_tokens] on the device; `draw` as in `decode`."""
    with jax.set_mesh(self.network.mesh):
      return self._decode(*self.network.arrays, self.make_readouts(prefix, blocks), trunks, draw)

  def decode_texts(self, questions, num_blocks: int, prefix, blocks, say=None,
                   sample: int | None = None) -> tuple[list[list[str]], np.ndarray]:
    """Texts of every question's readouts, and which of them reached their eos.

    Args:
      questions: encoded questions, any number; batched by length.
      say: called with the number of questions done.
      sample: the number of a sample to draw; None decodes greedily.
    Returns: (list of [text of each block], bool[len(questions), r]).
    """
    texts, ended = [None] * len(questions), np.zeros((len(questions), len(blocks)), bool)
    done = 0
    for members, trunks in self._make_batches(questions, num_blocks):
      numbers = np.pad(np.asarray(members, np.int32), (0, len(trunks.tokens) - len(members)))
      draw = None if sample is None else (
          sharding.place_batch(numbers, self.network.mesh), sample)
      ids = np.asarray(self.run(trunks, prefix, blocks, draw))
      for i, row in zip(members, ids):
        texts[i] = self.get_texts(row)
        ended[i] = (row == self.network.codec.tokenizer.eos_id).any(-1)
      done += len(members)
      if say:
        say(done)
    return texts, ended

  def compute_states(self, questions, num_blocks: int) -> np.ndarray:
    """Every question's closing tokens before the last layer: f32[len(questions), K, d]."""
    states = {}
    for members, trunks in self._make_batches(questions, num_blocks):
      with jax.set_mesh(self.network.mesh):
        found = np.asarray(self._compute_states(
            *self.network.arrays, tuple(range(1, num_blocks + 1)), trunks))
      states |= zip(members, found)
    return np.stack([states[i] for i in range(len(questions))])

  def _make_batches(self, questions, num_blocks):
    """(numbers of questions, their trunks), batch by batch of one size, by length."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    size = self.choose_batch_size(len(questions))
    for first in range(0, len(order), size):
      members = order[first:first + size]
      yield members, self.place([questions[i] for i in members], num_blocks, size)

  def get_texts(self, ids_rn) -> list[str]:
    """What each of a question's readouts says, up to its eos."""
    tokenizer = self.network.codec.tokenizer
    return [tokenizer.decode(list(itertools.takewhile(lambda i: i != tokenizer.eos_id, ids)))
            for ids in ids_rn.tolist()]
