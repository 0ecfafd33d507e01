"""Attention on NVIDIA GPUs: kernels that visit only tiles in which something is visible.

One kernel forward and two backward, written in Pallas and compiled by Triton. Scores of one tile
exist at a time, in registers; `batch.visible` itself masks them, from the fields of the tile's
tokens. `find_tiles` lists once a batch, without a loop, which tiles hold a visible pair: of each
query tile its key tiles, and of each key tile its query tiles. So every sum has one owner that adds
its tiles in their order, and gradients are the same in every run.

Products are in the dtype of q, k and v (float32: as `jax.default_matmul_precision` says), sums in
float32. Array suffixes are those of model/attention.py.

Source: FlashAttention-2, arXiv 2307.08691.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from rim_jax.config import LayoutConfig
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib

# The score of what is invisible, and the least that a maximum of scores can be: above it, so that
# a query which sees nothing (padding) sums to zero, gets zeros and pulls on nothing.
MASKED, LEAST = -1e30, -1e29
_LEAST_TILE, _LARGEST_TILE = 16, 64  # what a matrix unit takes, and what registers hold
NAME = 'attention'  # of what a remat policy may keep, so that no tile is computed a third time
KERNELS = ('rim_attention_forward', 'rim_attention_dq', 'rim_attention_dkv')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
  """Who attends to whom, as tiles; t and c are padded to whole ones."""
  query: jax.Array  # i32[b, 4, t], the fields of `batch.Fields` in their order
  key: jax.Array  # i32[b, 4, c]
  order: jax.Array  # i32[b, t / tile, c / tile], of each query tile its key tiles, visible first
  count: jax.Array  # i32[b, t / tile], how many of them are visible
  key_order: jax.Array  # i32[b, c / tile, t / tile], of each key tile its query tiles
  key_count: jax.Array  # i32[b, c / tile]
  tile: int = dataclasses.field(metadata={'static': True})
  layout: LayoutConfig = dataclasses.field(metadata={'static': True})


def choose_tile(tile_tokens: int) -> int:
  """The kernels' tile for `model.attention_tile_tokens`: the power of two below, from 16 to 64."""
  return min(max(2 ** (tile_tokens.bit_length() - 1), _LEAST_TILE), _LARGEST_TILE)


def find_tiles(query: batch_lib.Fields, key: batch_lib.Fields, layout: LayoutConfig,
               tile: int) -> Tiles:
  """Which tiles of queries i32[b, t] and keys i32[b, c] hold a visible pair."""
  query, key = (jax.tree.map(lambda x: pad(x, tile), f) for f in (query, key))
  b, t = query.positions.shape
  seen = see(query, key, layout).reshape(b, t // tile, tile, -1, tile).any((2, 4))

  def stack(fields):
    return jnp.stack(jax.tree.leaves(fields), 1).astype(jnp.int32)
  return Tiles(stack(query), stack(key), *sort_tiles(seen), *sort_tiles(seen.swapaxes(1, 2)),
               tile, layout)


def sort_tiles(seen):
  """Of each tile those that it sees, bool[..., n] -> (numbers i32[..., n], seen first, count)."""
  order = jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32)
  return order, seen.sum(-1, dtype=jnp.int32)


def see(query, key, layout: LayoutConfig):
  """`batch.visible` by the layout's switches."""
  return batch_lib.visible(query, key, layout.readout_sees_question, layout.bidirectional_blocks)


def pad(x, tile: int):
  """x padded to whole tiles along axis 1 (fields: with padding, which sees nothing)."""
  return jnp.pad(x, [(0, 0), (0, -x.shape[1] % tile)] + [(0, 0)] * (x.ndim - 2))


def attend(q_bthk, k_bcnk, v_bcnk, tiles: Tiles, interpret: bool = False):
  """softmax(q k / sqrt(k)) v over the visible keys; zeros for a query that sees nothing.

  Args:
    interpret: run the kernels without a GPU, for tests.
  Shapes: -> like q.
  """
  padded = (pad(x, tiles.tile) for x in (q_bthk, k_bcnk, v_bcnk))
  # JAX does not say what custom_vjp returns.
  o_bthk: jax.Array = _attend(*padded, tiles, interpret)  # pyright: ignore
  return o_bthk[:, :q_bthk.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_bthk, k_bcnk, v_bcnk, tiles, interpret):
  return _attend_forward(q_bthk, k_bcnk, v_bcnk, tiles, interpret)[0]


