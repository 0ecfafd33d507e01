"""Many runs from one recipe: points, each a run of its own, and what they say together.

A recipe returns `points.make_sweep_dict(base, points)`. Every point is validated before the first
one starts, and runs as a command of its own in WORKDIR/points/NAME, so that it can be run by hand
(`--point=NAME`), resumes as any run does, and none can take another down. The driver only starts
commands, watches what they leave, and draws the conclusion.
"""

import contextlib
import dataclasses
import pathlib
import signal
import sys
import time

from etils import epath

from rim_jax import reader, terminal
from rim_jax.config import grid as grid_lib
from rim_jax.config import stages as stages_lib
from rim_jax.config.grid import Point
from rim_jax.errors import FolderTaken, ShareDone, Stopped, UserError, check, refuse
from rim_jax.report import sweep_page
from rim_jax.report import sweep_results as sweep_results_lib
from rim_jax.results import stats
from rim_jax.runtime import devices, hosts, point_run, storage
from rim_jax.runtime.point_run import PointRun
from rim_jax.sweep import halving as halving_lib
from rim_jax.sweep import jobs, live_table

_WAIT_SECS = 30.0  # before one that another process holds is tried again


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What --mode=sweep is asked to run, and how."""
  points: list[Point]
  workdir: epath.Path
  source: str  # the recipe, FILE[:PRESET]
  overrides: list[str] = dataclasses.field(default_factory=list)  # --config.KEY=VALUE of all runs
  num_jobs: int = 1
  retry_failed: bool = False
  halving: halving_lib.Halving | None = None
  controls: bool = False  # every run that has memory is asked, when all are done, what it does
  conclude_only: bool = False  # nothing is run

  def make_command(self, point: Point, more=()) -> list[str]:
    """The command of one point, as anyone can run it."""
    return [sys.executable, '-m', 'rim_jax.main', f'--config={self.source}',
            f'--point={point.name}', f'--identity={grid_lib.identify(point.config)}',
            f'--workdir={self.workdir / "points" / point.name}', *self.overrides, *more]


# ---- Which folder is whose ----


def adopt(points, workdir, say) -> None:
  """Gives each point that has no folder the one of a point that is named otherwise now.

  A run is what it computes, so a factor that was renamed, or was added where it changes nothing,
  runs nothing anew. Only a folder that is no point's of the recipe is taken; where several would
  do, one that is done. A move is one rename: killed between two, the next start goes on.
  Raises: UserError where such a folder is still at work.
  """
  folder, names = epath.Path(workdir) / 'points', {point.name for point in points}
  left = _find_left(folder, names)
  for point in points:
    found, to = left.get(grid_lib.identify(point.config)), folder / point.name
    if found and not to.exists():
      old = found.pop(0)
      with contextlib.ExitStack() as stack:
        for name, _ in stages_lib.make_stages(point.config):  # each is held by itself
          if (old / name).exists():
            stack.enter_context(storage.hold(old / name))
        storage.move(old, to)
      say(f'{point.name}: is the run that was named {old.name}; its folder is moved')


def _find_left(folder, names) -> dict[str, list[epath.Path]]:
  """Identity -> folders below `folder` that hold such a run under none of `names`, done first."""
  found = [(told, path) for path in (sorted(folder.iterdir()) if folder.exists() else ())
           if path.name not in names and (told := point_run.load_told(path))]
  found.sort(key=lambda left: left[0]['status'] != 'done')
  return stats.group((told['identity'], path) for told, path in found)


@contextlib.contextmanager
def keep_point(point: Point, names, workdir, say=print):
  """A run that nobody drives (a job of its own) tells its state where a driver looks for it.

  It looks for itself by name alone: jobs begin at once, and a bucket has no renames. So one that
  was renamed begins anew, and says which folder a driver would have moved.

  Args:
    names: of all points of the recipe.
  Raises: UserError where the sweep's directory holds another config under its name.
  """
  folder = epath.Path(workdir) / 'points'
  run = PointRun(point, folder / point.name)

  def look():
    left = {} if run.folder.exists() else _find_left(folder, names)
    run.read_status()
    return run.status, [str(f) for f in left.get(grid_lib.identify(point.config), ())]

  def tell(status, error=''):
    if hosts.is_leader():
      run.set_status(status, error)
  status, left = hosts.lead(look)
  if left:
    say(f'{left[0]}: is this run under the name that it had; a job begins anew. To go on from it, '
        f'end this one and move it to {run.folder}, as --mode=sweep does on a disk')
  if status != 'done':
    tell('running')
  try:
    yield
  except FolderTaken:  # another tells how it goes
    raise
  except (Stopped, KeyboardInterrupt):
    tell('waiting')
    raise
  except BaseException as e:
    tell('failed', f'{type(e).__name__}: {" ".join(str(e).split())}'[:300])
    raise
  tell('done')


# ---- Running ----


def run_points(sweep: Sweep, say, console) -> list[PointRun]:
  """Runs what is left, `num_jobs` at a time, devices divided between them.

  A stop (Ctrl-C, SIGTERM) ends the runs under way as a stop ends any run: saved.
  """
  runs = point_run.load_point_runs(sweep.points, sweep.workdir)
  for run in runs:
    # A running one's driver was killed; a dropped one is judged anew, or goes on without halving.
    if run.status in ('running', 'dropped') or (run.status == 'failed' and sweep.retry_failed):
      run.status, run.error = 'waiting', ''
  say(f'{len(runs)} points: {sum(r.status == "done" for r in runs)} done before, '
      f'{sum(r.status == "waiting" for r in runs)} to run, {sweep.num_jobs} at a time')
  with live_table.Board(runs, console) as shown:
    places = devices.divide(sweep.num_jobs)
    contenders, rungs, path = runs, [], sweep.workdir / 'halving.json'
    halves = sweep.halving or halving_lib.Halving((), 1.0)  # none: nothing is judged
    path.unlink(missing_ok=True)
    for share in halves.shares:
      halving_lib.check_rules(contenders, share)
      _run_all(contenders, sweep, places, shown, share)
      rungs.append(halving_lib.judge(contenders, share, halves.keep))
      storage.write_json(path, {
          'format': point_run.SWEEP_VERSION, 'keep': halves.keep, 'rungs': rungs})
      contenders = _drop(contenders, rungs[-1], say)
    _run_all(runs, sweep, places, shown)
  return runs


def _drop(runs, rung, say) -> list[PointRun]:
  """Ends the settings that do not go on, and says so of each; returns those that do.

  What is done stays done, but takes no place of the next share.
  """
  ended = {}
  for setting in rung['settings']:
    told = halving_lib.describe(setting, rung)
    say(f"{setting['name']}: {'goes on' if setting['goes_on'] else 'ends'} {told}")
    if not setting['goes_on']:
      ended[setting['name']] = told
  for run in runs:
    name = grid_lib.name_setting(run.point)
    if name in ended and run.status == 'waiting':
      run.set_status('dropped', ended[name])
  return [r for r in runs if grid_lib.name_setting(r.point) not in ended]


def _run_all(runs: list[PointRun], sweep: Sweep, places, shown: live_table.Board,
             share: float = 1.0) -> None:
  """Runs each that waits until it is done or has failed, or has done this share of its budget."""
  def is_to_run(run):
    return run.status == 'waiting' and (
        share == 1 or halving_lib.read_score(run, share) is None)
  waiting, not_before = [r for r in runs if is_to_run(r)], {}

  def is_ready(run):
    return not_before.get(run.point.name, 0.0) <= time.monotonic()

  def start(run, place):
    run.set_status('running')
    more = [f'--config.checkpoint.stop_frac={share}'] if share < 1 else []
    return jobs.Job(sweep.make_command(run.point, more), place, run.folder / 'output.txt')

  def finish(run, end, is_stopped):
    if _tell_end(run, end, share):
      not_before[run.point.name] = time.monotonic() + _WAIT_SECS
    if not is_stopped and is_to_run(run):
      waiting.append(run)
  jobs.run_all(waiting, places, start, finish, is_ready, shown.update)


def _tell_end(run: PointRun, end: jobs.End, share: float) -> bool:
  """Tells how a run ended; returns whether another process has its folder, for now."""
  # One that was stopped, or whose folder the run of a killed driver still holds, has not failed.
  taken = end.kind == FolderTaken.__name__
  is_share = end.kind == ShareDone.__name__
  again = taken or is_share or end.code in (Stopped.exit_code, -signal.SIGTERM)
  status = 'waiting' if again else 'done' if end.code == 0 else 'failed'
  error = f'exit code {end.code}: {end.told}' if end.code not in (
      0, Stopped.exit_code) else ''
  if share < 1 and is_share and (
      halving_lib.read_score(run, share) is None):  # or it would be started again for ever
    status, error = 'failed', (
        f'ended at {share:.0%} of its budget without an accuracy on valid of that step; is '
        'checkpoint.every_steps other than it was?')
  run.set_status(status, error)
  return taken


# ---- A whole sweep ----


def drive(sweep: Sweep, say, console) -> None:
  """--mode=sweep: runs what is left, asks controls if told to, and shows what all say together.

  Raises: UserError for what is wrong with flags or WORKDIR, and where a point failed.
  """
  _check(sweep)
  workdir, unanswered = pathlib.Path(sweep.workdir), []
  if sweep.controls:
    from rim_jax.sweep import ask_controls  # late: runs are driven without a model
    ask_controls.check(sweep.points)
  workdir.mkdir(parents=True, exist_ok=True)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
  with storage.hold(workdir):
    adopt(sweep.points, workdir, say)
    try:
      runs = point_run.load_point_runs(sweep.points, workdir) if (
          sweep.conclude_only) else run_points(sweep, say, console)
      _conclude(runs, sweep)
      if sweep.controls:
        unanswered = ask_controls.ask(
            runs, sweep.make_command, devices.divide(sweep.num_jobs), say)
        _conclude(runs, sweep)
    except KeyboardInterrupt:
      raise Stopped(f'{workdir}: asked to end; the runs under way are saved, and the same '
                    'command goes on; controls under way are asked anew') from None
  for line in reader.read_text(workdir / 'sweep.md', 'run it again').split('\n'):
    say(line)
  say(f'files: {workdir}/ (sweep.json, sweep.csv, sweep.md, figures/, points/)')
  say(f'report: {workdir / "report.html"}')
  unsealed = [str(run.folder) for run in runs if run.last[1].list_unsealed()]
  if unsealed:
    say(f'{len(unsealed)} of {len(runs)} runs have files without a digest, as earlier versions '
        f'wrote them, so that a change of one is not seen: {", ".join(unsealed[:3])}'
        + ', ...' * (len(unsealed) > 3))
  for run in runs:
    if run.status == 'done' and run.result is None:
      say(f'{run.point.name}: is done, and was not evaluated as eval now says: '
          + terminal.join(sweep.make_command(run.point, ['--mode=eval'])))
  failed = [f'{r.folder}: {r.error}; its output.txt has more; run again with --retry_failed'
            for r in runs if r.status == 'failed']
  refuse(failed + unanswered)


def _check(sweep: Sweep) -> None:
  """Raises: UserError for what is wrong with flags or WORKDIR."""
  early = [p.name for p in sweep.points if p.config.checkpoint.stop_frac < 1]
  in_bucket = storage.is_bucket(sweep.workdir)  # which is not asked for anything
  check(
      (in_bucket,
       f'--workdir={sweep.workdir}: a sweep is driven from a local directory'),
      (sweep.num_jobs < 1, f'--jobs={sweep.num_jobs}: must be 1 or more'),
      (early, f'{"".join(early[:1])}: checkpoint.stop_frac below 1: the runs of a sweep go to '
       'their end; drop the worst with --halve_at, or run one with --point'),
      (not in_bucket and (sweep.workdir / 'config.json').exists()
       and not (sweep.workdir / 'points').exists(),
       f'{sweep.workdir}: is the directory of a run; a sweep needs another --workdir'),
      (sweep.conclude_only and not in_bucket and not sweep.workdir.exists(),
       f'{sweep.workdir}: there is no sweep here; name its --workdir'))


def _conclude(runs: list[PointRun], sweep: Sweep) -> None:
  conclusion = sweep_results_lib.conclude(runs, sweep.workdir)
  sweep_page.write_summary(sweep.workdir, f'rim_jax: {sweep.source}', conclusion, runs)


def show_dry(sweep: Sweep, hardware: str, utilization: float, say) -> None:
  """Every point's cost and command, and what all take together.

  Raises: UserError for a machine that is not known, and where points cannot run.
  """
  from rim_jax.planning import cost as cost_lib
  from rim_jax.planning import machines  # late: a driver needs no model
  if not 0 < utilization <= 1:
    raise UserError(f'--utilization={utilization}: is a share of the peak, above 0 and at most 1')
  machine = machines.parse_hardware(hardware)
  found = [cost_lib.estimate(point.config) for point in sweep.points]
  for point, cost in zip(sweep.points, found):
    # What ends many points is told once, at the end.
    shown = dataclasses.replace(cost, why='it cannot run here') if cost.faults else cost
    say(f'{point.name}: {cost_lib.describe(shown, machine, utilization)}')
    say('  ' + terminal.join(sweep.make_command(point)))
  known = [cost for cost in found if cost.flops is not None]
  total = cost_lib.Estimate(sum(c.num_examples or 0 for c in known),
                            sum(c.flops or 0 for c in known))
  say(f'total: {len(sweep.points)} points'
      + (f', {cost_lib.describe(total, machine, utilization)}' if known else '')
      + (f'; the FLOPs of {len(found) - len(known)} are not known' * (len(known) < len(found)))
      + '; less with --halve_at, which drops some' * bool(sweep.halving))
  say(f'hours: one point after the other on {machine.name} ({machine.num_chips} x '
      f'{machine.flops_per_sec / machine.num_chips / 1e12:.0f} TFLOP/s bf16), at an assumed '
      f'{utilization:.0%} of the peak (--utilization); a small model gets far less')
  refuse(list(dict.fromkeys(fault for cost in found for fault in cost.faults)))
