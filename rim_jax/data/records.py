"""What a row is: the Record, and the file formats of GSM8K, read from a directory or downloaded.

Owns which rows are refused, and why. Formats, told apart line by line:
  {"question": str, "steps": [str], "answer": str}     other keys are allowed and unread
  {"question": str, "answer": "text <<a*b=c>> ... #### N"}            OpenAI's GSM8K
  question||<<a*b=c>> <<d+e=f>> #### N                                iCoT's GSM8K-Aug
or, as in Coconut's files, a whole file is one JSON list of such objects.
"""

import contextlib
import dataclasses
import decimal
import gzip
import hashlib
import http.client
import json
import os
import pathlib
import re
import tempfile
import urllib.request
import zlib

from rim_jax.config import DataConfig
from rim_jax.errors import UserError

SPLITS = ('train', 'valid', 'test')
# OpenAI's files at DataConfig.url: name -> (bytes, sha256).
GSM8K_FILES = {
    'train.jsonl': (
        4166206, '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465'),
    'test.jsonl': (
        749738, '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14'),
}
_EXTENSIONS = tuple(e + gz for e in ('.jsonl', '.txt', '.json') for gz in ('', '.gz'))
_STEP = re.compile(r'<<(.*?)>>')
_NUMBER = re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)')
_WITH_COMMAS = re.compile(r'[-+]?\d{1,3}(,\d{3})+(\.\d*)?')


@dataclasses.dataclass(frozen=True)
class Record:
  """One example: a question, T >= 0 steps and the answer, as text."""
  question: str
  steps: tuple[str, ...]
  answer: str
  origin: str  # where it comes from, both 1-based: 'train.jsonl:12' or 'rim_chain/train:12'


@dataclasses.dataclass(frozen=True)
class Variant(Record):
  """A problem of a training row with other numbers; or, as variant 0, a row as it is."""
  source_row: int  # the line of the file in `origin`, 1-based
  variant: int  # 1, 2, ... of that row


@contextlib.contextmanager
def report(where, fix, kinds=Exception):
  """Turns an error of these kinds into a user's, in one line."""
  try:
    yield
  except UserError:
    raise
  except kinds as error:
    what = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(f'{where}: {what}; {fix}') from error


def report_unwritable(config):
  return report(f"data.cache_dir='{config.cache_dir}'",
                 'make it writable, or pass --config.data.cache_dir=DIR', OSError)


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
  if text.lstrip().startswith('{'):
    question, steps, answer = _parse_json(text)
  elif '||' in text:
    question, _, rest = text.partition('||')
    steps, between, answer = _split_rationale(rest)
    if between.strip():  # a rationale without marks would pass for a row without steps
      raise ValueError(f"'{between.strip()[:40]}' stands outside << >>")
  else:
    raise ValueError("neither a JSON object nor 'question||<<step>> ... #### answer'")
  answer = answer.strip()
  if _WITH_COMMAS.fullmatch(answer):
    answer = answer.replace(',', '')
  _check_row(question, steps, answer)
  return question, tuple(f'<<{s}>>' if step_marks else s for s in steps), answer


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


def hold_out(records, num_valid, path):
  """(train, valid): whole questions, those whose hash is lowest, in the order of the hash."""
  hashes = {r.question: hashlib.sha256(r.question.encode()).digest() for r in records}
  if len(hashes) <= num_valid:
    raise UserError(f'{path}: {len(hashes)} questions, of which data.num_valid={num_valid} should '
                    'be held out; lower num_valid, or add a valid file')
  held_out = set(sorted(hashes, key=hashes.get)[:num_valid])
  train = [r for r in records if r.question not in held_out]
  valid = [r for r in records if r.question in held_out]
  return train, sorted(valid, key=lambda r: (hashes[r.question], r.steps, r.answer))


def download_gsm8k(config: DataConfig, say=print) -> pathlib.Path:
  """The folder with OpenAI's files, each fetched where it is not there with the right sha256.

  Not TFDS's download manager, which keeps retrying a refused connection for minutes, and
  leaves what it refuses in the cache.
  Raises: UserError; nothing unchecked is ever in the folder.
  """
  folder = pathlib.Path(config.cache_dir).expanduser() / 'downloads' / 'gsm8k'
  for name, (size, sha256) in GSM8K_FILES.items():
    path, url = folder / name, f"{config.url.rstrip('/')}/{name}"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
      continue
    say(f'rim_gsm8k: downloading {url} ({size / 1e6:.1f} MB)')
    fix = 'download it yourself and pass --config.data.dir=DIR'
    with report(url, fix, (OSError, ValueError, http.client.HTTPException)):
      with urllib.request.urlopen(url, timeout=60) as response:
        content = response.read(size + 1)
    if len(content) < size:
      raise UserError(f'{url}: cut off after {len(content)} of {size} bytes; {fix}')
    if hashlib.sha256(content).hexdigest() != sha256:
      raise UserError(f'{url}: not the file expected (its sha256 should be {sha256}); {fix}')
    with report_unwritable(config):
      folder.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(prefix='incomplete.', dir=folder) as temporary:
        (pathlib.Path(temporary) / name).write_bytes(content)
        os.replace(pathlib.Path(temporary) / name, path)
  return folder
