"""Batches come in the order of their numbers, whoever makes them."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags
import jax
import numpy as np
import pytest

from rim_jax.data import datasets
from rim_jax.packing import source as source_lib
from rim_jax.packing import stream
from tests import support


@pytest.fixture(autouse=True)
def parsed_flags():
  """As main.py has them."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  config = support.make_config(data__cache_dir=str(tmp_path_factory.mktemp('cache')),
                               data__chain__min_steps=1, train__num_examples=200)
  split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
  codec = support.make_codec(config)
  return source_lib.BatchSource(
      source_lib.make_stage_plan(split, codec, say=lambda line: None), codec)


def assert_batches(batches, source, numbers):
  for number, batch in zip(numbers, batches, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, source[number])


def find_workers(parent) -> list[int]:
  """Processes that Python has started for `parent`."""
  found = []
  for process in pathlib.Path('/proc').iterdir():
    with contextlib.suppress(OSError):
      if process.name.isdigit() and b'spawn_main' in (process / 'cmdline').read_bytes() and int(
          (process / 'stat').read_text().rpartition(')')[2].split()[1]) == parent:
        found.append(int(process.name))
  return found


@pytest.mark.parametrize('start', [0, 1, 3])
def test_the_stream_begins_at_any_batch(source, start):
  assert_batches(stream.make_batches(source, start, 2), source, range(start, len(source)))


def test_one_batch_that_is_left_is_made_here(source):
  assert_batches(stream.make_batches(source, len(source) - 1, 2, 2), source, [len(source) - 1])
  assert not find_workers(os.getpid())


@pytest.mark.slow
def test_processes_make_the_same_stream_and_a_killed_one_is_told_and_replaced(source):
  """Also while all of them are asked to stop: they end with the run."""
  told = []
  batches = stream.make_batches(source, 1, 2, 2, told.append)
  with contextlib.closing(batches):
    assert_batches(itertools.islice(batches, 3), source, range(1, 4))
    workers = find_workers(os.getpid())
    assert len(workers) == 2
    for worker, number in itertools.product(workers, (
        signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)):
      os.kill(worker, number)
    assert_batches(itertools.islice(batches, 2), source, range(4, 6))
    assert find_workers(os.getpid()) == workers and not told
    os.kill(workers[1], signal.SIGKILL)
    assert_batches(batches, source, range(6, len(source)))
  assert len(told) == 1 and 'exit code -9); from batch ' in told[0]
  assert not find_workers(os.getpid())


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(source, tmp_path):
  script = tmp_path / 'run.py'
  script.write_text(f"""
import pickle, sys, time
from absl import flags
from rim_jax.packing import stream
flags.FLAGS.mark_as_parsed()
if __name__ == '__main__':
  batches = stream.make_batches(pickle.load(open({str(tmp_path / 'source')!r}, 'rb')), 0, 2, 2)
  next(batches), next(batches)
  print('ready', flush=True)
  time.sleep(100)
""")
  import cloudpickle
  (tmp_path / 'source').write_bytes(cloudpickle.dumps(source))
  with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as run:
    assert run.stdout and run.stdout.readline() == 'ready\n'
    workers = find_workers(run.pid)
    assert len(workers) == 2
    run.kill()
  until = time.monotonic() + 30
  while any(pathlib.Path(f'/proc/{worker}').exists() for worker in workers):
    assert time.monotonic() < until
    time.sleep(0.1)
