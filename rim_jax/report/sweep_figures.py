"""Figures of many runs at once: parallel coordinates and heat maps over the factors of a sweep.

Knows factors and accuracies (0 to 1), no files of runs; drawn in report/figures.py's style.
"""

import itertools
import math
import statistics

from rim_jax.report import figures, tables
from rim_jax.results import stats

_MOST_TICKS = 8  # named on one axis


def draw_parallel(rows, levels) -> figures.Figure | None:
  """One line a point, over its factors to its accuracy; None where nothing varies.

  Args:
    rows: (factors, accuracy) of each point; `levels` each varying factor's values, in order.
  """
  rows = [(factors, acc) for factors, acc in rows if levels.keys() <= factors.keys()]
  if not levels or len(rows) < 2:
    return None
  places = {factor: place_levels(values) for factor, values in levels.items()}
  caption = 'accuracy of each point over its factors'
  low, high = _find_range([acc for _, acc in rows])
  with figures.begin(caption, max(5.2, 1.6 + 1.4 * len(levels)), 3.6) as (figure, ramp):
    ax = figure.subplots()
    ends = range(len(levels) + 1)
    for factors, acc in rows:
      at = (acc - low) / (high - low)
      ax.plot(ends, [*(places[f][factors[f]] for f in levels), at], color=ramp(at), linewidth=1,
              alpha=0.7)
    ax.set(xlim=(-0.35, len(levels) + 0.35), ylim=(-0.06, 1.06), yticks=[])
    ax.set_xticks(ends, [*levels, 'accuracy, %'])
    ax.spines['left'].set_visible(False)
    ax.spines['bottom'].set_visible(False)
    ax.grid(False)
    for x, found in enumerate(places.values()):
      _draw_axis(ax, x, [
          (place, tables.clean(f'{value:g}' if isinstance(value, float) else value, 16))
          for value, place in _thin(list(found.items()))])
    _draw_axis(ax, len(levels), [(i / 4, f'{100 * (low + i / 4 * (high - low)):.0f}')
                                 for i in range(5)])
    return figures.finish(figure, caption, [*levels, 'accuracy'], [
        [*(factors[f] for f in levels), acc] for factors, acc in rows])


def place_levels(values) -> dict:
  """Level -> its place in 0 to 1, evenly, from the lowest: numbers by size, others as given.

  One level alone stands in the middle.
  """
  numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
  values = sorted(values) if numbers else list(values)
  return {v: i / (len(values) - 1) if len(values) > 1 else 0.5 for i, v in enumerate(values)}


def _thin(values):
  """At most so many of them as can be named, the first and the last among these."""
  if len(values) <= _MOST_TICKS:
    return values
  return [values[round(i * (len(values) - 1) / (_MOST_TICKS - 1))] for i in range(_MOST_TICKS)]


def _draw_axis(ax, x, ticks):
  ax.axvline(x, color=ax.spines['bottom'].get_edgecolor(), linewidth=0.8, alpha=0.5)
  for y, text in ticks:
    ax.annotate(text, (x, y), xytext=(-5, 0) if x == 0 else (4, 3), textcoords='offset points',
                fontsize=8, **({'ha': 'right', 'va': 'center'} if x == 0 else {}))


def _find_range(accuracies):
  """Whole tens of percent around them, so that colours and axes are comparable and full."""
  low, high = (f(10 * g(accuracies)) / 10 for f, g in ((math.floor, min), (math.ceil, max)))
  return (low, high) if high > low else (max(0.0, low - 0.1), min(1.0, high + 0.1))


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
  down, across = (list(place_levels(levels[f])) for f in (first, second))
  return figures.draw_map(
      f'accuracy by {first} and {second}; %, mean over all else, seeds too',
      first, second, across, {a: [cells.get((a, b)) for b in across] for a in down}, decimals=1)
