"""A sweep's page says what its files say, and warns where they do not carry an order."""

import dataclasses
import json

import pytest

from rim_jax import reader
from rim_jax.report import control_sections, paper, sweep_page, sweep_results, sweep_tables, tables
from rim_jax.report import page as page_lib
from rim_jax.results import settings, stats, timings
from rim_jax.results import values as values_lib
from tests import support, support_report, support_sweep


def write_page(states, folder):
  """(what sweep.json holds, the page)."""
  told = sweep_results.conclude(states, folder)
  page = support_report.Page(sweep_page.write_summary(folder, 'any', told, states))
  return json.loads((folder / 'sweep.json').read_text()), page


@pytest.fixture
def swept(tmp_path):
  """Two groups of two seeds, one point of which failed; the page and sweep.json's entries."""
  points = support_sweep.make_points()
  (tmp_path / 'broken').touch()
  support_sweep.drive(tmp_path, points[:2])
  (tmp_path / 'broken').unlink()
  support_sweep.drive(tmp_path, points)
  page = support_report.Page(tmp_path / 'report.html')
  return tmp_path, page, json.loads((tmp_path / 'sweep.json').read_text())['entries']


def test_the_page_s_numbers_are_those_of_sweep_json(swept):
  _, page, entries = swept
  headline, *_ = page.tables
  for row, entry in zip(headline[1:], entries, strict=True):
    name, valid, final, any_block, majority, seeds, *_, chances = row
    assert name[0] == entry['name']
    for (_, values), key in ((valid, 'valid_acc'), (final, 'final_acc'),
                             (any_block, 'any_block_acc'), (majority, 'majority_acc')):
      told = entry[key]
      assert values == tuple(x for x in (told['mean'], told['stderr']) if x is not None)
    assert seeds[0] == f"{entry['num_done']} of 2"
    tests = entry.get('against_best', {}).get('tests', [])
    assert chances[1] == tuple(t['p_value'] for t in tests)
  assert [e['num_done'] for e in entries] == [1, 2]


def test_what_failed_is_told(swept):
  folder, _, _ = swept
  text = (folder / 'report.html').read_text()
  assert 'rate=0.5,seed=1: failed, exit code 1: error: it is broken' in text


def test_any_two_settings_stand_below_the_diagonal_with_what_sweep_json_says(tmp_path):
  states = support_sweep.make_states(tmp_path, [
      ({'a': a, 'seed': s}, 0.5, accs[s]) for s in (0, 1)
      for a, accs in enumerate(((0.3, 0.29), (0.32, 0.45), (0.5, 0.5)), 1)])
  states[-1].predictions.unlink()
  told, page = write_page(states, tmp_path)
  table = page.tables[1]
  assert [cell for cell, _ in table[0]] == ['', '1', '2']
  assert [row[0][0] for row in table[1:]] == ['1: a=1', '2: a=2', '3: a=3']
  assert [len(row) for row in table] == [3, 1, 2, 3]
  by_pair = {(p['a'], p['b']): p for p in told['pairs']}
  for row, column in ((2, 1), (3, 1), (3, 2)):
    pair, (text, values) = by_pair[f'a={row}', f'a={column}'], table[row][column]
    assert values == (pair['difference']['mean'], *(t['p_value_holm'] for t in pair['tests']))
    assert text.startswith(f"{100 * values[0]:+.1f}")
  assert (len(table[2][1][1]), len(table[3][1][1])) == (3, 2)  # a=3 has one seed left
  assert 'a=3 and a=1, seed 1: not compared, ' in page.text and 'no predictions' in page.text
  html = (tmp_path / 'report.html').read_text()
  bold = {p['a']: f'<b><data value="{p["difference"]["mean"]!r}">' in html
          for p in told['pairs'][:2]}
  assert bold == {'a=2': False, 'a=3': True}


def test_seeds_that_say_opposite_things_are_not_bold(tmp_path):
  states = support_sweep.make_states(tmp_path, [
      ({'a': a, 'seed': s}, 0.5, accs[s]) for s in (0, 1)
      for a, accs in enumerate(((0.3, 0.7), (0.5, 0.4)), 1)])
  told, _ = write_page(states, tmp_path)
  assert all(test['p_value_holm'] < 0.05 for test in told['pairs'][0]['tests'])
  assert '<b><data value=' not in (tmp_path / 'report.html').read_text()


