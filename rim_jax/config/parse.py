"""A recipe's dictionary to a frozen, validated `Config`; a config as flat keys, and its identity.

A recipe (`configs/*.py`) edits the ConfigDict that `make_config_dict` returns; `parse_config`
turns it into a frozen `Config` once, at the edge, and no module behind it sees a ConfigDict.
Knows nothing of devices, data or models, so a config is read and refused in milliseconds.
"""

import copy
import dataclasses
import difflib
import functools
import typing
from typing import Any

import ml_collections

from rim_jax.config import limits, rules, schema
from rim_jax.config.schema import Config
from rim_jax.errors import refuse


def make_config_dict(**fields) -> Any:
  """A ConfigDict: all keys at their defaults, with `fields` set; locked, so that a typo raises."""
  config = ml_collections.ConfigDict(dataclasses.asdict(schema.Config(**fields)))
  return config.lock()


def flatten(config: Any) -> dict[str, Any]:
  """Dotted key -> value, in declaration order, of a Config, a section of one, or a dictionary."""
  flat = {}
  for key, value in (config if isinstance(config, dict) else vars(config)).items():
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
      flat.update({f'{key}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat


@functools.cache
def list_neutral(cls) -> dict:
  """Dotted key -> neutral value, of every key of a config class that is `later`."""
  neutral = {}
  for field in dataclasses.fields(cls):
    if field.metadata.get('later'):
      neutral |= flatten({field.name: field.default})
    elif dataclasses.is_dataclass(field.default):
      neutral |= {f'{field.name}.{k}': v for k, v in list_neutral(type(field.default)).items()}
  return neutral


def list_identity(config) -> dict:
  """Dotted key -> value of what tells a config, or a section of one, from others.

  Whatever hashes or compares configs uses this: a later key at its neutral value is left out, so
  that a key that is added makes no other run of one that was made before.

  Args:
    config: a dataclass, or the dictionary of a whole Config.
  """
  neutral = list_neutral(type(config) if dataclasses.is_dataclass(config) else schema.Config)
  return {k: v for k, v in flatten(config).items() if k not in neutral or v != neutral[k]}


def complete(tree: dict) -> dict:
  """The dictionary of a Config as an earlier version wrote it, with the later keys, at neutral."""
  tree = copy.deepcopy(tree)
  for key, value in list_neutral(schema.Config).items():
    *sections, name = key.split('.')
    node = functools.reduce(lambda node, section: node.setdefault(section, {}), sections, tree)
    node.setdefault(name, value)
  return tree


@functools.cache
def list_types(cls=Config, where: str = '') -> dict:
  """Dotted key -> its type, with its choices (`Literal`) and its limits (`Annotated`)."""
  types = {}
  for name, kind in typing.get_type_hints(cls, include_extras=True).items():
    if dataclasses.is_dataclass(kind):
      types |= list_types(kind, f'{where}{name}.')
    else:
      types[where + name] = kind
  return types


def _build(cls, tree, where, problems):
  """Dictionary -> dataclass; unknown keys and wrong types are problems."""
  types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
  values = {}
  for key, value in tree.items():
    if key not in types:
      close = difflib.get_close_matches(key, types, 1)
      hint = f"did you mean '{close[0]}'?" if close else f"keys here: {', '.join(types)}"
      problems.append(f"unknown key '{where}{key}'; {hint}")
    elif dataclasses.is_dataclass(types[key]):
      if isinstance(value, dict):
        values[key] = _build(types[key], value, f'{where}{key}.', problems)
      else:
        problems.append(f'{where}{key}={value!r} should be a group of keys')
    else:
      if types[key] is float and type(value) is int:
        value = float(value)
      if type(value) is not types[key]:
        problems.append(f'{where}{key}={value!r} should be {types[key].__name__}, '
                        f'not {type(value).__name__}')
      else:
        values[key] = value
  return cls(**values)


def parse_config(tree, name: str = 'config', begins: bool = True) -> Config:
  """ConfigDict or dictionary -> validated Config.

  Args:
    begins: False for a run that is there and is asked.
  Raises: UserError, one line for each problem, all of them at once.
  """
  tree = tree.to_dict() if isinstance(tree, ml_collections.ConfigDict) else tree
  problems = []
  config = _build(schema.Config, tree, '', problems)
  problems = problems or find_problems(config, begins)
  refuse([f'{name}: {p}' for p in problems])
  return config


def find_problems(config: Config, begins: bool = True) -> list[str]:
  """Everything wrong with a config that needs no data and no device to see.

  Rules between keys compute with values that are within their limits: a value that is not stands
  at its default there, and what they say of it is left out.
  """
  problems = limits.find_problems(list_types(type(config)), flatten(config))
  wrong = [problem.partition('=')[0] for problem in problems]
  if wrong:
    defaults = flatten(type(config)())
    config = replace_keys(config, {key: defaults[key] for key in wrong})
  found = rules.find_problems(config) + (rules.find_start_problems(config) if begins else [])
  return problems + [line for line in found if not any(key in line for key in wrong)]


def replace_keys(config: Config, changes: dict) -> Config:
  """A config with some keys otherwise, dotted key -> value.

  Raises: KeyError for a key or a type that it has not.
  """
  problems: list[str] = []
  found = _build(type(config), change(dataclasses.asdict(config), changes), '', problems)
  if problems:
    raise KeyError('; '.join(problems))
  return found


def change(tree: dict, values: dict) -> dict:
  """A nested dictionary with dotted keys replaced; one that is not there stays to be refused."""
  tree = dict(tree)
  for key, value in values.items():
    first, _, rest = key.partition('.')
    if rest and isinstance(tree.get(first), dict):
      tree[first] = change(tree[first], {rest: value})
    else:
      tree[key] = value
  return tree
