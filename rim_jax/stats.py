"""Seeds, and two runs on the same questions: a mean with its error, a difference with its interval.

Reads prediction files, never models.
"""

import dataclasses
import json
import math

from etils import epath
from scipy import stats

from rim_jax.config import UserError


@dataclasses.dataclass(frozen=True)
class Summary:
  """A measure over seeds."""
  mean: float
  stderr: float | None  # of the mean; None for one seed, which tells nothing of others
  count: int


def summarize(values) -> Summary:
  """Mean and standard error over seeds, with the n - 1 of a sample.

  Raises: ValueError where there are no values.
  """
  values = [float(v) for v in values]
  if not values:
    raise ValueError('no values')
  return Summary(math.fsum(values) / len(values),
                 float(stats.sem(values)) if len(values) > 1 else None, len(values))


@dataclasses.dataclass(frozen=True)
class Effect:
  """What one change does, from pairs of runs that differ in nothing else."""
  mean: float  # difference, changed less unchanged
  interval: tuple[float, float] | None  # of the mean
  confidence: float
  count: int  # pairs
  no_interval: str  # why there is none; '' where there is one


def summarize_pairs(differences, confidence: float = 0.95) -> Effect:
  """Mean of paired differences, with the interval of Student's t over the pairs.

  One pair has no interval, and neither have pairs that all differ by the same: a spread of zero
  over a few runs (both at 100 %, say) is no knowledge of others.

  Raises: ValueError where there are no pairs.
  """
  values = [float(d) for d in differences]
  told = summarize(values)
  interval = None
  if told.stderr:
    reach = float(stats.t.ppf((1 + confidence) / 2, told.count - 1)) * told.stderr
    interval = (told.mean - reach, told.mean + reach)
  why = '' if interval else 'one pair' if told.count == 1 else 'every pair differs by the same'
  return Effect(told.mean, interval, confidence, told.count, why)


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


def compare(correct_a, correct_b, confidence: float = 0.95) -> Comparison:
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
  reach = float(stats.norm.ppf((1 + confidence) / 2)) * spread
  return Comparison(
      n, pairs.count((True, True)), only_a, only_b, pairs.count((False, False)),
      (only_a - only_b) / n, (centre - reach, centre + reach), confidence,
      float(stats.binomtest(only_a, apart).pvalue) if apart else 1.0)


def compare_files(path_a, path_b, confidence: float = 0.95) -> Comparison:
  """`compare` on two runs' predictions/<set>.jsonl, which must be of the same questions.

  Raises: UserError where a file is missing or damaged, or the two are of different data.
  """
  a, b = (load_predictions(path) for path in (path_a, path_b))
  prints = [_find_fingerprint(path) for path in (path_a, path_b)]
  if None not in prints and prints[0] != prints[1]:
    raise UserError(f'{path_b}: of another data set than {path_a} (fingerprints {prints[1]} and '
                    f'{prints[0]}); evaluate both runs on the same data')
  asked = [[(p['question'], p['answer']) for p in predictions] for predictions in (a, b)]
  if asked[0] != asked[1]:
    shared = len(set(asked[0]) & set(asked[1]))
    at = next((i for i, (x, y) in enumerate(zip(*asked)) if x != y), min(len(a), len(b)))
    raise UserError(
        f'{path_b}: other questions than {path_a}: {len(b)} and {len(a)}, of which {shared} are '
        f'the same, and line {at + 1} is the first to differ; evaluate both runs on the same data, '
        'with the same eval.num_examples')
  return compare([p['correct'] for p in a], [p['correct'] for p in b], confidence)


def adjust_holm(p_values) -> list[float]:
  """P-values corrected for being several, in their order: Holm's, whatever their dependence.

  Those below a level are together wrong with no more than its chance (Scandinavian Journal of
  Statistics 6, 1979). SciPy has corrections of the false discovery rate alone.
  """
  order = sorted(range(len(p_values)), key=p_values.__getitem__)
  adjusted, most = [0.0] * len(order), 0.0
  for place, i in enumerate(order):
    most = max(most, min(1.0, (len(order) - place) * p_values[i]))
    adjusted[i] = most
  return adjusted


def load_predictions(path) -> list[dict]:
  """A set's predictions, as evaluation writes them.

  Raises: UserError where the file is missing or holds anything else.
  """
  path = epath.Path(path)
  fix = 'evaluate the run with --mode=eval'
  try:
    lines = path.read_text().rstrip('\n').split('\n')
  except OSError as error:
    raise UserError(f'{path}: no predictions ({error.strerror or error}); {fix}') from None
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict) or not {'question', 'answer', 'correct'} <= row.keys():
      raise UserError(f'{path}:{number}: not a prediction; {fix}')
    rows.append(row)
  return rows


def _find_fingerprint(path):
  """That of a prediction file's data, where its run's results.json has it."""
  path = epath.Path(path)
  try:
    return json.loads((path.parents[1] / 'results.json').read_text())[path.stem][
        'data_fingerprint']
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return None
