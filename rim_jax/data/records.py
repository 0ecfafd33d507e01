"""What a row is: the Record, the names of splits, and how an error in one is told."""

import contextlib
import dataclasses

from rim_jax.errors import UserError

SPLITS = ('train', 'valid', 'test')


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


def report_unwritable(config):
  return report(f"data.cache_dir='{config.cache_dir}'",
                 'make it writable, or pass --config.data.cache_dir=DIR', OSError)
