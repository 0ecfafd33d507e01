"""Every run with memory is asked once, beside the runs that match it, by the command of its own."""

import dataclasses
import json
import sys
import time

import pytest

from rim_jax import devices
from rim_jax import inquiry
from rim_jax import points as points_lib
from rim_jax import sweep
from tests import support

# What --mode=controls would leave, of the checkpoint that the results are of.
SCRIPT = """
import json, pathlib, sys, time
folder, flags = pathlib.Path(sys.argv[1]), dict(f.split('=', 1) for f in sys.argv[2:])
with open(folder / 'asked', 'a') as f: f.write('x')
assert flags.pop('--mode') == 'controls'
if (folder / 'broken').exists(): sys.exit('Traceback\\nerror: it is broken\\nthe end')
if (folder / 'slow').exists(): time.sleep(600)
controls = {key.split('.')[2].removesuffix('_dir'): {'run': run} for key, run in flags.items()}
last = folder / 'stage2' if (folder / 'stage2').exists() else folder
(last / 'controls.json').write_text(json.dumps({
    'set': 'test', 'step': json.loads((last / 'results.json').read_text())['test']['step'],
    'controls': controls}))
"""


def make_state(tmp_path, method, status='done', seed=0, **changes):
  name = f'method={method},seed={seed}' + ''.join(f',{k}={v}' for k, v in changes.items())
  config = support.make_config(method, seed=seed, **changes)
  state = sweep.State(points_lib.Point(name, {}, config), tmp_path / name, status)
  state.last[1].mkdir(parents=True)
  (state.last[1] / 'results.json').write_text(json.dumps({state.last[0].eval_set: {
      'step': 5, 'final_acc': 0.5, 'block_acc': [0.5]}}))
  return state


@pytest.fixture
def ask(monkeypatch):
  """Asks two at a time; returns (problems, what was said)."""
  monkeypatch.setattr(inquiry, '_POLL_SECS', 0.02)

  def run(states):
    said = []
    problems = inquiry.ask(states, lambda point, folder: [
        sys.executable, '-c', SCRIPT, str(folder)], [devices.Place((), {})] * 2, said.append)
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
  assert said[0] == 'controls: 3 runs with memory, 0 asked before, 3 to ask, 2 at a time'
  assert [line.rpartition(': ')[2].partition(',')[0] for line in said[1:]] == [
      '1 of 3', '2 of 3', '3 of 3']
  assert read_beside(rim) == {'direct': str(direct.folder), 'pause': str(pause.folder)}
  assert read_beside(pause) == {'direct': str(direct.folder)}  # and not itself
  assert read_beside(other) == {}  # of another seed


def test_what_was_asked_is_not_asked_again_until_something_is_new(tmp_path, ask):
  direct, rim = states = [make_state(tmp_path, 'direct', 'waiting'), make_state(tmp_path, 'rim')]
  ask(states)
  assert ask(states)[1] == ['controls: 1 runs with memory, 1 asked before, 0 to ask, 2 at a time']
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
  config = dataclasses.replace(rim.point.config, controls=dataclasses.replace(
      rim.point.config.controls, probes=True))
  rim.point = dataclasses.replace(rim.point, config=config)
  ask(states)
  assert count(states) == [0, 4]


def test_a_run_that_a_person_named_stands_beside_it(tmp_path, ask):
  """The command has that flag already, and a second one would win."""
  states = [make_state(tmp_path, 'direct'),
            make_state(tmp_path, 'rim', controls__direct_dir='elsewhere')]
  ask(states)
  assert read_beside(states[1]) == {}


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
