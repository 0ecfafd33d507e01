"""What is shown is what the files say; text from data is inert; nothing missing is a crash."""

import dataclasses
import io
import json
import re

import pytest
from rich import console as rich_console
from scipy import stats as scipy_stats

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax.errors import UserError
from rim_jax.report import figures as figures_lib
from rim_jax.report import run_page
from rim_jax.results import judge
from rim_jax.results import values as values_lib
from tests.support_report import (
  NASTY,
  RULE,
  Page,
  make_metrics,
  make_prediction,
  make_result,
  write_page,
  write_run,
)

GSM_HARD = {f'{kind}_acc': 0.1 + 0.01 * i for i, kind in enumerate(
    ('integer', 'negative', 'non_integer', 'changed'))} | {
        'pass_at': {'1': 0.31, '2': 0.42}, 'num_samples': 2, 'temperature': 0.7,
        'budget_acc': {'0': 0.11, '1': 0.22, '2': 0.33}, 'beyond_positions': [1, 2],
        'num_thoughts': 6, 'num_integer': 870, 'num_negative': 146, 'num_non_integer': 303,
        'num_changed': 990, 'steps_acc': {'2': 0.51, '10': 0.62},
        'num_by_steps': {'2': 386, '10': 933}, 'chosen_on': 'test <itself>'}


def write_curriculum(folder):
  stage1 = make_result('rim_stage1', 4, step_acc_gold_count=0.81239,
                       step_acc_by_block=[0.91237, 0.7, 0.6])
  return {'stage1': write_run(folder / 'stage1', 'rim_stage1', 4, test=stage1),
          'stage2': write_run(folder / 'stage2', 'rim_stage2', 4,
                              test=make_result('rim_stage2', 4, final_acc=0.98765),
                              **{'test-k0': make_result('rim_stage2', 0, final_acc=0.111),
                                 'gsm_hard': make_result('rim_stage2', 4, **GSM_HARD)})}


def show(folder, num_shown=4, name='test', encoding='utf-8', **settings):
  file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  console = rich_console.Console(file=file, **{'width': 80, 'color_system': None, **settings})
  run_page.show_results(console, folder, num_shown, name)
  file.flush()
  return file.buffer.getvalue().decode(encoding)


def capture_figures(monkeypatch):
  figures = []
  monkeypatch.setattr(run_page, 'draw', lambda *args, **kwargs: figures.append(args))
  return figures


def test_a_sentence_stands_in_the_wide_column(tmp_path):
  sentence = 'test itself: 264 of its 1319 questions choose, the others score (arXiv 2605.30343)'
  write_run(tmp_path, 'rim_stage2', 2, test=make_result('rim_stage2', 2, chosen_on=sentence))
  lines = show(tmp_path).splitlines()
  assert any('chosen on' in line and '(test itself: 264 of' in line for line in lines)
  assert any('final accuracy' in line and '%' in line for line in lines)  # labels are not squeezed


