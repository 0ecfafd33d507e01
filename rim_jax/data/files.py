"""Files of rows: which of a directory's are read for which split, and their lines or tables.

A split is one file, or the shards of one, in the directory or in `data` below it; or a folder that
the library `datasets` saved. What else is there is not read, and is named.
"""

from collections.abc import Callable
import csv
import dataclasses
import io
import pathlib
import re
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from rim_jax import reader
from rim_jax.data import formats
from rim_jax.data.records import SPLITS, Record, report
from rim_jax.errors import UserError

# How each split's files may be named.
SPLIT_NAMES = {'train': ('train',), 'valid': ('valid', 'validation', 'val', 'dev'),
               'test': ('test',)}
TEXT_EXTENSIONS = ('.jsonl', '.txt', '.json', '.csv')
_COMPRESSED = {'.gz': 'gzip', '.bz2': 'bz2', '.zst': 'zstd', '.lz4': 'lz4'}
EXTENSIONS = (*(e + c for e in TEXT_EXTENSIONS for c in ('', *_COMPRESSED)), '.parquet', '.arrow')
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_NAME = re.compile(rf"({'|'.join(_SPLIT_OF)})(?:-(\d{{5}})-of-(\d{{5}})(?:-[0-9a-f]{{16}})?)?"
                   rf"({'|'.join(map(re.escape, EXTENSIONS))})")
_NUM_LOOKED = 20  # rows of a file whose keys are looked at
_NUM_NAMED = 10  # files that one line names, before it counts the others
_SAVE = 'save the dataset again'
_BOM = b'\xef\xbb\xbf'
_LFS_POINTER = b'version https://git-lfs'

Parts = list[tuple[pathlib.Path, bytes]]  # a split's files, each with its content


@dataclasses.dataclass(frozen=True)
class Found:
  """What of a directory is read, by split, and the line that names what is not; none for nothing.
  """
  splits: dict[str, Parts]
  unread: list[str]


def find_files(folder, needed=('train', 'test'), without='download GSM8K') -> Found:
  """The files of each split.

  Raises: UserError where the folder, the file of a split that is needed, or a shard is not there.
  """
  if folder.is_file():
    raise UserError(f"data.dir='{folder}': is a file; pass its directory, {folder.parent}")
  if not folder.is_dir():
    raise UserError(f"data.dir='{folder}': no such directory; pass one with "
                    f'{" and ".join(needed or SPLITS)} files, or none to {without}')
  with report(folder, 'make it a readable directory', OSError):
    is_saved = (folder / 'dataset_dict.json').is_file()
    paths, read = _find_saved(folder) if is_saved else _find_named(folder)
    unread = [f'{p.name}/' if p.is_dir() else p.name for p in sorted(folder.iterdir())
              if p not in read and not p.name.startswith('.')]
    if folder / 'data' in read:
      unread += [f'data/{p.name}' for p in sorted((folder / 'data').iterdir())
                 if p not in read and not p.name.startswith('.')]
  splits = {}
  for split in SPLITS:
    if split in paths:
      splits[split] = [(path, reader.read_bytes(
          path, 'make it a readable file', most=None)) for path in paths[split]]
    elif split in needed:
      inner = None if paths else next((p for p in sorted(folder.glob('[!.]*/')) if any(
          _NAME.fullmatch(file.name) for file in p.glob('*'))), None)
      there = ', '.join(sorted(p.name for p in folder.iterdir())[:_NUM_NAMED]) or 'nothing'
      raise UserError(
          f"{folder}: no {split} file (looked for {' or '.join(SPLIT_NAMES[split])} with "
          f"{', '.join(TEXT_EXTENSIONS)}, compressed or not, .parquet or .arrow, whole or in "
          f'shards -00000-of-00001, here and in data/); there: {there}; '
          + (f'pass --config.data.dir={inner}' if inner else 'add or rename one'))
  more = len(unread) - _NUM_NAMED
  return Found(splits, ['not read in data.dir: ' + ', '.join(unread[:_NUM_NAMED])
                        + (f' and {more} more' if more > 0 else '')] if unread else [])


