"""Rows: the shapes that are read, and which rows are refused.

`SHAPES` is the one table of them: rows are told apart by its keys, errors list it, and
the table of docs/data.md is printed from it. A shape more is one row of it. How the text of a
solution becomes steps stands in solutions.py.

Everything here takes time in proportion to the row, and a row has a largest size.
"""

from collections.abc import Callable, Container, Iterable
import dataclasses
import decimal
import functools
import itertools
import re
from typing import Any

from rim_jax import reader
from rim_jax.data import solutions
from rim_jax.data.solutions import Reading, show

MAX_ROW_BYTES = 1_000_000  # of the text of one row; a longer one is refused
MAX_DIGITS = 400  # of a number as an answer, written out
_WITH_COMMAS = re.compile(r'[-+]?\d{1,3}(,\d{3})+(\.\d*)?')
SAVE_AS_UTF8 = 'save it as UTF-8'


class SharedFault(ValueError):
  """A fault of a row that others of its file have, too, so that the file is mended: `fix`."""

  def __init__(self, what: str, fix: str):
    super().__init__(what)
    self.fix = fix


class TableRow(dict):
  """A row of a table: the cells that hold something, and the keys of those that are empty."""
  __slots__ = ('empty',)

  def __init__(self, cells: dict[str, Any], empty: list[str]):
    super().__init__(cells)
    self.empty = empty


def parse_row(row: bytes | dict[str, Any], reading: Reading = solutions.EQUATIONS
              ) -> tuple[str, tuple[str, ...], str]:
  """One line of a file, or one row of a table, in any of `SHAPES` -> (question, steps, answer).

  Raises: ValueError saying what is wrong with it.
  """
  parsed = _parse_line(row, reading) if isinstance(row, bytes) else _parse_object(row, reading)
  question, steps, answer = parsed
  steps, answer = tuple(steps), answer.strip()
  if _WITH_COMMAS.fullmatch(answer):
    answer = answer.replace(',', '')
  _check_row(question, steps, answer)
  return question, tuple(f'<<{s}>>' if reading.step_marks else s for s in steps), answer


def _parse_line(line: bytes, reading):
  if len(line) > MAX_ROW_BYTES:
    raise ValueError(f'{len(line):,} bytes; a row may have {MAX_ROW_BYTES:,}')
  try:
    text = reader.decode(line)  # a \r before the \n is stripped with the answer, or space to JSON
  except ValueError as error:
    raise SharedFault(str(error), SAVE_AS_UTF8) from None
  if not text.strip():
    raise ValueError('an empty line')
  if text.startswith('\ufeff'):  # files begin with one, which is taken off there
    raise ValueError('a byte order mark before the text')
  if text.lstrip().startswith('{'):
    try:
      row = reader.parse_json(text, exact=True)
    except ValueError as error:
      if text.rstrip().endswith('}'):
        raise
      raise SharedFault(str(error), 'give a list of rows alone, or each row on one line') from None
    return _parse_object(row, reading)
  if '||' not in text:
    raise ValueError(f'neither a JSON object nor {TEXT_SHAPE.example!r}')
  return _parse_marked(text, reading)


def _parse_object(row, reading):
  if not isinstance(row, dict):
    raise ValueError('not a JSON object')
  texts = itertools.chain.from_iterable(
      value if isinstance(value, (list, tuple)) else [value] for value in row.values())
  size = sum(len(text) for text in texts if isinstance(text, str))
  if size > MAX_ROW_BYTES:
    raise ValueError(f'{size:,} characters; a row may have {MAX_ROW_BYTES:,}')
  shape = _find_shape(row)
  if shape is None:
    empty = row.empty if isinstance(row, TableRow) else []
    lacking = [[key for key in shape.keys if key in empty] for shape in SHAPES
               if all(key in row or key in empty for key in shape.keys)]
    if lacking:
      raise ValueError(f"{' and '.join(map(repr, min(lacking, key=len)))} should not be empty")
    for key, rows in row.items():
      if isinstance(rows, list) and rows and isinstance(rows[0], dict) and _find_shape(rows[0]):
        raise SharedFault(f'an object that holds a list of rows, {key[:40]!r}, and no row',
                          'give the list alone, or one of its rows a line')
    keys = list_keys(row)[:200] or 'none'
    if _find_shape({key.lower() for key in row}):
      keys += ' (did you mean small letters?)'
    needed = ', or '.join(shape.name for shape in SHAPES)
    raise SharedFault(f'its keys are {keys}; a row needs {needed}',
                      'rename or add keys (docs/data.md shows rows that are read)')
  return shape.parse(row, reading)


