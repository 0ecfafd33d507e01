"""The command line: `python -m rim_jax.main --config=configs/rim.py [--mode=...]`.

  --config=FILE[:PRESET]   a recipe; --config.KEY=VALUE overrides one of its keys
  --workdir=DIR            where the run lives; default runs/<config>[-<preset>]. A run knows its
                           configuration: eval, controls, report, compare, export and generate need
                           no --config, and take --config.KEY=VALUE for keys that only say where
                           and how they work (eval, export, controls, mesh, ...)
  --mode=train             train (or go on), evaluate, and show the result
  --mode=data              show what would be trained on: splits, sizes, laid-out examples as text
                           and ids
  --mode=eval              evaluate a checkpoint; any K with --config.eval.num_blocks=K
  --mode=controls          does the memory do the work? (config.controls); WORKDIR/controls.json
  --mode=report            write WORKDIR/report.html anew, from the files that are there
  --mode=compare           does it differ from the run in --with=DIR, by McNemar's exact test on the
                           questions of the set that config.eval names? WORKDIR/compare.json
  --mode=export            write the run as a Hugging Face model (config.export);
                           --verify compares it with transformers before it appears
  --mode=generate          answer --question=TEXT, or each line of standard input (--json)
  --mode=sweep             every run of a recipe of many (configs/compare.py), --jobs at a time, and
                           what they say together; again: what is left, --retry_failed.
                           --controls: when they are done, every run with blocks is asked what it
                           does, as by --mode=controls, beside direct and pause runs that match it.
                           --halve_at=0.25,0.5 drops settings (all seeds of one together) that
                           are worse on valid than others after these shares of their budget;
                           --halve_keep=0.5 of them go on.
                           --dry_run shows points, commands and cost, in hours on --hardware=h100
                           (or v5e:2x4, h100:8) at --utilization=0.4 of its peak.
                           --conclude runs nothing, and concludes from what is there.
                           --point=NAME, or its number from 0, is one of them, alone (--mode=train);
                           with --sweep_dir=DIR in place of --workdir it counts among DIR's points
  --mode=plan              what a step takes on --topology=KIND:SIZE (v5e:4x4, h100:8, h100:2x8),
                           compiled without that machine (--num_slices of a TPU); WORKDIR/plan.json;
                           --fastest looks for the fastest setting: WORKDIR/fastest.md;
                           --latency compiles an answer of every method: WORKDIR/latency.md
  --debug                  show the traceback of an error

Several processes, one a host, run as one: they find each other on TPU VMs, GKE, SLURM and under
mpirun (--distributed where nothing tells), or are told where the first one is:
  --coordinator=HOST:PORT --num_processes=N --process_id=I
  --start_secs=300         how long they wait for each other

Exit codes: 0 done; 2 a user's mistake, one line a problem; 1 the run had to stop, one line; 75 it
was asked to end (SIGTERM) and has saved; 76 another process is gone, or none gets on; 130 Ctrl-C.
After 1, 75, 76 and 130 the same command goes on from the last checkpoint.
"""

import contextlib
import errno
import logging
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import traceback

from etils import epath
from rich import console as rich_console

from rim_jax import command_line, terminal
from rim_jax import config as config_lib
from rim_jax.command_line import Command, find_flag
from rim_jax.config import grid as grid_lib
from rim_jax.errors import NoStart, RunError, Stopped, UserError
from rim_jax.runtime import status

# A plan touches no TPU: neither its lock nor the questions that libtpu asks of a cloud are needed.
PLAN_ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3'}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FAILED = (errno.EIO, errno.ESTALE)
# What the loader of libraries and Python's threads say where memory lacks, in words alone.
_NO_MEMORY = ('failed to map segment from shared object', "can't start new thread")
# What the system around a run refuses, and what a person can do: no repetition mends these.
_REFUSED = {
    errno.EISDIR: 'a directory stands where a file is needed: move it away',
    errno.ENOTDIR: 'a file stands where a directory is needed: move it away',
    errno.EEXIST: 'something else stands there: move it away',
    errno.ENOTEMPTY: 'something else stands there: move it away',
    errno.EACCES: 'allow it, or name another place', errno.EPERM: 'allow it, or name another place',
    errno.EROFS: 'copy what is there to a place that can be written, and name that',
    errno.ENAMETOOLONG: 'name a shorter one',
    errno.ELOOP: 'mend the link', errno.ENOENT: 'a link that leads nowhere, or removed meanwhile',
    errno.EFBIG: 'raise the limit of ulimit -f', errno.EMFILE: 'raise the limit of ulimit -n',
    errno.ENFILE: 'end other programs that hold many files open'}


