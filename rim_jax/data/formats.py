"""Rows: the shapes that are read, and which rows are refused.

`SHAPES` is the one table of them: rows are told apart by its keys, errors list it, and
the table of docs/data.md is printed from it. A shape more is one row of it.

Everything here takes time in proportion to the row, and a row has a largest size.
"""

from collections.abc import Callable, Container, Iterable
import dataclasses
import decimal
import functools
import itertools
import json
import re
from typing import Any

from rim_jax import reader
from rim_jax.results import rule

MAX_ROW_BYTES = 1_000_000  # of the text of one row; a longer one is refused
MAX_DIGITS = 400  # of a number as an answer, written out
_WITH_COMMAS = re.compile(r'[-+]?\d{1,3}(,\d{3})+(\.\d*)?')
# The end of a sentence. What may stand in each part differs from the next, so this is linear.
_SENTENCE_END = re.compile(r'[.!?]["\')\]]*\s+')
_NUMBER_ALONE = re.compile(r'\s*\d+\s*')
# What stands between two characters that are looked for holds neither, so these are linear, too.
# A mark has a = and is tight, or has nothing but an equation's characters, or is a number: `cout <<
# a; b = c >> d` is none of these.
_MARK = re.compile(r'<<((?=\S)[^<>\n=]+=[^<>\n]*(?<=\S)|[\d.,+\-*/()%$ ]+=[\d.,+\-*/()=%$ ]*'
                   r'|[\d.,]+)>>')
_MARKS_ALONE = re.compile(r'\s*(?:<<(?:(?!<<|>>).)*+>>\s*)*+')
# What may be half a mark, or a mark without an equation; in code a space mostly stands beside a <<.
_BAD_MARK = re.compile(r'<<(?![\s=])[^<>\n]*(?:=|(?<!\s)>>)|=[^<>\n=]*[^\s<>=]>>')
_IF_CODE = '; if it is code, read it as text with --config.data.steps=sentences'
_ABBREVIATIONS = frozenset(
    'mr mrs ms dr prof st mt vs no approx e.g i.e etc inc jr sr fig eq'.split())
_EQUATION_CHARACTERS = frozenset('0123456789.,+-*/()=%$ ')
SAVE_AS_UTF8 = 'save it as UTF-8'


class SharedFault(ValueError):
  """A fault of a row that others of its file have, too, so that the file is mended: `fix`."""

  def __init__(self, what: str, fix: str):
    super().__init__(what)
    self.fix = fix


@dataclasses.dataclass(frozen=True)
class Reading:
  """How rows are read: `data.steps`, `data.step_marks`, and whether steps may be missing."""
  steps: str = 'equations'
  step_marks: bool = False
  # False: a solution in sentences, with data.steps='equations', is a row without steps and no error
  needs_steps: bool = True


class TableRow(dict):
  """A row of a table: the cells that hold something, and the keys of those that are empty."""
  __slots__ = ('empty',)

  def __init__(self, cells: dict[str, Any], empty: list[str]):
    super().__init__(cells)
    self.empty = empty


