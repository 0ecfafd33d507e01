"""Low-rank adapters: a parameter path of their own beside each projection.

An adapter adds `alpha / rank * (x A) B` to a projection of x. B starts at zero, so a
fresh adapter changes nothing. There is one for each projection that a checkpoint stores
as one matrix: where query, key and value are fused, so is their adapter.

Source: LoRA, arXiv 2106.09685; A's initialisation and the dropout before A as in PEFT.
"""

import math
import re
import zlib

from flax import nnx
import jax
import jax.numpy as jnp

from rim_jax import sharding
from rim_jax.config import LoraConfig, ModelConfig


def is_target(config: LoraConfig, name: str) -> bool:
  """Whether the projection of this name gets an adapter."""
  return config.rank > 0 and re.fullmatch(config.targets, name) is not None


class Adapter(nnx.Module):
  """The adapter of one projection in every layer: A [l, *in, r] and B [l, r, *out]."""

  def __init__(self, config: ModelConfig, name: str, einsum: str, shape, axes, num_inputs: int,
               key):
    layers, rank = config.num_layers, config.lora.rank
    self.config, self.name = config.lora, name
    x, kernel, y = re.split(',|->', einsum)
    inputs, outputs = kernel[:num_inputs], kernel[num_inputs:]
    hidden = ''.join(c for c in x if c not in inputs) + 'r'
    self.down, self.up = f'{x},{inputs}r->{hidden}', f'{hidden},r{outputs}->{y}'
    limit = math.prod(shape[:num_inputs]) ** -0.5
    self.a = nnx.LoRAParam(
        jax.random.uniform(key, (layers, *shape[:num_inputs], rank), minval=-limit, maxval=limit),
        axes=(sharding.LAYERS, *axes[:num_inputs], sharding.RANK))
    self.b = nnx.LoRAParam(
        jnp.zeros((layers, rank, *shape[num_inputs:])),
        axes=(sharding.LAYERS, sharding.RANK, *axes[num_inputs:]))

  def __call__(self, x, dropout_key=None):
    x = drop(x, self.config.dropout, dropout_key, f'{self.name} adapter')
    y = jnp.einsum(self.up, jnp.einsum(self.down, x, self.a[...].astype(x.dtype)),
                   self.b[...].astype(x.dtype))
    return y * (self.config.alpha / self.config.rank)


def merge(kernel, a, b, config: LoraConfig):
  """A stacked kernel with its adapter added, in f32.

  Shapes: kernel [l, *in, *out], a [l, *in, r], b [l, r, *out] -> f32[l, *in, *out].
  """
  layers = kernel.shape[0]
  a_lir = a.reshape(layers, -1, config.rank).astype(jnp.float32)
  b_lro = b.reshape(layers, config.rank, -1).astype(jnp.float32)
  delta = jnp.einsum('lir,lro->lio', a_lir, b_lro, precision='highest')
  return kernel.astype(jnp.float32) + (config.alpha / config.rank) * delta.reshape(kernel.shape)


def fold_in_name(key, name: str):
  """A key for a name, so that adding a parameter reshuffles no other."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def drop(x, rate, key, name):
  """Inverted dropout; without a key (evaluation) or rate, x itself."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(fold_in_name(key, name), 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
