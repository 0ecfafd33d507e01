"""Several passes over the same rows: each feeds states of the one before into its inputs.

Whole rows are read in every pass. What follows reads the last pass alone, so no readout is read by
the states that are fed, and packed rows stay what their examples are alone.
"""

from collections.abc import Callable, Sequence

import jax

from rim_jax.config import Config
from rim_jax.model import attention
from rim_jax.model.lora import fold_in_name
from rim_jax.packing import batch as batch_lib


def find_inputs(model, tokens_bt, fields: batch_lib.Fields, config: Config,
                feeds: Sequence[Callable], dropout_key=None) -> jax.Array:
  """Inputs of the last of several passes: [b, t, d]. The gradient flows through all of them.

  Args:
    feeds: for each pass but the first, what makes its inputs: (embedded tokens, states after the
      final norm of the pass before), [b, t, d] both -> [b, t, d].
  """
  embedded_btd = inputs_btd = model.embed(tokens_bt)
  visible = attention.find_visible(fields, fields, config.layout,
                                   config.model.attention_tile_tokens)

  # Computed again in a gradient: or each pass would keep the activations of a whole forward.
  @jax.checkpoint
  def read(inputs_btd, key):
    return model(tokens_bt, fields.positions, visible, dropout_key=key, inputs_btd=inputs_btd)[0]
  for number, feed in enumerate(feeds, 1):  # the last pass keeps the ordinary key
    key = None if dropout_key is None else fold_in_name(dropout_key, f'pass {number}')
    inputs_btd = feed(embedded_btd, read(inputs_btd, key))
  return inputs_btd
