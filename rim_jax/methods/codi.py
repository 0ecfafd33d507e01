"""CODI: thoughts fed back one by one, held to the written chain at one token, in one stage.

The student is Coconut's last stage: `[x | <b> <m>*J </b>]` and the answer, where the input at each
`<m>` is the projected last hidden state of the token before it. The teacher writes the chain of the
same record right after the question, without its last step. The loss is the mean token loss of the
student, plus that of the teacher, plus the distance of their states where the answer begins.

Departures from the source:

- Teacher and student stand in one row and share its forward: one pass has both losses and the
  states, where the source takes three. They share the row's dropout, too.
- The answer's prefix is given, and neither trained nor written; `layout.supervise_prefix` trains
  it. `curriculum.reduction='readout'`, the default, weighs each readout alike; with 'token' the two
  means are over tokens, as in the source.
- Distances have the spread of each example and count no embeddings (methods/paired.py): to have the
  source's gamma in L layers, set `distill.weight` to L / (L + 1) of it.
- With an empty `layout.answer_prefix`, as on the chain task, the two states that are compared are
  not of the same token (methods/paired.py).
- The rows of `<b>` and `</b>` train, as RiM's do; in the source new rows stay as they begin.
- Positions and visibility do not know of padding: what shares a batch changes no logit.
- There is no seventh thought, which the source computes and never reads.
- Under dropout thoughts are found and read by different masks (methods/coconut.py).
- Steps are joined by `layout.step_separator`, and no record is left out for its answer or length.
- Both losses are means, so `curriculum.normalize` changes nothing.

Source: arXiv 2502.21074; github.com/zhenyi4/codi.
"""

import dataclasses

from flax import nnx
import jax

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods import coconut, paired
from rim_jax.methods.method import AddedParam, Method, count_examples
from rim_jax.model.lora import fold_in_name
from rim_jax.model.sharding import EMBED, MLP
from rim_jax.model.transformer import Norm, widen
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import (
  Encoded,
  Example,
  Template,
  count_steps,
  read_answer,
  read_chain,
)


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """`[x | thoughts]`; the chain after the question and the answer after the thoughts, paired.

  Without a block the answer stands right after the question: direct answering beside a teacher.
  """
  student = (read_chain(dataclasses.replace(encoded, steps=()), template, config.num_blocks)
             if config.supervise_prefix else read_answer(encoded, template, config.num_blocks))
  return Example(encoded.question, config.num_blocks, count_steps(encoded), (
      paired.read_teacher(encoded, template, config), dataclasses.replace(student, pair=1)))


def share_means(config: Config) -> dict[int, float]:
  """The two losses, each a mean of its own."""
  return {batch_lib.SLOT_ANSWER: 1.0, batch_lib.SLOT_TEACHER: config.distill.teacher_weight}


class Dense(nnx.Module):
  """x W + b, both uniform within 1 / sqrt(inputs)."""

  def __init__(self, shape, axes, key):
    def draw(name, shape, axes):
      return AddedParam(jax.random.uniform(fold_in_name(key, name), shape, minval=-1, maxval=1)
                        * self.limit, axes=axes)
    self.limit = shape[0] ** -0.5
    self.kernel = draw('kernel', shape, axes)
    self.bias = draw('bias', shape[1:], axes[1:])

  def __call__(self, x):
    return x @ self.kernel[...].astype(x.dtype) + widen(self.bias[...].astype(x.dtype), x)


class Projection(Norm):
  """What a thought passes before it is fed: Linear, exact GELU, Linear, LayerNorm; one width.

  The norm is this module itself: so its parameters are called as they always were.
  """

  def __init__(self, embed_dim: int, key):
    super().__init__('layernorm', 1e-5, embed_dim, EMBED, param=AddedParam)
    self.first = Dense((embed_dim, embed_dim), (EMBED, MLP), fold_in_name(key, 'first'))
    self.second = Dense((embed_dim, embed_dim), (MLP, EMBED), fold_in_name(key, 'second'))

  def __call__(self, x_bed):
    return super().__call__(self.second(jax.nn.gelu(self.first(x_bed), approximate=False)))


class Added(nnx.Module):
  """The parameters beside the network: a projection, unless it is switched off."""

  def __init__(self, config: Config, key):
    self.projection = (Projection(config.model.embed_dim, fold_in_name(key, 'projection'))
                       if config.codi.projection else None)


CODI = Method(lay_out, norm=count_examples, means=share_means, inputs=coconut.find_inputs,
              count_inputs=coconut.count_inputs, losses=paired.distill, prefill=coconut.prefill,
              make_added=Added)
