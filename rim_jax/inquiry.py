"""Asks the runs of a sweep whether their memory does the work, each by a command of its own.

What --mode=controls leaves beside a run is all that there is: a run that has been asked, of the
same checkpoint and set and beside the same runs, is not asked again.
"""

import dataclasses
import subprocess
import time

from rim_jax import controls
from rim_jax import devices
from rim_jax import evidence
from rim_jax import matched

_POLL_SECS = 0.5


@dataclasses.dataclass
class Question:
  """A run to ask: its name, the command, where its words go; once it has begun, where it runs."""
  name: str
  command: list[str]
  output: str
  place: devices.Place | None = None
  process: subprocess.Popen | None = None


def ask(states, make_command, places, say) -> list[str]:
  """Asks each run that is done and has memory; the matched runs of the same sweep stand beside it.

  Args:
    states: sweep.State of every point.
    make_command: (point, folder) -> the command of a run.
    places: devices.Place of each that is asked at a time.
  Returns: a line for each that could not be asked.
  """
  done = [s for s in states if s.result is not None]
  asked = [s for s in done if s.last[0].method in controls.METHODS and s.last[0].eval_blocks]
  waiting = [Question(s.point.name, [*make_command(s.point, s.folder), '--mode=controls', *flags],
                      str(s.folder / 'controls.txt'))
             for s in asked if (flags := list_flags(s, done)) is not None]
  say(f'controls: {len(asked)} runs with memory, {len(asked) - len(waiting)} asked before, '
      f'{len(waiting)} to ask, {len(places)} at a time')
  return _run_all(waiting, places, say)


def list_flags(state, done) -> list[str] | None:
  """What a run is asked with: the matched runs there are. None where it has been asked so."""
  own = state.point.config
  names = matched.find_matched(own, {s.point.name: s.point.config for s in done})
  folders = {s.point.name: str(s.last[1]) for s in done}
  beside = {method: folders[name] for method, name in names.items()
            if not getattr(own.controls, f'{method}_dir')}
  config, folder = state.last
  found, _ = evidence.load_asked(folder, config.eval_set, state.result)
  if found and (not config.controls.probes or 'probes' in found) and all(
      found['controls'].get(method, {}).get('run') == run for method, run in beside.items()):
    return None
  return [f'--config.controls.{method}_dir={run}' for method, run in beside.items()]


def _run_all(waiting, places, say) -> list[str]:
  """Runs every command, as many at a time as there are places, and waits for the last."""
  total, began, problems = len(waiting), time.monotonic(), []
  running, free = [], list(places)
  try:
    while waiting or running:
      while waiting and free:
        question = waiting.pop(0)
        question.place = free.pop(0)
        with open(question.output, 'wb') as log:
          question.process = devices.start(question.command, question.place, log)
        running.append(question)
      for question in [q for q in running if q.process.poll() is not None]:
        running.remove(question)
        free.append(question.place)
        problems += _read_problem(question)
        left = len(waiting) + len(running)
        mins = (time.monotonic() - began) / (total - left) * left / 60
        say(f'controls of {question.name}: {total - left} of {total}'
            + (f', about {mins:.0f} min left' if left else ''))
      time.sleep(_POLL_SECS)
  finally:
    for question in running:
      question.process.terminate()
    for question in running:
      question.process.wait()
  return problems


def _read_problem(question) -> list[str]:
  """What a command that failed said last, in one line."""
  if not question.process.returncode:
    return []
  with open(question.output, errors='replace') as file:
    lines = file.read().strip().split('\n')
  told = ([line for line in lines if line.startswith('error:')] or lines)[-1][:300]
  return [f'{question.output}: exit code {question.process.returncode}: {told}; --controls again '
          'asks what was not answered']
