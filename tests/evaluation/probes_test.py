"""Probes on states whose content is known, and what is said where there is nothing to fit."""

import csv
import dataclasses
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, probes
from tests import support

SIZES = {'train': 300, 'valid': 100, 'test': 200}


def make_states(width=6, num_blocks=2, seed=0):
  rng = np.random.default_rng(seed)
  return {s: rng.standard_normal((n, num_blocks, width)).astype(np.float32)
          for s, n in SIZES.items()}


def test_what_a_state_says_is_found_and_what_it_does_not_is_chance():
  """Block 1's readout is right where its first dimension is positive; block 2's by a coin."""
  states = make_states()
  rng = np.random.default_rng(1)
  right = {s: np.stack([x[:, 0, 0] > 0, rng.random(len(x)) < 0.5], 1) for s, x in states.items()}
  found = probes.probe_right(states, right)
  one, two = found['by_block']
  assert (one['block'], two['block']) == (1, 2) and found['num_fitted'] == 2
  assert one['auroc'] > 0.99 and one['auprc'] > 0.99 and one['acc'] > 0.95
  assert abs(two['auroc'] - 0.5) < 0.12
  assert one['right'] == pytest.approx(right['test'][:, 0].mean())
  assert one['c_tuned'] and one['c'] in probes.CHOICES_OF_C and one['n'] == 200
  assert 0.5 < found['pooled']['auroc'] < one['auroc']
  # The confident probe is block 1's, where it is sure of a right readout.
  selection = found['selection']
  assert selection['acc'] > 0.7 > selection['final_acc'] and sum(selection['chosen_blocks']) == 200


def test_held_out_labels_play_no_part_in_fitting():
  states = make_states()
  right = {s: x[:, :, 0] > 0 for s, x in states.items()}
  before = probes.probe_right(states, right)['by_block'][0]
  after = probes.probe_right(states, right | {'test': ~right['test']})['by_block'][0]
  assert after['auroc'] == pytest.approx(1 - before['auroc'])
  assert (after['c'], after['train_right']) == (before['c'], before['train_right'])


def test_auroc_and_auprc_by_hand():
  right, scores = np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.1])
  found = probes._score_ranking(right, scores)
  assert found['auroc'] == pytest.approx(3 / 4)  # pairs in the right order
  assert found['auprc'] == pytest.approx((1 + 2 / 3) / 2)  # precision at each right one
  assert found['right'] == 0.5


def test_selection_by_hand():
  scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
  right = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)
  assert probes.select(scores, right) == {
      'acc': 0.5, 'final_acc': 0.25, 'any_block_acc': 0.75, 'num_recoverable': 3,
      'recoverable_acc': pytest.approx(2 / 3), 'recoverable_final_acc': pytest.approx(1 / 3),
      'chosen_blocks': [2, 2]}
  nothing = probes.select(scores, np.zeros((4, 2), bool))
  assert nothing['recoverable_acc'] is None and nothing['num_recoverable'] == 0


def test_one_class_has_no_probe_and_says_why():
  states = make_states()
  right = {s: np.stack([np.ones(len(x), bool), x[:, 1, 0] > 0], 1) for s, x in states.items()}
  found = probes.probe_right(states, right)
  assert found['by_block'][0] == {
      'block': 1, 'none': 'train has one class alone: True', 'train_right': 1.0}
  assert found['by_block'][1]['auroc'] > 0.99 and found['num_fitted'] == 1
  assert found['selection']['acc'] == 1.0  # block 1 is right always, and known to be
  everything = {s: np.ones((len(x), 2), bool) for s, x in states.items()}
  found = probes.probe_right(states, everything)
  assert found['selection']['none'] and found['pooled']['none'] and 'auroc' not in found['pooled']
  test_alone = right | {'test': np.ones((200, 2), bool), 'valid': np.ones((100, 2), bool)}
  entry = probes.probe_right(states, test_alone)['by_block'][1]
  assert entry['none'] == 'test has one class alone: True' and not entry['c_tuned']
  assert entry['c'] == 1.0


def test_a_result_is_found_in_the_block_that_holds_it():
  """Block k holds r_k, as a direction for each digit; r_2 is missing in half the questions."""
  rng = np.random.default_rng(0)
  codes = rng.standard_normal((10, 12))
  states, steps = {}, {}
  for split, count in SIZES.items():
    digits = rng.integers(0, 4, (count, 2))
    states[split] = (codes[digits] + 0.05 * rng.standard_normal((count, 2, 12))).astype(np.float32)
    steps[split] = [[str(a), str(b)][:1 + i % 2] for i, (a, b) in enumerate(digits)]
  found = probes.probe_steps(states, steps)
  assert found['n'] == [200, 100] and not found['none']
  assert found['acc'][0][0] > 0.99 and found['acc'][1][1] > 0.99
  assert found['acc'][0][1] < 0.5 and found['acc'][1][0] < 0.5
  for t in range(2):
    train, test = ([r[t] for r in steps[s] if len(r) > t] for s in ('train', 'test'))
    most = max(sorted(set(train)), key=train.count)
    assert found['majority'][t] == pytest.approx(test.count(most) / len(test))


