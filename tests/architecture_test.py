"""The borders between modules, read from their imports: who must never know of whom.

A border that is crossed shows here in the commit that crosses it. The table
says why a module can be read, tested or replaced alone.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'rim_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
MODULES = sorted(p.stem for p in FILES if p.stem != '__init__')

# What does I/O or talks to a person.
IO = {'io', 'os', 'pathlib', 'etils', 'json', 'logging', 'absl', 'rich', 'orbax',
      'rim_jax.checkpoint', 'rim_jax.metrics', 'rim_jax.report'}
ALL = {f'rim_jax.{m}' for m in MODULES}

# module -> what it never imports; a name stands for all below it
NEVER = {
    'main': {'optax', 'grain', 'jax', 'flax', 'tensorflow_datasets'},
    'run': {'optax', 'grain', 'absl', 'rim_jax.main'},
    'rules': ALL | {'jax', 'numpy', 'flax', 'optax', 'grain', 'ml_collections'} | IO,
    'config': ALL - {'rim_jax.rules'} | {'jax', 'numpy', 'flax', 'optax', 'grain'},
    'stages': ALL - {'rim_jax.config'} | {'jax', 'numpy', 'flax', 'optax', 'grain'},
    'data': {'rim_jax.model', 'rim_jax.sharding', 'rim_jax.train', 'jax'},
    'records': ALL - {'rim_jax.config'} | {'jax', 'grain'},
    'numerals': ALL | {'jax', 'numpy'} | IO,
    'templates': ALL - {'rim_jax.numerals'} | {'jax', 'numpy'} | IO,
    'variants': ALL - {'rim_jax.numerals', 'rim_jax.templates'} | {'jax'} | IO,
    'executor': ALL | {'jax', 'numpy'} | IO,  # or it would repeat the mistakes that it looks for
    'perturb': {'rim_jax.data', 'rim_jax.model', 'jax', 'tensorflow_datasets'},
    'prosqa': ALL - {'rim_jax.config', 'rim_jax.records'} | {'jax'} | IO,
    'tokenizer': {'rim_jax.model', 'jax'},
    'layout': {'rim_jax.model', 'rim_jax.loss'},
    'packing': ALL | {'jax', 'grain'},
    'coconut': {'rim_jax.data', 'rim_jax.loss', 'rim_jax.optim', 'rim_jax.train', 'rim_jax.decode',
                'optax'} | IO,
    'removal': ALL - {'rim_jax.config'} | {'jax', 'grain'} | IO,
    'pipeline': {'rim_jax.model', 'rim_jax.loss', 'rim_jax.optim', 'rim_jax.train'},
    'batch': ALL - {'rim_jax.config'},
    'curriculum': {'rim_jax.data', 'rim_jax.model'} | IO,
    'attention': ALL - {'rim_jax.batch', 'rim_jax.config', 'rim_jax.sharding'} | {'flax'} | IO,
    'model': {'rim_jax.data', 'rim_jax.optim'} | IO,
    'memory': {'rim_jax.data', 'rim_jax.loss'} | IO,
    'lora': {'rim_jax.data', 'rim_jax.loss'} | IO,
    'families': ALL - {'rim_jax.config'} | {'jax', 'flax', 'numpy', 'safetensors'},
    'pretrained': {'rim_jax.train', 'rim_jax.optim', 'rim_jax.model'},
    'adapters': {'rim_jax.train', 'rim_jax.optim', 'rim_jax.model', 'rim_jax.data'},
    'export': {'rim_jax.train', 'rim_jax.optim', 'rim_jax.model'},
    'sharding': {'rim_jax.model', 'rim_jax.data', 'rim_jax.train'},
    'loss': IO | {'rim_jax.data'},
    'optim': IO | {'rim_jax.data'},
    'train_step': IO | {'rim_jax.data'},
    'hosts': ALL - {'rim_jax.config'} | {'flax', 'optax', 'orbax', 'grain'},
    'card': {'rim_jax.model', 'rim_jax.train', 'rim_jax.data'},
    'checkpoint': {'rim_jax.model', 'rim_jax.train'},
    'storage': ALL - {'rim_jax.config'} | {'jax', 'orbax'},
    'state': {'rim_jax.train', 'rim_jax.run', 'rim_jax.data', 'grain', 'absl'},
    'results': {'rim_jax.train', 'rim_jax.run', 'rim_jax.optim', 'grain', 'optax', 'absl'},
    'train': {'absl', 'rim_jax.main', 'rim_jax.run'},
    'decode': {'rim_jax.optim', 'optax'},
    'evaluate': {'rim_jax.optim', 'optax'},
    'controls': {'rim_jax.optim', 'optax'},
    'matched': {'rim_jax.optim', 'rim_jax.train', 'rim_jax.decode', 'jax', 'optax'},
    'inquiry': {'rim_jax.model', 'rim_jax.train', 'rim_jax.sweep', 'rim_jax.run', 'jax', 'optax',
                'grain'},
    'attended': {'rim_jax.optim', 'rim_jax.controls', 'optax'} | IO,
    'stats': ALL - {'rim_jax.config'} | {'jax', 'numpy'},
    'probes': {'rim_jax.optim', 'optax', 'jax', 'flax'} | IO - {'io'},
    'latency': {'rim_jax.optim', 'rim_jax.train', 'rim_jax.data', 'optax'},
    'metrics': {'rim_jax.model'},
    'examples': ALL - {'rim_jax.config', 'rim_jax.page', 'rim_jax.pairs', 'rim_jax.stats'} | {
        'jax', 'flax', 'optax', 'grain'},
    'paper': ALL - {'rim_jax.config', 'rim_jax.page'} | {'jax', 'numpy'} | IO,
    'page': ALL - {'rim_jax.storage'} | {'jax', 'numpy'},
    'findings': ALL - {'rim_jax.page'} | {'jax', 'numpy'},
    'report': {'rim_jax.model'},
    'estimate': {'rim_jax.train', 'rim_jax.sweep', 'rim_jax.model', 'rim_jax.report'},
    'plan': {'rim_jax.data', 'rim_jax.train'},
    'hlo': ALL | {'jax', 'flax'} | IO,
    'summary': {'rim_jax.model', 'rim_jax.train', 'rim_jax.sweep', 'jax', 'optax', 'grain'},
    'compare': {'rim_jax.model', 'rim_jax.data', 'rim_jax.train', 'rim_jax.run', 'jax', 'flax',
                'optax', 'grain', 'absl'},
    'conclusion': {'rim_jax.model', 'rim_jax.train', 'rim_jax.sweep', 'rim_jax.report', 'jax',
                   'optax', 'grain'},
    'evidence': ALL - {'rim_jax.config', 'rim_jax.page', 'rim_jax.stats'} | {
        'jax', 'numpy', 'flax', 'optax'},
    'pairs': ALL - {'rim_jax.stats', 'rim_jax.config'} | {'jax', 'flax', 'optax', 'grain'},
    'timings': ALL - {'rim_jax.stats'} | {'jax', 'numpy', 'flax', 'optax', 'grain'} | IO,
    'devices': ALL - {'rim_jax.config'} | {'flax', 'optax', 'grain', 'etils', 'numpy'},
    'board': ALL - {'rim_jax.metrics', 'rim_jax.stages'} | {'jax', 'flax', 'optax', 'grain'},
    'halving': {'rim_jax.model', 'rim_jax.train', 'rim_jax.sweep', 'jax', 'optax', 'grain'},
    'plots': ALL - {'rim_jax.page'} | {'jax', 'numpy', 'flax', 'optax', 'grain'} | IO,
    'points': ALL - {'rim_jax.config'} | {'jax', 'flax', 'optax', 'grain'} | IO - {'json'},
    'sweep': {'rim_jax.model', 'rim_jax.loss', 'rim_jax.train', 'optax', 'grain'},
}


def find_imports(source: str) -> set[str]:
  """Every module that a source names in an import, at any depth of it, as dotted names."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative imports hide what is imported'
      # `from rim_jax import model` names a module, `from rim_jax.model import x` too.
      found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def imports_of(module):
  return find_imports((PACKAGE / f'{module}.py').read_text())


