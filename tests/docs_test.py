"""README.md and docs/: links resolve, commands and keys exist, pictures are of real runs."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from configs import presets
from rim_jax import command_line, points
from rim_jax import config as config_lib
from rim_jax.report import paper

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PAGES = [p for p in PAGES if p.exists() and '_build' not in p.parts]
FENCE = re.compile(r'^( *)```(\w*).*?\n(.*?)^\1```', re.M | re.S)
KEYS = config_lib.flatten(config_lib.Config())
GROUPS = {k.partition('.')[0] for k in KEYS if '.' in k}


def name(path):
  return str(path.relative_to(ROOT))


def strip_code(text):
  return re.sub(r'`[^`]+`', '', FENCE.sub('', text))


def list_anchors(path):
  """The link targets of a page's headings, as forges and the site name them."""
  anchors = set()
  for title in re.findall(r'^#+ +(.*?)\s*$', FENCE.sub('', path.read_text()), re.M):
    title = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title).replace('`', '')
    slug = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
    count = sum(a == slug or re.fullmatch(rf'{re.escape(slug)}-\d+', a) is not None
                for a in anchors)
    anchors.add(f'{slug}-{count}' if count else slug)
  return anchors


def list_links(text):
  text = strip_code(text)
  return [*re.findall(r'\]\(([^)\s]+)\)', text),
          *re.findall(r'(?:src|srcset|href)="([^"]+)"', text)]


def find_broken_links(path):
  broken = []
  for link in list_links(path.read_text()):
    if re.match(r'\w+:', link):
      continue
    target, _, anchor = link.partition('#')
    page = (path.parent / target).resolve() if target else path
    if not page.exists() or ROOT not in (page, *page.parents):
      broken.append(f'{name(path)}: {link}: no such file')
    elif anchor and (page.suffix != '.md' or anchor not in list_anchors(page)):
      broken.append(f'{name(path)}: {link}: no such heading')
  return broken


def list_commands(text):
  """Lines of code blocks that run Python or a launcher, continued lines joined."""
  blocks = '\n'.join(body for _, kind, body in FENCE.findall(text) if kind in ('', 'bash', 'sh'))
  spans = re.findall(r'`([^`]+)`', FENCE.sub('', text))
  lines = re.sub(r'\\\n\s*', ' ', blocks).split('\n') + [' '.join(s.split()) for s in spans]
  return [line.partition('  #')[0] for line in lines if '--' in line]


def find_wrong_flags(command, added=()):
  """What a command line names that does not exist, nor is `added` by its page."""
  wrong = []
  for path, preset in re.findall(r'--config=([\w/]+\.py)(?::([\w,]+))?', command):
    # my_*.py is the reader's own
    if not (ROOT / path).exists() and not path.startswith('my_') and path not in added:
      wrong.append(f'no recipe {path}')
    others = ('gpu', 'cpu') if path.endswith('/stories.py') else ('METHOD', 'PRESET')
    if preset and preset.partition(',')[0] not in (*presets.PRESETS, *others):
      wrong.append(f'no preset {preset}')
  for key in re.findall(r'--(?:no)?config\.([\w.]+)', command):
    key = key.rstrip('.')
    if key not in KEYS and key not in ('KEY',):
      wrong.append(f'no key {key}')
  for mode in re.findall(r'--mode=([a-z]+)', command):
    if mode not in command_line.MODES:
      wrong.append(f'no mode {mode}')
  for script in re.findall(r'(?:launch|bench)/\w+\.(?:py|sh)', command):
    if not (ROOT / script).exists():
      wrong.append(f'no file {script}')
  if 'rim_jax.main' in command:
    known = command_line.define_flags(['main'])
    own = command[command.index('rim_jax.main'):]
    flags = re.findall(r'(?<=\s)--([a-z_]+)(?=[=\s]|$)', own)
    wrong += [f'no flag --{flag}' for flag in flags if flag not in known and flag != 'config']
  return wrong


