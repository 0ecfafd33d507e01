"""An answer is cut, read and judged as docs/reference/judging.md says, at any length."""

import dataclasses
import time

import pytest

from rim_jax.results import judge, values
from tests import support

BOXED = support.make_config('rim_stage2', layout__answer_prefix='{', layout__answer_suffix='}')


@pytest.mark.parametrize('text, answer', [
    (r'\frac{1}{2}} and', r'\frac{1}{2}'), ('{1}}', '{1}'), ('72}', '72'), (' 72 }', ' 72 '),
    ('72', ''), ('', ''), ('}', ''), (' }', ''), (r'\frac{1}{2}', ''), ('{{7}', ''), ('7}}}', '7'),
    (r'\{1,2)}', r'\{1,2)'), (r'\{1,2\}} and', r'\{1,2\}'), (r'[0,1\}}', r'[0,1\}'),
    (r'7\\} and }', r'7\\'), (r'{\}7}}', r'{\}7}'), (r'7\}', ''), ('7\\', ''), ('7\\\n}', '7\\\n')])
def test_an_answer_ends_where_its_brace_closes(text, answer):
  assert judge.parse_answer(text, BOXED) == answer


@pytest.mark.parametrize('suffix, text, answer', [
    ('}.', r'\frac{1}{2}}.', r'\frac{1}{2}'), ('*', '4{2*', '4{2'), ('*', '42', ''),
    ('', '42', '42'), ('', ' ', ''), ('*', r'4\*', '4\\')])
def test_other_suffixes_end_an_answer_too(suffix, text, answer):
  config = support.make_config('rim_stage2', layout__answer_suffix=suffix)
  assert judge.parse_answer(text, config) == answer


def make(gold, *texts, config=BOXED):
  return judge.make_prediction(support.Record('q', (), gold, 'r:1'), texts, config)


def test_what_is_unparsed_is_counted_and_never_right():
  predictions = [make('72', '7}', '72'), make('', '}', '}'), make('72', '1}', '72}')]
  assert [p.correct for p in predictions] == [False, False, True]
  assert [p.prediction for p in predictions] == ['', '', '72']
  found = judge.summarize(predictions)
  assert found['num_unparsed'] == 2 and found['final_acc'] == pytest.approx(1 / 3)
  assert found['rule_version'] == judge.RULE_VERSION
  # The answers of blocks that gave none have no vote.
  assert make('7', '7}', 'x', 'y', config=BOXED).majority_correct


@pytest.mark.parametrize('text', [
    '1,' * 200_000, '9' * 1_000_000, '1' + ',000' * 200_000, ' ' * 400_000 + '-', '-' * 400_000,
    '$' * 400_000, '1/' * 200_000, '1 ' * 200_000, '1e' + '9' * 400_000, '{' * 400_000,
    '}{' * 200_000, '\\' * 400_000, '\\{' * 200_000, '0.' + '0' * 400_000 + '1',
    '1e99999999', '-1e-99999999', '1/1e99999999'])
def test_hostile_text_is_judged_at_once(text):
  began = time.process_time()
  for other in (text + '1', '0.5', '1e-7', text):
    same = judge.answers_match(text, other), judge.answers_match(other, text)
    assert all(same) if other == text else not any(same)
  judge.parse_answer(text, BOXED)
  judge.choose_majority([text, text + '1', '3'])
  assert time.process_time() - began < 3  # 0.1 to 0.6 s; what is quadratic takes minutes


def test_every_digit_of_a_whole_number_counts():
  many = '9' * 5000
  assert judge.answers_match(many, many) and judge.answers_match(many + '.0', many)
  assert not judge.answers_match(many[:-1] + '8', many)
  assert not judge.answers_match(many + '.5', many)


def test_predictions_are_judged_again_from_what_was_decoded():
  now = make('15', '1,5}', '15}')
  other = dataclasses.replace(now, block_correct=[True, True], majority_correct=False)
  assert judge.judge_again(other, BOXED) == now
  # Version 2 counted the braces that LaTeX escapes.
  gold = r'\{1,2)'
  now = make(gold, '7}', r'\{1,2)}')
  other = dataclasses.replace(now, prediction='', block_predictions=['7', ''], correct=False,
                              block_correct=[False, False], majority_correct=False)
  assert judge.judge_again(other, BOXED) == now and now.correct
  # Version 1 kept the last text alone, and cut each answer at the first suffix.
  old = values.Prediction(
      origin='r:1', question='q', answer=r'\frac{1}{2}', prediction=r'\frac{1', correct=False,
      block_predictions=['15', r'\frac{1'], block_correct=[False, False], text=r'\frac{1}{2}}',
      majority_correct=False)
  again = judge.judge_again(old, BOXED)
  assert again.correct and again.block_correct == [False, True]
  assert again.block_predictions == ['15', r'\frac{1}{2}'] and again.block_texts is None
  assert judge.judge_again(dataclasses.replace(old, text=None), BOXED) is None
