"""Passes over blocks against whole forwards by hand; their ends are one pass and Coconut."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import methods, train
from rim_jax.config import MeshConfig
from rim_jax.evaluation import decode as decode_lib
from rim_jax.evaluation import run_scores
from rim_jax.methods import coconut
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.report import run_page
from rim_jax.training import loss as loss_lib
from rim_jax.training import state as state_lib
from rim_jax.training import step as step_lib
from tests import support

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
LENGTH = 32  # of a sequence by hand, padded
NETWORKS = {
    'plain': {},
    'learned': {'model__norm': 'layernorm', 'model__bias': 'all', 'model__fused_qkv': True,
                'model__attention_tile_tokens': 16},
    'rope': {'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__tie_embeddings': False,
             'model__activation': 'swiglu', 'model__attention_tile_tokens': 16},
}
NETWORKS['adapters'] = {**NETWORKS['rope'], 'model__lora__rank': 2, 'model__remat': 'full'}


def make_config(method='rim_stage2', num_passes=3, network='rope', **changes):
  return support.make_config(method, **{
      'layout__row_tokens': 100, 'layout__block_tokens': 2, 'loop__num_passes': num_passes,
      **NETWORKS[network], **changes})


def find_limits(batch):
  trunk = (batch.example > 0) & (batch.readout == 0)
  return batch_lib.RowLimits(int(batch.example.max()), int(trunk.sum(1).max()),
                             int((trunk & (batch.block > 0)).sum(1).max()))


def compute_logits(model, batch, config):
  """Of a batch of numpy arrays, with the limits that a plan would have."""
  return run_forward(*nnx.split(model), batch, config, find_limits(batch))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))  # once for all parameters of a network
def run_forward(graphdef, params, batch, config, limits):
  return methods.get_method(config).forward(nnx.merge(graphdef, params), batch, config, limits)[0]


def read_trunks(model, config, trunks, blocks):
  return jax.jit(lambda: decode_lib.prefill(model, config, trunks, blocks))()


def list_sequences(config):
  """(ids, mask, block tokens, slots, targets) of every readout alone: `[x, m_1..m_k, readout]`."""
  codec, found = support.make_codec(config), []
  for record in [r for row in ROWS for r in row]:
    example = codec.lay_out(codec.encode(record))
    for readout in example.readouts:
      trunk = layout_lib.make_trunk(example.question, readout.block, config.layout,
                                    codec.memory_start)
      ids = [*trunk, *readout.prefix, *readout.target[:-1]]
      first = len(ids) - len(readout.target)
      found.append((ids, support.make_plain_mask(
          config, len(ids), len(example.question), len(ids) - len(trunk)),
          np.arange(len(example.question), len(trunk)), range(first, len(ids)), readout.target))
  return found


def feed_by_hand(model, rule, ids, in_block, embedded, states):
  """[t, d] of one sequence, as the documentation says it."""
  is_memory, before = (ids == model.vocab_size + 1)[:, None], jnp.pad(states, ((1, 0), (0, 0)))[:-1]
  if rule == 'gate':
    return jnp.where(in_block[:, None], embedded + model.added.scale[...][None] * states, embedded)
  fed = {'add': embedded + states, 'replace': states, 'shift': before}[rule]
  return jnp.where(is_memory, fed, embedded)


@pytest.mark.parametrize('method, rule, network, changes, differentiate', [
    ('rim_stage2', 'gate', 'rope', {'layout__answer_prefix': '+-'}, False),
    *(pytest.param(*case, True, marks=pytest.mark.slow) for case in (
        ('rim_stage2', 'gate', 'adapters', {'layout__answer_prefix': '+-'}),
        ('rim_stage1', 'shift', 'learned', {}), ('rim_stage2', 'add', 'learned', {}),
        ('rim_stage1', 'gate', 'learned', {'layout__bidirectional_blocks': True}),
        ('rim_stage2', 'replace', 'rope', {}),
        ('pause', 'gate', 'adapters', {'layout__answer_prefix': '+',
                                       'layout__readout_sees_question': False}),
        ('rim_stage2', 'shift', 'adapters', {'layout__bidirectional_blocks': True,
                                             'layout__stage2_depth0_readout': True})))])
def test_packed_rows_equal_sequences_read_alone_by_hand(
    method, rule, network, changes, differentiate):
  """Logits and gradients of every readout; three whole forwards by hand, no batch, no cache.

  Gradients take most of the time to compile: by default PCCoT's are compared with CODI's alone.
  """
  config = make_config(method, 3, network, loop__rule=rule, **changes)
  batch = support.make_batch(config, ROWS)
  limits, used = find_limits(batch), np.nonzero(batch.slot_kind)
  assert limits.block_tokens < limits.trunk_tokens < config.layout.row_tokens
  graphdef, params = nnx.split(support.make_model(config, seed=1))

  def make_program(compute):
    return (jax.value_and_grad(compute, has_aux=True) if differentiate else
            lambda params: (compute(params), {}))

  @jax.jit
  def packed(params):
    def compute(params):
      logits, _ = methods.get_method(config).forward(
          nnx.merge(graphdef, params), jax.tree.map(jnp.asarray, batch), config, limits)
      nll = loss_lib.compute_slot_nll(logits, jnp.asarray(batch.slot_target))
      return nll[used].sum(), logits[used]
    return make_program(compute)(params)

  @jax.jit
  def alone(params, ids, mask, in_block, targets, scale_t):
    """A target of -1 is none; what is embedded is scaled."""
    def compute(params):
      model, place = nnx.merge(graphdef, params), jnp.arange(LENGTH)[None]
      inputs = embedded = model.embed(ids[None]) * scale_t[None, :, None]
      for _ in range(2):
        x, _ = model(None, place, mask[None], inputs_btd=inputs)
        inputs = feed_by_hand(model, rule, ids, in_block, embedded[0], x[0])[None]
      x, _ = model(None, place, mask[None], inputs_btd=inputs)
      logits = model.compute_logits(x[0])
      nll = loss_lib.compute_slot_nll(logits[None], targets[None])[0]
      return jnp.where(targets >= 0, nll, 0).sum(), logits
    return make_program(compute)(params)
  (_, logits), grads = packed(params)
  expected, rounded, total = [], [], None
  ones, other = np.ones(LENGTH, np.float32), np.arange(LENGTH) % 2
  for ids, mask, blocks, slots, targets in list_sequences(config):
    room = LENGTH - len(ids)
    padded = np.full(LENGTH, -1)
    padded[list(slots)] = targets
    args = (params, np.pad(ids, (0, room)), np.pad(mask, (0, room)),
            np.isin(np.arange(LENGTH), blocks), padded)
    (_, found), gradient = alone(*args, ones)
    expected.append(found[np.asarray(slots)])
    rounded.append(alone(*args, ones + other * np.finfo(np.float32).eps)[0][1][np.asarray(slots)])
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
  expected, rounded = np.concatenate(expected), np.concatenate(rounded)
  # Three passes through random layers can amplify rounding: by hand, one unit in the last place of
  # every other embedded token moves the logits so far.
  unit = np.abs(rounded - expected).max() / np.abs(expected).max()
  assert unit < 1e-4
  support.assert_close(logits, expected, relative=max(1e-5, 2 * unit))
  if not differentiate:
    return
  flat, by_hand = (dict(nnx.to_flat_state(g)) for g in (grads, total))
  for path, gradient in flat.items():  # sums of more terms than logits, in another order
    support.assert_close(gradient.get_value(), by_hand[path].get_value(),
                         relative=max(4e-5, 8 * unit))
  assert ('added', 'scale') not in flat or np.abs(flat['added', 'scale'].get_value()).min() > 0


# ---- Its ends ----


@pytest.mark.parametrize('method', ['rim_stage1', 'rim_stage2', 'pause'])
def test_one_pass_is_the_method_itself(method):
  """The same value, so the same program; and no parameter more."""
  config = make_config(method, 1)
  assert methods.get_method(config) is methods.METHODS[method]
  assert not hasattr(support.make_model(config), 'added')


@pytest.mark.parametrize('num_passes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_closed_gate_changes_nothing_and_learns_to_open(num_passes):
  config = make_config(num_passes=num_passes)
  batch = support.make_batch(config, ROWS)
  model = support.make_model(config)
  plain = compute_logits(model, batch, make_config(num_passes=1))
  assert np.abs(compute_logits(model, batch, config) - plain).max() > 1e-3
  model.added.scale[...] = jnp.zeros_like(model.added.scale[...])
  support.assert_close(compute_logits(model, batch, config), plain)
  graphdef, params = nnx.split(model)

  def compute_loss(scale):
    flat = dict(nnx.to_flat_state(params))
    flat['added', 'scale'] = flat['added', 'scale'].replace(scale)
    model = nnx.merge(graphdef, nnx.from_flat_state(flat))
    return step_lib.compute_loss(model, jax.tree.map(jnp.asarray, batch), 0, 10, 4, config, None,
                                 find_limits(batch))[0]
  gradient = jax.jit(jax.grad(compute_loss))(model.added.scale[...])
  assert np.isfinite(gradient).all() and np.abs(gradient).min() > 0


@pytest.mark.parametrize('num_tokens, differentiate', [
    (2, False), pytest.param(3, True, marks=pytest.mark.slow)])
def test_with_a_pass_for_each_memory_token_a_shift_is_coconut(num_tokens, differentiate):
  """Logits and gradients; with fewer passes so many thoughts less one are Coconut's."""
  config = make_config('pause', num_tokens + 1, 'plain', loop__rule='shift', layout__num_blocks=1,
                       layout__block_tokens=num_tokens)
  theirs = make_config('coconut_stage', 1, 'plain', layout__num_blocks=1,
                       layout__block_tokens=num_tokens, layout__skip_steps=-1)
  batch = support.make_batch(config, ROWS)
  limits = find_limits(batch)
  jax.tree.map(np.testing.assert_array_equal, batch, support.make_batch(theirs, ROWS))
  graphdef, params = nnx.split(support.make_model(config))

  def compute(method, config):
    def compute_nll(params):
      logits, _ = method.forward(nnx.merge(graphdef, params), jax.tree.map(jnp.asarray, batch),
                                 config, limits)
      nll = loss_lib.compute_slot_nll(logits, jnp.asarray(batch.slot_target))
      return jnp.where(batch.slot_kind > 0, nll, 0).sum(), logits
    return jax.jit(jax.value_and_grad(compute_nll, has_aux=True) if differentiate else
                   lambda params: (compute_nll(params), {}))(params)
  (_, logits), grads = compute(methods.get_method(config), config)
  (_, expected), others = compute(coconut.COCONUT_STAGE, theirs)
  support.assert_close(logits[batch.slot_kind > 0], expected[batch.slot_kind > 0])
  jax.tree.map(lambda a, b: support.assert_close(a, b, 4e-5), grads, others)

  model = nnx.merge(graphdef, params)
  fields = batch_lib.get_fields(batch)
  thoughts = coconut.find_inputs(model, batch.tokens, fields, theirs, limits)
  for count in range(2, num_tokens + 1):
    fewer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, num_passes=count))
    found = methods.get_method(fewer).feed(model, batch.tokens, fields, fewer, limits)
    for row, begin in zip(*np.nonzero(batch.tokens == model.vocab_size)):
      gap = np.abs(found - thoughts)[row, begin:begin + num_tokens + 2].max(-1)
      assert (gap[:count] < 1e-5).all() and gap[count] > 1e-3 and gap[-1] == 0


