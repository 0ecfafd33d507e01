"""Machines by name: what is unknown or cannot be is told in one line."""

import dataclasses
import types

import jax
import pytest

from rim_jax.config import MeshConfig
from rim_jax.errors import UserError
from rim_jax.planning import machines


def make_machine(num_slices=1):
  return machines.Machine('v5e:2x4', num_slices, jax.devices(), machines.CHIPS['v5e'])


@pytest.mark.parametrize('name', ['v5e', 'v9:2x2', 'v5e:16', 'v5e:2x', 'cpu:2x2', ''])
def test_an_unknown_topology_is_told_in_one_line(name):
  with pytest.raises(UserError, match='is not KIND:SIZE, e.g. v5e:4x4') as error:
    machines.make_machine(name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name, count, fragment', [
    ('v5e:2x2', 0, 'must be 1 or more'), ('v4:2x2x1', 2, 'not published')])
def test_slices_that_cannot_be_are_told(name, count, fragment):
  with pytest.raises(UserError, match=fragment):
    machines.make_machine(name, count)


@pytest.mark.parametrize('told, fragment', [
    ('JAX TPU support not installed; cannot generate TPU topology. See ...',
     r"not installed; pip install 'jax\[tpu\]=="),
    ('INVALID_ARGUMENT: Topology layout\n is not divisible', 'common sizes: v5e and v6e 2x2')])
def test_what_libtpu_refuses_is_told_in_one_line(monkeypatch, told, fragment):
  def refuse(**_):
    raise RuntimeError(told)
  monkeypatch.setattr(machines.topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError, match=fragment) as error:
    machines.make_machine('v5e:3x3')
  assert '\n' not in str(error.value)


def test_slices_have_an_axis_of_their_own():
  devices = [types.SimpleNamespace(id=i, slice_index=i // 4, platform='cpu') for i in range(8)]
  machine = dataclasses.replace(make_machine(2), devices=devices)
  with pytest.raises(UserError, match=r'in 2 slices; use --config.mesh.slice=2'):
    machines.make_mesh(MeshConfig(2, 4, 1), machine)


def test_a_mesh_that_does_not_fill_the_topology():
  with pytest.raises(UserError, match='data=3 .* does not fill the 8 devices of v5e:2x4'):
    machines.make_mesh(MeshConfig(3, 1, 1), make_machine())
