"""The pages of docs/reference, and what docs/design.md names, are what the code has."""

import ast
import json
import pathlib
import re
import shutil
import tarfile
import types

import jax
import pytest

from configs import presets
from configs.sweeps import tuning
from docs import make_reference, make_tables
from rim_jax import config as config_lib
from rim_jax.evaluation import decode
from rim_jax.results import judge
from tests import support

DOCS = pathlib.Path(make_reference.__file__).parent


def read_table(page, head):
  """Cells of the table whose head begins so."""
  lines = (DOCS / page).read_text().splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith(head)) + 2
  rows = []
  for line in lines[start:]:
    if not line.startswith('|'):
      break
    rows.append([cell.strip() for cell in line.strip('|').split(' | ')])
  assert rows
  return rows


def test_the_page_of_keys_is_what_the_schema_makes():
  """After a change of rim_jax/config/schema.py: python -m docs.make_reference."""
  assert make_reference.PAGE.read_text() == make_reference.make_page()


def test_the_pages_of_flags_and_presets_are_what_the_code_has():
  """After a change of rim_jax/command_line.py or configs/presets.py: the same command."""
  assert make_reference.FLAGS.read_text() == make_reference.make_flags()
  assert make_reference.PRESETS.read_text() == make_reference.make_presets()


def test_every_key_is_on_the_page_with_a_meaning():
  rows = [line.split(' | ') for line in make_reference.make_page().splitlines()
          if line.startswith('| `')]
  assert [row[0].strip('| `') for row in rows] == list(config_lib.list_types())
  for row in rows:
    assert len(row[-1].strip(' |').split()) >= 2, f'{row[0]}: its comment in the schema is missing'


def test_the_table_of_row_shapes_is_what_the_code_reads():
  """After a change of rim_jax/data/formats.py: python -m docs.make_reference."""
  page = make_reference.DATA.read_text()
  assert page == make_reference.write_shapes(page) and make_reference.make_shapes() in page


JUDGED = read_table('reference/judging.md', '| answer | reference')


@pytest.mark.parametrize('answer, gold, right, why', JUDGED)
def test_answers_are_judged_as_the_page_says(answer, gold, right, why):
  del why
  assert judge.answers_match(answer.strip('`'), gold.strip('`')) is {'yes': True, 'no': False}[
      right]


def test_the_page_tells_the_version_of_the_rule():
  page = (DOCS / 'reference/judging.md').read_text()
  assert f'This is **version {judge.RULE_VERSION}** of the rule.' in page


@pytest.mark.parametrize('text, answer, why', read_table(
    'reference/judging.md', '| written behind'))
def test_answers_are_cut_as_the_page_says(text, answer, why):
  del why
  config = support.make_config('rim_stage2', layout__answer_prefix='(', layout__answer_suffix='}')
  assert judge.parse_answer(text.strip('`'), config) == (
      '' if answer == 'unparsed' else answer.strip('`'))


@pytest.mark.parametrize('name', ['metrics.jsonl', 'results.json'])
def test_every_number_that_a_run_writes_is_on_the_page_of_metrics(name):
  page, found = (DOCS / 'reference/metrics.md').read_text(), set()
  with tarfile.open(DOCS.parent / 'tests/old/run.tar.xz') as run:
    for path in run.getnames():
      if pathlib.Path(path).name == name and name == 'metrics.jsonl':
        found.update(*map(json.loads, run.extractfile(path).read().splitlines()))
      elif pathlib.Path(path).name == name and 'stage' in path:
        found.update(*json.loads(run.extractfile(path).read()).values())
  for pattern, general in ((r'_block_\d+$', '_block_<k>'), (r'^goodput/\w+_', 'goodput/<part>_')):
    found = {re.sub(pattern, general, key) for key in found}
  found.discard('goodput/<part>_frac')
  assert len(found) > 10
  assert not [key for key in found if f'`{key}`' not in page]


RECIPES = {str(path.relative_to(DOCS.parent)): ast.get_docstring(ast.parse(path.read_text()))
           for path in sorted((DOCS.parent / 'configs').rglob('*.py')) if path.stem != 'presets'}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_tells_its_command_cost_and_score(recipe):
  text = RECIPES[recipe]
  assert f'python -m rim_jax.main --config={recipe}' in text.replace('--mode=sweep ', '')
  assert text.count('Cost: ') == text.count('Score: ') >= 1


@pytest.mark.parametrize('preset', sorted(presets.PRESETS))
def test_a_preset_tells_its_cost_and_score(preset):
  assert 'Cost' in presets.PRESETS[preset].__doc__ and 'Score' in presets.PRESETS[preset].__doc__


def find_tests(path):
  """Name of each test of a file -> the text of its decorators, but for marks of single cases."""
  return {node.name: ' '.join(text for text in map(ast.unparse, node.decorator_list)
                              if not text.startswith('pytest.mark.parametrize'))
          for node in ast.parse(path.read_text()).body
          if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}