# ---- Decoding ----


@pytest.mark.parametrize('rule, prefix, changes', [
    ('gate', '+', {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('gate', '', {'layout__bidirectional_blocks': True}), ('add', '+-', {}),
        ('shift', '+', {'layout__readout_sees_question': False})))])
def test_decoding_s_logits_are_those_of_the_training_forward(rule, prefix, changes, monkeypatch):
  """All blocks at once; and a prefill of fewer blocks is the beginning of one of more."""
  config = make_config(loop__rule=rule, layout__answer_prefix=prefix, **changes)
  model, decoder = support.make_decoder(config)
  codec, blocks = support.make_codec(config), (1, 2, 3)
  questions = [codec.encode(r).question for r in support.RECORDS[:3]]
  ids, seen = support.decode_and_record(
      decoder, questions, 3, codec.template.answer_prefix, blocks, monkeypatch)
  count = config.eval.max_new_tokens
  rows = [[layout_lib.Example(question, 3, 1, tuple(
      layout_lib.Readout(k, 2, codec.template.answer_prefix, ids[i, r].tolist())
      for r, k in enumerate(blocks)))] for i, question in enumerate(questions)]
  batch = rows_lib.make_rows(rows, 100, 3 * count, config.layout, codec.memory_start)
  trained = np.asarray(compute_logits(model, batch, config)).reshape(3, 3, count, -1)
  support.assert_decoded_logits(ids, seen, trained, codec.tokenizer.eos_id)

  kept = [read_trunks(model, config, decode_lib.make_trunks(
      questions, k, 32, 3, config, codec.memory_start), (1, 2)) for k in (3, 2)]
  support.assert_close(kept[0][0], kept[1][0])
  shared = (kept[1][2].example > 0)[None, :, :, None, None]
  jax.tree.map(lambda a, b: support.assert_close(jnp.where(shared, a, 0), jnp.where(shared, b, 0)),
               kept[0][1], kept[1][1])
  with_states = jax.eval_shape(lambda: decode_lib.find_inputs(
      model, config, decode_lib.make_trunks(questions, 3, 32, 3, config, codec.memory_start)))
  assert with_states.shape == (3, 32, config.model.embed_dim)


