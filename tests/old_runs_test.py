"""Runs of an earlier version go on: tests/old has a run, a stopped one and a half-done sweep.

They were made once, by the version that tests/old/README.md names, and are never made anew: what
they hold is what people have. Another processor, or another version of JAX, rounds otherwise, so
that losses may differ a little. What is predicted may not: with every parameter changed by a
part in 10,000, at random, each prediction and each control of the old run stayed what it was.
"""

import functools
import hashlib
import importlib.util
import io
import json
import pathlib
import shutil
import tarfile
import types

import pytest
from rich import console as rich_console

from rim_jax import config as config_lib
from rim_jax import main
from rim_jax.config import parse, schema
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.sweep import matched_runs
from rim_jax.training import state
from tests import support, support_runs

OLD = pathlib.Path(__file__).parent / 'old'
SHA256 = {
    'run.tar.xz': '8c83d4b29ef26e5ff9e9cc1d88cf610626abc5a44de05aa8afc5a20411ed9617',
    'sweep.tar.xz': 'a590d547eb44deed96e4763fdc043caeb8d21ef8f4f052c36e1a2eb3b5464f41'}
RECIPE = OLD / 'recipe.py'
ROUNDING = 1e-4  # relative, of losses; 4e-7 was seen


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
  """The files as they were made, and a folder for prepared data, which they do not have."""
  folder = tmp_path_factory.mktemp('old')
  for name in SHA256:
    with tarfile.open(OLD / name) as archive:
      archive.extractall(folder, filter='data')
  return folder


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch, use_devices):
  """A copy of them for one test, in the working directory: run, run_stopped, sweep, gone_on."""
  use_devices(1)  # as they were made
  # And so do the runs of a sweep, each a process.
  monkeypatch.setenv('XLA_FLAGS', support_runs.ENVIRONMENT['XLA_FLAGS'])
  monkeypatch.chdir(tmp_path)
  for path in unpacked.iterdir():
    if path.name != 'cache':
      shutil.copytree(path, tmp_path / path.name)

  def run_cli(*argv, recipe=RECIPE):
    out = io.StringIO()
    code = main.cli(['main.py', f'--config={recipe}', f'--config.data.cache_dir={unpacked}/cache',
                     *argv], rich_console.Console(file=out, width=100))
    return code, out.getvalue()
  return run_cli


def load(path):
  return json.loads(pathlib.Path(path).read_text())


def load_lines(path):
  return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def list_losses(path, after=0):
  return {x['step']: x['train/loss'] for x in load_lines(path) if 'train/loss' in x
          and x['step'] > after}


def list_files(folder):
  """Path -> (content, time of the last change) of every file below a folder."""
  return {path: (path.read_bytes(), path.stat().st_mtime_ns)
          for path in sorted(pathlib.Path(folder).rglob('*')) if path.is_file()}


def check_results(found, expected):
  """Every key of an old result stands in the new one, what rounding cannot change equal."""
  assert expected.keys() <= found.keys()
  for key in ('n', 'num_blocks', 'step', 'checkpoint', 'method', 'data_fingerprint', 'format'):
    assert found[key] == expected[key], key


def check_predictions(found, expected):
  """The same questions, and the same prediction after each block."""
  found, expected = load_lines(found), load_lines(expected)
  for key in ('question', 'answer', 'origin', 'block_predictions', 'correct'):
    assert [p[key] for p in found] == [p[key] for p in expected], key


def test_the_files_are_those_that_were_made():
  for name, sha256 in SHA256.items():
    assert hashlib.sha256((OLD / name).read_bytes()).hexdigest() == sha256, name


def test_a_stopped_run_goes_on_as_it_would_have(old):
  before = list_files('run_stopped')
  code, out = old('--workdir=run_stopped')
  assert code == 0
  assert 'continuing from step 350 of 375' in out
  for name in ('config.json', 'metrics.jsonl'):
    path = pathlib.Path('run_stopped/stage1') / name
    assert path.read_bytes().startswith(before[path][0]), name
  for stage, after in (('stage1', 350), ('stage2', 0)):
    found, expected = (list_losses(f'{run}/{stage}/metrics.jsonl', after)
                       for run in ('run_stopped', 'run'))
    assert len(expected) == 5 and found == pytest.approx(expected, rel=ROUNDING)
    check_results(load(f'run_stopped/{stage}/results.json')['test'],
                  load(f'run/{stage}/results.json')['test'])
    check_predictions(*(f'{run}/{stage}/predictions/test.jsonl' for run in ('run_stopped', 'run')))
  assert load('run_stopped/results.json').keys() == load('run/results.json').keys()