def test_a_link_or_an_anchor_that_leads_nowhere_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
  (tmp_path / 'b.md').write_text('# Some `code`, and more\n## Twice\n## Twice\n')
  page = tmp_path / 'a.md'
  page.write_text('[x](b.md#some-code-and-more) [x](b.md#twice-1) [x](b.md) [y](https://c.d/e)\n'
                  '`[x](not a link)` [x](gone.md) [x](b.md#gone) [x](#here)\n<img src="no.svg">')
  assert [line.partition(': ')[2].partition(':')[0] for line in find_broken_links(page)] == [
      'gone.md', 'b.md#gone', '#here', 'no.svg']


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_link_and_anchor_resolves(page):
  assert not find_broken_links(page)


def test_pages_and_headings_that_the_code_cites_exist():
  titles = re.findall(r'^#+ +(.*)$', (ROOT / 'docs/concepts.md').read_text(), re.M)
  wrong, cited = [], 0
  for folder in ('rim_jax', 'configs', 'bench', 'launch'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      text = ' '.join(path.read_text().split())
      wrong += [f'{name(path)}: no page {page}' for page in re.findall(r'docs/[\w/]+\.md', text)
                if not (ROOT / page).exists()]
      for found in re.findall(r'docs/concepts\.md, ("[^"]+"(?: and "[^"]+")*)', text):
        cited += 1
        wrong += [f'{name(path)}: no heading {title}' for title in re.findall(r'"([^"]+)"', found)
                  if not any(t.startswith(title) for t in titles)]
  assert cited and not wrong


def test_a_command_that_names_what_is_not_there_is_found():
  assert find_wrong_flags('python -m rim_jax.main --config=configs/rim.py:gsm8k --mode=eval '
                          '--config.eval.num_blocks=2 --workdir=x') == []
  assert find_wrong_flags('python -m rim_jax.main --config=configs/rin.py:chian --mode=evil '
                          '--config.eval.blocks=2 --work=x') == [
      'no recipe configs/rin.py', 'no preset chian', 'no key eval.blocks', 'no mode evil',
      'no flag --work']


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_and_keys_exist(page):
  text = page.read_text()
  wrong = [f'{command}: {what}' for command in list_commands(text)
           for what in find_wrong_flags(command, re.findall(r'^\+\+\+ b/(\S+)', text, re.M))]
  for span in re.findall(r'`([^`\n]+)`', FENCE.sub('', text)):
    key = re.match(r'(?:config\.([a-z_]+\.[\w.]+)|((\w+)\.[\w.]+)=)', span)
    if key and (key[1] or key[3] in GROUPS) and not any(
        f'{k}.'.startswith(f'{key[1] or key[2]}.') for k in KEYS):
      wrong.append(f'{span}: no such key')
  assert not wrong


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_files_that_are_named_exist(page):
  text = page.read_text()
  folders = 'rim_jax|configs|tests|launch|bench|docs|constraints'
  named = set(re.findall(rf'`((?:{folders})/[\w./-]*\w)/?`', FENCE.sub('', text)))
  named -= {*re.findall(r'^\+\+\+ b/(\S+)', text, re.M), 'docs/_build/index.html'}
  assert not [path for path in sorted(named) if not (ROOT / path).exists()]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_lines_are_short_enough_to_read(page):
  assert not [i for i, line in enumerate(page.read_text().split('\n'), 1)
              if len(line) > 200 and not line.lstrip().startswith('|')]


def test_the_readme_is_short_and_begins_with_the_two_commands():
  text = (ROOT / 'README.md').read_text()
  assert text.count('\n') <= 150
  first = {title: FENCE.search(text, text.index(f'## {title}\n'))[3].strip()
           for title in ('Quick start', 'Tests')}
  assert first['Quick start'] == (
      'pip install -e . && python -m rim_jax.main --config=configs/rim.py')
  assert first['Tests'].startswith("pip install -e '.[test]' && ruff check ")


def read_readme_table():
  """How a method's name begins in it -> its cells by column."""
  text = (ROOT / 'README.md').read_text()
  lines = text[text.index('| method '):].split('\n\n')[0].split('\n')
  head, _, *rows = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in lines]
  head = [re.sub(r' on GSM8K|,? \*+\w+( here)?', '', cell) for cell in head]
  return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