@pytest.mark.slow
def test_neither_the_batch_nor_the_mesh_changes_an_answer(monkeypatch):
  """Batch 1, 3 and 8, on one device and on eight; questions of several lengths."""
  results = []
  for size, devices in ((1, 1), (3, 1), (8, 8)):
    config = make_config(eval__batch_size=size)
    codec = support.make_codec(config)
    questions = [codec.encode(r).question for r in support.RECORDS]
    _, decoder = support.make_decoder(config, devices)
    results.append(decoder.decode_texts(questions, 3, (), (1, 3))[0])
    assert decoder._decode._cache_size() <= 2  # these questions have two widths
  assert results[0] == results[1] == results[2]
  assert len({text for row in results[0] for text in row}) > 1
  support.assert_logits_alone_as_together(config, questions[:2], 3, (1, 3), monkeypatch)


@pytest.mark.slow
def test_how_often_blocks_are_read_may_differ_at_evaluation():
  """With eval.num_passes a network decodes as one that was trained with so many."""
  config = make_config(num_passes=2)
  model, _ = support.make_decoder(config)
  codec, logits = support.make_codec(config), []
  trunks = decode_lib.make_trunks([codec.encode(r).question for r in support.RECORDS], 3, 32, 5,
                                  config, codec.memory_start)
  for trained, asked in ((3, 0), (2, 3), (2, 0), (2, 1), (1, 0)):
    config = make_config(num_passes=trained, eval__num_passes=asked)
    logits.append(np.asarray(read_trunks(model, config, trunks, (3,))[0]))
  np.testing.assert_array_equal(logits[0], logits[1])
  np.testing.assert_array_equal(logits[3], logits[4])
  assert np.abs(logits[1] - logits[2]).max() > 1e-3 < np.abs(logits[2] - logits[3]).max()


