"""A sweep's points are what its recipe says, and no run is lost, taken twice or mixed up."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import types

from etils import epath
import hypothesis
from hypothesis import strategies as st
import pytest
from rich import console as rich_console

from configs import compare, presets
from rim_jax import command_line
from rim_jax import main as main_lib
from rim_jax.config import grid as grid_lib
from rim_jax.config import replace_keys
from rim_jax.errors import FolderTaken, Stopped, UserError
from rim_jax.planning import cost
from rim_jax.results import judge
from rim_jax.runtime import card, hosts, point_run, run_folder, storage
from rim_jax.sweep import ask_controls, jobs
from rim_jax.sweep import driver as driver_lib
from rim_jax.sweep import halving as halving_lib
from tests import support, support_runs, support_sweep

ROOT = pathlib.Path(__file__).parents[2]


# ---- Points ----


def test_a_point_is_its_base_and_what_it_sets():
  points = support_sweep.load([({'rate': 0.5, 'seed': 1}, {'optim.learning_rate': 0.5, 'seed': 1}),
                 ({'rate': 0.1, 'seed': 1}, {'optim.learning_rate': 0.1, 'seed': 1})],
                model__embed_dim=32)
  assert [p.name for p in points] == ['rate=0.5,seed=1', 'rate=0.1,seed=1']
  assert [p.config.optim.learning_rate for p in points] == [0.5, 0.1]
  assert {(p.config.seed, p.config.model.embed_dim) for p in points} == {(1, 32)}


def test_every_problem_of_every_point_is_told():
  with pytest.raises(UserError) as told:
    support_sweep.load([({'a': 1}, {'optim.learning_rat': 0.5}), ({'b': 1}, {'seed': -1}),
                        ({'c': 1}, {}), ({'c': 1}, {})])
  lines = str(told.value).split('\n')
  assert len(lines) == 3
  assert "a=1: unknown key 'optim.learning_rat'; did you mean 'learning_rate'" in lines[0]
  assert 'b=1: seed=-1 must not be negative' in lines[1]
  assert '2 points are named c=1' in lines[2]
  with pytest.raises(UserError, match='has no points; its grid is empty'):
    support_sweep.load([])


def test_identity_is_what_is_computed():
  def identify(**changes):
    return grid_lib.identify(support.make_config(**changes))
  assert identify() == identify(eval__split='valid', mesh__fsdp=2, model__remat='full')
  assert len({identify(), identify(seed=1), identify(optim__learning_rate=0.5)}) == 3


def test_the_comparison_has_every_method_at_equal_network_data_and_examples():
  points = grid_lib.load_points(compare.get_config(), 'compare.py')
  assert {(p.factors['method'], p.factors['seed']) for p in points} == {
      (m, s) for m in compare.METHODS for s in range(3)}
  for point in points:
    config = point.config
    method = point.factors['method']
    method, _ = presets.VARIANTS.get(method, (method, {}))
    assert (config.method, config.seed) == (method, point.factors['seed'])
    first = points[0].config
    assert config.data == first.data and config.tokenizer == first.tokenizer
    assert config.train.num_examples == first.train.num_examples
    assert dataclasses.replace(config.model, lora=first.model.lora) == first.model


# ---- The driver, on commands that cost nothing ----

@pytest.fixture
def cheap(tmp_path):
  """Four points in two groups."""
  def run(points=None, **kwargs):
    return support_sweep.drive(run.workdir, points or run.points, **kwargs)
  run.workdir, run.points = tmp_path / 'sweep', support_sweep.make_points()
  run.workdir.mkdir()
  return run


def keep(cheap, point, said=None):
  """A job of a point's own."""
  return driver_lib.keep_point(point, [p.name for p in cheap.points], cheap.workdir,
                               (said if said is not None else []).append)


def rename(point, **factors):
  """The same run under another name."""
  factors = {{'rate': 'lr'}.get(k, k): v for k, v in point.factors.items()} | factors
  return dataclasses.replace(point, name=grid_lib.name_point(factors), factors=factors)


def count_starts(workdir):
  return {p.parent.name: len(p.read_text()) for p in (workdir / 'points').glob('*/starts')}


@pytest.mark.slow
def test_what_all_say_together(cheap):
  said = cheap()
  found = json.loads((cheap.workdir / 'sweep.json').read_text())['entries']
  assert [e['name'] for e in found] == ['rate=0.5', 'rate=0.1']
  for entry in found:
    assert (entry['num_points'], entry['num_done'], entry['failed']) == (2, 2, {})
    assert entry['final_acc']['mean'] == pytest.approx(0.55)
    assert entry['final_acc']['stderr'] == pytest.approx(0.05)  # of 0.5 and 0.6
    assert [b['mean'] for b in entry['block_acc']] == pytest.approx([0.25, 0.55])
    assert [b['stderr'] for b in entry['block_acc']] == pytest.approx([0.0, 0.05])
    assert [b['count'] for b in entry['block_acc']] == [2, 2]
    assert entry['valid_acc']['values'] == [0.75, 0.5]  # at step 7, whose checkpoint is evaluated
  tests = found[1]['against_best']['tests']
  assert [(t['only_a'], t['only_b'], t['p_value']) for t in tests] == [(0, 0, 1.0)] * 2
  assert re.search(
      r'\| rate=0.5 \| 62.5 ± 12.5% \| 55.0 ± 5.0% \| 90.0 ± 0.0% \|.*\| 2 of 2 \|', said)
  assert '|  | block 1 | block 2 |' in said and '| rate=0.1 | 25.0 ± 0.0% | 55.0 ± 5.0% |' in said
  rows = (cheap.workdir / 'sweep.csv').read_text().split('\n')
  assert rows[0] == 'rate,measure,seeds,mean,stderr' and '0.5,final_acc,2,0.55,' in rows[2]
  assert '0.5,block_acc 1,2,0.25,0.0' in rows
  assert sum(row.startswith(('0.5,block_acc 2,2,0.55,0.0', '0.1,block_acc 2,2,0.55,0.0'))
             for row in rows) == 2


