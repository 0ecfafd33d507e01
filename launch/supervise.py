"""Runs a training command again until it is done: one on every host.

  python launch/supervise.py -- python -m rim_jax.main --config=... --workdir=DIR [flags]

The run's exit code says what to do (rim_jax/main.py lists them). 0: done. 2: a user's mistake,
which no repetition mends. 75: it was asked to end and has saved; this ends too, and the platform
starts both again where it gives a machine back. A run that is asked to end and has not ended after
--grace_secs (90, or RIM_JAX_GRACE_SECS) is killed, so that this ends with 75 before the platform
kills both: it may be in its last evaluation, or compiling, where nothing new is to be saved. Raise
that where a save takes longer and the platform gives longer notice. Anything else (1, 76, a crash,
a kill): again, after a pause that doubles from 2 to 60 seconds, from the last checkpoint. It gives
up once the run has failed three times in a row without getting a step further.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

from etils import epath

from rim_jax import command_line, terminal
from rim_jax.errors import UserError
from rim_jax.runtime import run_folder

DONE, MISTAKE, STOPPED = 0, 2, 75
_PAUSES = (2, 4, 8, 16, 32, 60)


def find_step(workdir) -> int:
  """How far a run has come: the last step that its metrics tell, over all stages; -1 at first."""
  workdir, folders, told = epath.Path(workdir), [], []
  with contextlib.suppress(OSError):  # a bucket that is out of reach, which the run itself tells
    folders = [workdir, *(p for p in workdir.iterdir() if p.is_dir())] if workdir.is_dir() else []
  for folder in sorted(folders, key=str):
    with contextlib.suppress(UserError, OSError):  # which the run itself tells
      told += [lines] if (lines := run_folder.RunFolder(folder).load_metrics()) else []
  return (len(told) - 1) * 10**9 + max(line['step'] for line in told[-1]) if told else -1


def run_again(attempt, find_progress, max_failures=3, sleep=time.sleep,
              say=lambda line: print(line, file=sys.stderr, flush=True)) -> int:
  """Calls attempt() until its exit code says that no other is of use; returns the last code.

  Args:
    find_progress: a number that rises as the run gets on.
    max_failures: in a row, without progress, after which it gives up.
  """
  failures, best = 0, find_progress()
  while True:
    code = attempt()
    if code in (DONE, MISTAKE, STOPPED):
      return code
    now = find_progress()
    failures = failures + 1 if now <= best else 1
    best = max(best, now)
    if failures >= max_failures:
      say(f'supervise: gave up: {failures} times in a row it ended with {code} and got no step '
          'further; its own last lines say why')
      return code
    pause = _PAUSES[min(failures, len(_PAUSES)) - 1]
    say(f'supervise: it ended with {code}; again in {pause} s')
    sleep(pause)


def refuse(problem: str) -> NoReturn:
  """Ends in one line, as any mistake of a user."""
  print(f'error: {problem}', file=sys.stderr)
  sys.exit(MISTAKE)


def split_command(argv):
  """Own arguments and those behind `--`."""
  at = argv.index('--') if '--' in argv else len(argv)
  own, command = argv[:at], argv[at + 1:]
  if not command and not {'-h', '--help'} & set(own):
    refuse('there is no command; write it behind --, e.g. -- python -m rim_jax.main --config=...')
  return own, command


def check_program(command) -> None:
  """Refuses a command whose program is not here."""
  if not shutil.which(command[0]):
    refuse(f'{terminal.quote(command[0])}: there is no such program; the command begins behind --')


def ignore_profile() -> None:
  """SIGUSR1 asks a run for a profile, and may be sent to all processes of a job (scancel).

  A run inherits this until it listens.
  """
  signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def main(argv):
  own, command = split_command(argv)
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--max_failures', type=int, default=3)
  parser.add_argument('--grace_secs', type=float,
                      default=os.environ.get('RIM_JAX_GRACE_SECS', '90'))
  parser.add_argument('--dry-run', action='store_true', help='print the command and end')
  args = parser.parse_args(own)
  if args.dry_run:
    print(terminal.join(command))
    return 0
  check_program(command)
  ignore_profile()
  child, ending = None, False

  def end_at_last():
    if child and child.poll() is None:
      print(f'supervise: it has not ended {args.grace_secs:g} s after it was asked to, and is '
            'killed; what it has saved is whole', file=sys.stderr, flush=True)
      child.kill()

  def pass_on(signum, frame):
    nonlocal ending
    if not ending:
      timer = threading.Timer(args.grace_secs, end_at_last)
      timer.daemon = True
      timer.start()
    ending = True
    if child:
      child.send_signal(signum)
  signal.signal(signal.SIGTERM, pass_on)
  signal.signal(signal.SIGINT, pass_on)

  def attempt():
    nonlocal child
    if ending:
      return STOPPED
    child = subprocess.Popen(command)
    code = child.wait()
    return STOPPED if ending and code else code
  try:
    workdir = command_line.find_workdir(command)
  except UserError as e:
    refuse(str(e))
  return run_again(attempt, lambda: find_step(workdir), args.max_failures)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