def test_every_number_of_the_page_is_that_of_results_json(tmp_path):
  results = write_curriculum(tmp_path)
  page = write_page(tmp_path, 'rim')
  sets = {f'{stage}: {name}': result for stage, by_name in results.items()
          for name, result in by_name.items()}
  headline, *rest = page.tables
  assert [text for text, _ in headline[0]] == ['', *sets]
  forms = {m.name: m.form for m in values_lib.list_measures(values_lib.EvalResult)}
  rows = {next(m.name for m in values_lib.list_measures(values_lib.EvalResult)
               if row[0][0].startswith(m.label)): row[1:] for row in headline[1:]}
  # What is chosen is controls.json's; passes are told of a network that loops.
  assert set(rows) == set(forms) - {'selected_acc', 'num_passes'}
  for key, cells in rows.items():
    for (text, values), result in zip(cells, sets.values(), strict=True):
      if key not in result:
        assert (text, values) == ('–', ())
      elif isinstance(result[key], str):
        assert text == result[key]
      elif isinstance(result[key], dict):
        assert values == tuple(result[key].values())
        assert text == ''.join(
            f'{k}: {run_page._show(v, forms[key]).text}' for k, v in result[key].items())
      elif isinstance(result[key], list):
        assert values == tuple(result[key])
      else:
        errors = (result['final_acc_stderr'],) if key == 'final_acc' else ()
        assert values == (result[key], *errors)
  assert rows['final_acc'][0][0] == '43.2% ± 1.4%'
  assert rows['n'][0][0] == '1,319' and rows['ttft_ms'][0][0] == '12.38 ms'
  assert rows['ttft_ratio'][0][0] == '1.24'
  assert 'upper bound: picks the right block by looking at the answer' in page.text
  # The tables by block, of both stages.
  tables = [t for t in rest if t[1][0][0].startswith('after ')]
  assert len(tables) == 2
  first, second = tables
  assert [row[1][1] for row in first[1:]] == [(a,) for a in sets['stage1: test']['block_acc']]
  assert [row[2][1] for row in first[1:]] == [(0.91237,), (0.7,), (0.6,), ()]
  assert 'given the gold number of steps' in first[0][2][0]
  assert second[1][0][0] == 'after the question only'
  assert [row[1][1] for row in second[1:]] == [
      (), *((a,) for a in sets['stage2: test']['block_acc'])]
  assert [row[2][1] for row in second[1:]] == [
      tuple(sets['stage2: test-k0']['block_acc']), (), (), (), ()]
  assert first[1][1][0] == '3.0%'


@pytest.mark.parametrize('right, bound', [(0, 'at most'), (1, 'at least')])
def test_where_all_or_none_are_right_a_bound_stands_in_place_of_an_error_of_zero(
    tmp_path, right, bound):
  write_run(tmp_path, 'direct', 0, [make_prediction(i, 0, bool(right)) for i in range(32)],
            test=make_result('direct', 0, block_acc=[float(right)], final_acc_stderr=0.0))
  # Clopper and Pearson's, one-sided: scipy's of two sides at 90 %.
  low, high = scipy_stats.binomtest(32 * right, 32).proportion_ci(0.9)
  shown = f'{float(right):.1%} ({bound} {low if right else high:.1%})'
  line = next(line for line in show(tmp_path, width=120).splitlines() if 'final accuracy' in line)
  assert shown in line and '(of the last answer read; in brackets: 95%' in line
  assert '(of the last answer' in show(tmp_path, width=80)  # its column is wide enough to read
  assert any(shown in cell[0] for row in write_page(tmp_path, 'direct').tables[0] for cell in row)


def test_every_number_on_the_terminal_is_that_of_results_json(tmp_path):
  result = write_run(tmp_path, 'rim_stage1', 3, test=make_result(
      'rim_stage1', 3, step_acc_gold_count=0.81239))['test']
  lines = show(tmp_path, width=100).splitlines()
  shown = {key: next(line for line in lines if line.strip().startswith(label))
           for key, label in (('n', 'questions'), ('final_acc', 'final accuracy'),
                              ('any_block_acc', 'any block'), ('majority_acc', 'majority'),
                              ('step_acc_gold_count', 'step accuracy'),
                              ('num_unfinished', 'unfinished'), ('ttft_ms', 'time to first'),
                              ('ttft_ratio', 'x direct answering'))}
  assert '43.2% +- 1.4%' in shown['final_acc'] and ' 1,319 ' in shown['n']
  assert ' 45.7% ' in shown['majority_acc'] and ' 17 ' in shown['num_unfinished']
  assert ' 81.2% ' in shown['step_acc_gold_count'] and ' ms' in shown['ttft_ms']
  assert ' 1.24 ' in shown['ttft_ratio'] and '(that time, timed side' in shown['ttft_ratio']
  assert ' 76.5% ' in shown['any_block_acc'] and '(upper bound: picks' in shown['any_block_acc']
  for k, acc in enumerate(result['block_acc'], 1):
    assert any(re.match(rf' *after block {k} +{100 * acc:.1f}%', line) for line in lines)
  assert f'Rule: {RULE}.' in lines


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_text_from_data_is_inert_on_the_terminal(tmp_path, encoding):
  nasty = make_prediction(0, 2, True, question=NASTY, answer='[red]4', text=NASTY,
                          block_predictions=['[/]', '\x9b2J\n[b]'])
  write_run(tmp_path, 'rim_stage2', 2, predictions=[nasty])
  text = show(tmp_path, encoding=encoding)
  assert '[bold]5[/bold]' in text and '[red]4' in text and '[b]mine[/b]' in text
  assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', text)
  console = rich_console.Console(file=io.StringIO(), color_system=None)
  run_page.show_answers(console, NASTY, (1,), [NASTY], config_lib.Config())
  assert console.file.getvalue().count('[bold]5[/bold]') == 3
  assert '\x1b' not in console.file.getvalue()