@pytest.mark.slow
def test_runs_of_the_same_seed_are_compared(cheap):
  """Seeds differ in which questions are right; the first group has seed 1 alone."""
  (cheap.workdir / 'broken').write_text('0')
  cheap(points=cheap.points[:2])
  (cheap.workdir / 'broken').unlink()
  cheap()
  entries = json.loads((cheap.workdir / 'sweep.json').read_text())['entries']
  assert [e['points'] for e in entries] == [
      ['rate=0.5,seed=1'], ['rate=0.1,seed=0', 'rate=0.1,seed=1']]
  (test,) = next(e['against_best']['tests'] for e in entries if 'against_best' in e)
  assert (test['seed'], test['only_a'], test['only_b']) == (1, 0, 0)


def test_a_result_is_of_the_set_that_the_config_names(cheap):
  """Not of one that was evaluated later, by hand."""
  cheap()
  path = cheap.workdir / 'points/rate=0.5,seed=0/results.json'
  results = json.loads(path.read_text())
  path.write_text(json.dumps(results | {'test-k2': results['test'] | {'final_acc': 0.0}}))
  state = point_run.load_point_runs(cheap.points, cheap.workdir)[0]
  assert state.result.final_acc == 0.5 and state.predictions.name == 'test.jsonl'
  named = dataclasses.replace(state.point, config=support.set_keys(
      state.point.config, {'eval.num_examples': 7}))
  other = dataclasses.replace(state, point=named)
  assert other.result is None and other.predictions.name == 'test-n7.jsonl'


def test_runs_at_a_time_get_the_devices_of_their_places(cheap, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5')
  (cheap.workdir / 'gpus').touch()
  cheap(points=cheap.points[:2])
  folders = [cheap.workdir / 'points' / p.name for p in cheap.points[:2]]
  assert [(folder / 'gpus').read_text() for folder in folders] == ['4', '5']


def test_what_is_done_stays_and_a_larger_grid_runs_what_is_new(cheap):
  cheap(points=cheap.points[:2])
  said = cheap()
  assert '4 points: 2 done before, 2 to run' in said
  assert count_starts(cheap.workdir) == {p.name: 1 for p in cheap.points}


@pytest.mark.slow
def test_a_point_that_is_named_otherwise_now_goes_on_as_it_was(cheap):
  """Done stays done; and names that change with the grid run nothing twice."""
  cheap(points=cheap.points[:3])
  renamed, real = [rename(p) for p in cheap.points], storage.move
  with pytest.MonkeyPatch.context() as patch:
    def move(folder, target):  # and is killed
      real(folder, target)
      raise KeyboardInterrupt
    patch.setattr(storage, 'move', move)
    with pytest.raises(KeyboardInterrupt):
      cheap(points=renamed)
  said = cheap(points=renamed)
  assert said.count('is the run that was named') == 2  # of three; one was moved before
  assert 'lr=0.5,seed=1: is the run that was named rate=0.5,seed=1; its folder is moved' in said
  assert '4 points: 3 done before, 1 to run' in said
  assert count_starts(cheap.workdir) == {p.name: 1 for p in renamed}
  assert 'is the run' not in cheap(points=renamed)  # and no more
  # What is a point of the recipe is nobody else's: a second name of one run is a run.
  twice = [*renamed, rename(renamed[0], again=1)]
  said = cheap(points=twice)
  assert '5 points: 4 done before, 1 to run' in said and 'is the run' not in said
  assert '0 to run' in cheap(points=twice[:3] + twice[4:])  # without what was a point until now


def test_of_several_folders_of_a_run_the_one_that_is_done_goes_on(cheap):
  cheap(points=cheap.points[:1])
  begun = [rename(cheap.points[0], name=name) for name in 'az']
  for point in begun:
    with pytest.raises(Stopped), keep(cheap, point):
      raise Stopped('asked to end')
  assert '1 done before, 0 to run' in cheap(points=[rename(cheap.points[0], name='b')])
  # And one that was begun only, where the done one is another point's.
  said = cheap(points=[rename(cheap.points[0], name=name) for name in 'cb'])
  assert '1 done before, 1 to run' in said and f'was named {begun[0].name};' in said


def test_a_run_that_is_at_work_under_its_former_name_is_not_moved(cheap):
  """It is held as runs are, here by its second stage; and no second run begins beside it."""
  points = support_sweep.load([({'rate': 1, 'seed': 0}, {'method': 'rim', 'layout.num_blocks': 4})])
  with pytest.raises(Stopped), keep(cheap, points[0]):
    raise Stopped('asked to end')
  folder = cheap.workdir / 'points' / points[0].name
  (folder / 'stage2').mkdir()
  with storage.hold(folder / 'stage2'):
    said = cheap(points=[rename(points[0])])
    assert 'stage2: process' in said and 'is at work here' in said
  assert count_starts(cheap.workdir) == {} and folder.exists()
  assert '1 to run' in cheap(points=[rename(points[0])]) and not folder.exists()


def test_a_job_of_its_own_begins_anew_under_a_new_name_and_says_what_would_serve(cheap):
  cheap(points=cheap.points[:2])
  old, cheap.points[0] = cheap.points[0], rename(cheap.points[0])
  said = []
  for point in [*cheap.points[:2], cheap.points[0]]:  # the third has a folder
    with keep(cheap, point, said):
      pass
  assert len(said) == 1 and said[0].startswith(
      f'{cheap.workdir}/points/{old.name}: is this run under the name that it had')
  assert (cheap.workdir / 'points' / old.name / 'results.json').exists()  # and stays


FATES = ('untouched', 'done', 'failed', 'stopped', 'killed')


def leave(point, fate, cheap):
  """What a run leaves that ended so, by what a run itself calls."""
  path = cheap.workdir / 'points' / point.name / 'point.json'
  if fate != 'untouched':
    with contextlib.suppress(ValueError, Stopped), keep(cheap, point):
      while_it_ran = path.read_text()
      if fate != 'done':
        raise {'failed': ValueError, 'stopped': Stopped}.get(fate, ValueError)('so')
    if fate == 'killed':  # it told nothing after that
      path.write_text(while_it_ran)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.lists(st.tuples(st.sampled_from(FATES), st.booleans(), st.booleans()),
                           min_size=1, max_size=6), st.booleans())
