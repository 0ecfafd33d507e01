"""Thoughts that spell their steps: against forwards of their own; without weight, the host."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.methods import coconut, sim_cot
from rim_jax.model import sharding, transformer
from rim_jax.packing import batch as batch_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib
from tests import support

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
LIMITS = batch_lib.RowLimits(3)
NETWORK = {'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__attention_tile_tokens': 16}
HOSTS = [pytest.param('coconut_stage', marks=pytest.mark.slow), 'codi']


def make_config(method='coconut_stage', num_thoughts=2, **more):
  return support.make_config(method, **{
      'layout__num_blocks': int(num_thoughts > 0), 'layout__block_tokens': max(num_thoughts, 1),
      'layout__skip_steps': -1, 'layout__row_tokens': 112, 'layout__answer_prefix': '+-',
      'aux__decoder': 'shared', **NETWORK, **more})


def make_batch(config, rows=ROWS):
  return jax.tree.map(jnp.asarray, support.make_batch(config, rows, row_slots=64))


def compute_loss(model, config, batch):
  return step_lib.compute_loss(model, batch, 0, 10, 4, config, None, LIMITS)


# ---- What is spelled ----


def list_spelled(config, record):
  """What each group of a record spells, as text."""
  codec = support.make_codec(config)
  example = codec.lay_out(codec.encode(record))
  readouts = [r for r in example.readouts if r.kind == batch_lib.SLOT_DECODED]
  assert all(r.block == -1 and r.num_latents == config.aux.group_tokens
             and r.target[-1] == codec.tokenizer.eos_id for r in readouts)
  assert readouts == list(example.readouts[len(example.readouts) - len(readouts):])
  return [codec.tokenizer.decode(r.target[:-1]) for r in readouts]


@pytest.mark.parametrize('changes, said', [
    ({}, ['2', '3\n4']), ({'num_thoughts': 3}, ['2', '3', '4']),
    ({'num_thoughts': 5}, ['2', '3', '4']), ({'num_thoughts': 0}, []),
    ({'num_thoughts': 5, 'aux__answer_fills': True}, ['2', '3', '4', '+-4', '+-4']),
    ({'num_thoughts': 4, 'aux__group_tokens': 2}, ['2', '3\n4']),
    ({'layout__skip_steps': 2}, ['2', '3']),  # the third one is written by the host
    ({'method': 'codi', 'aux__last_step': False, 'num_thoughts': 1}, ['2\n3'])])
def test_a_group_spells_its_step_and_the_last_one_all_that_are_left(changes, said):
  assert list_spelled(make_config(**changes), support.RECORDS[3]) == said


def test_a_record_without_steps_spells_nothing():
  assert list_spelled(make_config(), support.RECORDS[1]) == []


# ---- Its forward ----


@pytest.mark.parametrize('method, size', [
    pytest.param('coconut_stage', 2, marks=pytest.mark.slow), ('codi', 1)])
def test_what_is_spelled_is_read_from_its_own_thoughts_alone(method, size):
  """Logits are those of a forward of [thoughts of the group, step]; the loss is their mean."""
  config = make_config(method, 2 * size, aux__group_tokens=size, aux__weight=0.3)
  model, batch = support.make_model(config), make_batch(config)
  found, _ = methods.get_method(config).forward(model, batch, config, LIMITS)
  inputs = methods.METHODS[method].feed(
      model, batch.tokens, batch_lib.get_fields(batch), config, LIMITS)
  codec, means, length = support.make_codec(config), [], 16

  @jax.jit
  def read(thoughts, ids):  # padded, and causal
    inputs = jnp.concatenate([thoughts, model.embed(ids[None])[0]])[None]
    t = inputs.shape[1]
    x, _ = model(None, jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)),
                 inputs_btd=inputs)
    return model.compute_logits(x[0, size - 1:])
  for r, records in enumerate(ROWS):
    slots = iter(np.flatnonzero(batch.slot_kind[r] == batch_lib.SLOT_DECODED))
    begins = np.flatnonzero(batch.tokens[r] == model.vocab_size)
    for at, record in zip(begins, records, strict=True):
      for k, text in enumerate(list_spelled(config, record)):
        ids = codec.tokenizer.encode(text)
        thoughts = inputs[r, at + 1 + k * size:at + 1 + (k + 1) * size]
        logits = read(thoughts, jnp.asarray([*ids, *[0] * (length - len(ids))]))[:len(ids) + 1]
        mine = [next(slots) for _ in range(len(ids) + 1)]
        support.assert_close(found[r, jnp.asarray(mine)], logits)
        target = jnp.asarray([[*ids, codec.tokenizer.eos_id]])
        np.testing.assert_array_equal(batch.slot_target[r, jnp.asarray(mine)], target[0])
        means.append(loss_lib.compute_slot_nll(logits[None], target).mean())
    assert not list(slots)
  assert len(means) == 2 + 0 + 1 + 2 + 2  # by steps: never more than there are groups
  total, sums = compute_loss(model, config, batch)
  told = sums['added']['decoded']
  np.testing.assert_allclose(told / sums['norm'], 0.3 * np.mean(means), rtol=1e-5)
  plain = support.set_key(config, 'aux.decoder', 'none')
  before, others = compute_loss(model, plain, make_batch(plain))
  np.testing.assert_allclose(total, before + told, rtol=1e-5)  # it is really in the loss
  np.testing.assert_allclose([sums['norm'], others['norm']], 5, rtol=1e-6)


@pytest.mark.slow
def test_with_thoughts_held_fixed_a_step_s_gradient_reaches_its_own_alone():
  config = make_config(num_thoughts=3)
  model, batch = support.make_model(config), make_batch(config, [support.RECORDS[3:4]])
  host, fields = coconut.COCONUT_STAGE, batch_lib.get_fields(batch)
  inputs = host.feed(model, batch.tokens, fields, config, LIMITS)
  begin = int(np.flatnonzero(batch.tokens[0] == model.vocab_size)[0])

  def compute(inputs, block):
    held = dataclasses.replace(host, inputs=lambda *args: inputs)
    logits, _ = sim_cot.spell(held, config).forward(model, batch, config, LIMITS)
    nll = loss_lib.compute_slot_nll(logits, batch.slot_target)
    at = (batch.slot_kind == batch_lib.SLOT_DECODED) & (
        jnp.take_along_axis(batch.readout, batch.slot_index, 1) == block)
    return jnp.where(at, nll, 0.0).sum()
  gradient = jax.jit(jax.grad(compute))
  for k in range(3):
    flows = np.abs(gradient(inputs, 2 + k))[0].max(-1) > 0
    assert flows[begin + 1:begin + 4].tolist() == [i == k for i in range(3)]
    assert not flows[:begin + 1].any() and not flows[np.asarray(batch.readout[0]) == 1].any()


@pytest.mark.slow
@pytest.mark.parametrize('k', [1, 2])
def test_a_step_s_gradient_is_that_of_a_network_that_thinks_no_further(k):
  def find_gradient(num_thoughts):
    # Steps count one by one: also the last group says one step, and the host writes the others.
    config = make_config(num_thoughts=num_thoughts, layout__skip_steps=num_thoughts)
    model, batch = support.make_model(config), make_batch(config, [support.RECORDS[3:4]])

    def compute(model):
      logits, _ = methods.get_method(config).forward(model, batch, config, LIMITS)
      nll = loss_lib.compute_slot_nll(logits, batch.slot_target)
      of_slot = jnp.take_along_axis(batch.readout, batch.slot_index, 1)
      at = (batch.slot_kind == batch_lib.SLOT_DECODED) & (of_slot == 1 + k)
      return jnp.where(at, nll, 0.0).sum()
    return nnx.jit(nnx.value_and_grad(compute))(model)
  (loss, alone), (again, longer) = find_gradient(k), find_gradient(3)
  assert loss > 0
  jax.tree.map(support.assert_close, (again, longer), (loss, alone))


# ---- A decoder of its own ----


@pytest.mark.slow
@pytest.mark.parametrize('method', HOSTS)
def test_a_second_network_spells_and_nothing_else_is_its(method):
  """As a copy it gives the shared one's logits; changed, it moves what is spelled alone."""
  config = make_config(method, aux__decoder='copy', model__lora__rank=0)
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
  state, frozen = program.init(jax.random.key(0))
  batch = make_batch(config)
  spelled = np.asarray(batch.slot_kind) == batch_lib.SLOT_DECODED
  rest = (np.asarray(batch.slot_kind) > 0) & ~spelled

  def compute(config, params):
    model = transformer.merge_model(program.graphdef, params, frozen)
    return methods.get_method(config).forward(model, batch, config, LIMITS)[0]
  shared = support.set_key(config, 'aux.decoder', 'shared')
  before, copied = compute(shared, state.params), compute(config, state.params)
  support.assert_close(copied[spelled], before[spelled])
  decoder = jax.tree.map(lambda x: x + 0.1, state.params['added']['decoder'])
  changed = compute(config, state.params | {'added': state.params['added'] | {'decoder': decoder}})
  assert np.abs(changed[spelled] - copied[spelled]).max() > 1e-2
  np.testing.assert_array_equal(changed[rest], before[rest])


