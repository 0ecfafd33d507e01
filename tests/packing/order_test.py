"""The plan: every record once an epoch, within both capacities, a pure function."""

import itertools

import numpy as np
import pytest

from rim_jax.packing import order as order_lib


def make_sizes(count=300, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, 60, count)
  return np.stack([tokens, rng.integers(1, 6, count)], 1)


def make_plan(sizes, num_examples=None, seed=0, **changes):
  args = dict(row_tokens=100, row_slots=12, window=16) | changes
  return order_lib.make_plan(np.arange(len(sizes)), sizes, num_examples or len(sizes), seed=seed,
                             **args)


def test_rows_keep_both_capacities_and_hold_every_record_once_an_epoch():
  sizes = make_sizes()
  plan = make_plan(sizes, num_examples=2 * len(sizes) + 50)
  for i in range(plan.num_rows):
    tokens, slots = sizes[plan.get_row(i)[0]].sum(0)
    assert 0 < tokens <= 100 and 0 < slots <= 12
  counts = np.bincount(plan.records, minlength=len(sizes))
  assert counts.sum() == 2 * len(sizes) + 50 and set(counts) == {2, 3}
  first = plan.records[:len(sizes)]
  assert sorted(first) == list(range(len(sizes)))  # epochs follow one another
  assert plan.num_tokens == sizes[plan.records, 0].sum()


def test_the_plan_is_a_function_of_its_arguments():
  sizes = make_sizes()
  a, b, other = make_plan(sizes), make_plan(sizes), make_plan(sizes, seed=1)
  np.testing.assert_array_equal(a.records, b.records)
  np.testing.assert_array_equal(a.starts, b.starts)
  assert (a.records != other.records).any()
  # a longer budget begins with the same epoch
  longer = make_plan(sizes, num_examples=3 * len(sizes))
  np.testing.assert_array_equal(longer.records[:len(sizes)], a.records)
  assert (longer.records[len(sizes):2 * len(sizes)] != a.records).any()


def test_every_epoch_packs_other_records_together():
  """Not only the rows change places: records are permuted anew before they are packed."""
  sizes = make_sizes()
  plan = make_plan(sizes, num_examples=2 * len(sizes))
  rows = [frozenset(plan.get_row(i)[0].tolist()) for i in range(plan.num_rows)]
  first = next(i for i in range(plan.num_rows) if plan.starts[i] == len(sizes))
  assert len(set(rows[:first]) & set(rows[first:])) < first / 10


@pytest.mark.parametrize('cuts', [(100,), (100, 150), (300,), (250, 450, 700)])
def test_plans_one_after_the_other_hold_the_examples_of_one_plan(cuts):
  """Over epochs of 300: what is skipped is what the plans before hold."""
  sizes, ends = make_sizes(), [0, *cuts, 800]
  parts = [make_plan(sizes, end - begin, skip=begin).records
           for begin, end in itertools.pairwise(ends)]
  whole = make_plan(sizes, 800).records
  assert sorted(np.concatenate(parts)) == sorted(whole)
  for part, end in zip(parts, ends[1:], strict=True):
    if end <= 300:  # within an epoch, whose rows may stand in any order, none twice
      assert len(set(part)) == len(part)


def test_records_that_one_stage_cannot_use_move_no_others():
  """Stages with room for different records keep one order, and read on where the other ended."""
  sizes = make_sizes()
  kept = np.delete(np.arange(300), [7, 150, 299])
  whole = make_plan(sizes, 300)
  for version, moved in ((1, True), (order_lib.PLAN_VERSION, False)):
    def make(usable, count, version=version, **changes):
      plan = order_lib.make_plan(usable, sizes, count, 100, 12, 1, 0, version=version, **changes)
      return plan.records[plan.removed == 0].tolist()
    first, second = make(kept, 150), make(np.arange(300), 150, skip=150)
    num_again = len(set(first) & set(second))
    assert num_again > 30 if moved else num_again <= 3
    half = np.arange(0, 300, 2)  # half of its epoch is behind it where half of the other's is
    num_again = len(set(make(np.arange(300), 150)) & set(make(half, 75, skip=75)))
    assert num_again > 20 if moved else num_again <= 10
    assert (set(make(kept, 297)) == set(kept)) and (set(make(np.arange(300), 300)) == set(
        whole.records))


