"""The rules between packages, read from their imports: imports point one way, low to high.

A rule that is broken shows here in the commit that breaks it. The rules say why a package can be
read, tested or replaced alone.
"""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from rim_jax.config.methods import FACTS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'rim_jax'
FILES = sorted(PACKAGE.rglob('*.py'))

# From low to high; a part imports itself and what stands on lower levels. Parts of one level do
# not know each other.
LEVELS = (
    ('errors',), ('config', 'locks', 'reader', 'terminal'), ('points', 'stages', 'results'),
    ('data', 'runtime'), ('packing',), ('model',), ('methods', 'pretrained'), ('task',),
    ('training',), ('evaluation',), ('planning',), ('report',), ('sweep', 'train'),
    ('command_line',), ('ask',), ('modes',), ('main',))
HEAVY = ('jax', 'flax', 'optax', 'orbax', 'grain', 'tensorflow_datasets', 'tokenizers',
         'safetensors')
TERMINAL = ('absl', 'rich')

# part -> what it never imports, beyond the levels; a name stands for all below it
NEVER = {
    'errors': (*HEAVY, *TERMINAL, 'numpy'),
    'config': (*HEAVY, *TERMINAL, 'os', 'pathlib', 'etils'),
    'results': (*HEAVY, *TERMINAL, 'os', 'pathlib', 'etils', 'rim_jax.reader'),
    'data': ('jax', 'flax', 'optax', 'orbax', 'rich'),
    'data.perturbed.executor': ('rim_jax',),  # or it would repeat the mistakes that it looks for
    'packing': ('flax', 'optax', 'orbax', *TERMINAL),
    'model': ('optax', 'orbax', 'grain', *TERMINAL, 'pathlib', 'etils', 'json'),
    'methods': ('optax', 'orbax', 'grain', *TERMINAL, 'pathlib', 'etils', 'json'),
    'pretrained': ('optax', 'orbax', 'grain', *TERMINAL),
    'training': ('grain', 'absl'),
    'evaluation': ('optax', 'orbax', 'grain', 'absl'),
    'report': (*HEAVY, 'absl', 'rim_jax.model', 'rim_jax.packing', 'rim_jax.planning',
               'rim_jax.evaluation', 'rim_jax.methods', 'rim_jax.training'),
    'sweep': ('flax', 'optax', 'orbax', 'grain', 'absl'),
    'train': ('absl', 'optax', 'orbax', 'grain'),
    'ask': (*TERMINAL, 'optax', 'orbax', 'grain'),
    'modes': ('absl', 'optax', 'orbax', 'grain'),
    'main': ('optax', 'orbax', 'grain', 'flax', 'jax', 'tensorflow_datasets'),
    'command_line': ('optax', 'orbax', 'grain', 'flax', 'jax', 'tensorflow_datasets'),
}