def test_a_complete_run_is_not_run_again(old):
  before = list_files('run')
  code, out = old('--workdir=run')
  assert code == 0
  assert [line for line in out.splitlines() if line.endswith('this run is complete')] == [
      f'run/stage{k}: this run is complete' for k in (1, 2)]
  after = list_files('run')
  assert [path for path in before if after[path] != before[path]] == [
      pathlib.Path('run/results.json')]  # of both stages, written with every report
  assert load('run/results.json') == json.loads(before[pathlib.Path('run/results.json')][0])


@pytest.mark.parametrize('set_name,flags', [
    ('test', []),
    pytest.param('test-k1', ['--config.eval.num_blocks=1'], marks=pytest.mark.slow)])
def test_a_run_is_evaluated(old, set_name, flags):
  results, predictions = (pathlib.Path('run/stage2') / name for name in (
      'results.json', f'predictions/{set_name}.jsonl'))
  expected = load(results)
  predictions.rename('expected.jsonl')
  results.write_text(json.dumps({k: v for k, v in expected.items() if k != set_name}))
  assert old('--workdir=run', '--mode=eval', *flags)[0] == 0
  found = load(results)
  assert found.keys() == expected.keys()
  check_predictions(predictions, 'expected.jsonl')
  check_results(found[set_name], expected[set_name])
  for key in ('final_acc', 'block_acc', 'any_block_acc', 'majority_acc'):
    assert found[set_name][key] == pytest.approx(expected[set_name][key]), key


@pytest.mark.slow
def test_a_run_s_controls_and_answers_are_asked(old):
  expected = load('run/stage2/controls.json')
  pathlib.Path('run/stage2/controls.json').unlink()
  assert old('--workdir=run', '--mode=controls', '--config.controls.num_attention=0')[0] == 0
  found = load('run/stage2/controls.json')
  assert found['controls'].keys() == expected['controls'].keys()
  for name, entry in expected['controls'].items():
    for key in ('final_acc', 'block_acc', 'n'):
      assert found['controls'][name].get(key) == pytest.approx(entry.get(key)), (name, key)
  question, = load_lines('run/stage2/predictions/test.jsonl')[:1]
  code, out = old('--workdir=run', '--mode=generate', f"--question={question['question']}")
  assert code == 0 and f"3: {question['block_predictions'][-1]}" in ' '.join(out.split())


def test_runs_are_reported_and_compared(old):
  assert old('--workdir=run', '--mode=report')[0] == 0
  page = pathlib.Path('run/report.html').read_text()
  expected = load('run/stage2/results.json')['test']
  assert f"{100 * expected['final_acc']:.1f}%" in page
  other = pathlib.Path('sweep/points/method=direct,seed=1')
  assert old('--workdir=run', '--mode=compare', f'--with={other}')[0] == 0
  found = load('run/compare.json')
  right = [[p['correct'] for p in load_lines(folder / 'predictions/test.jsonl')]
           for folder in (pathlib.Path('run/stage2'), other)]
  assert [found['count'], found['both'], found['only_a'], found['only_b']] == [
      24, *(sum((a, b) == case for a, b in zip(*right))
            for case in ((True, True), (True, False), (False, True)))]


