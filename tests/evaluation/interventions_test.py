"""Each control, on networks whose weights are set by hand so that its answer is known.

The question is one digit, which is also the answer. Two layers copy it: the first from the
question into the memory, the second from the memory (or, where the memory is decoration, from the
question) into the answer. What finds nothing to copy answers 0, which is right once in ten.
"""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from rim_jax import modes, reader, train
from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, interventions, run_scores
from rim_jax.model import transformer as transformer_lib
from rim_jax.results import judge
from rim_jax.training import state as state_lib
from tests import support

DIGITS = [Record(str(d), (), str(d), f'digit:{d}') for d in range(10)]
NUM_IDS = 16
# Dimensions of a hidden state: an id seen, an id in memory, an id to answer, and what a token is.
SEEN, KEPT, SAID = (slice(i * NUM_IDS, (i + 1) * NUM_IDS) for i in range(3))
QUESTION, SINK, MEMORY, PREFIX, CLOSING, OPENING, HOLDER = range(48, 55)
WIDTH = 56
TOPICS = {QUESTION: 0, SINK: 1, MEMORY: 2, HOLDER: 3}  # head dimensions on which keys are found
COPIED = slice(4, 4 + NUM_IDS)  # head dimensions that carry ids


def make_config(prefix, method='rim_stage2', **changes):
  return support.make_config(
      method, tokenizer__add_bos=True, layout__answer_prefix=prefix, model__num_heads=1,
      model__embed_dim=WIDTH, model__tie_embeddings=False, model__memory_init='normal',
      eval__max_new_tokens=1, **changes)


def make_copier(config, source, holder=MEMORY):
  """A network that answers from `source`: MEMORY, or QUESTION, where memory is decoration.

  With HOLDER, the tokens at position 6 (block 2's <m>) alone keep the digit.
  """
  model = transformer_lib.Transformer(config.model, NUM_IDS, jax.random.key(0))
  for _, variable in support.model_params(model):
    variable.set_value(jnp.zeros_like(variable.get_value()))
  for norm in (model.blocks.attention_norm, model.blocks.mlp_norm):
    norm.scale.set_value(jnp.ones_like(norm.scale.get_value()))
  model.final_norm.scale.set_value(jnp.ones(WIDTH))

  embedding = np.zeros((NUM_IDS, WIDTH), np.float32)
  embedding[:10, SEEN] = np.eye(10, NUM_IDS)
  embedding[:10, QUESTION] = embedding[10, PREFIX] = embedding[14, SINK] = 1
  positions = np.zeros((config.model.max_positions, WIDTH), np.float32)
  positions[6, HOLDER] = 1
  memory = np.zeros((3, WIDTH), np.float32)
  memory[[0, 1, 2], [OPENING, MEMORY, CLOSING]] = 1
  embedding[:, SAID.start] = memory[:, SAID.start] = 1e-3  # or else a trace of a digit would win
  head = np.zeros((WIDTH, NUM_IDS), np.float32)
  head[SAID] = np.eye(NUM_IDS)

  query, key, value = np.zeros((3, 2, WIDTH, 1, WIDTH), np.float32)
  out = np.zeros((2, 1, WIDTH, WIDTH), np.float32)
  for kind, topic in TOPICS.items():
    key[:, kind, 0, topic] = 1
  query[:, 48:, 0, TOPICS[SINK]] = 10  # what looks for nothing else
  query[0, holder, 0, TOPICS[QUESTION]] = 40
  for asker in (PREFIX, CLOSING):
    query[1, asker, 0, TOPICS[holder if source == MEMORY else QUESTION]] = 40
  value[0, SEEN, 0, COPIED] = value[1, SEEN if source == QUESTION else KEPT, 0, COPIED] = np.eye(
      NUM_IDS)
  out[0, 0, COPIED, KEPT] = out[1, 0, COPIED, SAID] = 0.2 * np.eye(NUM_IDS)
  for variable, array in (
      (model.embedding, embedding), (model.positions, positions), (model.memory, memory),
      (model.head, head), (model.blocks.query.kernel, query), (model.blocks.key.kernel, key),
      (model.blocks.value.kernel, value), (model.blocks.out.kernel, out)):
    variable.set_value(jnp.asarray(array))
  return model


def ask(model, config, records=DIGITS, devices=1):
  network = support.make_network(config, model, devices)
  return interventions.run_controls(network, records, lambda line: None)