# ---- Sizes ----


@dataclasses.dataclass(frozen=True)
class Block:
  """How one kernel cuts a tile: a program owns `own` tokens and visits others `other` at a time."""
  own: int
  other: int
  warps: int


# (kernel, bits of a number) -> head size up to 64, 128, 256 -> own x other tokens, warps. They are
# the largest found with which no register is spilled, on any of A100, H100 and B200: dkv holds two
# sums, and its keys and values besides. tests/model/attention_gpu_test.py asks the assembler. With
# 256 in float32 dkv spills at every size that was tried: right, and slow.
_BLOCKS = {
    (KERNELS[0], 16): {64: (64, 64, 4), 128: (64, 64, 4), 256: (32, 32, 4)},
    (KERNELS[0], 32): {64: (64, 64, 4), 128: (32, 32, 4), 256: (32, 16, 8)},
    (KERNELS[1], 16): {64: (64, 64, 4), 128: (64, 64, 4), 256: (32, 32, 4)},
    (KERNELS[1], 32): {64: (32, 32, 4), 128: (32, 32, 4), 256: (32, 16, 8)},
    (KERNELS[2], 16): {64: (64, 32, 4), 128: (64, 64, 8), 256: (32, 32, 4)},
    (KERNELS[2], 32): {64: (32, 32, 4), 128: (16, 16, 4), 256: (16, 16, 4)},
}


def choose_block(kernel: str, head_dim: int, dtype, tile: int) -> Block:
  """Raises: UserError for a head that is larger than 256."""
  width = max(pl.next_power_of_2(head_dim), 64)
  if width not in (64, 128, 256):
    raise UserError(f'model.head_dim={head_dim}: attention by tiles takes up to 256 on a GPU; use '
                    '--config.model.attention_tile_tokens=0')
  own, other, warps = _BLOCKS[kernel, 8 * jnp.dtype(dtype).itemsize][width]
  return Block(min(own, tile), min(other, tile), warps)


