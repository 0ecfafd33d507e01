"""A method added as the tutorial says: all that others promise of methods holds for it too."""

import dataclasses
import json
import pathlib
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rim_jax import config as config_lib
from rim_jax import methods, reader, train
from rim_jax.config import MeshConfig
from rim_jax.config import methods as facts_lib
from rim_jax.errors import Stopped, UserError
from rim_jax.evaluation import attention_weights
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.pretrained import export, families, weights
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import state as state_lib
from rim_jax.training import step as step_lib
from tests import support
from tests.methods import toy

ROWS = [support.RECORDS[:2], support.RECORDS[2:4]]
GPT2 = pathlib.Path(__file__).parents[1] / 'golden/gpt2'
LIMITS = batch_lib.RowLimits(examples=3)
LENGTH = 32  # of a sequence by hand, padded
ROPE = {'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__attention_tile_tokens': 16}


def register(patch, facts, method):
  patch.setitem(facts_lib.FACTS, facts.name, facts)
  patch.setitem(methods.METHODS, facts.name, method)
  for types in (config_lib.list_types(config_lib.Config), reader._get_types(config_lib.Config)):
    patch.setitem(types, 'method', typing.Literal[tuple(facts_lib.FACTS)])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  register(monkeypatch, toy.FACTS, toy.TOY)


def make_config(method='toy', **changes):
  return support.make_config(method, **{'layout__row_tokens': 96, **changes})


def compute_loss(params, graphdef, config, batch):
  return step_lib.compute_loss(nnx.merge(graphdef, params), batch, 0, 10, 4, config, None, LIMITS)


def make_state(config):
  """(graphdef, parameters, a batch on the device)."""
  return (*nnx.split(support.make_model(config)),
          jax.tree.map(jnp.asarray, support.make_batch(config, ROWS)))


# ---- Its layout ----


def test_a_pair_joins_the_states_that_predict_the_answer_s_first_token():
  config = make_config(layout__answer_prefix='+')
  batch = support.make_batch(config, ROWS)
  assert (batch.slot_pair >= 0).sum() == 4
  for row, slot in zip(*np.nonzero(batch.slot_pair >= 0)):
    pair = batch.slot_pair[row, slot]
    other = np.flatnonzero(batch.slot_index[row] == pair)
    assert batch.slot_block[row, slot] == 3 and batch.slot_block[row, other].tolist() == [0]
    assert batch.slot_target[row, other].tolist() == [batch.slot_target[row, slot]]
    assert batch.example[row, pair] == batch.example[row, batch.slot_index[row, slot]]
  assert (support.make_batch(make_config('rim_stage2'), ROWS).slot_pair == -1).all()


# ---- Its forward ----


NETWORKS = [pytest.param({}, marks=pytest.mark.slow), ROPE]


