"""Paired states: where an answer begins, a network learns the states that it has after a chain.

The student is a readout of the answer after latent tokens; the teacher is the chain of the same
record, written right after the question, in the same row. The states that predict the answer's
first token are compared after each layer; no gradient passes into the teacher's.

Departures from the sources, all ours:

- The spread of the teacher's states is that of each example (`distill.std`), so that unequal
  micro-batches add up to the whole.
- The embeddings' own entry, which is 0 or constant where they are frozen, is no layer.
- With an empty `layout.answer_prefix` the paired tokens are no pair of equals: the student's is
  `</b>`, the teacher's a step's separator. In the sources both are the prefix's last token.

Only the states are shielded from the gradient: teacher and student are one network, so a large
`distill.weight` can make all states alike before a network from scratch has learned the chain.

Source: CODI, arXiv 2502.21074; PCCoT, arXiv 2506.18582.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods.method import Method, Read, weigh_apart
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import Encoded, Example, Readout, Template, read_chain


def read_teacher(encoded: Encoded, template: Template, config: LayoutConfig) -> Readout:
  """The written chain after the question, by default without its last step.

  That step shows the answer's digits: a state before the answer would be one that copies them.
  """
  kept = encoded.steps if config.teacher_last_step else encoded.steps[:-1]
  chain = read_chain(dataclasses.replace(encoded, steps=kept), template, 0)
  return dataclasses.replace(chain, kind=batch_lib.SLOT_TEACHER)


def distill(model, batch: batch_lib.Batch, read: Read, config: Config) -> dict[str, jax.Array]:
  """distill.weight times the distance of all pairs."""
  distance = compute_distance(read.student_lbpd, read.teacher_lbpd, read.paired_bp,
                              config.distill.std)
  return {'distilled': config.distill.weight * distance}


def compute_distance(student_lbpd, teacher_lbpd, paired_bp, std: str) -> jax.Array:
  """Huber distances of paired states over the teacher's standard deviation, summed over pairs.

  The mean over layers and width of huber(s - t) / std(t), huber(u) = u^2 / 2 below 1, |u| - 1/2
  beyond. The deviation is unbiased, and taken over: `example` the states of one pair after one
  layer; `layer` those of all pairs after one layer; `all` those of all pairs and layers.

  Shapes: states f32[l, b, p, d], paired bool[b, p] -> f32[].
  """
  teacher_lbpd = jax.lax.stop_gradient(teacher_lbpd)
  there_lbpd = jnp.broadcast_to(paired_bp[None, :, :, None], teacher_lbpd.shape)
  axes = {'example': (3,), 'layer': (1, 2, 3), 'all': (0, 1, 2, 3)}[std]
  # What is no pair has a spread of 1 and a distance of 0: no division by 0, in a gradient either.
  spread = jnp.std(teacher_lbpd, axes, ddof=1, keepdims=True, where=there_lbpd)
  spread = jnp.where(there_lbpd.any(axes, keepdims=True), spread, 1.0)
  apart_lbpd = jnp.abs(jnp.where(there_lbpd, student_lbpd - teacher_lbpd, 0.0))
  square_lbpd = jnp.minimum(apart_lbpd, 1.0)
  huber_lbpd = square_lbpd * (apart_lbpd - square_lbpd / 2)
  return (huber_lbpd / spread).mean((0, 3)).sum()


def pair_blocks(host: Method) -> Method:
  """A modifier of RiM and pause: the answer after the last block is held to a written chain.

  It takes neither a further pass nor a parameter: the chain stands in the same row.
  """
  def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
    example = host.layout(encoded, template, config)
    *others, last = example.readouts
    student = dataclasses.replace(last, pair=1 + len(example.readouts))
    return dataclasses.replace(example, readouts=(
        *others, student, read_teacher(encoded, template, config)))

  # A chain is no block's, and does not fade.
  host = weigh_apart(host, batch_lib.SLOT_TEACHER, lambda config: config.distill.teacher_weight)
  return dataclasses.replace(host, layout=lay_out, losses=distill)