def find_imports(source: str) -> set[str]:
  """Every module that a source imports, at any depth of it, as dotted names.

  What a type checker alone imports is not loaded.
  """
  found, nodes = set(), [ast.parse(source)]
  for node in nodes:
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
      continue
    nodes += ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'relative imports hide what is imported'
      # `from rim_jax import model` names a module, `from rim_jax.model import x` too.
      found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def name_module(path) -> str:
  """Its dotted name below rim_jax: 'model.attention', or 'model' for a package's __init__."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_module(p): find_imports(p.read_text()) for p in FILES if p.parent != PACKAGE
           or p.name != '__init__.py'}


def find_level(part: str) -> int:
  return next(i for i, level in enumerate(LEVELS) if part in level)


def find_crossed(imports, never):
  return {i for i in imports if any(i == n or i.startswith(f'{n}.') for n in never)}


def find_parts(imports) -> set[str]:
  return {i.split('.')[1] for i in imports if i.startswith('rim_jax.')} - {'__version__'}


def test_the_reader_of_imports_sees_every_form():
  source = '''
import jax.numpy as jnp
from rim_jax import model as m
from rim_jax.data import Record
def f():
  import optax
  if True:
    from grain import python
if TYPE_CHECKING:
  import flax
'''
  imports = find_imports(source)
  assert find_crossed(imports, {'jax', 'rim_jax.model', 'rim_jax.data', 'optax', 'grain'}) >= {
      'jax.numpy', 'rim_jax.model', 'rim_jax.data', 'optax', 'grain'}
  assert not find_crossed(imports, {'flax'})
  assert find_crossed(imports, {'rim_jax.mode', 'ja', 'rim_jax.data.Rec'}) == set()
  assert find_parts(imports) == {'model', 'data'}


def test_every_part_of_the_package_has_its_level():
  parts = {m.split('.')[0] for m in MODULES}
  assert parts == {part for level in LEVELS for part in level}


@pytest.mark.parametrize('module', MODULES)
def test_imports_point_from_high_to_low(module):
  own = module.split('.')[0]
  lower = {part for level in LEVELS[:find_level(own)] for part in level}
  assert find_parts(MODULES[module]) <= lower | {own}


@pytest.mark.parametrize('part', NEVER)
def test_no_rule_is_broken(part):
  for module, imports in MODULES.items():
    if module == part or module.startswith(f'{part}.'):
      assert not find_crossed(imports, NEVER[part]), module


def test_imports_have_no_cycle():
  # A package's own __init__ is not among them: `from rim_jax.config import rules` names both.
  packages = {m.rpartition('.')[0] for m in MODULES}
  graph = {m: {n for n in MODULES if f'rim_jax.{n}' in imports} - packages - {m}
           for m, imports in MODULES.items()}
  while graph:
    leaves = {m for m, needs in graph.items() if not needs & graph.keys()}
    assert leaves, f'a cycle among {sorted(graph)}'
    graph = {m: needs for m, needs in graph.items() if m not in leaves}


def test_a_package_says_what_it_owns():
  """Three lines: what it owns, what it never does, where to start reading."""
  for path in PACKAGE.rglob('__init__.py'):
    if path.parent != PACKAGE:
      lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
      assert len([line for line in lines if line]) == 3, path


def find_markup(source: str) -> list[str]:
  """Texts of a source that hold an HTML element."""
  texts = (node.value for node in ast.walk(ast.parse(source))
           if isinstance(node, ast.Constant) and isinstance(node.value, str))
  return [t for t in texts if re.search(
      r'</?(a|body|br|data|details|div|figure|h[1-6]|head|html|li|p|pre|script|small|span|strong|'
      r'style|summary|table|tbody|td|th|thead|tr|ul|wbr)(\s[^<>]*)?>', t)]


def find_readings(source: str) -> list[str]:
  """Places of a source that parse JSON, or decode bytes so that bad ones raise."""
  found = []
  for node in ast.walk(ast.parse(source)):
    match node:
      case ast.Call(ast.Attribute(ast.Name('json'), 'load' | 'loads' | 'JSONDecoder')):
        found.append(node)
      case ast.Call(ast.Attribute(_, 'read_text')) if not ast.unparse(node).startswith('reader.'):
        found.append(node)
      case ast.Call(ast.Attribute(_, 'decode'), args, keywords) if not (
          ast.unparse(node).startswith('reader.') or any(k.arg == 'errors' for k in keywords)):
        # Tokenizers decode ids; bytes take the name of an encoding, or nothing.
        if not args or isinstance(args[0], ast.Constant):
          found.append(node)
      case ast.Call(ast.Name('open') | ast.Attribute(_, 'open'), args) if any(
          isinstance(a, ast.Constant) and a.value in ('r', 'rt', 'r+') for a in args):
        found.append(node)
  return [f'{node.lineno}: {ast.unparse(node)[:60]}' for node in found]


@pytest.mark.parametrize('reads', [
    'json.load(f)', 'json.loads(x)', 'path.read_text()', 'x.decode()', "x.decode('utf-8')",
    "open(path, 'r')", "path.open('r')"])
def test_the_search_for_readings_sees_each(reads):
  assert find_readings(reads)


def test_one_module_reads_what_is_handed_in():
  """So that no bytes, no JSON and no shape are met for the first time where they are used."""
  assert not find_readings("reader.read_text(p, x); codec.decode(ids); x.decode(errors='replace')")
  for path in [*FILES, *(ROOT / 'launch').glob('*.py')]:
    assert path.name == 'reader.py' or not find_readings(path.read_text()), path


def test_markup_stands_in_templates_alone():
  """So that text from data can never become markup: templates escape what they are given."""
  assert find_markup('f"<td>{x}"') and find_markup("'</p>'") and not find_markup('"<b> <m> a < b"')
  for path in FILES:
    assert not find_markup(path.read_text()), path


def find_large(source: str) -> list[str]:
  """Functions of more than 60 lines or 6 parameters, without a reason in the line above."""
  lines, found = source.splitlines(), []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      args = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
      count = len(args) - (args[:1] in (['self'], ['cls']))
      is_long = node.end_lineno - node.lineno >= 60
      reason = re.match(r'# (Long|\d+ parameters)\b.*: \w', lines[node.lineno - 2].strip())
      if (is_long or count > 6) and not reason:
        found.append(node.name)
  return found


def test_a_large_function_says_why():
  many = f'def f({", ".join("abcdefg")}):\n  pass\n'
  assert find_large(f'\n{many}') == ['f'] and not find_large(f'# 7 parameters: so it is.\n{many}')
  assert find_large('\ndef f():\n' + '  pass\n' * 60) == ['f']
  assert not find_large('\ndef f():\n' + '  pass\n' * 59)
  for path in FILES:
    assert not find_large(path.read_text()), path


def test_modules_are_named_by_what_they_own():
  assert not {m.split('.')[-1].strip('_') for m in MODULES} & {
      'util', 'utils', 'common', 'helper', 'helpers', 'misc', 'base', 'core', 'types'}


@pytest.mark.parametrize('folder', ['rim_jax', 'configs', 'tests'])
def test_no_wildcard_imports(folder):
  names_of_recipes = {PACKAGE / 'points.py', PACKAGE / 'stages.py'}
  for path in set((ROOT / folder).rglob('*.py')) - names_of_recipes:
    assert not [i for i in find_imports(path.read_text()) if i.endswith('.*')], path


def test_recipes_know_only_the_config():
  """So that a recipe is read, and refused, before anything heavy is loaded."""
  for path in (ROOT / 'configs').rglob('*.py'):
    inside = find_parts(find_imports(path.read_text()))
    assert inside <= {'config', 'errors', 'points', 'reader', 'stages'}, path


@pytest.mark.parametrize('args', [
    ['--config=configs/rim.py', '--config.model.num_heads=5'],
    ['--config=configs/compare.py', '--point=method=rime,seed=0'],  # a plan sets JAX up first
])
def test_a_wrong_flag_is_told_before_jax_is_loaded(args):
  """What the rules cannot see: imports of imports."""
  code = f'''
import sys
from rim_jax import main
assert main.cli({['main.py', *args]!r}) == 2
heavy = {set(HEAVY)!r}
loaded = heavy & set(sys.modules)
sys.exit(str(loaded) if loaded else 0)
'''
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                        timeout=300)
  assert done.returncode == 0, done.stderr


# ---- Nobody asks for a method's name ----


def find_asked(source: str) -> list[str]:
  """Places of a source that compare a method's name, look something up by it, or table by it."""
  def is_name(node):
    match node:
      case ast.Constant(value):
        return value in FACTS
      case ast.Tuple(elements) | ast.List(elements) | ast.Set(elements):
        return any(map(is_name, elements))
      case (ast.Attribute(attr='method') | ast.Name('method') | ast.Subscript(
          slice=ast.Constant('method')) | ast.Call(args=[ast.Constant('method'), *_])):
        return True
    return False

  def get_asked(node):
    match node:
      case ast.Compare(left, _, others):
        return [left, *others]
      case ast.Subscript(_, key):
        return [key]
      case ast.Call(ast.Attribute(value, ('get' | 'pop' | 'setdefault' | 'index' | 'count'
                                          | 'startswith' | 'endswith')), args):
        return [value, *args]
      case ast.Dict(keys):
        return keys
      case ast.Match(subject):
        return [subject]
      case ast.MatchValue(value):
        return [value]
    return []
  return [f'{node.lineno}: {ast.unparse(node)[:60]}' for node in ast.walk(ast.parse(source))
          if any(map(is_name, get_asked(node)))]