@pytest.mark.slow
@pytest.mark.parametrize('network', NETWORKS)
def test_packed_rows_equal_sequences_read_alone_by_hand(network):
  """Two whole causal forwards a sequence, no batch; logits of both readouts, and the distance."""
  config = make_config(**network)
  codec, model = support.make_codec(config), support.make_model(config)
  logits, added = jax.jit(lambda batch: toy.TOY.forward(model, batch, config, LIMITS))(
      support.make_batch(config, ROWS))
  scale = model.added.scale[...]
  assert np.abs(scale).min() > 0

  @jax.jit
  def read_ids(ids, t):
    """States of a sequence of t ids, padded: after each layer, and the final norm."""
    place, mask = jnp.arange(LENGTH)[None], jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    first, _ = model(ids[None], place, mask)
    fed = ((ids >= model.vocab_size) & (jnp.arange(LENGTH) < t))[None, :, None]
    inputs = model.embed(ids[None]) + jnp.where(fed, scale[None, None] * first, 0)
    states = [model(None, place, mask, inputs_btd=inputs, num_layers=n)[0][0]
              for n in range(1, config.model.num_layers)]
    return jnp.stack([*states, model(None, place, mask, inputs_btd=inputs)[0][0]])

  def read_alone(trunk, readout):
    """States [l, t, d] where readout's targets are predicted."""
    ids = [*trunk, *readout.prefix, *readout.target[:-1]]
    states = read_ids(jnp.asarray(ids + [0] * (LENGTH - len(ids))), len(ids))
    return states[:, len(ids) - len(readout.target):len(ids)]

  distances, batch = [], support.make_batch(config, ROWS)
  for r, records in enumerate(ROWS):
    slot = 0
    for record in records:
      example, marked = codec.lay_out(codec.encode(record)), []
      for readout in example.readouts:
        trunk = layout_lib.make_trunk(example.question, readout.block, config.layout,
                                       codec.memory_start)
        states = read_alone(trunk, readout)
        count = len(readout.target)
        support.assert_close(logits[r, slot:slot + count], model.compute_logits(states[-1]))
        slot += count
        marked.append(states[:, readout.mark])
      distances.append(np.abs(marked[1] - marked[0]).mean())
    assert slot == (batch.slot_kind[r] > 0).sum()
  np.testing.assert_allclose(added['distance'], sum(distances), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('network', NETWORKS)
def test_decoding_s_logits_are_those_of_the_training_forward(network, monkeypatch):
  config = make_config(layout__answer_prefix='+', **network)
  codec = support.make_codec(config)
  model, decoder = support.make_decoder(config)
  questions = [codec.encode(r).question for r in support.RECORDS[:2]]
  blocks, prefix, count = (3,), codec.template.answer_prefix, config.eval.max_new_tokens
  ids, seen = support.decode_and_record(decoder, questions, 3, prefix, blocks, monkeypatch)
  rows = [[layout_lib.Example(question, 3, 1, (
      layout_lib.Readout(3, 2, prefix, ids[i, 0].tolist()),))]
          for i, question in enumerate(questions)]
  batch = rows_lib.make_rows(rows, 96, count, config.layout, codec.memory_start)
  trained, _ = toy.TOY.forward(model, jax.tree.map(jnp.asarray, batch), config)
  support.assert_decoded_logits(ids, seen, np.asarray(trained).reshape(2, 1, count, -1),
                                codec.tokenizer.eos_id)


def spell(host: methods.Method) -> methods.Method:
  """A modifier: any method, and a readout of the answer that sees itself alone."""
  def lay_out(encoded, template, config):
    example = host.layout(encoded, template, config)
    readout = dataclasses.replace(layout_lib.read_answer(encoded, template, -1), prefix=[1, 2])
    return dataclasses.replace(example, readouts=(*example.readouts, readout))

  def weigh(batch, *args):
    return jnp.where(batch.slot_block < 0, 0.5, host.weight(batch, *args))
  return dataclasses.replace(host, layout=lay_out, weight=weigh)


@pytest.mark.slow
@pytest.mark.parametrize('hidden', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_readout_may_see_nothing_but_itself(hidden, monkeypatch):
  """Its logits are those of its ids alone; the other readouts' are as they were."""
  config = make_config(layout__readout_sees_question=not hidden)
  model, rows = support.make_model(config), [support.RECORDS[3:]]
  plain = support.make_batch(config, rows)
  register(monkeypatch, toy.FACTS, spell(toy.TOY))
  batch = support.make_batch(config, rows)
  assert dict(zip(*np.unique(batch.slot_block, return_counts=True)))[-1] == 2 + 3
  found, before = (toy.TOY.forward(model, jax.tree.map(jnp.asarray, b), config, LIMITS)[0][0]
                   for b in (batch, plain))
  support.assert_close(found[(batch.slot_kind > 0)[0] & (batch.slot_block >= 0)[0]],
                       before[(plain.slot_kind > 0)[0]])
  codec, others = support.make_codec(config), np.flatnonzero(batch.slot_block[0] < 0)
  ids = jnp.asarray([[1, 2, *codec.encode(support.RECORDS[4]).answer]])
  t = ids.shape[1]
  x, _ = model(ids, jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)))
  support.assert_close(found[others[2:]], model.compute_logits(x[0, 1:]))