PREFIXES = ['+', pytest.param('', marks=pytest.mark.slow)]


@pytest.mark.parametrize('prefix', PREFIXES)
def test_an_answer_that_lies_in_the_memory_follows_it(prefix):
  config = make_config(prefix, layout__stage2_depth0_readout=prefix == '+')
  found = ask(make_copier(config, MEMORY), config)
  entries = found['controls']
  assert found['pairing'] == {
      'num_pairs': 10, 'num_equal_answers': 0, 'num_without_partner': 0}
  for name, entry in (entries | found['sweeps']).items():  # what was written down beforehand
    assert (entry['what'], entry['expected']) == (
        interventions.CONTROLS | interventions.SWEEPS)[name]
  blocks = {name: entry['block_acc'] for name, entry in entries.items()}
  assert blocks['as_trained'] == [1.0, 1.0, 1.0]
  assert blocks['no_blocks'] == [0.1]
  assert entries['no_blocks']['readout_trained'] == (prefix == '+')
  assert blocks['swapped'] == [0.0, 0.0, 0.0]
  assert entries['swapped']['block_donor_acc'] == [1.0, 1.0, 1.0]
  assert entries['swapped']['block_donor_model_acc'] == [1.0, 1.0, 1.0]
  assert entries['swapped']['unchanged_acc'] == 1.0
  assert blocks['averaged'] == [0.0, 0.0, 0.0]  # of the others alone
  assert blocks['permuted'] == [1.0, 1.0, 1.0]  # every block holds the same
  assert max(blocks['untrained_rows']) <= 0.1  # one answer to every question
  assert blocks['question_hidden'] == [1.0, 1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize('prefix', PREFIXES)
def test_without_latents_the_answer_is_read_also_where_a_chain_was_written(prefix):
  config = make_config(prefix, 'lotus_stage', layout__num_blocks=1, layout__block_tokens=1,
                       layout__skip_steps=1)
  entry = ask(make_copier(config, QUESTION), config)['controls']['no_blocks']
  # Without a prefix nothing but the question's last token could ask, which here copies nothing.
  assert entry['block_acc'] == [1.0 if prefix else 0.1]
  assert entry['chain_trained'] == (not prefix)


@pytest.mark.parametrize('prefix', PREFIXES)
def test_memory_that_is_decoration_changes_nothing(prefix):
  config = make_config(prefix)
  entries = ask(make_copier(config, QUESTION), config)['controls']
  blocks = {name: entry['block_acc'] for name, entry in entries.items()}
  # Without a prefix a memory row does the reading; with K = 0 the question's last token does, which
  # here copies nothing.
  assert blocks['no_blocks'] == [1.0 if prefix else 0.1]
  if prefix:
    assert blocks['untrained_rows'] == [1.0, 1.0, 1.0]
  for name in ('as_trained', 'swapped', 'averaged', 'permuted'):
    assert blocks[name] == [1.0, 1.0, 1.0], name
  assert entries['swapped']['block_donor_acc'] == [0.0, 0.0, 0.0]
  assert blocks['question_hidden'] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize('prefix, devices', [
    ('+', 8), pytest.param('', 1, marks=pytest.mark.slow)])
def test_swapping_one_block_finds_the_one_that_holds_the_answer(prefix, devices):
  config = make_config(prefix)
  found = ask(make_copier(config, MEMORY, HOLDER), config, devices=devices)
  assert found['controls']['as_trained']['block_acc'] == [0.1, 1.0, 1.0]

  def follow(name):
    return [(entry['block_acc'][1:], entry['block_donor_acc'][1:])
            for entry in found['sweeps'][name]['by_block']]
  own, donor = ([1.0, 1.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 1.0])
  assert follow('swapped_block') == [own, donor, own]
  assert follow('swapped_from_block') == [donor, donor, own]
  assert [e['block'] for e in found['sweeps']['swapped_block']['by_block']] == [1, 2, 3]
  # Block 2's keys, under which the readouts look, have block 1's values now: nothing.
  assert found['controls']['permuted']['block_acc'] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize('prefix, switches', [
    ('+-', {}), ('', {'loop__num_passes': 2}),
    *(pytest.param('', changes, marks=pytest.mark.slow) for changes in (
        {'layout__bidirectional_blocks': True, 'model__positions': 'rope',
         'model__num_kv_heads': 1}, {'layout__readout_sees_question': False}))])
def test_nothing_changed_is_plain_decoding(prefix, switches):
  """The closing token that is run again comes to the state that it had."""
  config = support.make_config('rim_stage2', layout__answer_prefix=prefix,
                               eval__max_new_tokens=3, **switches)
  _, decoder = support.make_decoder(config)
  codec = decoder.network.codec
  texts, _ = decoder.decode_texts([codec.encode(r).question for r in support.RECORDS], 3,
                                  codec.template.answer_prefix, (1, 2, 3))
  reader = interventions.Reader(decoder, support.RECORDS)
  assert reader.read(lambda kv, *unused: kv) == [
      [judge.parse_answer(text, config) for text in row] for row in texts]
  assert len({tuple(t) for t in texts}) > 1


THOUGHTS = {'coconut_stage': {'layout__skip_steps': -1}, 'codi': {},
            'pccot': {'loop__num_passes': 3},
            'lotus_stage': {'layout__skip_steps': 1, 'loop__num_passes': 2}}


def make_thoughts(method, **changes):
  return support.make_config(method, **{
      'layout__num_blocks': 1, 'layout__block_tokens': 3, **THOUGHTS[method], **changes})


@pytest.mark.parametrize('make', [
    lambda: support.make_config('rim_stage2'),
    *(pytest.param(make, marks=pytest.mark.slow) for make in (
        lambda: support.make_config('rim_stage2', loop__num_passes=3),
        lambda: make_thoughts('codi'), lambda: make_thoughts('coconut_stage'),
        lambda: make_thoughts('pccot'), lambda: make_thoughts('lotus_stage')))])
def test_closing_tokens_run_again_have_the_states_of_the_prefill(make):
  config = make()
  blocks = tuple(range(1, config.eval_blocks + 1))
  model, codec = support.make_model(config), support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS]
  trunks = decode.make_trunks(questions, len(blocks), 32, 6, config, codec.memory_start)
  x, kv, fields = decode.prefill(model, config, trunks, blocks)
  again = interventions.close_again(model, config, blocks, trunks, kv, fields)
  support.assert_close(again[:5], x[:5])
  hidden = interventions.close_again(
      model, config, blocks, trunks, kv, fields, sees_question=False)
  assert np.abs(np.asarray(hidden - again)[:5]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('method', THOUGHTS)
def test_thoughts_of_another_question_bring_its_answer_where_nothing_else_is_seen(method):
  """However thoughts were found, their keys and values are all that a readout has of a question."""
  config = make_thoughts(method, layout__answer_prefix='+', layout__readout_sees_question=False)
  network = support.make_network(config, support.make_model(config))
  decoder = decode.Decoder(network)
  readouts = decoder.make_readouts(network.codec.template.answer_prefix, (1,))
  trunks = decoder.place([network.codec.encode_question(r.question) for r in DIGITS[:4]], 1, 4)
  pairs = interventions.make_pairs([[0, 1, 2, 3]], 4, 1)

  def read(model, config, change, trunks, pairs):
    x, kv, fields = decode.prefill(model, config, trunks, readouts.blocks)
    if change:
      kv = interventions.swap(kv, fields, pairs)
    return decode.read_prefix(model, config, readouts, trunks, (x, kv, fields))[0]
  run = network.jit(read, 1)
  own, swapped = (np.asarray(run(*network.arrays, change, trunks, pairs))
                  for change in (False, True))
  support.assert_close(swapped, own[pairs.donor])
  assert np.abs(swapped - own).max() > 1e-2


def test_a_mean_is_of_the_other_questions_and_of_blocks_alone():
  config = support.make_config('rim_stage2')
  trunks = decode.make_trunks([[1, 2], [3, 4], [5, 6], [1, 2, 3]], 3, 32, 5, config, 16)
  kv = np.random.default_rng(0).standard_normal((2, 2, 5, 32, 2, 4)).astype(np.float32)
  pairs = interventions.make_pairs([[0, 1, 2], [3]], 5, 3)
  changed = np.stack(interventions.average(
      tuple(map(jnp.asarray, kv)), trunks.fields, pairs, config))
  np.testing.assert_array_equal(changed[:, :, :3, :2], kv[:, :, :3, :2])
  np.testing.assert_allclose(changed[:, :, 0, 2:11], (kv[:, :, 1] + kv[:, :, 2])[:, :, 2:11] / 2,
                             rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(changed[:, :, 2, 2:11], (kv[:, :, 0] + kv[:, :, 1])[:, :, 2:11] / 2,
                             rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(changed[:, :, 3:], kv[:, :, 3:])  # alone, and padding
  np.testing.assert_array_equal(changed[:, :, :, 12:], kv[:, :, :, 12:])


def test_a_permutation_moves_values_by_one_block_and_no_key():
  config = support.make_config('rim_stage2')
  trunks = decode.make_trunks([[1, 2], [1, 2, 3]], 3, 32, 3, config, 16)
  keys, values = np.random.default_rng(0).standard_normal((2, 1, 3, 32, 1, 1))
  moved_keys, moved = interventions.permute(
      (jnp.asarray(keys), jnp.asarray(values)), trunks.fields,
      interventions.make_pairs([[0], [1]], 3, 3), config)
  moved = np.asarray(moved)
  np.testing.assert_allclose(moved_keys, keys.astype(np.float32))
  values = values.astype(np.float32)
  for row, begin in ((0, 2), (1, 3)):
    np.testing.assert_array_equal(moved[:, row, :begin], values[:, row, :begin])
    np.testing.assert_array_equal(moved[:, row, begin + 3:begin + 9],
                                  values[:, row, begin:begin + 6])
    np.testing.assert_array_equal(moved[:, row, begin:begin + 3],
                                  values[:, row, begin + 6:begin + 9])
    np.testing.assert_array_equal(moved[:, row, begin + 9:], values[:, row, begin + 9:])


def test_partners_are_equally_long_and_nobody_is_lost():
  lengths = [5] * 9 + [7] + [6] * 3 + [4] * 2
  batches = interventions.make_batches(lengths, 4, seed=1)
  assert sorted(i for groups in batches for g in groups for i in g) == list(range(15))
  assert all(sum(map(len, groups)) <= 4 for groups in batches)
  groups = [g for groups in batches for g in groups]
  assert all(len({lengths[i] for i in g}) == 1 for g in groups)
  assert [len(g) for g in groups if lengths[g[0]] != 7].count(1) == 0
  assert interventions.make_batches(lengths, 4, seed=1) == batches
  assert interventions.make_batches(lengths, 4, seed=2) != batches
  assert [sorted(g) for g in interventions.make_batches([3, 3], 2, 0)[0]] == [[0, 1]]
  pairs = interventions.make_pairs([[8, 3, 4], [9]], 6, 2)
  assert pairs.donor.tolist() == [1, 2, 0, 3, 4, 5]
  np.testing.assert_allclose(pairs.others.sum(1), 1)
  assert pairs.swapped.tolist() == [False, True, True]


def test_questions_without_a_partner_and_equal_answers_are_counted():
  records = [Record('1', (), '1', 'a'), Record('2', (), '1', 'b'), Record('12', (), '12', 'c'),
             Record('3', (), '3', 'd')]
  donors = np.array([1, 3, 2, 0])
  scorer = interventions.Scorer(records, donors, [['1'], ['1'], ['7'], ['2']])
  assert scorer.paired.tolist() == [0, 1, 3] and scorer.telling.tolist() == [1, 3]
  entry = scorer.score_swap([['1'], ['3'], ['12'], ['1']])
  assert entry['n'] == 2 and entry['final_acc'] == 0.0 and entry['final_donor_acc'] == 1.0
  assert entry['n_donor_model'] == 2
  assert entry['final_donor_model_acc'] == 0.5  # the model says 2 where d's answer is 3
  assert entry['unchanged_acc'] == 0.5 and entry['final_donor_acc_stderr'] == 0.0
  # A model that says one thing whatever the blocks hold follows nobody.
  alike = interventions.Scorer(records, donors, [['5']] * 4).score_swap([['5']] * 4)
  assert alike['final_donor_acc'] == 0.0 and 'final_donor_model_acc' not in alike
  half = scorer.score([['1'], ['3'], ['12'], ['1']])
  assert half['n'] == 4 and half['final_acc'] == 0.5
  assert half['final_acc_stderr'] == pytest.approx(0.25)


@pytest.mark.slow
def test_without_partners_there_is_nothing_and_it_says_so():
  config = support.make_config('rim_stage2', layout__num_blocks=1, eval__max_new_tokens=1)
  records = support.RECORDS[1:3]  # of different lengths
  found = ask(support.make_model(config), config, records)
  assert found['pairing']['num_without_partner'] == 2
  entries = found['controls']
  for name in ('swapped', 'averaged', 'permuted'):
    assert entries[name]['n'] == 0 and entries[name]['none'], name
  assert entries['as_trained']['n'] == entries['question_hidden']['n'] == 2
  assert not found['sweeps']  # of one block `swapped` is all


# ---- The mode ----


def test_a_curriculum_has_its_controls_in_both_places(tmp_path, monkeypatch):
  config = support.make_config('rim', controls__num_attention=0)
  stage = dataclasses.replace(config, method='rim_stage2')
  (tmp_path / 'stage2').mkdir()
  data = type('Data', (), {'fingerprint': 'f', 'splits': {}})
  task = train.Task(stage, data, support.make_codec(stage), None, None)
  monkeypatch.setattr(modes.ask, 'open_run', lambda *args: (task, tmp_path / 'stage2'))
  monkeypatch.setattr(run_scores, 'get_records', lambda *args: DIGITS)
  monkeypatch.setattr(state_lib, 'load_network', lambda *args, **kwargs: (None, 7))
  entry = {'n': 10, 'final_acc': 0.5, 'block_acc': [0.25, 0.5], 'block_donor_acc': [0.75, 0.125],
           'expected': 'what [should] come'}
  monkeypatch.setattr(interventions, 'run_controls', lambda *args: {
      'pairing': {'num_pairs': 1, 'num_equal_answers': 2, 'num_without_partner': 3},
      'controls': {'no_blocks': {'expected': 'less', 'n': 10, 'block_acc': [0.125],
                                 'readout_trained': True, 'chain_trained': True},
                   'swapped': entry, 'averaged': {'expected': '', 'n': 0, 'none': 'no reason'}},
      'sweeps': {'swapped_block': {'what': 'one', 'expected': 'x', 'by_block': [
          {'block': 1, **entry}]}}})
  out = io.StringIO()
  modes.controls(config, tmp_path, lambda line: None, rich_console.Console(file=out, width=120))
  inner = reader.unseal(json.loads((tmp_path / 'stage2' / 'controls.json').read_text()))
  assert json.loads((tmp_path / 'controls.json').read_text()) == {'stage2': inner}
  assert inner['format'] == interventions.CONTROLS_VERSION and inner['step'] == 7
  assert inner['set'] == 'test' and inner['num_blocks'] == 3
  assert inner['data_fingerprint'] == run_scores.fingerprint_set(task, DIGITS)
  assert not inner['controls']['direct']['given'] and 'attention' not in inner
  page = (tmp_path / 'report.html').read_text()  # written anew, with what was found
  assert 'what [should] come' in page and '<data value="0.125">' in page
  assert page.count('a readout was trained there') == 1
  assert page.count('trained to write a chain there') == 1
  assert out.getvalue().count('a readout was') == 1
  for text in ('25.0 / 50.0', "donor's 75.0 / 12.5", 'what [should] come', 'not given', 'no reason',
               'swapped block 1', '1 pairs; 2 more have equal answers'):
    assert text in out.getvalue(), text


@pytest.mark.parametrize('card, told', [
    ({'start': {'path': 'p', 'fingerprint': 's'}}, {'start': 's'}), ({'start': None},
                                                                    {'start': None}), ({}, {})])
def test_what_a_curriculum_began_with_is_its_first_stage_s_start(tmp_path, card, told):
  config = support.make_config('rim')
  assert modes._find_start(config, tmp_path) == {}
  for name, more in (('stage1', card), ('stage2', {'start': {'fingerprint': 'of stage 1'}})):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps({
        'format': 2, 'config': {}, 'data': {}, 'tokenizer': 't', 'base': None, **more}))
  assert modes._find_start(config, tmp_path) == told


@pytest.mark.parametrize('method, changes, fragment', [
    ('direct', {}, "method 'direct' has no blocks or thoughts"),
    ('cot', {'layout__answer_prefix': '+'}, "method 'cot' has no blocks"),
    ('pause', {'eval__num_blocks': 0}, 'leaves no block to change')])
def test_what_has_no_memory_is_refused(method, changes, fragment):
  with pytest.raises(UserError, match=fragment):
    interventions.check_method(support.make_config(method, **changes))
  for other in (support.make_config('pause'), make_thoughts('codi')):
    interventions.check_method(other)
