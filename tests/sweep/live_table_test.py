"""What is shown of a run under way is what it has left, and what it says itself."""

import io
import json

from rich import console as rich_console

from rim_jax.runtime import point_run, run_folder, status
from rim_jax.sweep import jobs, live_table
from rim_jax.training import recorder
from tests import support_sweep


def test_a_result_is_loaded_once(tmp_path, monkeypatch):
  """With its predictions, which is work: a table of many done points is drawn every 3 s."""
  states = support_sweep.make_states(tmp_path, [({'a': 1}, 0.5, 0.88), ({'a': 2}, 0.4, 0.75)])
  states[1].status = 'waiting'
  loads, load = [], run_folder.RunFolder.load_results
  monkeypatch.setattr(run_folder.RunFolder, 'load_results',
                      lambda self: loads.append(self.path.name) or load(self))
  console = rich_console.Console(file=io.StringIO(), force_terminal=True, width=80)
  board = live_table.Board(states, console)
  monkeypatch.setattr(live_table, '_SHOW_SECS', 0.0)
  with board:
    board.update()
    board.update()
    assert len(loads) == 1
    states[1].status = 'done'
  assert len(loads) == 2
  shown = console.file.getvalue()
  assert '88.0% after' in shown and '75.0% after' in shown


def test_where_a_run_is_comes_from_its_metrics_and_what_it_tells(tmp_path, monkeypatch):
  points = support_sweep.load([({'seed': 0}, {'seed': 0, 'method': 'direct'})])
  [state] = point_run.load_point_runs(points, tmp_path)
  tmp_path = tmp_path / 'points/seed=0'
  tmp_path.mkdir(parents=True)
  assert live_table.read_progress(state) == ''
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in (
      {'step': 20, 'train/loss': 0.5}, {'step': 20, 'valid/final_acc': 0.25},
      {'step': 30, 'train/loss': 0.25})))
  assert live_table.read_progress(state) == 'train step 30, loss 0.2500, valid 25.0%'
  monkeypatch.setenv(status.VARIABLE, str(jobs.get_status(tmp_path / 'output.txt')))
  with open(tmp_path / 'output.txt', 'w') as file:
    progress = recorder.Progress('seed=0', 90, 0, rich_console.Console(file=file, width=80),
                                 clock=iter((0.0, 120.5)).__next__)
    progress.update(30, 'loss 0.2500  7 examples/s')
    progress.close()
  assert live_table.read_progress(state).endswith('valid 25.0%, 4:01 left of the stage')
  status.tell(stage='stage9')  # another one
  assert live_table.read_progress(state).endswith('valid 25.0%')
