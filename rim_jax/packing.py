"""The packing plan: which records stand in which row, for a whole stage, as a pure function.

Every host computes the same plan from (PLAN_VERSION, seed, budget, sizes,
capacities) and reads only its rows of it. Row i of the plan is a list of record
numbers, so the data position is one integer, resume replays nothing, and the
order does not depend on how many hosts there are.
"""

import dataclasses

import numpy as np

PLAN_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """Rows of record numbers: row i is `records[starts[i]:starts[i + 1]]`."""
  records: np.ndarray
  starts: np.ndarray
  num_tokens: int  # useful ones, over all rows
  row_tokens: int
  row_slots: int

  @property
  def num_rows(self):
    return len(self.starts) - 1

  @property
  def examples_per_row(self):
    return len(self.records) / self.num_rows

  @property
  def useful_frac(self):
    return self.num_tokens / (self.num_rows * self.row_tokens)

  def get_row(self, i: int) -> np.ndarray:
    """Record numbers of row i; none for a row beyond the plan (it is padding)."""
    if i >= self.num_rows:
      return self.records[:0]
    return self.records[self.starts[i]:self.starts[i + 1]]


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


def pack(order: np.ndarray, sizes: np.ndarray, row_tokens: int, row_slots: int,
         window: int) -> list[list[int]]:
  """First-fit of records, in order, over at most `window` open rows.

  A record goes to the oldest open row that has room in both capacities; with
  none and the window full, the row with the fewest free tokens is closed.

  Shapes: order i[n] record numbers; sizes i[N, 2+] (tokens, slots) of every record.
  """
  free = np.zeros((0, 2), np.int64)
  rows, is_open = [], []
  for record in order:
    need = sizes[record, :2]
    fits = np.flatnonzero((free >= need).all(1))
    if len(fits):
      at = fits[0]
    else:
      if len(is_open) == window:
        full = int(free[:, 0].argmin())
        free = np.delete(free, full, axis=0)
        del is_open[full]
      at = len(is_open)
      free = np.vstack([free, [[row_tokens, row_slots]]])
      is_open.append(len(rows))
      rows.append([])
    free[at] -= need
    rows[is_open[at]].append(int(record))
  return rows


def make_plan(usable: np.ndarray, sizes: np.ndarray, num_examples: int, row_tokens: int,
              row_slots: int, window: int, seed: int) -> Plan:
  """The rows of a stage: epochs of freshly permuted records until the budget is spent.

  Args:
    usable: numbers of the records that may be used.
    sizes: i[N, 2+], tokens and slots of every record; each fits a row.
    num_examples: the budget; the last epoch takes the first records of its order.
  """
  records, lengths = [], []
  epoch = 0
  left = num_examples
  while left > 0:
    order = usable[permute(len(usable), seed, epoch, 0)][:left]
    rows = pack(order, sizes, row_tokens, row_slots, window)
    rows = [rows[i] for i in permute(len(rows), seed, epoch, 1)]
    records.extend(r for row in rows for r in row)
    lengths.extend(map(len, rows))
    left -= len(order)
    epoch += 1
  records = np.asarray(records, np.int64)
  return Plan(records, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
              int(sizes[records, 0].sum()), row_tokens, row_slots)
