"""Coconut: hidden states fed back as inputs, one after the other, in place of written steps.

A thought is a memory token: the trunk is `[x | <b> <m>*J </b>]`, and the input at each `<m>` is not
its row but the last hidden state (after the final norm) of the token before it. All else is as for
any method: rows are packed, and `batch.visible` says who sees whom.

Thoughts are found with a cache of what stands before them, one turn for each, in which every
example of the batch takes one token. Turns stand in the cache behind the row, by time and then by
example, as the tokens of decoding do. Their number and the examples of a row are static: one
program a stage.

Departures from the source:

- A readout counts by the mean of its tokens (`curriculum.reduction='readout'`); there every token
  counts alike.
- In the last stage the answer's prefix is given; where steps are still written before it, it is
  trained as their text.
- The optimizer begins anew with each stage; there with each epoch.
- Every record of a stage has as many thoughts, also one with fewer steps (there an option); the
  rows of `<b>` and `</b>` train also where else adapters alone do.
- Under dropout the pass over the whole row reads the thoughts by other masks than the turns that
  found them: what later tokens see of a thought is not what the next thought was found from.

Array suffixes beside model/transformer.py's: e examples of a row, j turns.

Source: arXiv 2412.06769.
"""

import jax
import jax.numpy as jnp

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.model import attention
from rim_jax.model.lora import fold_in_name
from rim_jax.model.sharding import BATCH, constrain
from rim_jax.model.transformer import Cache
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import (
  Encoded,
  Example,
  Template,
  count_steps,
  read_answer,
  read_chain,
)


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """`[x]`, a block of thoughts in place of the first steps, then the others and the answer.

  Without a block and without a step skipped this is `cot`; without a block and with all skipped
  it is `direct`.
  """
  block, skipped = config.num_blocks, config.skip_steps
  readout = (read_answer(encoded, template, block) if skipped < 0 else
             read_chain(encoded, template, block, skipped))
  return Example(encoded.question, block, count_steps(encoded), (readout,))


def find_inputs(model, tokens_bt, fields: batch_lib.Fields, config: Config,
                limits: batch_lib.RowLimits, dropout_key=None) -> jax.Array | None:
  """Rows with thoughts in place of their tokens: [b, t, d]. The gradient flows through them.

  A pass over what stands before the thoughts, then a token for each of them but the last; with the
  ordinary forward that has these inputs there are two passes over a row.
  """
  num_thoughts = config.layout.block_tokens * config.layout.num_blocks
  if not num_thoughts:
    return None
  num_tokens = tokens_bt.shape[1]
  numbers_e = 1 + jnp.arange(limits.examples)
  begins_bet = ((tokens_bt == model.vocab_size)[:, None]
                & (fields.example[:, None] == numbers_e[None, :, None]))
  there_be = begins_bet.any(-1)
  at_be = begins_bet.argmax(-1)
  start = batch_lib.Fields(
      jnp.take_along_axis(fields.positions, at_be, 1),
      jnp.where(there_be, numbers_e[None], 0), jnp.ones_like(at_be), jnp.zeros_like(at_be))
  x_btd, kv, known = _read(model, tokens_bt, fields, config, dropout_key)
  x_bed = jnp.take_along_axis(x_btd, at_be[..., None], 1)
  # The last one is found by the turn before, and needs no turn: the second pass reads it.
  thoughts_jbed, x_bed, _, _ = _think(
      model, x_bed, start, kv, known, num_thoughts - 1, config, dropout_key)
  thoughts_jbed = jnp.concatenate([thoughts_jbed, make_thought(model, x_bed)[None]])

  # An example that is not there writes beyond the row, so nowhere.
  first_be = jnp.where(there_be, at_be + 1, num_tokens)
  index_bj = (first_be[..., None] + jnp.arange(num_thoughts)[None, None]).reshape(
      len(first_be), -1)
  # Both stay with their rows: looked up, the others would have parts of `embed`.
  thoughts_bjd, inputs_btd = (constrain(x, BATCH, None, None) for x in (
      jnp.moveaxis(thoughts_jbed, 0, 2).reshape(*index_bj.shape, -1), model.embed(tokens_bt)))
  return jax.vmap(lambda x, i, h: x.at[i].set(h, mode='drop'))(inputs_btd, index_bj, thoughts_bjd)


def count_inputs(row_tokens: int, limits: batch_lib.RowLimits, config: Config) -> int:
  """The rows once, and in each turn but the last a token of every example."""
  num_thoughts = config.layout.block_tokens * config.layout.num_blocks
  return num_thoughts and row_tokens + (num_thoughts - 1) * limits.examples


