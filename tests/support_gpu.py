"""Of tests that compile for GPUs which are not here."""

import importlib.util

import pytest

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec('jax_cuda13_plugin') is None,
    reason="needs JAX's CUDA plugin: pip install -e '.[plan-gpu]'")
