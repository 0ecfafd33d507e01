"""Schedules at their zero points, alpha, and what slot weights add up to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import methods
from rim_jax.config import CurriculumConfig
from rim_jax.methods import rim
from rim_jax.packing import batch as batch_lib
from rim_jax.training import loss as loss_lib
from tests import support

S = 120


def fade(schedule, t, n, step, hold=0.0):
  config = CurriculumConfig(schedule=schedule, hold_frac=hold, absolute_steps=10)
  return float(rim.compute_lambda(t, n, jnp.int32(step), S, config))


@pytest.mark.parametrize('t', [1, 2, 3, 4])
def test_relative_is_zero_from_s_equal_t_over_n(t):
  zero = S * t // 4
  assert fade('relative', t, 4, 0) == 1
  assert fade('relative', t, 4, zero - 1) == pytest.approx(1 - (zero - 1) * 4 / (S * t), abs=1e-6)
  assert fade('relative', t, 4, zero - 1) > 0 == fade('relative', t, 4, zero)
  assert fade('relative', t, 4, min(zero + 1, S)) == 0


@pytest.mark.parametrize('t', [1, 5, 10])
def test_absolute_is_zero_from_s_equal_t_over_t_max(t):
  zero = S * t // 10
  assert fade('absolute', t, 4, zero - 1) > 0 == fade('absolute', t, 4, zero)
  assert fade('absolute', t, 2, zero - 1) == fade('absolute', t, 9, zero - 1)  # n has no say


@pytest.mark.parametrize('t', [1, 2, 3, 4])
def test_windowed_falls_in_its_own_window(t):
  begin, end = S * (t - 1) // 4, S * t // 4
  assert fade('windowed', t, 4, begin) == 1
  assert fade('windowed', t, 4, begin + 1) < 1
  assert fade('windowed', t, 4, end - 1) > 0 == fade('windowed', t, 4, end)


def test_uniform_and_constant():
  for t in (1, 4):
    assert fade('uniform', t, 4, 0) == 1
    assert fade('uniform', t, 4, S // 2) == pytest.approx(0.5)
    assert fade('uniform', t, 4, S) == 0
    assert fade('constant', t, 4, 0) == fade('constant', t, 4, S) == 1


@pytest.mark.parametrize('schedule', ['relative', 'absolute', 'windowed', 'uniform'])
def test_fading_begins_after_the_hold_and_ends_at_the_end(schedule):
  hold = 0.5
  held = S // 2
  t = 10 if schedule == 'absolute' else 4
  assert fade(schedule, 1, 4, held, hold) == 1 > fade(schedule, 1, 4, held + 1, hold)
  for step in (held, held + 30, S):  # the rest is the schedule on S - held steps
    scaled = (step - held) * 2
    assert fade(schedule, t, 4, step, hold) == pytest.approx(fade(schedule, t, 4, scaled), abs=1e-6)
  assert fade(schedule, t, 4, S, hold) == 0


@pytest.mark.parametrize('schedule', ['relative', 'absolute', 'windowed', 'uniform', 'constant'])
def test_lambda_stays_in_range_and_never_grows(schedule):
  weights = np.array([[fade(schedule, t, 5, s, 0.25) for s in range(0, S + 1, 6)]
                      for t in range(1, 6)])
  assert ((0 <= weights) & (weights <= 1)).all()
  assert (np.diff(weights, axis=1) <= 1e-6).all()
  assert (np.diff(weights, axis=0) >= -1e-6).all()  # earlier blocks first


@pytest.mark.parametrize('num_blocks', [1, 4, 8])
def test_alpha(num_blocks):
  k = np.arange(1, num_blocks + 1)
  alpha = rim.compute_alpha(k, num_blocks, CurriculumConfig())
  np.testing.assert_allclose(alpha, 2 * k / (num_blocks * (num_blocks + 1)), rtol=1e-6)
  for name in ('linear', 'uniform', 'final'):
    alpha = rim.compute_alpha(k, num_blocks, CurriculumConfig(alpha=name))
    assert float(alpha.sum()) == pytest.approx(1)
  assert alpha.tolist() == [0.0] * (num_blocks - 1) + [1.0]


def weigh(config, step=0, rows=(support.RECORDS[:2], support.RECORDS[2:4])):
  batch = support.make_batch(config, rows)
  weights, norm = loss_lib.compute_slot_weights(
      jax.tree.map(jnp.asarray, batch), jnp.int32(step), S, config)
  return batch, np.asarray(weights), float(norm)


@pytest.mark.parametrize('method', [  # kinds that count as a mean of their own have other weights
    name for name, method in sorted(methods.METHODS.items()) if not method.means])
def test_readout_reduction_gives_a_readout_its_weight_whatever_its_length(method):
  config = support.make_config(method)
  batch, weights, norm = weigh(config, step=0)
  assert norm == pytest.approx(weights.sum())
  codec = support.make_codec(config)
  expected = 4 if config.facts.needs_blocks else sum(  # its alpha_k add up to 1
      len(codec.lay_out(codec.encode(r)).readouts) for r in support.RECORDS[:4])
  assert weights.sum() == pytest.approx(expected, rel=1e-5)
  assert (weights[batch.slot_kind == batch_lib.SLOT_PAD] == 0).all()
  by_token = dataclasses.replace(
      config, curriculum=dataclasses.replace(config.curriculum, reduction='token'))
  np.testing.assert_allclose(weigh(by_token)[1], weights * batch.slot_tokens, rtol=1e-6)


def test_weight_normalisation_shifts_emphasis_and_readouts_keeps_the_count():
  config = support.make_config('rim_stage1', curriculum__schedule='uniform')
  _, half, norm = weigh(config, S // 2)
  assert norm == pytest.approx(half.sum())  # uniform fading cancels out
  literal = support.make_config('rim_stage1', curriculum__schedule='uniform',
                                curriculum__normalize='readouts')
  _, half, norm = weigh(literal, S // 2)
  assert half.sum() / norm == pytest.approx(0.5)


def test_depth0_shifts_t_and_n_by_one():
  config = support.make_config('rim_stage1', layout__depth0_readout=True)
  batch, weights, _ = weigh(config, S // 2, rows=(support.RECORDS[3:4],))  # T = 3
  used = batch.slot_kind[0] > 0
  for block, weight, tokens in zip(batch.slot_block[0][used], weights[0][used],
                                   batch.slot_tokens[0][used]):
    expected = fade('relative', int(block) + 1, 4, S // 2)
    assert weight * tokens == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('alpha, expected', [
    ('linear', [0.1, 0.2, 0.3, 0.4]), ('uniform', [0.25] * 4), ('final', [0, 0, 0, 1])])
def test_stage2_depth0_shifts_k_and_the_number_of_blocks_by_one(alpha, expected):
  config = support.make_config('rim_stage2', layout__stage2_depth0_readout=True,
                               curriculum__alpha=alpha)  # K = 3
  batch, weights, norm = weigh(config, rows=(support.RECORDS[:1],))
  used = batch.slot_kind[0] > 0
  found = np.zeros(4)
  np.add.at(found, batch.slot_block[0][used], weights[0][used])
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert norm == pytest.approx(1)
