"""Every run with blocks is asked once, beside the runs that match it, by the command of its own."""

import dataclasses
import json
import sys
import time

import pytest

from rim_jax.config import grid as grid_lib
from rim_jax.errors import UserError
from rim_jax.results import judge
from rim_jax.runtime import devices, point_run
from rim_jax.sweep import ask_controls, jobs
from tests import support

# What --mode=controls would leave, of the checkpoint that the results are of.
SCRIPT = f"""RULE = {judge.RULE_VERSION}""" + """
import json, os, pathlib, sys, time
folder, flags = pathlib.Path(sys.argv[1]), dict(f.split('=', 1) for f in sys.argv[2:])
with open(folder / 'asked', 'a') as f: f.write('x')
assert flags.pop('--mode') == 'controls'
if (folder / 'broken').exists():
  from rim_jax.runtime import status  # as a run tells how it ended
  status.tell(ended='UserError', error='one problem\\nit is broken')
  sys.exit('the end')
if (folder / 'slow').exists(): time.sleep(600)
with open(folder / 'places', 'a') as f: f.write(os.environ['PLACE'])
controls = {key.split('.')[2].removesuffix('_dir'): {'run': run, 'final_acc': json.loads(
    (pathlib.Path(run) / 'results.json').read_text())['test']['final_acc']}
    for key, run in flags.items()}
last = folder / 'stage2' if (folder / 'stage2').exists() else folder
(last / 'controls.json').write_text(json.dumps({
    'num_blocks': 4, 'sweeps': {}, 'pairing': {
        'num_pairs': 0, 'num_equal_answers': 0, 'num_without_partner': 0},
    'set': 'test', 'rule_version': RULE,
    'step': json.loads((last / 'results.json').read_text())['test']['step'],
    'controls': controls}))
"""


def make_state(tmp_path, method, status='done', seed=0, **changes):
  name = f'method={method},seed={seed}' + ''.join(f',{k}={v}' for k, v in changes.items())
  config = support.make_config(method, seed=seed, **changes)
  state = point_run.PointRun(grid_lib.Point(name, {}, config), tmp_path / name, status)
  state.last[1].path.mkdir(parents=True)
  (state.last[1] / 'results.json').write_text(json.dumps({state.last[0].eval_set: {
      'step': 5, 'rule_version': judge.RULE_VERSION, 'checkpoint': 'best', 'final_acc': 0.5,
      'block_acc': [0.5]}}))
  return state


@pytest.fixture
def ask(monkeypatch):
  """Asks two at a time; returns (problems, what was said)."""
  monkeypatch.setattr(jobs, '_POLL_SECS', 0.02)

  def run(states, *overrides):
    said, folders = [], {s.point.name: s.folder for s in states}
    problems = ask_controls.ask(states, lambda point, flags: [
        sys.executable, '-c', SCRIPT, str(folders[point.name]), *flags, *overrides],
        [devices.Place((), {'PLACE': name}) for name in 'ab'], said.append)
    return problems, said
  return run


def count(states):
  return [len((s.folder / 'asked').read_text()) if (s.folder / 'asked').exists() else 0
          for s in states]


def read_beside(state):
  found = json.loads((state.last[1] / 'controls.json').read_text())['controls']
  return {method: entry['run'] for method, entry in found.items()}


def test_runs_with_memory_are_asked_beside_those_that_match(tmp_path, ask):
  direct, _, pause, rim, other, *_ = states = [
      *(make_state(tmp_path, method) for method in ('direct', 'cot', 'pause', 'rim')),
      make_state(tmp_path, 'rim', seed=1), make_state(tmp_path, 'rim', 'failed', seed=2),
      make_state(tmp_path, 'rim', seed=1, eval__num_blocks=0)]  # no block to change
  problems, said = ask(states)
  assert problems == [] and count(states) == [0, 0, 1, 1, 1, 0, 0]
  assert said[0] == 'controls: 0 runs with blocks asked before, 3 to ask, 2 at a time'
  assert [line.rpartition(': ')[2].partition(',')[0] for line in said[1:]] == [
      '1 of 3', '2 of 3', '3 of 3']
  assert read_beside(rim) == {'direct': str(direct.folder), 'pause': str(pause.folder)}
  assert read_beside(pause) == {'direct': str(direct.folder)}  # and not itself
  assert read_beside(other) == {}  # of another seed
  places = [(s.folder / 'places').read_text() for s in (pause, rim, other)]
  assert set(places[:2]) == {'a', 'b'} and places[2] in 'ab'