def test_what_starts_is_what_is_left(drawn, retry):
  """Whatever became of each point, whichever are new in the grid, whichever have another name."""
  points = support_sweep.load([({'rate': r}, {'optim.learning_rate': r})
                 for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)[:len(drawn)]])
  to_run = {'untouched', 'stopped', 'killed'} | ({'failed'} if retry else set())
  with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
    workdir = pathlib.Path(folder)
    cheap = types.SimpleNamespace(points=points, workdir=workdir)
    patch.setattr(jobs, '_POLL_SECS', 0.002)
    patch.setattr(driver_lib.Sweep, 'make_command', lambda sweep, point, more: [
        'sh', '-c', f'printf x >> {workdir}/points/{point.name}/starts'])

    def run(points, retry=retry):
      driver_lib.adopt(points, workdir, lambda line: None)
      return driver_lib.run_points(driver_lib.Sweep(
          points, workdir, 'recipe.py', num_jobs=3, retry_failed=retry), lambda line: None,
                            rich_console.Console(file=open(os.devnull, 'w')))
    for point, (fate, is_new, _) in zip(points, drawn):
      if not is_new:
        leave(point, fate, cheap)
    now = [rename(p) if renamed else p for p, (_, _, renamed) in zip(points, drawn)]
    expected = {p.name for p, (fate, is_new, _) in zip(now, drawn) if is_new or fate in to_run}
    if any(not is_new for _, is_new, _ in drawn):  # the grid before it grew
      before = [p for p, (_, is_new, _) in zip(now, drawn) if not is_new]
      run(before)
      assert count_starts(workdir) == {p.name: 1 for p in before if p.name in expected}
    states = run(now)
    assert count_starts(workdir) == dict.fromkeys(expected, 1)
    assert [s.status for s in states] == [
        'failed' if p.name not in expected and fate == 'failed' else 'done'
        for p, (fate, _, _) in zip(now, drawn)]
    assert sorted(p.name for p in (workdir / 'points').iterdir()) == sorted(p.name for p in now)


def test_a_failing_point_is_shown_and_retried_only_when_asked(cheap):
  (cheap.workdir / 'broken').touch()
  said = cheap()
  assert said.count('exit code 1: error: it is broken; its output.txt has more') == 2
  # The others were run.
  assert re.search(r'\| rate=0.5 \| 75.0% \| 50.0% \| 90.0% \|.*\| 1 of 2 \|', said)
  assert '| rate=0.5 | 25.0% | 50.0% |' in said  # after each block
  (cheap.workdir / 'broken').unlink()
  assert '0 to run' in cheap() and set(count_starts(cheap.workdir).values()) == {1}
  assert 'error' not in cheap(retry=True)
  assert sorted(count_starts(cheap.workdir).values()) == [1, 1, 2, 2]


@pytest.mark.slow
def test_a_run_that_is_killed_is_shown_the_others_go_on_and_asked_again_it_does(cheap):
  (cheap.workdir / 'kill').touch()
  (cheap.workdir / 'points/rate=0.5,seed=0').mkdir(parents=True)
  (cheap.workdir / 'points/rate=0.5,seed=0/output.txt').write_text('error: of old')
  said = cheap()
  assert said.count('exit code -9') == 2 and 'of old' not in said
  assert [s.status for s in point_run.load_point_runs(cheap.points, cheap.workdir)] == [
      'failed', 'done', 'failed', 'done']
  (cheap.workdir / 'kill').unlink()
  (cheap.workdir / 'broken').write_text('0')
  assert cheap(retry=True).count('exit code 1: error: it is broken') == 2
  (cheap.workdir / 'broken').unlink()
  assert 'exit code' not in cheap(retry=True)
  assert sorted(count_starts(cheap.workdir).values()) == [1, 1, 3, 3]


def test_two_points_do_not_share_a_folder():
  """Names are folders, where a '/' cannot be: what differs in it alone would be one."""
  with pytest.raises(UserError, match='2 points are named target=a_b; give them factors that'):
    support_sweep.load([({'target': 'a/b'}, {'seed': 1}), ({'target': 'a_b'}, {'seed': 2})])
  with pytest.raises(UserError, match='a point has no factors'):  # its folder would hold all
    support_sweep.load([({}, {}), ({'a': 1}, {'seed': 1})])
  with pytest.raises(UserError, match='a name of 302 bytes is no folder'):
    support_sweep.load([({'x': 300 * 'y'}, {'seed': 1})])


