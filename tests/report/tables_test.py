"""One table, three renderers: each shows every cell, and none takes text for its own markup."""

import io

import pytest
from rich import console as rich_console

from rim_jax.report import page, tables
from rim_jax.results import stats

NASTY = '[bold]a[/bold] | <b>b</b> \x1b[31m'


def make_table():
  told = tables.mean(stats.Summary(mean=0.625, stderr=0.125, count=2), of=3)
  return tables.table(
      ['', ('final', 'in %'), 'way'],
      [[tables.name('a=1,b=2'), told, tables.points(-0.0625)],
       [NASTY, tables.share(None), tables.stack(['one', tables.cell('two').note('three')])]],
      'A title', ['A note.'])


def show_rich(table, encoding='utf-8', width=100) -> str:
  file = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
  console = rich_console.Console(file=file, width=width)
  console.print(tables.to_rich(table, console))
  return file.buffer.getvalue().decode(encoding)


def test_markdown_has_a_line_a_row_and_no_bar_or_element_in_a_cell():
  lines = tables.to_markdown(make_table())
  assert lines[:3] == ['', 'A title', ''] and lines[-2:] == ['', 'A note.']
  assert lines[3:5] == ['|  | final (in %) | way |', '|---|---|---|']
  assert lines[5] == '| a=1,b=2 | 62.5 ± 12.5% (2 of 3 seeds) | -6.2 |'
  assert lines[6].startswith(r'| [bold]a[/bold] / \<b>b\</b>')
  assert lines[6].endswith(' | – | one, two (three) |')
  assert {line.count('|') for line in lines[3:7]} == {4}


def test_the_terminal_shows_each_cell_as_it_is():
  text = show_rich(make_table())
  for told in ('A title', 'final', 'in %', 'a=1,b=2', '62.5\xa0±\xa012.5%', '2 of 3 seeds', '-6.2',
               '[bold]a[/bold] | <b>b</b>', '–', 'one', 'two', 'three'):
    assert told in text, told
  assert '\x1b' not in text


def test_a_terminal_without_such_signs_has_others():
  marks = tables.table([''], [[tables.cell(tables.Part('✓ 1', style='right'),
                                           tables.Part('✗ 2', style='wrong'))], ['█ ± –']])
  text = show_rich(marks, 'ascii')
  assert 'ok 1' in text and 'x 2' in text and '# +- -' in text


def test_a_page_has_the_exact_numbers_and_no_markup_of_a_text():
  html = page.render_page('', [make_table()])
  assert '<data value="0.625">62.5</data>' in html and '<data value="-0.0625">-6.2</data>' in html
  assert '&lt;b&gt;b&lt;/b&gt;' in html and '<b>b</b>' not in html and '\x1b' not in html
  assert '<th scope="col">final<small>in %</small></th>' in html
  assert '<b>a=<wbr>1,<wbr>b=<wbr>2</b>' in html and '<p><small>A note.</small></p>' in html


def test_a_table_may_have_no_rows():
  assert not tables.table(['a'], []).rows


@pytest.mark.parametrize('left, right', [('a', 'b'), ('', 'b')])
def test_cells_side_by_side_keep_lines_and_notes(left, right):
  one, two = tables.cell(left).note('n'), tables.stack([right, 'c']).note('m')
  assert (one + two).text == f'{left}{right}, c (n; m)'
