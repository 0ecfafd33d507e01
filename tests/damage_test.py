"""Every file of a finished run, damaged in every way: each mode is right, or refuses in one line.

Never a traceback, never another result. What is damaged, how and where follows from a seed, which
a failure prints. `-m slow` runs 2,400 of them.
"""

import json
import pathlib
import random
import shutil
import sys
import traceback

import jax
import pytest

from tests import support_report
from tests.support_cli import RECIPE, run_cli

SWEEP = RECIPE.replace("def get_config(method='rim_stage1'):", 'def make_base(method):') + '''

def get_config(method='direct'):
  from rim_jax.points import make_sweep_dict
  return make_sweep_dict(make_base(method), [({'a': a}, {'seed': a}) for a in (0, 1)])
'''
ONE, OTHER = 'sweep/points/a=0', 'sweep/points/a=1'
COMMANDS = {
    'report': [f'--workdir={ONE}', '--mode=report'],
    'compare': [f'--workdir={ONE}', '--mode=compare', f'--with={OTHER}'],
    'sweep': ['--config=many.py', '--workdir=sweep', '--mode=sweep', '--conclude'],
    'generate': [f'--workdir={ONE}', '--mode=generate', '--question=1+2+3'],
    'eval': [f'--workdir={ONE}', '--mode=eval'],
    'train': ['--config=many.py', '--point=a=0', '--sweep_dir=sweep'],  # the same command again
}
CHEAP = ('report', 'compare', 'sweep')  # no network is built


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A directory with a sweep of two runs, concluded; what each mode finds in it."""
  place = tmp_path_factory.mktemp('damage')
  (place / 'many.py').write_text(SWEEP)
  everything = jax.devices()
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    patch.setattr(jax, 'devices', lambda: everything[:1])
    for name in (0, 1):
      patch.delitem(sys.modules, 'config_config', raising=False)
      assert run_cli('--config=many.py', f'--point=a={name}', '--sweep_dir=sweep')[0] == 0
    for mode in CHEAP:
      assert ask(mode)[0] == 0
    shutil.copytree(place / 'sweep', place / 'whole')
    yield place, Expected()


class Expected(dict):
  """What each mode finds in the whole run, asked when it is needed."""

  def __missing__(self, mode):
    damaged = pathlib.Path('sweep').rename('damaged')
    shutil.copytree('whole', 'sweep')
    code, _, self[mode] = ask(mode)
    assert code == 0, mode
    shutil.rmtree('sweep')
    damaged.rename('sweep')
    return self[mode]


def ask(mode):
  """(exit code, what it told, what it found) of a mode, in the finished run's directory."""
  sys.modules.pop('config_config', None)  # recipes are imported under one name
  code, told = run_cli(*COMMANDS[mode])
  return code, told, find_result(mode, told) if code == 0 else None


def find_result(mode, told):
  """What a mode leaves that people go by; of the page its tables."""
  if mode == 'generate':
    return told
  if mode == 'report':
    return support_report.Page(pathlib.Path(ONE, 'report.html')).tables
  tree = json.loads(pathlib.Path(
      {'compare': f'{ONE}/compare.json', 'sweep': 'sweep/sweep.json',
       'eval': f'{ONE}/results.json', 'train': f'{ONE}/results.json'}[mode]).read_text())
  return tree['test'] if mode in ('eval', 'train') else tree


def is_right(mode, found, expected) -> bool:
  """Whether a result is the one of the whole run, or there is none in its place."""
  if found == expected:
    return True
  if mode == 'report':  # no results.json: not evaluated yet
    return not any('final accuracy' in str(table) for table in found)
  if mode == 'compare':  # without results.json its step is not known
    return found | {'a': 0} == expected | {'a': 0} and found['a']['step'] is None
  if mode != 'sweep':
    return False
  entry, other = found['entries']
  if entry['num_done'] == 0:  # no point.json, or no results.json: not done yet
    return expected['entries'][1]['final_acc'] == other['final_acc']
  if [e['final_acc'] for e in found['entries']] != [e['final_acc'] for e in expected['entries']]:
    return False
  if not found['best']:  # some lines of metrics are missing
    return any('no best is chosen' in w for w in found['warnings'])
  # No predictions: not compared, and told.
  return any('no predictions' in str(pair['not_compared']) for pair in found['pairs'])


def list_files(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file() and p.name != '.lock')


def damage(path, other, draw) -> str:
  """Damages a file in a way that is drawn; returns how."""
  content = path.read_bytes()
  at = draw.randrange(len(content)) if content else 0
  kind = draw.choice(['flip'] * 4 + ['truncate', 'delete', 'swap', 'exchange', 'replace', 'folder'])
  seal = content.rfind(b'"sha256"')
  if path.name == 'config.json' and seal <= at < seal + 8:
    at = 0  # a card with no seal of this name is one of an earlier version; what it says is whole
  if kind == 'flip' and content:
    bit = draw.randrange(8)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1:])
    return f'bit {bit} of byte {at} flipped'
  if kind == 'truncate':
    path.write_bytes(content[:at])
    return f'truncated to {at} bytes'
  if kind == 'swap':  # two of its bytes
    to = draw.randrange(len(content)) if content else 0
    changed = bytearray(content)
    if content:
      changed[at], changed[to] = changed[to], changed[at]
    path.write_bytes(bytes(changed))
    return f'bytes {at} and {to} swapped'
  if kind == 'exchange':
    path.write_bytes(other.read_bytes())
    return f'replaced by {other}'
  if kind == 'replace':
    text = draw.choice([b'', b'null', b'{}', b'[]', b'\xff\xfe', b'[' * 100_000, b'9' * 5_000,
                        b'{"test": {}}', b'{"format": 1e99999999}'])
    path.write_bytes(text)
    return f'replaced by {text[:20]!r}'
  path.unlink()
  if kind == 'folder':
    path.mkdir()
    return 'a directory in its place'
  return 'deleted'


def try_damage(finished, capsys, seed, modes) -> list[str]:
  """What went wrong when one damage was asked of some modes; the run is whole again afterwards."""
  place, expected = finished
  draw = random.Random(seed)
  run, whole = place / ONE, place / 'whole/points/a=0'
  path = draw.choice(list_files(whole))
  other = draw.choice([draw.choice(list_files(whole)), place / 'whole/points/a=1' /
                       path.relative_to(whole)])
  how = damage(run / path.relative_to(whole), other if other.exists() else path, draw)
  wrong = []
  for mode in modes:
    capsys.readouterr()
    try:
      code, _, found = ask(mode)
    except (Exception, SystemExit):
      code, found = traceback.format_exc(), None
    err = capsys.readouterr().err
    told = len(err.splitlines()) == 1 and err.startswith('error: ')
    if not (is_right(mode, found, expected[mode]) if code == 0 else code == 2 and told):
      wrong.append(f'seed {seed}: {path.relative_to(whole)}: {how}; --mode={mode}: {code}: {err}')
  shutil.rmtree(place / 'sweep')
  shutil.copytree(place / 'whole', place / 'sweep')
  return wrong


@pytest.fixture(autouse=True)
def _in_place(finished, use_devices, monkeypatch):
  monkeypatch.chdir(finished[0])
  use_devices(1)
  yield
  shutil.rmtree('sweep')
  shutil.copytree('whole', 'sweep')





@pytest.mark.slow
@pytest.mark.parametrize('part', range(24))
def test_all_damages(finished, capsys, part):
  wrong = [try_damage(finished, capsys, seed, CHEAP if seed % 10 else COMMANDS)
           for seed in range(100 * part, 100 * part + 100)]
  assert wrong == [[]] * 100
