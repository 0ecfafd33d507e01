"""Sets that only evaluation reads: GSM-Hard."""

import decimal
import json
import pathlib
import re

from rim_jax.data.formats import parse_row
from rim_jax.data.records import Record, report

_NUMBER = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)')


def load_gsm_hard(path: pathlib.Path) -> list[Record]:
  """GSM-Hard: a JSON object a line, {"question", "answer"} or, as published, {"input", "target"}.

  Numbers become plain decimals. No row has steps.
  Raises: UserError naming the file, or its first bad line.
  """
  with report(path, 'set --config.eval.path to GSM-Hard\'s file', OSError):
    lines = path.read_bytes().rstrip().split(b'\n')
  records = []
  for number, line in enumerate(lines, 1):
    with report(f'{path}:{number}', 'fix the row', ValueError):
      row = json.loads(line, parse_float=decimal.Decimal, parse_int=decimal.Decimal)
      if not isinstance(row, dict):
        raise ValueError('not a JSON object')
      answer = row.get('answer', row.get('target'))
      if isinstance(answer, decimal.Decimal):
        answer = format(answer.normalize(), 'f')
      question, steps, answer = parse_row(json.dumps({
          'question': row.get('question', row.get('input')), 'steps': [], 'answer': answer
      }).encode())
      if not _NUMBER.fullmatch(answer):
        raise ValueError(f"the answer '{answer[:40]}' is not a number")
      records.append(Record(question, steps, answer, f'{path.name}:{number}'))
  return records
