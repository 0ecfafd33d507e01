"""A run's folder: the one who knows its files, and reads and writes them as values.

What is read is held against its digest (earlier versions wrote none), against its ranges and
against the other files. A folder may lie in a bucket. Two runs' predictions are compared here too.
"""

import dataclasses
import functools
import hashlib
import json
import time

from etils import epath

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax.errors import UserError, check
from rim_jax.results import judge, stats, values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import storage

NONFINITE = 'nonfinite.json'  # of a run that met a loss or gradient which is not finite
_EVALUATE = 'evaluate the run with --mode=eval'
_REMOVE = f'move it away, and {_EVALUATE}'
_MOST_TOLD = 3  # damaged lines of a file that are named one by one


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The files of one run, each stage of a curriculum having its own."""
  path: epath.Path

  def __init__(self, path):
    object.__setattr__(self, 'path', epath.Path(path))

  def __str__(self) -> str:
    return str(self.path)

  def __fspath__(self) -> str:
    return str(self.path)

  def __truediv__(self, name: str) -> epath.Path:
    return self.path / name

  # ---- Where they are ----

  @property
  def card(self) -> epath.Path:
    return self / 'config.json'

  @property
  def metrics(self) -> epath.Path:
    return self / 'metrics.jsonl'

  @property
  def results(self) -> epath.Path:
    return self / 'results.json'

  @property
  def controls(self) -> epath.Path:
    return self / 'controls.json'

  @property
  def points(self) -> epath.Path:
    """Block states on two components, as `probes.format_points` writes them."""
    return self / 'pca.csv'

  def get_predictions(self, set_name: str) -> epath.Path:
    return self / 'predictions' / f'{set_name}.jsonl'

  # ---- What they hold ----

  def load_card(self) -> dict:
    """Raises: UserError where there is no run, or its card is damaged."""
    return card_lib.load_card(self.path)

  def load_metrics(self) -> list[dict]:
    """The lines of metrics.jsonl, in order; what is damaged is left out, as `list_damaged` tells.
    """
    return [line for _, line in self._read_metrics() if line is not None]

  def list_damaged(self) -> list[str]:
    """What `load_metrics` leaves out or does not find, in few lines."""
    found = self._read_metrics()
    if not found:
      return [f'{self.metrics}: is missing, so that curves and accuracies on valid are not known'
              ] if self.results.exists() else []
    damaged = [place for place, line in found if line is None]
    if damaged and len(damaged) == len(found):
      return [f'{self.metrics}: no line of it is of this run, or all are damaged; it is left out']
    more = len(damaged) - _MOST_TOLD
    return [f'{place}: is damaged, was cut off or is of another run, and is left out'
            for place in damaged[:_MOST_TOLD]] + (
                [f'{self.metrics}: so are {more} more of its lines'] if more > 0 else [])

  def list_unsealed(self) -> list[str]:
    """A line for each file that carries no digest, so that a change of it would not be seen."""
    results = self._load_trees()
    unsealed = {
        self.card: self.card.exists() and not card_lib.get_seal(self.path),
        self.results: any(reader.SEAL not in tree for tree in results.values()),
        self.controls: reader.SEAL not in (_load(self.controls, dict, '') or {reader.SEAL: ''})}
    return [f'{path}: is unsealed, as earlier versions wrote it: whether it was changed since '
            'cannot be told' for path, is_unsealed in unsealed.items() if is_unsealed]

  def _read_metrics(self) -> list[tuple[str, dict | None]]:
    owner = self.get_owner()
    return [(place, parse_line(raw, owner)) for place, raw in storage.read_lines(self.metrics)]

  def get_owner(self) -> str:
    """What the lines of metrics.jsonl are sealed with beside their content: the card's digest."""
    return card_lib.get_seal(self.path) or ''

  def count_steps(self) -> int:
    """Updates so far, as metrics.jsonl tells them."""
    return max((line['step'] for line in self.load_metrics()), default=0)

  def load_valid(self) -> dict[int, tuple[float, int]]:
    """Step -> (accuracy on valid, version of the rule that judged it); in the order of steps.

    As metrics.jsonl tells it last.
    """
    return {line['step']: (line[values.VALID_ACC], int(line.get(values.VALID_RULE) or 1))
            for line in self.load_metrics() if line.get(values.VALID_ACC) is not None}

  def load_results(self) -> dict[str, values.EvalResult]:
    """Set -> its result under today's rule of judging; {} where nothing was evaluated.

    Raises: UserError where the file is damaged or contradicts the predictions, or answers of
      another rule cannot be judged again.
    """
    found = self.load_written()
    for name, result in found.items():
      if self.get_predictions(name).exists():
        _read_predictions(self.get_predictions(name), result)
    return {name: self._judge_again(name, result) for name, result in found.items()}

  def load_written(self) -> dict[str, values.EvalResult]:
    """`load_results` as they were written, whichever rule they were judged by."""
    found, card = {}, card_lib.get_seal(self.path)
    for name, tree in self._load_trees().items():
      try:
        found[name] = reader.from_tree(values.EvalResult, reader.unseal(tree, name))
        _check_ranges(found[name])
        cards = {found[name].card_sha256, card} - {None}
        if len(cards) > 1:
          raise ValueError(f'of a run with another {self.card.name}')
      except ValueError as e:
        raise UserError(f'{self.results}: is damaged ({name}: {e}); {_REMOVE}') from None
    return found

  def _load_trees(self) -> dict[str, dict]:
    return _load(self.results, dict[str, dict], _REMOVE) or {}

  def load_predictions(self, set_name: str) -> list[values.Prediction]:
    """Under today's rule of judging.

    Raises: UserError where the file is missing or holds anything else, or where answers that were
      judged by another version of the rule cannot be judged again.
    """
    result = self.load_written().get(set_name)
    rows = list(_read_predictions(self.get_predictions(set_name), result))
    theirs = result.rule_version or 1 if result else judge.RULE_VERSION
    if theirs == judge.RULE_VERSION:
      return rows
    card = self.load_card()['config']
    config = config_lib.Config(method=card['method'],
                               layout=config_lib.LayoutConfig(**card['layout']))
    again = [found for row in rows if (found := judge.judge_again(row, config)) is not None]
    if len(again) < len(rows):
      raise _tell_rule(self.results, set_name, theirs, 'of a version that kept no decoded text')
    return again

  def _judge_again(self, name: str, result: values.EvalResult) -> values.EvalResult:
    theirs = result.rule_version or 1
    if theirs == judge.RULE_VERSION:
      return result
    if result.checkpoint == 'splits':
      raise _tell_rule(self.results, name, theirs, 'of several checkpoints, which left none')
    old = _read_predictions(self.get_predictions(name), result)
    new = self.load_predictions(name)
    same = [p.correct for p in old] == [p.correct for p in new]
    gone = [measure.name for measure in values.list_measures(values.EvalResult)
            if measure.made_of in (('answers',) if same else ('answers', 'groups'))]
    return dataclasses.replace(
        result, **dict.fromkeys(gone), **judge.summarize(new) | {
            'answer_rule': f'{judge.ANSWER_RULE}; judged again, first by version {theirs}'})

  def load_controls(self) -> values.ControlsResult | None:
    """None where nothing was asked. Raises: UserError where the file is damaged."""
    fix = 'ask it again with --mode=controls'
    tree = _load(self.controls, dict, fix)
    try:
      return tree and reader.from_tree(values.ControlsResult, reader.unseal(tree))
    except ValueError as e:
      raise UserError(f'{self.controls}: is damaged ({e}); {fix}') from None

  # ---- What is found ----

  def add_metrics(self, step: int, scalars: dict) -> None:
    """A line of metrics.jsonl behind the others, of a step that they have reached."""
    owner = self.get_owner()
    journal = storage.Journal(self.metrics, lambda raw: parse_line(raw, owner) is not None)
    journal.add(format_line(step, time.time(), scalars, owner))
    journal.close()

  def write_result(self, set_name: str, result: values.EvalResult,
                   predictions: list[values.Prediction] | None) -> dict[str, values.EvalResult]:
    """One set's predictions (None: there are none), and its result behind those of other sets.

    Returns: set -> its result, of all sets.
    """
    if predictions is not None:
      path = self.get_predictions(set_name)
      path.parent.mkdir(exist_ok=True)
      text = ''.join(json.dumps(reader.to_tree(p), allow_nan=False) + '\n' for p in predictions)
      storage.write_text(path, text)
      result = dataclasses.replace(result, predictions_sha256=_digest(text.encode()))
    result = dataclasses.replace(result, card_sha256=card_lib.get_seal(self.path))
    trees = {name: tree for name, tree in self._load_trees().items() if name != set_name}
    trees[set_name] = reader.seal(reader.to_tree(result), set_name)
    storage.write_json(self.results, trees)
    return self.load_written()

  def write_controls(self, found: values.ControlsResult) -> None:
    storage.write_json(self.controls, reader.seal(reader.to_tree(found)))


