"""Several passes over block tokens, each fed states of the one before: one forward, one prefill.

The first pass reads trunks. Each later one reads block tokens alone, behind the keys and values
that the question has from the first: a question never sees a block, so its states are the same in
every pass (under dropout, the first and the last draw masks of their own). What follows the blocks
reads the last pass alone. So no readout is read by the states that are fed, packed rows stay what
their examples are alone, and one prefill serves every block.

Tokens through the stack, with q of the question, B of blocks, A of readouts, and R passes: a
forward for training takes 2q + R B + A, as the last pass is the ordinary one over whole rows, and a
prefill q + R B. With one pass nothing of this is used.

Array suffixes beside model/transformer.py's: u tokens of trunks, w tokens of blocks.
"""

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rim_jax.config import Config
from rim_jax.methods import coconut, codi
from rim_jax.methods.method import AddedParam, Method
from rim_jax.model import attention
from rim_jax.model.lora import fold_in_name
from rim_jax.model.sharding import BATCH, EMBED, constrain
from rim_jax.model.transformer import Cache, take_tokens
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib

# ---- What a pass is fed ----


@dataclasses.dataclass(frozen=True)
class Rule:
  """What block tokens are fed in each pass but the first."""
  # (model, tokens i32[b, w], embedded [b, w, d], states of the pass before [b, w, d]) -> [b, w, d].
  feed: Callable[..., jax.Array]
  make_added: Callable[..., nnx.Module] | None = None  # as a Method's


class Gate(nnx.Module):
  """How much of a state is fed back: nothing at first, so that any network can begin with it."""

  def __init__(self, config: Config, key):
    self.scale = AddedParam(jnp.zeros(config.model.embed_dim), axes=(EMBED,))


class Projected(nnx.Module):
  """What a state passes before it is fed; CODI's."""

  def __init__(self, config: Config, key):
    self.projection = codi.Projection(config.model.embed_dim, fold_in_name(key, 'projection'))


def _feed_gate(model, tokens_bw, embedded_bwd, states_bwd):
  """Every block token: its row, and its own state through the gate."""
  return embedded_bwd + model.added.scale[...].astype(states_bwd.dtype)[None, None] * states_bwd


def _feed_add(model, tokens_bw, embedded_bwd, states_bwd):
  """Every `<m>`: its row and its own state."""
  return jnp.where(_is_memory(model, tokens_bw), embedded_bwd + states_bwd, embedded_bwd)


def _feed_replace(model, tokens_bw, embedded_bwd, states_bwd):
  """Every `<m>`: its own state in place of its row."""
  return jnp.where(_is_memory(model, tokens_bw), states_bwd, embedded_bwd)


def _feed_shift(model, tokens_bw, embedded_bwd, states_bwd):
  """Every `<m>`: the state of the token before it, or its projection, in place of its row."""
  # A block's tokens stand together and begin with <b>, so that none is another block's.
  before_bwd = jnp.roll(states_bwd, 1, axis=1)
  return jnp.where(_is_memory(model, tokens_bw), coconut.make_thought(model, before_bwd),
                   embedded_bwd)


def _is_memory(model, tokens_bw):
  return (tokens_bw == model.vocab_size + 1)[..., None]


GATE = Rule(_feed_gate, Gate)


def get_rule(config: Config) -> Rule:
  """What the blocks of a run's method are fed."""
  return {'gate': GATE, 'add': Rule(_feed_add), 'replace': Rule(_feed_replace),
          'shift': Rule(_feed_shift, Projected if config.loop.projection else None),
          }[config.loop_rule]


def loop(host: Method, rule: Rule, num_passes: int) -> Method:
  """A modifier: a method whose tokens are embedded as they are, with its blocks read repeatedly."""
  assert num_passes > 1 and not (host.inputs or host.prefill or host.make_added)
  passes = Passes(rule.feed, num_passes)
  return dataclasses.replace(host, inputs=passes.find_inputs, count_inputs=passes.count_inputs,
                             prefill=passes.prefill, make_added=rule.make_added)


