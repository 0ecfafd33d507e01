"""A run's files on a file system or in a bucket: whole or absent, added to, moved, held.

In a bucket (`gs://...`, through etils.epath) an object appears whole and can be replaced, but
neither renamed nor appended to: an append replaces it without a word. So of a run's files nothing
outside this module renames or appends.
"""

import contextlib
import csv
import importlib.util
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid

from etils import epath

from rim_jax import locks, reader
from rim_jax.errors import FolderTaken, UserError

_PACKAGES = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}  # that reach a kind of bucket
_PUT_SECS = 10.0  # between two writes of one growing object: stores refuse many a second
_PART_LINES = 1000
_LEASE_SECS = 20.0  # between two signs of life of the run that holds a bucket
_DEAD_SECS, _RETRY_SECS = 120.0, 5.0  # for the locks of a dead host: NFS keeps them some 90 s


def is_bucket(path) -> bool:
  return '://' in str(path)


def get_absolute(path) -> epath.Path:
  """Orbax takes no relative path; 'gs://...' is absolute, though `absolute()` would mangle it."""
  path = epath.Path(path)
  return path if path.is_absolute() else path.absolute()


def expand(path: str, where: str) -> str:
  """A path with the home directory in place of a leading `~`; a bucket's as it is.

  Args:
    where: the flag or the key that names it.
  Raises: UserError where it is that of a user who is not there.
  """
  if not path.startswith('~'):
    return path
  found = os.path.expanduser(path)
  if found.startswith('~'):
    raise UserError(f'{where}={path}: there is no user {path.partition("/")[0][1:]!r}; write the '
                    'whole path')
  return found


def check_package(path: str, where: str) -> None:
  """Raises: UserError for a bucket whose package is not installed; TensorFlow serves them all."""
  package = _PACKAGES.get(path.partition('://')[0]) if is_bucket(path) else None
  if package and not any(importlib.util.find_spec(name) for name in (package, 'tensorflow')):
    raise UserError(f'{where}={path}: needs the package {package}; pip install {package}, or name '
                    'a local directory')


# ---- Whole files ----


def write_text(path, text: str) -> None:
  """Whole or not at all."""
  _write(path, text.encode(errors='backslashreplace'))  # half of a surrogate pair is no UTF-8


def _write(path, content: bytes) -> None:
  path = epath.Path(path)
  if is_bucket(path):
    path.write_bytes(content)
    return
  scratch = path.parent / f'.{path.name}.{os.getpid()}.tmp'
  try:
    scratch.write_bytes(content)
    os.replace(scratch, path)
  except OSError:
    scratch.unlink(missing_ok=True)
    raise


def format_csv(rows) -> str:
  """Rows as the text of a CSV file."""
  out = io.StringIO()
  csv.writer(out, lineterminator='\n').writerows(rows)
  return out.getvalue()


def write_json(path, tree) -> None:
  """Strict JSON, whole or not at all."""
  write_text(path, json.dumps(tree, indent=2, allow_nan=False) + '\n')


# ---- Folders ----


def check_writable(workdir) -> None:
  """Makes a folder where there is none. Raises: UserError where nothing can be written into it."""
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / 'probe.json', {})
    (workdir / 'probe.json').unlink()
  except OSError as e:
    raise UserError(f'{workdir}: cannot be written ({e.strerror}); name another --workdir'
                    ) from None


def list_files(folder) -> dict[str, epath.Path]:
  """Relative name -> path of every file below a folder; {} where there is none."""
  def walk(at):
    for path in at.iterdir() if at.exists() else ():
      yield from walk(path) if path.is_dir() else [path]
  return {str(path.relative_to(folder)): path for path in walk(epath.Path(folder))}


def remove(folder) -> None:
  """Removes a folder and what is in it, where it is there."""
  if is_bucket(folder):
    if epath.Path(folder).exists():  # `missing_ok` would pass over what is gone half-way, too
      epath.Path(folder).rmtree()
  else:
    shutil.rmtree(folder, ignore_errors=True)


def copy(folder, target) -> None:
  """Copies every file below a folder, in either direction between bucket and file system."""
  for name, path in list_files(folder).items():
    to = epath.Path(target) / name
    to.parent.mkdir(parents=True, exist_ok=True)
    path.copy(to, overwrite=True)


def move(folder, target) -> None:
  """Moves a folder, over what may be there; in a bucket, object by object."""
  remove(target)
  if is_bucket(folder):
    copy(folder, target)
    remove(folder)
  else:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


# ---- A file that grows ----


def read_lines(path) -> list[tuple[str, bytes]]:
  """(place, line) of a file that a Journal writes, in order; [] where there is none."""
  return [(f'{part}:{number}', line) for part in _list_parts(path)
          for number, line in enumerate(_read_part(part).split(b'\n'), 1) if line]


def _read_part(path) -> bytes:
  return reader.read_bytes(path, 'move it away, and the same command goes on', most=None)


def _list_parts(path) -> list[epath.Path]:
  """The file itself, or in a bucket `name-00000.suffix` and so on, in order."""
  path = epath.Path(path)
  if not is_bucket(path):
    return [path] if path.exists() else []
  if not path.parent.exists():
    return []
  start, end = f'{path.stem}-', path.suffix
  return sorted(p for p in path.parent.iterdir() if p.name.startswith(start)
                and p.name.endswith(end) and p.name[len(start):-len(end)].isdigit())


