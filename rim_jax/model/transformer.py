"""The decoder-only transformer: GPT-2 and Llama are both settings of it.

Array suffixes, here and everywhere: b rows, t positions (queries), c keys (a
cache, or the positions themselves), s slots, d model, h heads, n key/value
heads, k head dim, f mlp, v vocab, l layers, m memory rows.

The parameters of all layers are stacked, `[l, ...]`, and scanned, or taken one by
one (`model.scan_layers`). The model holds no random state: dropout takes its key as
an argument. It knows nothing of methods: who sees whom comes in, found from Batch
fields.
"""

import math
from typing import NamedTuple

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from rim_jax.config import LayoutConfig, ModelConfig, rules
from rim_jax.model import attention, lora, memory, sharding
from rim_jax.model.lora import drop, fold_in_name
from rim_jax.model.sharding import (
  BATCH,
  EMBED,
  HEAD_DIM,
  HEADS,
  KV_HEADS,
  LAYERS,
  LOGITS,
  MLP,
  POSITION,
  QKV,
  VOCAB,
  constrain,
)
from rim_jax.packing import batch as batch_lib


def _gelu_tanh(x):
  """GELU by tanh; in 16 bits as x sigmoid(2 z), the same by arithmetic, in f32.

  A compiler repeats a sigmoid where it is needed, but writes a tanh to memory; in f32, where that
  is as fast, older runs keep their rounding.
  """
  if x.dtype == jnp.float32:
    return jax.nn.gelu(x)
  wide = x.astype(jnp.float32)
  z = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
  return (wide * jax.nn.sigmoid(2 * z)).astype(x.dtype)


_ACTIVATIONS = {
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': _gelu_tanh,
    'swiglu': jax.nn.silu,  # of the gate
    'geglu': _gelu_tanh,  # of the gate
}


class Norm(nnx.Module):
  """RMSNorm or LayerNorm over the last axis, reduced in f32; `leading` stacks it over layers."""
  # Of its means, two numbers a token at most. They are kept for the backward pass, which so reads
  # its input once, not first for the means.
  NAME = 'norm'

  def __init__(self, kind: str, eps: float, size: int, axis: str, leading=(),
               param=nnx.Param):
    axes = (LAYERS,) * len(leading) + (axis,)
    self.eps = eps
    self.added = 1.0 if kind == 'rmsnorm_1p' else 0.0  # a scale near 1 would be coarse in bfloat16
    self.scale = param(jnp.full((*leading, size), 1.0 - self.added), axes=axes)
    self.bias = (param(jnp.zeros((*leading, size)), axes=axes)
                 if kind == 'layernorm' else None)

  def __call__(self, x_in):
    x = x_in.astype(jnp.float32)
    if self.bias is not None:
      x = x - checkpoint_name(x.mean(-1, keepdims=True), self.NAME)
    square = checkpoint_name(jnp.square(x).mean(-1, keepdims=True), self.NAME)
    x = x * jax.lax.rsqrt(square + self.eps)
    x = x * (widen(self.scale[...], x).astype(jnp.float32) + self.added)
    if self.bias is not None:
      x = x + widen(self.bias[...], x).astype(jnp.float32)
    return x.astype(x_in.dtype)


_REMAT = {
    'full': jax.checkpoint_policies.save_only_these_names(Norm.NAME),
    # Each sum whole, not what the kernel and the adapter gave to it.
    'dots': jax.checkpoint_policies.save_only_these_names(Norm.NAME, lora.NAME, attention.NAME),
}


