"""What a page says of a run's memory is what controls.json and pca.csv hold, number for number."""

import csv
import io
import re

import pytest
from rich import console as rich_console

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax.config import methods
from rim_jax.report import control_sections
from rim_jax.report import page as page_lib
from rim_jax.results import values
from rim_jax.runtime import run_folder
from tests import support_report
from tests.support_report import BLOCKS, make_attention, make_controls, make_probes, write_findings

NASTY = support_report.NASTY.replace('\ud800', '')  # what JSON can hold


def read_controls() -> dict[str, values.ControlResult]:
  return reader.from_tree(dict[str, values.ControlResult], make_controls())


def show(folder, blocks):
  """The HTML of blocks as a page, which is written with its figures."""
  return page_lib.write_page(folder / 'page.html', 'a page', blocks).read_text()


@pytest.fixture
def made(tmp_path):
  """(the page, its text, what it was made of, where)."""
  found, points = write_findings(tmp_path)
  text = show(tmp_path, control_sections.make_parts('run', tmp_path))
  return support_report.Page(tmp_path / 'page.html'), text, found, points, tmp_path


def read_figure(folder, name):
  """Rows of a figure's data, numbers as numbers."""
  with open(folder / 'figures' / f'{name}.csv', newline='') as file:
    return [(a, b, float(c)) for a, b, c in list(csv.reader(file))[1:]]


def list_cells(rows, columns, values):
  return [(str(r), str(c), v) for r, row in zip(rows, values, strict=True)
          for c, v in zip(columns, row, strict=True) if v is not None]


def test_controls_stand_beside_what_they_should_give(made):
  page, _, found, _, _ = made
  head, *rows = page.tables[0]
  assert [text for text, _ in head] == ['', 'if the memory does the work', 'run']
  for (name, entry), (title, expected, cell) in zip(found['controls'].items(), rows, strict=True):
    assert title[0] == name.replace('_', ' ') + entry['what'] and expected[0] == entry['expected']
    assert cell[1] == (*entry.get('block_acc', ()), *entry.get('block_donor_acc', ()),
                       *([entry['n']] if entry.get('n') else []))
  shown = {row[0][0].split('what')[0]: row[2][0] for row in rows}
  assert shown['swappeddonors'] == "41.0 / 42.0 / 43.0donor's 51.0 / 52.0 / 53.0904 questions"
  assert 'no two are alike' in shown['averagedmeans']
  assert 'runs/direct' in shown['directa run']
  assert 'DIFFERS in model.num_layers, model.mlp_dim' in shown['directa run']
  assert 'controls.pause_dir' in shown['pausea run']
  assert 'test, 1,234 questions, step 1,000 (best checkpoint)' in page.text
  assert '904 pairs; 96 more have equal answers and 5 questions no partner' in page.text


def test_runs_stand_side_by_side_and_a_control_that_one_lacks_is_a_dash(tmp_path):
  controls = read_controls()
  show(tmp_path, [control_sections.tabulate_controls({
      'a': controls, 'b': {'swapped': controls['swapped']}})])
  head, *rows = support_report.Page(tmp_path / 'page.html').tables[0]
  assert [text for text, _ in head[2:]] == ['a', 'b'] and len(rows) == 5
  assert rows[1][2] == rows[1][3] and rows[0][3] == ('–', ())
  assert not control_sections.tabulate_controls({}).rows


def test_sweeps_are_maps_of_the_changed_and_the_read_block(made):
  _, _, found, _, folder = made
  for key, sweep in found['sweeps'].items():
    name = key.replace('_', '-')
    for part, whose in (('block_acc', 'the-own'), ('block_donor_acc', 'the-donor-s')):
      assert read_figure(folder, f'run-{name}-questions-with-{whose}-answer') == list_cells(
          BLOCKS, BLOCKS, [e[part] for e in sweep['by_block']])


def test_a_sweep_without_pairs_says_why(tmp_path):
  nothing = {'what': 'w', 'expected': 'e', 'by_block': [
      {'block': k, 'n': 0, 'none': 'no two alike'} for k in BLOCKS]}
  write_findings(tmp_path, sweeps={'swapped_block': nothing})
  text = show(tmp_path, control_sections.make_parts('run', tmp_path))
  assert text.count('no two alike') == 1
  assert not list((tmp_path / 'figures').glob('*swapped*'))


