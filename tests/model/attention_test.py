"""Tiles and the kernel against the dense form: values, gradients, and what is never computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax.model import attention, sharding
from tests import support
from tests.support_attention import SWITCHES, make_fields, make_qkv, pull_back


@pytest.mark.parametrize('switches', SWITCHES)
@pytest.mark.parametrize('tile', [  # t = 96 is six tiles, and two and a part
    pytest.param(16, marks=pytest.mark.slow), 40])
def test_tiles_equal_the_dense_form(switches, tile):
  config = support.make_config(layout__row_tokens=96, **switches)
  fields = make_fields(config)
  q, k, v, weight = make_qkv(*fields.positions.shape, fields.positions.shape[1])
  weight = weight * (fields.example > 0)[..., None, None]  # what padding gets is free
  both = [pull_back(attention.attend, q, k, v, weight,
                    attention.find_visible(fields, fields, config.layout, n)) for n in (0, tile)]
  used = np.asarray(fields.example > 0)
  support.assert_close(both[1][0][used], both[0][0][used])
  for dense, tiled in zip(both[0][1:], both[1][1:]):
    support.assert_close(tiled, dense)


@pytest.mark.parametrize('queries', [  # all, and some over a cache
    slice(None), pytest.param(slice(60, 220), marks=pytest.mark.slow)])
def test_the_kernel_equals_the_dense_form(queries):
  """Splash, interpreted: the program that a TPU runs."""
  config = support.make_config(layout__row_tokens=256, model__max_positions=256)
  keys = make_fields(config, [support.RECORDS * 3, support.RECORDS[1:2]])
  fields = jax.tree.map(lambda x: x[:, queries], keys)
  q, k, v, weight = make_qkv(*fields.positions.shape, keys.positions.shape[1])
  weight = weight * (fields.example > 0)[..., None, None]
  kernel = functools.partial(attention._attend_splash, interpret=True)
  dense = pull_back(attention.attend, q, k, v, weight,
                    attention.find_visible(fields, keys, config.layout, 0))
  fast = pull_back(kernel, q, k, v, weight,
                   attention.find_visible(fields, keys, config.layout, 128))
  used = np.asarray(fields.example > 0)
  support.assert_close(fast[0][used], dense[0][used])
  assert np.isfinite(fast[0]).all()
  for a, b in zip(fast[1:], dense[1:]):
    support.assert_close(a, b)


def test_a_query_that_sees_nothing_gets_zeros_and_pulls_on_nothing():
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config)
  q, k, v, weight = make_qkv(*fields.positions.shape, fields.positions.shape[1])
  padding = np.asarray(fields.example == 0)
  out, *grads = pull_back(attention.attend, q, k, v, weight * padding[..., None, None],
                          attention.find_visible(fields, fields, config.layout, 16))
  assert padding.any() and (out[padding] == 0).all() and (out[~padding] != 0).all()
  assert all((g == 0).all() for g in grads)


@pytest.mark.slow
def test_queries_may_be_fewer_than_keys():
  """As in decoding: readouts over a cache of trunk and readouts."""
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config)
  queries = jax.tree.map(lambda x: x[:, 20:60], fields)
  q, k, v, weight = make_qkv(2, 40, 96)
  weight = weight * (queries.example > 0)[..., None, None]
  dense, tiled = (pull_back(attention.attend, q, k, v, weight, attention.find_visible(
      queries, fields, config.layout, n)) for n in (0, 16))
  used = np.asarray(queries.example > 0)
  support.assert_close(tiled[0][used], dense[0][used])
  for a, b in zip(tiled[1:], dense[1:]):
    support.assert_close(a, b)


@pytest.mark.parametrize('switches', SWITCHES)
def test_tiles_are_exactly_those_with_a_visible_pair(switches):
  config = support.make_config(layout__row_tokens=96, **switches)
  fields = make_fields(config)
  tiles = attention.find_visible(fields, fields, config.layout, 16)
  mask = np.asarray(attention.find_visible(fields, fields, config.layout, 0))
  held = mask.reshape(2, 6, 16, 6, 16).any((2, 4))
  for row, order, count in zip(held, tiles.order, tiles.count):
    for i in range(6):
      assert set(np.asarray(order[i, :count[i]])) == set(np.flatnonzero(row[i]))
  assert 0 < held.sum() < held.size / 3  # or there would be nothing to skip


def test_invisible_tiles_are_never_computed():
  """A key that is not a number would reach every query through any product with its tile."""
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config)
  q, k, v, weight = make_qkv(*fields.positions.shape, fields.positions.shape[1])
  tiles = attention.find_visible(fields, fields, config.layout, 16)
  clean = pull_back(attention.attend, q, k, v, weight, tiles)
  # The second row ends after three tiles: nothing sees its last ones.
  used = int((fields.example[1] > 0).sum())
  assert used <= 48
  broken = pull_back(attention.attend, q, k.at[1, 48:].set(np.nan), v.at[1, 48:].set(np.nan),
                     weight, tiles)
  for a, b in zip(clean, broken):
    np.testing.assert_array_equal(a, b)


def test_no_array_of_t_by_t_exists_with_tiles():
  """Not in the forward pass and not in the backward one, of any dtype."""
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config)
  q, k, v, weight = make_qkv(*fields.positions.shape, fields.positions.shape[1])

  def count_square(tile):
    def loss(q, k, v):
      visible = attention.find_visible(fields, fields, config.layout, tile)
      return (attention.attend(q, k, v, visible) * weight).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).as_text()
    return text.count('x96x96x') + text.count('x96x1x96x')
  assert count_square(16) == 0 and count_square(0) > 0


@pytest.mark.slow
def test_bfloat16_sums_in_float32():
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config)
  exact = make_qkv(*fields.positions.shape, fields.positions.shape[1])
  rough = [x.astype(jnp.bfloat16) for x in exact]
  out = attention.attend(*rough[:3], attention.find_visible(fields, fields, config.layout, 16))
  dense = attention.attend(*(x.astype(jnp.float32) for x in rough[:3]),
                           attention.find_visible(fields, fields, config.layout, 0))
  used = np.asarray(fields.example > 0)
  assert out.dtype == jnp.bfloat16
  support.assert_close(out.astype(jnp.float32)[used], dense[used], relative=1e-2)


@pytest.mark.slow
def test_devices_attend_for_their_own_rows_and_heads():
  config = support.make_config(layout__row_tokens=96)
  fields = make_fields(config, [support.RECORDS[:3], support.RECORDS[1:2]] * 2)
  q, k, v, weight = make_qkv(4, 96, 96)
  weight = weight * (fields.example > 0)[..., None, None]
  alone = pull_back(attention.attend, q, k, v, weight,
                    attention.find_visible(fields, fields, config.layout, 16))
  mesh = sharding.make_mesh(config_lib.MeshConfig(2, 2, 2))
  with jax.set_mesh(mesh):
    heads = jax.NamedSharding(mesh, sharding.make_spec(
        (sharding.BATCH, None, sharding.HEADS, None)))
    rows = sharding.get_batch_sharding(mesh)
    q, k, v, weight = jax.device_put((q, k, v, weight), heads)
    fields = jax.device_put(fields, rows)
    spread = jax.jit(lambda f: attention.find_visible(f, f, config.layout, 16))(fields)
    out = pull_back(attention.attend, q, k, v, weight, spread)
    text = jax.jit(attention.attend).lower(q, k, v, spread).compile().as_text()
  assert out[0].sharding.is_equivalent_to(heads, 4)
  for a, b in zip(out, alone):
    support.assert_close(a, b)
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert collective not in text
