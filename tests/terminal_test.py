"""What is printed holds nothing that a shell or a terminal obeys, and streams may be closed."""

import io
import subprocess
import sys

import pytest
from rich import console as rich_console
from rich.text import Text

from rim_jax import terminal
from tests import support_runs

WORDS = ['plain', 'a b', '$(touch pwned)', "it's", '"', '`x`', 'a\nb', '\x1b[31mred', '\\', '',
         'é ü', '\u202e', "\x1b'\\$x", '~/x', '*', 'a=b']


@pytest.mark.parametrize('word', WORDS)
def test_a_shell_reads_a_word_back_as_it_is(word):
  for line, expected in ((terminal.join([word]), word),
                         (terminal.join([f'--question={word}']), f'--question={word}')):
    assert line.isprintable()
    done = subprocess.run(['bash', '-c', f'printf "%s" {line}'], capture_output=True, timeout=300,
                          env={'LC_ALL': 'C.UTF-8', 'HOME': '/nowhere'})
    assert done.stdout == expected.encode(), line


def test_text_is_shown_on_one_line_without_control_characters():
  assert terminal.show('a\x1b[31mb\nc\rd\te\u202ef\udc80') == (
      'a\\x1b[31mb\\nc\\rd\\te\\u202ef\\udc80')
  assert terminal.show('Grüße, 中文 →\xa0✓') == 'Grüße, 中文 →\xa0✓'


def test_a_console_shows_no_control_characters_but_its_own():
  out = io.StringIO()
  console = rich_console.Console(file=out, width=80, force_terminal=True,
                                 color_system='standard')
  console.push_render_hook(terminal.Visible())
  console.print(Text('bold \x1b]0;title\x07\nnext', 'bold'))
  told = out.getvalue()
  assert told == '\x1b[1mbold \\x1b]0;title\x1b[0m\n\x1b[1mnext\x1b[0m\n', repr(told)


PROGRAM = """
import os, sys
from rim_jax import terminal
terminal.open_streams()
with open('work', 'w') as file:  # the next number that is free, or that of a closed stream
  print('x' * 100_000, flush=True)
  print('y' * 100_000, file=sys.stderr, flush=True)
  file.write('done')
print('z', flush=True)
"""


@pytest.mark.parametrize('how, out', [
    ('>&-', ''), ('2>&-', 'xz'), ('<&-', 'xz'), ('>&- 2>&- <&-', ''),
    ('2>/dev/null | head -c 1', 'x')])
def test_work_is_done_where_a_standard_stream_is_closed_or_breaks(how, out, tmp_path):
  done = subprocess.run(
      ['bash', '-o', 'pipefail', '-c', f'"$0" -c "$1" {how}', sys.executable, PROGRAM],
      capture_output=True, text=True, timeout=300, cwd=tmp_path, env=support_runs.ENVIRONMENT)
  assert done.returncode == 0, done.stderr
  assert ''.join(dict.fromkeys(done.stdout.replace('\n', ''))) == out
  assert (tmp_path / 'work').read_text() == 'done'


def test_a_full_stream_is_named(tmp_path):
  done = subprocess.run([sys.executable, '-c', PROGRAM], stdout=open('/dev/full', 'w'),
                        stderr=subprocess.PIPE, text=True, timeout=300, cwd=tmp_path,
                        env=support_runs.ENVIRONMENT)
  assert done.returncode and "No space left on device: 'standard output'" in done.stderr