class Linear(nnx.Module):
  """One projection of every layer: a stacked kernel [l, *in, *out], a bias, an adapter."""

  # 7 parameters: what one projection differs in from another.
  def __init__(self, config: ModelConfig, name, shape, axes, num_inputs, key, scale=1.0):
    self.num_inputs = num_inputs
    fan_in = math.prod(shape[:num_inputs])
    kernel = jax.random.normal(key, (config.num_layers, *shape)) * (scale / fan_in) ** 0.5
    self.kernel = nnx.Param(kernel, axes=(LAYERS, *axes))
    has_bias = config.bias == 'all' or (
        config.bias == 'qkv' and name in ('qkv', 'query', 'key', 'value'))
    self.bias = (nnx.Param(jnp.zeros((config.num_layers, *shape[num_inputs:])),
                           axes=(LAYERS, *axes[num_inputs:])) if has_bias else None)
    self.adapter = (lora.Adapter(config, name, shape, axes, num_inputs,
                                 fold_in_name(key, 'adapter'))
                    if lora.is_target(config.lora, name) else None)

  def __call__(self, x, dropout_key=None):
    """[b, t, *in] -> [b, t, *out]; called on one layer's slice."""
    return apply_linears((self,), x, dropout_key)[0]


def apply_linears(linears, x, dropout_key=None):
  """Projections of the same x [b, t, *in] -> a list of [b, t, *out]; on one layer's slice.

  A projection that is query, key and value in one gives these three.

  Adapters come first: the gradient of x then begins with the sum of what the kernels give, which
  is one all-reduce where they are split over `tensor`, and not one for each.
  """
  x_pi = x.reshape(x.shape[0] * x.shape[1], -1)
  adapted = lora.adapt([linear.adapter for linear in linears], x_pi, dropout_key)
  found = []
  for linear, extra in zip(linears, adapted):
    parts = lora.project(x_pi, linear.kernel[...], linear.num_inputs)
    if linear.bias is not None:
      bias = linear.bias[...].astype(x.dtype)
      parts = [y + widen(b, y) for y, b in zip(parts, [bias] if len(parts) == 1 else bias)]
    if extra is not None:
      parts = [y + more for y, more in zip(parts, extra)]
    found += [checkpoint_name(y.reshape(*x.shape[:2], *y.shape[1:]), lora.NAME) for y in parts]
  return found


