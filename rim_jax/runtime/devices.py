"""What each of several processes on one machine gets of it: cores, GPUs, TPU chips.

Runs of a sweep are given their part; processes of one run, which a launcher started, find theirs.
By what a process reads as it starts; nothing here touches a device.
"""

import ctypes
import dataclasses
import os
import re
import signal
import subprocess
import sys

from rim_jax.errors import UserError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_TOOL_SECS = 60  # that nvidia-smi is given: some hang with their driver
_FIRST_PORT = 8476  # that of a run's libtpu; one a run, by its first chip
# How many GPUs a sweep gave this run: fewer than the launcher gave the node.
_GIVEN = 'RIM_JAX_GPUS'
# What says how much of a card's memory JAX takes: the name to set, and others that a user may.
_MEMORY = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION',
           'XLA_PYTHON_CLIENT_PREALLOCATE')
# (chips here, chips of a run) -> the form that they have. Source: jax/_src/test_multiprocess.py,
# whose 4 of 8 are a v6e's. What stands nowhere is not guessed: such a run gets one chip.
_TPU_BOUNDS = {(4, 2): '1,2,1', (8, 4): '2,2,1'}


@dataclasses.dataclass(frozen=True)
class Place:
  """One run's part: cores by number, () for all; and variables beside its driver's own."""
  cores: tuple[int, ...]
  environ: dict


def divide(num_jobs: int, environ=os.environ) -> list[Place]:
  """A place for each of `num_jobs` runs; alone a run has all.

  Raises: UserError for more runs than TPU chips.
  """
  if num_jobs == 1:
    return [Place((), {})]
  cores = sorted(os.sched_getaffinity(0)) if sys.platform == 'linux' else []
  gpus, chips = list_gpus(environ), list_chips(environ)
  return [Place(tuple(share(cores, slot, num_jobs)),
                divide_gpus(gpus, slot, num_jobs, environ) | divide_chips(chips, slot, num_jobs))
          for slot in range(num_jobs)]


def start(command, place: Place, log) -> subprocess.Popen:
  """A command on its part of the machine; its output goes to `log`.

  On Linux it is asked to end (SIGTERM) when this process ends, whatever ends that.
  """
  def prepare():  # in the new process; a run that outlives its driver would hold its folder
    if place.cores:
      os.sched_setaffinity(0, place.cores)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  return subprocess.Popen(
      command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C is the driver's, which asks its runs to end and save
      preexec_fn=prepare if sys.platform == 'linux' else None,
      env=dict(os.environ, **place.environ))


def share(items, slot: int, num_jobs: int):
  """One run's part of what there is; where that is less than a run each, one that others share."""
  return items[slot::num_jobs] or (items and [items[slot % len(items)]])


def list_gpus(environ) -> list[str]:
  """Those that are to be used here, as CUDA_VISIBLE_DEVICES has them, or all.

  Raises: UserError where nvidia-smi does not answer.
  """
  if 'CUDA_VISIBLE_DEVICES' in environ:
    return [gpu for gpu in environ['CUDA_VISIBLE_DEVICES'].split(',') if gpu]
  try:
    return subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'],
                          capture_output=True, text=True, check=True, timeout=_TOOL_SECS
                          ).stdout.split()
  except subprocess.TimeoutExpired:  # as where a driver hangs
    raise UserError(f'nvidia-smi: has not answered for {_TOOL_SECS} s; mend the driver, or name '
                    'the GPUs with CUDA_VISIBLE_DEVICES') from None
  except (OSError, subprocess.SubprocessError):
    return []


def divide_gpus(gpus, slot: int, num_jobs: int, environ) -> dict:
  """The GPUs of one run; with fewer GPUs than runs they are shared, and their memory is."""
  if not gpus:
    return {}
  mine = share(gpus, slot, num_jobs)
  sharers = len(range(slot % len(gpus), num_jobs, len(gpus)))
  # JAX takes three quarters of a card at its start, and refuses two of these names together.
  memory = {} if sharers == 1 or any(name in environ for name in _MEMORY) else {
      _MEMORY[0]: f'{90 // sharers / 100:.2f}'}
  return {'CUDA_VISIBLE_DEVICES': ','.join(mine), _GIVEN: str(len(mine))} | memory


def list_chips(environ) -> list[str]:
  """The TPU chips that are to be used here, as TPU_VISIBLE_CHIPS has them, or all."""
  if 'tpu' not in (environ.get('JAX_PLATFORMS') or 'tpu'):
    return []
  if 'TPU_VISIBLE_CHIPS' in environ:
    return [chip for chip in environ['TPU_VISIBLE_CHIPS'].split(',') if chip]
  from jax._src import hardware_utils  # counts PCI devices; nothing public does without taking them
  return [str(i) for i in range(hardware_utils.num_available_tpu_chips_and_device_id()[0])]


