"""The memory parameter path: three trainable rows, `<b> <m> </b>`, beyond the vocabulary.

They are a variable type of their own, so that a filter alone decides whether
they train with the rest, or without it. Ids from `vocab_size` on mean these
rows: the base embedding is never resized, and logits are over the base
vocabulary only, so a block can never be generated.

Source: arXiv 2605.30343; docs/concepts.md, "What one training example holds".
"""

from flax import nnx
import jax
import jax.numpy as jnp

from rim_jax.config import ModelConfig
from rim_jax.model import sharding
from rim_jax.packing.layout import NUM_MEMORY_ROWS


class MemoryParam(nnx.Param):
  """The rows f32[3, d] of <b>, <m>, </b>."""


def make_memory(embedding_vd, config: ModelConfig, key) -> MemoryParam:
  """Fresh rows: noise on the vocabulary's mean, on a copy of one token's row, or noise alone."""
  rows = config.memory_noise * jax.random.normal(key, (NUM_MEMORY_ROWS, embedding_vd.shape[1]))
  if config.memory_init == 'mean':
    rows = rows + embedding_vd.astype(jnp.float32).mean(0, keepdims=True)
  elif config.memory_init == 'token':
    rows = rows + embedding_vd[config.memory_token][None].astype(jnp.float32)
  return MemoryParam(rows, axes=(sharding.MEMORY, sharding.EMBED))


def look_up(embedding_vd, memory_md, tokens_bt, dtype):
  """Embeds ids; those from v on are memory rows.

  Shapes: embedding [v, d], memory [3, d], tokens i32[b, t] -> dtype[b, t, d].
  """
  vocab_size = embedding_vd.shape[0]
  # As it is stored, whatever else the matrix is used for.
  embedding_vd = sharding.constrain(embedding_vd, sharding.VOCAB, sharding.EMBED)
  base = take_rows(embedding_vd, jnp.minimum(tokens_bt, vocab_size - 1), dtype)
  rows = take_rows(memory_md, jnp.clip(tokens_bt - vocab_size, 0, NUM_MEMORY_ROWS - 1), dtype)
  return jnp.where((tokens_bt >= vocab_size)[..., None], rows, base)


def take_rows(table_nd, ids_bt, dtype):
  """Rows of a table by id, n rows of width d: i32[b, t] -> dtype[b, t, d].

  Every device looks up its part of each row for its share of `data`; exchanging those parts gives
  whole rows. Left to the compiler, each would look up the ids of the whole batch.
  """
  ids_bt = sharding.constrain(ids_bt, sharding.BATCH, None)
  return sharding.constrain(table_nd[ids_bt].astype(dtype), sharding.BATCH, None, sharding.EMBED)
