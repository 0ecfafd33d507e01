"""A toy method, as the tutorial adds one: blocks are read twice, and held to a written chain.

The state that predicts the answer's first token after the blocks learns to be the one that predicts
it after the written steps; and the blocks' states of a first pass are fed, through a trained gate,
into the inputs of a second.
"""

import dataclasses

import jax.numpy as jnp

from rim_jax.config import methods as facts_lib
from rim_jax.methods import passes
from rim_jax.methods.method import Method
from rim_jax.packing.layout import Example, count_steps, read_answer, read_chain


def lay_out(encoded, template, config):
  """`[x | m_1 .. m_K]`; the chain after the question, the answer after the blocks, paired."""
  teacher = read_chain(encoded, template, 0)
  student = dataclasses.replace(read_answer(encoded, template, config.num_blocks), pair=1)
  return Example(encoded.question, config.num_blocks, count_steps(encoded), (teacher, student))


def count_pairs(batch, config):
  """The norm: examples."""
  return (batch.slot_pair >= 0).sum().astype(jnp.float32)


def compute_distance(model, batch, read, config):
  """Mean distance of paired states over layers and width, added up over examples."""
  distance_bp = jnp.abs(read.student_lbpd - read.teacher_lbpd).mean((0, 3))
  return {'distance': jnp.where(read.paired_bp, distance_bp, 0.0).sum()}


TOY = passes.loop(Method(lay_out, norm=count_pairs, losses=compute_distance),
                  passes.GATE, num_passes=2)

# Its row, which stands in config/methods.py; TOY is entered in methods.METHODS.
FACTS = facts_lib.Facts('toy', 'a toy: looped blocks, held to a written chain', needs_blocks=True,
                        feeds_back=True, learns_steps=True)
