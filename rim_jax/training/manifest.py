"""The manifest of a saved folder: the size and sha256 of every file in it.

Orbax restores a flipped byte without a word. A checkpoint, or what is frozen of a run, is used only
after its manifest has been checked; writing the manifest is the last act of a save.
"""

import concurrent.futures
import hashlib
import typing

from etils import epath

from rim_jax import reader
from rim_jax.errors import UserError
from rim_jax.runtime import storage

CHECKPOINT_VERSION = 1
NAME = 'manifest.json'
_CHUNK_BYTES, _NUM_READERS = 1 << 20, 8


class Manifest(typing.TypedDict):
  format: int
  files: dict[str, list[int | str]]  # name -> size, sha256


def is_any(name: str) -> bool:
  return True


def is_sealed(folder) -> bool:
  """Whether a save was finished."""
  return (folder / NAME).exists()


def _digest(path) -> list:
  """Size and sha256. By `read` alone: TensorFlow's files, by which epath may read buckets, have
  nothing else."""
  sha, size = hashlib.sha256(), 0
  with epath.Path(path).open('rb') as f:
    while chunk := f.read(_CHUNK_BYTES):
      sha.update(chunk)
      size += len(chunk)
  return [size, sha.hexdigest()]


def _digest_all(paths) -> list[list]:
  """Of several files at a time: a bucket, or a network's disk, serves one reader slowly."""
  with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as pool:
    return list(pool.map(_digest, paths))


def seal(folder) -> None:
  """Writes the manifest of a finished checkpoint; the last act of a save."""
  files = {name: path for name, path in sorted(storage.list_files(folder).items()) if name != NAME}
  storage.write_json(folder / NAME, {
      'format': CHECKPOINT_VERSION,
      'files': dict(zip(files, _digest_all(files.values()), strict=True))})


def find_damage(folder, is_read=is_any) -> str | None:
  """What is wrong with a checkpoint on disk, or None; every byte of the files is read that
  `is_read`, by their names.
  """
  if not is_sealed(folder):
    return 'its save was never finished'
  raw = (folder / NAME).read_bytes()  # what cannot be read is not damaged: an OSError is raised
  try:
    manifest = reader.from_tree(Manifest, reader.parse_json(raw))
  except ValueError as e:
    return f'{folder / NAME}: is damaged ({e}); nothing else says what was saved'
  if manifest['format'] != CHECKPOINT_VERSION:
    raise UserError(f'{folder}: checkpoint format {manifest["format"]} is not '
                    f'{CHECKPOINT_VERSION}, which this version of rim_jax reads; use the version '
                    'that wrote it')
  files = storage.list_files(folder)
  told = {name: digest for name, digest in manifest['files'].items() if is_read(name)}
  for name in told:
    if name not in files:
      return f'{name} is missing'
  for name, found in zip(told, _digest_all(files[name] for name in told), strict=True):
    if found != told[name]:
      return f'{name} differs from what was saved'
  return None


def lacks_files(folder) -> bool:
  """Whether files that a sealed folder had are gone: its removal was cut off."""
  try:
    return bool(reader.load_json(folder / NAME, '', Manifest)['files'].keys()
                - storage.list_files(folder).keys())
  except UserError:
    return False  # a damaged manifest is damage
