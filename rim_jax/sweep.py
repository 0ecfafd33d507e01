"""Many runs from one recipe: points, each a run of its own, and what they say together.

A recipe returns `points.make_sweep_dict(base, points)`. Every point is validated before the first
one starts, and runs as a command of its own in WORKDIR/points/NAME, so that it can be run by hand
(`--point=NAME`), resumes as any run does, and none can take another down. The driver only starts
commands, watches what they leave, and draws the conclusion.
"""

import collections
import csv
import ctypes
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from rich import box, live, table
from rich.text import Text

from rim_jax import config as config_lib
from rim_jax import metrics as metrics_lib
from rim_jax import points as points_lib
from rim_jax import stats
from rim_jax import storage
from rim_jax import summary
from rim_jax.config import Config, UserError

SWEEP_VERSION = 1
_POLL_SECS = 0.5
_STOPPED = 75  # main.py's exit code of a run that was asked to end
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_TELL_SECS = 30.0  # between two lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep: its name, what sets it apart, and its whole config."""
  name: str
  factors: dict
  config: Config


def load_points(tree, source: str) -> list[Point]:
  """The points of a recipe's ConfigDict, all validated.

  Raises: UserError with every problem of every point.
  """
  tree = tree.to_dict()
  points, problems, names = [], [], collections.Counter()
  for entry in tree.pop('points'):
    name = name_point(entry['factors'])
    names[name] += 1
    try:
      config = config_lib.parse_config(points_lib.change(tree, entry['set']), f'{source}: {name}')
    except UserError as e:
      problems.append(str(e))
      continue
    points.append(Point(name, dict(entry['factors']), config))
  problems += [f'{source}: {count} points are named {name}; give them factors that differ'
               for name, count in names.items() if count > 1]
  if not names:
    problems.append(f'{source}: has no points; its grid is empty')
  if problems:
    raise UserError('\n'.join(problems))
  return points


def name_point(factors: dict) -> str:
  """`lr=0.0003,seed=1`: readable, and a folder's name."""
  return ','.join(f'{key}={value}'.replace('/', '_') for key, value in factors.items())


def identify(config: Config) -> str:
  """A hash of what a run computes; where and when it does is left out."""
  flat = {key: value for key, value in config_lib.flatten(config).items()
          if key.split('.')[0] not in config_lib.RUNTIME_SECTIONS
          and key not in config_lib.RUNTIME_KEYS}
  return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


# ---- What a point has left ----


@dataclasses.dataclass
class State:
  """Where a point stands. `status`: waiting | running | done | failed."""
  point: Point
  folder: pathlib.Path
  status: str = 'waiting'
  error: str = ''
  process: subprocess.Popen | None = None
  slot: int = -1

  @property
  def result(self) -> dict | None:
    """What the last stage says of its evaluation split, once done."""
    return load_result(self)

  @property
  def last(self) -> tuple[Config, pathlib.Path]:
    """(config, folder) of the stage whose answers count."""
    name, config = config_lib.make_stages(self.point.config)[-1]
    return config, self.folder / name if name else self.folder


def load_states(points, workdir) -> list[State]:
  """What a driver before this one knew of them.

  Raises: UserError where a folder holds a point of the same name and another config.
  """
  states, problems = [], []
  for point in points:
    folder = pathlib.Path(workdir) / 'points' / point.name
    state = State(point, folder)
    path = folder / 'point.json'
    if path.exists():
      told = storage.load_json(path, 'the state of a point')
      if told['identity'] != identify(point.config):
        problems.append(f'{folder}: holds a run of another config than {point.name} has now; use '
                        'another --workdir, or remove that folder')
      state.status, state.error = told['status'], told['error']
    states.append(state)
  if problems:
    raise UserError('\n'.join(problems))
  return states


def _keep(state: State) -> None:
  storage.write_json(state.folder / 'point.json', {
      'format': SWEEP_VERSION, 'identity': identify(state.point.config), 'status': state.status,
      'error': state.error})


