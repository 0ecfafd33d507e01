"""A run's files are whole, on a file system and in a bucket that neither renames nor appends."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import aiohttp
from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import command_line, reader
from rim_jax import main as main_lib
from rim_jax.config import CheckpointConfig
from rim_jax.errors import FolderTaken, UserError
from rim_jax.runtime import run_folder, storage
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import recorder as recorder_lib
from tests import bucket as bucket_lib
from tests import support, support_locks, support_runs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def bucket():
  with bucket_lib.serve('lab') as (found, environ), pytest.MonkeyPatch.context() as patch:
    for key, value in environ.items():
      patch.setenv(key, value)  # before gcsfs is loaded, which reads some of them once
    yield found


@pytest.fixture(params=['files', 'bucket'])
def place(request, tmp_path, bucket):
  """A folder in one or the other; nothing may have been refused in the end."""
  if request.param == 'files':
    yield epath.Path(tmp_path)
    return
  yield epath.Path(f'gs://lab/{tmp_path.name}')
  assert not bucket.refused


def test_the_bucket_of_these_tests_neither_renames_nor_appends(bucket):
  path = epath.Path('gs://lab/alone/a.txt')
  path.write_text('1\n')
  with pytest.raises(Exception, match='neither renames nor appends'):
    path.rename(path.with_name('b.txt'))
  assert bucket.refused
  bucket.refused.clear()
  with pytest.warns(UserWarning, match='Append mode'), path.open('a') as file:
    file.write('2\n')
  assert path.read_text() == '2\n'  # what was there is lost, and nobody says so


def test_json_is_whole(place):
  path = place / 'a' / 'x.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_json(path, {'a': 1})
  storage.write_json(path, {'a': 2})
  assert reader.load_json(path, 'fix it') == {'a': 2}
  assert [p.name for p in path.parent.iterdir()] == ['x.json']  # no scratch is left
  with pytest.raises(ValueError):
    storage.write_json(path, {'a': float('nan')})
  with pytest.raises(UserError, match='y.json: cannot be read .*; fix it'):
    reader.load_json(path.with_name('y.json'), 'fix it')


def write_tree(folder, **texts):
  for name, text in texts.items():
    path = folder / name.replace('__', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_tree(folder):
  return {name: path.read_text() for name, path in storage.list_files(folder).items()}


def test_folders_are_moved_over_what_is_there_and_removed(place):
  write_tree(place / 'old', a='1', deep__b='2')
  write_tree(place / 'new', a='0', c='3')
  storage.move(place / 'old', place / 'new')
  assert read_tree(place / 'new') == {'a': '1', 'deep/b': '2'}
  assert read_tree(place / 'old') == {}
  storage.remove(place / 'new')
  storage.remove(place / 'new')
  assert read_tree(place / 'new') == {}


def test_folders_are_copied_into_it(place, tmp_path):
  write_tree(epath.Path(tmp_path) / 'here', a='1', deep__b='2')
  storage.copy(tmp_path / 'here', place / 'there')
  write_tree(epath.Path(tmp_path) / 'here', a='4')
  storage.copy(tmp_path / 'here', place / 'there')
  assert read_tree(place / 'there') == {'a': '4', 'deep/b': '2'}


# ---- A file that grows ----


def test_a_journal_keeps_every_line_over_restarts(place, monkeypatch):
  monkeypatch.setattr(storage, '_PART_LINES', 3)
  place.mkdir(parents=True, exist_ok=True)
  path, want = place / 'm.jsonl', []
  for first, keep_below in ((0, 100), (7, 100), (5, 5)):  # the last start drops 5 and later
    journal = storage.Journal(path, lambda line, below=keep_below: line and int(line) < below)
    want = [i for i in want if i < keep_below]
    for i in range(first, first + 7):
      journal.add(str(i))
      want.append(i)
    journal.close()
    assert [int(line) for _, line in storage.read_lines(path)] == want


def test_a_line_is_in_a_bucket_after_a_while_and_after_a_flush(bucket):
  now = [0.0]
  path = epath.Path('gs://lab/while/m.jsonl')
  journal = storage.Journal(path, lambda line: True, clock=lambda: now[0])

  def read():
    return [line.decode() for _, line in storage.read_lines(path)]
  journal.add('a')
  assert read() == []
  now[0] = 10.0
  journal.add('b')
  assert read() == ['a', 'b']
  journal.add('c')
  journal.flush()
  assert read() == ['a', 'b', 'c']
  before = bucket.num_puts
  for i in range(100):  # a store refuses to be written many times a second
    journal.add(str(i))
  assert bucket.num_puts == before
  journal.close()


def test_a_line_whose_end_is_lost_does_not_take_the_next_with_it(place):
  place.mkdir(parents=True, exist_ok=True)
  name = 'm.jsonl' if not storage.is_bucket(place) else 'm-00000.jsonl'
  (place / name).write_text('1\n2')
  journal = storage.Journal(place / 'm.jsonl', bytes.isdigit)
  journal.add('3')
  journal.close()
  assert [line for _, line in storage.read_lines(place / 'm.jsonl')] == [b'1', b'2', b'3']


def test_metrics_and_events_are_there_after_a_flush(place):
  place.mkdir(parents=True, exist_ok=True)
  writer = recorder_lib.MetricsWriter(place, 0, True)
  writer.write(1, {'a': 1})
  writer.flush()
  assert [line['step'] for line in run_folder.RunFolder(place).load_metrics()] == [1]
  events, = storage.list_files(place / 'tensorboard').values()
  size = len(events.read_bytes())
  writer.write(2, {'a': 2})
  writer.close()
  assert len(events.read_bytes()) > size > 0


# ---- Whose folder it is ----


def test_a_workdir_is_held_by_one_run(place, monkeypatch):
  monkeypatch.setattr(storage, '_LEASE_SECS', 0.4)
  place.mkdir(parents=True, exist_ok=True)
  with storage.hold(place, lambda line: None):
    with pytest.raises(UserError, match=f'process {os.getpid()} on .* is at work here'):
      with storage.hold(place, lambda line: None):
        pass
    time.sleep(1)  # longer than a lease
    with pytest.raises(UserError, match='is at work here'):
      with storage.hold(place, lambda line: None):
        pass
  told = []
  with storage.hold(place, told.append):  # given back
    pass
  assert not told


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK])
def test_where_there_are_no_locks_a_run_is_told_so_and_goes_on(number, tmp_path, monkeypatch):
  """It was told of another run, which nobody finds, and a sweep waited for that one for ever."""
  support_locks.refuse_locks(monkeypatch, number)
  told = []
  with storage.hold(tmp_path, told.append):
    assert str(os.getpid()) in (tmp_path / '.lock').read_text()
  line, = told
  assert f'{errno.errorcode[number]}, {os.strerror(number)}' in line and '-o flock' in line


@contextlib.contextmanager
def held_by(tmp_path, holder):
  with open(tmp_path / '.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(holder)
    file.flush()
    yield


@pytest.fixture
def soon(monkeypatch):
  monkeypatch.setattr(storage, '_DEAD_SECS', 1.0)
  monkeypatch.setattr(storage, '_RETRY_SECS', 0.05)


def test_the_lock_of_a_host_that_has_died_is_waited_for(tmp_path, soon, monkeypatch):
  """A run that goes on elsewhere once its node is gone; the server ends that lock by and by."""
  told, sleep = [], time.sleep
  with contextlib.ExitStack() as stack:
    stack.enter_context(held_by(tmp_path, 'process 7 on a node that is gone'))
    monkeypatch.setattr(storage.time, 'sleep', lambda secs: (stack.close(), sleep(secs)))
    with storage.hold(tmp_path, told.append):
      assert str(os.getpid()) in (tmp_path / '.lock').read_text()
  line, = told
  assert 'to see whether process 7 on a node that is gone is still at work' in line


def test_a_run_that_lives_on_another_host_is_named_after_that_wait(tmp_path, soon):
  began = time.monotonic()
  with held_by(tmp_path, 'process 7 on elsewhere'), pytest.raises(
      FolderTaken, match='process 7 on elsewhere is at work here'):
    with storage.hold(tmp_path, lambda line: None):
      pass
  assert time.monotonic() - began > 1.0


def test_nobody_waits_for_a_run_on_this_host_or_for_one_that_has_just_begun(
    tmp_path, soon, monkeypatch):
  waits, sleep = [], time.sleep
  with held_by(tmp_path, f'process 7 on {socket.gethostname()}'):
    monkeypatch.setattr(storage.time, 'sleep', waits.append)
    with pytest.raises(FolderTaken), storage.hold(tmp_path, lambda line: None):
      pass
  assert not waits
  with held_by(tmp_path, 'process 7 on elsewhere'):
    def begin(secs):  # another requeued run got it
      (tmp_path / '.lock').write_text('process 8 on a third')
      waits.append(secs)
      sleep(secs)
    monkeypatch.setattr(storage.time, 'sleep', begin)
    with pytest.raises(FolderTaken, match='process 8 on a third is at work here'), (
        storage.hold(tmp_path, lambda line: None)):
      pass
  assert len(waits) == 1


def test_a_bucket_whose_holder_was_killed_is_taken_after_a_wait(bucket, monkeypatch):
  monkeypatch.setattr(storage, '_LEASE_SECS', 0.2)
  folder = epath.Path('gs://lab/killed')
  (folder / '.lock').write_text('process 7 on elsewhere\nx')
  told = []
  with storage.hold(folder, told.append):
    assert str(os.getpid()) in (folder / '.lock').read_text()
  assert 'whether process 7 on elsewhere is still at work' in told[0]
  assert not (folder / '.lock').exists()


@pytest.mark.slow
def test_a_bucket_that_is_away_for_a_while_leaves_the_run_its_workdir(bucket, monkeypatch):
  """Its client's errors are no OSError; the thread that renews died of the first for good."""
  monkeypatch.setattr(storage, '_LEASE_SECS', 0.2)
  folder, away = epath.Path('gs://lab/away'), threading.Event()
  read = type(folder).read_bytes

  def fail(path):
    if away.is_set():
      raise Exception('503')  # pylint: disable=broad-exception-raised
    return read(path)
  monkeypatch.setattr(type(folder), 'read_bytes', fail)
  with storage.hold(folder, lambda line: None):
    away.set()
    time.sleep(1)
    away.clear()
    before = (folder / '.lock').read_text()
    time.sleep(1)
    assert (folder / '.lock').read_text() != before
    with pytest.raises(UserError, match='is at work here'):
      with storage.hold(folder, lambda line: None):
        pass