# ---- The passes ----


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """Some tokens of rows, in their order; example 0 where a row has fewer."""
  tokens: jax.Array  # i32[b, w]
  fields: batch_lib.Fields
  index: jax.Array  # i32[b, w], where in the row they stand


@dataclasses.dataclass(frozen=True)
class Passes:
  """`count` passes, at least two; `feed` as a Rule's."""
  feed: Callable[..., jax.Array]
  count: int

  def find_inputs(self, model, tokens_bt, fields: batch_lib.Fields, config: Config,
                  limits: batch_lib.RowLimits, dropout_key=None) -> jax.Array:
    """Inputs of the last pass, over whole rows: [b, t, d]. The gradient flows through all passes.

    All but the last have a dropout key of their own.
    """
    num_tokens = tokens_bt.shape[1]
    # It stays with its rows: looked up, it would have parts of `embed`.
    embedded_btd = constrain(model.embed(tokens_bt), BATCH, None, None)
    trunk_bt = (fields.example > 0) & (fields.readout == 0)
    trunks = _gather(tokens_bt, fields, trunk_bt, limits.trunk_tokens or num_tokens)

    @jax.checkpoint  # computed again in a gradient, as each later pass is
    def read_trunks():
      return _read(model, take_tokens(embedded_btd, trunks.index), trunks.fields, config,
                   _fold_key(dropout_key, 1))
    x_bud, kv = read_trunks()
    blocks = _gather(trunks.tokens, trunks.fields, trunks.fields.block > 0,
                     limits.block_tokens or trunks.tokens.shape[1])
    in_rows = dataclasses.replace(
        blocks, index=jnp.take_along_axis(trunks.index, blocks.index, 1))
    embedded_bwd = take_tokens(embedded_btd, in_rows.index)
    fed_bwd = self._go_on(model, embedded_bwd, take_tokens(x_bud, blocks.index), kv, trunks.fields,
                          blocks, config, dropout_key)
    return _put(embedded_btd, in_rows, constrain(fed_bwd, BATCH, None, None))

  def count_inputs(self, row_tokens: int, limits: batch_lib.RowLimits, config: Config) -> int:
    """The trunks once, and their blocks in each pass between the first and the last."""
    trunk_tokens = limits.trunk_tokens or row_tokens
    return trunk_tokens + (self.count - 2) * (limits.block_tokens or trunk_tokens)

  def prefill(self, model, trunks, start_br, config: Config, tail):
    """As `decode.prefill`; the cache holds the question, and of the blocks the last pass."""
    embedded_btd = model.embed(trunks.tokens)
    x_btd, kv = _read(model, embedded_btd, trunks.fields, config)
    blocks = _gather(trunks.tokens, trunks.fields, trunks.fields.block > 0,
                     trunks.num_blocks * layout_lib.get_block_size(config.layout))
    num_tokens, num_blocks = trunks.tokens.shape[1], blocks.tokens.shape[1]
    embedded_bwd = take_tokens(embedded_btd, blocks.index)
    fed_bwd = jnp.concatenate([
        self._go_on(model, embedded_bwd, take_tokens(x_btd, blocks.index), kv, trunks.fields,
                    blocks, config), model.embed(tail.tokens)], 1)
    new, keys = _find_keys(trunks.fields, blocks.fields, tail.fields)
    cache = jax.tree.map(lambda x: jnp.pad(
        x, ((0, 0), (0, 0), (0, fed_bwd.shape[1]), (0, 0), (0, 0))), kv)
    x_bwd, cache = model(None, new.positions, attention.find_seen(new, keys, config),
                         inputs_btd=fed_bwd, cache=Cache(cache, num_tokens))

    def move(x):  # the blocks to their places in the trunk
      x, y, rest = jnp.split(x, (num_tokens, num_tokens + num_blocks), 2)
      return jnp.concatenate([jax.vmap(lambda x, y: _put(x, blocks, y))(x, y), rest], 2)
    fields = jax.tree.map(lambda *x: jnp.concatenate(x, 1), trunks.fields, tail.fields)
    x_btd = (x_bwd[:, -start_br.shape[1]:] if tail.tokens.shape[1] else
             take_tokens(_put(x_btd, blocks, x_bwd), start_br - 1))
    return x_btd, jax.tree.map(move, cache), fields

  # 9 parameters: what the first pass found, and over which tokens.
  def _go_on(self, model, embedded_bwd, x_bwd, kv, fields: batch_lib.Fields, blocks: _Tokens,
             config, dropout_key=None):
    """The passes between the first and the last, on the cache of trunks whose Fields are `fields`.

    Returns: what the last pass is fed for block tokens, [b, w, d].
    """
    def feed(x_bwd):
      return self.feed(model, blocks.tokens, embedded_bwd, x_bwd)
    if self.count == 2:
      return feed(x_bwd)
    num_tokens, num_new = fields.positions.shape[1], blocks.tokens.shape[1]
    visible = attention.find_seen(*_find_keys(fields, blocks.fields), config)

    # Computed again in a gradient: or each pass would keep the activations of a whole forward.
    @jax.checkpoint
    def take_pass(carry, number):
      x_bwd, part = carry
      cache = jax.tree.map(lambda *x: jnp.concatenate(x, 2), kv, part)
      x_bwd, cache = model(None, blocks.fields.positions, visible, inputs_btd=feed(x_bwd),
                           cache=Cache(cache, num_tokens),
                           dropout_key=_fold_key(dropout_key, number))
      return (x_bwd, jax.tree.map(lambda x: x[:, :, num_tokens:], cache)), None
    part = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:2], num_new, *x.shape[3:]), x.dtype), kv)
    (x_bwd, _), _ = jax.lax.scan(take_pass, (x_bwd, part), 2 + jnp.arange(self.count - 2))
    return feed(x_bwd)


