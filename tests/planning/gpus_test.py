"""GPUs that are not here: what is said without the plugin, and devices with it."""

from jax.experimental import topologies
import pytest

from rim_jax.errors import UserError
from rim_jax.planning import gpus
from tests.support_gpu import needs_plugin


def test_without_the_plugin_the_command_to_install_it_is_told(monkeypatch):
  def refuse(**unused):
    raise NotImplementedError('topology not implemented for cuda')
  monkeypatch.setattr(topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError, match=r"pip install -e '.\[plan-gpu\]' jax-cuda13-plugin==.*"):
    gpus.make_devices('h100')


@pytest.mark.gpu_plan
@needs_plugin
@pytest.mark.parametrize('kind', gpus.GPUS)
def test_devices_of_every_kind_are_made(kind):
  devices = gpus.make_devices(kind, 2, 4)
  assert len(devices) == 8 and {d.platform for d in devices} == {'gpu'}
  assert {d.process_index for d in devices} == {0, 1}
