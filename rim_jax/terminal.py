"""What is printed: commands that a shell takes as they are, control characters that can be seen,
and standard streams that are closed, or break.

A question, an answer or a path may hold any character. A shell would run `$(...)` of one that is
pasted, and a terminal obeys the ESC of one that is shown.
"""

import io
import os
import shlex
import sys
from typing import Any

from rich import console as rich_console
from rich import segment as rich_segment


def show(text: str) -> str:
  """Text on one line: what cannot be printed stands there as its escape, e.g. `\\x1b`."""
  return ''.join(_escape(c) for c in text)


def _escape(c: str) -> str:
  return c if c.isprintable() or c == '\xa0' else ascii(c)[1:-1]


def quote(word: str) -> str:
  """A word as bash and zsh read it back, on one line and without control characters."""
  if word.isprintable():
    return shlex.quote(word)
  special = {'\\': '\\\\', "'": "\\'"}
  return "$'" + ''.join(
      special.get(c) or (c if c.isprintable() else ''.join(
          f'\\x{byte:02x}' for byte in _to_bytes(c))) for c in word) + "'"


def _to_bytes(c: str) -> bytes:
  try:
    return c.encode('utf-8', 'surrogateescape')  # a byte of a name that was no UTF-8
  except UnicodeEncodeError:
    return c.encode('utf-8', 'surrogatepass')  # half of a pair, from JSON


def join(words) -> str:
  """A command line; of `--flag=value` the value alone is quoted, where the flag needs none."""
  def write(word):
    name, equals, value = word.partition('=')
    if equals and name.startswith('-') and shlex.quote(name) == name:
      return f'{name}={quote(value) if value else ""}'
    return quote(word)
  return ' '.join(map(write, words))


class Visible(rich_console.RenderHook):
  """A hook of a rich console: what is shown holds no control characters but the console's own."""

  def process_renderables(self, renderables):
    return [_Shown(r) for r in renderables]


class _Shown:

  def __init__(self, renderable):
    self._renderable = renderable

  def __rich_console__(self, console, options):
    for part in console.render(self._renderable, options):
      if part.control:
        yield part
      else:
        text = ''.join(c if c == '\n' else _escape(c) for c in part.text)
        yield rich_segment.Segment(text, part.style)


class _Stream(io.FileIO):
  """A standard stream of which nobody may read the other end: work goes on without it."""

  def write(self, data: Any) -> int:
    try:
      return super().write(data)
    except BrokenPipeError:  # e.g. of `| head -1`
      os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
      return len(data)
    except OSError as e:
      e.filename = 'standard output' if self.fileno() == 1 else 'standard error'
      raise


def open_streams() -> None:
  """Gives a process the standard streams that it lacks, and makes those that are there last.

  Without it a closed stream (`>&-`) would be the number of the next file that is opened, and what
  is printed would be written into that file.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.dup2(os.open(os.devnull, os.O_RDWR), number)
    before = getattr(sys, name)
    if number == 0:
      if before is None:
        sys.stdin = open(0, encoding='utf-8', closefd=False)
      continue
    raw = _Stream(number, 'w', closefd=False)
    setattr(sys, name, io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=before.encoding if before else 'utf-8',
        errors='backslashreplace', line_buffering=number == 2 or raw.isatty(),
        write_through=number == 2))