def test_measures_of_some_runs_are_means_over_their_seeds(tmp_path):
  """Of a=1 on two seeds; a=2 was asked for nothing more."""
  states = support_sweep.make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, 0.5, 0.5), ({'a': 1, 'seed': 1}, 0.5, 0.5), ({'a': 2}, 0.5, 0.5)])
  assert sweep_tables.tabulate_more(sweep_results.conclude(states, tmp_path).entries).rows == ()
  for state, more in zip(states, (0.0, 0.25)):
    path = state.folder / 'results.json'
    results = json.loads(path.read_text())
    results['test'] |= {'integer_acc': 0.5 + more, 'negative_acc': 0.25 + more,
                        'non_integer_acc': 0.125 + more, 'changed_acc': 0.375 + more,
                        'pass_at': {'1': 0.5 + more}, 'budget_acc': {'0': 0.0, '8': more},
                        'steps_acc': {'2': 0.75 + more}, 'num_by_steps': {'2': 3}}
    path.write_text(json.dumps(results))
  told, page = write_page(states, tmp_path)
  table, = (t for t in page.tables if any(cell == 'pass@1' for cell, _ in t[0]))
  assert [cell for cell, _ in table[0]] == [
      '', 'integer answers', 'negative answers', 'non integer answers', 'changed questions',
      'pass@1', 'K = 0', 'K = 8', '2 steps']
  assert [values for _, values in table[1][1:]] == [
      (mean, 0.125 * (mean > 0)) for mean in (0.625, 0.375, 0.25, 0.5, 0.625, 0.0, 0.125, 0.875)]
  assert len(table) == 2
  one = told['entries'][0]
  assert one['budget_acc']['8'] == {'mean': 0.125, 'stderr': 0.125, 'count': 2}
  assert one['negative_acc']['values'] == [0.25, 0.5]
  rows = (tmp_path / 'sweep.csv').read_text().split('\n')
  assert ' | K = 8 | 2 steps |\n' in (tmp_path / 'sweep.md').read_text()
  assert ' | 87.5 ± 12.5% |\n' in (tmp_path / 'sweep.md').read_text()
  assert '1,budget_acc 8,2,0.125,0.125' in rows and '1,negative_acc,2,0.375,0.125' in rows


def add_results(state, **fields):
  path = state.folder / 'results.json'
  results = json.loads(path.read_text())
  results['test'] |= fields
  path.write_text(json.dumps(results))


@pytest.mark.slow
def test_accuracy_by_blocks_and_by_answers_drawn_is_a_mean_over_seeds(tmp_path, drawn_figures):
  """K stand by size; the K of training is told once where it is one, else for each setting."""
  states = support_sweep.make_states(tmp_path, [
      ({'a': a, 'seed': s}, 0.5, 0.5) for a in (1, 2, 3) for s in (0, 1)])

  def write(*changes):
    for state, change in zip(states, changes):
      state.point = dataclasses.replace(state.point, config=support.make_config(**change))
    return write_page(states, tmp_path)[1].text
  assert 'with more and fewer blocks' not in write() and 'One of k answers' not in write()
  for i, state in enumerate(states[:4]):
    add_results(state, budget_acc={'10': i / 8, '2': 0.5, '0': 0.0}, pass_at={'1': 0.25, '2': 0.5})
  add_results(states[1], beyond_positions=[8, 10])
  page = write(*[{'method': 'pause', 'layout__num_blocks': 4}] * 6)
  lines = (tmp_path / 'figures/accuracy-with-k-blocks-mean-over-seeds.csv').read_text().split()
  assert lines == ['line,x,y', 'a=1,0.0,0.0', 'a=1,2.0,50.0', 'a=1,10.0,6.25',
                   'a=2,0.0,0.0', 'a=2,2.0,50.0', 'a=2,10.0,31.25']
  lines = (tmp_path / 'figures/pass-k-mean-over-seeds.csv').read_text().split()
  assert lines[1:] == ['a=1,1.0,25.0', 'a=1,2.0,50.0', 'a=2,1.0,25.0', 'a=2,2.0,50.0']
  assert 'a=1: 4 in training; from 8 on beyond the trained positions' in page
  assert 'a=2: 4 in training' in page and 'blocks K, ' not in page and 'a=3: 4' not in page
  add_results(states[3], beyond_positions=[10, 8])
  page = write()
  assert 'blocks K, 4 in training; from 8 on beyond the trained positions' in page
  assert 'a=1: 4 in training' not in page
  page = write(*[{'method': 'rim_stage1'}] * 2)
  assert 'a=1: 1 a step in training; from 8 on' in page and 'a=2: 4 in training; from' in page


