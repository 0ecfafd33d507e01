"""Attention under the visibility rule: what no query sees is never computed.

`find_visible` asks `batch.visible` once a batch which tiles of queries and keys hold a visible
pair; `attend` visits those alone, in every layer. Scores exist for one tile at a time (softmax is
taken online, the backward pass computes a tile again from its queries' maximum and sum), so memory
grows with t and not with t x t, and other examples of a row, the acausal half and padding
cost nothing. On a TPU the same pairs go through JAX's splash kernel, on an NVIDIA GPU through the
kernels of model/attention_gpu.py. Few queries (a short row, a step of decoding) take the dense
form, which the tests hold all of them to: few kernels, and no loop.

Array suffixes beside model/transformer.py's: g query heads a key/value head, q and c positions in
one tile.

Source: FlashAttention, arXiv 2205.14135.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
import jax.numpy as jnp

from rim_jax.config import Config, LayoutConfig
from rim_jax.model import attention_gpu, sharding
from rim_jax.model.attention_gpu import LEAST, MASKED, NAME, pad, see
from rim_jax.model.sharding import BATCH, HEAD_DIM, HEADS, KV_HEADS, make_spec
from rim_jax.packing import batch as batch_lib

_SPLASH_LANES = 128  # the kernel's tiles are whole vectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
  """Who attends to whom, as tiles; t and c are padded to whole ones."""
  query: batch_lib.Fields  # i32[b, t]
  key: batch_lib.Fields  # i32[b, c]
  order: jax.Array  # i32[b, t / tile, c / tile], of each query tile its key tiles, visible first
  count: jax.Array  # i32[b, t / tile], how many of them are visible
  tile: int = dataclasses.field(metadata={'static': True})
  layout: LayoutConfig = dataclasses.field(metadata={'static': True})


def find_visible(query: batch_lib.Fields, key: batch_lib.Fields, layout: LayoutConfig,
                 tile_tokens: int):
  """Who attends to whom, by the layout's switches; the same in every layer.

  Shapes: query i32[b, t], key i32[b, c] -> a mask bool[b, t, c] where tile_tokens is 0 or holds
    all queries, else Tiles, on a GPU those of its kernels.
  """
  if tile_tokens == 0 or query.positions.shape[1] <= tile_tokens:
    return see(query, key, layout)
  if _get_platform() == 'gpu':
    return attention_gpu.find_tiles(query, key, layout, attention_gpu.choose_tile(tile_tokens))
  query, key = (jax.tree.map(lambda x: pad(x, tile_tokens), f) for f in (query, key))
  num_queries, num_keys = (f.positions.shape[1] // tile_tokens for f in (query, key))

  def is_visible(i, j):
    q, k = _take(query, i, tile_tokens), _take(key, j, tile_tokens)
    return see(q, k, layout).any((1, 2))
  seen = jax.lax.map(lambda i: jax.lax.map(lambda j: is_visible(i, j), jnp.arange(num_keys)),
                     jnp.arange(num_queries))
  return Tiles(query, key, *attention_gpu.sort_tiles(jnp.moveaxis(seen, -1, 0)), tile_tokens,
               layout)


def find_seen(query: batch_lib.Fields, key: batch_lib.Fields, config: Config):
  """`find_visible` of a run's own layout and tiles."""
  return find_visible(query, key, config.layout, config.model.attention_tile_tokens)


def _get_platform() -> str:
  """That of the mesh, so that a program for machines that are not here is theirs; '' without."""
  mesh = jax.sharding.get_abstract_mesh()
  return '' if mesh.empty else mesh.abstract_device.platform


def _choose_form(tiles) -> Callable:
  if isinstance(tiles, attention_gpu.Tiles):
    return attention_gpu.attend
  is_splash = _get_platform() == 'tpu' and tiles.tile % _SPLASH_LANES == 0
  return _attend_splash if is_splash else _attend_tiled