@pytest.mark.slow
def test_blocks_are_counted_without_readouts_that_see_none(monkeypatch):
  config = make_config()
  graphdef, params, plain = make_state(config)
  _, before = compute_loss(params, graphdef, config, plain)
  register(monkeypatch, toy.FACTS, spell(toy.TOY))
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS))
  _, sums = compute_loss(params, graphdef, config, batch)
  np.testing.assert_allclose(sums['block_count'], before['block_count'], rtol=1e-6)
  np.testing.assert_allclose(sums['block_nll'], before['block_nll'], rtol=1e-5)


@pytest.mark.slow
def test_attention_is_shown_of_the_last_pass():
  """What a map shows moves with the gate, and is the plain one where that is closed."""
  config = make_config()
  model, codec = support.make_model(config), support.make_codec(config)
  rows = attention_weights.make_rows([codec.encode(r).question for r in support.RECORDS[:2]], 3, 2,
                                     config, codec)
  other = support.make_config('pause', layout__row_tokens=96)

  def compute(config):
    return np.asarray(attention_weights.compute_weights(model, config, rows))
  assert np.abs(compute(config) - compute(other)).max() > 1e-3
  model.added.scale[...] = jnp.zeros_like(model.added.scale[...])
  support.assert_close(compute(config), compute(other))


# ---- Its loss ----


@pytest.mark.slow
def test_what_is_added_is_in_the_loss_and_the_norm_is_its_own(monkeypatch):
  config = make_config()
  graphdef, params, batch = make_state(config)
  total, sums = compute_loss(params, graphdef, config, batch)
  register(monkeypatch, toy.FACTS, dataclasses.replace(toy.TOY, losses=None))
  alone, others = compute_loss(params, graphdef, config, batch)
  assert sums['added']['distance'] > 0.1 and others['added'] == {}
  np.testing.assert_allclose(total, alone + sums['added']['distance'], rtol=1e-6)
  assert sums['norm'] == 4  # examples, where weights add up to two readouts of each


def test_gradients_reach_the_gate_and_the_student_and_not_the_teacher():
  config = make_config(layout__answer_prefix='+')
  graphdef, params, batch = make_state(config)

  def compute_distance(params, added_btd):
    model = nnx.merge(graphdef, params)
    embed = type(model).embed
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(type(model), 'embed', lambda self, tokens: embed(self, tokens) + added_btd)
      return toy.TOY.forward(model, batch, config, LIMITS)[1]['distance']
  zeros = jnp.zeros((*batch.tokens.shape, config.model.embed_dim))
  grads, moved = jax.jit(jax.grad(compute_distance, (0, 1)))(params, zeros)
  assert np.abs(grads['added']['scale'].get_value()).min() > 0
  reached = np.abs(moved).max(-1) > 0
  used = batch.example > 0
  assert reached[used & (batch.readout == 0)].all()  # the student sees the whole trunk
  assert not reached[batch.readout == 1].any()  # what the teacher alone sees: the written chain
  assert (reached & (batch.readout == 2)).any()  # its own prefix


def test_sums_of_unequal_micro_batches_add_up_to_the_whole():
  """Of one example and of three: losses, what is added, the norm."""
  config = make_config()
  graphdef, params = nnx.split(support.make_model(config))
  rows = [support.RECORDS[:1], support.RECORDS[1:4]]
  compute = jax.jit(lambda batch: compute_loss(params, graphdef, config, batch))
  whole, *parts = (jax.device_get(compute(support.make_batch(config, r)))
                   for r in (rows, rows[:1], rows[1:]))
  jax.tree.map(lambda x, *y: support.assert_close(sum(y), x), whole, *parts)
  assert parts[0][1]['norm'] == 1 and parts[1][1]['norm'] == 3


# ---- A run ----