# ---- What it costs ----


@pytest.mark.parametrize('num_passes', [
    3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4))])
def test_the_tokens_that_are_read_are_those_of_the_formula(num_passes, monkeypatch):
  """Every token that enters the layers, padding too: here rows are full."""
  config = make_config(num_passes=num_passes, layout__row_tokens=20)
  record = support.RECORDS[0]  # 5 of the question, 12 of blocks, one of each readout
  batch = support.make_batch(config, [[record], [record]])
  assert (batch.example > 0).all()
  question, blocks, readouts = 5, 12, 3
  model, counted = support.make_model(config), support.count_reads(monkeypatch)
  compute_logits(model, batch, config)
  jax.effects_barrier()
  assert sum(counted) == 2 * (question * min(num_passes, 2) + num_passes * blocks + readouts)
  counted.clear()
  trunks = decode_lib.make_trunks([range(5)] * 2, 3, 17, 2, config, model.vocab_size)
  jax.jit(lambda: decode_lib.prefill(model, config, trunks, (1, 3))[0])()
  jax.effects_barrier()
  assert sum(counted) == 2 * (question + num_passes * blocks)


@pytest.mark.slow
def test_states_in_bfloat16_are_those_in_float32():
  """After three passes, to some roundings of 1 / 256; of a network that does not amplify them."""
  found = []
  for dtype in ('float32', 'bfloat16'):
    config = make_config(num_passes=4, model__compute_dtype=dtype)
    batch = support.make_batch(config, ROWS)
    model = support.make_model(config, seed=1)
    found.append(np.asarray(methods.get_method(config).feed(
        model, batch.tokens, batch_lib.get_fields(batch), config, find_limits(batch)
    ).astype(jnp.float32))[(batch.block > 0) & (batch.readout == 0)])
  gap = np.abs(found[0] - found[1])
  assert 0 < gap.mean() < np.abs(found[0]).mean() / 50 and gap.max() < np.abs(found[0]).max() / 10


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['gate', 'shift'])
def test_a_step_on_a_mesh_is_that_of_one_device_and_compiles_once(rule):
  config = make_config(network='adapters', loop__rule=rule, train__batch_rows=8, optim__eps=1.0,
                       model__lora__rank=0, model__num_kv_heads=2, train__num_micro_batches=2)
  rows = [*ROWS, support.RECORDS[:1], [], *ROWS, [], support.RECORDS[2:4]]
  found = []
  for devices, mesh_config in (
      (1, MeshConfig()), (8, MeshConfig(2, 2, 2)), (4, MeshConfig(2, 1, 1, 2))):
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:devices])
    program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
    batch = support.make_batch(config, rows)
    step = step_lib.make_train_step(program, config, 10, 4, mesh, limits=find_limits(batch))
    batch = sharding.place_batch(batch, mesh)
    with jax.set_mesh(mesh):
      state, frozen = program.init(jax.random.key(0))
      for _ in range(2):
        state, metrics = step(state, frozen, batch)
    assert step._cache_size() == 1 and metrics['healthy']
    found.append(jax.device_get((state.params, metrics['loss'])))
  for other in found[1:]:
    jax.tree.map(support.assert_close, other, found[0])