def test_another_config_under_the_same_name_is_refused(cheap):
  cheap()
  other = [dataclasses.replace(p, config=dataclasses.replace(p.config, method='pause'))
           for p in cheap.points[:1]]
  assert 'holds a run of another config than rate=0.5,seed=0 has now' in cheap(points=other)


def test_a_dry_run_starts_nothing_and_tells_the_cost(cheap):
  said = []
  sweep = driver_lib.Sweep(cheap.points, cheap.workdir, 'recipe.py', ['--config.seed=3'])
  driver_lib.show_dry(sweep, 'v5e:2x4', 0.5, said.append)
  assert not (cheap.workdir / 'points').exists() and len(said) == 10
  flops = cost.estimate(cheap.points[0].config).flops
  assert said[0] == f'rate=0.5,seed=0: 64 examples, {flops:.2e} FLOPs, < 0.001 h'
  assert '--point=rate=0.5,seed=0' in said[1] and said[1].endswith('--config.seed=3')
  assert said[8].startswith(f'total: 4 points, 256 examples, {4 * flops:.2e} FLOPs')
  assert 'v5e:2x4 (8 x 197 TFLOP/s bf16), at an assumed 50%' in said[9]
  with pytest.raises(UserError, match='kinds: v4, v5e'):
    driver_lib.show_dry(sweep, 'v5e:0x4', 0.5, said.append)


def test_a_dry_run_tells_once_what_keeps_its_points_from_running(cheap):
  said = []
  points = [dataclasses.replace(p, config=replace_keys(p.config, {'model.init_from': '/nowhere'}))
            for p in cheap.points]
  with pytest.raises(UserError) as e:
    driver_lib.show_dry(driver_lib.Sweep(points, cheap.workdir, 'recipe.py'), 'h100', 0.5,
                        said.append)
  assert '/nowhere' in str(e.value) and '\n' not in str(e.value)
  assert len(said) == 10 and not any('/nowhere' in line for line in said)
  assert [line for line in said if 'it cannot run' in line] == said[:8:2]


def test_another_key_of_all_points_is_told_once(cheap):
  for point in cheap.points:
    run = point_run.PointRun(point, cheap.workdir / 'points' / point.name)
    run.set_status('done')
    card.write_card(run.folder, card.make_whole(point.config, []))
  other = [dataclasses.replace(p, config=replace_keys(p.config, {'optim.b1': 0.5}))
           for p in cheap.points]
  with pytest.raises(UserError) as e:
    point_run.load_point_runs(other, cheap.workdir)
  assert '\n' not in str(e.value)
  assert 'points: was run with optim.b1=0.9, now it is 0.5' in str(e.value)
  with pytest.raises(UserError) as e:  # of one alone its folder is named
    point_run.load_point_runs([other[0], *cheap.points[1:]], cheap.workdir)
  assert f'{other[0].name}: was run with optim.b1=0.9' in str(e.value)


@pytest.mark.slow
def test_a_killed_driver_takes_its_runs_with_it_and_the_next_goes_on(cheap):
  """kill -9 of the driver: its runs get SIGTERM; and while one drives, a second is refused."""
  (cheap.workdir / 'wait').touch()
  first = subprocess.Popen(
      [sys.executable, '-c', 'import sys; from tests import support_sweep as t; '
       't.drive(sys.argv[1], t.make_points())', cheap.workdir], cwd=ROOT)
  deadline = time.monotonic() + 500
  while len(count_starts(cheap.workdir)) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  assert f'process {first.pid} on' in cheap() and 'is at work here' in cheap()
  first.kill()
  first.wait()
  assert set(s.status for s in point_run.load_point_runs(cheap.points, cheap.workdir)) == {
      'running', 'waiting'}
  while subprocess.run(['pgrep', '-f', f'{cheap.workdir}/points'], capture_output=True).stdout:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  (cheap.workdir / 'wait').unlink()
  assert '4 points: 0 done before, 4 to run' in cheap()
  assert sorted(count_starts(cheap.workdir).values()) == [1, 1, 2, 2]


@pytest.mark.slow
def test_a_full_disk_is_told_of_its_point_alone_and_the_others_go_on(cheap):
  """A run says so as it dies, here in the words of main.cli; the reason is on the page too."""
  (cheap.workdir / 'full').touch()
  said = cheap()
  assert said.count('exit code 1: error: the disk is full') == 1
  states = point_run.load_point_runs(cheap.points, cheap.workdir)
  assert [s.status for s in states] == ['failed', 'done', 'done', 'done']
  assert 'the disk is full' in (cheap.workdir / 'report.html').read_text()
  (cheap.workdir / 'full').unlink()
  assert 'error' not in cheap(retry=True)


