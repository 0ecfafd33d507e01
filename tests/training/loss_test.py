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
