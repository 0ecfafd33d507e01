"""Answers compare as stated, and accuracies count what they say."""

import pytest

from rim_jax import evaluate
from tests import support


@pytest.mark.parametrize('a, b, same', [
    ('1234', '1,234', True), ('5', '5.0', True), ('5', '5.', True), ('5', '$5', True),
    ('-5', '- 5', True), ('+5', '5', True), ('0.5', '.5', True), ('3.14159', '3.1416', True),
    ('10%', '10', True), (' 7 ', '7', True), ('-0', '0', True), ('1.10', '1.1', True),
    ('5', '-5', False), ('5', '5.01', False), ('5', '6', False), ('1000000', '1000001', False),
    ('3.14', '3.15', False), ('5', 'five', False), ('', '0', False), ('', '', True),
    ('5 6', '56', True), ('1e3', '1000', False), ('nan', 'nan', True), ('a  b', 'a b', True),
    ('123456789012345678901234567890', '123456789012345678901234567891', False),
])
def test_answers_match(a, b, same):
  assert evaluate.answers_match(a, b) is same
  assert evaluate.answers_match(b, a) is same


def test_parsing_an_answer():
  boxed = support.make_config('rim_stage2', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert evaluate.parse_answer('42*junk', boxed) == '42'
  assert evaluate.parse_answer('42', boxed) == '42'
  written = support.make_config('cot', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert evaluate.parse_answer('1\n2\n-*42*', written) == '42'
  lines = support.make_config('cot')
  assert evaluate.parse_answer('1\n2\n42', lines) == '42'


def test_icot_s_answer_is_read_written_or_forced():
  config = support.make_config('icot', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert evaluate.parse_answer('2\n-*42*', config) == '42'  # a part of the chain is left
  assert evaluate.parse_answer('42*', config) == '42'  # bare, after its forced prefix
  codec = support.make_codec(config)
  seen = []

  class Recorder(FixedDecoder):
    def decode_texts(self, params, frozen, questions, num_blocks, prefix, blocks, say=None):
      seen.append(list(prefix))
      return super().decode_texts(params, frozen, questions, num_blocks, prefix, blocks)
  for prefix in (None, ()):
    evaluate.evaluate(Recorder([['6']] * 5), None, None, support.RECORDS, config, codec, 0,
                      prefix=prefix)
  assert seen == [codec.tokenizer.encode('-*'), []]


@pytest.mark.parametrize('answers, chosen', [
    (['1', '2', '2.0'], '2'), (['1', '2'], '2'), (['1', '1', '2', '2'], '2'),
    (['3', '1', '3', '2'], '3'),
])
def test_majority_prefers_votes_then_the_latest_block(answers, chosen):
  assert evaluate.answers_match(evaluate.choose_majority(answers), chosen)


class FixedDecoder:
  """Stands for a decoder whose texts are known."""

  def __init__(self, texts):
    self.texts = texts

  def decode_texts(self, params, frozen, questions, num_blocks, prefix, blocks, say=None):
    import numpy as np
    ended = np.ones((len(questions), len(blocks)), bool)
    ended[-1, -1] = False
    return [row[:len(blocks)] for row in self.texts], ended


def test_accuracies_by_hand():
  config = support.make_config('rim_stage2')
  records = support.RECORDS[:4]  # answers 6, 9, 8, 4
  decoder = FixedDecoder([['6', '6', '6'], ['9', '1', '9'], ['8', '8', '1'], ['1', '1', '1']])
  result, predictions = evaluate.evaluate(
      decoder, None, None, records, config, support.make_codec(config), 3)
  assert result['n'] == 4 and result['block_acc'] == [0.75, 0.5, 0.5]
  assert result['final_acc'] == 0.5 and result['any_block_acc'] == 0.75
  assert result['majority_acc'] == 0.75 and result['num_unfinished'] == 1
  assert result['final_acc_stderr'] == pytest.approx(0.25)
  assert [p['correct'] for p in predictions] == [True, True, False, False]
  assert predictions[1]['block_predictions'] == ['9', '1', '9']


def test_step_accuracy_by_hand():
  config = support.make_config('rim_stage1')
  records = [support.RECORDS[0], support.RECORDS[3], support.RECORDS[4]]
  # targets after block t are r_{t+1}: ('6'), ('3', '4'), ('46', '92')
  decoder = FixedDecoder([['6', '-'], ['3', '5'], ['46', '92']])
  result = evaluate.evaluate_steps(decoder, None, None, records, config,
                                   support.make_codec(config))
  assert result['step_acc_gold_count'] == pytest.approx(4 / 5)
  assert result['step_acc_by_block'] == [1.0, 0.5]