@pytest.mark.slow
def test_settings_that_are_worse_early_end_and_are_told_of(cheap):
  """The second setting ends; every other run goes on, and again nothing is run."""
  halving = halving_lib.Halving((0.25, 0.5), 0.5)
  said = cheap(halving=halving)
  assert ('rate=0.5: goes on after 25% of its budget: 50.0% of valid over 2 of 2 seed(s), place 1 '
          'of 2, of which 1 go on') in said
  why = ('after 25% of its budget: 10.0% of valid over 2 of 2 seed(s), place 2 of 2, of which 1 go '
         'on')
  assert f'rate=0.1: ends {why}' in said
  states = point_run.load_point_runs(cheap.points, cheap.workdir)
  assert [s.status for s in states] == ['done', 'done', 'dropped', 'dropped']
  assert sorted(count_starts(cheap.workdir).values()) == [1, 1, 3, 3]  # two shares, and to the end
  told = json.loads((cheap.workdir / 'sweep.json').read_text())
  assert told['best']['name'] == 'rate=0.5' and told['best']['dropped'] == {'rate=0.1': 2}
  assert told['entries'][1]['dropped'] == {f'rate=0.1,seed={s}': why for s in (0, 1)}
  assert re.search(rf'\| rate=0.1 \|.*\| 0 of 2 \(dropped {re.escape(why)}\) \|', said)
  assert 'in no comparison: 2 of rate=0.1.' in said
  assert f'rate=0.1,seed=0: dropped {why}' in (cheap.workdir / 'report.html').read_text()
  # What ended early stays out, also where it had gone further in a sweep without halving.
  (cheap.workdir / 'points/rate=0.1,seed=0/valid0.5').write_text('0.9')
  cheap(halving=halving)
  assert sorted(count_starts(cheap.workdir).values()) == [1, 1, 3, 3]
  rungs = json.loads((cheap.workdir / 'halving.json').read_text())['rungs']
  assert [(r['share'], [(s['name'], s['seeds'], s['goes_on']) for s in r['settings']])
          for r in rungs] == [(0.25, [('rate=0.5', 2, True), ('rate=0.1', 2, False)]),
                              (0.5, [('rate=0.5', 2, True)])]
  assert {r['rule_version'] for r in rungs} == {judge.RULE_VERSION}
  cheap()  # without halving all go to the end
  assert sorted(count_starts(cheap.workdir).values()) == [2, 2, 3, 3]
  cheap()
  assert not (cheap.workdir / 'halving.json').exists()  # nothing was judged
  cheap(halving=halving)  # and what is done stays done
  assert {s.status for s in point_run.load_point_runs(cheap.points, cheap.workdir)} == {'done'}


def test_a_run_that_ends_without_a_score_is_not_started_for_ever(cheap):
  (cheap.workdir / 'mute').touch()
  said = cheap(points=cheap.points[:2], halving=halving_lib.Halving((0.5,), 0.5))
  assert said.count('of that step; is checkpoint.every_steps other than it was?; its output') == 2
  assert count_starts(cheap.workdir) == {p.name: 1 for p in cheap.points[:2]}


def test_the_runs_of_a_sweep_go_to_their_end(cheap):
  point = cheap.points[0]
  early = dataclasses.replace(point, config=support.set_keys(
      point.config, {'checkpoint.stop_frac': 0.5}))
  assert 'checkpoint.stop_frac below 1' in cheap(points=[early])
  assert not (cheap.workdir / 'points').exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_saved_and_the_same_command_goes_on(cheap):
  """A terminal sends it to the driver and to all that it started alike."""
  (cheap.workdir / 'wait').touch()
  driver = subprocess.Popen(
      [sys.executable, '-c', 'import signal, sys; from tests import support_sweep as t; '
       'signal.signal(signal.SIGINT, signal.default_int_handler); '  # a background job ignores it
       't.drive(sys.argv[1], t.make_points())', cheap.workdir], cwd=ROOT, start_new_session=True,
      stderr=subprocess.PIPE)
  deadline = time.monotonic() + 500
  while len(count_starts(cheap.workdir)) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  os.killpg(driver.pid, signal.SIGINT)
  assert b'Stopped' in driver.communicate(timeout=500)[1]
  states = point_run.load_point_runs(cheap.points, cheap.workdir)
  assert [s.status for s in states] == ['waiting'] * 4
  assert all(s.error == f'exit code {-signal.SIGTERM}: ' for s in states[:2])  # not SIGINT
  (cheap.workdir / 'wait').unlink()
  assert '0 done before, 4 to run' in cheap()


@pytest.mark.slow
def test_a_setting_that_failed_is_not_judged(cheap):
  """Its place is nobody's: of one setting that is left one goes on."""
  (cheap.workdir / 'broken').write_text('0')
  cheap(points=cheap.points[2:3])
  (cheap.workdir / 'broken').unlink()
  cheap(points=cheap.points[:3], halving=halving_lib.Halving((0.5,), 0.5))
  states = point_run.load_point_runs(cheap.points[:3], cheap.workdir)
  assert [s.status for s in states] == ['done', 'done', 'failed']


def test_a_point_that_runs_as_a_job_of_its_own_is_seen_by_driver_and_conclusion(
    cheap, monkeypatch):
  """It tells where it stands as it goes; one that ends badly tells why."""
  # As with several processes, where what process 0 finds travels as JSON.
  monkeypatch.setattr(hosts, 'lead', lambda fn: json.loads(json.dumps(fn())))
  def look():
    return [(s.status, s.error) for s in point_run.load_point_runs(cheap.points, cheap.workdir)]
  with keep(cheap, cheap.points[0]):
    assert look()[0] == ('running', '')
  with pytest.raises(ValueError), keep(cheap, cheap.points[1]):
    raise ValueError('no\nluck')
  with pytest.raises(Stopped), keep(cheap, cheap.points[2]):
    raise Stopped('asked to end')
  assert look() == [('done', ''), ('failed', 'ValueError: no luck'), ('waiting', ''),
                    ('waiting', '')]
  # Another process has it: what that one tells stays.
  with pytest.raises(UserError), keep(cheap, cheap.points[3]):
    with keep(cheap, cheap.points[3]):
      raise FolderTaken('DIR: wait for process 1')
  assert look()[3] == ('running', '')
  other = dataclasses.replace(cheap.points[0], config=cheap.points[2].config)
  with pytest.raises(UserError, match='holds a run of another config'):
    with keep(cheap, other):
      pass