@pytest.mark.parametrize('trainable', ['all', 'memory', 'lora'])
def test_its_parameter_trains_with_every_set(trainable):
  config = make_config(optim__trainable=trainable, model__lora__rank=2 * (trainable == 'lora'))
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
  state, frozen = program.abstract
  assert 'added' in state.params and 'added' not in frozen
  assert 'added' not in program.base  # a pretrained model has not got it


def test_it_trains_goes_on_and_is_evaluated(tmp_path, use_devices):
  use_devices(1)
  config = make_config(data__cache_dir=str(tmp_path / 'cache'), data__chain__num_valid=4,
                       data__chain__num_test=4, train__num_micro_batches=2)
  half = support.set_keys(config, {'checkpoint.stop_frac': 0.5})
  with pytest.raises(Stopped):
    train.train(half, tmp_path / 'run', say=lambda line: None)
  results = train.train(config, tmp_path / 'run', say=lambda line: None)
  assert results['test'].num_blocks == 3 and results['test'].method == 'toy'
  lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').open()]
  told = [line['train/added_distance'] for line in lines if 'train/loss' in line]
  assert len(told) > 3 and min(told) > 0
  kept = checkpoint_lib.choose_checkpoint(tmp_path / 'run', 'last').card['params']
  assert any('added' in name and 'scale' in name for name in kept)
  task = train.make_task(config, lambda line: None)
  network, _ = state_lib.load_network(task, tmp_path / 'run', 'last')
  assert np.abs(network.params['added']['scale']).min() > 0  # it began with zeros


@pytest.mark.slow
def test_a_run_without_its_parameter_can_be_started_from(tmp_path, use_devices):
  use_devices(1)
  settings = {'data__cache_dir': str(tmp_path / 'cache'), 'data__chain__num_valid': 4,
              'data__chain__num_test': 4, 'train__num_examples': 8}
  train.train(make_config('pause', **settings), tmp_path / 'pause', say=lambda line: None)
  task = train.make_task(make_config(**settings), lambda line: None)
  program = step_lib.make_program(task.config, task.vocab_size, 10, task.mesh)
  state, _ = state_lib.initialize(task, program, tmp_path / 'pause', lambda line: None)
  theirs, _ = state_lib.load_network(
      train.make_task(make_config('pause', **settings), lambda line: None), tmp_path / 'pause',
      'last')
  assert not np.abs(state.params.pop('added')['scale']).any()
  jax.tree.map(np.testing.assert_array_equal, state.params, theirs.params)


def test_an_export_leaves_its_parameter_out_and_one_that_feeds_back_is_refused(tmp_path):
  config = families.resolve(config_lib.Config(
      method='toy', train=config_lib.TrainConfig(num_examples=8),
      model=config_lib.ModelConfig(init_from=str(GPT2), frozen_dtype='float32'),
      optim=config_lib.OptimConfig(trainable='memory')))
  config = support.set_keys(config, {'layout.separator': '', 'export.untie': False})
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, config.model.vocab_size, 1, mesh)
  base = weights.open_base(config.model.init_from)
  state, frozen = program.init(jax.random.key(0), weights.load_params(base, program.base))
  assert set(state.params) == {'memory', 'added'}
  codec = support.make_codec(config)
  network = Network(program.graphdef, state.params, frozen, config, codec, mesh)
  export.write_export(tmp_path / 'out', network, export.Origin(base, 'runs/it', 7),
                      [support.RECORDS[0]], say=lambda line: None)
  names = [set(safetensors.numpy.load_file(folder / 'model.safetensors'))
           for folder in (GPT2, tmp_path / 'out')]
  assert names[0] == names[1]
  with pytest.raises(UserError, match='feeds hidden states back'):
    export.check_exportable(config, base, 'run')


def test_every_method_has_its_facts_and_a_prefill_of_its_own_feeds_back():
  assert set(methods.METHODS) == {
      name for name, facts in facts_lib.FACTS.items() if not facts.make_stages}
  for name, method in methods.METHODS.items():
    assert bool(method.inputs or method.prefill) == facts_lib.FACTS[name].feeds_back, name