def _run(argv, console) -> None:
  command = command_line.parse(argv)
  values, config, workdir = command.values, command.config, command.workdir
  if values.help:
    console.print(__doc__, markup=False)
    return

  def say(line):
    console.print(terminal.show(line), soft_wrap=True, markup=False, highlight=False)

  if values.mode == 'sweep':
    _run_sweep(command, [a for a in argv[1:] if a.lstrip('-').startswith('config.')], say, console)
    return
  if values.mode == 'compare':  # of files alone: no accelerator is touched
    from rim_jax.report import comparisons
    comparisons.compare(config, workdir, values['with'].value, say, console)
    return
  if values.mode == 'plan':  # before JAX is loaded, which reads them once
    os.environ.update(PLAN_ENVIRONMENT)
  elif values.mode in ('data', 'report'):  # a training run may hold the accelerator
    os.environ['JAX_PLATFORMS'] = 'cpu'
  from rim_jax.runtime import hosts  # late: a wrong flag is told before JAX is loaded
  hosts.start(values.coordinator, values.num_processes, values.process_id, values.distributed,
              values.start_secs)
  if not hosts.is_leader():
    console.quiet = True  # one process speaks for all
  from rim_jax import modes
  modes.keep_compiled(config)
  if values.mode == 'train':
    say(hosts.describe_machine())
    with _keep_point(command, say):
      try:
        modes.train(config, workdir, say, console)
      except NoStart as e:
        raise UserError(command_line.describe_start(command, argv, e)) from None
    return
  {'plan': lambda: modes.plan(config, workdir, values, say, console),
   'data': lambda: modes.show_data(config, say, console),
   'eval': lambda: modes.evaluate(config, workdir, say, console),
   'controls': lambda: modes.controls(config, workdir, say, console),
   'report': lambda: modes.write_report(config, workdir, say),
   'export': lambda: modes.export(config, workdir, values.verify, say),
   'generate': lambda: modes.generate(config, workdir, values.question, values.json, say, console),
   }[values.mode]()


def _run_sweep(command: Command, overrides: list[str], say, console) -> None:
  """Starts commands and computes nothing."""
  values = command.values
  if values.dry_run:  # shapes alone: no accelerator is touched
    os.environ['JAX_PLATFORMS'] = 'cpu'
  from rim_jax.sweep import driver, halving  # late: they load JAX
  sweep = driver.Sweep(
      command.config, epath.Path(command.workdir), command.source, overrides, values.jobs,
      values.retry_failed, halving.parse_halving(values.halve_at, values.halve_keep),
      values.controls, values.conclude)
  if not values.dry_run:
    driver.drive(sweep, say, console)
    return
  driver.show_dry(sweep, values.hardware, values.utilization, say)
  if values.controls:
    say('--controls: then the command of every run with blocks again, with --mode=controls')


def _keep_point(command: Command, say):
  """Around the run of a point that lives in its sweep's directory."""
  values, source = command.values, command.source
  if not values.sweep_dir:
    return contextlib.nullcontext()
  from rim_jax.sweep import driver
  (point,) = grid_lib.load_points(values.config, source, values.point)
  return driver.keep_point(point, grid_lib.list_names(values.config, source), values.sweep_dir,
                           say)


def cli(argv, console=None) -> int:
  """Runs a command line; returns its exit code. Errors are one line each on standard error."""
  console = console or rich_console.Console()
  console.push_render_hook(terminal.Visible())
  debug = any(a in ('--debug', '--debug=true', '--debug=True', '--debug=1') for a in argv)
  try:
    _run(list(argv), console)
  except RunError as e:
    status.tell(ended=type(e).__name__, error=str(e))
    if debug:
      raise
    name, text = 'stopped' if isinstance(e, Stopped) else 'error', str(e)
    for word in argv:  # a path of several lines is one all the same
      text = text.replace(word.partition('=')[2], terminal.show(word.partition('=')[2])) if (
          '\n' in word) else text
    for line in text.split('\n'):
      print(f'{name}: {terminal.show(line)}', file=sys.stderr)
    return e.exit_code
  except KeyboardInterrupt:
    print('stopped; run the same command again to go on from the last checkpoint',
          file=sys.stderr)
    return 130
  except Exception as e:  # pylint: disable=broad-except
    told, code = _describe_refused(e, argv)
    if debug or not told:
      raise
    print(f'error: {terminal.show(told)}', file=sys.stderr)
    return code
  return 0


def _list_causes(error) -> list[BaseException]:
  """An error, and all that it comes from."""
  causes = []
  while error is not None:
    causes.append(error)
    error = error.__cause__ or error.__context__
  return causes