@pytest.mark.slow
def test_a_second_network_trains_with_adapters_and_begins_as_their_base():
  """All of it trains, in float32, beside a base that is frozen; the loss reaches both."""
  config = make_config('codi', aux__decoder='copy', model__lora__rank=2, optim__trainable='lora',
                       model__frozen_dtype='float32')
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
  state, frozen = program.init(jax.random.key(0))
  own = dict(state.params['added']['decoder'])
  assert set(state.params) == {'memory', 'added', 'blocks'} and 'adapter' not in str(own)
  np.testing.assert_array_equal(own.pop('memory'), state.params['memory'])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), own, frozen)
  batch = make_batch(config)

  def compute(params):
    return compute_loss(transformer.merge_model(program.graphdef, params, frozen), config, batch)[0]
  grads = jax.jit(jax.grad(compute))(state.params)
  assert np.abs(grads['added']['decoder']['blocks']['up']['kernel']).max() > 0
  plain = support.set_key(config, 'aux.weight', 0.0)
  held = jax.jit(jax.grad(lambda params: compute_loss(transformer.merge_model(
      program.graphdef, params, frozen), plain, batch)[0]))(state.params)
  assert not np.abs(held['added']['decoder']['blocks']['up']['kernel']).any()
  assert np.abs(grads['memory'][0] - held['memory'][0]).max() > 0  # through the thoughts


