"""What a run tells: metrics.jsonl and TensorBoard for programs, progress for people.

Writing is one step behind: a value is downloaded when the next one arrives, so
the device never waits for a log line.
"""

import contextlib
import math
import resource
import signal
import sys
import tempfile
import threading
import time
from typing import Any
import zlib

from etils import epath
import jax
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from rim_jax import reader, terminal
from rim_jax.errors import RunError, UserError
from rim_jax.runtime import run_folder, status, storage

_MOST_SCALARS = 10_000  # of one line: none waits for room in the queue of a thread that died
BEGAN = time.monotonic()  # near enough to the process's start


class MetricsWriter:
  """Adds scalars to WORKDIR/metrics.jsonl, one strict JSON object a line, and to others that ask.

  On a resume, lines beyond the restored step are dropped first: the step will
  be taken, and told, again.
  """

  def __init__(self, workdir, start_step: int, tensorboard: bool, wandb: str = '', clock=time.time):
    folder = run_folder.RunFolder(workdir)
    self._clock, self._owner = clock, folder.get_owner()

    def keep(raw):
      line = run_folder.parse_line(raw, self._owner)
      return line is not None and line['step'] <= start_step
    self._journal = storage.Journal(folder.metrics, keep)
    self._events = Events(workdir, start_step) if tensorboard else None
    self._wandb = start_wandb(workdir, wandb) if wandb else None

  def write(self, step: int, values: dict) -> None:
    """Writes host values now; a value that is not finite becomes null."""
    values = {k: float(v) for k, v in values.items()}
    self._journal.add(run_folder.format_line(
        step, self._clock(), {k: v if math.isfinite(v) else None for k, v in values.items()},
        self._owner))
    if self._events:
      self._events.add(step, values)
    if self._wandb:
      self._wandb.log(values, step=step)

  def flush(self) -> None:
    """What was written is there, also in a bucket."""
    self._journal.flush()
    if self._events:
      self._events.flush()

  def close(self) -> None:
    self._journal.close()
    if self._events:
      self._events.close()
    if self._wandb:
      self._wandb.finish()


def start_wandb(workdir, project: str):
  """The Weights & Biases run of a WORKDIR, the same one after a restart.

  Its own settings are its environment variables (WANDB_MODE=offline, WANDB_ENTITY, ...).

  Raises: UserError where the package is not installed, or refuses, e.g. without a login.
  """
  try:
    import wandb
  except ImportError:
    raise UserError(f"log.wandb='{project}' needs a package: pip install -e '.[wandb]'") from None
  workdir = storage.get_absolute(workdir)
  text = reader.read_text(workdir / 'config.json', 'restore it from a copy')
  try:
    return wandb.init(
        project=project, id=f'{zlib.crc32(f"{workdir} {text}".encode()):08x}', resume='allow',
        name=workdir.name, group=workdir.parent.name, config=reader.parse_json(text)['config'],
        dir=tempfile.mkdtemp() if storage.is_bucket(workdir) else str(workdir))
  except wandb.errors.UsageError as e:  # pyright: ignore[reportAttributeAccessIssue]
    raise UserError(f"log.wandb='{project}': W&B says: {' '.join(str(e).split())}; without an "
                    'account run wandb login, or set WANDB_MODE=offline') from None


class Events:
  """The scalars as WORKDIR/tensorboard; for a bucket written here first, and copied at a flush."""

  def __init__(self, workdir, start_step: int):
    import tensorboardX  # not needed by every mode
    self._target = epath.Path(workdir) / 'tensorboard'
    self._scratch = tempfile.TemporaryDirectory() if storage.is_bucket(workdir) else None
    self._writer = tensorboardX.SummaryWriter(
        self._scratch.name if self._scratch else str(self._target), purge_step=start_step + 1,
        max_queue=_MOST_SCALARS)

  def add(self, step: int, values: dict) -> None:
    self._check()
    for key, value in values.items():
      self._writer.add_scalar(key, value, step)

  def flush(self) -> None:
    self._check()
    self._writer.flush()
    if self._scratch:
      storage.copy(self._scratch.name, self._target)

  def _is_writing(self) -> bool:
    """Whether the thread that writes lives: a write that fails ends it, and nobody is told."""
    files: Any = self._writer.file_writer
    return files.event_writer._worker.is_alive()

  def _check(self):
    if not self._is_writing():  # it would wait for ever for room in the queue of that thread
      raise RunError(f'{self._target}: a write of TensorBoard has failed; make room there, or set '
                     '--config.log.tensorboard=False, and the same command goes on')

  def close(self) -> None:
    if not self._is_writing():
      return
    self._writer.close()
    if self._scratch:
      storage.copy(self._scratch.name, self._target)
      self._scratch.cleanup()


