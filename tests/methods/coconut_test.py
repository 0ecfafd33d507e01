"""Thoughts against a computation by hand; its ends are direct and CoT; decoding is training."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax.config import stages as stages_lib
from rim_jax.methods import coconut
from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import batch as batch_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib
from tests import support

# Rows of three examples and of two, T = 0 and fewer steps than are skipped among them.
ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
NETWORKS = {
    'learned': {'model__norm': 'layernorm', 'model__bias': 'all', 'model__fused_qkv': True,
                'model__attention_tile_tokens': 16},
    'rope': {'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__tie_embeddings': False,
             'model__activation': 'swiglu'},
}
NETWORKS['adapters'] = {**NETWORKS['rope'], 'model__lora__rank': 2, 'model__remat': 'full'}
LIMITS = batch_lib.RowLimits(examples=3)
LENGTH = 32  # of a sequence by hand, padded


def make_config(num_thoughts=2, skip_steps=1, network='learned', **more):
  return support.make_config('coconut_stage', **{
      'layout__num_blocks': int(num_thoughts > 0), 'layout__block_tokens': max(num_thoughts, 1),
      'layout__skip_steps': skip_steps, 'layout__row_tokens': 80, **NETWORKS[network], **more})


def compute_logits(*args):
  return coconut.COCONUT_STAGE.forward(*args)[0]


def list_sequences(config):
  """(ids, index of <b>, slots, targets) of every record as a plain sequence, from its text."""
  codec = support.make_codec(config)
  begin, num_thoughts = codec.memory_start, config.layout.block_tokens
  encode, eos = codec.tokenizer.encode, codec.tokenizer.eos_id
  prefix = encode(config.layout.answer_prefix)
  found = []
  for record in [r for row in ROWS for r in row]:
    question = encode(record.question)
    trunk = [*question, begin, *[begin + 1] * num_thoughts, begin + 2]
    if config.layout.skip_steps < 0:
      given, target = prefix, [*encode(record.answer), eos]
    else:
      steps = ''.join(f'{s}\n' for s in record.steps[config.layout.skip_steps:])
      given, target = [], [*encode(steps), *prefix, *encode(record.answer), eos]
    first = len(trunk) + len(given) - 1
    found.append(([*trunk, *given, *target[:-1]], len(question),
                  list(range(first, first + len(target))), target))
  return found


def by_hand(model, ids, at, num_thoughts):
  """Logits of one sequence, padded: no batch, no cache, no scan; a whole forward for each thought.

  After the forward of [x, <b>] its last hidden state is the next input, and so on.
  """
  t = len(ids)
  positions, mask = jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool))
  inputs = model.embed(ids[None])
  for j in range(num_thoughts):
    x, _ = model(None, positions, mask, inputs_btd=inputs)
    inputs = inputs.at[0, at + 1 + j].set(x[0, at + j])
  x, _ = model(None, positions, mask, inputs_btd=inputs)
  return model.compute_logits(x[0])


@pytest.mark.parametrize('network, num_thoughts, skip_steps, prefix, differentiate', [
    ('rope', 2, 2, '+-', False), *(pytest.param(*case, True, marks=pytest.mark.slow) for case in (
        ('adapters', 3, 2, '+-'), ('learned', 2, -1, '+-'), ('learned', 1, 1, '')))])
def test_thoughts_equal_those_by_hand(network, num_thoughts, skip_steps, prefix, differentiate):
  """Logits and gradients, of packed rows and of sequences alone.

  Gradients take most of the time to compile: by default CODI's alone, whose thoughts these are.
  """
  config = make_config(num_thoughts, skip_steps, network, layout__answer_prefix=prefix)
  batch = support.make_batch(config, ROWS)
  used = np.nonzero(batch.slot_kind)
  sequences = list_sequences(config)
  np.testing.assert_array_equal(batch.slot_target[used], np.concatenate([s[3] for s in sequences]))
  graphdef, params = nnx.split(support.make_model(config, seed=3))

  def make_program(compute):
    return (jax.value_and_grad(compute, has_aux=True) if differentiate else
            lambda params: (compute(params), {}))

  @jax.jit
  def packed(params):
    def compute(params):
      logits = compute_logits(nnx.merge(graphdef, params), jax.tree.map(
          jnp.asarray, batch), config, LIMITS)
      nll = loss_lib.compute_slot_nll(logits, jnp.asarray(batch.slot_target))
      return nll[used].sum(), logits[used]
    return make_program(compute)(params)

  @jax.jit
  def alone(params, ids, at, targets):
    """A target of -1 is none."""
    def compute(params):
      logits = by_hand(nnx.merge(graphdef, params), ids, at, num_thoughts)
      nll = loss_lib.compute_slot_nll(logits[None], targets[None])[0]
      return jnp.where(targets >= 0, nll, 0).sum(), logits
    return make_program(compute)(params)
  (_, logits), grads = packed(params)
  expected, total = [], None
  for ids, at, slots, targets in sequences:
    padded = np.full(LENGTH, -1)
    padded[slots] = targets
    (_, found), gradient = alone(params, np.pad(ids, (0, LENGTH - len(ids))), at, padded)
    expected.append(found[np.asarray(slots)])
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
  support.assert_close(logits, np.concatenate(expected))
  if not differentiate:
    return
  flat, flat_by_hand = (dict(nnx.to_flat_state(g)) for g in (grads, total))
  for path, gradient in flat.items():  # sums of more terms than logits, in another order
    support.assert_close(gradient.get_value(), flat_by_hand[path].get_value(), relative=4e-5)
  # A thought's own row is never an input: it does not train; those around it do.
  memory = np.abs(flat['memory',].get_value()).max(1)
  assert memory[0] > 0 == memory[1] and memory[2] > 0


@pytest.mark.parametrize('skip_steps, method', [(0, 'cot'), (-1, 'direct')])
@pytest.mark.parametrize('prefix', [pytest.param('', marks=pytest.mark.slow), '+-'])
def test_without_thoughts_the_first_stage_is_cot_and_the_last_is_direct(
    skip_steps, method, prefix):
  """Same batches, same losses."""
  config = make_config(0, skip_steps, layout__answer_prefix=prefix)
  other = dataclasses.replace(config, method=method)
  batch = support.make_batch(config, ROWS)
  jax.tree.map(np.testing.assert_array_equal, batch, support.make_batch(other, ROWS))
  model, batch = support.make_model(config), jax.tree.map(jnp.asarray, batch)
  losses = [step_lib.compute_loss(model, batch, 0, 10, 4, c, None, LIMITS)
            for c in (config, other)]
  jax.tree.map(np.testing.assert_array_equal, *losses)
  assert losses[0][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize('network', [
    'learned', pytest.param('adapters', marks=pytest.mark.slow)])
def test_gradient_flows_from_what_a_slot_sees_and_not_from_the_rows_of_thoughts(network):
  """No later token, no other example; through thoughts from the question and <b>."""
  config = make_config(3, 1, network)
  model = support.make_model(config)
  batch = support.make_batch(config, [support.RECORDS[2:]])
  fields = batch_lib.get_fields(batch)
  is_thought = batch.tokens[0] == model.vocab_size + 1
  mask = batch_lib.visible(fields, fields)[0] & ~is_thought
  batch = jax.tree.map(jnp.asarray, batch)
  real = transformer_lib.memory.look_up

  def loss(added_btd, weights):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(transformer_lib.memory, 'look_up', lambda *args: real(*args) + added_btd)
      logits = compute_logits(model, batch, config, LIMITS)
    nll = loss_lib.compute_slot_nll(logits, batch.slot_target)
    return loss_lib.compute_weighted_nll(nll, weights).sum()
  gradient = jax.jit(jax.grad(loss))
  zeros = jnp.zeros((*batch.tokens.shape, config.model.embed_dim))
  slots = np.flatnonzero(batch.slot_kind[0])
  assert len(slots) > 8 and is_thought.sum() == 9
  for slot in slots:
    weights = jnp.zeros(batch.slot_kind.shape).at[0, slot].set(1.0)
    flows = np.abs(np.asarray(gradient(zeros, weights)))[0].max(-1) > 0
    np.testing.assert_array_equal(flows, mask[batch.slot_index[0, slot]])


def test_the_step_s_loss_is_of_this_forward():
  config = make_config(2, 1, model__attention_tile_tokens=0)
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS))
  model = support.make_model(config)

  @jax.jit
  def compute(batch):
    logits = compute_logits(model, batch, config, LIMITS)
    nll = loss_lib.compute_slot_nll(logits, batch.slot_target) / jnp.maximum(batch.slot_tokens, 1)
    return (step_lib.compute_loss(model, batch, 0, 10, 4, config, None, LIMITS)[0],
            jnp.where(batch.slot_kind > 0, nll, 0).sum())
  loss, expected = compute(batch)
  assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_under_dropout_both_passes_read_the_question_alike():
  """In bfloat16: what is fed in as the first thought is what the second pass has at <b>, too."""
  config = make_config(1, 1, model__dropout=0.5, model__compute_dtype='bfloat16')
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS))
  model, seen = support.make_model(config), []
  real = transformer_lib.Transformer.__call__

  def call(self, *args, **kwargs):
    x, kv = real(self, *args, **kwargs)
    if not isinstance(x, jax.core.Tracer):
      seen.append((np.asarray(x.astype(jnp.float32)), kwargs.get('inputs_btd')))
    return x, kv
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(transformer_lib.Transformer, '__call__', call)
    compute_logits(model, batch, config, LIMITS, jax.random.key(0))
  (first, _), (second, inputs) = seen
  at = np.nonzero(batch.tokens == model.vocab_size)
  assert len(at[0]) == 5 and np.abs(first[at]).min(1).max() > 0
  np.testing.assert_allclose(first[at], second[at], rtol=0.05, atol=0.05)
  after = at[0], at[1] + 1
  np.testing.assert_array_equal(np.asarray(inputs.astype(jnp.float32))[after], first[at])


# ---- Decoding ----


@pytest.mark.slow
@pytest.mark.parametrize('network, skip_steps, prefix', [('rope', -1, '+-'), ('learned', 1, '')])
def test_decoding_s_logits_are_those_of_the_training_forward(
    network, skip_steps, prefix, monkeypatch):
  config = make_config(2, skip_steps, network, layout__answer_prefix=prefix)
  model, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS[:3]]
  ids, seen = support.decode_and_record(
      decoder, questions, 1, codec.template.answer_prefix, (1,), monkeypatch)
  count = config.eval.max_new_tokens
  batch = support.write_decoded_row(codec, config, questions, ids, 80)
  trained = np.asarray(compute_logits(
      model, batch, config, LIMITS)).reshape(3, 1, count, -1)
  support.assert_decoded_logits(ids, seen, trained, codec.tokenizer.eos_id)


def test_without_blocks_a_trained_stage_decodes_as_direct_does():
  config = make_config(2, -1)
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS]
  answers = []
  for c in (config, dataclasses.replace(config, method='direct')):
    _, decoder = support.make_decoder(c)
    answers.append(decoder.decode_texts(questions, 0, (), (0,))[0])
  assert answers[0] == answers[1]


# ---- Stages, and what cannot be ----


@pytest.mark.parametrize('budget', [{'num_examples': 1000}, {'num_epochs': 5.0}])
def test_stages_by_hand(budget):
  config = support.make_config('coconut', **{f'train__{k}': v for k, v in (
      {'num_examples': 0} | budget).items()}, coconut__num_stages=2,
                               coconut__thoughts_per_step=3, coconut__stage_frac=0.2)
  stages = stages_lib.make_stages(config)
  assert [(name, s.method, s.layout.num_blocks, s.layout.block_tokens, s.layout.skip_steps)
          for name, s in stages] == [
              ('stage0', 'coconut_stage', 0, 1, 0), ('stage1', 'coconut_stage', 1, 3, 1),
              ('stage2', 'coconut_stage', 1, 6, 2), ('stage3', 'coconut_stage', 1, 6, -1)]
  (key, total), = budget.items()
  assert [getattr(s.train, key) for _, s in stages] == pytest.approx(
      [0.2 * total, 0.2 * total, 0.2 * total, 0.4 * total])
  assert [s.eval_blocks for _, s in stages] == [0, 1, 1, 1]
  assert [s.writes_steps for _, s in stages] == [True, True, True, False]
  for _, stage in stages:
    assert config_lib.find_problems(stage) == []
    changed = {k for k, v in config_lib.flatten(stage).items()
               if v != config_lib.flatten(config)[k]}
    assert changed <= {'method', f'train.{key}', 'layout.num_blocks', 'layout.block_tokens',
                       'layout.skip_steps'}


@pytest.mark.parametrize('changes, told', [
    ({'layout.bidirectional_blocks': True}, 'one after the other'),
    ({'layout.num_blocks': 2}, 'has one block'),
    ({'layout.skip_steps': -2}, 'must be -1'),
    ({'eval.num_blocks': 1}, 'use -1 or 0'),
    ({'coconut.stage_frac': 0.25}, 'leave the last one nothing')])
def test_what_cannot_be_is_told_in_one_line(changes, told):
  support.assert_one_problem(make_config(), changes, told)


def test_an_export_is_refused():
  support.assert_export_refused(make_config())