def test_permutation_is_pinned():
  """A saved run's order must be the same tomorrow: these are the words of Philox."""
  assert order_lib.permute(8, 0, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
  # A whole epoch's rows are those of its part 0.
  assert order_lib.permute(8, 3, 2, 1).tolist() == order_lib.permute(8, 3, 2, 1, 0).tolist()
  plan = make_plan(np.ones((8, 2), int), 16, row_tokens=4)  # two epochs of two rows
  assert plan.records.tolist() == [1, 2, 6, 4, 0, 3, 7, 5, 1, 6, 5, 0, 3, 7, 4, 2]


def test_first_fit_takes_the_oldest_row_with_room():
  sizes = np.array([[60, 1], [50, 1], [40, 1], [50, 1], [100, 1]])
  assert order_lib.pack(np.arange(5), sizes, (100, 9), 8) == [[0, 2], [1, 3], [4]]
  # a full window closes the row with the least room
  assert order_lib.pack(np.arange(5), sizes, (100, 9), 1) == [[0], [1, 2], [3], [4]]
  # slots run out before tokens
  assert order_lib.pack(np.arange(3), sizes[:3] // 10 + [0, 3], (100, 4), 8) == [[0], [1], [2]]


def test_packing_fills_rows():
  plan = make_plan(make_sizes(5000), row_tokens=400, row_slots=60, window=64)
  assert plan.useful_frac > 0.95


def test_row_slots_leave_tokens_as_the_limit():
  sizes = make_sizes(5000)
  slots = order_lib.choose_row_slots(sizes, 400)
  assert slots % 8 == 0 and slots >= sizes[:, 1].max()
  used = 400 * sizes[:, 1].sum() / sizes[:, 0].sum()  # each is a vector of the vocabulary's size
  assert slots < 1.1 * used + 8
  tight = make_plan(sizes, row_tokens=400, row_slots=slots, window=64)
  free = make_plan(sizes, row_tokens=400, row_slots=10_000, window=64)
  assert tight.num_rows <= 1.02 * free.num_rows


def test_a_cut_epoch_is_packed_part_by_part_in_the_order_of_training():
  sizes = make_sizes()
  least = sizes - [4, 0]

  def cut(epoch, order):
    parts = np.split(order, [100])
    return [(parts[0], 2 * epoch, parts[0] % 5),
            (parts[1], 2 * epoch + 1, parts[1] % 5 + 5)]
  plan = make_plan(sizes, num_examples=2 * len(sizes) - 50, cut=cut, least=least)
  whole = make_plan(sizes, num_examples=2 * len(sizes) - 50)
  assert [level for _, level in plan.parts] == [0, 1, 2, 3]
  starts = [plan.starts[row] for row, _ in plan.parts]
  assert starts == [0, 100, 300, 400]  # no row spans two parts
  assert sorted(plan.records[:300]) == sorted(whole.records[:300]) == list(range(300))
  more = np.repeat([0, 5, 0, 5], [100, 200, 100, 150])
  np.testing.assert_array_equal(plan.removed, plan.records % 5 + more)
  needs = np.maximum(sizes[plan.records] - plan.removed[:, None], least[plan.records])
  assert plan.num_tokens == needs[:, 0].sum()
  for i in range(plan.num_rows):
    tokens, slots = needs[plan.starts[i]:plan.starts[i + 1]].sum(0)
    assert tokens <= 100 and slots <= 12
    np.testing.assert_array_equal(
        plan.get_row(i)[1], plan.removed[plan.starts[i]:plan.starts[i + 1]])
  assert len(plan.get_row(plan.num_rows)[1]) == 0


def test_beyond_the_plan_is_padding():
  plan = make_plan(make_sizes())
  assert len(plan.get_row(plan.num_rows)[0]) == 0 and len(plan.get_row(plan.num_rows - 1)[0]) > 0


@pytest.mark.parametrize('count', [1, 7, 1000])
def test_permute_permutes(count):
  assert sorted(order_lib.permute(count, 3, 1, 0)) == list(range(count))
