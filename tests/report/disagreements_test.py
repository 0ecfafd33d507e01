"""The questions shown are those on which runs differ, each with what each run answered."""

import dataclasses
import itertools
import json

import pytest

from rim_jax.report import disagreements, sweep_page, sweep_results
from rim_jax.report import page as page_lib
from tests import support, support_report, support_sweep

NASTY = support_report.NASTY


def choose_slowly(right, count):
  """By its definition: each time the best of what is left, given how often its way was taken."""
  ways = list(zip(*right))
  left, taken = set(range(len(ways))), []
  while left and len(taken) < count:
    def worth(i):
      split = min(sum(ways[i]), len(ways[i]) - sum(ways[i]))
      return (split > 0, -[ways[t] for t in taken].count(ways[i]), split, ways.count(ways[i]), -i)
    taken.append(max(left, key=worth))
    left.discard(taken[-1])
  return taken


def show(runs) -> str:
  """The HTML of the examples."""
  return page_lib.render_page('', disagreements.make_examples(runs))


@pytest.mark.parametrize('num_runs, count', [(1, 3), (2, 6), (3, 6), (4, 5), (4, 100), (5, 0)])
def test_questions_that_divide_the_runs_most_evenly_come_first(num_runs, count):
  right = [[bool((7 * i * i + run * (i // 3)) % (run + 2)) for i in range(40)]
           for run in range(num_runs)]
  assert disagreements.choose_questions(right, count) == choose_slowly(right, count)


def test_every_way_to_divide_runs_is_shown_before_one_is_shown_twice():
  ways = list(itertools.product((False, True), repeat=3))
  right = list(zip(*(ways + ways)))
  chosen = disagreements.choose_questions(right, 12)
  assert {ways[i % 8] for i in chosen[:6]} == set(ways) - {(True,) * 3, (False,) * 3}
  assert {i % 8 for i in chosen[6:]} == {i % 8 for i in chosen[:6]}
  assert disagreements.choose_questions([], 6) == []


def write_answers(state, rows, num_blocks):
  """(question, gold, answers, whether each is right) as predictions of a run."""
  (state.folder / 'predictions/test.jsonl').write_text(''.join(json.dumps(
      {'origin': 'o', 'question': q, 'answer': a, 'prediction': texts[-1], 'correct': ok[-1],
       'block_predictions': texts, 'block_correct': ok}) + '\n' for q, a, texts, ok in rows))
  path = state.folder / 'results.json'
  results = json.loads(path.read_text())
  results['test'] |= {'num_blocks': num_blocks, 'n': len(rows),
                      'final_acc': sum(ok[-1] for *_, ok in rows) / len(rows)}
  path.write_text(json.dumps(results))


def test_runs_stand_below_one_another_with_all_that_they_read(tmp_path):
  states = support_sweep.make_states(tmp_path, [({'a': i}, 0.5, 0.5) for i in (1, 2)])
  both = ('both?', '9', ['9'], [True])
  write_answers(states[0], [both, (f'q{NASTY}', f'g{NASTY}', ['3', f'4{NASTY}'], [True, False])], 2)
  write_answers(states[1], [both, (f'q{NASTY}', f'g{NASTY}', ['5'], [True])], 0)
  told = sweep_results.conclude(states, tmp_path)
  page = support_report.Page(sweep_page.write_summary(tmp_path, 'any', told, states))
  tables = [t for t in page.tables if t[0] and t[0][0][0].startswith('gold')]
  clean = page_lib.clean
  assert [[[text for text, _ in row] for row in t] for t in tables] == [
      [[f'gold: {clean("g" + NASTY)}', clean(f'q{NASTY}')],
       ['a=1', f'1: ✓ 3 2: ✗ {clean("4" + NASTY, 24)} '], ['a=2', '✓ 5 ']],
      [['gold: 9', 'both?'], ['a=1', '1: ✓ 9 '], ['a=2', '✓ 9 ']]]
  assert '1 of 2 questions are right with one of these runs and wrong with another' in page.text
  assert not [tag for tag, _ in page.elements if tag == 'img']
  marks = [attrs['class'] for tag, attrs in page.elements if tag == 'span' and 'class' in attrs]
  assert marks[:3] == ['right', 'wrong', 'right']


def test_runs_on_other_questions_are_left_out_and_told(tmp_path):
  """Most of the runs say which questions are shown; one without answers is told with its fix."""
  states = support_sweep.make_states(tmp_path, [({'a': i}, 0.5, 0.3) for i in range(5)])
  write_answers(states[0], [('other?', '1', ['1'], [True])], 0)
  states[1].predictions.unlink()
  body = show({s.point.name: s for s in states})
  assert 'a=0: was asked other questions' in body and 'other?' not in body
  assert 'a=1: ' in body and 'no predictions' in body and '--mode=eval' in body
  assert body.count('<table>') == 6 and body.count('<b>a=<wbr>4') == 6
  assert '<b>a=<wbr>0' not in body
  assert 'data value="0">0</data> of <data value="100">100</data> questions are right' in body


def test_one_run_alone_shows_what_is_right_and_what_is_wrong(tmp_path):
  state, = support_sweep.make_states(tmp_path, [({'a': 1}, 0.5, 0.3)])
  body = show({'a=1': state})
  assert body.count('✓ </span>') == body.count('✗ </span>') == 3
  assert disagreements.make_examples({}) == []


def test_the_paper_s_choice_leaves_no_one_answer(tmp_path):
  state, = support_sweep.make_states(tmp_path, [({'a': 1}, 0.5, 0.3)])
  state.point = dataclasses.replace(state.point, config=support.set_keys(
      state.point.config, {'eval.checkpoint': 'splits'}))
  body = show({'a=1': state})
  assert 'several of its checkpoints were scored' in body and '<table>' not in body
