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


@pytest.mark.parametrize('gold, right, wrong', [
    # Two decimals and three digits: at most half a unit of its last digit away.
    ('1.2346', ('1.23', '1.235', '1.2346', '1.23470'), ('1.24', '1.22', '1.2', '1', '1.234')),
    ('-0.12345', ('-0.123', '-0.1235'), ('-0.12', '0.123', '-0.1241')),
    ('12.345', ('12.34', '12.35', '12.346'), ('12.36', '12.3', '12')),
    # 1 in 10,000 of a number that is not whole.
    ('1000.5', ('1000.6', '1000.4'), ('1000.7', '1000')), ('7', ('7.0', '7'), ('7.0001', '6.99'))])
def test_numbers_match_within_a_tolerance_or_as_rounded(gold, right, wrong):
  assert all(judge.answers_match(answer, gold) for answer in right)
  assert not any(judge.answers_match(answer, gold) for answer in wrong)


@pytest.mark.parametrize('answers, chosen', [
    (['1', '2', '2.0'], '2'), (['1', '2'], '2'), (['1', '1', '2', '2'], '2'),
    (['3', '1', '3', '2'], '3'), (['5', '7', '7', '5'], '5'), (['1', '', '', ''], '1')])
def test_a_majority_has_most_votes_and_of_equals_the_latest_block(answers, chosen):
  assert judge.choose_majority(answers) == chosen


def test_a_summary_by_hand():
  found = judge.summarize([
      make('5', '5}', '5}', '4}'), make('5', '5}', '4}', '3}'), make('5', '1}', '2}', '5}'),
      make('5', '1}', '1}', '5}'), make('5', '1}', '1}', '1}')])
  assert found['block_acc'] == [0.4, 0.2, 0.4] and found['final_acc'] == 0.4
  assert found['any_block_acc'] == 0.8
  assert found['majority_acc'] == 0.4  # the first by two votes, the third as the latest of equals


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
