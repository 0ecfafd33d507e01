"""What each of several runs at a time gets of one machine: cores, GPUs, TPU chips.

By what a process reads as it starts; nothing here touches a device.
"""

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys

from rim_jax.errors import UserError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_FIRST_PORT = 8476  # that of a run's libtpu; one a run, by its first chip
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
                divide_gpus(gpus, slot, num_jobs) | divide_chips(chips, slot, num_jobs))
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
  """Those that are to be used here, as CUDA_VISIBLE_DEVICES has them, or all."""
  if 'CUDA_VISIBLE_DEVICES' in environ:
    return [gpu for gpu in environ['CUDA_VISIBLE_DEVICES'].split(',') if gpu]
  try:
    return subprocess.run(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'],
                          capture_output=True, text=True, check=True).stdout.split()
  except (OSError, subprocess.SubprocessError):
    return []


def divide_gpus(gpus, slot: int, num_jobs: int) -> dict:
  """The GPUs of one run; with fewer GPUs than runs they are shared."""
  return {'CUDA_VISIBLE_DEVICES': ','.join(share(gpus, slot, num_jobs))} if gpus else {}


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