def test_a_result_that_never_varies_is_not_probed():
  states = make_states()
  steps = {s: [['7'] for _ in x] for s, x in states.items()}
  found = probes.probe_steps(states, steps)
  assert found['acc'] == [[None], [None]] and found['none'] == {
      '1': 'train has one class alone: 7'}
  none_valid = {s: [['1'], ['2']] * (len(x) // 2) for s, x in states.items()}
  none_valid['valid'] = [[] for _ in states['valid']]
  assert 'valid' in probes.probe_steps(states, none_valid)['none']['1']


@pytest.mark.slow
def test_a_step_of_prosqa_has_the_class_that_it_finds():
  """Its last word, whatever led there; GSM8K's results are no few classes, and are not probed."""
  config = support.make_config('rim_stage2', eval__max_new_tokens=1)
  model = support.make_model(config)
  ends = ('yumpus.', 'rempus.', 'lempus.')
  records = {s: [Record(f'{i}', (f'{"Tom" if i % 2 else "Sam"} is a {ends[i % 3]}',), '1', '')
                 for i in range(n)] for s, n in (('train', 60), ('valid', 12), ('test', 18))}

  def find_steps(source):
    network = support.make_network(dataclasses.replace(
        config, data=dataclasses.replace(config.data, source=source)), model)
    found, _ = probes.run_probes(decode.Decoder(network), records, {1: lambda: network.params},
                                 lambda line: None)
    return found['steps']
  found = find_steps('prosqa')
  assert found['n'] == [18] and not found['none']
  assert found['majority'] == [pytest.approx(1 / 3)]  # of three ends, and not of six sentences
  assert 'few classes' in find_steps('gsm8k')['none']


def test_components_are_the_last_checkpoints_and_all_are_projected_on_them():
  rng = np.random.default_rng(0)
  plane = np.linalg.qr(rng.standard_normal((5, 5)))[0][:2]
  flat = rng.standard_normal((20, 3, 2)) * [3, 1]
  last = flat @ plane + 7
  found, points = probes.project({10: last * 0 + 7, 20: last}, 20)
  assert found['fitted_on'] == 20 and sum(found['explained']) == pytest.approx(1)
  assert found['explained'][0] > found['explained'][1]
  # Distances in the plane are those of the states.
  a, b = points[20][0, 0], points[20][1, 2]
  assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(last[0, 0] - last[1, 2]))
  np.testing.assert_allclose(found['centers']['20'], points[20].mean(0))
  assert found['spread']['10'] == pytest.approx([0, 0, 0]) and min(found['spread']['20']) > 1
  assert 'none' in probes.project({1: np.ones((4, 2, 3))}, 1)[0]


def test_points_are_one_line_a_state():
  points = {20: np.arange(8.0).reshape(2, 2, 2), 10: np.zeros((2, 2, 2))}
  rows = list(csv.reader(probes.format_points(points, ['a,"b', '7']).splitlines()))
  assert rows[0] == ['step', 'question', 'block', 'x', 'y', 'answer'] and len(rows) == 9
  assert rows[1] == ['10', '1', '1', '0', '0', 'a,"b']
  assert rows[-1] == ['20', '2', '2', '6', '7', '7']


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[analysis\]'"):
    probes.check_installed()


# ---- With a network ----


@pytest.mark.slow
def test_states_are_the_closing_tokens_before_the_last_layer():
  """Against a network of one layer less, on each question alone."""
  config = support.make_config('rim_stage2', eval__batch_size=3)
  (model, decoder), codec = support.make_decoder(config), support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS]
  found = decoder.compute_states(questions, 3)
  assert found.shape == (5, 3, 16)
  seen = []
  model.final_norm = lambda x: seen.append(x) or x
  graphdef, layers = nnx.split(model.blocks)
  model.blocks = nnx.merge(graphdef, jax.tree.map(lambda x: x[:1], layers))
  model.config = support.set_keys(config, {'model.num_layers': 1}).model
  for question, states in zip(questions, found):
    trunks = decode.make_trunks([question], 3, 32, 1, config, codec.memory_start)
    decode.prefill(model, config, jax.tree.map(jnp.asarray, trunks), (1,))
    closing = len(question) + np.array([2, 5, 8])
    support.assert_close(states, np.asarray(seen[-1])[0, closing])


def test_all_probes_of_a_network():
  config = support.make_config('rim_stage2', eval__max_new_tokens=1)
  _, decoder = support.make_decoder(config)
  params, rng = decoder.network.params, np.random.default_rng(0)
  records = {s: [Record(f'{a}+{b}', (str(a), str((a + b) % 10)), str((a + b) % 10), f'{s}:{i}')
                 for i, (a, b) in enumerate(rng.integers(0, 3, (n, 2)))]
             for s, n in (('train', 40), ('valid', 16), ('test', 24))}
  found, (points, answers) = probes.run_probes(
      decoder, records, {5: lambda: jax.tree.map(lambda x: 0.5 * x, params), 9: lambda: params},
      lambda line: None)
  assert found['num_questions'] == {'train': 40, 'valid': 16, 'test': 24}
  assert len(found['right']['by_block']) == 3 and len(found['steps']['acc']) == 3
  assert found['pca']['fitted_on'] == 9 and set(points) == {5, 9}
  assert points[9].shape == (24, 3, 2) and answers[0] == records['test'][0].answer
  one = support.make_network(support.set_keys(config, {'model.num_layers': 1}))
  assert 'one layer' in probes.run_probes(
      decode.Decoder(one), records, {}, lambda line: None)[0]['none']


@pytest.mark.parametrize('count, fitted', [(3, 3), (0, 5), (9, 9)])
def test_probes_can_be_fitted_on_questions_held_out(count, fitted):
  found = probes.hold_out(list(range(10)), count)
  assert found == {'train': list(range(fitted)), 'valid': list(range(fitted, 10))}


def test_too_many_held_out_questions_are_told_in_one_line():
  with pytest.raises(UserError, match='num_probe_examples=10.*leave none to tune on; use fewer'):
    probes.hold_out(list(range(10)), 10)
