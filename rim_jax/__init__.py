"""rim_jax: Reasoning in Memory (arXiv 2605.30343), trained in JAX."""

__version__ = '0.1.0'