def test_text_from_data_is_inert_on_the_page(tmp_path, drawn_figures):
  nasty = make_prediction(0, 0, True, question=NASTY, answer=NASTY, text=NASTY,
                          block_predictions=[NASTY])
  write_run(tmp_path, 'cot', 0, predictions=[nasty], test=make_result('cot', 0, answer_rule=NASTY))
  card = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps({**card, 'command': [NASTY], NASTY: NASTY}))
  page = write_page(tmp_path, 'cot')
  assert not {'img', 'script', 'of', 'bold'} & {tag for tag, _ in page.elements}
  assert page.text.count('<img src=x onerror=alert(1)>&amp;') >= 6
  assert 'a device <of> [b]mine[/b]' in page.text
  assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', page.text)


@pytest.mark.parametrize('method, num_blocks', [
    ('direct', 0), ('cot', 0), ('pause', 1), ('rim_stage2', 16)])
def test_every_method_fits_80_columns_and_shows_every_block(tmp_path, method, num_blocks):
  budgets = {str(k): k / 41 for k in range(2 * num_blocks + 1)}
  write_run(tmp_path, method, num_blocks, test=make_result(
      method, num_blocks, pass_at={'1': 0.5, '16': 0.75}, budget_acc=budgets))
  for width in (80, 40):
    text = show(tmp_path, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert [int(k) for k in re.findall(r'after block (\d+)', text)] == list(
        range(1, num_blocks + 1))
    assert len(re.findall(r'[✓✗] \d+', text)) == 4 * max(num_blocks, 1)
  shown = ' '.join(show(tmp_path).split())
  assert '(1: 50.0%, 16: 75.0%)' in shown
  assert f'{2 * num_blocks}: {200 * num_blocks / 41:.1f}%)' in shown
  assert ('after the question only' in show(tmp_path)) == (method == 'direct')
  assert ('any block' in show(tmp_path)) == (num_blocks > 1)
  assert ('2*21=42' in show(tmp_path)) == (method == 'cot')
  page = write_page(tmp_path, method)
  assert ('2*21=42' in page.text) == (method == 'cot')
  assert len([e for e in page.elements if e[0] == 'svg']) == (4 if num_blocks > 1 else 3)


def test_right_and_wrong_are_told_apart_without_colour_or_unicode(tmp_path):
  write_run(tmp_path, 'rim_stage2', 2)
  assert '1: x 100' in show(tmp_path, encoding='ascii')
  assert '2: ok 101' in show(tmp_path, encoding='ascii')
  assert '2: ✓ 101' in show(tmp_path)


@pytest.mark.parametrize('num_right, shown', [(5, [2, 2]), (1, [1, 3]), (0, [0, 4]), (20, [4, 0])])
def test_examples_are_right_and_wrong_as_far_as_there_are_both(tmp_path, num_right, shown):
  write_run(tmp_path, 'direct', 0,
            predictions=[make_prediction(i, 0, i >= 20 - num_right) for i in range(20)])
  text = show(tmp_path, num_shown=4)
  assert [len(re.findall(f'{mark} 100', text)) for mark in '✓✗'] == shown
  assert 'question-' not in show(tmp_path, num_shown=0)


def test_a_long_question_is_shortened(tmp_path):
  write_run(tmp_path, 'direct', 0,
            predictions=[make_prediction(0, 0, True, question='long ' * 400)])
  text = show(tmp_path)
  assert '…' in text and text.count('long') < 30


def test_the_page_needs_no_other_file(tmp_path, drawn_figures):
  write_curriculum(tmp_path)
  page = write_page(tmp_path, 'rim')
  links = [value for _, attrs in page.elements for key, value in attrs.items()
           if key in ('src', 'href', 'xlink:href', 'data', 'srcset', 'action')]
  assert links and all(link.startswith('#') for link in links)
  assert not {'script', 'link', 'iframe', 'base', 'object'} & {tag for tag, _ in page.elements}
  text = (tmp_path / 'report.html').read_text()
  urls = re.findall(r'\w+://[^\s<]*', text)  # a URL among the settings is text
  assert set(urls) == {config_lib.Config().data.url}
  assert not re.search(r'@import|url\((?!#)', text)
  ids = re.findall(r' id="([^"]*)"', text)
  assert ids and len(ids) == len(set(ids))
  assert figures_lib._INK not in text and 'currentColor' in text
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      'figures', 'report.html', 'stage1', 'stage2']