def find_crossed(imports, never):
  return {i for i in imports if any(i == n or i.startswith(f'{n}.') for n in never)}


def test_the_reader_of_imports_sees_every_form():
  source = '''
import jax.numpy as jnp
from rim_jax import model as m
from rim_jax.data import Record
def f():
  import optax
  if True:
    from grain import python
'''
  imports = find_imports(source)
  assert find_crossed(imports, {'jax', 'rim_jax.model', 'rim_jax.data', 'optax', 'grain'}) >= {
      'jax.numpy', 'rim_jax.model', 'rim_jax.data', 'optax', 'grain'}
  assert find_crossed(imports, {'rim_jax.mode', 'ja', 'rim_jax.data.Rec'}) == set()


def test_every_module_has_its_border():
  """A new module states what it must not know."""
  assert set(MODULES) <= set(NEVER)


@pytest.mark.parametrize('module', MODULES)
def test_no_border_is_crossed(module):
  assert find_crossed(imports_of(module), NEVER[module] - {f'rim_jax.{module}'}) == set()


def test_imports_have_no_cycle():
  graph = {m: {i.split('.')[1] for i in imports_of(m) if i.startswith('rim_jax.')} & set(MODULES)
           for m in MODULES}
  while graph:
    leaves = {m for m, needs in graph.items() if not needs & graph.keys()}
    assert leaves, f'a cycle among {sorted(graph)}'
    graph = {m: needs for m, needs in graph.items() if m not in leaves}


def test_the_package_is_flat_and_names_what_its_modules_own():
  assert {p.parent for p in FILES} == {PACKAGE}
  assert not {m for m in MODULES if m.strip('_') in (
      'util', 'utils', 'common', 'helper', 'helpers', 'misc', 'base', 'core', 'types')}


@pytest.mark.parametrize('folder', ['rim_jax', 'configs', 'tests'])
def test_no_wildcard_imports(folder):
  for path in (ROOT / folder).glob('*.py'):
    assert not [i for i in find_imports(path.read_text()) if i.endswith('.*')], path


def test_recipes_know_only_the_config():
  """So that a recipe is read, and refused, before anything heavy is loaded."""
  for path in (ROOT / 'configs').rglob('*.py'):
    inside = {i for i in find_imports(path.read_text()) if i.startswith('rim_jax')}
    light = ('rim_jax.config', 'rim_jax.points', 'rim_jax.stages')
    assert {i for i in inside if not i.startswith(light)} <= {'rim_jax'}, path


@pytest.mark.parametrize('args', [
    ['--config=configs/rim.py', '--config.model.num_heads=5'],
    ['--config=configs/compare.py', '--point=method=rime,seed=0'],  # a plan sets JAX up first
])
def test_a_wrong_flag_is_told_before_jax_is_loaded(args):
  """What the table cannot see: imports of imports."""
  code = f'''
import sys
from rim_jax import main
assert main.cli({['main.py', *args]!r}) == 2
heavy = {{'jax', 'flax', 'optax', 'orbax', 'grain', 'tensorflow_datasets', 'tokenizers'}}
loaded = heavy & set(sys.modules)
sys.exit(str(loaded) if loaded else 0)
'''
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                        timeout=60)
  assert done.returncode == 0, done.stderr
