"""iCoT: chain of thought whose written chain is taken away, token by token, as training goes on.

How much of its chain a record has lost is a pure function of (seed, epoch, place in the epoch's
order, record): the plan asks it once, and every process gets the same answer. The chain (steps and
what separates them) loses tokens from the left, `remove_per_epoch` an epoch, one at a time and
evenly spread; what is left closes up.

Departures from the source: a readout counts by the mean of its tokens (`curriculum.reduction`), and
the answer's prefix, trained as text, is given when the network is judged.

Source: stepwise internalization, arXiv 2405.14838; the draws are per record and epoch as its
authors' code draws them per example.
"""

import math

import numpy as np

from rim_jax.config import Config, IcotConfig
from rim_jax.methods import cot
from rim_jax.methods.method import Method
from rim_jax.packing.order import ALL, HELD, Removal


def compute_levels(epoch: int, count: int, limit: int, config: IcotConfig) -> np.ndarray:
  """Tokens due to be removed at each place of an epoch of `count` records: i64[count].

  HELD for the first hold_epochs; ALL once `limit` are due.
  """
  since = epoch * count + np.arange(count) - config.hold_epochs * count
  levels = np.floor(since * config.remove_per_epoch / count).astype(np.int64)
  return np.where(since < 0, HELD, np.where(levels >= limit, ALL, levels))


def draw_extra(epoch: int, count: int, config: IcotConfig, seed: int) -> np.ndarray:
  """Removal smoothing: tokens o >= 0 that each of `count` records loses beyond what is due.

  P(o) ~ exp(-smoothing o), so P(o >= j) = exp(-smoothing j): the number of those thresholds
  that a uniform draw is below. Whole numbers of 32 bits, so that no host rounds otherwise.
  """
  if not config.smoothing:
    return np.zeros(count, np.int64)
  draws = np.random.Philox(np.random.SeedSequence((seed, epoch, 2))).random_raw(count) >> 32
  last = math.ceil(32 * math.log(2) / config.smoothing)
  thresholds = [int(2**32 * math.exp(-config.smoothing * j)) for j in range(last, 0, -1)]
  return len(thresholds) - np.searchsorted(np.asarray(thresholds, np.uint64), draws, 'right')


def make_cut(num_records: int, longest: int, config: Config):
  """What `order.make_plan` takes as `cut`: an epoch's order, divided where more is removed.

  Args:
    num_records: of the split, usable or not.
    longest: tokens of the longest chain; once so many are due, all chains are gone.
  """
  limit = min(config.icot.remove_all_beyond_tokens, longest)

  def cut(epoch, order):
    levels = compute_levels(epoch, len(order), limit, config.icot)
    extra = draw_extra(epoch, num_records, config.icot, config.seed)
    starts = np.flatnonzero(np.diff(levels, prepend=levels[0] - 1))
    parts = []
    for members, level in zip(np.split(order, starts[1:]), levels[starts].tolist()):
      lost = {HELD: np.zeros_like(members), ALL: np.full_like(members, ALL)}.get(
          level, level + extra[members])
      parts.append((members, level, lost))
    return parts
  return cut


def find_steps(parts, batch_rows: int, config: Config) -> tuple[tuple[int, ...], int]:
  """(updates before which the optimizer begins anew, the first checkpoint that counts).

  An update counts the rows of `parts` (first row, level): the optimizer begins anew at the first
  one that has a row of a higher level, as the moments are of another task. A checkpoint counts
  once an update saw no written chain at all; 0 where the plan has no such update.
  """
  resets, counted, before = [], 0, 0
  for row, level in parts:
    if level > before:
      resets.append(row // batch_rows)
      before = level
      if level == ALL:
        counted = -(-row // batch_rows) + 1
  return tuple(sorted(set(resets))) if config.icot.reset_optimizer else (), counted


ICOT = Method(cot.lay_out, removal=Removal(make_cut, find_steps, 'icot.remove_per_epoch'))
