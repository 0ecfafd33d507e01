"""Writes docs/reference/: every key from the schema, every flag, and what the presets set.

  python -m docs.make_reference

It also writes docs/data.md's table of row shapes. A key's meaning is its comments, those above it
and the one behind it; its choices and limits are its type's. A test holds the committed pages to
what this makes.
"""

import ast
import dataclasses
import inspect
import io
import pathlib
import re
import tokenize
import typing

from configs import presets
from rim_jax import command_line
from rim_jax import config as config_lib
from rim_jax.config import Config, grid, schema
from rim_jax.data import formats

PAGE = pathlib.Path(__file__).parent / 'reference' / 'configuration.md'
FLAGS, PRESETS = PAGE.with_name('flags.md'), PAGE.with_name('presets.md')
DATA = PAGE.parents[1] / 'data.md'
_SHAPES_BEGIN, _SHAPES_END = '<!-- row shapes: python -m docs.make_reference -->', '<!-- end -->'
_HEAD = '''<!-- Made by `python -m docs.make_reference` from rim_jax/config/schema.py. -->
# Configuration: every key

A run is described by one configuration. A recipe in `configs/` sets what differs from the defaults
below, and the command line overrides both:

```
python -m rim_jax.main --config=configs/rim.py --config.optim.learning_rate=3e-4
```

An unknown key, a value of another type and a value outside its limits end the command with one line
each, before anything is compiled. Some keys must also agree with each other (for example,
`model.embed_dim` must be divisible by `model.num_heads`); those rules are in
`rim_jax/config/rules.py` and are told in the same way. [Concepts](../concepts.md) explains the
words used here.

A run that goes on in its directory must have the same configuration as before. Only these may
change. They say where and how a run computes, or what is evaluated. They do not change what is
trained, up to rounding: the groups
{sections},
and the keys
{keys}.
{held} may change, too: the first as long as it holds the same files (names
and content), the second as long as no row is bad. The fingerprint of the data is compared.
`train.num_micro_batches` has two limits. It may not change with `distill.std` other than `example`.
With dropout it may change, but then training drops other units than before.
'''
_FLAGS_HEAD = '''<!-- Made by `python -m docs.make_reference` from rim_jax/command_line.py. -->
# Flags: what `python -m rim_jax.main` takes

`--config=FILE[:PRESET]` names a recipe, and `--config.KEY=VALUE` sets one [key](configuration.md).
`--mode` says what to do:
{modes}.
Without it a run is trained and evaluated. A meaning that begins with a mode, such as "plan:", is of
that mode alone.
'''
_PRESETS_HEAD = '''<!-- Made by `python -m docs.make_reference` from configs/presets.py. -->
# Presets: what each one sets

A preset is a task with its network: `--config=configs/rim.py:gsm8k`. The tables have each key that
a preset of `configs/rim.py` sets to another value than [the default](configuration.md). A dash is
the default. Other methods get nearly the same values, and `configs/presets.py` has what is theirs
alone (the groups {left_out}). Most values were not searched for:
[results](../results.md) has what was measured, [reproduction](../reproduction.md) what is the
paper's. `data.dir` and `model.init_from` name files of yours; `gpt2` and `llama3_2_*` look for
their model in `models/`. Without `data.dir` GSM8K is downloaded, and `smollm2` finds its own
model.
'''
# What only other methods read.
_OTHERS = ('coconut', 'icot', 'lotus', 'distill', 'aux')


def read_comments(module) -> dict[tuple[str, str], str]:
  """(class, key) -> what the comments above the key and behind its value say."""
  source = inspect.getsource(module)
  comments = {token.start[0]: (token.string.lstrip('# '), not token.line[:token.start[1]].strip())
              for token in tokenize.generate_tokens(io.StringIO(source).readline)
              if token.type == tokenize.COMMENT and not token.string.startswith('# pyright')}
  found = {}
  for cls in ast.parse(source).body:
    for key in cls.body if isinstance(cls, ast.ClassDef) else ():
      if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
        above, line = [], key.lineno - 1
        while line in comments and comments[line][1]:
          above.insert(0, comments[line][0])
          line -= 1
        behind = [comments[i][0] for i in range(key.lineno, (key.end_lineno or 0) + 1)
                  if i in comments]
        found[cls.name, key.target.id] = ' '.join(above + behind)
  return found


def _write_cell(text: str) -> str:
  """Text of a comment as Markdown in a table: code stays code, a path is a link."""
  parts = re.split(r"(`[^`]*`|'')", text)
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r'([<*])', r'\\\1', parts[i])
    parts[i] = re.sub(r'docs/(\S+)\.md', r'[\1](../\1.md)', parts[i])
  return ''.join(f'`{part}`' if part == "''" else part for part in parts)


