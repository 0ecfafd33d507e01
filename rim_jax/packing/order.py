"""The packing plan: which records stand in which row, for a whole stage, as a pure function.

Every host computes the same plan from (PLAN_VERSION, seed, budget, sizes,
capacities) and reads only its rows of it. Row i of the plan is a list of record
numbers, so the data position is one integer, resume replays nothing, and the
order does not depend on how many hosts there are.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

# 1 permuted the records that a stage can use, 2 permutes all: where a layout has no room for one,
# the others keep their order.
PLAN_VERSION = 2
ALL = 1 << 30  # more tokens than any chain has
HELD = -1  # the level before removal begins: nothing is lost, by chance neither


@dataclasses.dataclass(frozen=True)
class Removal:
  """How written chains lose their tokens over the epochs of a stage, where a method says so."""
  # (records of the split, tokens of the longest chain, Config) -> `cut`, as `make_plan` takes it.
  make_cut: Callable
  # (`Plan.parts`, batch_rows, Config) -> (updates before which the optimizer begins anew, the first
  # checkpoint that counts, 0 for none).
  find_steps: Callable
  rate_key: str  # the config key that makes it faster


@dataclasses.dataclass(frozen=True)
class Plan:
  """Rows of record numbers: row i is `records[starts[i]:starts[i + 1]]`."""
  records: np.ndarray
  starts: np.ndarray
  num_tokens: int  # useful ones, over all rows
  row_tokens: int
  row_slots: int
  removed: np.ndarray  # beside records: tokens of its chain that a record has lost there
  parts: tuple  # (first row, level) of each part of an epoch, as `cut` has it

  @property
  def num_rows(self):
    return len(self.starts) - 1

  @property
  def examples_per_row(self):
    return len(self.records) / self.num_rows

  @property
  def useful_frac(self):
    return self.num_tokens / (self.num_rows * self.row_tokens)

  def get_row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(records of row i, tokens that each has lost); none beyond the plan: such a row is padding.
    """
    row = slice(self.starts[i], self.starts[i + 1]) if i < self.num_rows else slice(0)
    return self.records[row], self.removed[row]


def permute(count: int, *seed: int) -> np.ndarray:
  """A permutation of range(count) from a seed.

  Sorts raw Philox words: a bit generator's stream is fixed across numpy
  versions, which `Generator.permutation` does not promise.
  """
  sequence = np.random.SeedSequence(seed)
  return np.argsort(np.random.Philox(sequence).random_raw(count), kind='stable')


def choose_row_slots(sizes: np.ndarray, row_tokens: int) -> int:
  """Slots a row needs so that tokens, not slots, run out first: a tenth above the mean use."""
  tokens, slots = sizes[:, 0].sum(), sizes[:, 1].sum()
  need = max(int(np.ceil(1.1 * row_tokens * slots / tokens)), int(sizes[:, 1].max()))
  return -(-need // 8) * 8


def pack(order: np.ndarray, sizes: np.ndarray, capacity, window: int) -> list[list[int]]:
  """First-fit of records, in order, over at most `window` open rows.

  A record goes to the oldest open row that has room in every capacity; with
  none and the window full, the row with the fewest free tokens is closed.

  Shapes: order i[n] record numbers; sizes i[N, m+] of every record, tokens first;
    capacity i[m], what a row has.
  """
  free = np.zeros((0, len(capacity)), np.int64)
  rows, is_open = [], []
  for record in order:
    need = sizes[record, :len(capacity)]
    fits = np.flatnonzero((free >= need).all(1))
    if len(fits):
      at = fits[0]
    else:
      if len(is_open) == window:
        full = int(free[:, 0].argmin())
        free = np.delete(free, full, axis=0)
        del is_open[full]
      at = len(is_open)
      free = np.vstack([free, [capacity]])
      is_open.append(len(rows))
      rows.append([])
    free[at] -= need
    rows[is_open[at]].append(int(record))
  return rows


# 11 parameters: the plan is a pure function, and these are all that it depends on.
def make_plan(usable: np.ndarray, sizes: np.ndarray, num_examples: int, row_tokens: int,
              row_slots: int, window: int, seed: int, cut=None, least=None, skip=0,
              version: int = PLAN_VERSION) -> Plan:
  """The rows of a stage: epochs of freshly permuted records until the budget is spent.

  Where the layout changes within an epoch (`cut`), each part of it is packed and its rows are
  permuted on their own, so that the change comes in the order of training.

  Args:
    usable: numbers of the records that may be used.
    sizes: i[N, 2+], tokens and slots of every record; each fits a row.
    num_examples: the budget; the last epoch takes the first records of its order.
    cut: (epoch, order of its records) -> [(records, level, tokens that each of them has lost)];
      by default whole epochs, and nothing lost.
    least: like sizes, what is left of a record that has lost all it can.
    skip: examples of the first epochs that are left out: the first ones of their order. Records
      that cannot be used have their share of them, so that a stage that uses others reads on there.
    version: of a plan that an earlier version of this project began.
  """
  cut = cut or (lambda epoch, order: [(order, 0, np.zeros_like(order))])
  least = sizes if least is None else least
  records, removed, lengths, parts = [], [], [], []
  ordered = usable if version == 1 else np.arange(len(sizes))
  epoch, skip = divmod(round(skip * len(ordered) / len(usable)), len(ordered))
  num_tokens, left = 0, num_examples
  while left > 0:
    order = ordered[permute(len(ordered), seed, epoch, 0)][skip:]
    order = order[np.isin(order, usable)]
    skip = 0
    for part, (members, level, lost) in enumerate(cut(epoch, order)):
      members, lost = members[:left], lost[:left]
      # A token that is gone is one slot less, too.
      needs = np.maximum(sizes[members, :2] - lost[:, None], least[members, :2])
      rows = pack(np.arange(len(members)), needs, (row_tokens, row_slots), window)
      rows = [rows[i] for i in permute(len(rows), seed, epoch, 1, part)]
      if rows:
        parts.append((len(lengths), level))
      at = np.asarray([i for row in rows for i in row], np.int64)
      records.append(members[at])
      removed.append(lost[at])
      lengths.extend(map(len, rows))
      num_tokens += int(needs[:, 0].sum())
      left -= len(members)
    epoch += 1
  return Plan(np.concatenate(records), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
              num_tokens, row_tokens, row_slots, np.concatenate(removed), tuple(parts))