def list_keys(keys: Iterable[str]) -> str:
  """Keys in one line, quoted where spaces would not be seen, or nothing would."""
  return ', '.join(key if key.isidentifier() else repr(key) for key in sorted(keys))


def _find_shape(row: Container[str]) -> 'Shape | None':
  return next((shape for shape in SHAPES if all(key in row for key in shape.keys)), None)


def list_unread(row: bytes | dict[str, Any]) -> set[str]:
  """The keys of a row that its shape does not read; none of a row that cannot be read."""
  try:
    told = reader.parse_json(reader.decode(row)) if isinstance(row, bytes) else row
  except ValueError:
    return set()
  shape = _find_shape(told) if isinstance(told, dict) else None
  return told.keys() - {*shape.keys, *shape.optional} if shape else set()


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
  try:
    ''.join([question, *steps, answer]).encode()
  except UnicodeEncodeError:
    raise ValueError('half of a surrogate pair, which is no character') from None


# ---- Parts of a row ----


def _get_text(row, key) -> str:
  if not isinstance(row[key], str):
    raise ValueError(f"'{key}' should be a string, not {show(row[key])}")
  return row[key]


def _get_answer(row, key) -> str:
  """A string as it is; a number as a plain decimal, whole ones without a point, exactly."""
  value = row[key]
  if isinstance(value, str):
    return value
  if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
    raise ValueError(f"'{key}' should be a string or a number, not {show(value)}")
  number = decimal.Decimal(str(value) if isinstance(value, float) else value)
  if not number.is_finite():
    raise ValueError(f"'{key}' is {value}, which is no number")
  exponent = number.as_tuple().exponent
  if max(abs(number.adjusted()), -exponent if isinstance(exponent, int) else 0) > MAX_DIGITS:
    raise ValueError(f"'{key}' is a number of more than {MAX_DIGITS} digits")
  text = format(number, 'f')
  text = text.rstrip('0').rstrip('.') if '.' in text else text
  return '0' if text == '-0' else text


# ---- The shapes ----


def _parse_steps(row, reading, key='steps', in_lines=True):
  return (_get_text(row, 'question'), solutions.read_steps(row, key, reading, in_lines),
          _get_answer(row, 'answer'))


def _parse_answer(row, reading, question='question', answer='answer'):
  steps, found = solutions.read_text_answer(_get_answer(row, answer), reading)
  return _get_text(row, question), steps, found


def _parse_problem(row, reading):
  solution = _get_text(row, 'solution')
  answer = _get_answer(row, 'answer') if 'answer' in row else solutions.find_boxed(solution)
  if answer is None:
    raise ValueError("'solution' has no \\boxed{...}, and there is no 'answer'")
  return _get_text(row, 'problem'), solutions.read_solution(solution, reading, 'solution'), answer


def _parse_messages(row, reading):
  messages = row['messages']
  if not isinstance(messages, list) or not all(
      isinstance(m, dict) and isinstance(m.get('role'), str) for m in messages):
    raise ValueError("'messages' should be a list of {'role', 'content'}")
  roles = [m['role'] for m in messages]
  if roles not in (['user', 'assistant'], ['system', 'user', 'assistant']):
    raise ValueError(f"'messages' are of {', '.join(roles)[:80] or 'nobody'}; one question and one "
                     'answer are read: user, assistant, and system before them')
  *asked, answer = [_get_content(m).strip() for m in messages]
  steps, answer = solutions.read_text_answer(answer, reading)
  return '\n\n'.join(filter(None, asked)), steps, answer


def _get_content(message) -> str:
  content = message.get('content')
  if isinstance(content, list) and all(
      isinstance(part, dict) and isinstance(part.get('text'), str) for part in content):
    return ''.join(part['text'] for part in content)
  if not isinstance(content, str):
    raise ValueError(f"'content' should be a string, not {show(content)}")
  return content


def _parse_svamp(row, _):
  return (f"{_get_text(row, 'Body').strip()} {_get_text(row, 'Question').strip()}", [],
          _get_answer(row, 'Answer'))


def _parse_solutions(row, _):
  answers = row['lSolutions']
  if not isinstance(answers, list) or len(answers) != 1:
    raise ValueError(f"'lSolutions' should be a list of one answer, not {show(answers)}")
  return (_get_text(row, 'sQuestion').strip(), [],
          _get_answer({'lSolutions': answers[0]}, 'lSolutions'))