@pytest.mark.slow
def test_every_figure_is_kept_as_a_picture_and_as_its_data(tmp_path, drawn_figures):
  results = write_curriculum(tmp_path)
  page = write_page(tmp_path, 'rim')
  num_figures = sum(tag == 'figure' for tag, _ in page.elements)
  pictures, data = (sorted((tmp_path / 'figures').glob(f'*.{kind}')) for kind in ('png', 'csv'))
  assert [p.stem for p in pictures] == [p.stem for p in data] and len(data) == num_figures > 2
  assert all(p.read_bytes().startswith(b'\x89PNG') for p in pictures)
  rows = (tmp_path / 'figures/stage2-accuracy-after-each-block.csv').read_text().split('\n')
  want = [f'test,{float(k)},{100 * acc}'
          for k, acc in enumerate(results['stage2']['test']['block_acc'], 1)]
  assert rows[0] == 'line,x,y' and [r for r in rows if r.startswith('test,')] == want


def make_latency(batch, start, ratio=None):
  """An entry as `latency.measure` makes it, with every time, and every ratio, another."""
  def summarize(value):
    return {'median': value, 'q1': value - 0.25, 'q3': value + 0.5, 'runs': 20}
  parts = ('prefill', 'first_token', 'decode', 'full')
  ratios = {} if ratio is None else {f'{part}_ratio': summarize(ratio + 0.125 * i)
                                     for i, part in enumerate(parts)}
  return {'device': 'a <chip>', 'num_devices': 2, 'dtype': 'bfloat16', 'batch': batch,
          'prompt_tokens': 9, 'trunk_tokens': 32, 'num_blocks': 4, 'num_readouts': 1,
          'prefix_tokens': 5, 'generated_to_first': 17, 'generated_in_full': 19,
          **{f'{part}_ms': summarize(start + i) for i, part in enumerate(parts)}, **ratios}


def test_latency_is_that_of_results_json_beside_all_it_depends_on(tmp_path):
  stage1 = make_result('rim_stage1', 4, latency=[make_latency(1, 1.125)], final_acc=0.25)
  stage2 = make_result('rim_stage2', 4, final_acc=0.75,
                       latency=[make_latency(1, 2.5, 1.0625), make_latency(8, 5.125, 1.5)])
  stage1 = write_run(tmp_path / 'stage1', 'rim_stage1', 4, test=stage1)['test']
  stage2 = write_run(tmp_path / 'stage2', 'rim_stage2', 4, test=stage2)['test']
  page = write_page(tmp_path, 'rim')
  table = next(t for t in page.tables if "to the answer's first token" in t[0][1][0])
  wanted = {'stage1: test, batch 1': (stage1, 0), 'stage2: test, batch 1': (stage2, 0),
            'stage2: test, batch 8': (stage2, 1)}
  points = []
  for row, (label, (result, nth)) in zip(table[1:], wanted.items(), strict=True):
    entry = result['latency'][nth]
    assert row[0][0].startswith(label)
    for part, (text, values) in zip(('first_token', 'full', 'prefill', 'decode'), row[1:]):
      told = [entry[key] for key in (f'{part}_ms', f'{part}_ratio') if key in entry]
      assert values == tuple(t[key] for t in told for key in ('median', 'q1', 'q3'))
      assert len(told) == 1 + label.startswith('stage2')  # stage 1's is an older result
      assert text.count('x\xa0direct') == len(told) - 1
    for told in ('a <chip>, 2 device(s), bfloat16', '9 prompt tokens', 'trunk of 32',
                 '1 readout(s) of 4 blocks', '5 tokens forced', '17 generated', '19 to its end'):
      assert told in row[0][0], told
    points += [f"{label!r},{entry[f'{part}_ms']['median']},{100 * result['final_acc']}".replace(
        "'", '"') for part in ('first_token', 'full')]
  assert run_page.timings.X_DIRECT in page.text
  name = 'accuracy-against-time-from-the-answer-s-first-token-to-its-end'
  assert (tmp_path / f'figures/{name}.csv').read_text().split('\n') == ['line,x,y', *points, '']


