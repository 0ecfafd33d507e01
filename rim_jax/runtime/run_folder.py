"""What a run has left in its folder, read back: predictions, and two runs' compared."""

import json

from etils import epath

from rim_jax.errors import UserError
from rim_jax.results import stats


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


def compare_files(path_a, path_b, confidence: float = 0.95) -> stats.Comparison:
  """`stats.compare` on two runs' predictions/<set>.jsonl, which must be of the same questions.

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
  return stats.compare([p['correct'] for p in a], [p['correct'] for p in b], confidence)
