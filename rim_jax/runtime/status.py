"""What a run says, as data, to the program that started it: one small JSON file.

Whoever starts a run names the file in its environment; a run that nobody has started so writes
none. What a run prints is for people.
"""

import dataclasses
import os
import time

from rim_jax import reader
from rim_jax.errors import UserError
from rim_jax.runtime import storage

VARIABLE = 'RIM_JAX_STATUS'
_TICK_SECS = 10.0  # between two lines of a Ticker, at least


@dataclasses.dataclass(frozen=True)
class Status:
  stage: str = ''  # under way, by its folder's name
  left_secs: float | None = None  # of that stage, as far as it is known
  ended: str = ''  # the class, in errors.py, of what ended the run early
  error: str = ''  # its message


def tell(**changes) -> None:
  """Changes some fields of this process's status, where somebody asked for it."""
  path = os.environ.get(VARIABLE)
  if path:
    storage.write_json(path, dataclasses.asdict(dataclasses.replace(load(path), **changes)))


def load(path) -> Status:
  """What a run has told so far."""
  try:
    return reader.load_json(path, '', Status)
  except UserError:  # nothing yet
    return Status()


class Ticker:
  """Tells how far something is, and how long the rest will take, once it takes long.

  Args:
    what: it is, e.g. 'evaluating'; `total` of `unit` are to be done.
    say: takes the line; None tells nobody.
  """

  def __init__(self, what: str, total: int, unit: str, say):
    self._what, self._total, self._unit, self._say = what, total, unit, say
    self._began = self._told = time.monotonic()
    self._first = 0

  def __call__(self, done: int) -> None:
    """So many are done; the last one is not told, what follows tells it."""
    now = time.monotonic()
    self._first = self._first or done
    if not self._say or not 0 < done < self._total or now - self._told < _TICK_SECS:
      return
    self._told = now
    left = (now - self._began) / done * (self._total - done)
    self._say(f'{self._what}: {done:,} of {self._total:,} {self._unit}'
              + f', {format_secs(left)} left' * (done > self._first))  # which may have compiled


def format_secs(secs: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(secs), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
