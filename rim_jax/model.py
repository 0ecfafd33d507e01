"""The decoder-only transformer: GPT-2 and Llama are both settings of it.

Array suffixes, here and everywhere: b rows, t positions (queries), c keys (a
cache, or the positions themselves), s slots, d model, h heads, n key/value
heads, k head dim, f mlp, v vocab, l layers, m memory rows.

The parameters of all layers are stacked, `[l, ...]`, and scanned. The model
holds no random state: dropout takes its key as an argument. It knows nothing of
methods: who sees whom comes in as a mask, computed from Batch fields.
"""

import zlib

from flax import nnx
import jax
import jax.numpy as jnp

from rim_jax import batch as batch_lib
from rim_jax import memory
from rim_jax.config import LayoutConfig, ModelConfig
from rim_jax.sharding import (
    BATCH, EMBED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, MLP, POSITION, VOCAB, constrain)

_ACTIVATIONS = {
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': jax.nn.gelu,
    'swiglu': jax.nn.silu,  # of the gate
}
_REMAT = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def fold_in_name(key, name: str):
  """A key for a name, so that adding a parameter reshuffles no other."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


class Norm(nnx.Module):
  """RMSNorm or LayerNorm, reduced in f32; `leading` stacks it over layers."""

  def __init__(self, config: ModelConfig, leading=()):
    axes = (LAYERS,) * len(leading) + (EMBED,)
    shape = (*leading, config.embed_dim)
    self.config = config
    self.scale = nnx.Param(jnp.ones(shape), axes=axes)
    if config.norm == 'layernorm':
      self.bias = nnx.Param(jnp.zeros(shape), axes=axes)

  def __call__(self, x_btd):
    x = x_btd.astype(jnp.float32)
    if self.config.norm == 'layernorm':
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.config.norm_eps)
    x = x * _wide(self.scale[...], x).astype(jnp.float32)
    if self.config.norm == 'layernorm':
      x = x + _wide(self.bias[...], x).astype(jnp.float32)
    return x.astype(x_btd.dtype)


class Linear(nnx.Module):
  """One projection of every layer: `einsum` of x with a stacked kernel, and a bias."""

  def __init__(self, config: ModelConfig, einsum, shape, axes, num_inputs, key, scale=1.0):
    self.einsum = einsum
    fan_in = 1
    for size in shape[:num_inputs]:
      fan_in *= size
    kernel = jax.random.normal(key, (config.num_layers, *shape)) * (scale / fan_in) ** 0.5
    self.kernel = nnx.Param(kernel, axes=(LAYERS, *axes))
    if config.use_bias:
      self.bias = nnx.Param(jnp.zeros((config.num_layers, *shape[num_inputs:])),
                            axes=(LAYERS, *axes[num_inputs:]))
    else:
      self.bias = None

  def __call__(self, x):
    y = jnp.einsum(self.einsum, x, self.kernel[...].astype(x.dtype))
    return y if self.bias is None else y + _wide(self.bias[...].astype(x.dtype), y)


class Block(nnx.Module):
  """Attention and MLP, each before a residual. Built stacked, called on one layer's slice."""

  def __init__(self, config: ModelConfig, key):
    self.config = config
    d, h, f = config.embed_dim, config.num_heads, config.mlp_dim
    layers = config.num_layers
    n, k = get_kv_heads(config), get_head_dim(config)
    residual = 1.0 / (2 * layers)  # variance of a branch: the sum of all stays near 1

    def linear(name, einsum, shape, axes, num_inputs, scale=1.0):
      return Linear(config, einsum, shape, axes, num_inputs, fold_in_name(key, name), scale)
    self.attention_norm = Norm(config, (layers,))
    self.query = linear('query', 'btd,dhk->bthk', (d, h, k), (EMBED, HEADS, HEAD_DIM), 1)
    self.key = linear('key', 'btd,dnk->btnk', (d, n, k), (EMBED, KV_HEADS, HEAD_DIM), 1)
    self.value = linear('value', 'btd,dnk->btnk', (d, n, k), (EMBED, KV_HEADS, HEAD_DIM), 1)
    self.out = linear('out', 'bthk,hkd->btd', (h, k, d), (HEADS, HEAD_DIM, EMBED), 2, residual)
    self.mlp_norm = Norm(config, (layers,))
    self.up = linear('up', 'btd,df->btf', (d, f), (EMBED, MLP), 1)
    self.gate = (linear('gate', 'btd,df->btf', (d, f), (EMBED, MLP), 1)
                 if config.activation == 'swiglu' else None)
    self.down = linear('down', 'btf,fd->btd', (f, d), (MLP, EMBED), 1, residual)

  def __call__(self, x_btd, positions_bt, mask_btc, dropout_key, cached, offset):
    """One layer; `cached` is its (keys, values) [b, c, n, k], written at `offset`, or None."""
    rate = self.config.dropout
    h_btd = self.attention_norm(x_btd)
    q_bthk, k_btnk, v_btnk = self.query(h_btd), self.key(h_btd), self.value(h_btd)
    if self.config.positions == 'rope':
      q_bthk = apply_rope(q_bthk, positions_bt, self.config.rope_theta)
      k_btnk = apply_rope(k_btnk, positions_bt, self.config.rope_theta)
    if cached is None:
      k_bcnk, v_bcnk = k_btnk, v_btnk
    else:
      k_bcnk, v_bcnk = (jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, 1)
                        for old, new in zip(cached, (k_btnk, v_btnk)))
    # A fully masked query (none exists but in padding) averages: finite, and unread.
    a_bthk = jax.nn.dot_product_attention(q_bthk, k_bcnk, v_bcnk, mask=mask_btc[:, None])
    x_btd = x_btd + _drop(self.out(a_bthk), rate, dropout_key, 'attention')
    h_btd = self.mlp_norm(x_btd)
    u_btf = self.up(h_btd)
    activate = _ACTIVATIONS[self.config.activation]
    u_btf = activate(u_btf) if self.gate is None else activate(self.gate(h_btd)) * u_btf
    x_btd = x_btd + _drop(self.down(u_btf), rate, dropout_key, 'mlp')
    return constrain(x_btd, BATCH, None, None), (k_bcnk, v_bcnk)


