"""CODI against a computation by hand; its ends are known methods; decoding is training."""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.config import MeshConfig
from rim_jax.methods import coconut, codi
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import optim
from rim_jax.training import step as step_lib
from tests import support

# Rows of three examples and of two, T = 0 and T = 1 among them: chains that teach without a step.
ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
LIMITS = batch_lib.RowLimits(3)
NETWORKS = {
    'plain': {},
    'learned': {'model__norm': 'layernorm', 'model__bias': 'all', 'model__fused_qkv': True,
                'model__attention_tile_tokens': 16},
    'rope': {'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__activation': 'swiglu'},
}
NETWORKS['adapters'] = {**NETWORKS['rope'], 'model__lora__rank': 2, 'model__remat': 'full'}
LENGTH = 32  # of a sequence by hand, padded


def make_config(num_thoughts=2, network='rope', **more):
  return support.make_config('codi', **{
      'layout__num_blocks': int(num_thoughts > 0), 'layout__block_tokens': max(num_thoughts, 1),
      'layout__row_tokens': 96, 'layout__answer_prefix': '+-', **NETWORKS[network], **more})


def make_batch(config, rows=ROWS):
  return jax.tree.map(jnp.asarray, support.make_batch(config, rows))


def compute_loss(model, config, batch):
  return step_lib.compute_loss(model, batch, 0, 10, 4, config, None, LIMITS)


# ---- Its forward ----


def read_by_hand(model, ids, at, num_thoughts):
  """States [l, t, d] of one padded sequence: no batch, no cache; a whole forward for a thought.

  After the forward of [x, <b>] its projected last hidden state is the next input, and so on.
  """
  t = ids.shape[0]
  place, mask = jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool))
  inputs = model.embed(ids[None])
  for j in range(num_thoughts):
    x, _ = model(None, place, mask, inputs_btd=inputs)
    thought = model.added.projection(x[:, at + j])
    inputs = inputs.at[:, at + 1 + j].set(thought)
  states = [model(None, place, mask, inputs_btd=inputs, num_layers=n)[0][0]
            for n in range(1, model.config.num_layers)]
  return jnp.stack([*states, model(None, place, mask, inputs_btd=inputs)[0][0]])


def lay_out_by_hand(config, record):
  """Two plain sequences of a record, from its text: (ids, given tokens, targets, mark)."""
  codec = support.make_codec(config)
  begin, encode = codec.memory_start, codec.tokenizer.encode
  question, prefix = encode(record.question), encode(config.layout.answer_prefix)
  says = [*encode(record.answer), codec.tokenizer.eos_id]
  chain = [*encode(''.join(f'{s}\n' for s in record.steps[:-1])), *prefix]
  trunk = [*question, begin, *[begin + 1] * config.layout.block_tokens, begin + 2]
  given = len(trunk) + len(prefix) * (not config.layout.supervise_prefix)
  text = [*trunk, *prefix, *says]
  return question, (
      ([*question, *chain, *says[:-1]], len(question), [*chain, *says], len(chain)),
      (text[:-1], given, text[given:], len(trunk) + len(prefix) - given))


@pytest.mark.parametrize('network, reduction, supervise_prefix', [
    ('rope', 'readout', False), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('adapters', 'readout', False), ('learned', 'token', False), ('rope', 'token', True)))])
