"""Chain of thought: the steps written out, then the answer."""

from rim_jax.config import LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.packing.layout import Encoded, Example, Template, count_steps, read_chain


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig,
            removed: int = 0) -> Example:
  """`[x]`, then every step and the answer written out, all of it supervised.

  Args:
    removed: tokens of the steps, and of what separates them, that are left out, the first ones.
  """
  return Example(encoded.question, 0, count_steps(encoded),
                 (read_chain(encoded, template, 0, removed=removed),))


COT = Method(lay_out)