def test_thoughts_stand_beside_their_latency(tmp_path):
  for name, count in (('coconut_stage', 6), ('rim_stage2', 0), ('pause', None)):  # None: an old run
    entry = make_latency(1, 1.0) | ({} if count is None else {'num_thoughts': count})
    write_run(tmp_path / name, name, 1, test=make_result(name, 1, latency=[entry]))
    text = write_page(tmp_path / name, name).text
    assert ('6 thoughts, found one after the other' in text) == (name == 'coconut_stage')


def test_without_latency_the_page_says_how_to_measure_it(tmp_path):
  write_run(tmp_path, 'direct', 0)
  assert 'not measured: --mode=eval' in write_page(tmp_path, 'direct').text


def test_a_budget_curve_is_that_of_results_json(tmp_path):
  write_run(tmp_path / 'stage1', 'rim_stage1', 4)
  write_run(tmp_path / 'stage2', 'rim_stage2', 4)
  ask = 'not asked yet: --mode=eval --config.eval.budget_blocks=-1'
  assert write_page(tmp_path, 'rim').text.count(ask) == 1  # of the last stage
  results = json.loads((tmp_path / 'stage2/results.json').read_text())
  results['test']['budget_acc'] = {'0': 0.125, '1': 0.25, '10': 0.75}
  (tmp_path / 'stage2/results.json').write_text(json.dumps(results))
  assert ask not in write_page(tmp_path, 'rim').text
  assert (tmp_path / 'figures/stage2-accuracy-with-k-blocks.csv').read_text() == (
      'line,x,y\ntest,0.0,12.5\ntest,1.0,25.0\ntest,10.0,75.0\n')


def test_blocks_beyond_the_trained_positions_are_marked(tmp_path, monkeypatch):
  budgets = {str(k): 0.5 for k in range(9)}
  result = make_result('rim_stage2', 4, budget_acc=budgets, beyond_positions=[6, 7, 8])
  write_run(tmp_path, 'rim_stage2', 4, test=result, **{
      'test-k12': make_result('rim_stage2', 12, beyond_positions=[12])})
  shown = ' '.join(show(tmp_path).split())
  assert 'K beyond the trained positions (6, 7, 8)' in shown
  assert 'K beyond the trained positions' in write_page(tmp_path, 'rim_stage2').text
  figures = capture_figures(monkeypatch)
  run_page.write_report(tmp_path, config_lib.Config(method='rim_stage2'))
  label, = (f[2] for f in figures if 'accuracy with K blocks' in f[0])
  assert label == 'blocks K, 8 in training; from 6 on beyond the trained positions'


def test_thoughts_are_counted_in_place_of_the_block_that_holds_them(tmp_path):
  write_run(tmp_path, 'coconut_stage', 1, test=make_result('coconut_stage', 1, num_thoughts=6))
  rows = {row[0][0]: row[1] for row in write_page(tmp_path, 'coconut_stage').tables[0][1:]}
  assert [cell for label, cell in rows.items() if label.startswith('thoughts')] == [('6', (6,))]
  assert not [label for label in rows if 'blocks K' in label]
  assert re.search(r'thoughts +6 ', show(tmp_path)) and 'blocks K' not in show(tmp_path)


