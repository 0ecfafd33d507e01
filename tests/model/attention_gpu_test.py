"""The GPU's kernels against the dense form: values, gradients, what is never computed.

Here they run interpreted. Tests marked `gpu_plan` compile them for GPUs that are not here, and ask
the assembler whether registers were spilled; they need the extra `plan-gpu`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax.model import attention, attention_gpu, sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.planning import gpus
from tests import support
from tests.support_attention import SWITCHES, make_fields, make_qkv, pull_back
from tests.support_gpu import needs_plugin

attend = functools.partial(attention_gpu.attend, interpret=True)


def make_case(row_tokens=96, switches=SWITCHES[0], rows=None, **settings):
  config = support.make_config(layout__row_tokens=row_tokens, model__max_positions=row_tokens,
                               **switches)
  fields = make_fields(config, rows)
  b, t = fields.positions.shape
  q, k, v, weight = make_qkv(b, t, t, **settings)
  return config, fields, q, k, v, weight * (fields.example > 0)[..., None, None]


def assert_equal_dense(config, fields, q, k, v, weight, tile, relative=None, queries=None):
  queries = queries or fields
  dense = pull_back(attention.attend, *(x.astype(jnp.float32) for x in (q, k, v)), weight,
                    attention.find_visible(queries, fields, config.layout, 0))
  fast = pull_back(attend, q, k, v, weight,
                   attention_gpu.find_tiles(queries, fields, config.layout, tile))
  used = np.asarray(queries.example > 0)
  more = {} if relative is None else {'relative': relative}
  support.assert_close(fast[0].astype(jnp.float32)[used], dense[0][used], **more)
  assert (fast[0][~used] == 0).all()
  for a, b in zip(fast[1:], dense[1:]):
    assert a.dtype == q.dtype
    support.assert_close(a.astype(jnp.float32), b, **more)


@pytest.mark.parametrize('switches', [
    SWITCHES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SWITCHES[1:])])
@pytest.mark.parametrize('tile', [  # of t = 96: six tiles, and one and a half
    pytest.param(16, marks=pytest.mark.slow), 64])
def test_the_kernels_equal_the_dense_form(switches, tile):
  assert_equal_dense(*make_case(switches=switches), tile)


@pytest.mark.slow
# Heads of 80 and 96 are padded in registers; larger ones are cut into parts of a tile.
@pytest.mark.parametrize('head_dim', [64, 80, 256])
def test_heads_of_every_size(head_dim):
  assert_equal_dense(*make_case(head_dim=head_dim, heads=3, kv_heads=1), 64)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
  assert_equal_dense(*make_case(dtype=dtype, head_dim=16), 16, relative=1e-2)


@pytest.mark.slow
def test_queries_may_be_fewer_than_keys():
  """As in decoding: readouts over a cache of trunk and readouts."""
  config, fields, *_ = make_case()
  queries = jax.tree.map(lambda x: x[:, 20:60], fields)
  q, k, v, weight = make_qkv(2, 40, 96)
  weight = weight * (queries.example > 0)[..., None, None]
  assert_equal_dense(config, fields, q, k, v, weight, 16, queries=queries)


@pytest.mark.slow
def test_a_query_that_sees_nothing_pulls_on_nothing():
  config, fields, q, k, v, _ = make_case()
  padding = np.asarray(fields.example == 0)
  weight = make_qkv(2, 96, 96)[3] * padding[..., None, None]
  tiles = attention_gpu.find_tiles(fields, fields, config.layout, 16)
  out, *grads = pull_back(attend, q, k, v, weight, tiles)
  assert padding.any() and (out[padding] == 0).all() and (out[~padding] != 0).all()
  assert all((g == 0).all() for g in grads)


@pytest.mark.slow
def test_invisible_tiles_are_never_computed_and_every_run_is_the_same():
  """A key that is not a number would reach every query through any product with its tile."""
  config, fields, q, k, v, weight = make_case()
  used = int((fields.example[1] > 0).sum())
  assert used <= 48  # the second row ends after three tiles: nothing sees its last ones
  tiles = attention_gpu.find_tiles(fields, fields, config.layout, 16)
  clean, again = (pull_back(attend, q, k, v, weight, tiles) for _ in range(2))
  broken = pull_back(attend, q, k.at[1, 48:].set(np.nan), v.at[1, 48:].set(np.nan), weight, tiles)
  for a, b, c in zip(clean, again, broken):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize('switches', SWITCHES)
def test_tiles_are_exactly_those_with_a_visible_pair(switches):
  config, fields, *_ = make_case(switches=switches)
  tiles = attention_gpu.find_tiles(fields, fields, config.layout, 16)
  mask = np.asarray(attention.find_visible(fields, fields, config.layout, 0))
  held = mask.reshape(2, 6, 16, 6, 16).any((2, 4))
  for seen, order, count in ((held, tiles.order, tiles.count),
                             (held.swapaxes(1, 2), tiles.key_order, tiles.key_count)):
    for row, i in np.ndindex(2, 6):
      assert list(order[row, i, :count[row, i]]) == list(np.flatnonzero(seen[row, i]))
  assert 0 < held.sum() < held.size / 3  # or there would be nothing to skip


def test_tiles_of_the_kernels_are_powers_of_two_that_registers_hold():
  assert [attention_gpu.choose_tile(n) for n in (1, 16, 40, 64, 256)] == [16, 16, 32, 64, 64]


# ---- Compiled for GPUs that are not here ----


@pytest.fixture
def as_users_compile():
  """Without the settings of conftest.py, which change what the compiler makes."""
  kept = {name: jax.config.values[name]
          for name in ('jax_disable_most_optimizations', 'jax_default_matmul_precision')}
  jax.config.update('jax_disable_most_optimizations', False)
  jax.config.update('jax_default_matmul_precision', None)
  yield
  for name, value in kept.items():
    jax.config.update(name, value)


def compile_for(kind, head_dim, dtype, tokens=512, queries=None):
  """Attention and its gradients on one GPU, refused where a register is spilled."""
  mesh = sharding.make_mesh(config_lib.MeshConfig(1, 1, 1), gpus.make_devices(kind))
  at = sharding.get_batch_sharding(mesh)

  def make(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)
  queries = queries or tokens
  q, k, v, do = (make(2, t, heads, head_dim, dtype=dtype)
                 for t, heads in ((queries, 8), (tokens, 2), (tokens, 2), (queries, 8)))
  query, key = (batch_lib.Fields(*[make(2, t)] * 4) for t in (queries, tokens))

  def fn(q, k, v, do, query, key):
    visible = attention.find_visible(query, key, config_lib.LayoutConfig(), 64)
    out, pull = jax.vjp(lambda *qkv: attention.attend(*qkv, visible), q, k, v)
    return out, pull(do)
  with jax.set_mesh(mesh):
    lowered = jax.jit(fn).trace(q, k, v, do, query, key).lower(lowering_platforms=('cuda',))
    return lowered.compile(compiler_options={
        'xla_gpu_fail_ptx_compilation_on_register_spilling': True}).as_text()


@pytest.mark.gpu_plan
@needs_plugin
@pytest.mark.parametrize('head_dim, dtype', [
    (size, dtype) for size in (64, 80, 96, 128, 256)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    if (size, dtype) != (256, jnp.float32)])  # whose dkv does not fit
@pytest.mark.parametrize('kind', ['a100', 'h100', 'b200'])
def test_no_register_is_spilled(kind, head_dim, dtype, as_users_compile):
  text = compile_for(kind, head_dim, dtype)
  assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
  assert ' while(' not in text


@pytest.mark.gpu_plan
@needs_plugin
def test_the_assembler_is_asked(monkeypatch, as_users_compile):
  """Tiles that are too large for this head are refused, or the test above could not fail."""
  monkeypatch.setattr(attention_gpu, 'choose_block',
                      lambda *unused: attention_gpu.Block(64, 64, 4))
  with pytest.raises(jax.errors.JaxRuntimeError, match='register spilling'):
    compile_for('h100', 128, jnp.bfloat16)


@pytest.mark.gpu_plan
@needs_plugin
def test_few_queries_on_a_long_cache_launch_few_kernels(as_users_compile):
  text = compile_for('h100', 64, jnp.bfloat16, queries=8)
  assert ' while(' not in text and 'gpu.triton"' not in text.replace('__triton_gemm', '')
