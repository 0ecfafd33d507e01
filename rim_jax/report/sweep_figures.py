"""Figures of many runs at once: heat maps over the factors of a sweep.

Knows factors and accuracies (0 to 1), no files of runs; drawn in report/figures.py's style.
"""

import itertools
import statistics

from rim_jax.report import figures
from rim_jax.results import stats


def order_levels(values) -> list:
  """Numbers by size, from the lowest; others as given."""
  numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
  return sorted(values) if numbers else list(values)


def list_grids(rows, levels):
  """(factor, factor) for each two of which more combinations were run than lie on one line."""
  for first, second in itertools.combinations(levels, 2):
    there = average_grid(rows, first, second).keys()
    if len(there) > max(len({a for a, _ in there}), len({b for _, b in there})):
      yield first, second


def average_grid(rows, first: str, second: str) -> dict:
  """(level, level) -> mean accuracy over all else."""
  cells = stats.group(((factors[first], factors[second]), acc) for factors, acc in rows
                      if first in factors and second in factors)
  return {key: statistics.fmean(accs) for key, accs in cells.items()}


def draw_heat_map(rows, levels, first: str, second: str) -> figures.Figure:
  """Mean accuracy of each two levels of two factors, over all else that was run with them."""
  cells = average_grid(rows, first, second)
  down, across = (order_levels(levels[f]) for f in (first, second))
  return figures.draw_map(
      f'accuracy by {first} and {second}; %, mean over all else, seeds too',
      first, second, across, {a: [cells.get((a, b)) for b in across] for a in down}, decimals=1)
