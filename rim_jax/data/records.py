"""What a row is: the Record, the names of splits, and how an error in one is told."""

from collections.abc import Iterator
import contextlib
import dataclasses
import shutil
import tempfile
import time

from rim_jax import locks
from rim_jax.errors import UserError

SPLITS = ('train', 'valid', 'test')
_LOCK = '.lock'  # of a scratch directory: a file, since NFS locks no directory for other hosts
_LEFT_SECS = 3600  # much longer than a maker takes to lock, or than the clocks of hosts differ


@dataclasses.dataclass(frozen=True)
class Record:
  """One example: a question, T >= 0 steps and the answer, as text."""
  question: str
  steps: tuple[str, ...]
  answer: str
  origin: str  # where it comes from, both 1-based: 'train.jsonl:12' or 'rim_chain/train:12'


@dataclasses.dataclass(frozen=True)
class Variant(Record):
  """A problem of a training row with other numbers; or, as variant 0, a row as it is."""
  source_row: int  # the line of the file in `origin`, 1-based
  variant: int  # 1, 2, ... of that row


@contextlib.contextmanager
def report(where, fix, kinds=Exception):
  """Turns an error of these kinds into a user's, in one line."""
  try:
    yield
  except UserError:
    raise
  except kinds as error:
    what = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(f'{where}: {what}; {fix}') from error


@contextlib.contextmanager
def make_scratch(folder) -> Iterator[str]:
  """A directory that vanishes afterwards; those that a kill has left for an hour go first."""
  for path in folder.glob('incomplete.*'):
    with contextlib.suppress(OSError):  # one whose maker lives is locked, or is being made
      if time.time() - path.stat().st_mtime > _LEFT_SECS:
        with locks.hold(path / _LOCK, waits=False) as is_dead:
          pass  # given back before it is removed: on NFS what is open stays, and its directory
        if is_dead:
          shutil.rmtree(path)
  with tempfile.TemporaryDirectory(prefix='incomplete.', dir=folder) as made, locks.hold(
      f'{made}/{_LOCK}', waits=False):
    yield made


def report_unwritable(config):
  return report(f"data.cache_dir='{config.cache_dir}'",
                 'make it writable, or pass --config.data.cache_dir=DIR', OSError)
