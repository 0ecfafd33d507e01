"""Seeds, and two runs on the same questions: a mean with its error, a difference with its interval.
"""

import dataclasses
import math
import statistics

import numpy as np
import scipy  # `scipy.stats` itself is loaded when it is first needed: it takes a second

CONFIDENCE = 0.95  # of an interval
_NO_SPREAD = 1e-9  # a standard error of equal accuracies, which may differ in rounding


def group(pairs) -> dict:
  """Key -> the values that (key, value) pairs have with it, both in the order of the pairs."""
  groups = {}
  for key, value in pairs:
    groups.setdefault(key, []).append(value)
  return groups


@dataclasses.dataclass(frozen=True)
class Summary:
  """A measure over seeds."""
  mean: float
  stderr: float | None  # of the mean; None for one seed, which tells nothing of others
  count: int
  values: list[float] | None = None  # of each seed, where they are kept

  @property
  def has_spread(self) -> bool:
    """Whether it tells anything of other seeds: several differ, and not by rounding alone."""
    return self.stderr is not None and self.stderr > _NO_SPREAD


def summarize(values, keep: bool = False) -> Summary:
  """Mean and standard error over seeds, with the n - 1 of a sample.

  Args:
    keep: whether the summary has the values too.
  Raises: ValueError where there are no values.
  """
  values = [float(v) for v in values]
  return Summary(statistics.fmean(values),
                 float(scipy.stats.sem(values)) if len(values) > 1 else None, len(values),
                 values if keep else None)


def is_apart(high: Summary, low: Summary, num_compared: int = 1) -> bool:
  """Whether seeds support that one mean is above another: by Welch's t test, two-sided.

  A spread of zero over a few runs is no knowledge of others: such seeds support nothing.

  Args:
    num_compared: of how many comparisons this is one; their levels add up (Bonferroni).
  """
  if not (high.stderr and low.stderr and high.has_spread and low.has_spread) or (
      high.mean <= low.mean):
    return False
  p_value = scipy.stats.ttest_ind_from_stats(
      high.mean, high.stderr * high.count**0.5, high.count,
      low.mean, low.stderr * low.count**0.5, low.count, equal_var=False).pvalue
  return bool(p_value < (1 - CONFIDENCE) / num_compared)


def compute_stderr(share: float, count: int) -> float:
  """Standard error of a share of questions, over questions."""
  return (share * (1 - share) / count) ** 0.5


@dataclasses.dataclass(frozen=True)
class Effect:
  """What one change does, from pairs of runs that differ in nothing else."""
  mean: float  # difference, changed less unchanged, over seeds
  interval: tuple[float, float] | None  # of the mean
  confidence: float
  count: int  # pairs
  num_seeds: int
  no_interval: str  # why there is none; '' where there is one


def summarize_pairs(differences: list[tuple[object, float]]) -> Effect:
  """Mean of paired differences over seeds, with the interval of Student's t over the seeds.

  Pairs of one seed share its data and its first parameters, so they count as one: their mean. One
  seed has no interval, and neither have seeds that all differ by the same: a spread of zero over a
  few runs (both at 100 %, say) is no knowledge of others.

  Args:
    differences: (seed, difference) of each pair.
  Raises: ValueError where there are no pairs.
  """
  told = summarize([summarize(values).mean for values in group(differences).values()])
  interval = None
  if told.stderr and told.has_spread:
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, told.count - 1)) * told.stderr
    interval = (told.mean - reach, told.mean + reach)
  why = '' if interval else 'one seed' if told.count == 1 else 'every seed differs by the same'
  return Effect(told.mean, interval, CONFIDENCE, len(differences), told.count, why)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two runs, a and b, on the same questions."""
  count: int
  both: int  # questions that both have right
  only_a: int
  only_b: int
  neither: int
  difference: float  # accuracy of a less that of b
  interval: tuple[float, float]  # of the difference
  confidence: float
  p_value: float  # McNemar's, exact and two-sided


def compare(correct_a, correct_b, confidence: float = CONFIDENCE) -> Comparison:
  """Whether a and b differ on the same questions, given which each has right, in one order.

  The test is McNemar's: of the questions that one alone has right, a's are binomial with 1/2. The
  interval is Wald's with half a question added to each of the four counts (Agresti and Min,
  Statistics in Medicine 24, 2005).

  Raises: ValueError where there are no questions, or not as many.
  """
  pairs = [(bool(a), bool(b)) for a, b in zip(correct_a, correct_b, strict=True)]
  if not pairs:
    raise ValueError('no questions')
  n, only_a, only_b = len(pairs), pairs.count((True, False)), pairs.count((False, True))
  apart = only_a + only_b
  centre = (only_a - only_b) / (n + 2)
  spread = math.sqrt(apart + 1 - (only_a - only_b)**2 / (n + 2)) / (n + 2)
  reach = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * spread
  return Comparison(
      n, pairs.count((True, True)), only_a, only_b, pairs.count((False, False)),
      (only_a - only_b) / n, (centre - reach, centre + reach), confidence,
      float(scipy.stats.binomtest(only_a, apart).pvalue) if apart else 1.0)


def adjust_holm(p_values) -> list[float]:
  """P-values corrected for being several, in their order: Holm's, whatever their dependence.

  Those below a level are together wrong with no more than its chance (Scandinavian Journal of
  Statistics 6, 1979). SciPy has corrections of the false discovery rate alone.
  """
  values = np.asarray(p_values, float)
  order, adjusted = values.argsort(), np.empty_like(values)
  factors = np.arange(len(values), 0, -1)  # the least is one of all, the largest one of one
  adjusted[order] = np.maximum.accumulate((factors * values[order]).clip(max=1))
  return adjusted.tolist()
