"""The one reader of files that a run or a person hands in: bytes, UTF-8, JSON, the declared shape.

Nothing else here decodes such bytes or parses JSON. A shape is a type: a dataclass, a TypedDict,
`dict[str, float | None]`. What is no regular file, too large, nested too deep, of another shape, or
holds a number that no file needs, is told in one line.
"""

import collections
import contextlib
import dataclasses
import decimal
import functools
import hashlib
import json
import math
import os
import stat
import types
import typing

from etils import epath

from rim_jax.errors import UserError, check

_MOST_BYTES = 512 << 20  # a tokenizer.json with a large vocabulary has 30 MB
_MOST_DEPTH = 100  # of JSON
_MOST_DIGITS = 300  # of a whole number, so that it is a float, too
SEAL = 'sha256'  # the last key of what carries a digest of itself


# ---- Files ----


def check_regular(path, fix: str) -> os.stat_result:
  """Raises: UserError where there is no regular file; a pipe would be waited for without end."""
  try:
    status = os.stat(path)
  except (OSError, ValueError) as e:
    raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or e}); {fix}'
                    ) from None
  check((stat.S_ISDIR(status.st_mode), f'{path}: cannot be read (Is a directory); {fix}'),
        (not stat.S_ISREG(status.st_mode), f'{path}: is no regular file; {fix}'))
  return status


def read_bytes(path, fix: str, most: int | None = _MOST_BYTES) -> bytes:
  """The content of a file, also in a bucket.

  Args:
    fix: what a person can do where that fails.
    most: bytes that it may have; None: any number.
  Raises: UserError.
  """
  if '://' not in str(path):
    size = check_regular(path, fix).st_size
    if most is not None and size > most:
      raise UserError(f'{path}: has {size:,} bytes, more than {most:,}; {fix}')
  try:
    return epath.Path(path).read_bytes()
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror or e}); {fix}') from None


def read_text(path, fix: str) -> str:
  """The same as UTF-8."""
  try:
    return decode(read_bytes(path, fix))
  except ValueError as e:
    raise UserError(f'{path}: is {e}; {fix}') from None


def load_json(path, fix: str, kind: typing.Any = dict, absent: str = '') -> typing.Any:
  """What a JSON file holds, in a declared shape.

  Args:
    fix: what a person can do where it is damaged; and where it cannot be read, unless `absent` is.
  Raises: UserError.
  """
  raw = read_bytes(path, absent or fix)
  try:
    return from_tree(kind, parse_json(raw))
  except ValueError as e:
    raise UserError(f'{path}: is damaged ({e}); {fix}') from None


# ---- From bytes to JSON ----


def decode(raw: bytes) -> str:
  """UTF-8. Raises: ValueError."""
  try:
    return raw.decode()
  except UnicodeDecodeError as e:
    raise ValueError(f'no UTF-8 ({e.reason} at byte {e.start})') from None


def parse_json(text: str | bytes, exact: bool = False) -> typing.Any:
  """JSON of bounded depth.

  Args:
    exact: numbers keep all of their digits, as int or Decimal, and no object may name a key twice;
      else a number that is not finite, or no finite float, is refused.
  Raises: ValueError, in one line.
  """
  text = decode(text) if isinstance(text, bytes) else text
  try:
    tree = json.loads(
        text, parse_float=decimal.Decimal, object_pairs_hook=_parse_object
    ) if exact else json.loads(
        text, parse_float=_parse_float, parse_int=_parse_int, parse_constant=_parse_float)
  except KeyError as e:
    raise ValueError(f'an object names {e} twice') from None
  except decimal.InvalidOperation:
    raise ValueError('not JSON (a number beyond all bounds)') from None
  except RecursionError:
    raise ValueError(f'not JSON (nested deeper than {_MOST_DEPTH})') from None
  except ValueError as e:
    raise ValueError(f'not JSON ({e})') from None
  if text.count('[') + text.count('{') > _MOST_DEPTH and _is_deep(tree):
    raise ValueError(f'nested deeper than {_MOST_DEPTH}')
  return tree


def _is_deep(tree) -> bool:
  level = [tree]
  for _ in range(_MOST_DEPTH):
    level = [child for node in level if isinstance(node, (dict, list))
             for child in (node.values() if isinstance(node, dict) else node)]
  return bool(level)


def _parse_object(pairs: list) -> dict:
  if len(tree := dict(pairs)) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    raise KeyError(next(key for key, count in counts.items() if count > 1)[:40])
  return tree