def _parse_asdiv(row, reading):
  answer = _get_answer(row, 'answer').strip()
  if '####' in answer:  # not ASDiv's: OpenAI's, with a key more
    return _parse_answer(row, reading)
  if answer.endswith(')') and ';' not in answer:  # '9 (apples)'; '4 (red); 5 (blue)' stays
    answer = answer.partition(' (')[0]
  return f"{_get_text(row, 'body').strip()} {_get_text(row, 'question').strip()}", [], answer


def _parse_marked(text, reading):
  question, _, rest = text.partition('||')
  solution, answer = solutions.split_answer(rest)
  steps, around = solutions.split_marks(solution, reading)
  outside = ' '.join(around).strip()
  if reading.steps == 'sentences':
    return question, solutions.read_sentences(steps, around), answer
  if outside and reading.needs_steps:  # without marks it would pass for a row without steps
    raise ValueError(f"'{outside[:40]}' stands outside << >>; read sentences as steps with "
                     '--config.data.steps=sentences')
  return question, steps, answer


@dataclasses.dataclass(frozen=True)
class Shape:
  """One way to write a row: the keys by which it is known, and who writes so."""
  keys: tuple[str, ...]
  example: str  # one line of a file
  source: str  # who writes rows so
  parse: Callable[[dict, Reading], tuple[str, Iterable[str], str]]
  optional: tuple[str, ...] = ()  # keys that are read where they are there

  @property
  def name(self) -> str:
    return ' + '.join(self.keys)


# The first whose keys a row has; other keys are allowed and not read.
SHAPES = (
    Shape(('question', 'steps', 'answer'),
          '{"question": "...", "steps": ["2*3=6", "6+4=10"], "answer": "10"}',
          'this project; GSM8K-Aug as a table. `steps` may be one text with a step on each line',
          _parse_steps),
    Shape(('question', 'cot', 'answer'),
          '{"question": "...", "cot": "<<2*3=6>> <<6+4=10>>", "answer": "10"}',
          'CODI: GSM8K-Aug, and GSM8K-Aug-NL with `data.steps=sentences`. `cot` may be a list',
          functools.partial(_parse_steps, key='cot', in_lines=False)),
    Shape(('body', 'question', 'answer'),
          '{"body": "Tom has 4 pens.", "question": "How many pens?", "answer": "4 (pens)"}',
          'ASDiv; the unit in brackets is left out', _parse_asdiv),
    Shape(('question', 'answer'),
          '{"question": "...", "answer": "Tom has <<2*3=6>>6 pens.\\n#### 6"}',
          "OpenAI's GSM8K. An answer of one line without `####` and `\\boxed{}` is taken whole",
          _parse_answer),
    Shape(('problem', 'solution'),
          '{"problem": "...", "solution": "So it is $\\\\boxed{\\\\frac{1}{2}}$."}',
          'MATH; the answer is `answer`, or what the last `\\boxed{}` holds', _parse_problem,
          ('answer',)),
    Shape(('messages',),
          '{"messages": [{"role": "user", "content": "..."}, '
          '{"role": "assistant", "content": "... #### 6"}]}',
          'chats of one question and its answer; a system message is put before the question',
          _parse_messages),
    Shape(('input', 'target'), '{"input": "...", "target": -9867630.0}', 'GSM-Hard',
          functools.partial(_parse_answer, question='input', answer='target')),
    Shape(('input', 'answer'), '{"input": "...", "answer": "6"}', 'GSM-Hard, renamed',
          functools.partial(_parse_answer, question='input')),
    Shape(('Body', 'Question', 'Answer'),
          '{"Body": "Tom has 4 pens.", "Question": "How many pens?", "Answer": 4.0}', 'SVAMP',
          _parse_svamp),
    Shape(('sQuestion', 'lSolutions'), '{"sQuestion": "...", "lSolutions": [4.0]}',
          'MultiArith, AddSub, SingleOp, SingleEq', _parse_solutions),
)
KEYS = frozenset(key for shape in SHAPES for key in (*shape.keys, *shape.optional))
# Not an object: a line of text.
TEXT_SHAPE = Shape((), 'question||<<step>> ... #### answer',
                   "iCoT's text form, which GSM8K-Aug has; sentences with `data.steps=sentences`",
                   _parse_marked)
