"""Files of rows: which are read, in which formats, and which rows are refused.

Formats, told apart line by line:
  {"question": str, "steps": [str], "answer": str}     other keys are allowed and unread
  {"question": str, "answer": "text <<a*b=c>> ... #### N"}            OpenAI's GSM8K
  question||<<a*b=c>> <<d+e=f>> #### N                                iCoT's GSM8K-Aug
or, as in Coconut's files, a whole file is one JSON list of such objects. A format more is one row
of `FORMATS`.
"""

from collections.abc import Callable
import dataclasses
import gzip
import json
import re
import zlib

from rim_jax.data.records import SPLITS, Record, report
from rim_jax.errors import UserError

_EXTENSIONS = tuple(e + gz for e in ('.jsonl', '.txt', '.json') for gz in ('', '.gz'))
_STEP = re.compile(r'<<(.*?)>>')
_WITH_COMMAS = re.compile(r'[-+]?\d{1,3}(,\d{3})+(\.\d*)?')


def find_files(folder, needed=('train', 'test'), without='download GSM8K'):
  """Split -> (path, content).

  Raises: UserError where the folder, or the file of a split that is needed, is not there.
  """
  if not folder.is_dir():
    raise UserError(f"data.dir='{folder}': no such directory; pass one with "
                    f'{" and ".join(needed or SPLITS)} files, or none to {without}')
  files = {}
  for split in SPLITS:
    found = [folder / f'{split}{e}' for e in _EXTENSIONS if (folder / f'{split}{e}').exists()]
    if len(found) > 1:
      raise UserError(f"{folder}: {' and '.join(p.name for p in found)} are both the {split} "
                      'split; keep one')
    if found:
      with report(found[0], 'make it a readable file', OSError):
        files[split] = found[0], found[0].read_bytes()
    elif split in needed:
      there = ', '.join(sorted(p.name for p in folder.iterdir())[:10]) or 'nothing'
      raise UserError(f"{folder}: no {split} file (looked for {split} with "
                      f"{', '.join(_EXTENSIONS)}); there: {there}; add or rename one")
  return files


def parse_file(path, content, config) -> tuple[list[Record], list[str]]:
  """Records, and the bad rows that were dropped as '<file>:<line>: <what>'."""
  if path.suffix == '.gz':
    with report(path, 'replace it by a whole gzip file', (OSError, EOFError, zlib.error)):
      content = gzip.decompress(content)
  # Lines end at \n alone: str.splitlines would also cut questions at a U+2028.
  lines = content.split(b'\n')
  if content.lstrip().startswith(b'['):
    with report(path, 'give a list of JSON objects, or one of them a line', ValueError):
      lines = [json.dumps(row).encode() for row in json.loads(content)]
  while lines and not lines[-1].strip():
    lines.pop()
  records, dropped = [], []
  for number, line in enumerate(lines, 1):
    try:
      row = parse_row(line, config.step_marks)
    except ValueError as error:
      if config.on_bad_rows != 'drop':
        raise UserError(f'{path}:{number}: {error}; fix the row, or drop bad rows with '
                        '--config.data.on_bad_rows=drop') from None
      dropped.append(f'{path.name}:{number}: {error}')
    else:
      records.append(Record(*row, origin=f'{path.name}:{number}'))
  if not records:
    raise UserError(f'{path}: no rows (of {len(lines)} lines); fill or replace the file')
  return records, dropped


def parse_row(line: bytes, step_marks: bool = False) -> tuple[str, tuple[str, ...], str]:
  """One line, in any of the formats -> (question, steps, answer).

  Raises: ValueError saying what is wrong with it.
  """
  try:
    text = line.decode()  # a \r before the \n is stripped with the answer, or is space to JSON
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 (byte {error.start})') from None
  if not text.strip():
    raise ValueError('an empty line')
  if text.startswith('\ufeff'):
    raise ValueError('a byte order mark before the text')
  found = next((f for f in FORMATS if f.matches(text)), None)
  if found is None:
    raise ValueError(f"neither {' nor '.join(f.name for f in FORMATS)}")
  question, steps, answer = found.parse(text)
  answer = answer.strip()
  if _WITH_COMMAS.fullmatch(answer):
    answer = answer.replace(',', '')
  _check_row(question, steps, answer)
  return question, tuple(f'<<{s}>>' if step_marks else s for s in steps), answer


def _split_rationale(text):
  """'text <<step>> text #### answer' -> steps, the text without them, answer."""
  rationale, mark, answer = text.partition('####')
  if not mark:
    raise ValueError("no '####' before the answer")
  between = _STEP.sub(' ', rationale)
  if '<<' in between or '>>' in between:
    raise ValueError('a << without its >>, or a >> without its <<')
  return _STEP.findall(rationale), between, answer


def _check_row(question, steps, answer):
  if not question.strip():
    raise ValueError('the question is empty')
  if not answer:
    raise ValueError('the answer is empty')
  if '####' in answer:
    raise ValueError("a second '####', or one in an answer that stands beside steps")
  for i, step in enumerate(steps, 1):
    if not step.strip():
      raise ValueError(f'step {i} is empty')
    if '<<' in step or '>>' in step:
      raise ValueError(f'step {i} has a stray << or >>')
  try:
    ''.join([question, *steps, answer]).encode()
  except UnicodeEncodeError:
    raise ValueError('half of a surrogate pair, which is no character') from None


# ---- The formats ----


def _parse_json(text):
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'not JSON ({error})') from None
  for key in ('question', 'answer'):
    if key not in row:
      raise ValueError(f"no '{key}'")
    if not isinstance(row[key], str):
      raise ValueError(f"'{key}' should be a string, not {json.dumps(row[key])[:40]}")
  if 'steps' not in row:
    steps, _, answer = _split_rationale(row['answer'])
    return row['question'], steps, answer
  steps = row['steps']
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise ValueError("'steps' should be a list of strings")
  steps = [s[2:-2] if _STEP.fullmatch(s) else s for s in steps]
  return row['question'], steps, row['answer']


def _parse_marked(text):
  question, _, rest = text.partition('||')
  steps, between, answer = _split_rationale(rest)
  if between.strip():  # a rationale without marks would pass for a row without steps
    raise ValueError(f"'{between.strip()[:40]}' stands outside << >>")
  return question, steps, answer


@dataclasses.dataclass(frozen=True)
class Format:
  """A way to write a row as one line; `matches` tells it from those before it in `FORMATS`."""
  name: str
  matches: Callable[[str], bool]
  parse: Callable[[str], tuple]  # -> (question, steps, answer); raises ValueError


FORMATS = (
    Format('a JSON object', lambda text: text.lstrip().startswith('{'), _parse_json),
    Format("'question||<<step>> ... #### answer'", lambda text: '||' in text, _parse_marked))
