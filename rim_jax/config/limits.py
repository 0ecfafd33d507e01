"""What a single value of a config may be, said beside its key: `num_layers: AtLeastOne = 4`.

A limit is the metadata of an `Annotated` type; a choice is a `Literal`. `find_problems` checks
both, and docs/make_reference.py prints them. What must agree between keys stands in `rules`.
"""

from collections.abc import Callable
import difflib
import math
import re
import typing
from typing import Annotated, Any


class Limit(typing.NamedTuple):
  """One limit: how an error says it after the key and its value, and the test itself."""
  words: str
  holds: Callable[[Any], object]  # true where it does


def parse_sizes(text: str) -> tuple[int, ...]:
  """'1,8' -> (1, 8); () where that is not what it is."""
  if not re.fullmatch(r' *[1-9]\d*( *, *[1-9]\d*)* *', text):
    return ()
  return tuple(map(int, text.split(',')))


def parse_sets(text: str) -> dict[str, str]:
  """'svamp=a.json,math=b.jsonl' -> {'svamp': 'a.json', 'math': 'b.jsonl'}; ValueError in words."""
  sets = {}
  for part in text.split(',') if text else ():
    name, equals, path = (p.strip() for p in part.partition('='))
    if not (equals and path and SET_NAME.fullmatch(name)):
      raise ValueError(f"{part.strip()!r} is no NAME=FILE, whose name is letters, digits and _")
    if name in sets:
      raise ValueError(f'{name} is named twice')
    sets[name] = path
  return sets


SET_NAME = re.compile(r'[A-Za-z0-9_]{1,64}')
_NOT_NEGATIVE = Limit('must not be negative', lambda v: v >= 0)

AtLeastOne = Annotated[int, Limit('must be at least 1', lambda v: v >= 1)]
Count = Annotated[int, _NOT_NEGATIVE]
Amount = Annotated[float, _NOT_NEGATIVE]
Positive = Annotated[float, Limit('must be above 0', lambda v: v > 0)]
BelowOne = Annotated[float, Limit('must be in [0, 1)', lambda v: 0 <= v < 1)]
Axis = Annotated[int, Limit('must be 1 or more, or -1 for the rest', lambda v: v >= 1 or v == -1)]
Sizes = Annotated[str, Limit("should be batch sizes of 1 or more, e.g. '1,8'", parse_sizes)]


def find_problems(types: dict, values: dict) -> list[str]:
  """What is wrong with single values; one line a problem.

  Args:
    types: dotted key -> its type as the schema has it; `values` has the same keys.
  """
  problems = []
  for key, kind in types.items():
    value, choices = values[key], typing.get_args(kind) if (
        typing.get_origin(kind) is typing.Literal) else ()
    if choices and value not in choices:
      close = difflib.get_close_matches(str(value), choices, 1)
      problems.append(f"{key}='{value}' is not one of {', '.join(choices)}"
                      + (f"; did you mean '{close[0]}'?" if close else ''))
    elif isinstance(value, float) and not math.isfinite(value):
      problems.append(f'{key}={value} must be a finite number')
    else:
      problems += [f'{key}={value!r} {limit.words}'
                   for limit in getattr(kind, '__metadata__', ()) if not limit.holds(value)]
  return problems