def test_the_readme_tells_the_papers_figures_as_they_are_known():
  table = read_readme_table()
  rows = {'direct': 'direct answer', 'Coconut': 'Coconut', 'RiM': 'RiM', 'CoT': 'chain of thought'}
  for i, method in enumerate(paper.METHODS):
    for model in ('GPT-2', 'Llama-3.2-1B'):
      figure = paper.REPORTED['test'][model][i]
      # One, or from and to, of many papers.
      told = [float(x) for x in re.findall(r'[\d.]+', table[rows[method]][model])]
      assert told == [figure] or (len(told) == 2 and told[0] <= figure <= told[1]), (method, model)


def test_the_readme_tells_the_means_and_passes_of_results():
  page = (ROOT / 'docs/results.md').read_text()

  def find(what, pattern):
    return dict(re.findall(pattern, page.split(f'<!-- {what}:')[1].split('<!-- end')[0]))
  columns = {
      'chain task': find('table compare_chain', r'\| `(\w+)` \| [^|]+ \| ([^|]+) \|'),
      'harder chain': find('table compare_chain_harder', r'\| `(\w+)` \| [^|]+ \| ([^|]+) \|'),
      'passes before the answer': find('costs of compare_chain', r'\| `(\w+)` \| [^|]+ \| (\d+) ')}
  begins = {'direct': 'direct', 'pause': 'pause', 'icot': 'iCoT', 'coconut': 'Coconut',
            'codi': 'CODI', 'pccot': 'PCCoT', 'sim_cot': 'SIM-CoT', 'lotus': 'LOTUS',
            'rim': 'RiM', 'looped': 'RiM that reads', 'rim_paired': 'RiM that also',
            'cot': 'chain of thought'}
  table = read_readme_table()
  assert len(table) == len(begins)
  for column, told in columns.items():
    assert told.keys() == begins.keys()
    for method, cell in told.items():
      name = next(name for name in sorted(table, key=len) if name.startswith(begins[method]))
      assert re.findall(r'[\d.]+', table[name][column]) == re.findall(r'[\d.]+', cell), (
          method, column)


def test_the_quick_start_and_the_curves_are_of_one_run():
  data = json.loads((ROOT / 'docs/pictures/data/rim_chain.json').read_text())
  last = data['stages'][-1]
  told = re.findall(r'after block \d +([\d.]+)%', (ROOT / 'README.md').read_text())
  assert told == [f'{100 * acc:.1f}' for acc in last['block_acc']]


def load_pictures():
  spec = importlib.util.spec_from_file_location('pictures', ROOT / 'docs/pictures.py')
  module = importlib.util.module_from_spec(spec)
  sys.modules['pictures'] = module
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_pictures_are_what_their_script_draws_today(tmp_path, monkeypatch):
  pictures = load_pictures()
  kept = {p.name: read_picture(p) for p in pictures.HERE.glob('*.svg')}
  data = json.loads((pictures.HERE / 'data' / 'rim_chain.json').read_text())
  monkeypatch.setattr(pictures, 'HERE', tmp_path)
  pictures.draw_all(data)
  assert {p.name: read_picture(p) for p in tmp_path.glob('*.svg')} == kept
  assert len(kept) == 6
  assert all(p.stat().st_size < 200_000 for p in tmp_path.glob('*.svg'))


def read_picture(path):
  """Words, and how many rectangles: where they stand depends on the version of matplotlib."""
  text = path.read_text()
  return sorted(re.findall(r'>([^<>\n]+)</text>', text)), text.count('id="patch_')