def test_the_page_holds_the_reproduction_card(tmp_path):
  write_run(tmp_path, 'direct', 0)
  rows = {row[0][0]: row[1][0] for table in write_page(tmp_path, 'direct').tables[-2:]
          for row in table if row}
  assert rows['data.fingerprint'] == '4c732d53bf67afe4' and rows['commit'] == 'c0ffee+'
  assert rows['command'] == "python -m rim_jax.main --config='a b.py'"
  assert rows['optim.learning_rate'] == '0.001' and rows['method'] == 'direct'


@pytest.mark.parametrize('source', ['gsm8k', 'chain', *(
    pytest.param(case, marks=pytest.mark.slow) for case in ('gsm8k_perturbed', 'prosqa'))])
def test_what_the_paper_reports_stands_beside_the_own_accuracy(tmp_path, source):
  results = write_curriculum(tmp_path)['stage2']
  config = dataclasses.replace(config_lib.Config(method='rim'),
                               data=config_lib.DataConfig(source=source))
  page = Page(run_page.write_report(tmp_path, config))
  found = [t for t in page.tables if t[0] and t[0][0][0] == '% right']
  assert len(found) == page.text.count('arXiv 2605.30343') == (source.startswith('gsm8k'))
  if not found:
    return
  head, *rows = found[0]
  assert [text for text, _ in head[1:]] == ['direct', 'Coconut', 'RiM', 'CoT']
  told = {row[0][0]: [values for _, values in row[1:]] for row in rows}
  assert told['Llama-3.2-1B, GSM8K'] == [(23.9,), (36.9,), (42.1,), (49.1,)]
  assert told['GPT-2, GSM-Hard'] == [(3.5,), (7.1,), (7.8,), ()] and len(told) == 6
  values = [json.loads(dict(attrs)['value']) for tag, attrs in page.elements if tag == 'data']
  assert values.count(results['test']['final_acc']) > 1  # in the headline, and here
  assert 'This run (rim_stage2) on GSM8K: 98.8% of 1,319 questions' in page.text
  assert 'This run (rim_stage2) on GSM-Hard: 43.2% of 1,319 questions' in page.text


@pytest.mark.parametrize('content', [None, ''])
def test_a_run_without_data_says_so(tmp_path, content):
  for stage in ('stage1', 'stage2'):
    folder = tmp_path / stage
    write_run(folder, f'rim_{stage}', 4)
    for path in ('results.json', 'config.json', 'metrics.jsonl', 'predictions/test.jsonl'):
      (folder / path).unlink()
      if content is not None and path != 'config.json':  # an empty card is damage
        (folder / path).write_text(content)
  page = write_page(tmp_path, 'rim')
  assert page.text.count('no data') == 1 + 2 * 4
  assert run_page.load_predictions(tmp_path / 'stage2', 'test') == []
  assert 'no results on test to show' in show(tmp_path / 'stage2', width=500)


def test_curves_are_the_logged_ones_and_lambda_is_stage_1s(tmp_path, monkeypatch):
  metrics = make_metrics((1, 2, 3, 4), num_lines=1000)
  metrics[0]['train/nll_block_4'] = None  # was not finite
  del metrics[2]['train/nll_block_4']  # no record of four steps in that batch
  write_run(tmp_path / 'stage1', 'rim_stage1', 4, metrics=metrics)
  write_run(tmp_path / 'stage2', 'rim_stage2', 4)
  figures = capture_figures(monkeypatch)
  run_page.write_report(tmp_path, config_lib.Config(method='rim'))
  losses = {caption.split(';')[0]: rest for caption, *rest in figures if 'loss' in caption}
  _, _, lines, lambdas = losses['stage1: training loss after each block']
  assert list(lines) == list(lambdas) == [1, 2, 3, 4]
  for steps, _ in lines.values():
    assert 100 < len(steps) <= 250
  steps, values = lines[1]  # means of five neighbours
  assert steps[0] == 30 and values[0] == pytest.approx(sum(1 / i for i in range(1, 6)) / 5)
  assert lines[4][0][0] == (30 + 40 + 50 + 60) / 4
  assert lambdas[2] == lines[2] and lambdas[4][0][0] == 30
  _, _, lines, lambdas = losses['stage2: training loss after each block']
  assert not lambdas and lines[2] == [tuple(10 * i for i in range(1, 9)),
                                          tuple(1 / i for i in range(1, 9))]
  accuracies = [f for f in figures if 'accuracy on valid' in f[0]]
  assert accuracies[1][3][4][1] == (50.0,) * 8


