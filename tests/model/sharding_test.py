"""Golden placements of the small model on 2x2x2, and what is refused."""

import re
import types

import jax
from jax.sharding import PartitionSpec as P
import pytest

from rim_jax.config import MeshConfig
from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.runtime import hlo
from rim_jax.training import step as step_lib
from tests import support

GOLDEN = {
    'embedding': P('tensor', 'fsdp'),
    'head': P('fsdp', 'tensor'),
    'positions': P(None, 'fsdp'),
    'memory': P(None, 'fsdp'),
    'final_norm.scale': P('fsdp'),
    'blocks.attention_norm.scale': P(None, 'fsdp'),
    'blocks.mlp_norm.scale': P(None, 'fsdp'),
    'blocks.query.kernel': P(None, 'fsdp', 'tensor', None),
    'blocks.query.bias': P(None, 'tensor', None),
    'blocks.key.kernel': P(None, 'fsdp', 'tensor', None),
    'blocks.key.bias': P(None, 'tensor', None),
    'blocks.value.kernel': P(None, 'fsdp', 'tensor', None),
    'blocks.value.bias': P(None, 'tensor', None),
    'blocks.out.kernel': P(None, 'tensor', None, 'fsdp'),
    'blocks.out.bias': P(None, 'fsdp'),
    'blocks.up.kernel': P(None, 'fsdp', 'tensor'),
    'blocks.up.bias': P(None, 'tensor'),
    'blocks.gate.kernel': P(None, 'fsdp', 'tensor'),
    'blocks.gate.bias': P(None, 'tensor'),
    'blocks.down.kernel': P(None, 'tensor', 'fsdp'),
    'blocks.down.bias': P(None, 'fsdp'),
}


def make_program(mesh_config, devices=None, **changes):
  config = support.make_config(model__bias='all', model__activation='swiglu',
                               model__tie_embeddings=False, **changes)
  mesh = sharding.make_mesh(mesh_config, devices)
  return step_lib.make_program(config, 16, 10, mesh), mesh


def get_specs(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='.'): x.sharding.spec
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_golden_shardings():
  program, _ = make_program(MeshConfig(2, 2, 2))
  state, _ = program.init(jax.random.key(0))
  assert get_specs(state.params) == GOLDEN
  # The moments live exactly where their parameters live.
  adam = state.opt_state[1][0]
  assert get_specs(adam.mu) == get_specs(adam.nu) == GOLDEN
  query = state.params['blocks']['query']['kernel']
  assert {s.data.shape for s in query.addressable_shards} == {(2, 8, 1, 8)}


def test_rows_spread_over_data_and_fsdp():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  config = support.make_config()
  batch = sharding.place_batch(support.make_batch(config, [support.RECORDS[:1]] * 8), mesh)
  assert batch.tokens.sharding.spec == P(('slice', 'data', 'fsdp'))
  assert {s.data.shape for s in batch.tokens.addressable_shards} == {(2, 64)}


def test_activations_are_constrained_under_a_mesh():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  with jax.set_mesh(mesh):
    x = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH, None))(jax.numpy.ones((8, 4)))
  # JAX leaves out axes of size 1 that it has no use for.
  assert x.sharding.is_equivalent_to(sharding.get_batch_sharding(mesh), 2)


@pytest.mark.parametrize('changes, culprit', [
    ({'model__num_kv_heads': 1}, "blocks.key.kernel has 'kv_heads' = 1"),
    ({'model__mlp_dim': 33}, "blocks.up.kernel has 'mlp' = 33"),
])
def test_what_the_mesh_does_not_divide_is_an_error(changes, culprit):
  with pytest.raises(UserError, match=culprit.replace('.', r'\.')):
    make_program(MeshConfig(2, 2, 2), **changes)


def test_no_half_of_an_adapter_is_whole_on_every_device_of_fsdp():
  program, mesh = make_program(MeshConfig(2, 2, 2), optim__trainable='lora', model__lora__rank=4)
  for path, x in jax.tree_util.tree_leaves_with_path(program.abstract[0].params):
    parts = [a for part in x.sharding.spec for a in (part if isinstance(part, tuple) else (part,))]
    assert parts.count('fsdp') == 1, path
  halves = get_specs(program.abstract[0].params)
  assert halves['blocks.query.adapter.b'] == P(None, None, 'tensor', 'fsdp')
  assert halves['blocks.out.adapter.a'] == P(None, 'tensor', 'fsdp', None)
  assert halves['blocks.up.adapter.b'] == P(None, None, ('tensor', 'fsdp'))
  assert halves['blocks.down.adapter.a'] == P(None, ('tensor', 'fsdp'), None)
  assert mesh.shape['fsdp'] == 2