@pytest.mark.parametrize('page', ['tutorials/sweep.md'])
def test_a_recipe_in_the_documentation_makes_its_points(page, tmp_path):
  text = (ROOT / 'docs' / page).read_text()
  recipe = next(body for _, kind, body in FENCE.findall(text)
                if kind == 'python' and 'get_config' in body)
  (tmp_path / 'my_sweep.py').write_text(recipe)
  spec = importlib.util.spec_from_file_location('my_sweep', tmp_path / 'my_sweep.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = points.load_points(module.get_config(), 'my_sweep.py')
  count = int(re.search(r'(\d+) runs', text)[1])
  assert len(found) == count


def add_own_method(folder, *more):
  """Applies the tutorial's diffs to a copy of the project. Returns: (its text, the diffs)."""
  text = (ROOT / 'docs/tutorials/add_a_method.md').read_text()
  diffs = [body for _, kind, body in FENCE.findall(text) if kind == 'diff']
  for name in ('rim_jax', 'configs', *more):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
  subprocess.run(['git', 'apply', '-C1', '-'], input=''.join(diffs), text=True, cwd=folder,
                 check=True)
  return text, diffs


@pytest.mark.slow
def test_the_method_of_the_tutorial_passes_the_tests_that_it_names(tmp_path):
  text, _ = add_own_method(tmp_path, 'tests')
  shutil.copy(ROOT / 'pyproject.toml', tmp_path)
  command, = re.findall(r'^python -m (pytest tests/.*)$', text, re.M)
  told = subprocess.run([sys.executable, '-m', *command.split(), '-k', 'own_step', '-n0'],
                        cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(tmp_path)},
                        capture_output=True, text=True)
  assert told.returncode == 0 and 'own_step' in told.stdout, told.stdout


def test_the_method_of_the_tutorial_is_added_by_its_diffs(tmp_path):
  text, diffs = add_own_method(tmp_path)
  added = [line for line in ''.join(diffs).split('\n') if re.match(r'\+(?!\+\+ )', line)]
  told = re.search(r'changes (\w+) files and (\d+) lines', ' '.join(text.split()))
  assert (len(diffs), len(added)) == ({'four': 4}[told[1]], int(told[2]))
  # Its own process: this one has the package as it is.
  found = subprocess.run([sys.executable, '-c', """
from configs import own_step
from rim_jax import methods
from rim_jax.config import parse_config
from rim_jax.data.tokenizer import load_tokenizer
from rim_jax.data.records import Record
from rim_jax.packing import layout
config = parse_config(own_step.get_config())
tokenizer = load_tokenizer(config.tokenizer)
template = layout.make_template(tokenizer, config.layout)
encoded = methods.make_codec(config, tokenizer).encode(Record('7+3+5', ('0', '5'), '5', ''))
example = methods.get_method(config).layout(encoded, template, config.layout)
print(example.num_blocks, [(r.block, tokenizer.decode(r.target)) for r in example.readouts])
"""], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True,
                         check=True).stdout
  assert found.split('\n')[-2] == "2 [(1, '0'), (2, '5'), (2, '5')]"


def test_excerpts_of_the_toy_method_are_of_its_file():
  toy = (ROOT / 'tests/methods/toy.py').read_text()
  text = (ROOT / 'docs/tutorials/add_a_method.md').read_text()
  excerpts = [body for _, kind, body in FENCE.findall(text) if kind == 'python']
  assert len(excerpts) == 3 and not [body for body in excerpts if body not in toy]
  assert f'in {len(toy.splitlines())} lines' in text


def test_python_in_the_documentation_is_python():
  bodies = [body for page in PAGES for _, kind, body in FENCE.findall(page.read_text())
            if kind == 'python']
  assert len(bodies) > 5  # else the pattern above has lost them
  for body in bodies:
    assert ast.parse(body).body


@pytest.mark.docs
def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('sphinx')
  pytest.importorskip('myst_parser')
  done = subprocess.run(
      [sys.executable, '-m', 'sphinx', '-n', '-W', '--keep-going', '-q', '-b', 'html',
       str(ROOT / 'docs'), str(tmp_path / 'site')], capture_output=True, text=True, cwd=ROOT,
      check=False)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'site/pictures/row-light.svg').exists()


@pytest.mark.docs
@pytest.mark.parametrize('link', ['gone.md', '#gone', 'index.md#gone'])
def test_a_broken_link_fails_the_site(link, tmp_path):
  pytest.importorskip('sphinx')
  pytest.importorskip('myst_parser')
  source = tmp_path / 'source'
  (source / 'pictures').mkdir(parents=True)
  (source / 'conf.py').write_text((ROOT / 'docs/conf.py').read_text())
  (source / 'index.md').write_text(f'# A page\n\n[here](#a-page) [there]({link})\n')
  done = subprocess.run(
      [sys.executable, '-m', 'sphinx', '-n', '-W', '--keep-going', '-q', '-b', 'html', str(source),
       str(tmp_path / 'site')], capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 1 and done.stderr.count('WARNING') == 1