def divide_chips(chips, slot: int, num_jobs: int) -> dict:
  """The TPU chips of one run, next to each other; some may be left over.

  Raises: UserError where there is less than one each: a chip is one process's.
  """
  if not chips:
    return {}
  if num_jobs > len(chips):
    raise UserError(f'--jobs={num_jobs}: there are {len(chips)} TPU chips here, and two runs '
                    f'cannot share one; use at most --jobs={len(chips)}')
  count = max((n for whole, n in _TPU_BOUNDS if whole == len(chips) and n * num_jobs <= whole),
              default=1)
  mine = chips[slot * count:(slot + 1) * count]
  port = str(_FIRST_PORT + int(mine[0]))
  return {'TPU_VISIBLE_CHIPS': ','.join(mine), 'TPU_PROCESS_BOUNDS': '1,1,1',
          'TPU_CHIPS_PER_PROCESS_BOUNDS': _TPU_BOUNDS.get((len(chips), count), '1,1,1'),
          'TPU_PROCESS_ADDRESSES': f'localhost:{port}', 'TPU_PROCESS_PORT': port,
          'CLOUD_TPU_TASK_ID': '0', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}


# ---- One process of a run, and the GPUs of its node ----


def find_local(environ) -> tuple[int, int]:
  """(which of this run's processes on this node it is, how many those are), by its launcher."""
  for number, count in (('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE'),
                        ('MPI_LOCALRANKID', 'MPI_LOCALNRANKS')):
    if number in environ and count in environ:
      return int(environ[number]), int(environ[count])
  if 'SLURM_STEP_ID' not in environ:
    return 0, 1
  # '8(x2),4' is 8, 8 and 4, node by node.
  counts = [int(size) for size, times in re.findall(
      r'(\d+)(?:\(x(\d+)\))?', environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
            for _ in range(int(times or 1))]
  node = int(environ.get('SLURM_NODEID', '0'))
  return int(environ.get('SLURM_LOCALID', '0')), counts[node] if node < len(counts) else 1


def count_given(environ) -> tuple[str, int]:
  """How many GPUs this process is to have: (the variable that says so, count), or ('', 0).

  SLURM's counts may name a kind: '8', 'h100:8', 'gpu:h100:8'.
  """
  if _GIVEN in environ:
    return _GIVEN, int(environ[_GIVEN])
  count = find_local(environ)[1]
  for name, shared_by in (('SLURM_GPUS_PER_TASK', 1), ('SLURM_GPUS_ON_NODE', count)):
    found = re.search(r'(\d+)$', environ.get(name, ''))
    if found:
      return name, int(found[1]) // shared_by
  listed = environ.get('NVIDIA_VISIBLE_DEVICES', '')  # a container's; by number or GPU-...
  if listed and listed[0] in '0123456789GM':
    return 'NVIDIA_VISIBLE_DEVICES', len(listed.split(',')) // count
  return '', 0


def choose_gpus(environ) -> list[int] | None:
  """Which of the GPUs that are visible here this process takes, by place; None without GPUs.

  One process a node takes all. Several take a part each, unless each sees its own alone.
  Raises: UserError where they do not divide the GPUs.
  """
  gpus = list_gpus(environ)
  if not gpus:
    return None
  number, count = find_local(environ)
  name, given = count_given(environ)
  is_own = (name != 'SLURM_GPUS_ON_NODE' and given == len(gpus)) or (
      len(gpus) < count and 'CUDA_VISIBLE_DEVICES' in environ)
  if count == 1 or is_own:
    return list(range(len(gpus)))
  if len(gpus) % count:
    raise UserError(f'{count} processes on this node see {len(gpus)} GPUs, which they do not '
                    f'divide; start one process a node (--ntasks-per-node=1), or one a GPU '
                    f'(--ntasks-per-node={len(gpus)})')
  each = len(gpus) // count
  return list(range(number * each, (number + 1) * each))


def check_seen(platform: str, num_seen: int, environ) -> None:
  """Refuses to run on fewer GPUs than this process was given.

  Args:
    platform: that of the devices that JAX uses here.
  Raises: UserError, with what hides the others.
  """
  asked = environ.get('JAX_PLATFORMS') or 'cuda'
  name, given = count_given(environ)
  num_gpus = num_seen if platform == 'gpu' else 0
  if num_gpus >= given or not re.search('cuda|gpu', asked):
    return
  told = f'this process sees {num_gpus} GPUs, and {name}={environ[name]} gives it {given}'
  if platform != 'gpu':
    raise UserError(f"{told}: JAX has no GPU here; pip install -e '.[cuda]', look at nvidia-smi "
                    '(driver 580 or newer), or set JAX_PLATFORMS=cpu to run without')
  visible = environ.get('CUDA_VISIBLE_DEVICES')
  raise UserError(f'{told}: ' + (
      f'CUDA_VISIBLE_DEVICES={visible} hides the others; unset it, or ask the launcher for '
      f'{num_gpus}' if visible is not None else
      f'nvidia-smi should list {given}; ask for another node, or for {num_gpus} GPUs'))