@pytest.mark.slow
@pytest.mark.parametrize('num_thoughts', [0, 2])
def test_a_second_network_decays_only_where_there_are_thoughts(num_thoughts):
  config = make_config(num_thoughts=num_thoughts, aux__decoder='copy', optim__weight_decay=0.1)
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
  state, _ = program.init(jax.random.key(0))
  change, _ = program.tx.update(
      jax.tree.map(jnp.zeros_like, state.params), state.opt_state, state.params)
  assert bool(change['added']['decoder']['embedding'].any()) == bool(num_thoughts)
  assert change['embedding'].any()


def test_a_decoder_begins_as_the_network_that_is_started_from():
  params = {'a': {'b': jnp.ones(2)}, 'added': {'gate': 1, 'decoder': {'a': {'b': jnp.zeros(2)},
                                                                      'c': jnp.zeros(3)}}}
  found = methods.begin_decoder(params, {'c': jnp.full(3, 2, jnp.bfloat16)})
  assert found['added']['decoder']['a']['b'].tolist() == [1, 1]
  assert found['added']['decoder']['c'].tolist() == [2, 2, 2]
  assert found['added']['decoder']['c'].dtype == jnp.float32 and found['added']['gate'] == 1
  assert methods.begin_decoder({'a': 1}) == {'a': 1}
  with pytest.raises(KeyError):
    methods.begin_decoder(params)


# ---- Its end, and what it leaves alone ----


@pytest.mark.parametrize('method', HOSTS)
def test_without_weight_it_is_the_host_bit_for_bit(method):
  """One example in a row, since others would stand elsewhere in it."""
  config = make_config(method, aux__weight=0.0, model__attention_tile_tokens=0)
  plain = support.set_key(config, 'aux.decoder', 'none')
  assert methods.get_method(plain) is methods.METHODS[method]
  graphdef, params = nnx.split(support.make_model(config))

  def compute(config):
    batch = make_batch(config, [support.RECORDS[3:4], support.RECORDS[4:]])

    def loss(params):  # not compiled as a whole: programs that differ round differently
      total, sums = compute_loss(nnx.merge(graphdef, params), config, batch)
      return total / sums['norm']
    return jax.value_and_grad(loss)(params)
  jax.tree.map(np.testing.assert_array_equal, compute(config), compute(plain))


@pytest.mark.slow
@pytest.mark.parametrize('method', HOSTS)
def test_answers_are_the_host_s(method):
  config = make_config(method)
  host = methods.METHODS[method]
  assert methods.get_method(config).prefill is host.prefill
  codec, answers = support.make_codec(config), []
  questions = [codec.encode(r).question for r in support.RECORDS[:2]]
  for c in (config, support.set_key(config, 'aux.decoder', 'none')):
    _, decoder = support.make_decoder(c)
    trunks = decoder.place(questions, 1, 2)
    answers.append((decoder.decode_texts(questions, 1, codec.template.answer_prefix, (1,))[0],
                    methods.get_method(c).feed(support.make_model(c), trunks.tokens,
                                               trunks.fields, c)))
  jax.tree.map(np.testing.assert_array_equal, *answers)


@pytest.mark.parametrize('method, changes, told', [
    ('codi', {'aux.group_tokens': 3}, 'does not divide the 2 thoughts'),
    ('rim_stage2', {'aux.decoder': 'shared'}, 'has no thoughts, found one by one, that'),
    ('pccot', {'aux.decoder': 'shared'}, 'has no thoughts, found one by one, that'),
    ('coconut', {'aux.decoder': 'shared'}, 'thoughts_per_step=2 thoughts that replace a step'),
    ('coconut_stage', {'aux.decoder': 'shared', 'layout.skip_steps': 2, 'layout.num_blocks': 1},
     'thoughts are not so many for each of the layout.skip_steps=2')])
def test_what_cannot_be_is_told_in_one_line(method, changes, told):
  config = make_config('codi') if method == 'codi' else support.make_config(method)
  support.assert_one_problem(config, changes, told)


def test_an_export_is_refused():
  support.assert_export_refused(make_config())
