"""How the text of a solution becomes steps and an answer: marks, headings, boxes, sentences.

Everything here takes time in proportion to the text.
"""

import dataclasses
import decimal
import json
import re

from rim_jax import reader
from rim_jax.results import rule

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


@dataclasses.dataclass(frozen=True)
class Reading:
  """How rows are read: `data.steps`, `data.step_marks`, and whether steps may be missing."""
  steps: str = 'equations'
  step_marks: bool = False
  # False: a solution in sentences, with data.steps='equations', is a row without steps and no error
  needs_steps: bool = True


EQUATIONS = Reading()


def show(value):
  return json.dumps(
      value, default=lambda v: float(v) if isinstance(v, decimal.Decimal) else str(v))[:40]


def split_marks(text, reading: Reading) -> tuple[list[str], list[str]]:
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


def split_answer(text) -> tuple[str, str]:
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


def read_sentences(steps, around) -> list[str]:
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


def read_solution(text, reading: Reading, key: str) -> list[str]:
  """Steps of a solution that stands apart from its answer."""
  steps, around = split_marks(text, reading)
  if reading.steps == 'sentences' and any(map(str.strip, around)):
    return read_sentences(steps, around)
  if steps:
    return steps
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  if all('=' in line and _EQUATION_CHARACTERS.issuperset(line) for line in lines):
    return lines
  if not reading.needs_steps:
    return []
  raise ValueError(f"'{key}' has no <<a*b=c>>, and its lines are no equations; read sentences as "
                   'steps with --config.data.steps=sentences')


def read_steps(row, key, reading: Reading, in_lines: bool) -> list[str]:
  """Steps that stand in a key of their own: a list, or a text (`in_lines`: one step a line)."""
  steps = row[key] if row[key] is not None else []  # null is an empty cell of a table
  if isinstance(steps, str):
    if steps.lstrip().startswith('['):  # how CSV files have a list
      try:
        steps = reader.parse_json(steps)
      except ValueError:
        raise ValueError(f"'{key}' begins with [ and is no JSON list, as json.dumps writes one; "
                         'write it so, or one step a line') from None
    elif not in_lines or split_marks(steps, reading)[0]:
      return read_solution(steps, reading, key)
    else:
      return [line.strip() for line in steps.split('\n') if line.strip()]
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise ValueError(f"'{key}' should be a list of strings, or a string with a step on each line, "
                     f'not {show(steps)}')
  steps = [s[2:-2] if s.startswith('<<') and s.endswith('>>')
           and not re.search('<<|>>', s[2:-2]) else s for s in steps]
  for i, step in enumerate(steps, 1):
    is_mark = _MARK.search(step)
    if is_mark or (_needs_marks(reading) and _BAD_MARK.search(step)):
      raise ValueError(f"step {i} has a stray << or >>{'' if is_mark else _IF_CODE}")
  return steps


def read_text_answer(text, reading) -> tuple[list[str], str]:
  r"""An answer with or without its solution before it: 'text #### 6', '... \boxed{6}', '6'."""
  if '####' in text:
    solution, answer = split_answer(text)
    steps, around = split_marks(solution, reading)
    if reading.steps == 'sentences':
      steps = read_sentences(steps, around)
    return steps, answer
  boxed = find_boxed(text)
  if boxed is not None:
    return read_solution(text, reading, 'answer'), boxed
  if '\n' in text.strip() or split_marks(text, reading)[0]:
    raise ValueError("no '####' before the answer")
  return [], text


def find_boxed(text: str) -> str | None:
  r"""What the last \boxed{...} of a text holds, its braces balanced; None without one."""
  at = max(text.rfind('\\boxed{'), text.rfind('\\fbox{'))
  if at < 0:
    return None
  held = text[text.index('{', at) + 1:]
  end = rule.find_end(held, '}')
  return None if end is None else held[:end]