def _find_named(folder):
  """(split -> its paths, all paths that are read) by the names of files, here and in data/."""
  groups: dict[tuple, list[tuple[int, int, pathlib.Path]]] = {}
  for place in (folder, folder / 'data'):
    for path in sorted(place.iterdir()) if place.is_dir() else ():
      match = _NAME.fullmatch(path.name)
      if match and not path.is_dir():
        name, number, count, extension = match.groups()
        groups.setdefault((_SPLIT_OF[name], place, name, count, extension), []).append(
            (int(number or 0), int(count or 1), path))
  paths, read = {}, set()
  for (split, place, *_), parts in groups.items():
    files = [path for _, _, path in parts]
    if split in paths:
      raise UserError(f'{folder}: {paths[split][0].name} and {files[0].name} are both the {split} '
                      'split; keep one')
    count = parts[0][1]
    missing = sorted(set(range(count)) - {number for number, _, _ in parts})
    if missing or len(parts) != count:
      raise UserError(f'{folder}: {files[0].name} is one of {count} shards, and ' + (
          f'number {missing[0]} is not there' if missing else f'{len(parts)} files say so')
          + '; copy all of them, each once')
    paths[split] = files
    read |= {*files, place}
  return paths, read


def _find_saved(folder):
  """(split -> its paths, all paths that are read) of a DatasetDict that `datasets` saved."""
  names = reader.load_json(folder / 'dataset_dict.json', _SAVE).get('splits')
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise UserError(f"{folder / 'dataset_dict.json'}: names no splits; save the dataset again")
  paths, read = {}, {folder / 'dataset_dict.json'}
  for name in filter(_SPLIT_OF.get, names):  # a split of another name is not read, and named
    split = _SPLIT_OF[name]
    if split in paths:
      raise UserError(f'{folder}: two of its splits, {name} one of them, are the {split} split; '
                      'keep one')
    paths[split] = _list_saved(folder / name)
    read.add(folder / name)
  return paths, read


def _list_saved(folder) -> list[pathlib.Path]:
  """The Arrow files of one split that `datasets` saved, in their order."""
  state = reader.load_json(folder / 'state.json', _SAVE)
  try:
    names = [file['filename'] for file in state['_data_files']]
    good = names and all(pathlib.PurePath(name).name == name for name in names)
  except (KeyError, TypeError):
    good, names = False, []
  if not good or state.get('_indices_files'):
    raise UserError(f"{folder / 'state.json'}: names no files of whole rows; save the dataset "
                    'again with save_to_disk')
  return [folder / name for name in names]


def list_parts(path) -> list:
  """One file of rows itself, or the files of a split's folder that `datasets` saved."""
  return _list_saved(path) if (path / 'state.json').is_file() else [path]


# ---- From bytes to rows ----


def read_rows(path: pathlib.Path, content: bytes) -> list:
  """The rows of a file: lines as bytes, or rows of a table or a JSON list as dicts.

  Raises: UserError where the file as a whole cannot be read.
  """
  extension = path.suffix
  if content.startswith(_LFS_POINTER):
    raise UserError(f'{path}: is a Git LFS pointer and not the file itself; run git lfs pull')
  if extension in _COMPRESSED:
    kind = {'gzip': 'gzip', 'zstd': 'zstandard'}.get(_COMPRESSED[extension], _COMPRESSED[extension])
    with report(path, f'replace it by a whole {kind} file', (OSError, pyarrow.ArrowException)):
      content = pyarrow.input_stream(
          pyarrow.BufferReader(content), compression=_COMPRESSED[extension]).read()
    extension = path.with_suffix('').suffix
  if extension in ('.parquet', '.arrow'):
    with report(path, f'replace it by a whole {extension[1:]} file',
                (OSError, ValueError, pyarrow.ArrowException)):
      return _read_table(content, extension)
  content = content.removeprefix(_BOM)
  if extension == '.csv':
    text = _decode(path, content)
    header = text.partition('\n')[0]
    other = "';'" if ';' in header else 'tabs' if '\t' in header else ''
    # For a reader of commas it is one key, and none that is read looks so; an open quote goes on.
    if other and ',' not in header and header.count('"') % 2 == 0:
      raise UserError(f'{path}: its values are separated by {other}; save it with commas')
    with report(path, 'give a header of keys, and a value of each in every row', ValueError):
      return _read_csv(text)
  if extension != '.txt' and content.lstrip().startswith(b'['):  # a question may begin so
    text = _decode(path, content)
    with report(path, 'give a list of JSON objects, or one of them a line', ValueError):
      return reader.parse_json(text, exact=True)
  # Lines end at \n alone: str.splitlines would also cut questions at a U+2028.
  lines = content.split(b'\n')
  while lines and not lines[-1].strip():
    lines.pop()
  return lines


def _decode(path, content) -> str:
  with report(path, formats.SAVE_AS_UTF8, ValueError):
    return reader.decode(content)