@pytest.mark.parametrize('asks', [
    "config.method == 'rim'", "config.method in kinds", "method != other", "card['method'] is x",
    "TABLE[config.method]", "TABLE.get(config.method)", "TABLE['direct']", "{'cot': 1}",
    "x in ('rim', 'other')", "e.get('method') == x", "x == 'pause'", "method.startswith('rim')",
    "match config.method:\n  case _: pass", "match x:\n  case 'icot': pass"])
def test_the_reader_sees_every_way_to_ask_for_a_name(asks):
  assert find_asked(asks)


@pytest.mark.parametrize('source', [
    "get_facts(config.method).has_blocks", "{'method': config.method}", "f'{config.method}'",
    "replace(config, method=name)", "config.facts is other.facts", "table['method']",
    "e['method'].encode()", "x == 'direction'"])
def test_to_pass_a_name_on_or_ask_for_facts_is_no_question(source):
  assert not find_asked(source)


def test_nobody_but_methods_and_config_asks_for_a_method_s_name():
  """Others ask `config.facts`, or what `methods.get_method` returns."""
  asked = {str(path.relative_to(ROOT)): found for path in FILES
           if path.parent not in (PACKAGE / 'methods', PACKAGE / 'config')
           and (found := find_asked(path.read_text()))}
  assert not asked


def test_no_test_imports_another():
  """What several tests use stands in tests/support*.py, so that each file is read alone."""
  for path in (ROOT / 'tests').rglob('*.py'):
    assert not [i for i in find_imports(path.read_text())
                if i.startswith('tests') and i.split('.')[-1].endswith('_test')], path


def test_tests_mirror_modules():
  without = {'methods/toy', 'config/identity'}  # a method of the tests; a property of two modules
  for path in (ROOT / 'tests').rglob('*_test.py'):
    name = path.relative_to(ROOT / 'tests').as_posix().removesuffix('_test.py')
    if '/' in name and name not in without:
      assert (PACKAGE / f'{name}.py').exists() or (PACKAGE / name).is_dir(), path