def _read(model, inputs_btd, fields: batch_lib.Fields, config, dropout_key=None):
  """A first pass: (x [b, t, d], keys and values)."""
  return model(None, fields.positions, attention.find_seen(fields, fields, config),
               inputs_btd=inputs_btd, dropout_key=dropout_key, return_kv=True)


def _find_keys(fields: batch_lib.Fields, *new: batch_lib.Fields):
  """(Fields of what is read next, those of all that it may see: trunks, and itself).

  It sees blocks of its own pass, and no others.
  """
  question = dataclasses.replace(fields, example=jnp.where(fields.block > 0, 0, fields.example))
  return (jax.tree.map(lambda *x: jnp.concatenate(x, 1), *new),
          jax.tree.map(lambda *x: jnp.concatenate(x, 1), question, *new))


def _fold_key(key, number):
  return None if key is None else jax.random.fold_in(fold_in_name(key, 'pass'), number)


def _gather(tokens_bt, fields: batch_lib.Fields, which_bt, count: int) -> _Tokens:
  """The first `count` of some tokens of each row."""
  index_bw = jnp.argsort(~which_bt, axis=1, stable=True)[:, :count]
  tokens_bw, there_bw, fields = jax.tree.map(
      lambda x: jnp.take_along_axis(x, index_bw, 1), (tokens_bt, which_bt, fields))
  return _Tokens(tokens_bw, dataclasses.replace(
      fields, example=jnp.where(there_bw, fields.example, 0)), index_bw)


def _put(x, some: _Tokens, values):
  """x [b, t, ...] with values [b, w, ...] in the places of some of its tokens."""
  # What is not there is put beyond the row, so nowhere.
  index_bw = jnp.where(some.fields.example > 0, some.index, x.shape[1])
  return jax.vmap(lambda x, i, v: x.at[i].set(v.astype(x.dtype), mode='drop'))(x, index_bw, values)
