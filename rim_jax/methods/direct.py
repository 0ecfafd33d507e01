"""Direct answering: the answer right after the question."""

from rim_jax.config import LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.packing.layout import Encoded, Example, Template, count_steps, read_answer


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """`[x]`, and the answer right after it."""
  return Example(encoded.question, 0, count_steps(encoded), (read_answer(encoded, template, 0),))


DIRECT = Method(lay_out)
