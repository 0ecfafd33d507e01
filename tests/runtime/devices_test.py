"""No two runs at a time have a GPU, a TPU chip or a port in common where there are enough."""

import os

import pytest

from rim_jax.errors import UserError
from rim_jax.runtime import devices


def divide(num_jobs, **environ):
  return devices.divide(num_jobs, {'CUDA_VISIBLE_DEVICES': '', 'TPU_VISIBLE_CHIPS': '', **environ})


def test_gpus_are_divided_and_shared_where_they_are_few():
  def visible(gpus, jobs):
    return [place.environ.get('CUDA_VISIBLE_DEVICES')
            for place in divide(jobs, CUDA_VISIBLE_DEVICES=gpus)]
  assert visible('0,1,2,3', 2) == ['0,2', '1,3']
  assert visible('4', 2) == ['4', '4'] and visible('4,5', 4) == ['4', '5', '4', '5']
  assert visible('0,1', 1) == [None] and visible('', 2) == [None, None]


def test_all_gpus_are_found_where_none_are_named(tmp_path, monkeypatch):
  tool = tmp_path / 'nvidia-smi'
  tool.write_text('#!/bin/sh\necho 0\necho 1\n')
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  assert devices.list_gpus({}) == ['0', '1']
  assert devices.list_gpus({'CUDA_VISIBLE_DEVICES': ''}) == []
  tool.write_text('#!/bin/sh\nexit 9\n')  # there is a driver, and no GPU
  assert devices.list_gpus({}) == []


@pytest.mark.parametrize('chips, jobs, visible, bounds', [
    ('0,1,2,3', 2, ['0,1', '2,3'], '1,2,1'), ('0,1,2,3', 4, ['0', '1', '2', '3'], '1,1,1'),
    ('0,1,2,3', 3, ['0', '1', '2'], '1,1,1'),
    ('0,1,2,3,4,5,6,7', 2, ['0,1,2,3', '4,5,6,7'], '2,2,1'),
    ('0,1,2,3,4,5,6,7', 3, ['0', '1', '2'], '1,1,1'), ('5,7', 2, ['5', '7'], '1,1,1')])
def test_each_run_has_tpu_chips_and_a_port_of_its_own(chips, jobs, visible, bounds):
  """Each as if its chips were all; the forms are those in which JAX's own tests divide a host."""
  places = [place.environ for place in divide(jobs, TPU_VISIBLE_CHIPS=chips)]
  assert [p['TPU_VISIBLE_CHIPS'] for p in places] == visible
  for place in places:
    assert place['TPU_CHIPS_PER_PROCESS_BOUNDS'] == bounds
    assert (place['TPU_PROCESS_BOUNDS'], place['CLOUD_TPU_TASK_ID']) == ('1,1,1', '0')
    assert place['TPU_PROCESS_ADDRESSES'] == f'localhost:{place["TPU_PROCESS_PORT"]}'
  assert len({p['TPU_PROCESS_PORT'] for p in places}) == jobs


def test_tpu_chips_are_not_shared_and_a_run_alone_or_on_a_cpu_is_left_as_it_is():
  with pytest.raises(UserError, match='--jobs=3: there are 2 TPU chips here'):
    divide(3, TPU_VISIBLE_CHIPS='0,1')
  assert divide(1, TPU_VISIBLE_CHIPS='0,1')[0].environ == {}
  assert divide(3, TPU_VISIBLE_CHIPS='0,1', JAX_PLATFORMS='cpu')[0].environ == {}


def test_all_tpu_chips_are_found_where_none_are_named(monkeypatch):
  from jax._src import hardware_utils
  assert devices.list_chips({}) == []  # of this machine, as JAX counts
  monkeypatch.setattr(hardware_utils, 'num_available_tpu_chips_and_device_id', lambda: (4, None))
  assert devices.list_chips({}) == ['0', '1', '2', '3']
  assert devices.list_chips({'JAX_PLATFORMS': 'tpu,cpu'}) == ['0', '1', '2', '3']


def test_cores_are_divided():
  cores = sorted(os.sched_getaffinity(0))
  assert divide(1) == [devices.Place((), {})]
  assert sorted({core for place in divide(2) for core in place.cores}) == cores
  assert all(len(place.cores) == 1 for place in divide(len(cores) + 1))