class Block(nnx.Module):
  """Attention and MLP, each before a residual. Built stacked, called on one layer's slice."""

  def __init__(self, config: ModelConfig, key):
    self.config = config
    d, h, f = config.embed_dim, config.num_heads, config.mlp_dim
    layers = config.num_layers
    n, k = config.num_kv_heads or h, get_head_dim(config)
    residual = 1.0 / (2 * layers)**2  # variance of a branch: all together start at 1 / (2 L)

    def linear(name, shape, axes, num_inputs=1, scale=1.0):
      return Linear(config, name, shape, axes, num_inputs, fold_in_name(key, name), scale)

    def norm(size=d, axis=EMBED, kind=config.norm):
      return Norm(kind, config.norm_eps, size, axis, (layers,))
    self.attention_norm = norm()
    if config.fused_qkv:
      self.qkv = linear('qkv', (d, 3, h, k), (EMBED, QKV, HEADS, HEAD_DIM))
    else:
      self.query = linear('query', (d, h, k), (EMBED, HEADS, HEAD_DIM))
      self.key = linear('key', (d, n, k), (EMBED, KV_HEADS, HEAD_DIM))
      self.value = linear('value', (d, n, k), (EMBED, KV_HEADS, HEAD_DIM))
    of_heads = 'rmsnorm' if config.norm == 'layernorm' else config.norm
    self.query_norm = norm(k, HEAD_DIM, of_heads) if config.qk_norm else None
    self.key_norm = norm(k, HEAD_DIM, of_heads) if config.qk_norm else None
    self.out = linear('out', (h, k, d), (HEADS, HEAD_DIM, EMBED), 2, residual)
    self.attention_post_norm = norm() if config.post_norms else None
    self.mlp_norm = norm()
    self.mlp_post_norm = norm() if config.post_norms else None
    self.up = linear('up', (d, f), (EMBED, MLP))
    self.gate = (linear('gate', (d, f), (EMBED, MLP))
                 if config.activation in rules.GATED else None)
    self.down = linear('down', (f, d), (MLP, EMBED), 1, residual)

  def project(self, h_btd, rotary, dropout_key):
    """Queries, keys and values of every head, [b, t, h or n, k], normed and rotated."""
    linears = (self.qkv,) if self.config.fused_qkv else (self.query, self.key, self.value)
    q_bthk, k_btnk, v_btnk = apply_linears(linears, h_btd, dropout_key)
    if self.query_norm is not None:
      q_bthk, k_btnk = self.query_norm(q_bthk), self.key_norm(k_btnk)
    if rotary is not None:
      q_bthk, k_btnk = (checkpoint_name(apply_rope(x, rotary), lora.NAME)
                        for x in (q_bthk, k_btnk))
    if self.config.query_scale_dim:  # attention divides by the root of the head's own size
      q_bthk = q_bthk * (q_bthk.shape[-1] / self.config.query_scale_dim) ** 0.5
    return q_bthk, k_btnk, v_btnk

  def __call__(self, x_btd, rotary, visible, dropout_key, keep=lambda new: (new, new)):
    """One layer: (x [b, t, d], what is kept).

    `rotary` is what `make_rotary` has for it. `keep` gets these tokens' (keys, values) [b, t, n, k]
    and gives those that are attended to, [b, c, n, k], and what is kept of them.
    """
    def end(h_btd, post_norm, name):  # of one part
      h_btd = h_btd if post_norm is None else post_norm(h_btd)
      return drop(h_btd, self.config.dropout, dropout_key, name)
    q_bthk, k_btnk, v_btnk = self.project(self.attention_norm(x_btd), rotary, dropout_key)
    (k_bcnk, v_bcnk), kept = keep((k_btnk, v_btnk))
    a_bthk = attention.attend(q_bthk, k_bcnk, v_bcnk, visible)
    x_btd = x_btd + end(self.out(a_bthk, dropout_key), self.attention_post_norm, 'attention')
    x_btd = checkpoint_name(x_btd, lora.NAME)
    h_btd = self.mlp_norm(x_btd)
    activate = _ACTIVATIONS[self.config.activation]
    if self.gate is None:
      u_btf = activate(self.up(h_btd, dropout_key))
    else:
      u_btf, gate_btf = apply_linears((self.up, self.gate), h_btd, dropout_key)
      u_btf = activate(gate_btf) * u_btf
    x_btd = x_btd + end(self.down(u_btf, dropout_key), self.mlp_post_norm, 'mlp')
    return constrain(x_btd, BATCH, None, None), kept


def _write(old, new, start):
  """Keys and values with new ones in the place of old ones, from `start` on."""
  return jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice(x, y.astype(x.dtype), start), old, new)


