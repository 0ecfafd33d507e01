"""What iCoT removes and when, against values by hand; the draws' distribution; the steps."""

import math

import numpy as np
import pytest

from rim_jax.config import Config, IcotConfig
from rim_jax.methods import icot
from rim_jax.packing import order as order_lib

H, A = order_lib.HELD, order_lib.ALL


@pytest.mark.parametrize('settings, epoch, levels', [
    # one more after each fifth of ten places
    ({'remove_per_epoch': 5.0}, 0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ({'remove_per_epoch': 5.0}, 1, [5, 5, 6, 6, A, A, A, A, A, A]),
    # less than one an epoch
    ({'remove_per_epoch': 0.5}, 1, [0] * 10), ({'remove_per_epoch': 0.5}, 2, [1] * 10),
    ({'remove_per_epoch': 0.4}, 2, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
    # counted from the end of the hold
    ({'remove_per_epoch': 5.0, 'hold_epochs': 1.0}, 0, [H] * 10),
    ({'remove_per_epoch': 5.0, 'hold_epochs': 1.0}, 1, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ({'remove_per_epoch': 5.0, 'hold_epochs': 0.5}, 0, [H, H, H, H, H, 0, 0, 1, 1, 2]),
])
def test_levels_by_hand(settings, epoch, levels):
  """Limit 7: once seven tokens are due, everything goes."""
  assert icot.compute_levels(epoch, 10, 7, IcotConfig(**settings)).tolist() == levels


@pytest.mark.parametrize('smoothing', [0.5, 4.0])
def test_extra_tokens_are_drawn_with_p_of_o_as_exp_of_minus_lambda_o(smoothing):
  count = 200_000
  extra = icot.draw_extra(3, count, IcotConfig(smoothing=smoothing), seed=1)
  for o in range(4):
    expected = count * (1 - math.exp(-smoothing)) * math.exp(-smoothing * o)
    assert abs((extra == o).sum() - expected) < 5 * math.sqrt(expected) + 1


def test_extra_tokens_depend_on_seed_epoch_and_record_alone():
  config = IcotConfig(smoothing=0.5)
  draws = icot.draw_extra(0, 50, config, 0)
  np.testing.assert_array_equal(draws, icot.draw_extra(0, 50, config, 0))
  np.testing.assert_array_equal(draws[:20], icot.draw_extra(0, 20, config, 0))
  assert (draws != icot.draw_extra(1, 50, config, 0)).any()
  assert (draws != icot.draw_extra(0, 50, config, 1)).any()
  assert not icot.draw_extra(0, 50, IcotConfig(smoothing=0.0), 0).any()
  # By inversion: o is the whole part of an exponential variable.
  words = np.random.Philox(np.random.SeedSequence((0, 0, 2))).random_raw(50)
  np.testing.assert_array_equal(draws, [int(-math.log((int(w) >> 32) / 2**32) / 0.5)
                                        for w in words])


def test_an_epoch_is_cut_where_more_is_removed():
  """Before removal nothing is lost, by chance neither; then the level and the record's own draw."""
  config = IcotConfig(remove_per_epoch=4.0, hold_epochs=0.25, smoothing=0.5)
  order = order_lib.permute(40, 0, 0, 0)[:20]  # half of the records are not usable
  parts = icot.make_cut(40, 2, Config(icot=config))(0, order)
  extra = icot.draw_extra(0, 40, config, 0)
  assert [(len(members), level) for members, level, _ in parts] == [(5, H), (5, 0), (5, 1), (5, A)]
  np.testing.assert_array_equal(np.concatenate([members for members, _, _ in parts]), order)
  for (members, level, lost), expected in zip(parts, (0, extra, 1 + extra, A)):
    np.testing.assert_array_equal(lost, expected[members] if level in (0, 1) else expected)


def test_all_goes_at_the_longest_chain_or_at_the_limit_whichever_is_less():
  config = Config(icot=IcotConfig(remove_per_epoch=10.0, remove_all_beyond_tokens=6))
  levels = [[level for _, level, _ in icot.make_cut(10, longest, config)(0, np.arange(10))]
            for longest in (100, 3)]
  assert levels == [[0, 1, 2, 3, 4, 5, A], [0, 1, 2, A]]


def test_steps_by_hand():
  """Four rows an update: level 1 begins inside update 1, 2 and all of it at update 3."""
  parts = ((0, H), (3, 0), (6, 1), (12, 2), (13, A), (20, A))
  config = Config()
  assert icot.find_steps(parts, 4, config) == ((1, 3), 5)  # update 4 has rows 16 to 19
  assert icot.find_steps(parts[:4], 4, config) == ((1, 3), 0)
  assert icot.find_steps(parts, 4, Config(icot=IcotConfig(reset_optimizer=False))) == ((), 5)
  assert icot.find_steps(((0, A),), 4, config) == ((0,), 1)
