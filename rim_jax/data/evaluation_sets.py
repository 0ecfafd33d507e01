"""Sets of questions that only evaluation reads, by name: SVAMP, MATH, GSM-Hard, any file."""

import pathlib
import re

from rim_jax import reader
from rim_jax.config import DataConfig
from rim_jax.data import files
from rim_jax.data.records import Record

GSM_HARD = 'gsm_hard'  # the one name that means something: its answers are also told by kind
_NUMBER = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)')


def load_set(name: str, path: pathlib.Path, config: DataConfig) -> files.Parsed:
  """The rows of a file in any of `formats.SHAPES`, or of a split that `datasets` saved.

  Numbers become plain decimals. A solution without steps that can be told is a row without steps.
  Raises: UserError naming the file, or its first bad row.
  """
  fix = f'name a file of rows for the set {name}'
  parts = [(p, reader.read_bytes(p, fix, most=None)) for p in files.list_parts(path)]
  return files.parse_files(parts, config, needs_steps=False,
                           check=_check_number if name == GSM_HARD else None)


def _check_number(record: Record) -> None:
  if not _NUMBER.fullmatch(record.answer):
    raise ValueError(f'the answer {record.answer[:40]!r} is not a number')