def test_the_loss_is_that_of_sequences_read_alone_by_hand(network, reduction, supervise_prefix):
  """Both readouts' losses, the distance of their states after each layer, and all gradients."""
  config = make_config(2, network, curriculum__reduction=reduction, distill__weight=0.7,
                       distill__teacher_weight=0.4, layout__supervise_prefix=supervise_prefix)
  batch = make_batch(config)
  graphdef, params = nnx.split(support.make_model(config, seed=3))

  @jax.jit
  def packed(params):
    def compute(params):
      total, sums = compute_loss(nnx.merge(graphdef, params), config, batch)
      return total / sums['norm'], sums
    return jax.value_and_grad(compute, has_aux=True)(params)
  sequences = [lay_out_by_hand(config, record) for row in ROWS for record in row]
  (loss, sums), grads = packed(params)
  assert sums['norm'] == len(sequences)
  counts = [sum(len(s[which][2]) for _, s in sequences) for which in (0, 1)]

  # One program for all: slots and targets are padded, too.
  @jax.jit
  def alone(params, question, ids, slots, targets, marks):
    def compute(params):
      model = nnx.merge(graphdef, params)
      states, losses = [], []
      for which in (0, 1):
        found = read_by_hand(model, ids[which], question, 2 * which)
        there = targets[which] >= 0
        nll = loss_lib.compute_slot_nll(
            model.compute_logits(found[-1, slots[which]])[None], targets[which][None])[0]
        nll = jnp.where(there, nll, 0).sum()
        losses.append(nll / (there.sum() if reduction == 'readout' else counts[which]
                             / len(sequences)))
        states.append(found[:, slots[which, marks[which]]])
      teacher, student = states
      teacher = jax.lax.stop_gradient(teacher)
      u = jnp.abs(student - teacher)
      huber = jnp.where(u < 1, u**2 / 2, u - 0.5).mean(1) / jnp.std(teacher, 1, ddof=1)
      return 0.4 * losses[0] + losses[1] + 0.7 * huber.mean(), jnp.stack([*losses, huber.mean()])
    return jax.value_and_grad(compute, has_aux=True)(params)
  expected, parts, total = 0.0, 0.0, None
  for question, both in sequences:
    ids = np.zeros((2, LENGTH), np.int32)
    slots, targets, marks = np.zeros((2, LENGTH), int), np.full((2, LENGTH), -1), [0, 0]
    for which, (tokens, given, says, mark) in enumerate(both):
      ids[which, :len(tokens)] = tokens
      slots[which, :len(says)] = given - 1 + np.arange(len(says))
      targets[which, :len(says)], marks[which] = says, mark
    (value, part), gradient = alone(params, len(question), ids, slots, targets, np.asarray(marks))
    expected, parts = expected + value / len(sequences), parts + part / len(sequences)
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  told = [sums['added'][name] / len(sequences) for name in ('teacher', 'answer', 'distilled')]
  np.testing.assert_allclose(told, parts * jnp.asarray([0.4, 1, 0.7]), rtol=1e-5)
  flat, by_hand = (dict(nnx.to_flat_state(g)) for g in (grads, total))
  for path, gradient in flat.items():
    # Sums of more terms than logits have, in another order, over deviations far below 1.
    support.assert_close(gradient.get_value(), by_hand[path].get_value() / len(sequences), 1e-4)
  assert np.abs(flat['added', 'projection', 'first', 'kernel'].get_value()).max() > 0


def test_the_projection_by_hand():
  config = make_config()
  model = support.make_model(config)
  first, second = (jax.tree.map(np.asarray, (d.kernel[...], d.bias[...])) for d in (
      model.added.projection.first, model.added.projection.second))
  x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
  u = x @ first[0] + first[1]
  erf = np.vectorize(math.erf)
  y = (u * (1 + erf(u / 2**0.5)) / 2) @ second[0] + second[1]
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
  y = y * np.asarray(model.added.projection.scale[...]) + np.asarray(
      model.added.projection.bias[...])
  np.testing.assert_allclose(model.added.projection(jnp.asarray(x)), y, rtol=1e-4, atol=1e-5)
  fresh = codi.Added(config, jax.random.key(0)).projection
  for dense in (fresh.first, fresh.second):
    for values in (dense.kernel[...], dense.bias[...]):
      assert 0.2 < np.abs(values).max() <= 16**-0.5 and np.min(values) < 0 < np.max(values)
  mask = optim.make_decay_mask(nnx.to_pure_dict(nnx.state(fresh)))
  assert mask == {'first': {'kernel': True, 'bias': False}, 'scale': False, 'bias': False,
                  'second': {'kernel': True, 'bias': False}}


# ---- Its ends ----


def find_slots(batch, kind):
  return np.nonzero(np.asarray(batch.slot_kind) == kind)


def test_without_thoughts_the_student_is_direct_and_the_teacher_cot():
  """The chain, which lacks its last step, bit for bit; the answer, which stands behind it in the
  row and so is summed in another order, to rounding."""
  config = make_config(0, 'learned', distill__weight=0.0, model__attention_tile_tokens=0)
  model = support.make_model(config)
  for record in support.RECORDS:
    cut = dataclasses.replace(record, steps=record.steps[:-1])
    batch = make_batch(config, [[record]])
    logits, _ = codi.CODI.forward(model, batch, config, LIMITS)
    for kind, method, other, compare in (
        (batch_lib.SLOT_TEACHER, 'cot', cut, np.testing.assert_array_equal),
        (batch_lib.SLOT_ANSWER, 'direct', record, lambda a, b: support.assert_close(a, b, 1e-6))):
      alone = dataclasses.replace(config, method=method)
      their = make_batch(alone, [[other]])
      used, theirs = find_slots(batch, kind), find_slots(their, batch_lib.SLOT_ANSWER)
      np.testing.assert_array_equal(batch.slot_target[used], their.slot_target[theirs])
      compare(logits[used], model.compute_slot_logits(their, config.layout)[theirs])


