"""Eight fake CPU devices for every test, and no silent rank promotion."""

import os

os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=8').strip()
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')


@pytest.fixture
def use_devices(monkeypatch):
  """Makes the program see only the first n devices: `use_devices(1)`."""
  everything = jax.devices()

  def use(count):
    monkeypatch.setattr(jax, 'devices', lambda: everything[:count])
    return everything[:count]
  return use