class NoWriter:
  """In place of a MetricsWriter in every process but the first."""

  def write(self, *unused) -> None:
    pass
  flush = close = write


def list_by_block(split: str, name: str, sums: dict) -> dict:
  """'<split>/<name>_block_<k>' of `training.step.compute_loss`'s sums, for blocks that are read."""
  return {f'{split}/{name}_block_{k}': sums[f'block_{name}'][k] / sums['block_count'][k]
          for k in np.flatnonzero(sums['block_count'])}


class Meter:
  """Turns device metrics of single steps into scalars and rates, one log step behind."""

  def __init__(self, start_step: int, clock=time.perf_counter):
    self._clock = clock
    self._last = (start_step, clock())
    self._pending = None

  def push(self, step: int, metrics: dict, more: dict):
    """Takes what is told of completed step `step`; returns (step, scalars) of the push before.

    Args:
      metrics: of the device; `more` are scalars of the host already.
    """
    done = self.flush()
    now = self._clock()
    self._pending = (step, metrics, more, step - self._last[0], now - self._last[1])
    self._last = (step, now)
    return done

  def flush(self):
    """(step, scalars) of the pending push, or None."""
    if self._pending is None:
      return None
    step, metrics, more, num_steps, secs = self._pending
    self._pending = None
    values = jax.device_get(metrics)
    rate = num_steps / max(secs, 1e-9)
    scalars = {f'train/{k}': values[k] for k in ('loss', 'grad_norm', 'learning_rate', 'norm')}
    scalars |= {f'train/added_{name}': value for name, value in values['added'].items()}
    for name in ('nll', 'weight'):
      scalars |= list_by_block('train', name, values)
    scalars |= {'perf/steps_per_sec': rate,
                'perf/examples_per_sec': rate * values['num_examples'],
                'perf/tokens_per_sec': rate * values['num_tokens']}
    return step, scalars | more


class Machine:
  """What a process has compiled so far and how much memory it holds, for each log line.

  Units: seconds, MiB (2**20 bytes). `memory/device_*` of its first device, where a device tells.
  """

  def __init__(self):
    self._compiled = [0, 0.0]
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, secs: float, **unused) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      self._compiled[0] += 1
      self._compiled[1] += secs

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def read(self) -> dict:
    stats = jax.local_devices()[0].memory_stats() or {}
    device = {f'memory/device_{name}_mib': stats[key] / 2**20 for name, key in (
        ('now', 'bytes_in_use'), ('peak', 'peak_bytes_in_use')) if key in stats}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return {'compile/num_programs': self._compiled[0], 'compile/secs': self._compiled[1],
            'memory/host_peak_mib': peak / (2**20 if sys.platform == 'darwin' else 2**10), **device}


class Goodput:
  """Where a stage's wall time goes: seconds by what it was spent on.

  Args:
    began: when the stage did; the first one begins with the process.
  """

  def __init__(self, began: float, clock=time.monotonic):
    self._clock = clock
    self._began = began
    self._spent = {'start': clock() - self._began}

  @contextlib.contextmanager
  def measure(self, name: str):
    """Counts the time inside; inner measures count for themselves alone."""
    began, inner = self._clock(), sum(self._spent.values())
    try:
      yield
    finally:
      spent = self._clock() - began - (sum(self._spent.values()) - inner)
      self._spent[name] = self._spent.get(name, 0.0) + spent

  def summarize(self) -> dict:
    """Seconds of each part, and two shares.

    {'goodput/<name>_secs': ..., 'goodput/step_frac': of what is in no other part,
    'goodput/data_frac': of waiting for data, in that time and this}.
    """
    total = self._clock() - self._began
    steps = total - sum(self._spent.values())
    parts, waited = {**self._spent, 'step': steps}, self._spent.get('data', 0.0)
    return {**{f'goodput/{k}_secs': v for k, v in parts.items()},
            'goodput/step_frac': steps / max(total, 1e-9),
            'goodput/data_frac': waited / max(waited + steps, 1e-9)}


