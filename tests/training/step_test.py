"""One update: micro-batches, placement, compile count, freezing, withholding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.config import MeshConfig, OptimConfig
from rim_jax.model import sharding
from rim_jax.runtime import hlo
from rim_jax.training import optim
from rim_jax.training import step as step_lib
from tests import support
from tests.support import TRAIN_BLOCKS, TRAIN_ROWS, TRAIN_STEPS
from tests.support import start_training as start


def take(config, devices, mesh_config=None, count=1):
  mesh, step, state, frozen, batch = start(config, devices, mesh_config)
  with jax.set_mesh(mesh):
    for _ in range(count):
      state, metrics = step(state, frozen, batch)
  return jax.device_get((state.params, metrics)), step


def assert_same(a, b, relative):
  jax.tree.map(lambda x, y: support.assert_close(x, y, relative), a, b)


@pytest.mark.parametrize('method, extra', [
    ('rim_stage1', {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('rim_stage1', {'curriculum__reduction': 'token'}),
        ('rim_stage1', {'curriculum__normalize': 'readouts'}), ('rim_stage2', {}))),
])
def test_unequal_micro_batches_equal_the_whole(method, extra):
  results = []
  for num in (1, 4):
    # SGD-like moments: Adam would hide a wrong scale of the gradient.
    config = support.make_config(method, train__batch_rows=8, train__num_micro_batches=num,
                                 optim__eps=1.0, optim__clip_norm=1e9, **extra)
    results.append(take(config, jax.devices()[:1])[0])
  for other in results[1:]:
    assert_same(other[0], results[0][0], 1e-5)
    assert_same({k: other[1][k] for k in ('loss', 'grad_norm', 'norm', 'block_nll')},
                {k: results[0][1][k] for k in ('loss', 'grad_norm', 'norm', 'block_nll')}, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [
    MeshConfig(2, 2, 2), MeshConfig(8, 1, 1), MeshConfig(1, 4, 2)])
def test_every_mesh_gives_the_same_update(mesh):
  config = support.make_config(train__batch_rows=8, optim__eps=1.0)
  single = take(config, jax.devices()[:1], count=3)[0]
  sharded = take(config, jax.devices(), mesh, count=3)[0]
  assert_same(sharded[0], single[0], 1e-5)
  assert_same(sharded[1]['loss'], single[1]['loss'], 1e-5)


@pytest.mark.parametrize('mesh, extra', [
    (MeshConfig(2, 1, 1, 2), {}), pytest.param(MeshConfig(2, 2, 2), {}, marks=pytest.mark.slow),
    pytest.param(MeshConfig(2, 1, 1), {'model__dropout': 0.1}, marks=pytest.mark.slow)])
def test_parts_on_a_mesh_equal_parts_on_one_device(mesh, extra):
  # Also with dropout: what is drawn depends on the part and not on the mesh.
  config = support.make_config(train__batch_rows=8, train__num_micro_batches=2, optim__eps=1.0,
                               optim__clip_norm=1e9, **extra)
  single = take(config, jax.devices()[:1])[0]
  num_devices = mesh.data * mesh.fsdp * mesh.tensor * mesh.slice
  sharded = take(config, jax.devices()[:num_devices], mesh)[0]
  assert sharded[1].pop('healthy') and single[1].pop('healthy')
  assert_same(sharded, single, 1e-5)


def test_parts_are_summed_over_the_network_once():
  sent = {}
  for num in (1, 4):
    config = support.make_config(train__batch_rows=8, train__num_micro_batches=num,
                                 model__lora__dropout=0.1)  # of adapters, which it has not
    mesh, step, *args = start(config, jax.devices()[:2], MeshConfig(2, 1, 1))
    with jax.set_mesh(mesh):
      costs = hlo.compute_costs(step.lower(*args).compile().as_text(), unknown_trips=1)
    sent[num] = costs.collectives['all-reduce'].bytes
  assert 0 < sent[4] <= sent[1]


def test_metrics_by_hand():
  config = support.make_config('rim_stage1', train__batch_rows=8)
  (_, metrics), _ = take(config, jax.devices()[:1])
  counts = np.zeros(TRAIN_BLOCKS + 1)
  for record in [r for row in TRAIN_ROWS for r in row]:
    for t in range(1, max(len(record.steps), 1) + 1):
      counts[t] += 1
  np.testing.assert_allclose(metrics['block_count'], counts, rtol=1e-5)
  assert metrics['num_examples'] == sum(map(len, TRAIN_ROWS))
  # lambda is 1 everywhere at step 0, so the loss is the mean over readouts
  np.testing.assert_allclose(metrics['block_weight'], counts, rtol=1e-5)
  assert metrics['loss'] == pytest.approx(metrics['block_nll'].sum() / counts.sum(), rel=1e-5)


def test_the_step_compiles_once():
  config = support.make_config(train__batch_rows=8, optim__eps=1.0)  # the test above has the steps
  for devices, mesh in ((jax.devices()[:1], None), (jax.devices(), MeshConfig(2, 2, 2))):
    _, step = take(config, devices, mesh, count=4)
    assert step._cache_size() == 1


def test_what_is_frozen_stays_bit_identical_and_has_no_optimizer_state():
  config = support.make_config(train__batch_rows=8, optim__trainable='memory')
  mesh, step, state, frozen, batch = start(config, jax.devices()[:1])
  assert list(state.params) == ['memory']
  assert state.params['memory'].dtype == jnp.float32
  assert {str(x.dtype) for x in jax.tree.leaves(frozen)} == {'bfloat16'}
  shapes = {x.shape for x in jax.tree.leaves(state.opt_state)}
  assert shapes == {(), state.params['memory'].shape}
  before = jax.device_get((state.params, frozen))
  with jax.set_mesh(mesh):
    for _ in range(3):
      state, _ = step(state, frozen, batch)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before[1])
  assert (np.asarray(state.params['memory']) != before[0]['memory']).all()


def test_a_batch_of_padding_changes_no_weight_by_gradient_and_is_finite():
  config = support.make_config(train__batch_rows=8, optim__weight_decay=0.0)
  mesh, step, state, frozen, batch = start(config, jax.devices()[:1])
  before = jax.device_get(state.params)
  empty = jax.tree.map(jnp.zeros_like, batch)
  with jax.set_mesh(mesh):
    state, metrics = step(state, frozen, empty)
  assert metrics['loss'] == 0 and metrics['grad_norm'] == 0 and metrics['healthy']
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


def test_a_step_that_is_not_finite_is_withheld_and_so_is_every_later_one():
  config = support.make_config(train__batch_rows=8)
  mesh, step, state, frozen, batch = start(config, jax.devices()[:1])
  with jax.set_mesh(mesh):
    state, _ = step(state, frozen, batch)
    good = jax.device_get(state)
    # An overflow in the loss: finite parameters, infinite logits.
    huge = jax.tree.map(lambda x: x, state)
    huge.params['final_norm']['scale'] = jnp.full_like(huge.params['final_norm']['scale'], 1e38)
    poisoned = jax.device_get(huge)
    after, metrics = step(huge, frozen, batch)
    assert not metrics['healthy'] and not np.isfinite(metrics['loss'])
    assert int(after.step) == int(good.step)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.params), poisoned.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.opt_state),
                 poisoned.opt_state)
    # Even with good numbers again, nothing is applied any more.
    after.params['final_norm']['scale'] = jnp.asarray(good.params['final_norm']['scale'])
    later, metrics = step(after, frozen, batch)
  assert np.isfinite(metrics['loss']) and not metrics['healthy']
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(later.params), good.params)


def test_the_optimizer_begins_anew_where_it_should_and_its_schedule_goes_on():
  config = support.make_config('icot', train__batch_rows=8, optim__decay='cosine')
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, support.make_codec(config).memory_start, TRAIN_STEPS,
                                  mesh)
  step = step_lib.make_train_step(program, config, TRAIN_STEPS, TRAIN_BLOCKS, mesh, (2, 7))
  batch = sharding.place_batch(support.make_batch(config, TRAIN_ROWS), mesh)
  schedule = optim.make_schedule(config.optim, TRAIN_STEPS)
  fresh = []
  with jax.set_mesh(mesh):
    state, frozen = program.init(jax.random.key(0))
    for taken in range(4):
      state, metrics = step(state, frozen, batch)
      assert float(metrics['learning_rate']) == pytest.approx(float(schedule(taken)))
      adam, _, rate = jax.device_get(state.opt_state)[1]
      assert int(rate.count) == taken + 1
      # Of one gradient alone, the second moment is the first one's square.
      one = np.square(adam.mu['embedding'] / (1 - config.optim.b1)) * (1 - config.optim.b2)
      fresh.append((int(adam.count), np.allclose(one, adam.nu['embedding'], rtol=1e-4)))
  assert fresh == [(1, True), (2, False), (1, True), (2, False)]


@pytest.mark.slow
def test_dropout_differs_by_step_and_repeats_by_seed():
  def make_losses(seed):
    config = dataclasses.replace(support.make_config(
        train__batch_rows=8, model__dropout=0.5, optim__learning_rate=1e-12), seed=seed)
    mesh, step, first, frozen, batch = start(config, jax.devices()[:1])

    def take_two():
      state, out = jax.tree.map(jnp.copy, first), []  # a step takes its state's memory
      with jax.set_mesh(mesh):
        for _ in range(2):
          state, metrics = step(state, frozen, batch)
          out.append(float(metrics['loss']))
      return out
    return take_two
  zero = make_losses(0)
  losses = zero()
  assert losses == zero() and losses[0] != losses[1]
  assert losses != make_losses(1)()


def test_schedule():
  warm = optim.make_schedule(OptimConfig(learning_rate=1.0, warmup_frac=0.1), 100)
  assert [float(warm(s)) for s in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1])
  cosine = optim.make_schedule(
      OptimConfig(learning_rate=1.0, warmup_frac=0.0, decay='cosine'), 100)
  assert [float(cosine(s)) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-6)
  both = optim.make_schedule(
      OptimConfig(learning_rate=1.0, warmup_frac=0.2, decay='cosine'), 100)
  assert [float(both(s)) for s in (0, 19, 20, 60, 100)] == pytest.approx(
      [0.05, 1, 1, 0.5, 0], abs=1e-6)


def test_decay_spares_norms_biases_and_memory():
  config = support.make_config(model__norm='layernorm', model__bias='all')
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, 16, TRAIN_STEPS, mesh)
  mask = optim.make_decay_mask(program.abstract[0].params)
  assert mask['embedding'] and mask['blocks']['query']['kernel'] and mask['positions']
  assert not mask['memory'] and not mask['blocks']['query']['bias']
  assert mask['final_norm'] == {'scale': False, 'bias': False}
