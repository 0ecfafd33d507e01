"""Cross-entropy by hand, and sums that survive zero weights and bad slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.training import loss as loss_lib


def test_nll_by_hand():
  logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32)) + 7
  nll = loss_lib.compute_slot_nll(jnp.asarray(logits), jnp.asarray([[1, 2]]))
  np.testing.assert_allclose(nll, -np.log([[0.25, 0.8]]), rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_nll_is_bit_for_bit_what_jax_derives_step_by_step(dtype):
  def derive(logits, targets):
    wide = logits.astype(jnp.float32)
    target = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(wide, axis=-1) - target
  keys = jax.random.split(jax.random.key(0), 3)
  logits = (5 * jax.random.normal(keys[0], (2, 8, 300))).astype(dtype)
  targets = jax.random.randint(keys[1], (2, 8), 0, 300)
  weights = jax.random.uniform(keys[2], (2, 8))
  found, expected = (jax.jit(jax.value_and_grad(
      lambda x, fn=fn: (fn(x, targets) * weights).sum()))(logits)
      for fn in (loss_lib.compute_slot_nll, derive))
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])
  assert found[1].dtype == dtype


def test_on_an_accelerator_no_array_as_large_as_the_logits_is_scattered_into():
  """Each would be written to memory and read again, beside the logits. The values are the same."""
  targets = jnp.array([[3, 0, 49], [7, 7, 1]])
  traced = jax.jit(jax.grad(lambda x: loss_lib.compute_slot_nll(x, targets).sum())).trace(
      jnp.ones((2, 3, 50)))
  for platform, scatters in (('tpu', False), ('cuda', False), ('cpu', True)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert 'stablehlo.exponential' in text and ('stablehlo.scatter' in text) == scatters
  x, y = jax.random.normal(jax.random.key(0), (2, 3, 50)), jnp.array([[1.0, 0, -2], [3, 4, 5]])
  np.testing.assert_array_equal(loss_lib._subtract_in_place(x, targets, y),
                                loss_lib._subtract_everywhere(x, targets, y))


def test_nll_of_bfloat16_is_reduced_in_float32():
  logits = jnp.full((1, 1, 1000), 3.0, jnp.bfloat16)
  nll = loss_lib.compute_slot_nll(logits, jnp.zeros((1, 1), jnp.int32))
  assert nll.dtype == jnp.float32
  assert float(nll[0, 0]) == pytest.approx(np.log(1000), rel=1e-5)


def test_a_slot_of_weight_zero_is_silent_even_where_it_is_not_finite():
  nll, weights = jnp.array([[1.0, jnp.inf, 2.0]]), jnp.array([[2.0, 0.0, 1.0]])
  value, gradient = jax.value_and_grad(
      lambda x: loss_lib.compute_weighted_nll(x, weights).sum())(nll)
  assert float(value) == 4.0
  assert gradient.tolist() == [[2.0, 0.0, 1.0]]


def test_division_by_nothing_is_zero_with_gradient_zero():
  value, gradient = jax.value_and_grad(loss_lib.divide_or_zero)(jnp.float32(3), jnp.float32(0))
  assert (float(value), float(gradient)) == (0.0, 0.0)
  assert float(loss_lib.divide_or_zero(jnp.float32(3), jnp.float32(2))) == 1.5