@pytest.mark.slow
def test_a_driver_leaves_a_point_that_another_process_holds_for_a_while(cheap, monkeypatch):
  (cheap.workdir / 'held').touch()
  monkeypatch.setattr(driver_lib, '_WAIT_SECS', 2.0)
  cheap(points=cheap.points[:1])
  first, second = map(float, (cheap.workdir / 'points/rate=0.5,seed=0/times').read_text().split())
  assert second - first > 1.8  # an instant again takes the start of a process
  assert count_starts(cheap.workdir) == {'rate=0.5,seed=0': 2}
  assert point_run.load_point_runs(cheap.points[:1], cheap.workdir)[0].status == 'done'


def test_what_is_done_and_was_evaluated_otherwise_is_told_with_the_command(cheap):
  cheap(points=cheap.points[:1])
  point = cheap.points[0]
  other = dataclasses.replace(point, config=support.set_keys(
      point.config, {'eval.num_examples': 7}))
  assert f'{point.name}: is done, and was not evaluated as eval now says: ' in cheap(points=[other])


def test_a_conclusion_alone_runs_nothing(cheap):
  cheap(points=cheap.points[:2])
  before = count_starts(cheap.workdir)
  console = rich_console.Console(file=open(os.devnull, 'w'))
  sweep = driver_lib.Sweep(cheap.points, cheap.workdir, 'recipe.py', conclude_only=True)
  driver_lib.drive(sweep, lambda line: None, console)
  assert count_starts(cheap.workdir) == before
  entries = json.loads((cheap.workdir / 'sweep.json').read_text())['entries']
  assert [e['num_done'] for e in entries] == [2, 0]
  with pytest.raises(UserError, match='there is no sweep here'):
    driver_lib.drive(dataclasses.replace(sweep, workdir=cheap.workdir / 'typo'),
                     lambda line: None, console)
  assert not (cheap.workdir / 'typo').exists()


def test_a_bucket_is_refused_before_it_is_asked_for_anything(cheap, monkeypatch):
  bucket, asked = epath.Path('gs://no-such-bucket/sweep'), []
  for name in ('exists', 'is_dir'):
    monkeypatch.setattr(type(bucket), name, lambda path: asked.append(path) or False)
  with pytest.raises(UserError, match='a sweep is driven from a local directory'):
    driver_lib.drive(driver_lib.Sweep(cheap.points, bucket, 'recipe.py'), print, None)
  assert not asked


def test_no_sweep_is_driven_in_the_directory_of_a_run(cheap):
  (cheap.workdir / 'config.json').write_text('{}')
  assert 'is the directory of a run' in cheap()
  assert [p.name for p in cheap.workdir.iterdir()] == ['config.json']
  (cheap.workdir / 'points').mkdir()
  assert 'report: ' in cheap()  # a sweep that was begun there before goes on


@pytest.mark.slow
def test_a_stop_while_controls_are_asked_leaves_what_the_runs_said(cheap, monkeypatch):
  def stop(*args):
    raise KeyboardInterrupt
  monkeypatch.setattr(ask_controls, 'ask', stop)
  with pytest.raises(Stopped, match='controls under way are asked anew'):
    cheap(controls=True)
  entries = json.loads((cheap.workdir / 'sweep.json').read_text())['entries']
  assert [e['num_done'] for e in entries] == [2, 2]


@pytest.mark.parametrize('args, told', [
    (['--point=9'], 'there are 3 points, numbered from 0'),
    (['--point=1', '--sweep_dir=a', '--workdir=b'], 'give one'),
    (['--mode=sweep', '--sweep_dir=a'], 'runs all points, in --workdir'),
    # A sweep and its runs would take these otherwise than one another, or not at all.
    (['--point=1', '--identity=0123456789abcdef'], 'is another run now than its sweep began'),
    (['--point=1', '--dry_run'], '--dry_run: is for --mode=sweep'),
    (['--mode=sweep', '--hardware=h100:8'], '--utilization: are for --dry_run, which'),
    (['--mode=sweep', '--utilization=0.4'], '--utilization: are for --dry_run'),
    (['--point=1', '--controls'], 'is for --mode=sweep; one run is asked with --mode=con'),
    (['--point=1', '--halve_at=0.5'], '--halve_at: is for --mode=sweep'),
    (['--point=1', '--noconfig.layout.depth0_readout'], 'write --config.layout.depth0_readout=F'),
    (['--mode=sweep', '--config.seed', '3'], 'write --config.seed=VALUE')])
def test_a_command_that_is_no_sweep_s_and_no_point_s_is_refused(tmp_path, args, told):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(RECIPE.format(base=support_sweep.make_base().to_dict(), last=4))
  with pytest.raises(UserError, match=told):
    command_line.parse(['main', f'--config={recipe}', *args])


def test_a_key_that_other_points_cannot_have_is_no_matter_to_one(tmp_path):
  """A budget of blocks is refused where a method has none: of all together, and of that one."""
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(RECIPE.format(base=support_sweep.make_base().to_dict(), last=4))
  command = ['main', f'--config={recipe}', '--config.eval.budget_blocks=3']
  config = command_line.parse([*command, '--point=1'])[1]
  assert (config.method, config.eval.budget_blocks) == ('pause', 3)
  for args in (['--mode=sweep'], ['--point=0']):
    with pytest.raises(UserError, match='method=direct,blocks=2: eval.budget_blocks=3'):
      command_line.parse([*command, *args])
  # Of another length: Python takes a file of the same second and length for the one it compiled.
  recipe.write_text(recipe.read_text().replace("'blocks': k}", "'blocks': 1 }"))
  with pytest.raises(UserError, match='2 points are named method=pause,blocks=1'):
    command_line.parse([*command, '--point=1'])
  recipe.write_text(recipe.read_text().replace('in ((', 'in () and (('))
  with pytest.raises(UserError, match='its grid is empty'):
    command_line.parse([*command, '--point=1'])


