"""Where the runs of a sweep stand, while it goes on: one live table, or lines.

Reads what each run leaves (metrics, and what it says as data of its progress), never a model.
"""

import time

from rich import live

from rim_jax.report import tables
from rim_jax.runtime import status
from rim_jax.runtime.point_run import PointRun
from rim_jax.sweep import jobs

_SHOW_SECS = 3.0  # between two tables
_TELL_SECS = 30.0  # between two lines where there is no terminal


class Board:
  """One live table on a terminal; elsewhere a line as a point changes, and every 30 s."""

  def __init__(self, runs: list[PointRun], console):
    self._runs, self._console = runs, console
    self._live = live.Live(console=console, auto_refresh=False) if console.is_terminal else None
    self._told, self._at = {}, 0.0
    self._ends = {}  # point -> what its result says, which takes long to load and changes no more

  def __enter__(self):
    if self._live:
      self._live.__enter__()
    return self

  def __exit__(self, *error):
    self.update(last=True)
    if self._live:
      self._live.__exit__(*error)

  def update(self, last=False):
    now = time.monotonic()
    if self._live:  # every table reads the metrics of what runs
      if last or now - self._at >= _SHOW_SECS:
        self._live.update(self._draw(), refresh=True)
        self._at = now
      return
    for run in self._runs:
      changed = self._told.get(run.point.name) != run.status
      due = run.status == 'running' and now - self._at >= _TELL_SECS and not last
      if (changed and (run.status != 'waiting' or run.error)) or due:
        self._console.print(
            f'{run.point.name}: {run.status}  {run.error or read_progress(run)}',
            soft_wrap=True, markup=False, highlight=False)
      self._told[run.point.name] = run.status
    if now - self._at >= _TELL_SECS:
      self._at = now

  def _draw(self):
    """Where each run stands."""
    for run in self._runs:
      if run.status == 'done' and run.point.name not in self._ends:
        result = run.result
        self._ends[run.point.name] = result and (
            f'{result.final_acc:.1%} after {result.step} steps')
    return tables.to_rich(tables.table(['point', 'state', 'where it is'], [
        [run.point.name, run.status, self._ends.get(run.point.name) or run.error or (
            read_progress(run) if run.status == 'running' else '')]
        for run in self._runs]), self._console)


def read_progress(run: PointRun) -> str:
  """Stage, step, loss and accuracy on valid of a run, and the time left of its stage."""
  told = title = ''
  for name, folder in run.stages.items():
    losses = [x for x in folder.load_metrics() if 'train/loss' in x]
    valid = [acc for acc, _ in folder.load_valid().values()]
    if losses:
      title = name or run.folder.name
      told = f'{name or "train"} step {losses[-1]["step"]}, loss {losses[-1]["train/loss"]:.4f}'
      told += f', valid {valid[-1]:.1%}' if valid else ''
  under_way = status.load(jobs.get_status(run.folder / 'output.txt'))
  if not told or under_way.stage != title or under_way.left_secs is None:
    return told
  return f'{told}, {status.format_secs(under_way.left_secs)} left of the stage'
