"""A lock is one process's; what is no lock's refusal is not taken for one."""

import errno
import os
import subprocess
import sys

import pytest

from rim_jax import locks
from tests import support_locks

HOLDS = """
import sys
from rim_jax import locks
with locks.hold(sys.argv[1], waits=False) as held:
  print(held, flush=True)
  sys.stdin.readline()
"""


def test_it_is_one_process_s_and_given_back_with_it(tmp_path):
  with subprocess.Popen([sys.executable, '-c', HOLDS, str(tmp_path / 'a')], text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
    assert other.stdout.readline() == 'True\n'
    with pytest.raises(locks.Taken), locks.hold(tmp_path / 'a', waits=False):
      pass
    other.kill()
  with locks.hold(tmp_path / 'a', waits=True) as held:
    assert held


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_process(number, tmp_path, monkeypatch):
  support_locks.refuse_locks(monkeypatch, number)
  with open(tmp_path / 'a', 'a') as file:
    told = locks.take(file, waits=False)
  assert os.strerror(number) in told and errno.errorcode[number] in told
  with locks.hold(tmp_path / 'a', waits=False) as held:
    assert not held


@pytest.mark.parametrize('number', [errno.EAGAIN, errno.EACCES])
def test_both_words_for_taken_are_known(number, tmp_path, monkeypatch):
  support_locks.refuse_locks(monkeypatch, number)
  with open(tmp_path / 'a', 'a') as file, pytest.raises(locks.Taken):
    locks.take(file, waits=False)


def test_another_user_s_lock_that_may_only_be_read_is_taken_all_the_same(tmp_path, monkeypatch):
  def refuse(path, mode='r', real=open):
    if 'a' in mode:  # permissions do not bind root, who may run this
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return real(path, mode)
  (tmp_path / 'a').touch()
  monkeypatch.setattr(locks, 'open', refuse, raising=False)
  with locks.hold(tmp_path / 'a', waits=False) as held:
    assert held
