"""Eight fake CPU devices for every test, no silent rank promotion, compilations kept.

What is drawn at random (hypothesis) is the same in every run.
"""

import os
import pathlib
import tempfile

os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=8').strip()
os.environ['JAX_PLATFORMS'] = 'cpu'

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
# Compiling is most of the time, and tiny networks need no optimised code.
jax.config.update('jax_disable_most_optimizations', True)
# Many tests compile the same program again; keyed by program and versions, a kept one is the same.
jax.config.update('jax_compilation_cache_dir',
                  str(pathlib.Path(tempfile.gettempdir()) / f'rim_jax_tests_{os.getuid()}'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

hypothesis.settings.register_profile('same', derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile('same')


@pytest.fixture
def use_devices(monkeypatch):
  """Makes the program see only the first n devices: `use_devices(1)`."""
  everything = jax.devices()

  def use(count):
    monkeypatch.setattr(jax, 'devices', lambda: everything[:count])
    return everything[:count]
  return use
