"""Adapters: what they add, where they stand, what trains, and what merging gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax.config import rules
from rim_jax.model import lora
from rim_jax.model import transformer as transformer_lib
from tests import support

# Fused and separate projections, heads shared and not.
NETWORKS = {'gpt2': {'model__fused_qkv': True, 'model__bias': 'all'},
            'llama': {'model__activation': 'swiglu', 'model__num_kv_heads': 1}}


def make_config(network, **changes):
  return support.make_config(**{
      'model__lora__rank': 3, 'model__lora__alpha': 7.0, **NETWORKS[network], **changes})


def compute_logits(config, model):
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, [support.RECORDS[:3]]))
  return np.asarray(model.compute_slot_logits(batch, config.layout))


def list_adapters(model):
  return {name for name, module in vars(model.blocks).items()
          if getattr(module, 'adapter', None) is not None}


@pytest.mark.parametrize('network', NETWORKS)
def test_there_is_one_adapter_for_each_projection(network):
  config = make_config(network)
  assert list_adapters(support.make_model(config)) == set(rules.get_linears(config.model))


def test_targets_are_whole_names():
  config = make_config('llama', model__lora__targets='query|u')
  assert list_adapters(support.make_model(config)) == {'query'}


@pytest.mark.parametrize('network', [pytest.param('gpt2', marks=pytest.mark.slow), 'llama'])
def test_a_fresh_adapter_changes_nothing(network):
  config = make_config(network)
  without = dataclasses.replace(config, model=dataclasses.replace(
      config.model, lora=config_lib.LoraConfig()))

  def make(config):  # not support.make_model: that one moves B off zero
    return transformer_lib.Transformer(config.model, 16, jax.random.key(0))
  np.testing.assert_array_equal(compute_logits(config, make(config)),
                                compute_logits(without, make(without)))


@pytest.mark.parametrize('network', [pytest.param('gpt2', marks=pytest.mark.slow), 'llama'])
def test_merging_gives_the_same_logits(network):
  config = make_config(network)
  model = support.make_model(config)
  expected = compute_logits(config, model)
  for name in list_adapters(model):
    linear = getattr(model.blocks, name)
    linear.kernel.set_value(lora.merge(
        linear.kernel[...], linear.adapter.a[...], linear.adapter.b[...],
        config.model.lora))
    linear.adapter = None
  support.assert_close(compute_logits(config, model), expected)


def test_merging_is_the_sum_that_the_paper_states():
  rng = np.random.default_rng(0)
  kernel, a, b = (rng.standard_normal(s).astype(np.float32)
                  for s in ((2, 4, 3, 5), (2, 4, 2), (2, 2, 3, 5)))
  merged = lora.merge(kernel, a, b, config_lib.LoraConfig(rank=2, alpha=6.0))
  for layer in range(2):
    expected = kernel[layer].reshape(4, 15) + 3.0 * a[layer] @ b[layer].reshape(2, 15)
    np.testing.assert_allclose(merged[layer].reshape(4, 15), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('network', [pytest.param('gpt2', marks=pytest.mark.slow), 'llama'])
def test_only_adapters_and_memory_rows_train(network):
  config = make_config(network, optim__trainable='lora', model__remat='full', train__batch_rows=8)
  mesh, step, state, frozen, batch = support.start_training(config, jax.devices()[:1])
  before = jax.device_get((state.params, frozen))
  with jax.set_mesh(mesh):
    for _ in range(3):
      state, _ = step(state, frozen, batch)
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
  assert names == {'a', 'b', 'memory'}
  jax.tree.map(np.testing.assert_array_equal, before[1], jax.device_get(frozen))
  moved = jax.tree.map(lambda x, y: bool((x != y).any()), before[0], state.params)
  assert all(jax.tree.leaves(moved)), moved
  # Moments exist for what trains, and for nothing else.
  adam = state.opt_state[1][0]
  assert jax.tree.structure(adam.mu) == jax.tree.structure(state.params)


@pytest.mark.slow
def test_dropout_reaches_the_adapters_only():
  config = make_config('llama', model__lora__dropout=0.5)
  model = support.make_model(config)
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, [support.RECORDS[:3]]))

  def run(seed):
    return np.asarray(model.compute_slot_logits(batch, config.layout, jax.random.key(seed)))
  assert (run(1) != run(2)).any()
  for name in list_adapters(model):
    linear = getattr(model.blocks, name)
    linear.adapter.b.set_value(jnp.zeros_like(linear.adapter.b[...]))
  np.testing.assert_array_equal(run(1), run(2))


def make_adapters(**changes):
  """The adapters of query, key and value on one layer's slice, B off zero, and inputs [p, i]."""
  model = support.make_model(make_config('llama', model__lora__dropout=0.5, **changes))
  adapters = [getattr(model.blocks, name).adapter for name in ('query', 'key', 'value')]
  for adapter in adapters:
    adapter.a.set_value(adapter.a[...][0])
    adapter.b.set_value(adapter.b[...][0])
  return adapters, jax.random.normal(jax.random.key(1), (12, 16))


def compute_alone(adapter, x_pi, names, key):
  """(alpha / rank) drop(x) A B by the definition, the part dropped drawn under these names."""
  x_pi = lora.drop(x_pi, adapter.config.dropout, key, f'{names} adapter')
  a, b = adapter.a[...].reshape(16, -1), adapter.b[...].reshape(adapter.config.rank, -1)
  return adapter.config.alpha / adapter.config.rank * x_pi @ a @ b


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('key', [None, jax.random.key(5)], ids=['evaluating', 'training'])
def test_projections_of_one_input_add_what_each_would_alone(shared, key):
  """Without `shared_dropout` each draws as it always has, so that a run of before goes on."""
  adapters, x_pi = make_adapters(model__lora__shared_dropout=shared)
  found = lora.adapt([None, *adapters], x_pi, key)
  assert found[0] is None
  for adapter, (part,) in zip(adapters, found[1:]):
    names = 'query key value' if shared else adapter.name
    support.assert_close(part.reshape(12, -1), compute_alone(adapter, x_pi, names, key))


@pytest.mark.parametrize('shared, count', [(False, 3), (True, 1)])
def test_a_shared_draw_is_read_once(monkeypatch, shared, count):
  adapters, x_pi = make_adapters(model__lora__shared_dropout=shared)
  drawn, real = [], lora.drop
  monkeypatch.setattr(lora, 'drop', lambda *args: drawn.append(args[-1]) or real(*args))
  lora.adapt(adapters, x_pi, jax.random.key(5))
  assert len(drawn) == count, drawn