# ---- A run ----


@pytest.mark.slow
def test_a_run_loops_a_network_that_never_did_and_gives_a_curve(tmp_path, use_devices):
  """It begins with that one's parameters and a closed gate, and is judged over R and K."""
  use_devices(1)
  config = make_config('pause', 1, data__cache_dir=str(tmp_path / 'cache'),
                       data__chain__num_valid=4, data__chain__num_test=4, train__num_examples=8,
                       model__lora__rank=0, checkpoint__every_steps=9, layout__num_blocks=1)
  train.train(config, tmp_path / 'plain', say=lambda line: None)
  looped = support.set_keys(config, {'loop.num_passes': 2, 'eval.num_latency_runs': 1,
                                     'train.init_from': str(tmp_path / 'plain')})
  task = train.make_task(looped, lambda line: None)
  program = step_lib.make_program(looped, task.vocab_size, 10, task.mesh)
  state, _ = state_lib.initialize(task, program, tmp_path / 'plain', lambda line: None)
  theirs, _ = state_lib.load_network(
      train.make_task(config, lambda line: None), tmp_path / 'plain', 'last')
  assert not np.abs(state.params.pop('added')['scale']).any()
  jax.tree.map(np.testing.assert_array_equal, state.params, theirs.params)

  found = train.train(looped, tmp_path / 'run', say=lambda line: None)['test']
  assert found.num_passes == 2 and found.passes is None
  assert found.latency[0].num_passes == 2
  asked = support.set_keys(looped, {'eval.num_passes': 1, 'eval.budget_passes': 2,
                                    'eval.budget_blocks': 1})
  results = run_scores.evaluate_run(
      train.make_task(asked, lambda line: None), tmp_path / 'run', lambda line: None)
  assert list(results) == ['test', 'test-r1'] and results['test-r1'].num_passes is None
  curve = results['test-r1'].passes
  assert [p.num_passes for p in curve] == [1, 2]
  assert [list(p.acc) for p in curve] == [list('01')] * 2
  assert [p.acc['1'] for p in curve] == [results['test-r1'].final_acc, found.final_acc]
  assert all(p.first_token_ms[k].median > 0 for p in curve for k in '01')
  page = run_page.write_report(tmp_path / 'run', asked).read_text()
  assert 'Accuracy and time with more and fewer passes' in page


@pytest.mark.parametrize('changes, told', [
    ({'method': 'direct', 'loop.num_passes': 2}, 'has no blocks that could be read again; use 1'),
    ({'method': 'cot', 'eval.num_passes': 2}, 'has no blocks that could be read again; use 0'),
    ({'method': 'coconut_stage', 'loop.rule': 'add'}, "changes nothing for method 'coconut_stage'"),
    ({'eval.num_passes': 2}, 'no gate was trained'),
    ({'eval.budget_passes': 2}, 'no gate was trained'),
    ({'eval.num_passes': 2, 'loop.rule': 'shift', 'loop.projection': True},
     'no projection was trained')])
def test_what_cannot_be_is_told_in_one_line(changes, told):
  config = support.make_config('coconut_stage' if 'coconut' in str(changes) else 'pause')
  support.assert_one_problem(config, changes, told)


def test_an_export_is_refused():
  support.assert_export_refused(make_config(num_passes=2))
