"""The reproduction card of a run, WORKDIR/config.json: what it was, and whether this is still it.

`task` is a `task.Task`: config, dataset, codec, mesh, base.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import typing

from etils import epath

import rim_jax
from rim_jax import config as config_lib
from rim_jax import reader, terminal
from rim_jax.errors import UserError, refuse
from rim_jax.runtime import storage

CARD_VERSION = 2
_FIX = 'restore it from a copy, or use another --workdir'


class Print(typing.TypedDict, total=False):
  """What a run stands on: data, a base, another run."""
  path: str
  fingerprint: str


class Card(typing.TypedDict):
  """What is read of a config.json; of a run of several stages, they stand in `stages`."""
  format: int
  config: dict[str, typing.Any]
  stages: typing.NotRequired[list[str]]
  data: typing.NotRequired[Print]
  tokenizer: typing.NotRequired[str]
  base: typing.NotRequired[Print | None]
  start: typing.NotRequired[Print | None]
  command: typing.NotRequired[list[str]]


def make_card(task, versions: dict, start=None, num_hosts: int = 1) -> dict:
  """The reproduction card: what config.json holds.

  Args:
    versions: those of what the run's rows are made by, `packing.source.VERSIONS`.
    start: the run that this one begins with.
    num_hosts: on how many machines its processes are.
  """
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'ml-collections',
              'tensorflow-datasets', 'numpy')
  import jax  # late: a card is read without it
  device = jax.devices()[0]
  return {
      'format': CARD_VERSION,
      'config': dataclasses.asdict(task.config),
      'data': {'name': task.dataset.name, 'fingerprint': task.dataset.fingerprint,
               'num_records': {k: len(v) for k, v in task.dataset.splits.items()},
               'num_dropped': dict(task.dataset.num_dropped)},
      'tokenizer': task.codec.tokenizer.fingerprint,
      'base': task.base and {'path': str(task.base.folder), 'fingerprint': task.base.fingerprint},
      # Names on the hub with the revision that was used; they decide nothing, fingerprints do.
      'origins': [o for o in (task.dataset.origin, task.base and task.base.origin) if o],
      'start': start and {'path': str(start), 'fingerprint': fingerprint_run(load_card(start))},
      'versions': {'rim_jax': rim_jax.__version__, 'python': platform.python_version(),
                   **versions,
                   **{p: importlib.metadata.version(p) for p in packages}},
      'commit': _find_commit(),
      'hardware': {'device': device.device_kind, 'num_devices': task.mesh.size,
                   'num_processes': jax.process_count(), 'num_hosts': num_hosts,
                   'platform': platform.platform(),
                   'mesh': dict(task.mesh.shape)},
      'command': sys.argv,
  }


def _find_commit():
  """The checkout's commit, '+' where files differ from it; None outside a checkout."""
  describe = ('git', '-C', epath.Path(__file__).parent, 'describe', '--always', '--abbrev=40',
              '--dirty=+', '--exclude=*')
  try:
    return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10
                          ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def load_card(workdir) -> dict:
  """The card of a run; what an earlier version wrote has the later keys of the config as well.

  Raises: UserError where it is missing, damaged or of another format.
  """
  card = load_whole(workdir)
  path = epath.Path(workdir) / 'config.json'
  if card.get('stages'):
    raise UserError(f'{path}: is of a run of several stages; name one, e.g. '
                    f'{epath.Path(workdir) / card["stages"][-1]}')
  if not {'data', 'tokenizer', 'base'} <= card.keys():
    raise UserError(f'{path}: is damaged (it lacks keys); {_FIX}')
  return card


def make_whole(config: config_lib.Config, stages: list[str]) -> dict:
  """What config.json holds beside the stages of a run: the configuration of all of them."""
  return {'format': CARD_VERSION, 'config': dataclasses.asdict(config), 'stages': stages}


def load_whole(workdir) -> dict:
  """A run's card, or what `make_whole` makes, with the later keys of its config.

  Raises: UserError as `load_card` does, and for stages that an earlier version wrote alone.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    stages = sorted(p.parent.name for p in path.parent.glob('*/config.json')) if (
        path.parent.is_dir()) else []
    whole, before = path.parent.parent, []
    with contextlib.suppress(UserError):  # what stands beside may be no run
      if (whole / 'config.json').exists() and path.parent.name in load_whole(whole).get(
          'stages', ()):
        before = sorted(p.parent.name for p in whole.glob('*/config.json'))
    raise UserError(f'{workdir}: ' + (
        f'there is no run here yet, of this one there is {before[-1]}; name that, '
        f'--workdir={whole / before[-1]}, or go on with the command that trained it' if before else
        'its stages were run by a version that kept their configuration alone; give --config, or '
        f'name one stage, --workdir={path.parent / stages[-1]}' if stages else
        f'is of a sweep; name one of its runs, --workdir={path.parent / "points"}/NAME' if (
            (path.parent / 'points').is_dir()) else
        'there is no run here; train it first with --mode=train, or name another'))
  card = reader.load_json(path, _FIX, Card)
  if card['format'] != CARD_VERSION:
    raise UserError(f'{path}: format {card["format"]} is not {CARD_VERSION}, which this version of '
                    'rim_jax reads; use another --workdir')
  try:
    card = reader.unseal(card)
    config = config_lib.complete(card['config'])
    reader.from_tree(config_lib.Config, config)
  except (AttributeError, ValueError) as e:  # a value in place of a group
    raise UserError(f'{path}: is damaged ({e}); {_FIX}') from None
  return card | {'config': config}


def get_seal(workdir) -> str | None:
  """The digest that a run's card carries; None without one, or without a card."""
  path = epath.Path(workdir) / 'config.json'
  return reader.load_json(path, _FIX, Card).get(reader.SEAL) if path.exists() else None


