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
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from rim_jax.config import LoraConfig, ModelConfig
from rim_jax.model import sharding

NAME = 'projection'  # of what a remat policy may keep: what matrix products give


def is_target(config: LoraConfig, name: str) -> bool:
  """Whether the projection of this name gets an adapter."""
  return config.rank > 0 and re.fullmatch(config.targets, name) is not None


def _spread(axes):
  """Axes of a half; one without `embed` would otherwise stand whole on every device of `fsdp`."""
  spread = {sharding.HEAD_DIM: sharding.ADAPTER_HEAD_DIM, sharding.MLP: sharding.ADAPTER_MLP}
  return axes if sharding.EMBED in axes else tuple(spread.get(a, a) for a in axes)


class Adapter(nnx.Module):
  """The adapter of one projection in every layer: A [l, *in, r] and B [l, r, *out]."""

  def __init__(self, config: ModelConfig, name: str, shape, axes, num_inputs: int, key):
    layers, rank = config.num_layers, config.lora.rank
    self.config, self.name = config.lora, name
    limit = math.prod(shape[:num_inputs]) ** -0.5
    self.a = nnx.LoRAParam(
        jax.random.uniform(key, (layers, *shape[:num_inputs], rank), minval=-limit, maxval=limit),
        axes=(sharding.LAYERS, *_spread(axes[:num_inputs]), sharding.RANK))
    self.b = nnx.LoRAParam(
        jnp.zeros((layers, rank, *shape[num_inputs:])),
        axes=(sharding.LAYERS, sharding.RANK, *_spread(axes[num_inputs:])))


def adapt(adapters, x_pi, dropout_key=None) -> list:
  """What the adapters of projections of one input add to each; None for one without.

  Those that see the same input read it once, by one product with all A side by side. While
  training each sees what its own dropout leaves, unless `shared_dropout` is on.

  Shapes: x [p, i] -> for each adapter a list, as `project` gives it.
  """
  present = [adapter for adapter in adapters if adapter is not None]
  found: list = [None] * len(adapters)
  if not present:
    return found
  config = present[0].config
  drops = dropout_key is not None and config.dropout > 0
  together = config.shared_dropout or not drops
  for group in [present] if together else [[adapter] for adapter in present]:
    names = ' '.join(adapter.name for adapter in group)
    dropped_pi = drop(x_pi, config.dropout, dropout_key, f'{names} adapter')
    a_ir = jnp.concatenate([x.a[...].reshape(-1, config.rank) for x in group], 1)
    x_pr = checkpoint_name(project(dropped_pi, a_ir, 1)[0], NAME)
    for adapter, part_pr in zip(group, jnp.split(x_pr, len(group), 1)):
      found[adapters.index(adapter)] = [
          y * (config.alpha / config.rank) for y in project(part_pr, adapter.b[...], 1)]
  return found


def project(x_pi, kernel, num_inputs: int) -> list:
  """x by one layer's kernel, as products of two matrices; in a gradient too.

  With more axes XLA would transpose operands before it multiplies them. Query, key and value that
  are one kernel [*in, 3, h, k] stay apart: as one axis with the heads they would undo the sharding
  of heads, and stacked they would be copied.

  Shapes: x [p, i], p rows and positions as one axis, i the product of the inputs; kernel
    [*in, *out] -> one [p, *out], or three [p, h, k].
  """
  outputs = kernel.shape[num_inputs:]
  if len(outputs) == 3:
    return [project(x_pi, part, num_inputs)[0] for part in jnp.unstack(kernel, axis=num_inputs)]
  y_po = x_pi @ kernel.reshape(-1, math.prod(outputs)).astype(x_pi.dtype)
  return [y_po.reshape(-1, *outputs)]


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