def read_progress(state: State) -> str:
  """Stage, step and loss of a run, from its metrics."""
  told = ''
  for name, _ in config_lib.make_stages(state.point.config):
    lines = [x for x in metrics_lib.load_metrics(state.folder / name) if 'train/loss' in x]
    if lines:
      told = f'{name or "train"} step {lines[-1]["step"]}, loss {lines[-1]["train/loss"]:.4f}'
  return told


def load_result(state: State) -> dict | None:
  """What a done point's last stage says of its evaluation split."""
  config, folder = state.last
  path = folder / 'results.json'
  if state.status != 'done' or not path.exists():
    return None
  results = storage.load_json(path, 'the results')
  return results.get(config.eval.split) or list(results.values())[-1]


# ---- Running ----


def run(points, workdir, source: str, overrides, num_jobs: int, retry_failed: bool, say, console
        ) -> list[State]:
  """Runs what is left, `num_jobs` at a time, devices divided between them.

  A stop (Ctrl-C, SIGTERM) ends the runs under way as a stop ends any run: saved.
  """
  states = load_states(points, workdir)
  for state in states:
    if state.status == 'failed' and retry_failed:
      state.status, state.error = 'waiting', ''
    elif state.status == 'running':  # its driver was killed
      state.status = 'waiting'
  waiting = [s for s in states if s.status == 'waiting']
  say(f'{len(states)} points: {sum(s.status == "done" for s in states)} done before, '
      f'{len(waiting)} to run, {num_jobs} at a time')
  slots = list(range(num_jobs))
  with _Table(states, console) as shown:
    try:
      while waiting or any(s.process for s in states):
        while waiting and slots:
          state = waiting.pop(0)
          state.slot = slots.pop(0)
          _start(state, source, overrides, num_jobs)
        for state in states:
          if state.process and state.process.poll() is not None:
            _finish(state)
            slots.append(state.slot)
            if state.status == 'waiting':
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
          _finish(state)
  return states


def make_command(point: Point, folder, source: str, overrides) -> list[str]:
  """The command of one point, as anyone can run it."""
  return [sys.executable, '-m', 'rim_jax.main', f'--config={source}', f'--point={point.name}',
          f'--workdir={folder}', *overrides]


def _start(state: State, source, overrides, num_jobs) -> None:
  state.folder.mkdir(parents=True, exist_ok=True)
  state.status = 'running'
  _keep(state)
  cores = sorted(os.sched_getaffinity(0))[state.slot::num_jobs]

  def limit():
    if num_jobs > 1 and cores:
      os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # it stops, saved, with its driver
  with open(state.folder / 'output.txt', 'a') as log:
    state.process = subprocess.Popen(
        make_command(state.point, state.folder, source, overrides), stdout=log,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=limit,
        env=dict(os.environ, **divide_devices(os.environ, state.slot, num_jobs)))


def divide_devices(environ, slot: int, num_jobs: int) -> dict:
  """The GPUs of one of several runs at a time; with fewer GPUs than runs they are shared."""
  gpus = [x for x in environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if x]
  if num_jobs == 1 or not gpus:
    return {}
  mine = gpus[slot::num_jobs] or [gpus[slot % len(gpus)]]
  return {'CUDA_VISIBLE_DEVICES': ','.join(mine)}


def _finish(state: State) -> None:
  code = state.process.returncode
  state.process = None
  lines = (state.folder / 'output.txt').read_text().strip().split('\n')
  told = ([line for line in lines if line.startswith('error:')] or lines)[-1][:300]
  # One that was stopped, or whose folder the run of a killed driver still holds, has not failed.
  again = code in (_STOPPED, -signal.SIGTERM) or (code == 2 and 'is at work here' in told)
  state.status = 'done' if code == 0 else 'waiting' if again else 'failed'
  state.error = f'exit code {code}: {told}' if state.status == 'failed' else ''
  _keep(state)