def write_card(workdir, card: dict) -> None:
  """What `make_card` or `make_whole` makes, as config.json."""
  storage.write_json(epath.Path(workdir) / 'config.json', reader.seal(card))


def fingerprint_run(card: dict) -> str:
  """A hash of what a run computed, as its card tells it: config, data, tokenizer, base, start.

  Where its own start lay is no part of this hash, what that computed is.
  """
  flat = {key: value for key, value in config_lib.list_identity(card['config']).items()
          if not config_lib.is_runtime(key) and key != 'train.init_from'}
  prints = [value and value['fingerprint'] for value in (
      card['data'], card['base'], card.get('start'))]
  return hashlib.sha256(json.dumps([flat, card['tokenizer'], prints], sort_keys=True).encode()
                        ).hexdigest()[:16]


def find_differences(card: dict, config: config_lib.Config, where) -> list[str]:
  """Every key of a config that another run had otherwise, with both values; a line each."""
  old, new = (config_lib.flatten(c) for c in (card['config'], config))
  for key in config_lib.PATH_KEYS:  # earlier versions kept a `~` as it was written
    if old.get(key) != new.get(key) and storage.expand(old.get(key, ''), key) == new.get(key):
      old[key] = new[key]

  # Such a deviation is taken over a micro-batch.
  by_micro = new.get('distill.std', 'example') != 'example'

  def is_free(key):
    return key in config_lib.HELD_KEYS or (config_lib.is_runtime(key) and not (
        by_micro and key == 'train.num_micro_batches'))

  def describe(key):
    if key in old and key in new:
      return (f'with {key}={old[key]!r}, now it is {new[key]!r}; use another --workdir, or '
              + terminal.join([f'--config.{key}={old[key]}']))
    changed = f'no {key}, which now is {new[key]!r}' if key in new else f'{key}={old[key]!r}'
    return (f'by a version of rim_jax that has {changed}; go on with that version, or use another '
            '--workdir')
  return [f'{where}: was run {describe(key)}' for key in sorted(old.keys() | new.keys())
          if old.get(key) != new.get(key) and not is_free(key)]


def check_whole(config: config_lib.Config, workdir) -> None:
  """Refuses another configuration of a run of several stages, by the keys as they were given.

  Its stages are checked as well; what they have is partly made of these keys. A sweep's WORKDIR
  is no run's either.
  Raises: UserError.
  """
  workdir = epath.Path(workdir)
  if not (workdir / 'config.json').exists():
    if (workdir / 'points').is_dir():
      raise UserError(f'{workdir}: is the directory of a sweep; one run of it, --point=NAME, is '
                      f'done with --sweep_dir={workdir} in place of --workdir; another run needs '
                      'another --workdir')
    return
  card = load_whole(workdir)
  if any((workdir / name / 'config.json').exists() for name in card.get('stages', ())):
    refuse(find_differences(card, config, workdir))


def check_start(card: dict, start: dict | None, where) -> None:
  """Refuses to begin a run anew with another one's parameters than it did before.

  Raises: UserError with both fingerprints.
  """
  theirs, mine = ((found or {}).get('fingerprint') for found in (card.get('start'), start))
  if theirs != mine:
    path = (start or card['start'])['path']
    raise UserError(f'{where}: began with another run than what {path} now is '
                    f'(fingerprint {theirs}, now {mine}); restore that, or use another --workdir')


def check_card(card: dict, task, where, with_data: bool = True) -> None:
  """Refuses to go on in a WORKDIR whose run was another one.

  Args:
    with_data: False for a task that has loaded none.
  Raises: UserError naming every key that differs, with both values.
  """
  refuse(find_differences(card, task.config, where))
  for name, mine in (*([('data', task.dataset.fingerprint)] if with_data else []),
                     ('tokenizer', task.codec.tokenizer.fingerprint),
                     ('base', task.base and task.base.fingerprint)):
    theirs = card[name]
    theirs = theirs['fingerprint'] if isinstance(theirs, dict) else theirs
    # Where no row is bad it makes no difference what happens to bad ones.
    alike = name == 'data' and not any(task.dataset.num_dropped.values()) and task.dataset.alike
    if theirs not in (mine, alike):
      raise UserError(f'{where}: the {name} changed since this run began (fingerprint {theirs}, '
                      f'now {mine}); restore it, or use another --workdir')
