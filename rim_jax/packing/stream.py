"""The stream of batches, made ahead of the updates: on a thread, or by processes of their own.

Either way it is batch after batch in the order of their numbers, so that the place in the data is
one integer, whatever made them.
"""

from collections.abc import Generator
import multiprocessing
import os
import signal
import sys
import threading

import grain

from rim_jax.packing import batch as batch_lib
from rim_jax.packing import source as source_lib


def make_batches(source: source_lib.BatchSource, start: int, num_ahead: int, num_workers: int = 0,
                 say=print) -> Generator[batch_lib.Batch, None, None]:
  """Batches from number `start` on; to be closed.

  Args:
    num_ahead: batches that are made before they are asked for; at least one a process.
    num_workers: processes that make them; 0: a thread of this one, which also goes on where one of
      them has ended on its own.
  """
  if num_workers and start + 1 < len(source):
    # The first batch is made here: its program is compiled before anybody waits for a process.
    made = _start_workers(source, start + 1, -(-num_ahead // num_workers), num_workers)
    try:
      yield source[start]
      start += 1
      while start < len(source):
        yield next(made)
        start += 1
      return
    except RuntimeError as e:
      say(f'a process that makes batches has ended ({str(e).partition(". ")[0]}); from batch '
          f'{start} on a thread makes them')
    finally:
      made.close()
  made = iter(grain.MapDataset.source(source)[start:].to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=num_ahead)))
  try:
    yield from made
  finally:
    made.close()


def _start_workers(source, start, num_ahead, num_workers):
  """An iterator over what so many processes make, each of them every so-many-th batch.

  Grain asks absl for a flag of its own, so the program's flags must have been parsed.
  """
  batches = grain.MapDataset.source(source)[start:].to_iter_dataset(
      grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  # Through pipes: shared memory is 64 MB in a container, and Grain leaves some behind at the end.
  batches = grain.experimental.WithOptionsIterDataset(
      batches, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize))
  return iter(batches.mp_prefetch(grain.MultiprocessingOptions(
      num_workers, per_worker_buffer_size=num_ahead), _begin_worker))


def _begin_worker(*unused):
  """In a worker: it ends when the run does, also one that is killed, and not before.

  What asks a run to stop, or for a profile, is sent to all processes; the run needs batches until
  it has saved.
  """
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def wait():
    parent.join()
    os._exit(1)
  threading.Thread(target=wait, daemon=True).start()