@pytest.mark.parametrize('own', [True, False])
def test_attention_is_that_of_controls_json(tmp_path, own):
  found = write_findings(tmp_path, own)[0]['attention']
  text = show(tmp_path, control_sections.make_parts('run', tmp_path))
  names = ['question', 'm1', 'm2', 'm3', *(['own'] if own else [])]

  def shown(weights):
    return [row[:len(names)] for row in weights]
  mean = [[sum(x) / 2 for x in zip(*layers)] for layers in found['mean']]
  assert read_figure(tmp_path, 'run-attention-after-each-block') == list_cells(
      BLOCKS, names, shown(mean))
  assert read_figure(tmp_path, 'run-attention-after-the-last-block') == list_cells(
      (1, 2), names, shown(found['mean'][-1]))
  for i, question in enumerate(found['questions'], 1):
    assert read_figure(tmp_path, f'run-attention-after-the-last-block-question-{i}') == list_cells(
        (1, 2), names, shown(question['by_group'][-1]))
  tokens = re.findall(r'/([\d.]+)\)" title="([\d.]+)%">([^<]*)</span>', text)
  weights = [w for q in found['questions'] for w in q['by_token'][-1]]
  assert [t for *_, t in tokens] == ['a', '·', 'b'] * 2
  assert [float(share) for _, share, _ in tokens] == pytest.approx(
      [100 * w for w in weights], abs=0.006)
  most = [max(q['by_token'][-1]) for q in found['questions'] for _ in range(3)]
  assert [float(depth) for depth, *_ in tokens] == pytest.approx(
      [0.7 * w / m for w, m in zip(weights, most)], abs=0.006)


def test_more_questions_than_maps_are_all_in_the_table(tmp_path):
  attention = make_attention(True)
  attention['questions'] *= 3
  write_findings(tmp_path, attention=attention)
  text = show(tmp_path, control_sections.make_parts('run', tmp_path))
  assert len(list((tmp_path / 'figures').glob('*question-*.csv'))) == 4
  assert text.count('class="token"') == 18


def test_probes_that_were_fitted_on_valid_say_so(tmp_path):
  write_findings(tmp_path, probes=make_probes() | {'fitted_on': 'valid'})
  text = ' '.join(show(tmp_path, control_sections.make_parts('run', tmp_path)).split())
  assert 'questions of valid, C chosen on 500 others of valid, in % on 1,000' in text


def test_probes_are_those_of_controls_json(made):
  page, _, found, _, folder = made
  probes = found['probes']
  ranking, selection = (next(t for t in page.tables if t[0][1][0] == head) for head in (
      'AUROC', 'all questions'))
  assert [[values for _, values in row[1:]] for row in ranking[1:]] == [
      [(0.875,), (0.75,), (0.25,), (0.01,)], [(0.625,), (0.75,), (0.25,), (1.0,)],
      [(), (), (0.96875,), ()], [(0.875,), (0.4375,), (0.25,), ()]]
  assert [row[0][0] for row in ranking[1:]] == ['block 1', 'block 2', 'block 3', 'all blocks']
  assert ranking[3][1][0] == 'one class' and ranking[2][4][0] == '1 (not tuned)'
  assert [[values for _, values in row[1:]] for row in selection[1:]] == [
      [(0.5,), (0.6875,)], [(0.375,), ()], [(0.8125,), ()]]
  assert selection[0][2][0].startswith('the 812 that') and '1 / 2 / 1,006' in page.text
  assert 'fitted on 2,000 questions of train, C chosen on 500 of valid, in % on 1,000' in page.text
  assert read_figure(
      folder, 'run-intermediate-results-that-a-probe-reads-off-a-block') == list_cells(
          ['block 1', 'block 2', 'block 3', 'frequent'], ['r1', 'r2'],
          [*probes['steps']['acc'], probes['steps']['majority']])
  assert 'r2: train has one class alone' in page.text


def test_centers_go_through_training_and_points_are_the_last_checkpoint_s(made):
  page, _, found, points, folder = made
  pca = found['probes']['pca']
  steps = ('90', '500', '1000')  # by number, not by name
  assert read_figure(folder, 'run-center-of-each-block') == [
      (str(k), str(x), y) for k in BLOCKS
      for x, y in (pca['centers'][s][k - 1] for s in steps)]
  assert read_figure(folder, 'run-block-states') == [
      (str(k), str(float(x)), y) for k in BLOCKS
      for step, _, block, x, y, _ in points if step == 1000 and block == k]
  distances = page.tables[-1]
  assert [text for text, _ in distances[0]] == ['', 'step 90', 'step 500', 'step 1,000']
  assert [[v for _, (v,) in row[1:]] for row in distances[1:]] == [
      [pca['spread'][s][k - 1] for s in steps] for k in BLOCKS]
  assert 'of 2 questions, at step 1,000' in page.text


def test_no_more_points_than_a_page_can_carry(tmp_path):
  write_findings(tmp_path)
  rows = [(1000, i, k, 0, 0, '7') for i in range(1, 401) for k in BLOCKS]
  with open(tmp_path / 'pca.csv', 'a', newline='') as file:
    csv.writer(file).writerows(rows)
  points, count = control_sections._load_points(run_folder.RunFolder(tmp_path), '1000', 3)
  assert count == 333 and all(len(x) <= 335 for x, _ in points.values())


# ---- On a run's page ----