def test_what_was_asked_is_not_asked_again_until_something_is_new(tmp_path, ask):
  direct, rim = states = [make_state(tmp_path, 'direct', 'waiting'), make_state(tmp_path, 'rim')]
  ask(states)
  assert ask(states)[1] == [
      'controls: 1 runs with blocks asked before, 0 to ask, 2 at a time']
  assert count(states) == [0, 1]
  direct.status = 'done'  # there is more to stand beside it
  ask(states)
  ask(states)
  assert count(states) == [0, 2] and read_beside(rim) == {'direct': str(direct.folder)}
  results = rim.last[1] / 'results.json'
  results.write_text(results.read_text().replace('"step": 5', '"step": 7'))  # it went on
  ask(states)
  ask(states)
  assert count(states) == [0, 3]
  results = direct.folder / 'results.json'
  results.write_text(results.read_text().replace('"final_acc": 0.5', '"final_acc": 0.75'))
  ask(states)
  ask(states)
  assert count(states) == [0, 4]  # beside what that run has now
  change(rim, 'controls', probes=True)
  ask(states)
  assert count(states) == [0, 5]


def change(state, group, **values):
  """As --config.GROUP.KEY=VALUE of the whole sweep."""
  config = state.point.config
  state.point = dataclasses.replace(state.point, config=dataclasses.replace(
      config, **{group: dataclasses.replace(getattr(config, group), **values)}))


def test_a_run_that_a_person_names_stands_beside_it(tmp_path, ask, monkeypatch):
  """The sweep's command has that flag, and a second one would win."""
  monkeypatch.chdir(tmp_path)
  own, other, rim = [make_state(tmp_path, 'direct'), make_state(tmp_path, 'direct', seed=7),
                     make_state(tmp_path, 'rim')]
  ask([own, rim])
  change(rim, 'controls', direct_dir=other.folder.name)
  for _ in range(2):
    ask([own, rim], f'--config.controls.direct_dir={other.folder.name}')
    assert read_beside(rim) == {'direct': other.folder.name} and count([rim]) == [2]
  change(rim, 'controls', direct_dir=str(other.folder))  # the same by another path
  ask([own, rim])
  assert count([rim]) == [2]


def test_a_result_of_another_checkpoint_is_not_asked_about(tmp_path, ask):
  """What was found would be carried nowhere, and asked again for ever."""
  state = make_state(tmp_path, 'rim')
  change(state, 'eval', checkpoint='last')
  (problem,), _ = ask([state])
  assert problem == (f'{state.folder}: its result is of the best checkpoint, now it is last; '
                     'evaluate that with --mode=eval, and ask again')
  assert count([state]) == [0]


def test_what_no_run_could_be_asked_is_told_before_any_runs(tmp_path, monkeypatch):
  points = [make_state(tmp_path, 'direct').point]
  ask_controls.check(points)
  with pytest.raises(UserError, match=r"--controls: method=rim.*'splits' is of several"):
    ask_controls.check([*points, make_state(tmp_path, 'rim', eval__checkpoint='splits').point])
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(UserError, match='analysis'):
    ask_controls.check([make_state(tmp_path, 'rim', controls__probes=True).point])


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path, ask):
  states = [make_state(tmp_path, 'rim'), make_state(tmp_path, 'rim', seed=1)]
  (states[0].folder / 'broken').write_text('')
  (problem,), _ = ask(states)
  assert problem.startswith(
      f'{states[0].folder}/controls.txt: exit code 1: error: it is broken; --controls again')
  assert count(states) == [1, 1]
  (states[0].folder / 'broken').unlink()
  assert ask(states)[0] == [] and count(states) == [2, 1]


def test_a_stop_ends_the_commands_under_way(tmp_path, ask, monkeypatch):
  state = make_state(tmp_path, 'rim')
  (state.folder / 'slow').write_text('')
  started = []
  monkeypatch.setattr(devices, 'start', lambda *args, start=devices.start: started.append(
      start(*args)) or started[0])

  def stop(secs):
    while not (state.folder / 'asked').exists():
      sleep(0.02)
    raise KeyboardInterrupt
  sleep = time.sleep
  monkeypatch.setattr(time, 'sleep', stop)
  with pytest.raises(KeyboardInterrupt):
    ask([state])
  assert started[0].returncode == -15