def test_a_run_that_a_sweep_starts_is_the_point_that_it_began(tmp_path):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(RECIPE.format(base=support_sweep.make_base().to_dict(), last=4))
  points = command_line.parse(['main', f'--config={recipe}', '--mode=sweep'])[1]
  command = driver_lib.Sweep(points, tmp_path, str(recipe)).make_command(points[1])
  config = command_line._expand_keys(points[1].config)
  assert command_line.parse(['main', *command[3:]]).config == config
  text = recipe.read_text()
  recipe.write_text(text.replace("'layout.num_blocks': k", "'layout.num_blocks': k + 1"))
  with pytest.raises(UserError, match='another run now'):
    command_line.parse(['main', *command[3:]])


@pytest.mark.parametrize('flags, heard', [
    (['--mode=sweep', '--config.seed=7'], False), (['--mode=sweep', '--config.seed=1'], True),
    (['--point=method=rim,seed=0', '--config.seed=3'], False),
    (['--point=method=rim,seed=0', '--config.seed=0'], True),
    (['--point=method=rim,seed=0', '--config.method=pause'], False),
    (['--mode=sweep', '--config.layout.row_tokens=32'], True),
    # A key that some points set: ignored by them in a sweep, refused where one of them runs alone.
    (['--point=method=looped,seed=0', '--sweep_dir=a', '--config.loop.num_passes=3'], True),
    (['--point=method=looped,seed=0', '--config.loop.num_passes=3'], False)])
def test_a_key_that_the_recipe_sets_itself_is_not_given_in_vain(flags, heard):
  argv = ['rim', '--config=configs/compare.py', *flags]
  if heard:
    command_line.parse(argv)
  else:
    with pytest.raises(UserError, match='sets this key itself .*so that nothing would change'):
      command_line.parse(argv)


def test_a_number_is_a_point_in_the_recipe_s_order(tmp_path):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(RECIPE.format(base=support_sweep.make_base().to_dict(), last=4))
  values, config, _ = command_line.parse(['main', f'--config={recipe}', '--point=2',
                                       '--sweep_dir=gs://bucket/sweep/'])
  assert values.point == 'method=pause,blocks=4' and config.layout.num_blocks == 4
  assert values.workdir == 'gs://bucket/sweep/points/method=pause,blocks=4'


# ---- Real runs ----

RECIPE = """
import ml_collections
from rim_jax import points
def get_config():
  base = ml_collections.ConfigDict({base!r})
  return points.make_sweep_dict(base, [
      ({{'method': m, 'blocks': k}}, {{'method': m, 'layout.num_blocks': k}})
      for m, k in (('direct', 2), ('pause', 2), ('pause', {last}))])
"""


@pytest.fixture
def one_device(monkeypatch, use_devices):
  """For runs in this process, and for those that a sweep starts."""
  use_devices(1)
  monkeypatch.setenv('XLA_FLAGS', support_runs.ENVIRONMENT['XLA_FLAGS'])


@pytest.mark.slow
def test_real_runs_one_of_which_cannot_be(tmp_path, capsys, one_device):
  """The third has more blocks than positions: told by its own run, and the others are whole."""
  base = support_sweep.make_base(data__cache_dir=str(tmp_path / 'cache'), train__num_examples=16,
                                 train__batch_rows=8)
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(RECIPE.format(base=base.to_dict(), last=30))
  command = ['main', f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--mode=sweep',
             '--jobs=2', '--config.seed=3']
  assert main_lib.cli([*command, '--controls']) == 2
  assert 'max_positions' in capsys.readouterr().err
  assert main_lib.cli([*command, '--controls']) == 2
  assert '1 runs with blocks asked before, 0 to ask' in capsys.readouterr().out
  asked = json.loads((tmp_path / 'run/points/method=pause,blocks=2/controls.json').read_text())
  assert asked['controls']['direct']['run'] == str(tmp_path / 'run/points/method=direct,blocks=2')
  assert asked['controls']['direct']['differs'] == [] and asked['controls']['swapped']['n']
  entries = json.loads((tmp_path / 'run/sweep.json').read_text())['entries']
  assert [e['num_done'] for e in entries] == [1, 1, 0]
  results = json.loads((tmp_path / 'run/points/method=pause,blocks=2/results.json').read_text())
  assert entries[1]['final_acc']['values'] == [results['test']['final_acc']]
  assert entries[1]['controls']['as_trained']['final_acc']['mean'] == results['test']['final_acc']
  card = json.loads((tmp_path / 'run/points/method=direct,blocks=2/config.json').read_text())
  assert card['config']['seed'] == 3  # from the command line
  one = ['main', f'--config={recipe}', '--point=method=direct,blocks=2', '--config.seed=3',
         f'--workdir={tmp_path / "run/points/method=direct,blocks=2"}']
  assert main_lib.cli(one) == 0 and 'this run is complete' in capsys.readouterr().out
  other = ['main', f'--config={recipe}', '--config.seed=3', f'--sweep_dir={tmp_path / "jobs"}']
  assert main_lib.cli([*other, '--point=1']) == 0  # as an array of jobs would
  assert main_lib.cli([*other, '--point=2']) == 2
  assert main_lib.cli([*command, f'--workdir={tmp_path / "jobs"}', '--conclude']) == 2
  assert 'UserError' in capsys.readouterr().err
  entries = json.loads((tmp_path / 'jobs/sweep.json').read_text())['entries']
  assert [(e['num_done'], len(e['failed'])) for e in entries] == [(0, 0), (1, 0), (0, 1)]


