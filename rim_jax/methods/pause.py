"""Pause: stage 2's layout and weight without a stage 1 before it.

The control that has RiM's blocks and never saw a step.
"""

from rim_jax.methods import rim
from rim_jax.methods.method import Method

PAUSE = Method(rim.lay_out_stage2, rim.weigh_stage2)