def _is_number(error, number: int) -> bool:
  """Whether an error is the system's of a number; Orbax and the loader of libraries use words."""
  told = getattr(error, 'errno', None)
  return told == number or (told is None and os.strerror(number) in str(error))


def _list_full(error) -> list[BaseException]:
  """What a full disk, or a quota, has raised on the way to an error."""
  return [e for e in _list_causes(error) if any(_is_number(e, number) for number in _FULL)]


def _describe_refused(error, argv) -> tuple[str, int]:
  """What the system refused, and the fix, in one line, and its exit code; '' where it was not the
  system."""
  if _list_full(error):
    where = ', '.join(_find_full(error, argv)) or 'none that is known'
    return (f'the disk is full ({where}); the checkpoints that were finished are whole: make room, '
            'and the same command goes on from the last one'), 1
  if any(isinstance(e, MemoryError) or _is_number(e, errno.ENOMEM)
         or any(words in str(e) for words in _NO_MEMORY) for e in _list_causes(error)):
    return ('there is no memory left for this process; free some, or raise the limit of ulimit -v '
            'or -u, and the same command goes on from the last checkpoint'), 1
  for cause in _list_causes(error):
    if isinstance(cause, OSError) and type(cause).__module__.startswith('aiohttp.'):  # a bucket's
      return (f"a bucket of this run: {cause}; look at the network and at the bucket's address, "
              'and the same command goes on from the last checkpoint'), 1
    if isinstance(cause, OSError) and cause.errno in _FAILED:
      return (f'{cause.filename or "a file of this run"}: {cause.strerror}; look at the file '
              'system that holds it, and the same command goes on from the last checkpoint'), 1
    for number, fix in _REFUSED.items():
      named = getattr(cause, 'filename2', None) or getattr(cause, 'filename', None)
      if _is_number(cause, number) and (named or number in (errno.EMFILE, errno.EFBIG)):
        return f'{named or "a file of this run"}: {os.strerror(number)}; {fix}', 2
  return '', 0


def _hear_dropped(unraisable) -> None:
  """What is raised where nothing can catch it, so that Python only prints it.

  Ctrl-C that met a callback, e.g. of garbage collection, is not lost there: it comes again. By
  another thread and a moment later: here, in a callback still, it would meet the same end.
  Writes of a save that has failed, which is told, find its loop closed: no more is said of them.
  """
  if unraisable.exc_type is KeyboardInterrupt:
    again = threading.Timer(1.0, signal.pthread_kill, (
        threading.main_thread().ident, signal.SIGINT))
    again.daemon = True
    again.start()
  elif str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _tell_no_profile(*unused) -> None:
  """SIGUSR1 asks for a profile of updates; where there are none, it would end the process."""
  with contextlib.suppress(OSError):  # a closed stream; print() may be under way, and not let it in
    os.write(2, b'SIGUSR1: no updates are under way, so no profile is written\n')


def _find_full(error, argv) -> list[str]:
  """What could not be written, as an error tells it; else the places that have no room left."""
  for cause in _list_full(error):
    named = getattr(cause, 'filename', None) or re.search(r'(?<=")/[^"]+(?=")', str(cause))
    if named:
      return [named[0] if isinstance(named, re.Match) else str(named)]
  cache = find_flag(argv, 'config.data.cache_dir') or config_lib.DataConfig().cache_dir
  full = []
  for place in dict.fromkeys((find_flag(argv, 'workdir') or '.', cache, tempfile.gettempdir())):
    path = pathlib.Path(os.path.expanduser(place)).absolute()
    free = os.statvfs(next(p for p in (path, *path.parents) if p.exists()))
    if free.f_bavail * free.f_frsize < 2**20:
      full.append(place)
  return full


def main() -> None:
  terminal.open_streams()
  sys.unraisablehook = _hear_dropped
  signal.signal(signal.SIGUSR1, _tell_no_profile)  # the loop has its own
  # Orbax logs a traceback from each of its threads, and gcsfs one where it gives up; what they tell
  # is told once, in a line.
  for name in ('absl', 'gcsfs'):
    logging.getLogger(name).addFilter(
        lambda record: not (
            record.exc_info and _describe_refused(record.exc_info[1], sys.argv)[0]))
  try:
    code = cli(sys.argv)
  except Exception:  # pylint: disable=broad-except  (a failure of ours, which is shown whole)
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  jax = sys.modules.get('jax')
  if code == 1 or (code == 2 and not (jax and jax.distributed.is_initialized())):
    # At once: half-done saves would complain or be waited for, and other processes wait for a
    # farewell that a failed one cannot give.
    os._exit(code)
  sys.exit(code)


if __name__ == '__main__':
  main()