def _load(path, kind, fix: str):
  """What a JSON file holds, as a value; None where there is none, or an empty one."""
  if not path.exists() or not reader.read_bytes(path, fix).strip():
    return None
  return reader.load_json(path, fix, kind)


def format_line(step: int, secs: float, scalars: dict, owner: str = '') -> str:
  """A line of metrics.jsonl."""
  return json.dumps(reader.seal({'step': step, 'time': round(secs, 3), **scalars}, owner))


def parse_line(raw: bytes, owner: str = '') -> dict | None:
  """A line of metrics.jsonl; None for one that is damaged, or of another run than `owner`'s.

  A run without a digest of its card is of an earlier version, whose lines have none either; lines
  of the first version with digests are sealed alone.
  """
  try:
    tree = reader.from_tree(dict, reader.parse_json(raw))
    if owner and reader.SEAL not in tree:
      return None
    line = reader.from_tree(dict[str, float | None], reader.unseal(tree, owner, ''))
  except ValueError:
    return None
  acc = line.get(values.VALID_ACC)
  fits = type(line.get('step')) is int and line['step'] >= 0 and (acc is None or 0 <= acc <= 1)
  return line if fits else None


def _check_ranges(result: values.EvalResult) -> None:
  """Raises: ValueError where a share is none, or a count is negative."""
  for field in dataclasses.fields(result):
    found, is_share = getattr(result, field.name), field.name.endswith(('_acc', 'pass_at'))
    parts = found.values() if isinstance(found, dict) else found if isinstance(
        found, list) else [found]
    for part in parts if is_share or field.name.startswith(('n', 'step')) else ():
      if isinstance(part, (int, float)) and not 0 <= part <= (1 if is_share else part):
        raise ValueError(f'{field.name} is {part}, which is no {"share" if is_share else "count"}')


