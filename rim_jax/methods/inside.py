"""Targets inside RiM's blocks: each `<m>` of block k also predicts a token of step k.

A modifier. Readouts alone teach RiM's blocks, and a readout may take what it likes from the
question, so that a block need not hold what is read after it. Here token j of r_k is predicted at
the j-th `<m>` of block k, too, of all blocks at once and without a readout. The loss grows by
`curriculum.inside_weight` times the mean over these tokens, in both stages: in stage 2 the steps
stay targets inside the blocks alone. Of a step longer than a block its first tokens are predicted;
blocks beyond the last step predict nothing inside. Rows have no token more, and answering does not
change.

Ours: LOTUS's loss on latents (methods/lotus.py, arXiv 2606.31779) in RiM's layout. There a token is
predicted at the token before its latent; here `<b>` and `</b>` predict nothing.
"""

import dataclasses

import jax.numpy as jnp

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import Encoded, Example, Template, get_block_size


def predict_inside(host: Method) -> Method:
  """A method with memory blocks, whose blocks also predict their own steps."""
  def lay_out(encoded: Encoded, template: Template, layout: LayoutConfig) -> Example:
    example = host.layout(encoded, template, layout)
    first = len(example.question) + 1  # block 1's first <m>
    return dataclasses.replace(example, parallel=(*example.parallel, *(
        (first + k * get_block_size(layout) + j, token)
        for k, step in enumerate(encoded.steps[:example.num_blocks])
        for j, token in enumerate(step[:layout.block_tokens]))))

  def weigh(batch, *args):
    return jnp.where(batch.slot_kind == batch_lib.SLOT_PARALLEL, 1.0, host.weight(batch, *args))

  def share_means(config: Config) -> dict[int, float]:
    return {**(host.means(config) if host.means else {}),
            batch_lib.SLOT_PARALLEL: config.curriculum.inside_weight}
  return dataclasses.replace(host, layout=lay_out, weight=weigh, means=share_means)
