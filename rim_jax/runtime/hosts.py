"""Several processes as one program: how they start, what they agree on, how they end.

JAX runs one process a host. They meet at a coordinator, then each runs the same program on
its own devices and rows. Files are written and decisions taken by the leader, process 0, alone.
An exit code says what a supervisor should do; `launch/supervise.py` reads it.
"""

import faulthandler
import itertools
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from rim_jax import errors, reader
from rim_jax.errors import HostError, UserError, check
from rim_jax.runtime import devices, roll_call
from rim_jax.runtime.roll_call import EXIT_STALLED

# JAX ends a process that misses another; the watchdog comes first, because it knows whom.
_HEARTBEAT_SECS, _SHUTDOWN_SECS = 50, 20
_BEAT_SECS, _SILENT_SECS, _WATCH_SECS = 2.0, 40.0, 0.5
SEEN_SECS = 20.0  # until a new file is seen on all machines, where a file system is slow


# ---- Start ----


def count_launched(environ) -> tuple[str, int]:
  """How many processes a launcher says it started: (its variable, count), ('', 1) without one."""
  # The shell of salloc is a step of one task, whose SLURM_NTASKS is that of the allocation.
  slurm = 'SLURM_STEP_NUM_TASKS' if 'SLURM_STEP_NUM_TASKS' in environ else 'SLURM_NTASKS'
  for name in (slurm, 'OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'):
    # sbatch sets SLURM_NTASKS for the batch script too, where nothing was started by srun.
    if environ.get(name, '1') != '1' and (name != 'SLURM_NTASKS' or 'SLURM_STEP_ID' in environ):
      return name, int(environ[name])
  if workers := environ.get('TPU_WORKER_HOSTNAMES', ''):  # of this slice alone
    count = (workers.count(',') + 1) * int(environ.get('MEGASCALE_NUM_SLICES') or 1)
    return ('TPU_WORKER_HOSTNAMES', count) if count > 1 else ('', 1)
  return '', 1


def start(coordinator: str, num_processes: int, process_id: int, automatic: bool,
          timeout_secs: int, environ=os.environ) -> None:
  """Joins the other processes; alone, with nothing given and no launcher in sight.

  Args:
    coordinator: HOST:PORT of process 0, with the two numbers; '' to let JAX find it (TPU VMs,
      GKE, SLURM, Open MPI), where `automatic` or a launcher's variables ask for that.
  Raises: UserError for flags that do not go together; HostError naming who is missing.
  """
  variable, launched = count_launched(environ)
  kwargs: dict[str, Any] = {
      'initialization_timeout': timeout_secs, 'heartbeat_timeout_seconds': _HEARTBEAT_SECS,
      'shutdown_timeout_seconds': _SHUTDOWN_SECS}
  if coordinator:
    check((not 0 <= process_id < num_processes or not coordinator.rpartition(':')[2].isdigit(),
           f'--coordinator={coordinator} --num_processes={num_processes} '
           f'--process_id={process_id}: give HOST:PORT, a number of processes and an id below it'),
          (launched not in (1, num_processes),
           f'--num_processes={num_processes}: but {variable} says that {launched} were started; '
           'make them agree'))
    token = environ.get(roll_call.TOKEN, '')
    roll_call.call_roll(coordinator, num_processes, process_id, timeout_secs, token)
    kwargs |= {'coordinator_address': coordinator, 'num_processes': num_processes,
               'process_id': process_id}
    if host := roll_call.find_bind_host(coordinator, token):  # JAX's own is all addresses
      host, port = f'[{host}]' if ':' in host else host, coordinator.rpartition(':')[2]
      kwargs['coordinator_bind_address'] = f'{host}:{port}'
  elif num_processes or process_id >= 0:
    raise UserError('--num_processes and --process_id need --coordinator=HOST:PORT')
  elif not automatic and launched == 1:
    return
  # JAX would take one GPU a process under SLURM, by the process's number on its node.
  gpus = devices.choose_gpus(environ)
  if gpus is not None and 'JAX_LOCAL_DEVICE_IDS' not in environ:
    kwargs['local_device_ids'] = gpus
  elif coordinator:
    kwargs['cluster_detection_method'] = 'deactivate'
  try:
    jax.distributed.initialize(**kwargs)
  except (RuntimeError, ValueError) as e:
    raise HostError(f'the processes did not find each other ({" ".join(str(e).split())}); name '
                    'the first with --coordinator=HOST:PORT') from e
  if not coordinator and launched not in (1, jax.process_count()):
    raise HostError(f'{variable} says that {launched} processes were started, and '
                    f'{jax.process_count()} have met: they would train apart; give --coordinator, '
                    '--num_processes and --process_id')