def attend(q_bthk, k_bcnk, v_bcnk, visible):
  """softmax(q k / sqrt(k)) v over the visible keys, by a mask bool[b, t, c] or Tiles.

  A query that sees nothing (only padding does) gets something finite. With Tiles, every device
  attends for its own rows and heads.

  Shapes: -> like q.
  """
  if not isinstance(visible, Tiles | attention_gpu.Tiles):
    return jax.nn.dot_product_attention(q_bthk, k_bcnk, v_bcnk, mask=visible[:, None])
  fn = _choose_form(visible)
  if sharding.get_divided_mesh() is None:
    return fn(q_bthk, k_bcnk, v_bcnk, visible)
  queries, keys = (make_spec((BATCH, None, heads, HEAD_DIM)) for heads in (HEADS, KV_HEADS))
  return jax.shard_map(
      fn, in_specs=(queries, keys, keys, make_spec((BATCH,))), out_specs=queries,
      check_vma=False)(q_bthk, k_bcnk, v_bcnk, visible)


def _by_row(fn, q_bthk, k_bcnk, v_bcnk, tiles):
  """`fn` on each row's q [n, g, t, k], k and v [n, c, k], padded to whole tiles."""
  b, t, h, k = q_bthk.shape
  n = k_bcnk.shape[2]
  q_bthk, k_bcnk, v_bcnk = (pad(x, tiles.tile) for x in (q_bthk, k_bcnk, v_bcnk))
  q_bngtk = q_bthk.reshape(b, -1, n, h // n, k).transpose(0, 2, 3, 1, 4)
  k_bnck, v_bnck = (x.transpose(0, 2, 1, 3) for x in (k_bcnk, v_bcnk))
  o_bngtk = fn(q_bngtk, k_bnck, v_bnck, tiles)
  return o_bngtk.transpose(0, 3, 1, 2, 4).reshape(b, -1, h, k)[:, :t]


# ---- Tile by tile, anywhere ----


def _attend_tiled(q_bthk, k_bcnk, v_bcnk, tiles):
  # One row after the other: each visits its own tiles, and no others.
  return _by_row(lambda *rows: jax.lax.map(lambda row: _attend_row(*row), rows),
                 q_bthk, k_bcnk, v_bcnk, tiles)


@jax.custom_vjp
def _attend_row(q_ngtk, k_nck, v_nck, tiles):
  return _attend_row_forward(q_ngtk, k_nck, v_nck, tiles)[0]


def _compute_scores(q_ngqk, k_nck, tiles, i, j):
  """Scores of query tile i on key tile j in f32, the invisible ones masked."""
  tile = tiles.tile
  mask = see(_take(tiles.query, i, tile, 0), _take(tiles.key, j, tile, 0), tiles.layout)
  s_ngqc = jnp.einsum('ngqk,nck->ngqc', q_ngqk, k_nck, preferred_element_type=jnp.float32)
  return jnp.where(mask[None, None], s_ngqc * q_ngqk.shape[-1] ** -0.5, MASKED)


def _attend_row_forward(q_ngtk, k_nck, v_nck, tiles):
  tile = tiles.tile

  def attend_tile(i):
    q_ngqk = _take(q_ngtk, i, tile, 2)

    def add_keys(nth, carry):
      o_ngqk, top_ngq, sum_ngq = carry
      j = tiles.order[i, nth]
      s_ngqc = _compute_scores(q_ngqk, _take(k_nck, j, tile, 1), tiles, i, j)
      new_ngq = jnp.maximum(top_ngq, s_ngqc.max(-1))
      p_ngqc = jnp.exp(s_ngqc - new_ngq[..., None])
      shrink_ngq = jnp.exp(top_ngq - new_ngq)
      o_ngqk = o_ngqk * shrink_ngq[..., None] + jnp.einsum(
          'ngqc,nck->ngqk', p_ngqc.astype(v_nck.dtype), _take(v_nck, j, tile, 1),
          preferred_element_type=jnp.float32)
      return o_ngqk, new_ngq, sum_ngq * shrink_ngq + p_ngqc.sum(-1)
    zeros = jnp.zeros(q_ngqk.shape, jnp.float32)
    o_ngqk, top_ngq, sum_ngq = jax.lax.fori_loop(
        0, tiles.count[i], add_keys, (zeros, zeros[..., 0] + LEAST, zeros[..., 0]))
    sum_ngq = jnp.maximum(sum_ngq, 1e-30)
    return (o_ngqk / sum_ngq[..., None]).astype(q_ngtk.dtype), top_ngq, sum_ngq

  found = jax.lax.map(attend_tile, jnp.arange(q_ngtk.shape[2] // tile))
  o_ngtk, top_ngt, sum_ngt = checkpoint_name(tuple(
      jnp.moveaxis(x, 0, 2).reshape(*q_ngtk.shape[:3], *x.shape[4:]) for x in found), NAME)
  return o_ngtk, (q_ngtk, k_nck, v_nck, tiles, o_ngtk, top_ngt, sum_ngt)


def _attend_row_backward(residuals, do_ngtk):
  q_ngtk, k_nck, v_nck, tiles, o_ngtk, top_ngt, sum_ngt = residuals
  tile, scale = tiles.tile, q_ngtk.shape[-1] ** -0.5
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  delta_ngt = (o_ngtk.astype(jnp.float32) * do_ngtk.astype(jnp.float32)).sum(-1)

  def pull_back_tile(carry, i):
    q_ngqk, do_ngqk, top_ngq, sum_ngq, delta_ngq = _take(
        (q_ngtk, do_ngtk, top_ngt, sum_ngt, delta_ngt), i, tile, 2)

    def add_keys(nth, carry):
      dq_ngqk, dk_nck, dv_nck = carry
      j = tiles.order[i, nth]
      k_tile, v_tile = _take(k_nck, j, tile, 1), _take(v_nck, j, tile, 1)
      s_ngqc = _compute_scores(q_ngqk, k_tile, tiles, i, j)
      p_ngqc = jnp.exp(s_ngqc - top_ngq[..., None]) / sum_ngq[..., None]
      dp_ngqc = dot('ngqk,nck->ngqc', do_ngqk, v_tile)
      ds_ngqc = (p_ngqc * (dp_ngqc - delta_ngq[..., None]) * scale).astype(q_ngtk.dtype)
      p_ngqc = p_ngqc.astype(q_ngtk.dtype)

      def add_at(total_nck, part):
        part = part + _take(total_nck, j, tile, 1)
        return jax.lax.dynamic_update_slice_in_dim(total_nck, part, j * tile, 1)
      return (dq_ngqk + dot('ngqc,nck->ngqk', ds_ngqc, k_tile),
              add_at(dk_nck, dot('ngqc,ngqk->nck', ds_ngqc, q_ngqk)),
              add_at(dv_nck, dot('ngqc,ngqk->nck', p_ngqc, do_ngqk)))
    dq_ngqk, *carry = jax.lax.fori_loop(
        0, tiles.count[i], add_keys, (jnp.zeros(q_ngqk.shape, jnp.float32), *carry))
    return tuple(carry), dq_ngqk.astype(q_ngtk.dtype)

  zeros = jnp.zeros(k_nck.shape, jnp.float32)
  (dk_nck, dv_nck), dq = jax.lax.scan(pull_back_tile, (zeros, zeros),
                                      jnp.arange(q_ngtk.shape[2] // tile))
  dq_ngtk = jnp.moveaxis(dq, 0, 2).reshape(q_ngtk.shape)
  return dq_ngtk, dk_nck.astype(k_nck.dtype), dv_nck.astype(v_nck.dtype), None


_attend_row.defvjp(_attend_row_forward, _attend_row_backward)


# ---- JAX's kernel, on a TPU ----


def _attend_splash(q_bthk, k_bcnk, v_bcnk, tiles, interpret=False):
  """The splash kernel under a mask that differs from row to row, one for all heads."""
  tile = tiles.tile
  sizes = splash.BlockSizes(**{f.name: tile for f in dataclasses.fields(splash.BlockSizes)
                               if f.name.startswith('block_')})

  def attend_row(q_ngtk, k_nck, v_nck, row):
    # The kernel divides by zero where a query sees nothing, as padding does: it sees the first key.
    mask_tc = see(row.query, row.key, row.layout)
    mask_tc |= ~mask_tc.any(1, keepdims=True) & (jnp.arange(mask_tc.shape[1])[None] == 0)
    kernel = splash.make_splash_mqa(mask_tc[None], block_sizes=sizes, head_shards=1,
                                    q_seq_shards=1, residual_checkpoint_name=NAME,
                                    interpret=interpret)
    # Made an array with the rest of the info; under jit the kernel could not branch on it.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    scale = q_ngtk.shape[-1] ** -0.5
    return jax.vmap(kernel.__call__)((q_ngtk * scale).astype(q_ngtk.dtype), k_nck, v_nck)
  return _by_row(jax.vmap(attend_row), q_bthk, k_bcnk, v_bcnk, tiles)


# ---- Tiles ----


def _take(tree, i, tile, axis=1):
  """Tile i of every array along `axis`."""
  return jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile, axis), tree)
