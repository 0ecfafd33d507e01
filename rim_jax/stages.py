"""The name under which recipes know config/stages.py: the runs that a config stands for."""

from rim_jax.config.stages import *  # noqa: F403
