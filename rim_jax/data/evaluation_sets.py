"""Sets of questions that only evaluation reads, by name: SVAMP, MATH, GSM-Hard, any file."""

import pathlib
import re

from rim_jax import reader
from rim_jax.config import DataConfig
from rim_jax.data import files, formats
from rim_jax.data.records import Record, report
from rim_jax.errors import UserError

GSM_HARD = 'gsm_hard'  # the one name that means something: its answers are also told by kind
_NUMBER = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)')


def load_set(name: str, path: pathlib.Path, config: DataConfig) -> list[Record]:
  """The rows of a file in any of `formats.SHAPES`, or of a split that `datasets` saved.

  Numbers become plain decimals. A solution without steps that can be told is a row without steps.
  Raises: UserError naming the file, or its first bad row.
  """
  fix = f'name a file of rows for the set {name}'
  parts = [(p, reader.read_bytes(p, fix, most=None)) for p in files.list_parts(path)]
  reading = formats.Reading(config.steps, config.step_marks, needs_steps=False)
  records = []
  for part, content in parts:
    for number, row in enumerate(files.read_rows(part, content), 1):
      with report(f'{part}:{number}', 'fix the row', ValueError):
        parsed = formats.parse_row(row, reading)
        if name == GSM_HARD and not _NUMBER.fullmatch(parsed[2]):
          raise ValueError(f'the answer {parsed[2][:40]!r} is not a number')
      records.append(Record(*parsed, f'{part.name}:{number}'))
  if not records:
    raise UserError(f'{path}: no rows; fill or replace the file')
  return records
