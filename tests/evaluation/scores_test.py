"""Answers compare as stated, and accuracies count what they say."""

import dataclasses
import itertools
import statistics

import numpy as np
import pytest

from rim_jax.errors import UserError
from rim_jax.evaluation import decode, scores
from rim_jax.packing import order as order_lib
from rim_jax.packing import source
from rim_jax.results import judge, values
from tests import support

RECORDS = tuple(support.Record(f'{a}+{b}', (), str(a + b), f'r:{a}{b}')
                for a in range(1, 6) for b in range(4))


def test_parsing_an_answer():
  boxed = support.make_config('rim_stage2', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert judge.parse_answer('42*junk', boxed) == '42'
  written = support.make_config('cot', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert judge.parse_answer('1\n2\n-*42*', written) == '42'
  lines = support.make_config('cot')
  assert judge.parse_answer('1\n2\n42', lines) == '42'


def test_icot_s_answer_is_read_written_or_forced():
  config = support.make_config('icot', layout__answer_prefix='-*', layout__answer_suffix='*')
  assert judge.parse_answer('2\n-*42*', config) == '42'  # a part of the chain is left
  assert judge.parse_answer('42*', config) == '42'  # bare, after its forced prefix
  codec = support.make_codec(config)
  seen = []

  class Recorder(FixedDecoder):
    def decode_texts(self, questions, num_blocks, prefix, blocks, say=None):
      seen.append(list(prefix))
      return super().decode_texts(questions, num_blocks, prefix, blocks)
  for prefix in (None, ()):
    scores.evaluate(Recorder([['6']] * 5, config), support.RECORDS, 0, prefix=prefix)
  assert seen == [codec.tokenizer.encode('-*'), []]


class FixedDecoder:
  """Stands for a decoder whose texts are known."""

  def __init__(self, texts, config):
    self.texts, self.network = texts, support.make_network(config)

  def decode_texts(self, questions, num_blocks, prefix, blocks, say=None, sample=None):
    if sample is not None:  # a column of the texts for each sample, of the last block alone
      assert len(blocks) == 1 and blocks[0] == num_blocks
      return [[row[sample]] for row in self.texts], None
    ended = np.ones((len(questions), len(blocks)), bool)
    ended[-1, -1] = False
    return [row[:len(blocks)] for row in self.texts], ended


def test_accuracies_by_hand():
  config = support.make_config('rim_stage2')
  records = support.RECORDS[:4]  # answers 6, 9, 8, 4
  decoder = FixedDecoder([['6', '6', '6'], ['9', '1', '9'], ['8', '8', '1'], ['1', '1', '1']],
                         config)
  result, predictions = scores.evaluate(decoder, records, 3)
  assert result.n == 4 and result.block_acc == [0.75, 0.5, 0.5]
  assert result.final_acc == 0.5 and result.any_block_acc == 0.75
  assert result.majority_acc == 0.75 and result.num_unfinished == 1
  assert result.final_acc_stderr == pytest.approx(0.25)
  assert [p.correct for p in predictions] == [True, True, False, False]
  assert predictions[1].block_predictions == ['9', '1', '9']


def score_each(correct_cnr, seed):
  """(chosen checkpoint, its accuracies) of each split, question by question."""
  found = []
  count = len(correct_cnr[0])
  for split in range(16):
    order = [int(i) for i in order_lib.permute(count, seed, split)]
    choosing = set(order[:round(0.2 * count)])
    right = [sum(rows[i][-1] for i in choosing) for rows in correct_cnr]
    best = max(range(len(right)), key=lambda c: (right[c], c))
    scored = [correct_cnr[best][i] for i in range(count) if i not in choosing]
    found.append((best, [sum(block) / len(scored) for block in zip(*scored)]))
  return found


def test_the_papers_choice_equals_one_made_question_by_question():
  correct = np.random.default_rng(0).random((3, 61, 2)) < np.array([.5, .4, .5])[:, None, None]
  found = scores.score_splits(correct, seed=7)
  wanted = score_each(correct.tolist(), 7)
  finals = [accs[-1] for _, accs in wanted]
  assert found.num_choosing == 12 and found.num_splits == 16
  assert found.final_acc == pytest.approx(statistics.mean(finals))
  assert found.splits_stderr == pytest.approx(statistics.stdev(finals) / 4)
  # Splits share questions: as many fresh questions would differ by more.
  assert found.final_acc_stderr == pytest.approx((found.final_acc * (1 - found.final_acc) / 61)**.5)
  assert found.final_acc_stderr > found.splits_stderr
  assert found.block_acc == pytest.approx([statistics.mean(b) for b in zip(
      *(accs for _, accs in wanted))])
  chosen = [best for best, _ in wanted]
  assert found.chosen == {str(c): chosen.count(c) for c in set(chosen)} and len(set(chosen)) > 1
  assert scores.score_splits(correct, seed=8) != found


def test_as_many_of_gsm8k_choose_as_in_the_paper():
  assert scores.score_splits(np.ones((1, 1319, 1), bool), 0).num_choosing == 264


def test_of_equal_checkpoints_the_latest_is_chosen():
  assert scores.score_splits(np.ones((3, 20, 1), bool), 0).chosen == {'2': 16}


def test_pass_at_k_by_hand():
  """Of four samples 2, 0, 4 and 1 are right: pairs hold a right one in 5, 0, 6 and 3 of 6."""
  config = support.make_config('rim_stage2', eval__num_samples=4, eval__temperature=0.7)
  decoder = FixedDecoder([['6', '1', '6', '2'], ['1'] * 4, ['8'] * 4, ['1', '4', '1', '1']],
                         config)
  result, num_right = scores.evaluate_samples(decoder, support.RECORDS[:4], 3)
  assert num_right == [2, 0, 4, 1]
  assert result == {'num_samples': 4, 'temperature': 0.7, 'pass_at': {
      '1': pytest.approx(7 / 16), '2': pytest.approx(14 / 24), '4': 0.75}}


@pytest.mark.parametrize('count', [1, 3, 5, 6])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(count):
  for num_right, k in itertools.product(range(count + 1), range(1, count + 1)):
    samples = [i < num_right for i in range(count)]
    choices = [any(some) for some in itertools.combinations(samples, k)]
    assert scores.compute_pass_at(num_right, count, k) == pytest.approx(
        sum(choices) / len(choices))


@pytest.mark.parametrize('count, ks', [(1, '1'), (2, '12'), (7, '124'), (8, '1248')])
def test_pass_at_is_given_for_powers_of_two(count, ks):
  config = support.make_config('rim_stage2', eval__num_samples=count)
  result, _ = scores.evaluate_samples(
      FixedDecoder([['6'] * count], config), support.RECORDS[:1], 3)
  assert list(result['pass_at']) == list(ks)


def test_a_budget_curve_is_an_evaluation_for_each_number_of_blocks():
  config = support.make_config('rim_stage2', layout__num_blocks=1, eval__budget_blocks=-1,
                               eval__max_new_tokens=1, eval__batch_size=20)
  _, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  # Records whose answers are what the network says after a block, so that accuracies differ.
  texts, _ = decoder.decode_texts([codec.encode(r).question for r in RECORDS], 2, (),
                                  (0, 1, 2))
  records = [dataclasses.replace(r, answer=row[i % 3].strip() or '?')
             for i, (r, row) in enumerate(zip(RECORDS, texts))]
  found = scores.evaluate_budgets(decoder, records, tuple(range(config.eval_budget + 1)))
  alone = [scores.evaluate(decoder, records, k)[0].final_acc for k in range(3)]
  assert found == dict(zip('012', alone))
  assert len(set(alone)) > 2


@pytest.mark.slow
def test_other_numbers_of_tokens_in_a_block_are_other_layouts_of_the_same_network():
  config = support.make_config('rim_stage2', layout__num_blocks=1, layout__block_tokens=2,
                               eval__budget_tokens=3, eval__max_new_tokens=1, eval__batch_size=20)
  _, decoder = support.make_decoder(config)
  network = decoder.network
  others = [decode.Decoder(dataclasses.replace(network, config=support.set_keys(
      config, {'layout.block_tokens': m}))) for m in (1, 2, 3)]
  said = [other.decode_texts([network.codec.encode(r).question for r in RECORDS], 1, (), (1,))[0]
          for other in others]
  # Records whose answers are what the network says with some M, so that accuracies differ.
  records = [dataclasses.replace(r, answer=said[i % 2 * 2][i][0].strip() or '?')
             for i, r in enumerate(RECORDS)]
  found = scores.evaluate_tokens(decoder, records, (0, 1))
  assert [x.block_tokens for x in found] == [1, 2, 3]
  alone = [[scores.evaluate(other, records, k)[0].final_acc for k in (0, 1)] for other in others]
  assert [list(x.acc.values()) for x in found] == alone
  assert len({acc for _, acc in alone}) > 1
  assert scores.evaluate(decoder, records, 1)[0].final_acc == found[1].acc['1']


def test_a_budget_beyond_the_position_table_is_told():
  config = support.make_config('rim_stage2', model__max_positions=24)
  _, decoder = support.make_decoder(config)
  scores.evaluate_budgets(decoder, support.RECORDS[1:2], tuple(range(7)))
  with pytest.raises(UserError, match='r:2: a question of 1 tokens with 7 blocks .*budget_blocks'):
    scores.evaluate_budgets(decoder, support.RECORDS[1:2], tuple(range(8)))


@pytest.mark.parametrize('method, prefix, trained', [
    # The question, three blocks of three, a forced prefix and the answer; eos is no input.
    ('rim_stage2', '+', 7 + 9 + 2), ('rim_stage1', '+', 7 + 9 + 2), ('rim_stage2', '', 7 + 9 + 1),
    ('pause', '+++', 7 + 9 + 4)])
def test_blocks_beyond_the_positions_of_training_by_hand(method, prefix, trained, tmp_path):
  """The longest training question has 7 tokens and 3 steps."""
  config = support.make_config(method, layout__answer_prefix=prefix, data__cache_dir=str(tmp_path))
  codec = support.make_codec(config)

  class Split(list):
    fingerprint = name = 'made'
    __getitems__ = lambda self, numbers: [self[i] for i in numbers]
  records = Split(r for r in support.RECORDS if r.answer != '92')
  reached = source.count_positions(records, codec, lambda line: None)
  assert reached == trained
  batch = support.make_batch(config, [[r] for r in records])
  assert reached == 1 + np.asarray(batch.positions).max()

  def find(*questions):
    asked = [dataclasses.replace(records[0], question=q) for q in questions]
    return scores.find_beyond(asked, config, codec, range(7), reached)
  assert find('1+1+1+1') == [4, 5, 6]  # as in training, and three more positions for each block
  assert find('1', '1+1+1+1') == [4, 5, 6] and find('1') == [6]  # by the longest
  assert find('1+1+1+1+1+1') == [3, 4, 5, 6]


def test_gsm_hard_by_kind_of_answer_by_hand():
  rows = [('5', True, 'a  b'), ('0', False, 'b'), ('-0', True, 'c'), ('-3', True, 'd'),
          ('-.5', False, 'e'), ('-1,000', False, 'f'), ('2.5', True, 'g'), ('4.0', False, 'h')]
  predictions = [values.Prediction(answer=answer, correct=correct, question=question)
                 for answer, correct, question in rows]
  assert scores.group_gsm_hard(predictions, ['a b', 'e', 'x']) == {
      'integer_acc': 0.5, 'num_integer': 4, 'negative_acc': pytest.approx(1 / 3),
      'num_negative': 3, 'non_integer_acc': 1.0, 'num_non_integer': 1, 'changed_acc': 0.5,
      'num_changed': 6}
  assert scores.group_gsm_hard(predictions[:2], ['a b', 'b']) == {
      'integer_acc': 0.5, 'num_integer': 2, 'num_negative': 0, 'num_non_integer': 0,
      'num_changed': 0}


def test_accuracy_by_number_of_steps_by_hand():
  records = [dataclasses.replace(support.RECORDS[0], steps=('x',) * t) for t in (10, 2, 10, 2, 0)]
  predictions = [values.Prediction(question='', answer='', correct=c)
                 for c in (True, False, False, False, True)]
  found = scores.group_by_steps(predictions, records)
  assert found == {'steps_acc': {'0': 1.0, '2': 0.0, '10': 0.5},
                   'num_by_steps': {'0': 1, '2': 2, '10': 2}}
  assert list(found['steps_acc']) == ['0', '2', '10']
  assert scores.group_by_steps(predictions[:1], records[:1]) == {}  # it would say nothing more


def test_step_accuracy_by_hand():
  config = support.make_config('rim_stage1')
  records = [support.RECORDS[0], support.RECORDS[3], support.RECORDS[4]]
  # targets after block t are r_{t+1}: ('6'), ('3', '4'), ('46', '92')
  decoder = FixedDecoder([['6', '-'], ['3', '5'], ['46', '92']], config)
  result = scores.evaluate_steps(decoder, records)
  assert result['step_acc_gold_count'] == pytest.approx(4 / 5)
  assert result['step_acc_by_block'] == [1.0, 0.5]


def test_a_record_of_many_steps_is_decoded_apart(monkeypatch):
  """Room for its readouts in every row would be more than a device has."""
  config, calls = support.make_config('rim_stage1', layout__num_blocks=3), []
  record = support.RECORDS[0]
  records = [dataclasses.replace(record, question=f'{i}+1', steps=steps) for i, steps in enumerate(
      [('1', '2', '3'), ('1',) * 12, ('1', '2'), ('5',), ('1', '2' * 7)])]
  codec = support.make_codec(config)
  steps = {tuple(codec.encode_question(r.question)): r.steps for r in records}

  class Decoder:
    network = support.make_network(config)

    def __init__(self, network=None, max_new_tokens=config.eval.max_new_tokens):
      self._longest = max_new_tokens

    def decode_texts(self, questions, num_blocks, prefix, blocks, say=None):
      calls.append((len(questions), num_blocks, self._longest))
      say(len(questions))
      return [[*steps[tuple(q)][1:], *['-'] * num_blocks][:num_blocks] for q in questions], None
  monkeypatch.setattr(decode, 'Decoder', Decoder)
  said = []
  result = scores.evaluate_steps(Decoder(), records, said.append)
  assert calls == [(2, 2, 4), (1, 1, 8), (1, 11, 4)] and said == [2, 3, 4]
  assert result['step_acc_gold_count'] == 1.0 and result['step_acc_by_block'] == [1.0] * 11
  scores.check_steps(records, config, codec)
  with pytest.raises(UserError, match='needs .* positions'):
    scores.check_steps([dataclasses.replace(record, steps=('1',) * 30)], config, codec)


def test_steps_are_not_cut_at_the_length_of_answers(monkeypatch):
  config = support.make_config('rim_stage1', eval__max_new_tokens=2)
  steps, asked = ('1', '123456'), []
  records = [dataclasses.replace(support.RECORDS[0], steps=steps)]

  class Decoder(decode.Decoder):
    def __init__(self, network, max_new_tokens):
      asked.append(max_new_tokens)
      super().__init__(network, max_new_tokens)
  decoder = decode.Decoder(support.make_network(config, support.make_model(config)))
  monkeypatch.setattr(decode, 'Decoder', Decoder)
  result = scores.evaluate_steps(decoder, records)
  assert asked == [len(steps[1]) + 1]  # and its eos
  assert result['step_acc_by_block'] == [0.0]