def describe_machine(environ=os.environ) -> str:
  """'16 devices (NVIDIA H100 80GB HBM3) on 2 hosts'; all processes must ask.

  Raises: UserError where this process sees fewer GPUs than it was given.
  """
  problem = ''
  try:
    devices.check_seen(jax.local_devices()[0].platform, jax.local_device_count(), environ)
  except UserError as e:
    problem = str(e)
  # All stop together: one that went on would wait for the others.
  if max(_gather(int(bool(problem)))):
    raise UserError(problem or 'another process sees fewer GPUs than it was given; its log says '
                    'what to do')
  kinds = sorted({d.device_kind for d in jax.devices()})
  count, num_hosts = jax.device_count(), count_hosts()
  return (f'{count} device{"s" * (count > 1)} ({", ".join(kinds)}) on {num_hosts} '
          f'host{"s" * (num_hosts > 1)}')


def count_hosts() -> int:
  """On how many machines the processes are; all of them must ask."""
  return len(set(_gather(zlib.crc32(socket.gethostname().encode()))))


def _gather(value: int) -> list[int]:
  return multihost_utils.process_allgather(np.uint32(value)).tolist()


# ---- Agreement ----


def is_leader() -> bool:
  return jax.process_index() == 0


def lead(fn):
  """What fn() gives on process 0, for every process: JSON, or its UserError.

  Raises: fn's OSError on process 0, which ends the others, too: they would wait for it.
  """
  if jax.process_count() == 1:
    return fn()
  told, refused = {}, None
  if is_leader():
    try:
      told = {'value': fn()}
    except UserError as e:
      told = {'error': str(e), 'kind': type(e).__name__}
    except OSError as e:
      told, refused = {'error': f'process 0 cannot go on: {e}', 'kind': HostError.__name__}, e
  told = reader.parse_json(_broadcast(json.dumps(told).encode()))
  if refused:
    raise refused
  if 'error' in told:
    raise getattr(errors, told['kind'])(told['error'])
  return told['value']


def lead_first(fn):
  """fn() of every process, once process 0 is done: it prepares the files that the others find."""
  mine = []
  lead(lambda: mine.append(fn()))
  return together(lambda: mine[0] if mine else fn())


def together(fn) -> Any:
  """fn() of every process, which waits for no other; what is wrong with one of them ends all.

  One that ended alone would leave the others waiting until JAX ends them without a word.
  Raises: fn's UserError or OSError where it was raised, UserError elsewhere.
  """
  value, problem = None, None
  try:
    value = fn()
  except (UserError, OSError) as e:
    problem = e
  failed = [str(i) for i, wrong in enumerate(_gather(int(problem is not None))) if wrong]
  if problem:
    raise problem
  if failed:
    raise UserError(f'process {", ".join(failed)} could not begin; its log says why')
  return value


def check_alike(parts: dict[str, str]) -> None:
  """Checks that several processes have the same; all of them must ask.

  Args:
    parts: what it is called -> what it is.
  Raises: UserError, in all of them, with the parts that are not those of process 0.
  """
  # Names first: other code may have other parts, and then there is nothing to compare them with.
  for names, told in ((['rim_jax'], [' '.join(parts)]), (list(parts), list(parts.values()))):
    first, *others = multihost_utils.process_allgather(
        np.array([zlib.crc32(x.encode()) for x in told], np.uint32))
    for process, other in enumerate(others, 1):
      differ = [name for name, same in zip(names, other == first) if not same]
      if differ:
        raise UserError(f'process {process} has another {", ".join(differ)} than process 0; give '
                        'all processes one command, one version of the code, and the same files')


