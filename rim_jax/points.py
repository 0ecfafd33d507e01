"""The name under which recipes know config/grid.py: the points of a recipe of many runs."""

from rim_jax.config.grid import *  # noqa: F403