def parse_row(row: bytes | dict[str, Any], reading: Reading = Reading()
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
    raise ValueError(f"'{key}' should be a string, not {_show(row[key])}")
  return row[key]


def _get_answer(row, key) -> str:
  """A string as it is; a number as a plain decimal, whole ones without a point, exactly."""
  value = row[key]
  if isinstance(value, str):
    return value
  if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
    raise ValueError(f"'{key}' should be a string or a number, not {_show(value)}")
  number = decimal.Decimal(str(value) if isinstance(value, float) else value)
  if not number.is_finite():
    raise ValueError(f"'{key}' is {value}, which is no number")
  exponent = number.as_tuple().exponent
  if max(abs(number.adjusted()), -exponent if isinstance(exponent, int) else 0) > MAX_DIGITS:
    raise ValueError(f"'{key}' is a number of more than {MAX_DIGITS} digits")
  text = format(number, 'f')
  text = text.rstrip('0').rstrip('.') if '.' in text else text
  return '0' if text == '-0' else text


def _show(value):
  return json.dumps(
      value, default=lambda v: float(v) if isinstance(v, decimal.Decimal) else str(v))[:40]


def _split_marks(text, reading: Reading) -> tuple[list[str], list[str]]:
  """'text <<a*b=c>> text' -> the steps, and the texts around them; any other << or >> is text.

  In a text of marks and nothing else, as iCoT writes steps, each is a step, whatever it holds.
  """
  if _MARKS_ALONE.fullmatch(text):
    return re.findall('<<(.*?)>>', text), []
  parts = _MARK.split(text)
  steps, around = parts[1::2], parts[::2]
  # Where marks say what the steps are, a bad one would be a step that is missing in silence.
  bad = next(filter(None, map(_BAD_MARK.search, around)), None)
  if bad and (steps or _needs_marks(reading)):
    raise ValueError(f'{bad[0][:40]!r}: a << without its >>, a >> without its <<, or no equation '
                     f"between them{'' if steps else _IF_CODE}")
  return steps, around


def _needs_marks(reading: Reading) -> bool:
  return reading.steps == 'equations' and reading.needs_steps


def _split_answer(text) -> tuple[str, str]:
  """What stands before the last '####', and the line after it; others begin headings."""
  *parts, answer = text.split('####')
  if not parts:
    raise ValueError("no '####' before the answer")
  if len(told := answer.strip().splitlines()) > 1:
    raise ValueError(f"more text after the answer's line: {told[1][:40]!r}; end the solution with "
                     "'#### ANSWER'")
  *lines, last = (solution := '####'.join(parts)).split('\n')
  if '####' in last or not all(map(_is_text_or_heading, lines)):
    raise ValueError("a second '####', which begins no heading")
  return solution, answer


def _is_text_or_heading(line) -> bool:
  """Whether a line has no '####', or begins with it and goes on with a word; '#### 6' does not."""
  return '####' not in line or (
      '####' not in line.lstrip('# \t') and any(map(str.isalpha, line)))


def _read_sentences(steps, around) -> list[str]:
  """The lines of a solution without its marks; of a solution in one line, its sentences."""
  text = ''.join(around)
  if steps and not text.strip():
    raise ValueError("nothing stands outside << >>; read such steps with "
                     '--config.data.steps=equations')
  return split_sentences(text)


def split_sentences(text: str) -> list[str]:
  """Lines; or, of a single line, sentences: a full stop before a small letter ends none.

  The marks around what a reasoning model writes before its answer are no steps.
  """
  text = text.replace('<think>', '').replace('</think>', '\n')
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  if len(lines) != 1:
    return lines
  line, found, start = lines[0], [], 0
  for end in _SENTENCE_END.finditer(line):
    words = line[max(start, end.start() - 12):end.start()].split()
    word = words[-1].lower().lstrip('("\'') if words else ''
    is_number = _NUMBER_ALONE.fullmatch(line, start, end.start())  # '1. First ...'
    is_short = line[end.start()] == '.' and (
        word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or is_number)
    if not is_short and not line[end.end():end.end() + 1].islower():
      found.append(line[start:end.end()].strip())
      start = end.end()
  return [*found, line[start:].strip()] if line[start:].strip() else found


def _read_solution(text, reading: Reading, key: str) -> list[str]:
  """Steps of a solution that stands apart from its answer."""
  steps, around = _split_marks(text, reading)
  if reading.steps == 'sentences' and any(map(str.strip, around)):
    return _read_sentences(steps, around)
  if steps:
    return steps
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  if all('=' in line and _EQUATION_CHARACTERS.issuperset(line) for line in lines):
    return lines
  if not reading.needs_steps:
    return []
  raise ValueError(f"'{key}' has no <<a*b=c>>, and its lines are no equations; read sentences as "
                   'steps with --config.data.steps=sentences')


def _read_steps(row, key, reading: Reading, in_lines: bool) -> list[str]:
  """Steps that stand in a key of their own: a list, or a text (`in_lines`: one step a line)."""
  steps = row[key] if row[key] is not None else []  # null is an empty cell of a table
  if isinstance(steps, str):
    if steps.lstrip().startswith('['):  # how CSV files have a list
      try:
        steps = reader.parse_json(steps)
      except ValueError:
        raise ValueError(f"'{key}' begins with [ and is no JSON list, as json.dumps writes one; "
                         'write it so, or one step a line') from None
    elif not in_lines or _split_marks(steps, reading)[0]:
      return _read_solution(steps, reading, key)
    else:
      return [line.strip() for line in steps.split('\n') if line.strip()]
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise ValueError(f"'{key}' should be a list of strings, or a string with a step on each line, "
                     f'not {_show(steps)}')
  steps = [s[2:-2] if s.startswith('<<') and s.endswith('>>')
           and not re.search('<<|>>', s[2:-2]) else s for s in steps]
  for i, step in enumerate(steps, 1):
    is_mark = _MARK.search(step)
    if is_mark or (_needs_marks(reading) and _BAD_MARK.search(step)):
      raise ValueError(f"step {i} has a stray << or >>{'' if is_mark else _IF_CODE}")
  return steps


def find_boxed(text: str) -> str | None:
  r"""What the last \boxed{...} of a text holds, its braces balanced; None without one."""
  at = max(text.rfind('\\boxed{'), text.rfind('\\fbox{'))
  if at < 0:
    return None
  held = text[text.index('{', at) + 1:]
  end = rule.find_end(held, '}')
  return None if end is None else held[:end]


# ---- The shapes ----


def _parse_steps(row, reading, key='steps', in_lines=True):
  return (_get_text(row, 'question'), _read_steps(row, key, reading, in_lines),
          _get_answer(row, 'answer'))


def _parse_text_answer(text, reading) -> tuple[list[str], str]:
  r"""An answer with or without its solution before it: 'text #### 6', '... \boxed{6}', '6'."""
  if '####' in text:
    solution, answer = _split_answer(text)
    steps, around = _split_marks(solution, reading)
    if reading.steps == 'sentences':
      steps = _read_sentences(steps, around)
    return steps, answer
  boxed = find_boxed(text)
  if boxed is not None:
    return _read_solution(text, reading, 'answer'), boxed
  if '\n' in text.strip() or _split_marks(text, reading)[0]:
    raise ValueError("no '####' before the answer")
  return [], text


def _parse_answer(row, reading, question='question', answer='answer'):
  steps, found = _parse_text_answer(_get_answer(row, answer), reading)
  return _get_text(row, question), steps, found


def _parse_problem(row, reading):
  solution = _get_text(row, 'solution')
  answer = _get_answer(row, 'answer') if 'answer' in row else find_boxed(solution)
  if answer is None:
    raise ValueError("'solution' has no \\boxed{...}, and there is no 'answer'")
  return _get_text(row, 'problem'), _read_solution(solution, reading, 'solution'), answer


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
  steps, answer = _parse_text_answer(answer, reading)
  return '\n\n'.join(filter(None, asked)), steps, answer


def _get_content(message) -> str:
  content = message.get('content')
  if isinstance(content, list) and all(
      isinstance(part, dict) and isinstance(part.get('text'), str) for part in content):
    return ''.join(part['text'] for part in content)
  if not isinstance(content, str):
    raise ValueError(f"'content' should be a string, not {_show(content)}")
  return content


def _parse_svamp(row, _):
  return (f"{_get_text(row, 'Body').strip()} {_get_text(row, 'Question').strip()}", [],
          _get_answer(row, 'Answer'))


def _parse_solutions(row, _):
  solutions = row['lSolutions']
  if not isinstance(solutions, list) or len(solutions) != 1:
    raise ValueError(f"'lSolutions' should be a list of one answer, not {_show(solutions)}")
  return (_get_text(row, 'sQuestion').strip(), [],
          _get_answer({'lSolutions': solutions[0]}, 'lSolutions'))


def _parse_asdiv(row, reading):
  answer = _get_answer(row, 'answer').strip()
  if '####' in answer:  # not ASDiv's: OpenAI's, with a key more
    return _parse_answer(row, reading)
  if answer.endswith(')') and ';' not in answer:  # '9 (apples)'; '4 (red); 5 (blue)' stays
    answer = answer.partition(' (')[0]
  return f"{_get_text(row, 'body').strip()} {_get_text(row, 'question').strip()}", [], answer


def _parse_marked(text, reading):
  question, _, rest = text.partition('||')
  solution, answer = _split_answer(rest)
  steps, around = _split_marks(solution, reading)
  outside = ' '.join(around).strip()
  if reading.steps == 'sentences':
    return question, _read_sentences(steps, around), answer
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