@pytest.mark.slow
def test_a_run_and_a_driver_that_are_killed_end_bit_for_bit_as_undisturbed_ones(
    tmp_path, one_device):
  """kill -9 of the first point's run, then of the driver while the second is in its midst."""
  base = support_sweep.make_base(data__cache_dir=str(tmp_path / 'cache'), train__num_examples=960,
                   train__batch_rows=8, model__dropout=0.1, eval__num_valid_examples=4)
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
      'import ml_collections\nfrom rim_jax import points\n'
      f'def get_config():\n  return points.make_sweep_dict(ml_collections.ConfigDict('
      f'{base.to_dict()!r}), points.vary_seeds(2))\n')
  command = [sys.executable, '-m', 'rim_jax.main', f'--config={recipe}', '--mode=sweep']
  folders = [tmp_path / 'parts/points' / name for name in ('seed=0', 'seed=1')]
  driver = subprocess.Popen([*command, f'--workdir={tmp_path / "parts"}'], cwd=ROOT,
                            stdout=subprocess.DEVNULL)
  deadline = time.monotonic() + 500
  for folder in folders:
    while not (folder / 'checkpoints/3/manifest.json').exists():
      assert driver.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    run = int((folder / '.lock').read_text().split()[1])
    victim = run if folder == folders[0] else driver.pid
    os.kill(victim, signal.SIGKILL)
  driver.wait()
  while pathlib.Path(f'/proc/{run}').exists():  # SIGTERM has come to it
    assert time.monotonic() < deadline
    time.sleep(0.01)
  told = [json.loads((folder / 'point.json').read_text()) for folder in folders]
  assert [t['status'] for t in told] == ['failed', 'running'] and 'code -9' in told[0]['error']
  assert not any((folder / 'results.json').exists() for folder in folders)
  for name in ('whole', 'parts'):
    subprocess.run([*command, f'--workdir={tmp_path / name}', '--jobs=2', '--retry_failed'],
                   cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=500)
  for folder in folders:
    whole = tmp_path / 'whole/points' / folder.name
    [(at, end)] = re.findall(r'continuing from step (\d+) of (\d+)',
                             (folder / 'output.txt').read_text())
    assert 3 <= int(at) < int(end)  # in its midst
    support_runs.assert_same_run(whole, folder)
    mine, other = (json.loads((f / 'results.json').read_text())['test'] for f in (whole, folder))
    # Seals cover times and the card, which has the command and its folder.
    numbers = [k for k in mine if 'ms' not in k.split('_') and k not in ('sha256', 'card_sha256')]
    assert 'final_acc' in numbers
    assert {k: mine[k] for k in numbers} == {k: other[k] for k in numbers}
    name = 'predictions/test.jsonl'
    assert (whole / name).read_text() == (folder / name).read_text()
  entries = [json.loads((tmp_path / name / 'sweep.json').read_text()) for name in (
      'whole', 'parts')]
  assert entries[0] == entries[1]


def make_rates(tmp_path):
  """The command of a sweep of two rates."""
  base = support_sweep.make_base(data__cache_dir=str(tmp_path / 'cache'), train__num_examples=512,
                   train__batch_rows=8, checkpoint__every_steps=4, data__chain__modulus=3,
                   eval__num_valid_examples=40)
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
      'import ml_collections\nfrom rim_jax import points\n'
      f'def get_config():\n  return points.make_sweep_dict(ml_collections.ConfigDict('
      f'{base.to_dict()!r}), points.vary("optim.learning_rate", (1e-2, 1e-12), "lr"))\n')
  return ['main', f'--config={recipe}', f'--workdir={tmp_path / "run"}', '--mode=sweep', '--jobs=2']


def test_flags_of_halving_that_do_not_go_together_are_refused_and_its_cost_is_told(
    tmp_path, capsys):
  command = make_rates(tmp_path)
  for args, told in ((['--halve_at=0.5,0.25'], 'ascending'), (['--halve_keep=0.5'], 'goes with'),
                     (['--halve_at=0.5', '--conclude'], 'leave out --halve_at'),
                     (['--controls', '--conclude'], 'leave out --controls')):
    assert main_lib.cli([*command, *args]) == 2 and told in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()
  assert main_lib.cli([*command, '--halve_at=0.25', '--controls', '--dry_run']) == 0
  told = capsys.readouterr().out
  assert 'of every run with blocks again, with --mode=controls' in told
  assert 'less with --halve_at, which drops some' in told


@pytest.mark.slow
def test_real_runs_of_which_the_worse_end_early(tmp_path, one_device):
  """A rate of nearly nothing never learns to write one of three digits."""
  assert main_lib.cli([*make_rates(tmp_path), '--halve_at=0.25']) == 0
  num_steps = run_folder.RunFolder(tmp_path / 'run/points/lr=0.01').load_metrics()[-1]['step']
  assert num_steps > 8
  (rung,) = json.loads((tmp_path / 'run/halving.json').read_text())['rungs']
  for setting in rung['settings']:
    told = run_folder.RunFolder(tmp_path / 'run/points' / setting['name']).load_metrics()
    valid = {x['step']: x['valid/final_acc'] for x in told if 'valid/final_acc' in x}
    stop = next(step for step in valid if step >= 0.25 * num_steps)
    assert valid[stop] == setting['valid_acc']
    assert max(valid) == (num_steps if setting['goes_on'] else stop)
  assert [s['goes_on'] for s in rung['settings']] == [True, False]
