"""Chain of thought: the steps written out, then the answer."""

from rim_jax.config import LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.packing.layout import Encoded, Example, Template, count_steps, read_chain


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """`[x]`, then every step and the answer written out, all of it supervised."""
  return Example(encoded.question, 0, count_steps(encoded),
                 (read_chain(encoded, template, 0),))


COT = Method(lay_out)