def prefill(model, trunks, start_br, config: Config, tail):
  """Reads trunks for decoding: `[x <b>]` at once, a token for each thought but the last, the rest.

  The rest is the last thought, `</b>` and the tail. So J thoughts take J + 1 passes.

  Shapes: start_br i32[b, 1], the position behind the block.
  Returns: (x [b, 1, d] at the last of them, keys and values [l, b, c, n, k], Fields of those c
    tokens).
  """
  num_thoughts = config.layout.block_tokens
  there_b1 = trunks.fields.example[:, :1]
  # No question reaches into the room that a trunk has behind `<b>`.
  tokens, fields = jax.tree.map(
      lambda x: x[:, :-(num_thoughts + 1)], (trunks.tokens, trunks.fields))
  x_btd, kv, known = _read(model, tokens, fields, config)
  start = batch_lib.Fields(start_br - num_thoughts - 2, there_b1, jnp.ones_like(there_b1),
                           jnp.zeros_like(there_b1))
  x_b1d = jnp.take_along_axis(x_btd, start.positions[..., None], 1)
  _, x_b1d, part, fields = _think(model, x_b1d, start, kv, known, num_thoughts - 1, config)
  rest = _join(_advance(start, num_thoughts), _advance(start, num_thoughts + 1), tail.fields)
  given = jnp.concatenate([jnp.full_like(there_b1, model.vocab_size + 2), tail.tokens], 1)
  inputs_btd = jnp.concatenate([make_thought(model, x_b1d), model.embed(given)], 1)
  cache = jax.tree.map(lambda *x: jnp.pad(jnp.concatenate(x, 2), (
      (0, 0), (0, 0), (0, inputs_btd.shape[1]), (0, 0), (0, 0))), kv, part)
  offset = fields.positions.shape[1]
  fields = _join(fields, rest)
  x_btd, cache = model(None, rest.positions, attention.find_seen(rest, fields, config),
                       cache=Cache(cache, offset), inputs_btd=inputs_btd)
  return x_btd[:, -1:], cache, fields


def _read(model, tokens_bt, fields: batch_lib.Fields, config, dropout_key=None):
  """A pass over what stands before the thoughts; the rest is taken for padding, which nobody sees.

  Returns: (x [b, t, d], keys and values, Fields in which only what was read is no padding).
  """
  known = (fields.readout == 0) & ((fields.block == 0) | (tokens_bt == model.vocab_size))
  fields = batch_lib.Fields(fields.positions, jnp.where(known, fields.example, 0), fields.block,
                            fields.readout)
  x_btd, kv = model(tokens_bt, fields.positions, attention.find_seen(fields, fields, config),
                    dropout_key=dropout_key, return_kv=True)
  return x_btd, kv, fields


# 8 parameters: a turn needs the cache, the tokens known so far and the next ones, all traced.
def _think(model, x_bed, start: batch_lib.Fields, kv, known: batch_lib.Fields, num_turns, config,
           dropout_key=None):
  """Turns from the hidden states x at `<b>`, whose Fields are `start`; each reads a thought.

  Returns: (the thoughts that were read [j, b, e, d], the state after them [b, e, d], keys and
    values of the former [l, b, j * e, n, k], Fields of `known` and of them).
  """
  num_examples, num_tokens = x_bed.shape[1], known.positions.shape[1]
  fields = _join(known, *(_advance(start, 1 + j) for j in range(num_turns)))

  # Computed again in a gradient: or each turn would keep the whole cache.
  @jax.checkpoint
  def take_turn(carry, turn):
    x_bed, part = carry
    now = _advance(start, 1 + turn)
    key = None if dropout_key is None else jax.random.fold_in(
        fold_in_name(dropout_key, 'thought'), turn)
    cache = jax.tree.map(lambda *x: jnp.concatenate(x, 2), kv, part)
    thought_bed = make_thought(model, x_bed)
    y_bed, cache = model(None, now.positions, attention.find_seen(now, fields, config),
                         dropout_key=key, inputs_btd=thought_bed,
                         cache=Cache(cache, num_tokens + turn * num_examples))
    return (y_bed, jax.tree.map(lambda x: x[:, :, num_tokens:], cache)), thought_bed
  part = jax.tree.map(lambda x: jnp.zeros(
      (*x.shape[:2], num_turns * num_examples, *x.shape[3:]), x.dtype), kv)
  (x_bed, part), thoughts_jbed = jax.lax.scan(take_turn, (x_bed, part), jnp.arange(num_turns))
  return thoughts_jbed, x_bed, part, fields


def make_thought(model, x_bed):
  """What is fed in for a state: the state itself, or what a method's own projection makes of it."""
  added = getattr(model, 'added', None)
  projection = getattr(added, 'projection', None)
  return projection(x_bed) if projection else x_bed


def _advance(fields: batch_lib.Fields, count):
  """The Fields of the tokens that stand so many behind."""
  return batch_lib.Fields(fields.positions + count, fields.example, fields.block, fields.readout)


def _join(*fields: batch_lib.Fields):
  return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *fields)


COCONUT_STAGE = Method(lay_out, inputs=find_inputs, count_inputs=count_inputs, prefill=prefill)
