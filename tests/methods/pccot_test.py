"""PCCoT's ends: without an iteration it is pause, with as many as thoughts CODI."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.packing import batch as batch_lib
from rim_jax.training import step as step_lib
from tests import support

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
LIMITS = batch_lib.RowLimits(examples=3)


def make_config(method='pccot', num_passes=4, **changes):
  return support.make_config(method, **{
      'layout__num_blocks': 1, 'layout__block_tokens': 3, 'layout__row_tokens': 96,
      'loop__num_passes': num_passes, 'model__positions': 'rope', **changes})


def compute(config, batch, differentiate=lambda compute_mean: compute_mean):
  """The loss an example, or what else is made of it, of the same random network."""
  graphdef, params = nnx.split(support.make_model(config))

  def compute_mean(params):
    total, sums = step_lib.compute_loss(nnx.merge(graphdef, params), batch, 0, 10, 4, config, None,
                                        LIMITS)
    return total / sums['norm']
  return jax.jit(differentiate(compute_mean))(params)


def test_without_an_iteration_and_a_teacher_it_is_pause():
  config = make_config(num_passes=1, distill__weight=0.0, distill__teacher_weight=0.0)
  other = make_config('pause', 1)
  losses = [compute(c, jax.tree.map(jnp.asarray, support.make_batch(c, ROWS)))
            for c in (config, other)]
  np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize('projected, thoughts, passes', [
    (True, 2, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (True, 3, 4), (False, 3, 4), (True, 1, 2), (True, 2, 5)))])
def test_with_as_many_iterations_as_thoughts_it_is_codi(projected, thoughts, passes):
  """Loss and gradients, with teacher and distances; more iterations change nothing."""
  config = make_config(num_passes=passes, layout__block_tokens=thoughts,
                       loop__projection=projected)
  other = make_config('codi', 1, layout__block_tokens=thoughts, codi__projection=projected)
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS))
  jax.tree.map(np.testing.assert_array_equal, batch, support.make_batch(other, ROWS))
  (loss, grads), (expected, others) = (
      compute(c, batch, jax.value_and_grad) for c in (config, other))
  support.assert_close(loss, expected)
  jax.tree.map(lambda a, b: support.assert_close(a, b, 4e-5), grads, others)
  fewer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, num_passes=thoughts))
  assert abs(compute(fewer, batch) - expected) > 1e-4


