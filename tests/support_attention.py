"""Packed rows, queries and keys for the tests of attention, and what they are held to."""

import jax
import jax.numpy as jnp

from rim_jax.packing import batch as batch_lib
from tests import support

SWITCHES = [{}, {'layout__bidirectional_blocks': True}, {'layout__readout_sees_question': False}]


def make_fields(config, rows=None):
  """Fields of two packed rows, as in a batch; by default the second row is mostly padding."""
  batch = support.make_batch(config, rows or [support.RECORDS[:3], support.RECORDS[1:2]],
                             row_slots=80)
  return jax.tree.map(jnp.asarray, batch_lib.get_fields(batch))


def make_qkv(b, t, c, heads=4, kv_heads=2, head_dim=8, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(b, t, heads, head_dim), (b, c, kv_heads, head_dim), (b, c, kv_heads, head_dim),
            (b, t, heads, head_dim)]
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes)]


def pull_back(attend, q, k, v, weight, visible):
  """(output, its gradients with respect to q, k and v under random weights), jitted."""
  def loss(q, k, v, visible):
    out = attend(q, k, v, visible)
    return (out.astype(jnp.float32) * weight).sum(), out
  fn = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), grads = fn(q, k, v, visible)
  return out, *grads