class Transformer(nnx.Module):
  """Token ids to hidden states, and hidden states to logits over the base vocabulary."""

  def __init__(self, config: ModelConfig, vocab_size: int, key):
    d = config.embed_dim
    self.config = config
    self.vocab_size = vocab_size

    def normal(name, shape, axes, std):
      return nnx.Param(std * jax.random.normal(fold_in_name(key, name), shape), axes=axes)
    self.embedding = normal('embedding', (vocab_size, d), (VOCAB, EMBED), d ** -0.5)
    self.positions = (normal('positions', (config.max_positions, d), (POSITION, EMBED), d ** -0.5)
                      if config.positions == 'learned' else None)
    self.memory = memory.make_memory(
        self.embedding[...], config, fold_in_name(key, 'memory'))
    self.blocks = Block(config, fold_in_name(key, 'blocks'))
    self.final_norm = Norm(config)
    self.head = (None if config.tie_embeddings
                 else normal('head', (d, vocab_size), (EMBED, VOCAB), d ** -0.5))

  def __call__(self, tokens_bt, positions_bt, mask_btc, *, dropout_key=None, cache=None, offset=0,
               return_kv=False):
    """Hidden states after the final norm.

    With a cache, a pair (keys, values), these tokens are written into it from
    `offset` on, and all of it is attended to.

    Shapes: tokens, positions i32[b, t]; mask bool[b, t, c], c = t without a cache;
      keys, values [l, b, c, n, k].
    Returns: (x [b, t, d], (keys, values), or None unless there is a cache or `return_kv`).
    """
    x_btd = memory.look_up(self.embedding[...], self.memory[...], tokens_bt,
                           jnp.dtype(self.config.compute_dtype))
    if self.positions is not None:
      x_btd = x_btd + self.positions[...][positions_bt].astype(x_btd.dtype)
    x_btd = constrain(_drop(x_btd, self.config.dropout, dropout_key, 'embedding'),
                      BATCH, None, None)
    graphdef, layers = nnx.split(self.blocks)

    def body(x_btd, xs):
      layer, index, cached = xs
      layer_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
      x_btd, kv = nnx.merge(graphdef, layer)(
          x_btd, positions_bt, mask_btc, layer_key, cached, offset)
      return x_btd, kv if return_kv or cached is not None else None
    if self.config.remat != 'none':
      body = jax.checkpoint(body, policy=_REMAT[self.config.remat], prevent_cse=False)
    indices = jnp.arange(self.config.num_layers)
    x_btd, kv = jax.lax.scan(body, x_btd, (layers, indices, cache))
    return self.final_norm(x_btd), kv

  def compute_logits(self, x):
    """Logits in f32 over the base vocabulary: [..., d] -> [..., v]."""
    kernel_dv = self.embedding[...].T if self.head is None else self.head[...]
    return jnp.einsum('...d,dv->...v', x, kernel_dv.astype(x.dtype),
                      preferred_element_type=jnp.float32)

  def compute_slot_logits(self, batch: batch_lib.Batch, layout: LayoutConfig, dropout_key=None):
    """Logits at the supervised slots of a packed batch, and nowhere else.

    Shapes: -> f32[b, s, v]. The trunk is never projected: s is far below t.
    """
    fields = batch_lib.get_fields(batch)
    mask = batch_lib.visible(fields, fields, layout.readout_sees_question,
                             layout.bidirectional_blocks)
    x_btd, _ = self(batch.tokens, batch.positions, mask, dropout_key=dropout_key)
    x_bsd = jnp.take_along_axis(x_btd, batch.slot_index[..., None], axis=1)
    return self.compute_logits(x_bsd)


def get_kv_heads(config: ModelConfig) -> int:
  return config.num_kv_heads or config.num_heads


def get_head_dim(config: ModelConfig) -> int:
  return config.head_dim or config.embed_dim // config.num_heads


def apply_rope(x_bthk, positions_bt, theta: float):
  """Rotary positions, halves convention (Llama's).

  Shapes: x [b, t, h, k] with k even, positions i32[b, t] -> like x; angles in f32.
  """
  half = x_bthk.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_bt[:, :, None, None].astype(jnp.float32) * _wide(frequency, x_bthk)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_bthk.dtype)


def _drop(x, rate, key, name):
  """Inverted dropout; without a key (evaluation) or rate, x itself."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(fold_in_name(key, name), 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def _wide(y, like):
  """y with leading ones up to the rank of `like`: no silent rank promotion."""
  return y.reshape((1,) * (like.ndim - y.ndim) + y.shape)
