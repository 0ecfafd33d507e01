"""Commands under way on their parts of the machine, and how they ended."""

import dataclasses
import pathlib
import time

from rim_jax.runtime import devices, status

_POLL_SECS = 0.5


@dataclasses.dataclass(frozen=True)
class End:
  """How a command ended: its exit code, and what it said of it."""
  code: int
  kind: str  # the class, in errors.py, of what ended it early; '' for any other way
  told: str  # that error in one line, or else the last line of its output


class Job:
  """A command that runs. Its words are added to a file; what it says as data stands beside that."""

  def __init__(self, command: list[str], place: devices.Place, output):
    self._output, self._status = pathlib.Path(output), get_status(output)
    self._status.unlink(missing_ok=True)
    place = dataclasses.replace(
        place, environ=place.environ | {status.VARIABLE: str(self._status)})
    with open(self._output, 'ab') as log:
      self._begin = log.tell()
      self.process = devices.start(command, place, log)

  def wait(self) -> End:
    """Waits until it is done."""
    code, told = self.process.wait(), status.load(self._status)
    self._status.unlink(missing_ok=True)
    error = f'error: {told.error.splitlines()[-1]}' if told.error else self._read_last_line()
    return End(code, told.ended, error[:300])

  def _read_last_line(self) -> str:
    with open(self._output, 'rb') as log:
      log.seek(self._begin)
      return log.read().decode(errors='replace').strip().split('\n')[-1]


def get_status(output) -> pathlib.Path:
  """Where the run whose words go to `output` says as data how it gets on."""
  return pathlib.Path(output).with_suffix('.status.json')


# 6 parameters: what two kinds of tasks do otherwise.
def run_all(waiting: list, places, start, finish, is_ready=lambda task: True,
            poll=lambda: None) -> None:
  """Runs every task, one on each place at a time, and waits for the last; a stop ends all of them.

  Args:
    waiting: tasks, in their order; `finish` may add to them.
    places: devices.Place of each that runs at a time.
    start: (task, place) -> its Job.
    finish: (task, its End, whether it was stopped) is told how each ended.
    is_ready: whether a task may begin now.
    poll: called now and then.
  """
  running, free = [], list(places)  # (task, job, place) of each under way
  try:
    while waiting or running:
      while free and (ready := [task for task in waiting if is_ready(task)]):
        waiting.remove(ready[0])
        place = free.pop(0)
        running.append((ready[0], start(ready[0], place), place))
      for task, job, place in [u for u in running if u[1].process.poll() is not None]:
        end = job.wait()
        running.remove((task, job, place))
        free.append(place)
        finish(task, end, False)
      poll()
      time.sleep(_POLL_SECS)
  finally:
    for _, job, _ in running:
      job.process.terminate()
    for task, job, _ in running:
      finish(task, job.wait(), True)