def test_without_projection_distance_and_teacher_it_is_coconut_s_last_stage():
  config = make_config(2, 'plain', codi__projection=False, distill__weight=0.0,
                       distill__teacher_weight=0.0)
  other = dataclasses.replace(config, method='coconut_stage',
                              layout=dataclasses.replace(config.layout, skip_steps=-1))
  graphdef, params = nnx.split(support.make_model(config))

  def compute(config):
    batch = make_batch(config)

    def loss(params):
      total, sums = compute_loss(nnx.merge(graphdef, params), config, batch)
      return total / sums['norm']
    return jax.jit(jax.value_and_grad(loss))(params)
  (loss, grads), (expected, by_coconut) = compute(config), compute(other)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  jax.tree.map(lambda a, b: support.assert_close(a, b, 4e-5), grads, by_coconut)
  assert coconut.COCONUT_STAGE.inputs is codi.CODI.inputs


# ---- Its losses ----


def test_no_gradient_of_the_distance_reaches_what_the_teacher_alone_reads():
  config = make_config()
  model, batch = support.make_model(config), make_batch(config)
  embed = type(model).embed

  def compute(added_btd):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(type(model), 'embed', lambda self, tokens: embed(self, tokens) + added_btd)
      return codi.CODI.forward(model, batch, config, LIMITS)[1]['distilled']
  moved = jax.jit(jax.grad(compute))(jnp.zeros((*batch.tokens.shape, config.model.embed_dim)))
  reached, used = np.abs(moved).max(-1) > 0, np.asarray(batch.example) > 0
  thoughts = np.asarray(batch.tokens) == model.vocab_size + 1
  trunk = used & (np.asarray(batch.readout) == 0)
  assert reached[trunk & ~thoughts].all() and not reached[thoughts].any()
  assert not reached[np.asarray(batch.readout) == 1].any()
  assert (reached & (np.asarray(batch.readout) == 2)).any()


@pytest.mark.parametrize('reduction', [
    'token', pytest.param('readout', marks=pytest.mark.slow)])
def test_updates_of_micro_batches_of_one_and_three_examples_are_those_of_four(reduction):
  """Its two means are over the whole update, whatever is in which part."""
  found, mesh = [], sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  whole = make_config(1, 'plain', train__batch_rows=2, optim__eps=1.0,
                      curriculum__reduction=reduction, optim__clip_norm=1e9)
  program = step_lib.make_program(whole, support.make_codec(whole).memory_start, 10, mesh)
  with jax.set_mesh(mesh):
    first, frozen = program.init(jax.random.key(0))
  for num_micro in (1, 2):
    config = support.set_key(whole, 'train.num_micro_batches', num_micro)
    step = step_lib.make_train_step(program, config, 10, 4, mesh, limits=LIMITS)
    batch = sharding.place_batch(support.make_batch(
        config, [support.RECORDS[3:4], [*support.RECORDS[:2], support.RECORDS[4]]]), mesh)
    with jax.set_mesh(mesh):  # a step takes its state's memory
      state, metrics = step(jax.tree.map(jnp.copy, first), frozen, batch)
    assert metrics['norm'] == 4
    found.append(jax.device_get((state.params, metrics['loss'], metrics['added'])))
  jax.tree.map(support.assert_close, *found)


# ---- What cannot be ----


@pytest.mark.parametrize('changes, told', [
    ({'layout.bidirectional_blocks': True}, 'one after the other'),
    ({'layout.num_blocks': 2}, 'codi has one block'),
    ({'layout.num_blocks': 0, 'layout.answer_prefix': ''}, 'the first step and for the answer'),
    ({'eval.num_blocks': 1}, 'use -1 or 0')])
def test_what_cannot_be_is_told_in_one_line(changes, told):
  support.assert_one_problem(make_config(), changes, told)


def test_an_export_is_refused():
  support.assert_export_refused(make_config())
