"""Several hosts on one machine: N real processes with D fake CPU devices each, joined as one run.

  python launch/local_hosts.py --processes=2 [--devices=1] -- \
      python -m rim_jax.main --config=configs/smoke.py

What a pod does, without a pod: a dry run for users, the test bed of this project. Lines of process
i begin with [i]. Where one process fails, or all are asked to end (SIGTERM, Ctrl-C), the others are
given --grace_secs, then ended.
--dry-run prints the commands. To run the whole again where it fails, put launch/supervise.py before
it: python launch/supervise.py -- python launch/local_hosts.py --processes=2 -- python -m ...

More than one device a process can hang in JAX's CPU collectives; for tests take processes.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

import supervise

from rim_jax import terminal


def parse_count(text: str) -> int:
  """A number of 1 or more."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not 1 or more')
  return int(text)


def find_port() -> int:
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def make_commands(command, processes, port):
  return [[*command, f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}',
           f'--process_id={i}'] for i in range(processes)]


def make_environment(devices):
  # XLA's pool has a thread for each fake device, and an all-reduce waits in one: a program that
  # runs two at a time can take them all, and then all wait for ever. Hence more threads.
  flags = f'--xla_force_host_platform_device_count={devices}'
  return dict(os.environ, JAX_PLATFORMS='cpu', PYTHONUNBUFFERED='1', PJRT_NPROC=str(8 * devices),
              RIM_JAX_TOKEN=secrets.token_hex(16),  # what these processes know of each other
              XLA_FLAGS=f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip())


def choose_code(codes) -> int:
  """One exit code for all: a mistake if any says so, done if all are, stopped if the rest are."""
  if supervise.MISTAKE in codes:
    return supervise.MISTAKE
  rest = {c for c in codes if c != supervise.DONE}
  if rest <= {supervise.STOPPED}:
    return supervise.STOPPED if rest else supervise.DONE
  return next(c for c in codes if c not in (supervise.DONE, supervise.STOPPED))


def run_all(commands, environment, grace_secs, children, ending, out=sys.stdout) -> int:
  """Starts every command, passes on their lines, and waits.

  `children` is filled for signals; `ending` is an Event, set once they are asked to end.
  """
  children[:] = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors='replace')
                 for c in commands]

  def pass_on(i, child):
    for line in child.stdout:
      out.write(f'[{i}] {line}')
      out.flush()
  readers = [threading.Thread(target=pass_on, args=pair, daemon=True)
             for pair in enumerate(children)]
  for reader in readers:
    reader.start()
  ends_from = None
  while any(c.poll() is None for c in children):
    if ends_from is None and (ending.is_set() or any(c.poll() not in (None, 0) for c in children)):
      ends_from = time.monotonic()
    if ends_from is not None and time.monotonic() - ends_from > grace_secs:
      for child in children:
        child.kill()
    time.sleep(0.1)
  for reader in readers:
    reader.join(5)
  return choose_code([c.returncode for c in children])


def main(argv):
  own, command = supervise.split_command(argv)
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=parse_count, default=2)
  parser.add_argument('--devices', type=parse_count, default=1, help='of each process')
  parser.add_argument('--port', type=int, default=0, help='of the coordinator; 0: a free one')
  parser.add_argument('--grace_secs', type=float, default=60)
  parser.add_argument('--dry-run', action='store_true')
  args = parser.parse_args(own)
  environment = make_environment(args.devices)
  if args.dry_run:
    for line in make_commands(command, args.processes, args.port or 9876):
      print(f'JAX_PLATFORMS=cpu XLA_FLAGS={terminal.quote(environment["XLA_FLAGS"])} '
            f'{terminal.join(line)}')
    return 0
  supervise.check_program(command)
  supervise.ignore_profile()
  children, ending = [], threading.Event()

  def pass_on(signum, frame):
    ending.set()
    for child in children:
      child.send_signal(signum)
  signal.signal(signal.SIGTERM, pass_on)
  signal.signal(signal.SIGINT, pass_on)
  commands = make_commands(command, args.processes, args.port or find_port())
  return run_all(commands, environment, args.grace_secs, children, ending)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
