"""Sets of questions that only evaluation reads, by name: SVAMP, MATH, GSM-Hard, any file."""

import pathlib
import re

from rim_jax import reader
from rim_jax.config import DataConfig
from rim_jax.data import files, formats
from rim_jax.data.records import Record
from rim_jax.errors import UserError

GSM_HARD = 'gsm_hard'  # the one name that means something: its answers are also told by kind
_NUMBER = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)')


def load_set(name: str, path: pathlib.Path, config: DataConfig
             ) -> tuple[list[Record], list[str]]:
  """The rows of a file in any of `formats.SHAPES`, or of a split that `datasets` saved.

  Numbers become plain decimals. A solution without steps that can be told is a row without steps.
  Returns: its records, and a line for each bad row that was dropped (data.on_bad_rows).
  Raises: UserError naming the file, or its first bad row.
  """
  fix = f'name a file of rows for the set {name}'
  parts = [(p, reader.read_bytes(p, fix, most=None)) for p in files.list_parts(path)]
  reading = formats.Reading(config.steps, config.step_marks, needs_steps=False)
  records, dropped = [], []
  for part, content in parts:
    for number, row in enumerate(files.read_rows(part, content), 1):
      try:
        parsed = formats.parse_row(row, reading)
        if name == GSM_HARD and not _NUMBER.fullmatch(parsed[2]):
          raise ValueError(f'the answer {parsed[2][:40]!r} is not a number')
      except ValueError as error:
        if config.on_bad_rows != 'drop':
          raise UserError(f'{part}:{number}: {error}; fix the row, or drop bad rows with '
                          '--config.data.on_bad_rows=drop') from None
        dropped.append(f'{part.name}:{number}: {error}')
      else:
        records.append(Record(*parsed, f'{part.name}:{number}'))
  if not records:
    raise UserError(f'{path}: no rows; fill or replace the file')
  return records, dropped