@dataclasses.dataclass(frozen=True)
class _Kernel:
  """One kernel on arrays of these sizes: what it knows besides them, and how it sees them."""
  name: str
  q: jax.ShapeDtypeStruct  # [b, t, h, k]
  k: jax.ShapeDtypeStruct  # [b, c, n, k]
  head_dim: int
  width: int  # the power of two that holds it
  scale: float  # of scores
  group: int  # query heads of a key head
  block: Block
  tile: int
  layout: LayoutConfig
  interpret: bool

  def load(self, ref, *index):
    """[tokens, width] of ref, zeros beyond the head's size."""
    ref = ref.at[(*index, slice(None))]
    if self.width == self.head_dim:
      return triton.load(ref)
    return triton.load(ref, mask=self._get_mask(), other=0.0)

  def store(self, ref, x):
    mask = None if self.width == self.head_dim else self._get_mask()
    triton.store(ref.at[:, :], x.astype(ref.dtype), mask=mask)

  def _get_mask(self):
    return (jnp.arange(self.width) < self.head_dim)[None, :]

  def visit(self, order_ref, count_ref, begin, fn, repeat: int = 1):
    """fn(first token of a visible part, which of `repeat`, carry) -> carry, over all of them."""
    mine, _ = _divide(pl.program_id(2), self.tile // self.block.own)
    parts = self.tile // self.block.other

    def body(n, carry):
      n, nth = _divide(n, repeat)
      n, part = _divide(n, parts)
      return fn((order_ref[mine, n] * parts + part) * self.block.other, nth, carry)
    return jax.lax.fori_loop(0, count_ref[mine] * (parts * repeat), body, begin)

  def score(self, q, k, query, key):
    """Scores [q, c] in float32, the invisible ones masked."""
    s = triton.dot(q, k, trans_b=True) * self.scale
    return jnp.where(see(query, key, self.layout), s, MASKED)

  def own(self):
    """[own, width] of [b, t, h, k]: this program's tokens and head."""
    return pl.BlockSpec((None, self.block.own, None, self.width),
                        lambda b, h, i: (b, i, h, 0))

  def own_row(self):
    """[own] of [b, h, t]."""
    return pl.BlockSpec((None, None, self.block.own), lambda b, h, i: (b, h, i))

  def whole(self, x):
    """A row of an array [b, ...]."""
    zeros = (0,) * (x.ndim - 1)
    return pl.BlockSpec((None, *x.shape[1:]), lambda b, h, i: (b, *zeros))

  def keys(self):
    """[c, width] of [b, c, n, k]: all keys of this query head."""
    return pl.BlockSpec((None, self.k.shape[1], None, self.width),
                        lambda b, h, i: (b, 0, h // self.group, 0))

  def queries(self):
    """[t, g, width] of [b, t, h, k]: all queries of this key head."""
    return pl.BlockSpec((None, self.q.shape[1], self.group, self.width),
                        lambda b, n, j: (b, 0, n, 0))

  def query_rows(self):
    """[g, t] of [b, h, t]."""
    return pl.BlockSpec((None, self.group, self.q.shape[1]), lambda b, n, j: (b, n, 0))

  def __call__(self, fn, owner, in_specs, out_specs, out_shape, arrays):
    """Runs `fn` on `arrays`, a program for each `own` tokens of each head of `owner`."""
    b, length, heads, _ = owner.shape
    settings: dict[str, Any] = {'interpret': True}
    if not self.interpret:
      settings = {'compiler_params': triton.CompilerParams(
          num_warps=self.block.warps, num_stages=2)}
    return pl.pallas_call(
        functools.partial(fn, kernel=self), grid=(b, heads, length // self.block.own),
        in_specs=in_specs, out_specs=out_specs, out_shape=out_shape, name=self.name,
        **settings)(*arrays)


def _divide(n, by: int):
  """(quotient, rest) of what is not negative: Triton does not know jnp's `//` and `%`."""
  if by == 1:
    return n, 0
  return jax.lax.div(n, jnp.int32(by)), jax.lax.rem(n, jnp.int32(by))


def _take(ref, first, size) -> batch_lib.Fields:
  """Fields i32[size] of the tokens from `first` on."""
  return batch_lib.Fields(*(ref[n, pl.ds(first, size)] for n in range(ref.shape[0])))


# ---- Kernels; a program has one row, one head and `own` tokens ----


# 10 parameters: Pallas gives a kernel its arrays one by one.
def _compute_forward(q_ref, k_ref, v_ref, query_ref, key_ref, order_ref, count_ref, o_ref, lse_ref,
                     *, kernel):
  own, other = kernel.block.own, kernel.block.other
  q = kernel.load(q_ref, slice(None))
  query = _take(query_ref, pl.program_id(2) * own, own)

  def add(first, _, carry):
    o, top, total = carry
    k, v = (kernel.load(ref, pl.ds(first, other)) for ref in (k_ref, v_ref))
    s = kernel.score(q, k, query, _take(key_ref, first, other))
    new = jnp.maximum(top, s.max(-1))
    p, shrink = jnp.exp(s - new[:, None]), jnp.exp(top - new)
    o = o * shrink[:, None] + triton.dot(p.astype(v.dtype), v)
    return o, new, total * shrink + p.sum(-1)
  o, top, total = kernel.visit(order_ref, count_ref, (
      jnp.zeros((own, kernel.width), jnp.float32), jnp.full(own, LEAST, jnp.float32),
      jnp.zeros(own, jnp.float32)), add)
  total = jnp.maximum(total, 1e-30)
  kernel.store(o_ref, o / total[:, None])
  lse_ref[...] = top + jnp.log(total)


# 12 parameters: Pallas gives a kernel its arrays one by one.
def _compute_dq(q_ref, k_ref, v_ref, query_ref, key_ref, order_ref, count_ref, do_ref, lse_ref,
                delta_ref, dq_ref, *, kernel):
  own, other = kernel.block.own, kernel.block.other
  q, do = (kernel.load(ref, slice(None)) for ref in (q_ref, do_ref))
  lse, delta = lse_ref[...], delta_ref[...]
  query = _take(query_ref, pl.program_id(2) * own, own)

  def add(first, _, dq):
    k, v = (kernel.load(ref, pl.ds(first, other)) for ref in (k_ref, v_ref))
    p = jnp.exp(kernel.score(q, k, query, _take(key_ref, first, other)) - lse[:, None])
    ds = p * (triton.dot(do, v, trans_b=True) - delta[:, None]) * kernel.scale
    return dq + triton.dot(ds.astype(k.dtype), k)
  kernel.store(dq_ref, kernel.visit(
      order_ref, count_ref, jnp.zeros((own, kernel.width), jnp.float32), add))


# 13 parameters: Pallas gives a kernel its arrays one by one.
def _compute_dkv(q_ref, k_ref, v_ref, query_ref, key_ref, order_ref, count_ref, do_ref, lse_ref,
                 delta_ref, dk_ref, dv_ref, *, kernel):
  own, other = kernel.block.own, kernel.block.other
  k, v = (kernel.load(ref, slice(None)) for ref in (k_ref, v_ref))
  key = _take(key_ref, pl.program_id(2) * own, own)

  def add(first, g, carry):  # g: which query head of this key head
    dk, dv = carry
    at = pl.ds(first, other)
    q, do = (kernel.load(ref, at, g) for ref in (q_ref, do_ref))
    lse, delta = lse_ref[g, at], delta_ref[g, at]
    p = jnp.exp(kernel.score(q, k, _take(query_ref, first, other), key) - lse[:, None])
    ds = p * (triton.dot(do, v, trans_b=True) - delta[:, None]) * kernel.scale
    return (dk + triton.dot(ds.astype(q.dtype), q, trans_a=True),
            dv + triton.dot(p.astype(do.dtype), do, trans_a=True))
  zero = jnp.zeros((own, kernel.width), jnp.float32)
  dk, dv = kernel.visit(order_ref, count_ref, (zero, zero), add, kernel.group)
  kernel.store(dk_ref, dk)
  kernel.store(dv_ref, dv)


# ---- Launches ----


def _make_kernel(name, q_bthk, k_bcnk, tiles, interpret) -> _Kernel:
  q, k = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_bthk, k_bcnk))
  *_, heads, head_dim = q.shape
  return _Kernel(name, q, k, head_dim, pl.next_power_of_2(head_dim), head_dim ** -0.5,
                 heads // k.shape[2], choose_block(name, head_dim, q.dtype, tiles.tile),
                 tiles.tile, tiles.layout, interpret)


def _attend_forward(q_bthk, k_bcnk, v_bcnk, tiles, interpret):
  kernel = _make_kernel(KERNELS[0], q_bthk, k_bcnk, tiles, interpret)
  visits = (tiles.query, tiles.key, tiles.order, tiles.count)
  b, t, h, _ = q_bthk.shape
  o_bthk, lse_bht = checkpoint_name(kernel(
      _compute_forward, q_bthk,
      [kernel.own(), kernel.keys(), kernel.keys(), *map(kernel.whole, visits)],
      [kernel.own(), kernel.own_row()],
      [kernel.q, jax.ShapeDtypeStruct((b, h, t), jnp.float32)],
      (q_bthk, k_bcnk, v_bcnk, *visits)), NAME)
  return o_bthk, (q_bthk, k_bcnk, v_bcnk, tiles, o_bthk, lse_bht)


def _attend_backward(interpret, residuals, do_bthk):
  q_bthk, k_bcnk, v_bcnk, tiles, o_bthk, lse_bht = residuals
  delta_bht = jnp.einsum('bthk,bthk->bht', o_bthk.astype(jnp.float32),
                         do_bthk.astype(jnp.float32), precision='highest')
  rows = (do_bthk, lse_bht, delta_bht)

  kernel = _make_kernel(KERNELS[1], q_bthk, k_bcnk, tiles, interpret)
  visits = (tiles.query, tiles.key, tiles.order, tiles.count)
  own, row = kernel.own(), kernel.own_row()
  dq_bthk = kernel(
      _compute_dq, q_bthk,
      [own, kernel.keys(), kernel.keys(), *map(kernel.whole, visits), own, row, row],
      own, kernel.q, (q_bthk, k_bcnk, v_bcnk, *visits, *rows))

  kernel = _make_kernel(KERNELS[2], q_bthk, k_bcnk, tiles, interpret)
  visits = (tiles.query, tiles.key, tiles.key_order, tiles.key_count)
  own, queries, rows_of = kernel.own(), kernel.queries(), kernel.query_rows()
  dk_bcnk, dv_bcnk = kernel(
      _compute_dkv, k_bcnk,
      [queries, own, own, *map(kernel.whole, visits), queries, rows_of, rows_of],
      [own, own], [kernel.k] * 2, (q_bthk, k_bcnk, v_bcnk, *visits, *rows))
  return dq_bthk, dk_bcnk, dv_bcnk, None


_attend.defvjp(_attend_forward, _attend_backward)