def test_of_two_that_come_at_once_one_stays(bucket, monkeypatch):
  monkeypatch.setattr(storage, '_LEASE_SECS', 0.4)
  folder, sleep = epath.Path('gs://lab/race'), time.sleep

  def come_between(secs):
    (folder / '.lock').write_text('process 8 on elsewhere\ny')
    sleep(secs)
  monkeypatch.setattr(storage.time, 'sleep', come_between)
  with pytest.raises(UserError, match='process 8 on elsewhere is at work here'):
    with storage.hold(folder, lambda line: None):
      pass


# ---- A bucket that is out of reach ----


@pytest.mark.parametrize('flag, place, package', [
    ('workdir', 's3://b/r', 's3fs'), ('workdir', 'gs://b/r', 'gcsfs'),
    ('config.train.init_from', 's3://b/r', 's3fs')])
def test_a_bucket_whose_package_is_missing_is_a_mistake_in_one_line(
    flag, place, package, tmp_path, monkeypatch, capsys):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name in (
      's3fs', 'gcsfs', 'tensorflow') else find_spec(name, *rest))
  recipe = support_runs.write_recipe(tmp_path)
  assert main_lib.cli(['main', f'--config={recipe}', f'--workdir={tmp_path}',
                       f'--{flag}={place}']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert f'{place}: needs the package {package}; pip install {package}, or' in line


def test_a_path_that_a_run_was_trained_with_need_not_be_in_reach_any_more(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None)
  config = support.make_config(train__init_from='gs://lab/start')
  assert command_line._expand_keys(config, dataclasses.asdict(config)).train == config.train
  with pytest.raises(UserError, match='needs the package gcsfs'):
    command_line._expand_keys(config)


def test_a_bucket_that_does_not_answer_is_one_line(tmp_path, monkeypatch, capsys, use_devices):
  use_devices(1)
  folder = 'gs://lab/unreachable'

  def fail(path):
    raise aiohttp.ClientConnectorDNSError(
        mock.Mock(host='storage.host', port=443, ssl=True), socket.gaierror(-2, 'Name not known'))
  monkeypatch.setattr(type(epath.Path(folder)), 'exists', fail)
  recipe = support_runs.write_recipe(tmp_path)
  assert main_lib.cli(['main', f'--config={recipe}', f'--workdir={folder}']) == 1
  line, = capsys.readouterr().err.splitlines()
  assert 'error: a bucket of this run: Cannot connect to host storage.host:443' in line


LOGS = '''
import logging
import aiohttp
from rim_jax import main
def cli(argv):
  for error in (aiohttp.ClientOSError(-2, 'Name not known'), ValueError('of ours')):
    logging.getLogger('gcsfs').error('out of retries', exc_info=error)
  return 1
main.cli = cli
main.main()
'''


def test_the_tracebacks_that_a_bucket_s_client_logs_are_not_shown_where_a_line_tells():
  done = subprocess.run([sys.executable, '-c', LOGS], cwd=ROOT, capture_output=True, text=True,
                        timeout=300)
  assert 'of ours' in done.stderr and 'Name not known' not in done.stderr, done.stderr


# ---- Checkpoints and a whole run ----


@pytest.mark.slow
def test_checkpoints_come_back_and_damaged_ones_are_put_aside(place):
  support_runs.save_checkpoints(place, [0.1, 0.9, 0.3, 0.2])
  assert checkpoint_lib.list_steps(place / 'checkpoints') == [4, 3, 2]
  assert checkpoint_lib.choose_checkpoint(place, 'best').step == 2
  files = storage.list_files(place / 'checkpoints' / '4')
  victim = files[max(files, key=lambda name: len(files[name].read_bytes()))]
  victim.write_bytes(victim.read_bytes()[:-1] + b'!')
  (place / 'checkpoints/3/manifest.json').unlink()
  told = []
  found = support_runs.find_latest(place, told.append)
  assert found.step == 2 and len(told) == 2
  assert 'cut off' in told[0] and 'using step 2, 2 steps are lost' in told[1]
  np.testing.assert_array_equal(support_runs.restore_w(found)['w'], [2, 2, 2])
  assert storage.list_files(place / 'damaged' / '4')  # put aside, not lost
  assert checkpoint_lib.list_steps(place / 'checkpoints') == [2]
  with checkpoint_lib.Checkpointer(place, CheckpointConfig(), told.append) as checkpointer:
    checkpointer.find_latest()
    checkpointer.save(4, {'w': jnp.full(3, 7.0)}, {'step': jnp.int32(4)}, {'rows': 4}, 0.3)
  np.testing.assert_array_equal(support_runs.restore_w(support_runs.find_latest(place))['w'],
                                [7, 7, 7])


def test_the_base_is_saved_once(place):
  tree = {'w': jnp.arange(3.0)}
  checkpoint_lib.save_base(place, tree)
  (place / 'base' / 'manifest.json').unlink()  # cut off
  checkpoint_lib.save_base(place, tree)
  np.testing.assert_array_equal(checkpoint_lib.load_base(place, tree)['w'], tree['w'])


DIES = '''
import os, signal, sys
from rim_jax import main
from rim_jax import reader
from rim_jax.training import manifest
real = manifest.seal
def seal(folder):
  real(folder)
  os.kill(os.getpid(), signal.SIGKILL)
manifest.seal = seal
main.cli(sys.argv)
'''


def test_a_run_in_a_bucket_killed_and_gone_on_with_is_the_run_on_a_disk(
    tmp_path, bucket, monkeypatch, capsys, use_devices):
  use_devices(1)
  monkeypatch.setattr(storage, '_LEASE_SECS', 0.5)
  recipe = support_runs.write_recipe(tmp_path, log__tensorboard=True)
  flags = [f'--config={recipe}', '--workdir=gs://lab/run']
  killed = subprocess.run(
      [sys.executable, '-c', DIES, *flags], env=os.environ | {
          'XLA_FLAGS': support_runs.ENVIRONMENT['XLA_FLAGS']}, cwd=ROOT, capture_output=True,
      text=True, timeout=500)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert main_lib.cli(['main', *flags]) == 0
  out = capsys.readouterr().out
  assert 'is still at work' in out and 'continuing from step 5 of 20' in out, out
  assert main_lib.cli(['main', f'--config={recipe}', f'--workdir={tmp_path / "disk"}']) == 0
  in_bucket, on_disk = epath.Path('gs://lab/run'), epath.Path(tmp_path / 'disk')
  losses, params, _ = support_runs.read_run(in_bucket)
  others, other_params, _ = support_runs.read_run(on_disk)
  assert losses == others and len(losses) == 20
  for name in params['blocks']['query']:
    np.testing.assert_array_equal(params['blocks']['query'][name],
                                  other_params['blocks']['query'][name])
  for name in ('predictions/test.jsonl',):
    assert (in_bucket / name).read_text() == (on_disk / name).read_text()
  there = {name.partition('/')[0] for name in storage.list_files(in_bucket)}
  assert {'config.json', 'results.json', 'report.html', 'tensorboard', 'checkpoints'} <= there
  assert json.loads((in_bucket / 'results.json').read_text())['test']['n'] == 8
  assert not bucket.refused