class Cache(NamedTuple):
  """Where tokens are written, so that they are attended to with what stands there."""
  kv: tuple[jax.Array, jax.Array] | None  # keys and values of every layer [l, b, c, n, k]
  offset: int | jax.Array = 0  # place of the first of these tokens
  # Handed from layer to layer, which saves copies for each token that is decoded. In a gradient it
  # would be kept once a layer.
  in_place: bool = False


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
    self.reset_memory(key)
    self.blocks = Block(config, fold_in_name(key, 'blocks'))
    self.final_norm = Norm(config.norm, config.norm_eps, d, EMBED)
    self.head = (None if config.tie_embeddings
                 else normal('head', (d, vocab_size), (EMBED, VOCAB), d ** -0.5))

  def reset_memory(self, key):
    """Fresh memory rows, which may depend on the embedding that is there by now."""
    self.memory = memory.make_memory(
        self.embedding[...], self.config, fold_in_name(key, 'memory'))

  def embed(self, tokens_bt):
    """Rows of the vocabulary and of the memory: i32[b, t] -> [b, t, d]."""
    x_btd = memory.look_up(self.embedding[...], self.memory[...], tokens_bt,
                           jnp.dtype(self.config.compute_dtype))
    if not self.config.scale_embeddings:
      return x_btd
    return x_btd * jnp.asarray(self.config.embed_dim ** 0.5, x_btd.dtype)

  # 9 parameters: ways to read a row and to keep what is read, any of which can be left out.
  def __call__(self, tokens_bt, positions_bt, visible, *, dropout_key=None,
               cache: Cache | None = None, return_kv=False, num_layers: int | None = None,
               inputs_btd=None, collect_bp=None):
    """Hidden states after the final norm, or as they leave the first `num_layers` layers.

    With a cache these tokens are written into it, and all of it is attended to. `inputs_btd` stands
    in for the embedded tokens. `collect_bp` are indices of tokens whose states are returned, as
    each layer leaves them and, for the last one, after the final norm.

    Shapes: tokens, positions i32[b, t]; visible (t by c) as `attention.attend` takes it,
      c = t without a cache.
    Returns: (x [b, t, d], (keys, values), or None unless there is a cache or `return_kv`); with
      `collect_bp` in place of those the states [l, b, p, d].
    """
    x_btd = self.embed(tokens_bt) if inputs_btd is None else inputs_btd
    if self.positions is not None:
      x_btd = x_btd + memory.take_rows(self.positions[...], positions_bt, x_btd.dtype)
    x_btd = constrain(drop(x_btd, self.config.dropout, dropout_key, 'embedding'),
                      BATCH, None, None)
    get_rotary = make_rotary(self.config, positions_bt)
    graphdef, layers = nnx.split(self.blocks)
    indices = jnp.arange(self.config.num_layers)
    if num_layers is not None:
      layers, indices = jax.tree.map(lambda x: x[:num_layers], (layers, indices))

    kv, offset, in_place = cache or Cache(None)
    # Layers one by one have nothing to copy.
    handed, given = (kv, None) if in_place and self.config.scan_layers else (None, kv)

    def body(carry, xs):
      (x_btd, handed), (layer, index, cached) = carry, xs

      def keep(new):
        if handed is not None:
          kept = _write(handed, jax.tree.map(lambda x: x[None], new), (index, 0, offset, 0, 0))
          return jax.tree.map(lambda x: x[index], kept), kept
        kept = new if cached is None else _write(cached, new, (0, offset, 0, 0))
        return kept, kept
      layer_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
      x_btd, kept = nnx.merge(graphdef, layer)(
          x_btd, get_rotary(index), visible, layer_key, keep)
      if handed is not None:
        return (x_btd, kept), None
      if collect_bp is not None:
        return (x_btd, None), take_tokens(x_btd, collect_bp)
      return (x_btd, None), kept if return_kv or cached is not None else None
    if self.config.remat != 'none':
      # In a loop the compiler cannot find that something is computed twice.
      body = jax.checkpoint(body, policy=_REMAT[self.config.remat],
                            prevent_cse=not self.config.scan_layers)
    (x_btd, handed), found = jax.lax.scan(body, (x_btd, handed), (layers, indices, given),
                                          unroll=not self.config.scan_layers)
    found = found if handed is None else handed
    if num_layers is not None:
      return x_btd, found
    x_btd = self.final_norm(x_btd)
    if collect_bp is not None:
      found = found.at[-1].set(take_tokens(x_btd, collect_bp))
    return x_btd, found

  def compute_logits(self, x):
    """Logits in f32 over the base vocabulary: [..., d] -> [..., v]."""
    return _multiply_logits(x, self._get_output().astype(x.dtype))

  def _get_output(self):
    return self.embedding[...].T if self.head is None else self.head[...]

  def compute_slot_logits(self, batch: batch_lib.Batch, layout: LayoutConfig, dropout_key=None,
                          inputs_btd=None):
    """Logits at the supervised slots of a packed batch, and nowhere else.

    Shapes: -> f32[b, s, v]. The trunk is never projected: s is far below t.
    """
    x_btd, _ = self.read_rows(batch, layout, dropout_key, inputs_btd)
    return self.compute_logits_at(x_btd, batch.slot_index)

  def read_rows(self, batch: batch_lib.Batch, layout: LayoutConfig, dropout_key=None,
                inputs_btd=None, collect_bp=None):
    """States of a packed batch, and those of `collect_bp`; as `__call__` returns them."""
    fields = batch_lib.get_fields(batch)
    visible = attention.find_visible(fields, fields, layout, self.config.attention_tile_tokens)
    return self(batch.tokens, batch.positions, visible, dropout_key=dropout_key,
                inputs_btd=inputs_btd, collect_bp=collect_bp)

  def compute_logits_at(self, x_btd, index_bs):
    """Logits of some tokens of rows: f32[b, s, v]."""
    x_bsd = take_tokens(x_btd, index_bs)
    kernel_dv = self._get_output()
    if not sharding.is_split_by_ids(kernel_dv.shape[1]):
      return self.compute_logits(x_bsd)
    kernel_dv = constrain(kernel_dv.astype(x_bsd.dtype), None, LOGITS)
    return constrain(_multiply_logits(x_bsd, kernel_dv), BATCH, None, LOGITS)


