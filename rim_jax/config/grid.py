"""What a recipe of many runs is made of: points, each some factors and the keys that they set.

A point is a pair (factors, changes): what names a run, e.g. {'lr': 0.001, 'seed': 1}, and dotted
key -> value. A list of points is an axis; axes are multiplied (`cross`), paired (`pair`), filtered
and added to, as lists are. Knows the config's form and nothing else, as recipes do.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import math

import ml_collections
import numpy as np

from rim_jax.config.parse import change, flatten, list_identity, parse_config
from rim_jax.config.schema import Config, is_runtime
from rim_jax.errors import UserError, refuse


def vary(key: str, values, name: str = '') -> list:
  """One point a value of a key, named after its last part: vary('optim.learning_rate', (1e-3,))."""
  name = name or key.rpartition('.')[2]
  return [({name: value}, {key: value}) for value in values]


def vary_seeds(count: int) -> list:
  """Seeds 0, 1, ... of everything random in a run."""
  return vary('seed', range(count))


def sample(key: str, low: float, high: float, count: int, seed: int = 0, name: str = '') -> list:
  """Values log-uniform in [low, high], three digits each: the same for the same seed.

  Raises: UserError for an interval without logarithms.
  """
  if not 0 < low <= high or count < 1:
    raise UserError(f'{key}: {count} samples in [{low}, {high}]; give 1 or more, and 0 < low <= '
                    'high')
  # Raw words: numpy does not promise that the draws of its generators stay the same.
  words = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
  values = [float(f'{math.exp(math.log(low) + w / 2**64 * math.log(high / low)):.3g}')
            for w in words.astype(float)]
  # Three digits may lie beyond an end that has more.
  return vary(key, [min(max(value, low), high) for value in values], name)


def cross(*axes) -> list:
  """Every combination of points, the first axis slowest."""
  return [_join(points) for points in itertools.product(*axes)]


def pair(*axes) -> list:
  """The first points of all axes together, then the second ones, ...

  Raises: UserError for axes of different lengths.
  """
  if len({len(axis) for axis in axes}) > 1:
    raise UserError(f'pair: axes of {", ".join(str(len(a)) for a in axes)} points; give as many '
                    'of each, or cross them')
  return [_join(points) for points in zip(*axes)]


def repeat(points, count: int) -> list:
  """Every point with seed 0, then every point with seed 1, ...

  So a sweep that is stopped early has all points with its first seeds.
  """
  return [_join((point, seed)) for seed in vary_seeds(count) for point in points]


def _join(points):
  factors, changes = {}, {}
  for more_factors, more_changes in points:
    twice = (factors.keys() & more_factors.keys()) | (changes.keys() & more_changes.keys())
    if twice:
      raise UserError(f"'{min(twice)}' is set by two axes; leave it to one")
    factors, changes = factors | more_factors, changes | more_changes
  return factors, changes


def find_changes(base, config) -> dict:
  """Dotted key -> value of all that differs in `config`; both are ConfigDicts with all keys."""
  old = flatten(base.to_dict())
  return {key: value for key, value in flatten(config.to_dict()).items() if old[key] != value}


def make_sweep_dict(base, points) -> ml_collections.ConfigDict:
  """A recipe of many runs.

  Args:
    base: a ConfigDict with all keys; `--config.KEY=VALUE` changes it for every run that does not
      set that key itself.
  """
  config = ml_collections.ConfigDict(base.to_dict())
  config.points = [{'factors': dict(factors), 'set': dict(changes)} for factors, changes in points]
  return config.lock()


# ---- What a recipe means ----


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a sweep: its name, what sets it apart, and its whole config."""
  name: str
  factors: dict
  config: Config


def list_names(tree, source: str) -> list[str]:
  """The points of a recipe's ConfigDict by name, in order, whether they can be or not.

  Raises: UserError where there is none, or a name is no folder's.
  """
  names = [name_point(entry['factors']) for entry in tree.to_dict()['points']]
  if not names:
    raise UserError(f'{source}: has no points; its grid is empty')
  problems = [f'{source}: a point has no factors; give it one, which names its run and folder'
              for name in names if not name]
  problems += [f'{source}: {name[:40]}...: a name of {len(name.encode())} bytes is no folder, 255 '
               "are; name its factors shorter, as vary(KEY, VALUES, 'lr')"
               for name in names if len(name.encode()) > 255]
  refuse(problems)
  return names


def load_points(tree, source: str, only: str = '') -> list[Point]:
  """The points of a recipe's ConfigDict, or the one that is named, validated.

  Raises: UserError with every problem of every point.
  """
  names = collections.Counter(list_names(tree, source))
  tree, points, problems = tree.to_dict(), [], []
  for entry in tree.pop('points'):
    name = name_point(entry['factors'])
    if only not in ('', name):
      continue
    try:
      config = parse_config(change(tree, entry['set']), f'{source}: {name}')
    except UserError as e:
      problems.append(str(e))
      continue
    points.append(Point(name, dict(entry['factors']), config))
  problems += [f'{source}: {count} points are named {name}; give them factors that differ'
               for name, count in names.items() if count > 1]
  refuse(problems)
  return points


def name_point(factors: dict) -> str:
  """`lr=0.0003,seed=1`: readable, and a folder's name."""
  return ','.join(f'{key}={value}'.replace('/', '_') for key, value in factors.items())


def get_setting(point: Point) -> dict:
  """The factors that a point shares with those that differ in their seed alone."""
  return {k: v for k, v in point.factors.items() if k != 'seed'}


def name_setting(point: Point) -> str:
  return name_point(get_setting(point))


def identify(config: Config) -> str:
  """A hash of what a run computes; where and when it does is left out."""
  flat = {key: value for key, value in list_identity(config).items() if not is_runtime(key)}
  return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]