class Profiler:
  """Writes WORKDIR/profile (TensorBoard, Perfetto) for some steps: from one on, and on SIGUSR1.

  As a context manager around the loop; `step` is called after each.
  """

  def __init__(self, workdir, at_step: int, num_steps: int, say=print):
    self._folder = epath.Path(workdir) / 'profile'
    self._scratch = tempfile.TemporaryDirectory() if storage.is_bucket(workdir) else None
    self._at_step, self._num_steps, self._say = at_step, num_steps, say
    self._asked, self._until, self._before = False, None, None

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGUSR1, self._ask)
    return self

  def __exit__(self, *unused):
    if self._before is not None:
      signal.signal(signal.SIGUSR1, self._before)
    if self._until is not None:
      self._stop()
    if self._scratch:
      self._scratch.cleanup()

  def _stop(self):
    jax.profiler.stop_trace()
    if self._scratch:
      storage.copy(self._scratch.name, self._folder)

  def _ask(self, *unused):
    self._asked = True

  def step(self, step: int, result) -> None:
    """Begins or ends a profile after this step; `result` is waited for at its end."""
    if self._until is None and (self._asked or step == self._at_step):
      self._asked, self._until = False, step + self._num_steps
      jax.profiler.start_trace(self._scratch.name if self._scratch else str(self._folder))
    elif self._until is not None and step >= self._until:
      jax.block_until_ready(result)
      self._stop()
      self._until = None
      self._say(f'{self._folder}: a profile of {self._num_steps} steps up to step {step}')


class Progress:
  """A progress bar on a terminal; elsewhere a plain line at the first step, then now and then.

  Lines are `every_secs` apart at least. A loop whose steps are slow asks `is_due` after each, so
  that none is silent for longer than SILENT_SECS, or than one step takes.
  """
  SILENT_SECS = 30.0

  def __init__(self, title: str, total: int, start: int = 0, console=None, every_secs: float = 10.0,
               clock=time.monotonic):
    self._console = console or rich_console.Console()
    self._title, self._total, self._start = terminal.show(title), total, start
    self._clock, self._every_secs = clock, every_secs
    self._began = self._told = clock()
    self._shown = None  # the last step that was told
    self._bar = None
    if self._console.is_terminal:
      self._bar = rich_progress.Progress(
          rich_progress.TextColumn('{task.description}', markup=False), rich_progress.BarColumn(),
          rich_progress.MofNCompleteColumn(),
          rich_progress.TextColumn('{task.fields[note]}', markup=False),
          rich_progress.TimeRemainingColumn(), console=self._console)
      self._task = self._bar.add_task(self._title, total=total, completed=start, note='')
      self._bar.start()

  def restart(self) -> None:
    """Steps begin now: what came before says nothing of how long they take."""
    self._began = self._clock()

  def is_due(self, done: int) -> bool:
    """Whether this step should be told, though it is none of those that are written down."""
    return self._is_first(done) or self._clock() - self._told >= self.SILENT_SECS

  def _is_first(self, done: int) -> bool:
    """The first line of all, or of a step."""
    return self._shown is None or self._shown == self._start < done

  def update(self, done: int, note: str) -> None:
    now = self._clock()
    if self._bar:
      self._bar.update(self._task, completed=done, note=note)
    elif now - self._told < self._every_secs and done < self._total and not self._is_first(done):
      return
    self._told, self._shown = now, done
    if self._bar:
      return
    line = f'{self._title} {done}/{self._total}  {note}'
    if done > self._start:
      left = (now - self._began) / (done - self._start) * (self._total - done)
      status.tell(stage=self._title, left_secs=left)
      line += f'  {status.format_secs(left)} left'
    self._console.print(line, soft_wrap=True, highlight=False, markup=False)

  def close(self) -> None:
    if self._bar:
      self._bar.stop()