def _broadcast(data: bytes) -> bytes:
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  same_size = np.frombuffer(data[:size].ljust(size), np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(same_size)).tobytes()


def fetch(x) -> np.ndarray:
  """An array whole, on every host; all processes must ask for the same ones in the same order."""
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def settle(tree) -> None:
  """Waits for arrays where several processes compute on CPUs.

  There, with more than one device a process, collectives of two steps in flight were seen to hang;
  elsewhere steps queue in order.
  """
  if jax.process_count() > 1 and jax.devices()[0].platform == 'cpu':
    jax.block_until_ready(tree)


def find_blind(path, secs: float) -> list[int]:
  """The processes that do not see a file within `secs` seconds; all of them must ask.

  A file system may tell a process an older list of files for a while.
  """
  if jax.process_count() == 1:
    return []
  until = time.monotonic() + secs
  while not path.exists() and time.monotonic() < until:
    time.sleep(0.5)
  return [process for process, seen in enumerate(_gather(int(path.exists()))) if not seen]


def check_shared(folder) -> None:
  """Checks that all processes see one directory: else they would wait for one another at a save.

  Raises: UserError, in all of them.
  """
  if jax.process_count() == 1:
    return
  path = folder / lead(lambda: f'.seen-{secrets.token_hex(8)}')  # that no file system has cached
  if is_leader():
    path.write_text('')
  blind = find_blind(path, SEEN_SECS)
  lead(lambda: path.unlink() and None)
  if blind:
    raise UserError(f'{folder}: process {", ".join(map(str, blind))} of {jax.process_count()} does '
                    'not see what process 0 writes there; name a directory that all machines share')


# ---- End ----


class StopSignal:
  """Whether the run was asked to end (SIGTERM, a platform's preemption notice).

  As a context manager around the loop; `is_set` is asked once a step, and all processes get the
  same answer at the same step. Where a launcher has started the run, by one process or several, a
  notice that comes before the loop or after it (while compiling, evaluating, between stages) is
  kept for the next step taken.
  """
  # Of all loops of this process: JAX agrees on a number that is to come, the next after those that
  # were asked for, and a step's own number begins anew at each stage.
  _count = itertools.count(1)

  def __enter__(self):
    self.was_set = False  # in this loop; nothing keeps such a notice for another one
    self._before = None
    # JAX has a handler of its own from its start on, which tells all processes; also where it was
    # started as one of one.
    self._is_jax_s = jax.distributed.is_initialized()
    if not self._is_jax_s and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, *unused):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, *unused):
    self.was_set = True

  def is_set(self) -> bool:
    if self._is_jax_s:
      self.was_set = multihost_utils.reached_preemption_sync_point(next(self._count))
    return self.was_set