class _Table:
  """One live table on a terminal; elsewhere a line as a point changes, and every 30 s."""

  def __init__(self, states, console):
    self._states, self._console = states, console
    self._live = live.Live(console=console, auto_refresh=False) if console.is_terminal else None
    self._told, self._at = {}, 0.0

  def __enter__(self):
    if self._live:
      self._live.__enter__()
    return self

  def __exit__(self, *error):
    self.update(last=True)
    if self._live:
      self._live.__exit__(*error)

  def update(self, last=False):
    if self._live:
      self._live.update(make_table(self._states), refresh=True)
      return
    now = time.monotonic()
    for state in self._states:
      changed = self._told.get(state.point.name) != state.status
      due = state.status == 'running' and now - self._at >= _TELL_SECS and not last
      if (changed and state.status != 'waiting') or due:
        self._console.print(
            f'{state.point.name}: {state.status}  {state.error or read_progress(state)}',
            soft_wrap=True, markup=False, highlight=False)
      self._told[state.point.name] = state.status
    if now - self._at >= _TELL_SECS:
      self._at = now


def make_table(states) -> table.Table:
  shown = table.Table('point', 'state', 'where it is', box=box.SIMPLE)
  for state in states:
    result = load_result(state)
    told = (f"{result['final_acc']:.1%} after {result['step']} steps" if result else
            state.error or (read_progress(state) if state.status == 'running' else ''))
    shown.add_row(Text(state.point.name), Text(state.status), Text(told))
  return shown


# ---- The conclusion ----


def conclude(states, workdir) -> dict:
  """What the done points say: one entry a combination of factors, over its seeds.

  Writes WORKDIR/sweep.json, sweep.csv and sweep.md.
  """
  groups = {}
  for state in states:
    factors = {k: v for k, v in state.point.factors.items() if k != 'seed'}
    groups.setdefault(name_point(factors), []).append(state)
  entries = []
  for name, members in groups.items():
    found = [(s, load_result(s)) for s in members]
    found = [(s, r) for s, r in found if r]
    entry = {'name': name, 'factors': {k: v for k, v in members[0].point.factors.items()
                                       if k != 'seed'},
             'num_points': len(members), 'num_done': len(found),
             'failed': {s.point.name: s.error for s in members if s.status == 'failed'}}
    if found:
      entry |= _summarize([r for _, r in found])
      entry['steps'] = sorted({_count_steps(s) for s, _ in found})
      entry['points'] = [s.point.name for s, _ in found]
    entries.append(entry)
  _compare_with_best(entries, {s.point.name: s for s in states})
  conclusion = {'format': SWEEP_VERSION, 'entries': entries}
  workdir = pathlib.Path(workdir)
  storage.write_json(workdir / 'sweep.json', conclusion)
  storage.write_text(workdir / 'sweep.csv', _make_csv(entries))
  storage.write_text(workdir / 'sweep.md', make_markdown(entries))
  return conclusion


def _summarize(results) -> dict:
  found = {}
  for key in ('final_acc', 'any_block_acc', 'majority_acc', 'ttft_ms'):
    values = [r[key] for r in results if key in r]
    if values:
      found[key] = dataclasses.asdict(stats.summarize(values)) | {'values': values}
  widths = {len(r['block_acc']) for r in results}
  if len(widths) == 1:
    found['block_acc'] = [stats.summarize(b).mean for b in zip(*(r['block_acc'] for r in results))]
  return found | {'n': results[0]['n']}


def _count_steps(state: State) -> int:
  """Updates over all stages."""
  return sum(max((x['step'] for x in metrics_lib.load_metrics(state.folder / name)), default=0)
             for name, _ in config_lib.make_stages(state.point.config))


def _compare_with_best(entries, states) -> None:
  """McNemar of each entry against the best, seed by seed, on the same questions."""
  done = [e for e in entries if e['num_done']]
  if len(done) < 2:
    return
  best = max(done, key=lambda e: e['final_acc']['mean'])
  for entry in done:
    if entry is best:
      continue
    pairs = zip(entry['points'], best['points'])
    entry['against_best'] = {'best': best['name'], 'tests': [
        dataclasses.asdict(stats.compare_files(*(_find_predictions(states[n]) for n in pair)))
        for pair in pairs]}