def take_tokens(x_btd, index_bp):
  """The tokens of each row at these places: [b, p, d]."""
  return jnp.take_along_axis(x_btd, index_bp[..., None], axis=1)


def _multiply_logits(x, kernel_dv):
  return jnp.einsum('...d,dv->...v', x, kernel_dv, preferred_element_type=jnp.float32)


def get_head_dim(config: ModelConfig) -> int:
  return config.head_dim or config.embed_dim // config.num_heads


def compute_rope_frequencies(config: ModelConfig):
  """Radians a position of every pair of a head: f32[k / 2]; in global layers, where some are local.

  `linear` divides all frequencies by `rope_factor`. `llama3` divides slow ones, keeps fast ones and
  interpolates in between, by how often a wave fits into the length that the model was first
  trained on.
  Source: Llama 3.1's published rotary scaling, as in its reference implementation.
  """
  frequency = _compute_plain_frequencies(config, config.rope_theta)
  if config.rope_scaling == 'none':
    return frequency
  if config.rope_scaling == 'linear':
    return frequency / config.rope_factor
  turns = config.rope_original_positions * frequency / (2 * math.pi)
  keep = jnp.clip((turns - config.rope_low_freq_factor)
                  / (config.rope_high_freq_factor - config.rope_low_freq_factor), 0.0, 1.0)
  return frequency * (keep + (1.0 - keep) / config.rope_factor)


def _compute_plain_frequencies(config, theta):
  half = get_head_dim(config) // 2
  return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def make_rotary(config: ModelConfig, positions_bt):
  """A function of a layer's index: what `apply_rope` takes there, or None without rotary positions.

  Cosines and sines exist once, not once a layer.

  Source: local and global layers as in Gemma 3's report, arXiv 2503.19786.
  """
  if config.positions != 'rope':
    return lambda index: None
  angles = compute_angles(positions_bt, compute_rope_frequencies(config))
  if not config.global_every:
    return lambda index: angles
  local = compute_angles(
      positions_bt, _compute_plain_frequencies(config, config.local_rope_theta))
  both = jax.tree.map(lambda *x: jnp.stack(x), local, angles)

  def get_rotary(index):
    is_global = (index + 1) % config.global_every == 0
    return jax.tree.map(lambda x: x[is_global.astype(jnp.int32)], both)
  return get_rotary


def compute_angles(positions_bt, frequency):
  """(cos, sin) f32[b, t, 1, k / 2] of positions i32[b, t] at these frequencies f32[k / 2]."""
  angle = positions_bt[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
  return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x_bthk, rotary):
  """Rotary positions, halves convention (Llama's).

  Shapes: x [b, t, h, k] with k even, rotary as `compute_angles` gives it -> like x; in f32.
  """
  cos, sin = rotary
  a, b = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_bthk.dtype)


def widen(y, like):
  """y with leading ones up to the rank of `like`: no silent rank promotion."""
  return y.reshape((1,) * (like.ndim - y.ndim) + y.shape)


def merge_model(graphdef, params, frozen) -> Transformer:
  """The model on these arrays, inside or outside a trace."""
  return nnx.merge(graphdef, nnx.State(params), nnx.State(frozen))