def describe_limits(kind) -> str:
  """What a value may be, in a table's cell."""
  if typing.get_origin(kind) is typing.Literal:
    return ', '.join(f'`{choice}`' for choice in typing.get_args(kind))
  name = {int: 'whole number', float: 'number', bool: '`True`, `False`', str: 'text'}[
      getattr(kind, '__origin__', kind)]
  limits = [re.sub(r'^(must|should) (not )?be ', r'\2', limit.words).replace('*', r'\*')
            for limit in getattr(kind, '__metadata__', ())]
  return ': '.join([name, *[', '.join(limits)][:len(limits)]])


def _make_group(cls, where: str, comments) -> list[str]:
  rows, groups = [], []
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      groups += _make_group(field.type, f'{where}{field.name}.', comments)
      continue
    cells = (f'`{where}{field.name}`', f'`{field.default!r}`', describe_limits(
        config_lib.list_types()[where + field.name]), _write_cell(
            comments[cls.__name__, field.name]))
    rows.append(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |')
  title = f'`{where[:-1]}`' if where else '`method` and `seed`'
  return ['', f'## {title}', '', _write_cell(cls.__doc__.strip()), '',
          '| key | default | may be | meaning |', '|---|---|---|---|', *rows, *groups]


def make_page() -> str:
  """The whole page."""
  head = _HEAD.format(sections=', '.join(f'`{s}`' for s in config_lib.RUNTIME_SECTIONS),
                      keys=', '.join(f'`{k}`' for k in config_lib.RUNTIME_KEYS),
                      held=' and '.join(f'`{k}`' for k in config_lib.HELD_KEYS))
  return '\n'.join([head.rstrip(), *_make_group(Config, '', read_comments(schema))]) + '\n'


def make_flags() -> str:
  """The page of flags."""
  head = _FLAGS_HEAD.format(modes=', '.join(f'`{mode}`' for mode in command_line.MODES))
  lines = [head.rstrip()]
  for title, flags in (('Every mode and one run', command_line.FLAGS),
                       ('`--mode=sweep`', command_line.SWEEP_FLAGS)):
    lines += ['', f'## {title}', '', '| flag | default | meaning |', '|---|---|---|',
              *(f'| `--{name}` | {_code(repr(default))} | {words} |'
                for name, (default, words) in flags.items())]
  return '\n'.join(lines) + '\n'


def make_presets() -> str:
  """The page of presets: those that train from scratch, then those that begin with a model."""
  plain = config_lib.make_config_dict(method='rim')
  changes = {name: {key: value for key, value in grid.find_changes(
      plain, presets.make('rim', name)).items() if key.partition('.')[0] not in _OTHERS}
             for name in presets.PRESETS}
  defaults = config_lib.flatten(plain.to_dict())
  lines = [_PRESETS_HEAD.format(left_out=', '.join(f'`{name}`' for name in _OTHERS)).rstrip()]
  for title, begins in (('Networks from scratch', False), ('Pretrained models', True)):
    names = [name for name, found in changes.items() if ('model.init_from' in found) is begins]
    keys = sorted({key for name in names for key in changes[name]} - {'model.init_from'})
    lines += ['', f'## {title}', '', f'| key | default | {" | ".join(map(_code, names))} |',
              '|---' * (len(names) + 2) + '|',
              *(f'| `{key}` | {_code(repr(defaults[key]))} | ' + ' | '.join(
                  _code(repr(changes[name][key])) if key in changes[name] else '-'
                  for name in names) + ' |' for key in keys)]
  return '\n'.join(lines) + '\n'


def make_shapes() -> str:
  """The table of row shapes in docs/data.md."""
  rows = [f'| {_code(shape.example)} | {shape.source} |' for shape in (
      *formats.SHAPES, formats.TEXT_SHAPE)]
  return '\n'.join(['| a row | who writes so |', '|---|---|', *rows])


def _code(text: str) -> str:
  return f'`{text}`'.replace('|', r'\|')


def write_shapes(page: str) -> str:
  """docs/data.md with the table as the code has it, between its two marks."""
  before, _, rest = page.partition(_SHAPES_BEGIN)
  _, _, after = rest.partition(_SHAPES_END)
  return f'{before}{_SHAPES_BEGIN}\n{make_shapes()}\n{_SHAPES_END}{after}'


if __name__ == '__main__':
  for path, page in ((PAGE, make_page()), (FLAGS, make_flags()), (PRESETS, make_presets())):
    path.write_text(page)
  DATA.write_text(write_shapes(DATA.read_text()))
