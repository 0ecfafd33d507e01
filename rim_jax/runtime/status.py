"""What a run says, as data, to the program that started it: one small JSON file.

Whoever starts a run names the file in its environment; a run that nobody has started so writes
none. What a run prints is for people.
"""

import dataclasses
import os

from rim_jax.errors import UserError
from rim_jax.runtime import storage

VARIABLE = 'RIM_JAX_STATUS'


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
    return Status(**storage.load_json(path, 'what a run tells'))
  except UserError:  # nothing yet
    return Status()


def format_secs(secs: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(secs), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
