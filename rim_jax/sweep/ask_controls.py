"""Asks the runs of a sweep whether their memory does the work, each by a command of its own.

What --mode=controls leaves beside a run is all that there is: a run that has been asked, of the
same checkpoint and set and beside the same runs, is not asked again.
"""

import time

from rim_jax.config import methods
from rim_jax.errors import UserError
from rim_jax.evaluation import probes
from rim_jax.report import control_results
from rim_jax.results import values
from rim_jax.runtime import storage
from rim_jax.runtime.point_run import PointRun
from rim_jax.sweep import jobs, matched_runs

_OUTPUT = 'controls.txt'  # where the words of a command go, in the run's folder


def check(points) -> None:
  """Before anything runs. Raises: UserError where no run could be asked as its config says."""
  for point in points:
    if point.config.eval.checkpoint == 'splits':
      raise UserError(f"--controls: {point.name}: eval.checkpoint='splits' is of several "
                      'checkpoints, and controls are of one; take best, or last')
  if any(point.config.controls.probes for point in points):
    probes.check_installed()


def ask(runs: list[PointRun], make_command, places, say) -> list[str]:
  """Asks each run that is done and has blocks; the matched runs of the same sweep stand beside it.

  Args:
    make_command: (point, flags) -> the command of a run.
    places: devices.Place of each that is asked at a time.
  Returns: a line for each that could not be asked.
  """
  done = {run.point.name: (run, result) for run in runs if (result := run.result)}
  waiting, problems, num_before = [], [], 0
  for run, result in done.values():
    config, told = run.last[0], result.checkpoint
    if not config.facts.has_blocks or not config.eval_blocks:
      continue
    if told != config.eval.checkpoint:
      problems.append(f'{run.folder}: its result is of the {told} checkpoint, now it is '
                      f'{config.eval.checkpoint}; evaluate that with --mode=eval, and ask again')
    elif (flags := list_flags(run, result, done)) is None:
      num_before += 1
    else:
      waiting.append((run, make_command(run.point, ['--mode=controls', *flags])))
  say(f'controls: {num_before} runs with blocks asked before, {len(waiting)} to ask, '
      f'{len(places)} at a time')
  return problems + _run_all(waiting, places, say)


def list_flags(run: PointRun, result: values.EvalResult, done: dict) -> list[str] | None:
  """The flags that name a run's matched runs. None where it has been asked beside just these.

  Args:
    done: name -> (run, result) of every run that has a result, this one among them.
  """
  own, (config, folder) = run.point.config, run.last
  asked, _ = control_results.load_asked(folder, config.eval_set, result)
  fresh = asked is not None and (not config.controls.probes or asked.probes is not None)
  names = matched_runs.find_matched(own, {name: r.point.config for name, (r, _) in done.items()})
  flags = []
  for control in (facts.name for facts in methods.CONTROLS):
    matched = getattr(own.controls, f'{control}_dir')
    told = asked.controls.get(control) if asked else None
    if not matched and control in names:
      other, theirs = done[names[control]]
      matched = str(other.last[1])
      flags.append(f'--config.controls.{control}_dir={matched}')
      fresh = fresh and told is not None and told.final_acc == theirs.final_acc  # the same still
    if matched:
      fresh = fresh and told is not None and told.run is not None and (
          storage.get_absolute(told.run) == storage.get_absolute(matched))
  return None if fresh else flags


def _run_all(waiting, places, say) -> list[str]:
  """Runs every command, as many at a time as there are places, and waits for the last."""
  total, began, ends, problems = len(waiting), time.monotonic(), [], []

  def start(question, place):
    output = question[0].folder / _OUTPUT
    output.unlink(missing_ok=True)
    return jobs.Job(question[1], place, output)

  def finish(question, end, is_stopped):
    if is_stopped:
      return
    ends.append(end)
    if end.code:
      problems.append(f'{question[0].folder / _OUTPUT}: exit code {end.code}: {end.told}; '
                      '--controls again asks what was not answered')
    left = total - len(ends)
    mins = (time.monotonic() - began) / len(ends) * left / 60
    say(f'controls of {question[0].point.name}: {len(ends)} of {total}'
        + (f', about {mins:.0f} min left' if left else ''))
  jobs.run_all(waiting, places, start, finish)
  return problems