def _read_table(content, extension) -> list[dict]:
  source = pyarrow.BufferReader(content)
  if extension == '.parquet':
    table = pyarrow.parquet.read_table(source)
  elif content.startswith(b'ARROW1'):
    table = pyarrow.ipc.open_file(source).read_all()
  else:  # what `datasets` writes
    table = pyarrow.ipc.open_stream(source).read_all()
  # Of what no shape reads only its name becomes a row's: a column of vectors would fill the memory.
  unread = [name for name in table.column_names if name not in formats.KEYS]
  table = table.select([i for i, name in enumerate(table.column_names) if name in formats.KEYS])
  # A number of a short type is the shortest decimal that reads as it: 4.9, not 4.900000095367432.
  short = {field.name: field.type.to_pandas_dtype() for field in table.schema
           if pyarrow.types.is_float16(field.type) or pyarrow.types.is_float32(field.type)}
  # A table has every column in every row: one that is empty there is not in the row.
  return [formats.TableRow(dict.fromkeys(unread) | {
      key: float(str(short[key](value))) if key in short else value
      for key, value in row.items() if value is not None},
      [key for key, value in row.items() if value is None]) for row in table.to_pylist()]


def _read_csv(text) -> list[dict]:
  # All values are text, so that a number stays as it is written.
  csv.field_size_limit(formats.MAX_ROW_BYTES)
  table = csv.DictReader(io.StringIO(text, newline=''), strict=True, restval='')
  try:
    rows, names = list(table), table.fieldnames or ()
  except csv.Error as error:
    raise ValueError(f'line {table.reader.line_num}: {error}') from None
  # Columns without a name, as spreadsheets leave them, hold nothing that is read.
  twice = next((name for name in names if name and names.count(name) > 1), None)
  if twice:
    raise ValueError(f'the header names {twice!r} twice')
  for number, row in enumerate(rows, 1):
    if None in row:
      raise ValueError(f'row {number} has more values than the header')
  return [formats.TableRow({key: value for key, value in row.items() if value},
                           [key for key, value in row.items() if not value]) for row in rows]


class Parsed(NamedTuple):
  """What files of rows hold."""
  records: list[Record]
  dropped: list[str]  # bad rows, as '<file>:<line>: <what>', or '<file>: row <number>: <what>'
  unread: list[str]  # keys of the first rows of each file that are not read


def parse_files(parts: Parts, config, needs_steps: bool = True,
                check: Callable[[Record], None] | None = None) -> Parsed:
  """Every row of some files.

  Args:
    config: has steps, step_marks and on_bad_rows.
    needs_steps: as of `formats.Reading`.
    check: raises a ValueError for a record that is refused though its row can be read.
  """
  reading = formats.Reading(config.steps, config.step_marks, needs_steps)
  records, dropped, unread, count = [], [], set(), 0
  for path, content in parts:
    for number, row in enumerate(read_rows(path, content), 1):
      count += 1
      # A row of a table may have several lines, or none.
      where = f': row {number}' if isinstance(row, formats.TableRow) else f':{number}'
      if number <= _NUM_LOOKED:
        unread |= formats.list_unread(row)
      try:
        record = Record(*formats.parse_row(row, reading), origin=f'{path.name}:{number}')
        if check:
          check(record)
      except ValueError as error:
        if config.on_bad_rows != 'drop':
          shared = isinstance(error, formats.SharedFault)
          fix = error.fix if shared else 'fix the row'
          # Where all rows are as the first one, which is likely, dropping bad ones leaves none.
          if number > 1 or not shared:
            fix += ', or drop bad rows with --config.data.on_bad_rows=drop'
          raise UserError(f'{path}{where}: {error}; {fix}') from None
        dropped.append(f'{path.name}{where}: {error}')
      else:
        records.append(record)
  if not records:
    why = f'the first is bad ({dropped[0]}); mend' if dropped else 'fill'
    raise UserError(f'{parts[0][0]}: no rows (of {count} lines); {why} or replace the file')
  return Parsed(records, dropped, sorted(unread))


def describe_parsed(name: str, parsed: Parsed) -> list[str]:
  """A line for keys that are not read, and one for bad rows that were dropped, with the first."""
  lines = []
  if parsed.unread:
    lines.append(f'{name}: keys that are not read: {formats.list_keys(parsed.unread)}')
  if parsed.dropped:
    shown = '; '.join(parsed.dropped[:3]) + ('; ...' if len(parsed.dropped) > 3 else '')
    lines.append(f'{name}: dropped {len(parsed.dropped)} bad rows: {shown}')
  return lines