class Watchdog:
  """Ends this process when another is gone, or when none gets on.

  Every process tells the others, through the coordinator, that it lives and at which step it is.
  One that is silent for 40 s is named. Where nobody moves for `stall_secs` (0: never asked), each
  shows where it stands, and names the last. The clock starts at the first beat, after compiling,
  and stands still while this process does (Ctrl-Z, `scontrol suspend`, a lid that is closed): who
  was asleep as well cannot blame the others.

  `end` takes an exit code; it must not return.
  """

  def __init__(self, stall_secs: float, silent_secs: float = _SILENT_SECS, end=os._exit):
    self._stall_secs, self._silent_secs, self._end = stall_secs, silent_secs, end
    self._step, self._moved, self._more_secs, self._own_secs = -1, None, 0.0, 0.0
    self._heard = {}  # process -> (what it said last, when it said something new)
    self._exchanged = time.monotonic()
    self._done = threading.Event()

  def __enter__(self):
    # Asked here: a thread that asks JAX while the interpreter ends starts a new backend, which
    # aborts the process.
    self._process, self._alone = jax.process_index(), jax.process_count() == 1
    self._threads = [threading.Thread(target=fn, daemon=True)
                     for fn in [self._watch] + ([] if self._alone else [self._exchange])]
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, jax.errors.JaxRuntimeError) and not self._alone:
      self._end_with(error)
    self._done.set()
    for thread in self._threads:
      thread.join(2 * _BEAT_SECS)  # not for ever: the coordinator may be gone

  def _end_with(self, error):
    """A collective has failed: mostly because a process has died. Which, its silence will tell."""
    time.sleep(4 * _BEAT_SECS)
    silent = self._find_silent(time.monotonic(), 3 * _BEAT_SECS) or 'nobody is silent'
    traceback.print_exception(error)
    self._report(f'a computation of all processes failed: {silent}')

  def beat(self, step: int, more_secs: float = 0.0) -> None:
    """The program got on: a step, or a part of an evaluation.

    Args:
      more_secs: how much longer than `stall_secs` the next beat may take.
    """
    self._step, self._more_secs, self._moved = step, more_secs, time.monotonic()

  def compare(self, own_secs: float) -> dict:
    """How far apart the processes are in what each does by itself a step: its batch, its start.

    Steps are taken together, so a slow process shows here and not in their time. Others' values
    are those of their last log line.
    """
    self._own_secs = own_secs
    told = {p: float(said.split()[2]) for p, (said, _) in self._heard.items()}
    if len(told) < 2:
      return {}
    return {'hosts/own_secs_min': min(told.values()), 'hosts/own_secs_max': max(told.values()),
            'hosts/slowest': max(told, key=told.__getitem__)}

  def _exchange(self):
    # The store that JAX's own services use has no public name yet.
    from jax._src import distributed
    client: Any = distributed.global_state.client
    me, count = self._process, 0
    while not self._done.wait(_BEAT_SECS):
      count += 1
      try:
        said = f'{count} {self._step} {self._own_secs:.6f}'
        client.key_value_set(f'rim_jax/beat/{me}', said, allow_overwrite=True)
        told = client.key_value_dir_get('rim_jax/beat/')
      except Exception:  # pylint: disable=broad-except  (the silence is noticed by _watch)
        continue
      self._exchanged = now = time.monotonic()
      for key, value in told:
        process = int(key.rpartition('/')[2])
        if self._heard.get(process, ('',))[0] != value:
          self._heard[process] = value, now

  def _forget(self, secs: float) -> None:
    """So many seconds did not pass for this process."""
    self._exchanged += secs
    self._heard = {p: (said, when + secs) for p, (said, when) in self._heard.items()}
    if self._moved is not None:
      self._moved += secs

  def _watch(self):
    before = time.monotonic()
    while not self._done.wait(_WATCH_SECS):
      now = time.monotonic()
      if now - before > 4 * _WATCH_SECS:  # it slept, and so did all of this process
        self._forget(now - before)
      before = now
      problem = '' if self._alone else self._find_silent(now, self._silent_secs)
      if not problem and self._stall_secs and self._moved is not None and (
          now - self._moved > self._stall_secs + self._more_secs):
        problem = self._describe_stall()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
      if problem and not self._done.is_set():
        self._report(problem)
        return

  def _report(self, problem):
    print(f'error: process {self._process}: {problem}', file=sys.stderr, flush=True)
    self._end(EXIT_STALLED)

  def _find_silent(self, now, secs):
    if now - self._exchanged > secs:
      return f'process 0 has not answered for {now - self._exchanged:.0f} s; start all again'
    silent = [f'process {p} has not been heard of for {now - when:.0f} s (it was at step '
              f'{said.split()[1]})'
              for p, (said, when) in sorted(self._heard.items()) if now - when > secs]
    return '; '.join([*silent, 'start all again']) if silent else ''

  def _describe_stall(self):
    steps = {p: int(said.split()[1]) for p, (said, _) in self._heard.items()}
    last = min(steps, key=steps.__getitem__) if steps else 0
    others = f'; process {last} is behind all, at step {steps[last]}' if len(steps) > 1 else ''
    limit = self._stall_secs + self._more_secs
    return (f'no step for {limit:g} s after step {self._step}{others}; the stacks above '
            'say where it hangs; run it again from the last checkpoint')
