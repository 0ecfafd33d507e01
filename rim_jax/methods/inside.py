"""Targets inside RiM's blocks: each `<m>` of block k also predicts a token of step k.

A modifier. Readouts alone teach RiM's blocks, and a readout may take what it likes from the
question, so that a block need not hold what is read after it. Here token j of r_k is predicted at
the j-th `<m>` of block k, too, of all blocks at once and without a readout. The loss grows by
`curriculum.inside_weight` times the mean of their losses, in both stages: over records of the mean
of each, or over tokens with `curriculum.reduction='token'`. In stage 2 the steps stay targets
inside the blocks alone. Of a step longer than a block its first tokens are predicted;
blocks beyond the last step predict nothing inside. Rows have no token more, and answering does not
change.

Ours: LOTUS's loss on latents (methods/lotus.py, arXiv 2606.31779) in RiM's layout. There a token is
predicted at the token before its latent; here `<b>` and `</b>` predict nothing.
"""

import dataclasses

from rim_jax.config import LayoutConfig
from rim_jax.methods.method import Method, weigh_apart
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

  return dataclasses.replace(
      weigh_apart(host, batch_lib.SLOT_PARALLEL, lambda config: config.curriculum.inside_weight),
      layout=lay_out)