def test_every_invariant_has_a_test_that_runs_by_default():
  rows = read_table('design.md', '| invariant')
  assert len(rows) > 40
  for invariant, tests in rows:
    named = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', tests)
    assert named, f'{invariant}: names no test'
    for path, name in named:
      found = find_tests(DOCS.parent / path)
      assert name in found, f'{path} has no {name}'
      for marker in ('slow', 'hf', 'tpu', 'gpu'):
        assert f'mark.{marker}' not in found[name], f'{name} does not run by default'


@pytest.mark.parametrize('file, constant', [
    ('config.json', 'CARD'), ('checkpoints/STEP/', 'CHECKPOINT'), ('results.json', 'RESULTS'),
    ('controls.json', 'CONTROLS'), ('compare.json', 'COMPARE'), ('sweep.json', 'CONCLUSION'),
    ('points/NAME/point.json', 'SWEEP')])
def test_versions_of_files_are_those_of_the_code(file, constant):
  found = {version for path in (DOCS.parent / 'rim_jax').rglob('*.py') for version in re.findall(
      rf'^{constant}_VERSION = (\d+)', path.read_text(), re.M)}
  rows = read_table('reference/files.md', '| file | content') + read_table(
      'reference/files.md', '| file below')
  row, = (row for row in rows if row[0].startswith(f'`{file}`'))
  assert {row[-1]} == found


def test_the_tables_of_results_are_those_of_the_kept_runs():
  """After a run is kept: python -m docs.make_tables."""
  page = make_tables.PAGE.read_text()
  assert make_tables.write_tables(page) == page


@pytest.mark.parametrize('name', make_tables.SEARCHES)
def test_the_best_of_a_kept_search_is_what_methods_are_compared_at(name):
  head, _, *lines = [[cell.strip(' `') for cell in line.split('|')[1:-1]]
                     for line in make_tables.make_search(name).split('\n')]
  found = dict((method, (own, rate.removeprefix('rate '))) for method, own, *accs in lines
               for rate, acc in zip(head[2:], accs, strict=True) if acc.startswith('**'))
  best = tuning.find_best('chain', str(make_tables.RUNS / name))
  assert found.keys() == best.keys() and best
  for method, config in best.items():
    section, _, key = tuning.KNOBS[method][0].partition('.')
    assert found[method] == (f'{key}={config[section][key]:.3g}', f'{config.optim.learning_rate:g}')


@pytest.mark.parametrize('method, thoughts, passes', [
    ('rim_stage2', 0, 1), ('pccot', 3, 2), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ('rim_stage2', 0, 3), ('coconut_stage', 3, 1), ('pccot', 3, 1), ('lotus_stage', 3, 2),
            ('lotus_stage', 3, 1)))])
def test_costs_of_an_answer_are_counted_tokens(method, thoughts, passes, monkeypatch):
  config = support.make_config(method, layout__block_tokens=thoughts or 1, loop__num_passes=passes)
  count = config.layout.num_blocks
  model, counted = support.make_model(config), support.count_reads(monkeypatch)
  trunks = decode.make_trunks([range(5)], count, 5 + count * (config.layout.block_tokens + 2), 1,
                              config, model.vocab_size)
  jax.jit(lambda: decode.prefill(model, config, trunks, (count,))[0])()
  jax.effects_barrier()
  entry = {'prompt_tokens': 5, 'num_blocks': count, 'prefix_tokens': 0, 'generated_to_first': 3,
           'num_thoughts': thoughts * config.has_thoughts,
           } | ({'num_passes': passes} if passes > 1 else {})
  assert make_tables.count_to_first(entry, config.layout.block_tokens) == (
      len(counted) + 2, sum(counted) + 2)  # two tokens more are written first


def test_what_is_right_modulo_2_and_5_is_counted():
  said = [('3', '8'), ('9', '4'), ('7', '5'), ('4', '4'), ('+2', '2')]  # the last is no number
  run = types.SimpleNamespace(load_predictions=lambda name: [
      types.SimpleNamespace(prediction=p, answer=a) for p, a in said if name == 'test'])
  assert make_tables._count_modulo(run) == {'2': 2 / 5, '5': 3 / 5}


def test_kept_runs_are_of_known_sweeps_and_name_no_path():
  paths = list(make_tables.RUNS.glob('*/*.json'))
  assert {path.parent.name for path in paths} == make_tables.SWEEPS.keys()
  for path in paths:
    assert not re.search(r'["=]/\w+/', path.read_text()), path.name


@pytest.mark.parametrize('name', [
    name for name in make_tables.SWEEPS if name not in make_tables.SEARCHES])
def test_a_table_names_what_is_missing(name, monkeypatch, tmp_path):
  runs = make_tables.load(name)
  (setting, seed), *_ = runs
  shutil.copytree(make_tables.RUNS / name, tmp_path / name)
  before = make_tables.make_table(name)
  (tmp_path / name / f'{runs[setting, seed]["point"]}.json').unlink()
  monkeypatch.setattr(make_tables, 'RUNS', tmp_path)
  (told,) = [line for line in make_tables.make_table(name).split('\n')
             if line.startswith(f'Missing with seed {seed}:')]
  named = setting in [name.strip(' .') for name in re.split('all but|[:;]', told)]
  assert f'with seed {seed}: all.' in told or named == ('all but' not in told)
  assert make_tables.make_table(name) != before
