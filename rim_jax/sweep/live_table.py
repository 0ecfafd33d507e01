"""Where the runs of a sweep stand, while it goes on: one live table, or lines.

Reads what each run leaves (metrics, and the last line of progress in its output), never a model.
`state` is a `sweep.State`.
"""

import re
import time

from rich import box, live, table
from rich.text import Text

from rim_jax.config import stages as stages_lib
from rim_jax.runtime import run_folder

_LEFT = re.compile(r'(\S+) \d+/\d+  .*  (\S+) left$', re.MULTILINE)  # as metrics.Progress tells it
_SHOW_SECS = 3.0  # between two tables
_TELL_SECS = 30.0  # between two lines where there is no terminal


class Board:
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
    now = time.monotonic()
    if self._live:  # every table reads the metrics of what runs
      if last or now - self._at >= _SHOW_SECS:
        self._live.update(make_table(self._states), refresh=True)
        self._at = now
      return
    for state in self._states:
      changed = self._told.get(state.point.name) != state.status
      due = state.status == 'running' and now - self._at >= _TELL_SECS and not last
      if (changed and (state.status != 'waiting' or state.error)) or due:
        self._console.print(
            f'{state.point.name}: {state.status}  {state.error or read_progress(state)}',
            soft_wrap=True, markup=False, highlight=False)
      self._told[state.point.name] = state.status
    if now - self._at >= _TELL_SECS:
      self._at = now


def make_table(states) -> table.Table:
  shown = table.Table('point', 'state', 'where it is', box=box.SIMPLE)
  for state in states:
    result = state.result
    told = (f"{result['final_acc']:.1%} after {result['step']} steps" if result else
            state.error or (read_progress(state) if state.status == 'running' else ''))
    shown.add_row(Text(state.point.name), Text(state.status), Text(told))
  return shown


def read_progress(state) -> str:
  """Stage, step, loss and accuracy on valid of a run, and the time left of its stage."""
  told = ''
  for name, _ in stages_lib.make_stages(state.point.config):
    folder = run_folder.RunFolder(state.folder / name)
    losses = [x for x in folder.load_metrics() if 'train/loss' in x]
    valid = list(folder.load_valid_accs().values())
    if losses:
      title = name or state.folder.name
      told = f'{name or "train"} step {losses[-1]["step"]}, loss {losses[-1]["train/loss"]:.4f}'
      told += f', valid {valid[-1]:.1%}' if valid else ''
  output = state.folder / 'output.txt'
  output = output.read_bytes().decode(errors='replace') if told and output.exists() else ''
  left = [secs for begun, secs in _LEFT.findall(output) if begun == title]
  return told + (f', {left[-1]} left of the stage' if left else '')