def _tell_rule(path, name: str, version: int, why: str) -> UserError:
  return UserError(
      f'{path}: {name} was judged by version {version} of the rule, now it is '
      f'{judge.RULE_VERSION}, and cannot be judged again from answers {why}; {_EVALUATE}')


def _read_predictions(path, result: values.EvalResult | None) -> tuple[values.Prediction, ...]:
  """`load_predictions` as they were judged when they were written, and as their result says."""
  if not path.exists():
    raise UserError(f'{path}: no predictions (No such file or directory); {_EVALUATE}')
  raw = reader.read_bytes(path, _EVALUATE)
  rows = _parse_predictions(raw, str(path))
  if result is None or result.checkpoint == 'splits':
    return rows
  right = sum(row.correct for row in rows) / max(len(rows), 1)
  check((result.n not in (None, len(rows)),
         f'{path}: has {len(rows)} predictions, and results.json is of {result.n}; {_EVALUATE}'),
        (abs(right - result.final_acc) > 1e-6,
         f'{path}: {right:.2%} of them are right, and results.json says {result.final_acc:.2%}; '
         f'{_EVALUATE}'),
        (result.predictions_sha256 not in (None, _digest(raw)),
         f'{path}: not those that results.json is of; {_EVALUATE}'))
  return rows


@functools.lru_cache(maxsize=32)  # a page and a sweep ask for those of a run many times
def _parse_predictions(raw: bytes, where: str) -> tuple[values.Prediction, ...]:
  rows = []
  for number, line in enumerate(raw.rstrip(b'\n').split(b'\n'), 1):
    try:
      rows.append(reader.from_tree(values.Prediction, reader.parse_json(line)))
    except ValueError as e:
      raise UserError(f'{where}:{number}: not a prediction ({e}); {_EVALUATE}') from None
  return tuple(rows)


def _digest(raw: bytes) -> str:
  return hashlib.sha256(raw).hexdigest()[:16]


def compare_files(path_a, path_b) -> stats.Comparison:
  """`stats.compare` on two runs' predictions/<set>.jsonl, which must be of the same questions.

  Raises: UserError where a file is missing or damaged, or the two are of different data.
  """
  runs = [(RunFolder(path.parent.parent), path.stem) for path in map(epath.Path, (path_a, path_b))]
  a, b = (folder.load_predictions(name) for folder, name in runs)
  prints = [(result := folder.load_written().get(name)) and result.data_fingerprint
            for folder, name in runs]
  if None not in prints and prints[0] != prints[1]:
    raise UserError(f'{path_b}: of another data set than {path_a} (fingerprints {prints[1]} and '
                    f'{prints[0]}); evaluate both runs on the same data')
  asked = [[(p.question, p.answer) for p in predictions] for predictions in (a, b)]
  if asked[0] != asked[1]:
    shared = len(set(asked[0]) & set(asked[1]))
    at = next((i for i, (x, y) in enumerate(zip(*asked)) if x != y), min(len(a), len(b)))
    raise UserError(
        f'{path_b}: other questions than {path_a}: {len(b)} and {len(a)}, of which {shared} are '
        f'the same, and line {at + 1} is the first to differ; evaluate both runs on the same data, '
        'with the same eval.num_examples')
  return stats.compare([p.correct for p in a], [p.correct for p in b])
