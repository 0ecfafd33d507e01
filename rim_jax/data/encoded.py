"""The ids of a split's texts: encoded once for each (data, tokenizer), mapped into memory since.

CACHE/encoded/KEY holds the ids of all texts in one file, how long each text is in another, and a
card with the checksums of both. It is only a cache: what is damaged is made again.
"""

import array
import contextlib
import hashlib
from importlib import metadata
import itertools
import json
import os
import pathlib
import shutil
import time
import typing

import numpy as np

from rim_jax import locks, reader
from rim_jax.config import DataConfig
from rim_jax.data import records as records_lib
from rim_jax.errors import UserError

_VERSION = 1
_UNUSED_DAYS = 30
_DTYPES = {'texts': np.int32, 'firsts': np.int64}  # and `ids`, as small as they may be


class Card(typing.TypedDict):
  """What a store says of itself in its card.json, sealed."""
  dtype: str  # of ids
  files: dict[str, str]  # the sha256 of each


class EncodedSplit:
  """A split's texts as ids. Of each record: question, answer, step 1, 2, ...

  texts   ids in each text: i32[number of texts]
  firsts  the number of each record's first text, and of all texts: i64[N + 1]; a record that
          cannot be encoded has no text

  Pickled, it is the name of its folder.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._ids = _map(folder / 'ids.bin', _load_card(folder)['dtype'])
    self.texts, self.firsts = (_map(folder / f'{name}.bin', _DTYPES[name]) for name in _DTYPES)
    ends = np.concatenate([[0], np.cumsum(self.texts, dtype=np.int64)])
    self._begins = ends[self.firsts]  # of each record's ids

  def __reduce__(self):
    return EncodedSplit, (self._folder,)

  def __len__(self):
    return len(self.firsts) - 1

  def __getitem__(self, i: int) -> list[list[int]]:
    """(question, answer, *steps) of record i."""
    ids = self._ids[self._begins[i]:self._begins[i + 1]].tolist()
    ends = [0, *itertools.accumulate(self.count_tokens(i))]
    return [ids[begin:end] for begin, end in itertools.pairwise(ends)]

  def count_tokens(self, i: int) -> list[int]:
    """The lengths of (question, answer, *steps) of record i."""
    return self.texts[self.firsts[i]:self.firsts[i + 1]].tolist()


def _load_card(folder) -> Card:
  tree = reader.load_json(folder / 'card.json', f'delete {folder} and run again')
  return reader.from_tree(Card, reader.unseal(tree, folder.name))


def _map(path, dtype) -> np.ndarray:
  if not path.stat().st_size:  # nothing can be mapped
    return np.zeros(0, dtype)
  return np.memmap(path, dtype, 'r').view(np.ndarray)  # a memmap's own slices are slow


def load_encoded(split, tokenizer, is_first: bool, config: DataConfig, say=print) -> EncodedSplit:
  """The ids of a split's texts; encoded on first use.

  Args:
    is_first: whether a question begins its sequence (`Tokenizer.encode`).
  Raises: UserError for a cache directory that cannot be written.
  """
  root = pathlib.Path(config.cache_dir).expanduser() / 'encoded'
  key = [split.fingerprint, tokenizer.fingerprint, split.name,
         f'v{_VERSION}', f'tokenizers{metadata.version("tokenizers")}']
  folder = root / '-'.join(key + ['first'] * (is_first and tokenizer.marks_start))
  if found := _open(folder, len(split)):
    return found
  with records_lib.report_unwritable(config):
    root.mkdir(parents=True, exist_ok=True)
    # One process at a time encodes; the others wait, and find what it made.
    with locks.hold(root.with_suffix('.lock'), waits=True, say=say), (
        records_lib.make_scratch(root)) as scratch:
      if found := _open(folder, len(split)):  # another process was first
        return found
      if folder.exists():
        say(f'{folder}: damaged, made again')
        with contextlib.suppress(FileNotFoundError):  # another host was first
          os.rename(folder, pathlib.Path(scratch) / 'damaged')
      say(f'encoding {len(split):,} {split.name} records (kept for the next run)')
      made = pathlib.Path(scratch) / 'made'
      card = _write(made, split, tokenizer, is_first)
      (made / 'card.json').write_text(json.dumps(reader.seal(dict(card), folder.name)))
      try:
        os.rename(made, folder)
      except OSError:  # where there are no locks, another host may have been first
        if not (found := _open(folder, len(split))):
          raise
        return found
      _remove_unused(root, folder)
  return EncodedSplit(folder)


def _open(folder, num_records) -> EncodedSplit | None:
  """What a folder holds, once all of it is found whole; None where it is not there, or damaged."""
  try:
    for name, sha256 in _load_card(folder)['files'].items():
      with (folder / name).open('rb') as file:
        if hashlib.file_digest(file, 'sha256').hexdigest() != sha256:
          return None
    found = EncodedSplit(folder)
  except (UserError, OSError, ValueError):
    return None
  with contextlib.suppress(OSError):  # another's folder
    os.utime(folder / 'card.json')
  return found if len(found) == num_records else None


def _write(folder, split, tokenizer, is_first) -> Card:
  """Encodes a thousand records at a time; the card is yet to be written."""
  folder.mkdir()
  dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
  texts, firsts = array.array('i'), array.array('q', [0])
  with (folder / 'ids.bin').open('wb') as file:
    for first in range(0, len(split), 1000):
      records = split.__getitems__(range(first, min(first + 1000, len(split))))
      questions = tokenizer.try_encode([record.question for record in records], is_first)
      others = iter(tokenizer.try_encode(
          [text for record in records for text in (record.answer, *record.steps)]))
      for record, question in zip(records, questions):
        found = [question, *(next(others) for _ in range(1 + len(record.steps)))]
        if None not in found:
          texts.extend(map(len, found))
          file.write(np.concatenate(found, dtype=dtype, casting='unsafe').tobytes())
        firsts.append(len(texts))
  for name, numbers in (('texts', texts), ('firsts', firsts)):
    (folder / f'{name}.bin').write_bytes(np.asarray(numbers, _DTYPES[name]).tobytes())
  return {'dtype': dtype.name, 'files': {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob('*.bin')}}


def _remove_unused(root, kept):
  """Removes what nobody has opened for a month."""
  for folder in root.iterdir():
    with contextlib.suppress(OSError):
      if folder != kept and time.time() - (folder / 'card.json').stat().st_mtime > (
          _UNUSED_DAYS * 86_400):
        shutil.rmtree(folder)
