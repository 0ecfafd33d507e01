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


@pytest.mark.parametrize('name', [
    'v5e', 'v9:2x2', 'v5e:16', 'v5e:2x', 'cpu:2x2', '', 'h100', 'h100:', 'h100:2x2x8', 'h9:8'])
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
  devices = [types.SimpleNamespace(id=i, slice_index=i // 4, platform='tpu') for i in range(8)]
  machine = dataclasses.replace(make_machine(2), devices=devices)
  with pytest.raises(UserError, match=r'in 2 slices; use --config.mesh.slice=2'):
    machines.make_mesh(MeshConfig(2, 4, 1), machine)


def test_a_mesh_that_does_not_fill_the_topology():
  with pytest.raises(UserError, match='data=3 .* does not fill the 8 devices of v5e:2x4'):
    machines.make_mesh(MeshConfig(3, 1, 1), make_machine())


@pytest.mark.parametrize('name, slices, fragment', [
    ('h100:8', 2, '--topology=h100:2x8'), ('h100:0', 1, 'has no GPU'),
    ('h100:2x0', 1, 'has no GPU')])
def test_gpus_that_cannot_be_are_told(name, slices, fragment):
  with pytest.raises(UserError, match=fragment):
    machines.make_machine(name, slices)


@pytest.mark.parametrize('size, hosts, gpus_each', [('1', 1, 1), ('8', 1, 8), ('2x4', 2, 4)])
def test_gpus_stand_in_nodes(monkeypatch, size, hosts, gpus_each):
  asked = []

  def make_devices(*args):
    asked.append(args)
    return [types.SimpleNamespace(platform='gpu')] * (hosts * gpus_each)
  monkeypatch.setattr(machines.gpus, 'make_devices', make_devices)
  machine = machines.make_machine(f'h100:{size}')
  assert asked == [('h100', hosts, gpus_each)] and machine.num_chips == hosts * gpus_each
  assert machine.is_gpu and machine.chip.flops_per_sec == 989e12
  assert machine.usable_gib == 0.75 * 84942979072 / 2**30


def test_a_chip_of_two_cores_is_two_devices_with_half_of_its_rates_each(monkeypatch):
  found = types.SimpleNamespace(devices=[types.SimpleNamespace(platform='tpu')] * 8)
  monkeypatch.setattr(machines.topologies, 'get_topology_desc', lambda **_: found)
  machine = machines.make_machine('tpu7x:2x2x1')
  assert (machine.num_chips, len(machine.devices)) == (4, 8)
  assert machine.chip == machines.Chip(96, 2307e12 / 2, 3690e9, 300e9, 6.25e9)
  assert machines.parse_hardware('tpu7x:2x2x1').flops_per_sec == 4 * 2307e12


def test_a_plan_leaves_a_part_of_a_tpu_chip():
  """For what its compiler keeps, and adds with the code that a plan does not wait for."""
  def make(kind):
    chip = machines.CHIPS[kind]
    return machines.Machine(f'{kind}:2x2', 1, [types.SimpleNamespace(platform='tpu')] * 8,
                            machines._divide(chip), chip.cores)
  assert make('v5e').usable_gib == 16 - 1.25
  assert make('tpu7x').usable_gib == (192 - 1.25) / 2  # of each of its two cores