def _parse_float(text: str) -> float:
  if not math.isfinite(number := float(text)):
    raise ValueError(f'{text[:20]} is no number that is finite')
  return number


def _parse_int(text: str) -> int:
  if len(text) > _MOST_DIGITS:  # tokenizer configs have 10**30
    raise ValueError(f'{text[:20]}... has more than {_MOST_DIGITS} digits')
  return int(text)


# ---- From JSON to values, and back ----


def to_tree(value) -> typing.Any:
  """What `json.dumps` writes of a value: a field that is None by default and still is, is left out.
  """
  if dataclasses.is_dataclass(value):
    found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)
             if f.name != 'more' and (f.default is not None or getattr(value, f.name) is not None)}
    return to_tree(found) | getattr(value, 'more', {})
  if isinstance(value, dict):
    return {str(k): to_tree(v) for k, v in value.items()}
  return [to_tree(v) for v in value] if isinstance(value, (list, tuple)) else value


_get_types = functools.cache(typing.get_type_hints)


def from_tree(kind, tree) -> typing.Any:
  """A value of a declared shape from what `to_tree` makes of it.

  Raises: ValueError where the tree has another form, or lacks what every file has.
  """
  if kind is typing.Any:
    return tree
  if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
    return _make_fields(kind, tree)
  form, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
  if form in (types.UnionType, typing.Union):
    for part in parts:
      with contextlib.suppress(ValueError):
        return from_tree(part, tree)
    return from_tree(parts[0], tree)  # raises what is wrong with the first
  if form is typing.Literal:
    if tree in parts:
      return tree
    raise ValueError(f'{str(tree)[:40]!r} in place of {" or ".join(map(repr, parts))}')
  if form in (list, tuple) and parts and isinstance(tree, (list, tuple)):
    return form(from_tree(parts[0], v) for v in tree)
  if form is dict and parts and isinstance(tree, dict):
    return {k: _name_problem(k, parts[1], v) for k, v in tree.items()}
  fits = isinstance(tree, (int, float) if form is float else form)
  if not fits or (isinstance(tree, bool) and form is not bool):
    raise ValueError(f'{type(tree).__name__} in place of a {form.__name__}')
  if isinstance(tree, int) and form is int and abs(tree) >= 1 << 63:
    raise ValueError(f'{str(tree)[:20]}... is beyond 64 bits')
  return tree


def _make_fields(kind, tree):
  """A dataclass with the unknown keys in `more`, or a TypedDict with those that it has."""
  if not isinstance(tree, dict):
    raise ValueError(f'{type(tree).__name__} in place of what a {kind.__name__} has')
  wanted = _get_types(kind)
  known = {k: _name_problem(k, wanted[k], v) for k, v in tree.items()
           if k in wanted and k != 'more'}
  if typing.is_typeddict(kind):
    lacking = sorted(kind.__required_keys__ - tree.keys())
  else:
    lacking = [f.name for f in dataclasses.fields(kind) if f.name not in known
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
  if lacking:
    raise ValueError(f'it lacks {", ".join(lacking)}')
  if typing.is_typeddict(kind):
    return tree | known
  if 'more' in wanted:
    known['more'] = {k: v for k, v in tree.items() if k not in wanted or k == 'more'}
  return kind(**known)


def _name_problem(key, kind, tree):
  try:
    return from_tree(kind, tree)
  except ValueError as e:
    raise ValueError(f'{str(key)[:40]}: {e}') from None


# ---- Seals ----


def seal(tree: dict, about: str = '') -> dict:
  """A tree with a digest of itself as its last key, so that a change of it is seen.

  Args:
    about: what it is the content of, e.g. the name under which it stands.
  """
  tree = json.loads(json.dumps(tree, allow_nan=False))  # as it will be read
  tree.pop(SEAL, None)
  return tree | {SEAL: _digest(tree, about)}


def unseal(tree: dict, *about: str) -> dict:
  """A tree without its seal; earlier versions wrote none.

  Args:
    about: what it may have been sealed as the content of; '' by default.
  Raises: ValueError where it is not what was sealed.
  """
  rest = {key: value for key, value in tree.items() if key != SEAL}
  if SEAL in tree and tree[SEAL] not in [_digest(rest, a) for a in about or ('',)]:
    raise ValueError(f'not what was written: another {SEAL}')
  return rest


def _digest(tree, about) -> str:
  return hashlib.sha256(json.dumps([about, tree], sort_keys=True).encode()).hexdigest()[:16]
