"""Asks the runs of a sweep whether their memory does the work, each by a command of its own.

What --mode=controls leaves beside a run is all that there is: a run that has been asked, of the
same checkpoint and set and beside the same runs, is not asked again.
"""

import dataclasses
import subprocess
import time

from rim_jax.config import methods
from rim_jax.errors import UserError
from rim_jax.evaluation import probes
from rim_jax.report import control_results
from rim_jax.runtime import devices, storage
from rim_jax.sweep import matched_runs

_POLL_SECS = 0.5


@dataclasses.dataclass
class Question:
  """A run to ask: its name, the command, where its words go; once it has begun, where it runs."""
  name: str
  command: list[str]
  output: str
  place: devices.Place | None = None
  process: subprocess.Popen | None = None


def check(points) -> None:
  """Before anything runs. Raises: UserError where no run could be asked as its config says."""
  for point in points:
    if point.config.eval.checkpoint == 'splits':
      raise UserError(f"--controls: {point.name}: eval.checkpoint='splits' is of several "
                      'checkpoints, and controls are of one; take best, or last')
  if any(point.config.controls.probes for point in points):
    probes.check_installed()


def ask(states, make_command, places, say) -> list[str]:
  """Asks each run that is done and has memory; the matched runs of the same sweep stand beside it.

  Args:
    states: sweep.State of every point.
    make_command: (point, folder) -> the command of a run.
    places: devices.Place of each that is asked at a time.
  Returns: a line for each that could not be asked.
  """
  done = [s for s in states if s.result is not None]
  waiting, problems, num_before = [], [], 0
  for state in done:
    config, told = state.last[0], state.result['checkpoint']
    if not config.facts.has_memory or not config.eval_blocks:
      continue
    if told != config.eval.checkpoint:
      problems.append(f'{state.folder}: its result is of the {told} checkpoint, now it is '
                      f'{config.eval.checkpoint}; evaluate that with --mode=eval, and ask again')
    elif (flags := list_flags(state, done)) is None:
      num_before += 1
    else:
      command = [*make_command(state.point, state.folder), '--mode=controls', *flags]
      waiting.append(Question(state.point.name, command, str(state.folder / 'controls.txt')))
  say(f'controls: {num_before} runs with memory asked before, {len(waiting)} to ask, '
      f'{len(places)} at a time')
  return problems + _run_all(waiting, places, say)


def list_flags(state, done) -> list[str] | None:
  """The flags that name a run's matched runs. None where it has been asked beside just these.

  Args:
    done: every state that has a result, this one among them.
  """
  own, (config, folder) = state.point.config, state.last
  found, _ = control_results.load_asked(folder, config.eval_set, state.result)
  fresh = found and (not config.controls.probes or 'probes' in found)
  names = matched_runs.find_matched(own, {s.point.name: s.point.config for s in done})
  flags, by_name = [], {s.point.name: s for s in done}
  for control in (facts.name for facts in methods.CONTROLS):
    run, told = getattr(own.controls, f'{control}_dir'), found.get('controls', {}).get(control, {})
    if not run and control in names:
      other = by_name[names[control]]
      run = str(other.last[1])
      flags.append(f'--config.controls.{control}_dir={run}')
      fresh = fresh and told.get('final_acc') == other.result['final_acc']  # not evaluated anew
    if run:
      fresh = fresh and 'run' in told and (
          storage.get_absolute(told['run']) == storage.get_absolute(run))
  return None if fresh else flags


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
  code = question.process.returncode
  return [f'{question.output}: exit code {code}: {devices.read_told(question.output)}; --controls '
          'again asks what was not answered'] if code else []