def compile_shapes(mesh_config, trainable, num_ids, method='rim_stage1'):
  """Shapes of the floats in a compiled step of 24 rows of 64 tokens and 40 slots, width 16."""
  config = support.make_config(
      method, train__batch_rows=24, optim__trainable=trainable, model__attention_tile_tokens=0,
      model__lora__rank=4 if trainable == 'lora' else 0, layout__block_tokens=3)
  mesh = sharding.make_mesh(mesh_config)
  program = step_lib.make_program(config, num_ids, 10, mesh)
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                       batch_lib.make_empty_rows(24, 64, 40))
  with jax.set_mesh(mesh):
    text = step_lib.make_train_step(program, config, 10, 4, mesh,
                                     limits=batch_lib.RowLimits(5)).lower(
        *program.abstract, batch).compile().as_text()
  return {tuple(map(int, s.split(','))) for s in re.findall(r'f(?:32|16)\[([\d,]+)\]', text)}


@pytest.mark.parametrize('method, trainable, mesh_config', [
    ('rim_stage1', 'all', MeshConfig(2, 2, 2)), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ('rim_stage1', 'lora', MeshConfig(2, 4, 1)),
            ('coconut_stage', 'all', MeshConfig(2, 4, 1)),
            ('rim_stage1', 'all', MeshConfig(2, 4, 1)),
            ('rim_stage1', 'lora', MeshConfig(2, 2, 2)),
            ('coconut_stage', 'all', MeshConfig(2, 2, 2))))])
def test_a_step_holds_no_activation_of_the_whole_batch(capfd, method, trainable, mesh_config):
  shapes = compile_shapes(mesh_config, trainable, 22, method)
  assert any(s[:2] in ((3, 64), (6, 64)) for s in shapes)
  assert not [s for s in shapes if s[:2] in ((24, 64), (24, 40)) and len(s) > 2]
  vocabularies = (22, 22 // mesh_config.tensor)
  assert not [s for s in shapes if s[-1] in vocabularies and 64 in s]  # none for every token
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


@pytest.mark.parametrize('trainable', ['all', pytest.param('lora', marks=pytest.mark.slow)])
def test_the_output_matrix_is_never_gathered_where_its_ids_can_be_split(capfd, trainable):
  shapes = compile_shapes(MeshConfig(2, 4, 1), trainable, 4096)
  assert (12, 40, 1024) in shapes  # logits: rows over data, ids over fsdp
  assert not shapes & {(4096, 16), (16, 4096)}
  assert not [s for s in shapes if s[:2] in ((24, 64), (24, 40)) and len(s) > 2]
  assert not [s for s in shapes if s[-1] in (4096, 1024) and 64 in s]  # none for every token
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


@pytest.mark.slow
def test_moments_stay_where_they_are_whatever_way_an_embedding_s_gradient_is_split():
  """About three parts of an embedding are sent to be split otherwise, not those of moments, too."""
  config = support.make_config('rim_stage2', model__tie_embeddings=True, model__embed_dim=64)
  mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
  program = step_lib.make_program(config, 4096, 10, mesh)
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                       batch_lib.make_empty_rows(8, 64, 40))
  with jax.set_mesh(mesh):
    text = step_lib.make_train_step(program, config, 10, 4, mesh).lower(
        *program.abstract, batch).compile().as_text()
  part = 4096 * 64 * 4 / 8
  assert hlo.compute_costs(text).collectives['all-to-all'].bytes < 4 * part


def test_a_mesh_axis_of_two_names_goes_to_the_later():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  with jax.set_mesh(mesh):
    x = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH, None, sharding.EMBED))(
        jax.numpy.ones((8, 2, 4)))
  want = jax.NamedSharding(mesh, P(('slice', 'data'), None, 'fsdp'))
  assert x.sharding.is_equivalent_to(want, 3)


def test_a_name_without_a_rule_raises():
  with pytest.raises(KeyError, match="no sharding rule for axis 'heds'"):
    sharding.make_spec(('heds',))


@pytest.mark.parametrize('mesh', [MeshConfig(3, 1, 1), MeshConfig(-1, 3, 1), MeshConfig(2, 2, 1)])
def test_a_mesh_that_does_not_fill_the_devices_is_refused(mesh):
  with pytest.raises(UserError, match='does not fill the 8 devices'):
    sharding.make_mesh(mesh)


def test_one_axis_takes_the_rest():
  assert dict(sharding.make_mesh(MeshConfig(-1, 2, 2)).shape) == {
      'slice': 1, 'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.mark.parametrize('sizes', [(1, 2, 8, 1), (1, 1, 16, 1), (2, 1, 8, 1)])
def test_gpus_of_several_hosts_form_any_mesh_in_their_order(sizes):
  """XLA gives each host's GPUs a slice_index of their own; only a TPU's slices are an axis."""
  gpus = [types.SimpleNamespace(id=i, slice_index=i // 8, platform='gpu') for i in range(16)]
  arranged = sharding._arrange(gpus, sizes)
  assert arranged.shape == sizes and [d.id for d in arranged.ravel()] == list(range(16))