def _find_predictions(state: State) -> pathlib.Path:
  config, folder = state.last
  path = folder / 'predictions' / f'{config.eval.split}.jsonl'
  return path if path.exists() else max((folder / 'predictions').glob('*.jsonl'))


def _make_csv(entries) -> str:
  out = io.StringIO()
  rows = csv.writer(out, lineterminator='\n')
  keys = list(dict.fromkeys(k for e in entries for k in e['factors']))
  rows.writerow([*keys, 'measure', 'seeds', 'mean', 'stderr'])
  for entry in entries:
    for measure, found in entry.items():
      if isinstance(found, dict) and 'mean' in found:
        rows.writerow([*(entry['factors'].get(k, '') for k in keys), measure, found['count'],
                       found['mean'], '' if found['stderr'] is None else found['stderr']])
  return out.getvalue()


def make_markdown(entries) -> str:
  """The table, ready to paste; accuracies in %."""
  lines = ['| | final | after each block | any block (upper bound) | seeds | steps '
           '| first token, ms | against the best, p |', '|---|---|---|---|---|---|---|---|']
  for entry in entries:
    if not entry['num_done']:
      lines.append(f"| {entry['name']} | not done | | | 0 of {entry['num_points']} | | | |")
      continue
    blocks = ' / '.join(f'{100 * a:.1f}' for a in entry.get('block_acc', []))
    time_ms = f"{entry['ttft_ms']['mean']:.2f}" if 'ttft_ms' in entry else ''
    tests = entry.get('against_best', {}).get('tests', [])
    chances = ', '.join(format(test['p_value'], '.2g') for test in tests)
    lines.append(
        f"| {entry['name']} | {_show(entry['final_acc'])} | {blocks} | "
        f"{_show(entry['any_block_acc'])} | {entry['num_done']} of {entry['num_points']} | "
        f"{', '.join(map(str, entry['steps']))} | {time_ms} | {chances} |")
  return '\n'.join(lines) + '\n'


def _show(summary) -> str:
  spread = '' if summary['stderr'] is None else f" ± {100 * summary['stderr']:.1f}"
  return f"{100 * summary['mean']:.1f}{spread}"


def drive(points, workdir, source: str, overrides, num_jobs: int, retry_failed: bool, dry_run: bool,
          say, console) -> None:
  """--mode=sweep: runs what is left and shows what all say together.

  Raises: UserError for what is wrong with flags or WORKDIR, and where a point failed.
  """
  if storage.is_bucket(workdir):
    raise UserError(f'--workdir={workdir}: a sweep is driven from a local directory')
  if num_jobs < 1:
    raise UserError(f'--jobs={num_jobs}: must be 1 or more')
  if dry_run:
    show_dry(points, workdir, source, overrides, say)
    return
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
  with storage.hold(workdir):
    states = run(points, workdir, source, overrides, num_jobs, retry_failed, say, console)
    conclusion = conclude(states, workdir)
    summary.write_summary(workdir, f'rim_jax: {source}', conclusion['entries'], states)
  say((workdir / 'sweep.md').read_text())
  say(f'files: {workdir}/ (sweep.json, sweep.csv, sweep.md, figures/, points/)')
  say(f'report: {workdir / "report.html"}')
  failed = [s for s in states if s.status == 'failed']
  if failed:
    raise UserError('\n'.join(
        f'{s.folder}: {s.error}; its output.txt has more; run again with --retry_failed'
        for s in failed))


def show_dry(points, workdir, source, overrides, say) -> None:
  """Every point's command, and the examples that it takes."""
  for point in points:
    folder = pathlib.Path(workdir) / 'points' / point.name
    budget = point.config.train
    cost = (f'{budget.num_examples:,} examples' if budget.num_examples
            else f'{budget.num_epochs:g} epochs')
    say(f'{point.name}: {cost}')
    say('  ' + shlex.join(make_command(point, folder, source, overrides)))