def test_a_key_of_metrics_that_names_no_block_is_no_curve(tmp_path, monkeypatch):
  metrics = [line | {f'train/nll_block_{name}': 1.0 for name in ('x', '', '²', '-1', '9' * 5000)}
             for line in make_metrics((1,))]
  write_run(tmp_path, 'rim_stage1', 1, metrics=metrics)
  figures = capture_figures(monkeypatch)
  run_page.write_report(tmp_path, config_lib.Config(method='rim_stage1'))
  (_, _, _, lines, _), = (f for f in figures if 'training loss' in f[0])
  assert list(lines) == [1]


def test_a_run_of_an_earlier_version_has_no_lambda(tmp_path, monkeypatch):
  metrics = [{k: v for k, v in line.items() if 'weight' not in k} for line in make_metrics((1, 2))]
  write_run(tmp_path, 'rim_stage1', 2, metrics=metrics)
  figures = capture_figures(monkeypatch)
  run_page.write_report(tmp_path, config_lib.Config(method='rim_stage1'))
  (caption, _, _, _, lambdas), = (f for f in figures if 'training loss' in f[0])
  assert 'λ' not in caption and not lambdas


def test_the_set_that_the_run_is_judged_by_comes_first(tmp_path):
  """Also if another one, or the same once more, was evaluated since."""
  write_run(tmp_path, 'direct', 0, **{
      'test-k0': make_result('direct', 0, final_acc=0.25), 'valid': make_result('direct', 0),
      'test': make_result('direct', 0, final_acc=0.75)})
  page = run_page.write_report(tmp_path, config_lib.Config(method='direct')).read_text()
  heads = [page.index(f'direct: {name}<') for name in ('test', 'test-k0', 'valid')]
  assert heads == sorted(heads)


def test_predictions_are_those_of_the_named_set(tmp_path):
  results = write_run(tmp_path, 'direct', 0, test=make_result('direct', 0),
                      other=make_result('direct', 0))
  one = make_prediction(7, 0, True)
  (tmp_path / 'predictions' / 'other.jsonl').write_text(json.dumps(one) + '\n')
  results['other'] |= {'n': 1, 'final_acc': 1.0}
  results['chosen'] = make_result('direct', 0, checkpoint='splits')  # of many checkpoints: none
  (tmp_path / 'results.json').write_text(json.dumps(results))
  assert len(run_page.load_predictions(tmp_path, 'test')) == 1319
  assert reader.to_tree(run_page.load_predictions(tmp_path, 'other')) == [one]
  assert run_page.load_predictions(tmp_path, 'absent') == []
  assert run_page.load_predictions(tmp_path, 'chosen') == []
  assert 'Results on test' in show(tmp_path)
  assert 'Results on other' in show(tmp_path, num_shown=0, name='other')


@pytest.mark.parametrize('damage, told', [
    (lambda path, text: path.unlink(), ': no predictions (No such file or directory)'),
    (lambda path, text: path.write_text(text[:-9]), ":1319: not a prediction (not JSON (Expecting "
     "':' delimiter: line 1 column 212 (char 211)))"),
    (lambda path, text: path.write_text(text[:text.rindex('\n', 0, -1) + 1]),
     ': has 1318 predictions, and results.json is of 1319')])
def test_predictions_that_are_not_all_there_are_told_in_one_line(tmp_path, damage, told):
  write_run(tmp_path, 'direct', 0)
  path = tmp_path / 'predictions' / 'test.jsonl'
  damage(path, path.read_text())
  for act in (show, lambda folder: write_page(folder, 'direct')):
    with pytest.raises(UserError) as error:
      act(tmp_path)
    assert str(error.value) == f'{path}{told}; evaluate the run with --mode=eval'


