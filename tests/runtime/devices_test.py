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


def test_runs_that_share_a_gpu_share_its_memory():
  """JAX takes three quarters of a card for the first that comes, unless it is told otherwise."""
  def find_shares(gpus, jobs, **environ):
    return [place.environ.get('XLA_CLIENT_MEM_FRACTION')
            for place in divide(jobs, CUDA_VISIBLE_DEVICES=gpus, **environ)]
  assert find_shares('4', 4) == ['0.22'] * 4
  assert find_shares('4,5', 3) == ['0.45', None, '0.45']  # one has a card of its own
  assert find_shares('0,1,2,3', 2) == find_shares('', 2) == [None, None]
  for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION',
               'XLA_PYTHON_CLIENT_PREALLOCATE'):  # the user's own words stay
    assert find_shares('4', 2, **{name: '0.3'}) == [None, None]


def test_all_gpus_are_found_where_none_are_named(tmp_path, monkeypatch):
  tool = tmp_path / 'nvidia-smi'
  tool.write_text('#!/bin/sh\necho 0\necho 1\n')
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  assert devices.list_gpus({}) == ['0', '1']
  assert devices.list_gpus({'CUDA_VISIBLE_DEVICES': ''}) == []
  tool.write_text('#!/bin/sh\nexit 9\n')  # there is a driver, and no GPU
  assert devices.list_gpus({}) == []
  tool.write_text('#!/bin/sh\nexec sleep 60\n')
  monkeypatch.setattr(devices, '_TOOL_SECS', 0.2)
  with pytest.raises(UserError, match='nvidia-smi: has not answered for 0.2 s; .* CUDA_VISIBLE'):
    devices.list_gpus({})


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


def find_gpus(visible, **environ):
  return devices.choose_gpus({'CUDA_VISIBLE_DEVICES': visible, **environ})


EIGHT = '0,1,2,3,4,5,6,7'


def make_slurm(tasks, local, **more):
  return {'SLURM_STEP_ID': '0', 'SLURM_STEP_TASKS_PER_NODE': tasks, 'SLURM_LOCALID': str(local),
          **more}


def make_mpi(count, local):
  return {'OMPI_COMM_WORLD_LOCAL_SIZE': str(count), 'OMPI_COMM_WORLD_LOCAL_RANK': str(local)}


def test_one_process_a_node_takes_all_of_its_gpus():
  everything = list(range(8))
  assert find_gpus(EIGHT, **make_slurm('1(x2)', 0, SLURM_GPUS_ON_NODE='8')) == everything
  assert find_gpus(EIGHT, **make_mpi(1, 0)) == everything
  assert find_gpus(EIGHT, NVIDIA_VISIBLE_DEVICES='all') == everything  # Kubernetes: a pod a node
  assert find_gpus('') is None
  # The batch script itself is no task, whatever sbatch says of those to come.
  assert find_gpus(EIGHT, SLURM_TASKS_PER_NODE='8', SLURM_LOCALID='0') == everything


def test_several_processes_of_a_node_share_its_gpus_or_have_their_own():
  for local in (0, 3):
    shared = make_slurm('8(x2)', local, SLURM_GPUS_ON_NODE='8')
    assert find_gpus(EIGHT, **shared) == [local]
    for variable in ('1', 'h100:1', 'gpu:h100:1'):  # --gpus-per-task=1: the only one is number 0
      own = make_slurm('8(x2)', local, SLURM_GPUS_PER_TASK=variable, SLURM_GPUS_ON_NODE='8')
      assert find_gpus(str(local), **own) == [0]
      assert find_gpus(EIGHT, **own) == [local]  # asked for, and not confined
    assert find_gpus(str(local), **make_mpi(8, local)) == [0]  # a wrapper set the variable
  assert find_gpus(EIGHT, **make_mpi(2, 1)) == [4, 5, 6, 7]
  uneven = make_slurm('4,2', 1, SLURM_NODEID='1', SLURM_GPUS_ON_NODE='8')
  assert find_gpus(EIGHT, **uneven) == [4, 5, 6, 7]
  with pytest.raises(UserError, match='3 processes on this node see 8 GPUs.*--ntasks-per-node=8'):
    find_gpus(EIGHT, **make_mpi(3, 0))


@pytest.mark.parametrize('platform, seen, environ, error', [
    ('gpu', 1, make_slurm('1', 0, SLURM_GPUS_ON_NODE='8', CUDA_VISIBLE_DEVICES='0'),
     'sees 1 GPUs, and SLURM_GPUS_ON_NODE=8 gives it 8: CUDA_VISIBLE_DEVICES=0 hides the others'),
    ('gpu', 7, make_slurm('1', 0, SLURM_GPUS_ON_NODE='h100:8'), 'nvidia-smi should list 8'),
    ('cpu', 1, make_slurm('8', 2, SLURM_GPUS_PER_TASK='1'), r"pip install -e '.\[cuda\]'"),
    ('gpu', 1, {'NVIDIA_VISIBLE_DEVICES': 'GPU-a,GPU-b'}, 'DEVICES=GPU-a,GPU-b gives it 2'),
    ('gpu', 8, make_slurm('1', 0, SLURM_GPUS_ON_NODE='8'), None),
    ('gpu', 1, make_slurm('8', 2, SLURM_GPUS_ON_NODE='8'), None),
    ('cpu', 8, make_slurm('1', 0, SLURM_GPUS_ON_NODE='8', JAX_PLATFORMS='cpu'), None),
    ('cpu', 1, {'NVIDIA_VISIBLE_DEVICES': 'void'}, None),
    ('cpu', 1, {}, None), ('tpu', 4, {}, None)])
def test_fewer_gpus_than_were_given_are_refused(platform, seen, environ, error):
  if error is None:
    return devices.check_seen(platform, seen, environ)
  with pytest.raises(UserError, match=error):
    devices.check_seen(platform, seen, environ)


def test_a_run_of_a_sweep_was_given_what_the_sweep_gave_it():
  on_node = {'SLURM_GPUS_ON_NODE': '4', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'}
  for place in divide(2, **on_node):
    environ = on_node | place.environ
    assert devices.choose_gpus(environ) == [0, 1]
    devices.check_seen('gpu', 2, environ)
    with pytest.raises(UserError, match='gives it 2'):
      devices.check_seen('gpu', 1, environ)