def test_the_paper_s_figures_stand_above_those_found_in_the_columns_of_their_methods(
    tmp_path, monkeypatch):
  """On its sets, of its methods, on its data: a mean over seeds."""
  monkeypatch.setattr(paper, 'NUM_QUESTIONS', 100)  # as these runs have
  methods = ('direct', 'cot', 'pause', 'rim_stage2')
  states = support_sweep.make_states(tmp_path, [
      ({'a': f'{method}<', 'seed': s}, 0.5, accs[s]) for method, accs in zip(
          methods, ((0.25, 0.5), (0.5, 0.5), (0.25, 0.25), (0.75, 0.25))) for s in (0, 1)])

  def write(*configs):
    for i, state in enumerate(states):
      changes = {'tokenizer__kind': 'bytes', 'data__source': 'gsm8k'} | configs[i // 2]
      state.point = dataclasses.replace(state.point, config=support.make_config(
          methods[i // 2], **changes))
    told, page = write_page(states, tmp_path)
    return told, page, [t for t in page.tables if t[0] and t[0][0][0] == '% right']
  told, page, (table,) = write({}, {}, {}, {})
  assert [text for text, _ in table[0]] == ['% right', 'direct', 'Coconut', 'RiM', 'CoT']
  assert [values for _, values in table[2]] == [(), (23.9,), (36.9,), (42.1,), (49.1,)]
  assert page.text.count('arXiv 2605.30343') == 1
  found = {e['name']: (e['final_acc']['mean'], e['final_acc']['stderr']) for e in told['entries']}
  assert [row[0][0] for row in table[7:]] == [
      f'a={m}<, GSM8Kfound here on test, seeds: 2' for m in ('direct', 'cot', 'rim_stage2')]
  for row, place, name in zip(table[7:], (1, 4, 3), ('a=direct<', 'a=cot<', 'a=rim_stage2<')):
    assert {i: values for i, (_, values) in enumerate(row[1:], 1) if values} == {place: found[name]}
  other = {'tokenizer__kind': 'chain', 'data__source': 'chain'}
  *_, (table,) = write(other, {}, {}, other)
  assert [row[0][0] for row in table[7:]] == ['a=cot<, GSM8Kfound here on test, seeds: 2']
  *_, tables = write(other, other, {}, other)
  assert tables == []


def test_only_the_whole_of_the_paper_s_sets_stands_beside_its_figures():
  config = support.make_config('direct', tokenizer__kind='bytes', data__source='gsm8k')
  summary_ = stats.Summary(0.5, None, 1)
  for name, count, there in (
      ('test', 1319, 1), ('test-splits', 1319, 1), ('gsm_hard', 1319, 1), ('test-n100', 100, 0),
      ('test-k2', 1319, 0), ('valid', 1319, 0), ('test', 200, 0)):  # 200: somebody's own records
    assert len(paper.make_targets([('a', config, name, count, summary_)])) == there, name


def test_a_page_of_more_settings_than_a_table_holds_says_so(tmp_path):
  states = support_sweep.make_states(tmp_path, [({'a': i}, 0.5, 0.5) for i in range(11)])
  states[3].predictions.unlink()
  _, page = write_page(states, tmp_path)
  assert '11 settings are too many for a table of any two; each is compared' in page.text
  assert 'a=3: not compared with the best, ' in page.text
  assert [cell for cell, _ in page.tables[1][0]] != ['', *map(str, range(1, 11))]


@pytest.mark.slow
def test_accuracies_after_blocks_are_means_over_seeds_with_their_errors(swept):
  """In the table and in the figure; the setting of one seed has no error."""
  folder, page, entries = swept
  rows = (folder / 'figures/accuracy-after-each-block-mean-over-seeds.csv').read_text().split('\n')
  want = {f"{e['name']},{float(k)},{100 * a['mean']},"
          + ('' if a['stderr'] is None else f"{100 * a['stderr']}")
          for e in entries for k, a in enumerate(e['block_acc'], 1)}
  assert want == set(rows) - {'line,x,y,stderr', ''} and len(want) == 4
  table, = (t for t in page.tables if [c for c, _ in t[0]] == ['', 'block 1', 'block 2'])
  assert [row[0][0] for row in table[1:]] == [e['name'] for e in entries]
  for row, entry in zip(table[1:], entries, strict=True):
    assert [values for _, values in row[1:]] == [
        tuple(x for x in (a['mean'], a['stderr']) if x is not None) for a in entry['block_acc']]
  assert [a['count'] for e in entries for a in e['block_acc']] == [1, 1, 2, 2]
  assert (folder / 'figures/accuracy-after-each-block-mean-over-seeds.png').exists()


def ask_controls(state, own, donor, selected, **changes):
  """What --mode=controls leaves beside a result of `support_sweep.make_states`."""
  probes = support_report.make_probes()
  probes['right']['selection']['acc'] = selected
  probes['right']['by_block'][0]['auroc'] = selected / 2
  support_report.write_controls(state.folder, **{'step': 5, 'probes': probes, 'controls': {
      'swapped': {'what': 'blocks come from another', 'expected': "the donor's answer", 'n': 9,
                  'final_acc': own, 'final_donor_acc': donor, 'block_acc': [0.0625, own],
                  'block_donor_acc': [0.03125, donor]}}, **changes})


@pytest.fixture
def asked(tmp_path):
  """(what sweep.json holds, the page, where) of three seeds, the last asked of another step."""
  states = support_sweep.make_states(tmp_path, [
      *(({'a': 1, 'seed': s}, 0.5, 0.5) for s in (0, 1, 2)), ({'a': 2, 'seed': 0}, 0.4, 0.25)])
  for state, accs, step in zip(states, ((0.25, 0.5, 0.75), (0.5, 0.75, 0.5), (0.0, 1.0, 1.0)),
                               (5, 5, 4)):
    ask_controls(state, *accs, step=step)
    path = state.folder / 'results.json'  # a probe chooses among blocks
    result = json.loads(path.read_text())['test']
    path.write_text(json.dumps({'test': result | {'block_acc': [0.25, *result['block_acc']]}}))
  return *write_page(states, tmp_path), tmp_path


def find_table(page, *head):
  found = [t for t in page.tables if [c for c, _ in t[0]][:len(head)] == list(head)]
  assert len(found) == 1
  return found[0]


def test_controls_over_seeds_stand_beside_what_they_should_give(asked):
  """And so does each run below; what is of another checkpoint is in neither, and is told."""
  told, page, folder = asked
  (swapped,) = told['entries'][0]['controls'].values()
  assert swapped['final_acc'] == {'mean': 0.375, 'stderr': 0.125, 'count': 2}
  assert swapped['final_donor_acc'] == {'mean': 0.625, 'stderr': 0.125, 'count': 2}
  head, row = find_table(page, '', 'if the memory does the work', 'a=1')
  assert len(head) == 3 and row[1][0] == swapped['expected'] == "the donor's answer"
  assert row[2][1] == (0.375, 0.125, 0.625, 0.125)
  assert row[2][0].count('2 of 3 seeds') == 2
  head, row = find_table(page, '', 'if the memory does the work', 'a=1,seed=0', 'a=1,seed=1')
  assert len(head) == 4 and row[2][1] == (0.0625, 0.25, 0.03125, 0.5, 9)
  why = told['entries'][0]['not_carried']
  assert list(why) == ['a=1,seed=2'] and 'step 4 on test, the result of step 5' in why['a=1,seed=2']
  assert f"a=1,seed=2: not shown, {why['a=1,seed=2']}" in page.text
  assert 'controls' not in told['entries'][1] and told['entries'][1]['not_carried'] == {}
  rows = (folder / 'sweep.csv').read_text().split('\n')
  assert '1,controls swapped final_donor_acc,2,0.625,0.125' in rows


def test_what_a_probe_selects_stands_in_the_headline(asked):
  told, page, folder = asked
  first, second = told['entries']
  assert first['selected_acc'] == {
      'mean': 0.625, 'stderr': 0.125, 'count': 2, 'values': [0.75, 0.5]}
  head, one, two = page.tables[0]
  at = next(i for i, (text, _) in enumerate(head) if text.startswith('selected by a probe'))
  assert 'probes fitted and tuned on other questions' in head[at][0]
  assert [head[at + i][0] for i in (-1, 1)] == ['majority of blocks', 'seeds done']
  assert one[at] == ('62.5\xa0±\xa012.5%2 of 3 seeds', (0.625, 0.125)) and two[at][0] == '–'
  assert 'selected_acc' not in second
  assert '1,selected_acc,2,0.625,0.125' in (folder / 'sweep.csv').read_text().split('\n')


@pytest.mark.slow
def test_nothing_asked_leaves_the_headline_as_it_is(swept):
  _, page, _ = swept
  assert len(page.tables[0][0]) == 9 and 'selected by a probe' not in page.text
  assert 'What block states hold' not in page.text


def test_probes_over_seeds_are_those_of_sweep_json(asked):
  told, page, folder = asked
  probes = told['entries'][0]['probes']
  assert probes['auroc'][0] == {'mean': 0.3125, 'stderr': 0.0625, 'count': 2}
  _, row = find_table(page, '', 'AUROC, block 1', 'AUROC, block 2', 'AUROC, block 3')
  for (_, values), key in zip(row[1:], (*probes['auroc'], *(probes[k] for k in (
      'pooled_auroc', 'recoverable_acc', 'recoverable_final_acc'))), strict=True):
    assert values == ((key['mean'], key['stderr']) if key else ())
  table = find_table(page, '', 'r1', 'r2')
  steps = [*probes['steps']['acc'], probes['steps']['majority']]
  assert [[values for _, values in row[1:]] for row in table[1:]] == [
      [(x['mean'], x['stderr']) if x else () for x in row] for row in steps]
  name = 'a-1-intermediate-results-that-a-probe-reads-off-a-block-mean-over-seeds'
  rows = (folder / f'figures/{name}.csv').read_text().split('\n')
  assert 'block 1,r1,0.5' in rows and 'frequent,r1,0.0625' in rows and len(rows) == 6


def test_names_and_reasons_are_inert_over_seeds(tmp_path, drawn_figures):
  bad = '<img src=x>'
  table = control_sections.tabulate_over_seeds([support_report.read_setting(
      name=bad, controls={bad: {'what': bad, 'expected': bad, 'none': [bad], 'differs': [bad]}})])
  probes = {'count': 1, 'auroc': [None], 'pooled_auroc': None, 'recoverable_acc': None,
            'recoverable_final_acc': None, 'steps': {'acc': [[None]], 'majority': [None]}}
  text = page_lib.render_page('', [table, *control_sections.make_probes_over_seeds(
      [support_report.read_setting(name=bad, probes=probes)])])
  assert '<img' not in text and text.count('&lt;img') >= 8


# ---- Times ----


def add_times(folder, points, devices, ratios=(None,) * 4):
  """ttft_ms 2, 4, 6, ... of each point in turn, measured on a device.

  Where there is a ratio to direct answering's, also 10 times that at a batch of 8.
  """
  for nth, (point, device, ratio) in enumerate(zip(points, devices, ratios)):
    path = folder / 'points' / point.name / 'results.json'
    results = json.loads(path.read_text())
    results['test'] |= {'ttft_ms': 2.0 * nth + 2,
                        'ttft_conditions': f'{device}, trunk of {nth // 2}'}
    facts = {'device': device, 'batch': 1 + 7 * (device == 'b8'),
             'prompt_tokens': 9 + (device == 'longer'), 'trunk_tokens': 32 + 16 * (nth // 2)}
    results['test']['latency'] = [support_report.make_latency(2.0 * nth + 2, ratio, **facts)]
    if ratio:
      results['test']['latency'].append(support_report.make_latency(
          20.0 * nth + 20, 10 * ratio, **facts | {'batch': 8}))
    path.write_text(json.dumps(results))


@pytest.fixture
def time_methods(tmp_path):
  """(rows of the table of times by name, the headline's cells, the page's text, sweep.json)."""
  def run(*devices, **settings):
    points = support_sweep.load([({'method': m, 'seed': s}, {'method': m, 'seed': s})
                                 for m in ('direct', 'pause') for s in (0, 1)])
    support_sweep.drive(tmp_path, points)
    add_times(tmp_path, points, devices, **settings)
    support_sweep.drive(tmp_path, points)  # nothing is left to run: it concludes anew
    page = support_report.Page(tmp_path / 'report.html')
    table, = (t for t in page.tables if t[0][-1][0] == 'measured on')
    headline = {row[0][0]: row[7] for row in page.tables[0][1:]}
    told = {e['name']: e for e in json.loads((tmp_path / 'sweep.json').read_text())['entries']}
    rows = {}
    for row in table[1:]:
      rows.setdefault(row[0][0], []).append(row[1:])
    return rows, headline, page.text, told
  return run


FIGURE = 'figures/accuracy-against-time-from-the-answer-s-first-token-to-its-end.csv'


def test_times_and_ratios_of_every_part_are_those_of_sweep_json(time_methods, tmp_path):
  rows, headline, text, told = time_methods(*['a <chip>'] * 4, ratios=(1.0, 1.0, 1.25, 1.75))
  for name, entry in told.items():
    assert [row[0] for row in rows[name]] == [('1', (1,)), ('8', (8,))]
    for row, found in zip(rows[name], entry['latency'], strict=True):
      for (cell, values), part in zip(row[1:], support_report.PARTS):
        assert values == tuple(found[f'{part}_{what}'][key] for what in ('ms', 'ratio')
                               for key in ('mean', 'stderr'))
        assert cell.endswith(' x')
      assert row[5][0] == timings.describe(reader.from_tree(
          values_lib.LatencyFacts, found)) and row[5][0].startswith('a <chip>, 1 device(s)')
  pause = told['method=pause']
  assert pause['latency'][0]['full_ms'] == {'mean': 8.0, 'stderr': 1.0, 'count': 2}
  assert pause['latency'][1]['decode_ratio']['mean'] == 15.0 + 1.5
  assert headline['method=pause'] == (
      '7.00\xa0±\xa01.001.50 x direct', (7.0, 1.0, 1.5))
  assert 'a <chip>, 1 device(s), float32, batch 1, prompt of 9 tokens' in text  # the figure's
  assert timings.TIMES_MEAN in text and 'not all measured alike' not in text
  figure = (tmp_path / FIGURE).read_text()
  assert [line.rpartition(',')[0] for line in figure.split('\n')[1:-1]] == [
      'method=direct,3.0', 'method=direct,4.0', 'method=pause,7.0', 'method=pause,8.0']
  markdown = (tmp_path / 'sweep.md').read_text()
  assert '| 7.00 ± 1.00 (1.50 x direct) |' in markdown
  assert '\n'.join(tables.to_markdown(sweep_tables.tabulate_times(reader.from_tree(
      list[settings.SettingResult], list(told.values()))))) in markdown
  rows = (tmp_path / 'sweep.csv').read_text()
  assert 'pause,ttft_ms,2,7.0,1.0\n' in rows and 'pause,full_ms batch 8,2,71.0,10.0\n' in rows
  assert 'pause,first_token_ratio batch 1,2,1.5,0.25\n' in rows


@pytest.mark.slow
@pytest.mark.parametrize('other', ['b', 'b8', 'longer'])
def test_times_of_unlike_machines_are_not_averaged(time_methods, tmp_path, other):
  rows, headline, text, told = time_methods('a', 'a', 'a', other)
  assert rows['method=direct'][0][1][1][0] == 3.0
  assert [row[1][1] for row in rows['method=pause']] == [(6.0,), (8.0,)]
  assert headline['method=pause'] == (timings.UNLIKE, ()) and 'not all measured alike' in text
  assert 'pause' not in (tmp_path / FIGURE).read_text()
  assert 'ttft_ms' in told['method=direct'] and not {'ttft_ms', 'ttft_ratio'} & set(
      told['method=pause'])
  assert len(told['method=pause']['measured_on']) == 2
  row, = (line for line in (tmp_path / 'sweep.md').read_text().split('\n')
          if line.startswith('| method=pause') and ' of 2 |' in line)
  assert f'| {timings.UNLIKE} |' in row
  assert 'pause,ttft_ms' not in (tmp_path / 'sweep.csv').read_text()
  assert 'pause,full_ms' not in (tmp_path / 'sweep.csv').read_text()