def test_generated_answers_are_parsed_and_the_last_is_the_answer():
  def show_one(blocks, texts, **fields):
    console = rich_console.Console(file=io.StringIO(), color_system=None, width=80)
    run_page.show_answers(console, 'q?', blocks, texts, config_lib.Config(**fields))
    return console.file.getvalue().splitlines()
  assert show_one((1, 2), ['3} junk', '}']) == [
      'question: q?', '  after block 1: 3', '  after block 2: (nothing)', 'answer: (nothing)']
  assert show_one((0,), ['7}'], method='direct') == [
      'question: q?', '  after the question only: 7', 'answer: 7']
  assert show_one((0,), ['1+1=2\nThe final answer is \\boxed{2}'], method='cot') == [
      'question: q?', '  written: 1+1=2', '  written: The final answer is \\boxed{2}',
      '  after the written steps: 2', 'answer: 2']


@pytest.mark.parametrize('changes, shown', [
    ({}, True), ({'step': 7}, False), *(
        pytest.param(case, False, marks=pytest.mark.slow) for case in (
            {'set': 'test-k0'}, {'probes': {}}, {'rule_version': 1}))])
def test_what_a_probe_selects_stands_among_the_results_that_it_is_of(
    tmp_path, changes, shown):
  write_curriculum(tmp_path)
  (tmp_path / 'stage2/controls.json').write_text(json.dumps({
      'set': 'test', 'step': 1234, 'n': 9, 'num_blocks': 4, 'checkpoint': 'best', 'controls': {},
      'rule_version': judge.RULE_VERSION, 'sweeps': {},
      'pairing': {'num_pairs': 0, 'num_equal_answers': 0, 'num_without_partner': 0},
      'probes': {'state': '', 'num_questions': {'train': 1, 'valid': 1, 'test': 1}, 'pca': {
          'none': 'no', 'fitted_on': 9}, 'steps': {'none': 'no'}, 'right': {
              'by_block': [], 'pooled': {'none': 'no'}, 'selection': {
                  'acc': 0.8125, 'final_acc': 0.5, 'any_block_acc': 0.75, 'num_recoverable': 3,
                  'recoverable_acc': None, 'recoverable_final_acc': None, 'chosen_blocks': [1]}}},
      **changes}))
  page, out = write_page(tmp_path, 'rim'), show(tmp_path / 'stage2')
  head, *rows = page.tables[0]
  found = {row[0][0]: row[1:] for row in rows if row[0][0].startswith('selected by a probe')}
  assert ('selected by a probe' in out) == bool(found) == shown
  if shown:
    (name, cells), = found.items()
    assert 'probes fitted and tuned on other questions' in name
    at = [text for text, _ in head[1:]].index('stage2: test')
    assert cells[at] == ('81.2%', (0.8125,)) and [v for _, v in cells].count(()) == len(cells) - 1


def test_other_numbers_of_tokens_are_told_with_what_was_not_trained(tmp_path):
  write_run(tmp_path, 'rim_stage2', 2, test=make_result('rim_stage2', 2, tokens=[
      {'block_tokens': 1, 'acc': {'0': 0.25, '1': 0.5}},
      {'block_tokens': 2, 'acc': {'0': 0.25, '1': 0.75}, 'beyond_positions': [1]}]))
  page = write_page(tmp_path, 'rim_stage2')
  (rows,) = [t for t in page.tables if t and t[0] and t[0][0][0] == 'tokens M']
  assert [[text for text, _ in row] for row in rows[1:]] == [
      ['1', '0', '25.0', 'trained'], ['1', '1', '50.0', 'trained'],
      ['2', '0', '25.0', 'trained'], ['2', '1', '75.0', 'not trained']]
  lines = [line.split() for line in show(tmp_path).splitlines()]
  assert ['accuracy', 'with', 'K', 'blocks', 'of', 'M', 'tokens'] in lines
  assert ['2', '1', '75.0', 'not', 'trained'] in lines
