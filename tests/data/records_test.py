"""What a kill has left of a preparation is cleared, and what is being prepared is not."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time

from rim_jax.data import records
from tests import support_locks


def make_old(path):
  path.mkdir()
  (path / 'part').write_text('half')
  os.utime(path, (0, 0))


def test_what_a_kill_has_left_goes_at_the_next_preparation(tmp_path):
  make_old(tmp_path / 'incomplete.dead')
  make_old(tmp_path / 'prepared')
  with records.make_scratch(tmp_path) as made:
    assert os.path.isdir(made) and sorted(os.listdir(tmp_path)) == sorted(
        [os.path.basename(made), 'prepared'])
  assert os.listdir(tmp_path) == ['prepared']


def test_what_another_process_prepares_stays(tmp_path):
  code = ('import os, pathlib, sys\nfrom rim_jax.data import records\n'
          'with records.make_scratch(pathlib.Path(sys.argv[1])) as made:\n'
          '  os.utime(made, (0, 0))\n  print(made, flush=True)\n  sys.stdin.readline()\n')
  with subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, text=True) as other:
    made = other.stdout.readline().strip()
    with records.make_scratch(tmp_path):
      assert os.path.isdir(made)
    other.stdin.write('\n')


def flock_of_nfs(file, operation, flock=fcntl.flock):
  """What other hosts see of it: a lock of a regular file, where that is open for writing."""
  number = file if isinstance(file, int) else file.fileno()
  if stat.S_ISREG(os.fstat(number).st_mode):
    assert fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)  # or EBADF
    flock(file, operation)


def test_what_another_host_prepares_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(fcntl, 'flock', flock_of_nfs)
  with records.make_scratch(tmp_path) as made:
    os.utime(made, (0, 0))
    with records.make_scratch(tmp_path):  # by another descriptor, as another host
      assert os.path.isdir(made)
  assert os.listdir(tmp_path) == []


def test_what_is_a_few_minutes_old_stays(tmp_path):
  """Its maker may be about to lock it, by a clock that is not this host's."""
  (tmp_path / 'incomplete.new').mkdir()
  os.utime(tmp_path / 'incomplete.new', (time.time() - 600,) * 2)
  with records.make_scratch(tmp_path):
    pass
  assert os.listdir(tmp_path) == ['incomplete.new']


def test_where_there_are_no_locks_data_are_prepared_and_nothing_is_removed(tmp_path, monkeypatch):
  support_locks.refuse_locks(monkeypatch, errno.ENOSYS)
  make_old(tmp_path / 'incomplete.perhaps')
  with records.make_scratch(tmp_path) as made:
    assert os.path.isdir(made)
  assert os.listdir(tmp_path) == ['incomplete.perhaps']
