"""Many runs from one recipe: points, each a run of its own, and what they say together.

A recipe returns `points.make_sweep_dict(base, points)`. Every point is validated before the first
one starts, and runs as a command of its own in WORKDIR/points/NAME, so that it can be run by hand
(`--point=NAME`), resumes as any run does, and none can take another down. The driver only starts
commands, watches what they leave, and draws the conclusion.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from etils import epath

from rim_jax.config import Config
from rim_jax.config import grid as grid_lib
from rim_jax.config import stages as stages_lib
from rim_jax.config.grid import Point
from rim_jax.errors import Stopped, UserError
from rim_jax.report import sweep_page
from rim_jax.report import sweep_results as sweep_results_lib
from rim_jax.runtime import devices, hosts, storage
from rim_jax.sweep import halving as halving_lib
from rim_jax.sweep import live_table

SWEEP_VERSION = 1
_POLL_SECS = 0.5
_AT_WORK = 'is at work here'  # of a run that another process holds
_WAIT_SECS = 30.0  # before one that another process holds is tried again


# ---- What a point has left ----


@dataclasses.dataclass
class State:
  """Where a point stands. `status`: waiting | running | done | failed | dropped (by halving.py)."""
  point: Point
  folder: pathlib.Path
  status: str = 'waiting'
  error: str = ''
  process: subprocess.Popen | None = None
  slot: int = -1
  output_at: int = 0  # where in its output.txt the run under way begins
  not_before: float = 0.0  # on time.monotonic's clock

  @property
  def result(self) -> dict | None:
    """What the last stage says of the set that its config names, once done."""
    config, folder = self.last
    if self.status != 'done':
      return None
    return storage.load_json(folder / 'results.json', 'the results').get(config.eval_set)

  @property
  def predictions(self) -> pathlib.Path:
    config, folder = self.last
    return folder / 'predictions' / f'{config.eval_set}.jsonl'

  @property
  def last(self) -> tuple[Config, pathlib.Path]:
    """(config, folder) of the stage whose answers count."""
    return stages_lib.get_last(self.point.config, self.folder)


def load_states(points, workdir) -> list[State]:
  """What a driver before this one knew of them.

  Raises: UserError where a folder holds a point of the same name and another config.
  """
  states, problems = [], []
  for point in points:
    state = State(point, epath.Path(workdir) / 'points' / point.name)
    try:
      state.status, state.error = _read_told(state)
    except UserError as e:
      problems.append(str(e))
    states.append(state)
  if problems:
    raise UserError('\n'.join(problems))
  return states


def _read_told(state: State) -> tuple[str, str]:
  """(status, error) of a point as it was told last, if it was."""
  path = state.folder / 'point.json'
  if not path.exists():
    return state.status, state.error
  told = storage.load_json(path, 'the state of a point')
  if told['identity'] != grid_lib.identify(state.point.config):
    raise UserError(f'{state.folder}: holds a run of another config than {state.point.name} has '
                    'now; use another --workdir, or remove that folder')
  return told['status'], told['error']


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


def _find_left(folder, names) -> dict[str, list]:
  """Identity -> folders below `folder` that hold such a run under none of `names`, done first."""
  left = {}
  for path in sorted(folder.iterdir()) if folder.exists() else ():
    if path.name not in names and (path / 'point.json').exists():
      told = storage.load_json(path / 'point.json', 'the state of a point')
      left.setdefault(told['identity'], []).append((told['status'] != 'done', path))
  return {identity: [path for _, path in sorted(found, key=lambda f: f[0])]
          for identity, found in left.items()}


def _keep(state: State) -> None:
  storage.write_json(state.folder / 'point.json', {
      'format': SWEEP_VERSION, 'identity': grid_lib.identify(state.point.config),
      'status': state.status, 'error': state.error})


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
  state = State(point, folder / point.name)

  def look():
    left = {} if state.folder.exists() else _find_left(folder, names)
    return *_read_told(state), [str(f) for f in left.get(grid_lib.identify(point.config), ())]
  state.status, state.error, left = hosts.lead(look)
  if left:
    say(f'{left[0]}: is this run under the name that it had; a job begins anew. To go on from it, '
        f'end this one and move it to {state.folder}, as --mode=sweep does on a disk')
  if state.status != 'done':
    _tell(state, 'running')
  try:
    yield
  except BaseException as e:
    if not isinstance(e, UserError) or _AT_WORK not in str(e):  # else another tells how it goes
      asked = isinstance(e, (Stopped, KeyboardInterrupt))
      _tell(state, 'waiting' if asked else 'failed',
            '' if asked else f'{type(e).__name__}: {" ".join(str(e).split())}'[:300])
    raise
  _tell(state, 'done')


def _tell(state, status, error=''):
  state.status, state.error = status, error
  if hosts.is_leader():
    state.folder.mkdir(parents=True, exist_ok=True)
    _keep(state)


# ---- Running ----


def run(points, workdir, source: str, overrides, num_jobs: int, retry_failed: bool,
        halving: halving_lib.Halving | None, say, console) -> list[State]:
  """Runs what is left, `num_jobs` at a time, devices divided between them.

  A stop (Ctrl-C, SIGTERM) ends the runs under way as a stop ends any run: saved.
  """
  states, places = load_states(points, workdir), devices.divide(num_jobs)
  for state in states:
    if state.status == 'failed' and retry_failed:
      state.status, state.error = 'waiting', ''
    elif state.status == 'running':  # its driver was killed
      state.status = 'waiting'
    elif state.status == 'dropped':  # to be judged anew, or without halving to go on
      state.status, state.error = 'waiting', ''
  say(f'{len(states)} points: {sum(s.status == "done" for s in states)} done before, '
      f'{sum(s.status == "waiting" for s in states)} to run, {num_jobs} at a time')
  with live_table.Board(states, console) as shown:
    contenders, rungs = states, []
    (pathlib.Path(workdir) / 'halving.json').unlink(missing_ok=True)
    for share in halving.shares if halving else ():
      _run_all(contenders, source, [*overrides, f'--config.checkpoint.stop_frac={share}'],
               places, shown, share)
      rungs.append(halving_lib.judge(contenders, share, halving.keep))
      storage.write_json(pathlib.Path(workdir) / 'halving.json', {
          'format': SWEEP_VERSION, 'keep': halving.keep, 'rungs': rungs})
      contenders = _drop(contenders, rungs[-1], say)
    _run_all(states, source, overrides, places, shown)
  return states


def _drop(states, rung, say) -> list[State]:
  """Ends the settings that do not go on, and says so of each; returns those that do.

  What is done stays done, but takes no place of the next share.
  """
  ended = {}
  for setting in rung['settings']:
    told = halving_lib.describe(setting, rung)
    say(f"{setting['name']}: {'goes on' if setting['goes_on'] else 'ends'} {told}")
    if not setting['goes_on']:
      ended[setting['name']] = told
  for state in states:
    name = grid_lib.name_setting(state.point)
    if name in ended and state.status == 'waiting':
      state.status, state.error = 'dropped', ended[name]
      _keep(state)
  return [s for s in states if grid_lib.name_setting(s.point) not in ended]


def _run_all(states, source, overrides, places, shown, share: float = 1.0) -> None:
  """Runs each that waits until it is done or has failed, or has done this share of its budget."""
  def is_to_run(state):
    return state.status == 'waiting' and (
        share == 1 or halving_lib.read_score(state, share) is None)
  waiting = [s for s in states if is_to_run(s)]
  slots = list(range(len(places)))
  try:
    while waiting or any(s.process for s in states):
      while slots and (ready := [s for s in waiting if s.not_before <= time.monotonic()]):
        state = ready[0]
        waiting.remove(state)
        state.slot = slots.pop(0)
        _start(state, source, overrides, places[state.slot])
      for state in states:
        if state.process and state.process.poll() is not None:
          _finish(state, share)
          slots.append(state.slot)
          if is_to_run(state):
            waiting.append(state)
      shown.update()
      time.sleep(_POLL_SECS)
  finally:
    for state in states:
      if state.process:
        state.process.terminate()
    for state in states:
      if state.process:
        state.process.wait()
        _finish(state, share)


def make_command(point: Point, folder, source: str, overrides) -> list[str]:
  """The command of one point, as anyone can run it."""
  return [sys.executable, '-m', 'rim_jax.main', f'--config={source}', f'--point={point.name}',
          f'--identity={grid_lib.identify(point.config)}', f'--workdir={folder}', *overrides]


def _start(state: State, source, overrides, place) -> None:
  state.folder.mkdir(parents=True, exist_ok=True)
  state.status = 'running'
  _keep(state)
  with open(state.folder / 'output.txt', 'ab') as log:
    state.output_at = log.tell()
    state.process = devices.start(
        make_command(state.point, state.folder, source, overrides), place, log)


def _finish(state: State, share: float) -> None:
  code = state.process.returncode
  state.process = None
  told = devices.read_told(state.folder / 'output.txt', state.output_at)
  # One that was stopped, or whose folder the run of a killed driver still holds, has not failed.
  again = code in (hosts.EXIT_STOPPED, -signal.SIGTERM) or (code == 2 and _AT_WORK in told)
  state.status = 'done' if code == 0 else 'waiting' if again else 'failed'
  if _AT_WORK in told and again:
    state.not_before = time.monotonic() + _WAIT_SECS
  state.error = f'exit code {code}: {told}' if code and code != hosts.EXIT_STOPPED else ''
  if share < 1 and code == hosts.EXIT_STOPPED and stages_lib.NO_MORE in told and (
      halving_lib.read_score(state, share) is None):  # or it would be started again for ever
    state.status = 'failed'
    state.error = (f'ended at {share:.0%} of its budget without an accuracy on valid of that step; '
                   'is checkpoint.every_steps other than it was?')
  _keep(state)


# ---- A whole sweep ----


def drive(points, workdir, source: str, overrides, num_jobs: int, retry_failed: bool, say,
          console, conclude_only: bool = False, halving: halving_lib.Halving | None = None,
          controls: bool = False) -> None:
  """--mode=sweep: runs what is left and shows what all say together; --conclude: shows it only.

  With `controls` every run that has memory is asked before that, too, what it does
  (ask_controls.py).

  Raises: UserError for what is wrong with flags or WORKDIR, and where a point failed.
  """
  if storage.is_bucket(workdir):
    raise UserError(f'--workdir={workdir}: a sweep is driven from a local directory')
  if num_jobs < 1:
    raise UserError(f'--jobs={num_jobs}: must be 1 or more')
  early = [p.name for p in points if p.config.checkpoint.stop_frac < 1]
  if early:
    raise UserError(f'{early[0]}: checkpoint.stop_frac below 1: the runs of a sweep go to their '
                    'end; drop the worst with --halve_at, or run one with --point')
  workdir, unanswered = pathlib.Path(workdir), []
  if conclude_only and not workdir.exists():
    raise UserError(f'{workdir}: there is no sweep here; name its --workdir')
  if controls:
    from rim_jax.sweep import ask_controls  # late: runs are driven without a model
    ask_controls.check(points)
  workdir.mkdir(parents=True, exist_ok=True)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
  with storage.hold(workdir):
    adopt(points, workdir, say)
    try:
      states = load_states(points, workdir) if conclude_only else run(
          points, workdir, source, overrides, num_jobs, retry_failed, halving, say, console)
      _conclude(states, workdir, source)
      if controls:
        unanswered = ask_controls.ask(states, functools.partial(
            make_command, source=source, overrides=overrides), devices.divide(num_jobs), say)
        _conclude(states, workdir, source)
    except KeyboardInterrupt:
      raise Stopped(f'{workdir}: asked to end; the runs under way are saved, and the same '
                          'command goes on; controls under way are asked anew') from None
  say((workdir / 'sweep.md').read_text())
  say(f'files: {workdir}/ (sweep.json, sweep.csv, sweep.md, figures/, points/)')
  say(f'report: {workdir / "report.html"}')
  for state in states:
    if state.status == 'done' and state.result is None:
      say(f'{state.point.name}: is done, and was not evaluated as eval now says: '
          + shlex.join([*make_command(state.point, state.folder, source, overrides),
                        '--mode=eval']))
  failed = [f'{s.folder}: {s.error}; its output.txt has more; run again with --retry_failed'
            for s in states if s.status == 'failed']
  if failed or unanswered:
    raise UserError('\n'.join(failed + unanswered))


def _conclude(states, workdir, source) -> None:
  conclusion = sweep_results_lib.conclude(states, workdir)
  sweep_page.write_summary(workdir, f'rim_jax: {source}', conclusion, states)


def show_dry(points, workdir, source, overrides, hardware: str, utilization: float, say,
             halving: halving_lib.Halving | None = None) -> None:
  """Every point's cost and command, and what all take together.

  Raises: UserError for a machine that is not known.
  """
  from rim_jax.planning import compile as compile_lib  # late: a driver needs no model
  from rim_jax.planning import cost as cost_lib
  if not 0 < utilization <= 1:
    raise UserError(f'--utilization={utilization}: is a share of the peak, above 0 and at most 1')
  machine = compile_lib.parse_hardware(hardware)
  found = [cost_lib.estimate(point.config) for point in points]
  for point, cost in zip(points, found):
    folder = pathlib.Path(workdir) / 'points' / point.name
    say(f'{point.name}: {cost_lib.describe(cost, machine, utilization)}')
    say('  ' + shlex.join(make_command(point, folder, source, overrides)))
  known = [cost for cost in found if cost.flops is not None]
  total = cost_lib.Estimate(sum(c.num_examples for c in known), sum(c.flops for c in known))
  say(f'total: {len(points)} points'
      + (f', {cost_lib.describe(total, machine, utilization)}' if known else '')
      + (f'; the FLOPs of {len(found) - len(known)} are not known' * (len(known) < len(found))))
  if halving:
    count = len({grid_lib.name_setting(point) for point in points})
    say(f'with --halve_at about {halving_lib.estimate_share(halving, count):.0%} of that, and more '
        f'where a share ends between two of checkpoint.every_steps: of {count} settings '
        + ', '.join(f'{kept} go on after {share:.0%}' for share, kept in halving_lib.list_kept(
            halving, count)))
  say(f'hours: one point after the other on {machine.name} ({machine.num_chips} x '
      f'{machine.flops_per_sec / machine.num_chips / 1e12:.0f} TFLOP/s bf16), at an assumed '
      f'{utilization:.0%} of the peak (--utilization); a small model gets far less')
