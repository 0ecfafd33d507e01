"""What a method is: the `Method` value that its module exports.

Array suffixes as in model/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from rim_jax.config import Config
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order


def weigh_equally(batch: batch_lib.Batch, step, num_steps, config: Config) -> jax.Array:
  """Every readout counts 1."""
  del step, num_steps, config
  return jnp.ones_like(batch.slot_block, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Method:
  """A method, to whoever packs rows, takes a step or decodes; None is the plain way.

  What stands in the sequence, and how much it counts, are its two halves. One that feeds states
  back says what is fed in: the same for rows of training and for the trunks of decoding.
  """
  # (Encoded, Template, LayoutConfig) -> Example; with a removal also how many tokens are removed.
  layout: Callable[..., layout_lib.Example]
  # (Batch, step, num_steps, Config) -> weight of a readout, given at each of its slots: f32[b, s].
  weight: Callable[..., jax.Array] = weigh_equally
  removal: order.Removal | None = None  # what its written chains lose, epoch by epoch
  # (model, tokens i32[b, t], Fields, Config, the most examples of a row, dropout key)
  # -> what stands in for the embedded tokens, f[b, t, d], or None: they do.
  inputs: Callable[..., jax.Array | None] | None = None
  # (model, Trunks, starts i32[b, r], Config) -> as `decode.prefill`: a cheaper way to the same.
  prefill: Callable | None = None

  def forward(self, model, batch: batch_lib.Batch, config: Config, row_examples: int = 1,
              dropout_key=None) -> jax.Array:
    """Logits at the supervised slots: f32[b, s, v].

    Args:
      row_examples: the most examples that a row holds.
    """
    inputs_btd = self.feed(model, batch.tokens, batch_lib.get_fields(batch), config, row_examples,
                           dropout_key)
    return model.compute_slot_logits(batch, config.layout, dropout_key, inputs_btd)

  def feed(self, model, tokens_bt, fields: batch_lib.Fields, config: Config, row_examples: int = 1,
           dropout_key=None) -> jax.Array | None:
    """`inputs` of rows or trunks; None where tokens are embedded as they are."""
    return self.inputs and self.inputs(model, tokens_bt, fields, config, row_examples, dropout_key)