def make_page(folder, method='rim', **stages):
  for name, (stage, num_blocks) in (stages or {
      'stage1': ('rim_stage1', 4), 'stage2': ('rim_stage2', 4)}).items():
    support_report.write_run(folder / name, stage, num_blocks)
  return support_report.write_page(folder, method)


def test_what_was_not_asked_yet_names_its_command(tmp_path):
  text = make_page(tmp_path).text
  ask = 'not asked yet: --mode=controls'
  assert text.count(ask) == 4 and text.count(f'{ask} --config.controls.probes=True') == 2
  assert f'{ask}, with --config.controls.num_attention above 0' in text

  def make(**changes):
    write_findings(tmp_path, sweeps={}, **changes)
    return show(tmp_path, control_sections.make_parts('run', tmp_path))
  assert make(probes={}, attention=None).count(ask) == 3  # attention, and both that probes give
  text = make(probes={'none': 'with one layer'})
  assert ask not in text and text.count('with one layer') == 2


def test_they_are_asked_of_the_last_stage_alone_and_of_blocks_alone(tmp_path):
  write_findings(tmp_path / 'rim' / 'stage2')
  assert make_page(tmp_path / 'rim').text.count('Does the memory do the work?') == 1
  support_report.write_run(tmp_path / 'direct', 'direct', 0)
  text = support_report.write_page(tmp_path / 'direct', 'direct').text
  assert 'memory do the work' not in text and 'not asked yet' not in text


@pytest.mark.slow
@pytest.mark.parametrize('where', ['set', 'checkpoint'])
def test_text_from_a_run_is_inert(tmp_path, where, drawn_figures):
  attention = make_attention(True)
  attention['what'] = NASTY
  for question in attention['questions']:
    question.update(question=NASTY, answer=NASTY, tokens=[NASTY, '<img>', 'b'])
  controls = {NASTY: {'what': NASTY, 'expected': NASTY, 'n': 1, 'block_acc': [0.5], 'run': NASTY,
                      'differs': [NASTY]}, 'other': {'what': '', 'expected': '', 'none': NASTY}}
  probes = make_probes()
  probes['state'] = probes['right']['by_block'][2]['none'] = NASTY
  probes['right']['selection'] = {'none': NASTY}
  probes['steps'] = {'none': NASTY}
  probes['pca'] = {'none': NASTY, 'fitted_on': 9}
  write_findings(tmp_path / 'stage2', attention=attention, controls=controls, probes=probes,
                 **{where: NASTY})
  page = make_page(tmp_path)
  assert not {'img', 'script', 'bold', 'b0'} & {tag for tag, _ in page.elements}
  assert page.text.count('<img src=x onerror=alert(1)>&amp;') >= 15
  assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', page.text)
  ids = re.findall(r' id="([^"]*)"', (tmp_path / 'report.html').read_text())
  assert ids and len(ids) == len(set(ids))


def test_a_name_of_a_run_is_inert_in_the_table_of_many(tmp_path):
  text = show(tmp_path, [control_sections.tabulate_controls({NASTY: read_controls()})])
  assert '<img' not in text and '&lt;img' in text


def test_configs_of_every_method_have_a_page(tmp_path):
  """With no file at all: nothing missing is a crash."""
  for method in methods.FACTS:
    folder = tmp_path / method
    folder.mkdir()
    text = support_report.write_page(folder, method).text
    assert ('memory do the work' in text) == (method not in ('direct', 'cot', 'icot')), method
  assert config_lib.Config().controls.num_attention == 4


def test_a_terminal_has_probes_as_tables_and_what_is_missing_says_so():
  out = io.StringIO()
  selection = {'acc': 0.5, 'final_acc': 0.25, 'any_block_acc': 0.75, 'recoverable_acc': None,
               'num_recoverable': 3}
  found = reader.from_tree(values.ControlsResult, {
      'set': 'test', 'n': 8, 'step': 3, 'num_blocks': 2, 'controls': {}, 'sweeps': {},
      'pairing': {'num_pairs': 1, 'num_equal_answers': 2, 'num_without_partner': 3},
      'probes': {
          'state': 'it', 'num_questions': {'train': 5, 'valid': 6, 'test': 7},
          'right': {'selection': selection, 'pooled': {}, 'by_block': [
              {'block': 1, 'auroc': 0.875, 'auprc': 0.75}, {'block': 2, 'none': 'one [class]'}]},
          'pca': {'explained': [0.5, 0.125], 'fitted_on': 3},
          'steps': {'acc': [[0.5, None], [0.25, 1.0]], 'majority': [0.1, None]}}})
  page_lib.show(rich_console.Console(file=out, width=100), control_sections.make_summary(found))
  assert '50.0, 12.5' in out.getvalue()
  cells = [line.split() for line in out.getvalue().splitlines()]
  for row in ('block 1 87.5 75.0 – –', 'block 2 one [class] – – –', 'chosen 50.0 –',
              'block 1 50.0 –', 'block 2 25.0 100.0', 'frequent 10.0 –', 'upper bound'):
    assert row.split() in cells, row