@pytest.mark.slow
def test_a_sweep_goes_on(old):
  points = pathlib.Path('sweep/points')
  left = points / 'method=pause,seed=1'
  before = list_files(points)
  recipe = f'{RECIPE}:sweep'
  code, out = old('--mode=sweep', '--workdir=sweep', recipe=recipe)
  assert code == 0, out
  assert '4 points: 3 done before, 1 to run' in out
  after = list_files(points)
  assert [path for path in before if after[path] != before[path] and left not in path.parents
          ] == []
  assert {load(path)['status'] for path in points.glob('*/point.json')} == {'done'}
  assert load(left / 'config.json') == json.loads(before[left / 'config.json'][0])
  found, expected = (list_losses(path) for path in (left / 'metrics.jsonl',
                                                    'gone_on/metrics.jsonl'))
  assert len(expected) == 33 and found == pytest.approx(expected, rel=ROUNDING)
  check_results(load(left / 'results.json')['test'], load('gone_on/results.json')['test'])
  entries = {entry['name']: entry for entry in load('sweep/sweep.json')['entries']}
  for entry in load('gone_on/sweep.json')['entries']:
    mine = entries.pop(entry['name'])
    assert (mine['num_points'], mine['num_done']) == (2, 2)
    for key in ('final_acc', 'valid_acc'):
      assert mine[key]['values'] == pytest.approx(entry[key]['values']), key
  assert not entries


# ---- A key that is added ----


@pytest.fixture
def later_version(monkeypatch):
  """As if the project had a key and a section more."""
  for module in (schema, config_lib):
    monkeypatch.setattr(module, 'Config', support.LaterConfig)


@pytest.mark.slow
def test_a_version_with_more_keys_takes_old_runs_for_its_own(old, later_version, capsys):
  assert old('--workdir=run', '--mode=report')[0] == 0
  assert old('--workdir=run', '--mode=eval')[0] == 0
  assert old('--workdir=run')[0] == 0
  code, out = old('--workdir=sweep', '--mode=sweep', '--conclude', recipe=f'{RECIPE}:sweep')
  assert code == 0 and 'method=pause' in out
  capsys.readouterr()
  for flag, told in (('model.twist=0.5', 'with model.twist=0.0, now it is 0.5; use another '
                      '--workdir, or --config.model.twist=0.0'),
                     ('echo.num_times=2', 'with echo.num_times=1, now it is 2; use another '
                      '--workdir, or --config.echo.num_times=1')):
    assert old('--workdir=run', f'--config.{flag}')[0] == 2
    assert capsys.readouterr().err == f'error: run: was run {told}\n'
    assert old('--workdir=sweep', '--mode=sweep', '--conclude', f'--config.{flag}',
               recipe=f'{RECIPE}:sweep')[0] == 2
    assert f'was run {told}' in capsys.readouterr().err


def test_an_old_run_is_started_from_and_stands_beside_others(old, later_version, monkeypatch):
  class Loaded(Exception):
    """Nothing more was to be refused."""

  def load_network(*args, **kwargs):
    raise Loaded
  monkeypatch.setattr(state, 'load_network', load_network)
  spec = importlib.util.spec_from_file_location('recipe', RECIPE)
  spec.loader.exec_module(recipe := importlib.util.module_from_spec(spec))
  config = config_lib.parse_config(recipe.get_config())
  other = support.set_keys(config, {'model.twist': 0.5})
  make_task = functools.partial(types.SimpleNamespace, base=None, codec=types.SimpleNamespace(
      tokenizer=tokenizer_lib.load_tokenizer(config.tokenizer)))
  with pytest.raises(Loaded):
    state.initialize(make_task(config=config), None, 'run/stage1', print)
  with pytest.raises(UserError, match=r'^run/stage1: has model.twist=0.0, this run has 0.5; set '
                     '--config.model.twist to agree$'):
    state.initialize(make_task(config=other), None, 'run/stage1', print)

  prints = {'data': load('run/stage1/config.json')['data']['fingerprint'], 'base': None,
            'tokenizer': 'chain-v1', 'start': None}
  folder = 'sweep/points/method=pause,seed=0'
  differs = [matched_runs.load_matched(
      support.set_keys(c, {'controls.pause_dir': folder}), prints, {'pause': 'test'})['pause'][
          'differs'] for c in (config, other)]
  assert 'train.num_examples' in differs[0] and not [
      key for key in differs[0] if key in parse.list_neutral(support.LaterConfig)]
  assert differs[1] == [*differs[0][:(at := differs[1].index('model.twist'))], 'model.twist',
                        *differs[0][at:]]