class Journal:
  """Adds lines to a file; in a bucket to numbered parts, each replaced as it grows.

  A file system has a line at once, a bucket after 10 s, `flush` or `close`.

  Args:
    keep: which of the lines that are there stay, as bytes.
  """

  def __init__(self, path, keep, clock=time.monotonic):
    self._path, self._clock = epath.Path(path), clock
    self._file, self._lines, self._put = None, [], clock()
    parts = _list_parts(path)
    for part in parts:
      content = _read_part(part)
      kept = b''.join(line + b'\n' for line in content.split(b'\n') if keep(line))
      if kept != content:
        _write(part, kept)
    self._number = 1 + int(parts[-1].stem.rpartition('-')[2]) if parts and is_bucket(path) else 0
    if not is_bucket(path):
      self._file = self._path.open('a')

  def add(self, line: str) -> None:
    if self._file:
      self._file.write(line + '\n')
      self._file.flush()
      return
    self._lines.append(line)
    if len(self._lines) >= _PART_LINES:
      self.flush()
      self._number, self._lines = self._number + 1, []
    elif self._clock() - self._put >= _PUT_SECS:
      self.flush()

  def flush(self) -> None:
    if self._lines:
      part = self._path.with_name(f'{self._path.stem}-{self._number:05}{self._path.suffix}')
      part.write_text(''.join(f'{line}\n' for line in self._lines))
      self._put = self._clock()

  def close(self) -> None:
    self.flush()
    if self._file:
      self._file.close()


# ---- Whose folder it is ----


def hold(workdir, say=print) -> contextlib.AbstractContextManager:
  """Keeps a WORKDIR for this process as long as it lives, so that two never write into it.

  Raises: FolderTaken naming the process that holds it.
  """
  path = epath.Path(workdir) / '.lock'
  me = f'process {os.getpid()} on {socket.gethostname()}'
  return _hold_in_bucket(path, me, say) if is_bucket(path) else _hold_file(path, me, say)


def _make_taken(path, holder):
  whose = holder.partition('\n')[0] or 'another run'
  return FolderTaken(f'{path.parent}: {whose} is at work here; wait for it, end it, or use another '
                     '--workdir')


@contextlib.contextmanager
def _hold_file(path, me, say):
  # The kernel gives a lock back with the process that had it.
  with open(path, 'a+', errors='replace') as file:
    if problem := _take(file, path, say):
      say(f'{path}: this file system has no locks ({problem}): nothing keeps a second run out of '
          f'{path.parent}, so start one at a time; Lustre has locks where it is mounted with -o '
          'flock')
    file.truncate(0)
    file.write(me)
    file.flush()
    yield


def _take(file, path, say) -> str:
  """`locks.take`, which waits for a holder on another host that may be dead.

  The server of a file system keeps the locks of a host that has died for a while.
  Raises: FolderTaken.
  """
  first, until = None, time.monotonic() + _DEAD_SECS
  while True:
    try:
      return locks.take(file, waits=False)
    except locks.Taken:
      holder = path.read_bytes().decode(errors='replace')
    if first is None and holder.rpartition(' on ')[2] not in ('', socket.gethostname()):
      first = holder
      say(f'{path}: waiting up to {_DEAD_SECS:.0f} s to see whether {holder} is still at work; if '
          'its host has died, its lock ends by then')
    if holder != first or time.monotonic() > until:
      raise _make_taken(path, holder)
    time.sleep(_RETRY_SECS)


@contextlib.contextmanager
def _hold_in_bucket(path, me, say):
  """A bucket has no locks: an object says who is at work, and is renewed while they are.

  Whether a holder lives is told by the object changing, never by comparing two hosts' clocks. So
  after a run that was killed, the next one has to wait.
  """
  def read():
    try:
      return path.read_bytes().decode(errors='replace')
    except FileNotFoundError:
      return ''

  def write():
    nonlocal mine
    mine = f'{me}\n{uuid.uuid4()}'
    path.write_text(mine)

  there = read()
  if there:
    say(f'{path}: waiting {1.5 * _LEASE_SECS:.0f} s to see whether {there.partition(chr(10))[0]} '
        'is still at work')
    time.sleep(1.5 * _LEASE_SECS)
    if read() not in (there, ''):
      raise _make_taken(path, there)
  mine = ''
  write()
  time.sleep(min(2.0, _LEASE_SECS))  # of two that came at once, the later writer stays
  if read() != mine:
    raise _make_taken(path, read())
  done = threading.Event()

  def renew():
    while not done.wait(_LEASE_SECS):
      # An outage of the store, whose client's errors are no OSError: the next turn tells.
      with contextlib.suppress(Exception):
        if read() not in (mine, ''):
          print(f'error: {_make_taken(path, read())}', file=sys.stderr, flush=True)
          os._exit(1)
        write()
  renewal = threading.Thread(target=renew, daemon=True)
  renewal.start()
  try:
    yield
  finally:
    done.set()
    renewal.join()
    with contextlib.suppress(OSError):
      path.unlink()
