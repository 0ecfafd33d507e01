"""Figures of many runs at once: heat maps over the factors of a sweep.

Knows factors and accuracies (0 to 1), no files of runs; drawn in report/figures.py's style.
"""

from collections.abc import Iterator
import itertools
import statistics

from rim_jax.report import figures
from rim_jax.results import stats


def order_levels(values) -> list:
  """Numbers by size, from the lowest; others as given."""
  numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
  return sorted(values) if numbers else list(values)


def draw_heat_maps(rows, levels) -> Iterator[figures.Figure]:
  """Mean accuracy of each two levels of two factors, over all else that was run with them.

  For each two factors of which more combinations were run than lie on one line.
  """
  for first, second in itertools.combinations(levels, 2):
    cells = stats.group(((factors[first], factors[second]), acc) for factors, acc in rows
                        if first in factors and second in factors)
    if len(cells) > max(len({a for a, _ in cells}), len({b for _, b in cells})):
      down, across = (order_levels(levels[f]) for f in (first, second))
      yield figures.draw_map(
          f'accuracy by {first} and {second}; %, mean over all else, seeds too', first, second,
          across, {a: [statistics.fmean(cells[a, b]) if (a, b) in cells else None for b in across]
                   for a in down}, decimals=1)
