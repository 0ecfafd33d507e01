"""Sweeps whose runs are commands that cost nothing, for the tests."""

import dataclasses
import json
import os
import pathlib
import sys

import ml_collections
import pytest
from rich import console as rich_console

from rim_jax.config import grid as grid_lib
from rim_jax.errors import UserError
from rim_jax.report import sweep_results
from rim_jax.results import judge
from rim_jax.runtime import point_run
from rim_jax.sweep import driver as driver_lib
from rim_jax.sweep import halving as halving_lib
from rim_jax.sweep import jobs
from tests import support


def make_base(**changes):
  return ml_collections.ConfigDict(
      dataclasses.asdict(support.make_config('direct', **changes)))


def load(points, **changes):
  recipe = grid_lib.make_sweep_dict(make_base(**changes), points)
  return grid_lib.load_points(recipe, 'recipe.py')


SCRIPT = f"""RULE = {judge.RULE_VERSION}""" + """
import json, os, pathlib, sys, time
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with open(folder / 'starts', 'a') as f: f.write('x')
with open(folder / 'times', 'a') as f: print(time.time(), file=f)
if (folder.parent.parent / 'gpus').exists():
  (folder / 'gpus').write_text(os.environ['CUDA_VISIBLE_DEVICES'])
broken = folder.parent.parent / 'broken'
if broken.exists() and seed == int(broken.read_text() or 1):
  sys.stdout.buffer.write(b'\\xff no text')
  sys.exit('Traceback...\\nerror: it is broken\\n')
if seed == 0 and (folder.parent.parent / 'kill').exists(): os.kill(os.getpid(), 9)
if seed == 0 and '0.5' in folder.name and (folder.parent.parent / 'full').exists():
  sys.exit('error: the disk is full; the checkpoints that were finished are whole')
held = folder.parent.parent / 'held'
if held.exists():
  held.unlink()
  from rim_jax.runtime import status  # as a run tells how it ended
  status.tell(ended='FolderTaken', error='DIR: wait for process 1')
  sys.exit(2)
while (folder.parent.parent / 'wait').exists(): time.sleep(0.05)
if len(sys.argv) > 3:  # to a share of the budget; the higher rate is the better one
  share = sys.argv[3].removeprefix('--config.checkpoint.stop_frac=')
  if not (folder.parent.parent / 'mute').exists():
    (folder / ('valid' + share)).write_text(folder.name[5:8])
  from rim_jax.runtime import status
  status.tell(ended='ShareDone', error='DIR: step 3 of 7 is saved')
  sys.exit(0)
(folder / 'predictions').mkdir(exist_ok=True)
right = [i % 10 < 5 + seed for i in range(30)]
(folder / 'predictions' / 'test.jsonl').write_text(''.join(json.dumps(
    {'question': str(i), 'answer': '', 'correct': r}) + chr(10) for i, r in enumerate(right)))
(folder / 'metrics.jsonl').write_text(''.join(json.dumps(
    {'step': step, 'valid/final_acc': acc}) + chr(10) for step, acc in (
    (3, 0.25), (7, 0.75 - seed / 4), (9, 0.0))))
(folder / 'results.json').write_text(json.dumps({'test': {
    'n': 30, 'rule_version': RULE, 'step': 7, 'final_acc': 0.5 + seed / 10, 'any_block_acc': 0.9,
    'majority_acc': 0.5, 'block_acc': [0.25, 0.5 + seed / 10]}}))
"""


def read_score(state, share):
  path = state.folder / f'valid{share}'
  return halving_lib.Score(float(path.read_text()), judge.RULE_VERSION) if path.exists() else None


def make_points():
  return load([({'rate': r, 'seed': s}, {'optim.learning_rate': r, 'seed': s})
               for r in (0.5, 0.1) for s in (0, 1)])


def drive(workdir, points, retry=False, **flags):
  """Two runs at a time; a command writes what a run would leave."""
  said = []
  console = rich_console.Console(file=open(os.devnull, 'w'), force_terminal=False)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(driver_lib.Sweep, 'make_command', lambda sweep, point, more=(): [
        sys.executable, '-c', SCRIPT, str(sweep.workdir / 'points' / point.name),
        str(point.factors['seed']), *sweep.overrides, *more])
    patch.setattr(halving_lib, 'read_score', read_score)
    patch.setattr(jobs, '_POLL_SECS', 0.02)
    try:
      driver_lib.drive(driver_lib.Sweep(points, pathlib.Path(workdir), 'recipe.py', num_jobs=2,
                                        retry_failed=retry, **flags), said.append, console)
    except UserError as e:
      said.append(str(e))
  return '\n'.join(said)


def conclude(states, folder) -> dict:
  """What sweep.json holds of some points."""
  sweep_results.conclude(states, folder)
  return json.loads((folder / 'sweep.json').read_text())


def make_states(tmp_path, rows):
  """Done points of hand-written results: (factors, valid accuracy or None, test accuracy)."""
  points = load([(factors, {'seed': factors.get('seed', 0), 'optim.weight_decay': i / 1000})
                 for i, (factors, _, _) in enumerate(rows)])
  for point, (_, valid, test) in zip(points, rows):
    folder = tmp_path / 'points' / point.name
    (folder / 'predictions').mkdir(parents=True)
    (folder / 'point.json').write_text(json.dumps({
        'identity': grid_lib.identify(point.config), 'status': 'done', 'error': ''}))
    (folder / 'predictions/test.jsonl').write_text(''.join(json.dumps(
        {'question': str(i), 'answer': '', 'correct': i < round(100 * test)}) + '\n'
                                                           for i in range(100)))
    (folder / 'results.json').write_text(json.dumps({'test': {
        'n': 100, 'rule_version': judge.RULE_VERSION, 'step': 5, 'final_acc': test,
        'any_block_acc': test, 'majority_acc': test,
        'block_acc': [test]}}))
    if valid is not None:
      (folder / 'metrics.jsonl').write_text(json.dumps({'step': 5, 'valid/final_acc': valid}))
  return point_run.load_point_runs(points, tmp_path)
