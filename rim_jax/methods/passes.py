"""Several passes over the same rows: each feeds states of the one before into its inputs.

Whole rows are read in every pass. What follows reads the last pass alone, so no readout is read by
the states that are fed, and packed rows stay what their examples are alone.
"""

from collections.abc import Callable

import jax

from rim_jax.config import Config
from rim_jax.model import attention
from rim_jax.model.lora import fold_in_name
from rim_jax.packing import batch as batch_lib


def find_inputs(model, tokens_bt, fields: batch_lib.Fields, config: Config, num_passes: int,
                feed: Callable, dropout_key=None) -> jax.Array:
  """Inputs of the last of `num_passes` passes: [b, t, d]. The gradient flows through all of them.

  Args:
    feed: (embedded tokens, states after the final norm), [b, t, d] both -> the next inputs.
  """
  embedded_btd = inputs_btd = model.embed(tokens_bt)
  visible = attention.find_visible(fields, fields, config.layout,
                                   config.model.attention_tile_tokens)

  # Computed again in a gradient: or each pass would keep the activations of a whole forward.
  @jax.checkpoint
  def read(inputs_btd, key):
    x_btd, _ = model(tokens_bt, fields.positions, visible, dropout_key=key, inputs_btd=inputs_btd)
    return feed(embedded_btd, x_btd)
  for number in range(1, num_passes):  # the last one keeps the ordinary key
    key = None if dropout_key is None else fold_in_name(dropout_key, f'pass {number}')
    inputs_btd = read(inputs_btd, key)
  return inputs_btd
