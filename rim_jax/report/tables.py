"""A table as one value, and what stands in its cells; shown on a terminal, a page, or in Markdown.

Whatever a cell holds is text: a renderer shows it as it is, never as its own markup. A number keeps
its exact value beside the text that a person reads.
"""

import dataclasses
import re

from rich import box, columns
from rich import table as rich_table
from rich.console import Group
from rich.text import Text

from rim_jax.results.stats import Summary

MISSING = '–'


def clean(text, most=None, encoding='utf-8') -> str:
  """Text on one line and at most so long; a model can decode to control characters."""
  text = ' '.join(str(text).split())
  text = text if most is None or len(text) <= most else text[:most - 1] + '…'
  return _show_control_signs(text).encode(encoding, 'replace').decode(encoding)


def _show_control_signs(text: str) -> str:
  """Control characters as a visible sign; a no-break space is none."""
  return ''.join(c if c.isprintable() or c == '\xa0' else ' ' if c.isspace() else '\ufffd'
                 for c in text)


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a line.

  Args:
    value: the exact number that `text` tells, as JSON has it.
    style: '' | strong | bold | right | wrong | name (may break at its commas) | token.
    shade: 0 to 1, of a token.
    title: what a page tells of it when it is pointed at.
  """
  text: str
  value: float | int | None = None
  style: str = ''
  shade: float = 0.0
  title: str = ''

  def __post_init__(self):
    object.__setattr__(self, 'text', _show_control_signs(str(self.text)))


  @property
  def pieces(self) -> list[str]:
    """The text, cut where it may break."""
    return re.split(r'(?<=[,=])', self.text)


@dataclasses.dataclass(frozen=True)
class Cell:
  """Lines of parts, one below the other, and smaller notes below these."""
  lines: tuple[tuple[Part, ...], ...] = ((),)
  notes: tuple[tuple[Part, ...], ...] = ()
  long: bool = False  # may break anywhere
  wide: bool = False  # and has room, also on a phone

  def __add__(self, other) -> 'Cell':
    """Both side by side; the notes of both below."""
    other = other if isinstance(other, Cell) else cell(other)
    return dataclasses.replace(
        self, lines=(*self.lines[:-1], self.lines[-1] + other.lines[0], *other.lines[1:]),
        notes=self.notes + other.notes, long=self.long or other.long)

  def note(self, *parts) -> 'Cell':
    """The same with one more note."""
    return dataclasses.replace(self, notes=(*self.notes, cell(*parts).lines[0]))

  def style(self, style: str) -> 'Cell':
    """The same with each part of a style."""
    return dataclasses.replace(self, lines=tuple(
        tuple(dataclasses.replace(p, style=style) for p in line) for line in self.lines))

  @property
  def text(self) -> str:
    """Its lines and, in brackets, its notes, as one line with plain spaces and hyphens."""
    lines, notes = ([''.join(p.text for p in line) for line in some]
                    for some in (self.lines, self.notes))
    told = ' '.join(filter(None, (', '.join(filter(None, lines)),
                                  '; '.join(notes) and f'({"; ".join(notes)})')))
    return told.replace('\xa0', ' ').replace('\u2011', '-')


def cell(*parts, long=False, wide=False) -> Cell:
  """A cell of parts side by side: of text, Parts and Cells."""
  made = Cell(long=long, wide=wide)
  for part in parts:
    made += part if isinstance(part, Cell) else Cell(
        ((part if isinstance(part, Part) else Part(part),),))
  return made


def stack(cells, long=True) -> Cell:
  """Cells one below the other."""
  cells = [cell(c) for c in cells]
  return Cell(tuple(line for c in cells for line in c.lines) or ((),),
              tuple(note for c in cells for note in c.notes), long)


def join(parts, between: str = ' / ') -> Cell:
  """Parts side by side, with text between them."""
  return cell(*[piece for part in parts for piece in (between, part)][1:])


# ---- What cells say ----


def number(value, shown=None, style='') -> Part:
  """A number as a person reads it, and exactly."""
  return Part(f'{value:,}' if shown is None else shown, value, style)


def share(value, style='') -> Part:
  """A share of 1 in %; a dash for none."""
  return Part(MISSING) if value is None else number(value, f'{100 * value:.1f}', style)


def points(value) -> Part:
  """A difference of shares, with its sign."""
  return number(value, f'{100 * value:+.1f}')


def name(text) -> Cell:
  """A row's name, which may break at its commas and after an equals sign."""
  return cell(Part(clean(text), style='name'), long=True)


def mean(summary: Summary | None, scale=100, unit='%', of=None) -> Cell:
  """A mean over seeds and its standard error; a dash for none.

  Args:
    of: how many runs there are: where fewer have a value, their number is told.
  """
  if not summary:
    return cell(MISSING)
  decimals = 1 if scale == 100 else 2
  told = cell(number(summary.mean, f'{scale * summary.mean:.{decimals}f}'))
  if summary.stderr is not None:
    told += cell('\xa0±\xa0', number(summary.stderr, f'{scale * summary.stderr:.{decimals}f}'))
  told += unit
  return told.note(f'{summary.count} of {of} seeds') if of and summary.count < of else told


# ---- Tables ----


@dataclasses.dataclass(frozen=True)
class Column:
  """A column's head, and how a terminal shows it."""
  label: str = ''
  note: str = ''
  right: bool = False
  dim: bool = False
  ratio: int | None = None  # share of the width that is left
  most: int | None = None  # characters


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under columns; the first cell of a row is its name. Notes stand below."""
  columns: tuple[Column, ...]
  rows: tuple[tuple[Cell, ...], ...]
  title: str = ''
  notes: tuple[str, ...] = ()

  @property
  def has_head(self) -> bool:
    return any(c.label or c.note for c in self.columns)


def table(head, rows, title: str = '', notes=()) -> Table:
  """A Table from heads and rows in a short form.

  Args:
    head: texts, (text, note) or Columns; shorter than the rows for one without heads.
    rows: lists of what `cell` takes.
  """
  rows = tuple(tuple(map(cell, row)) for row in rows)
  head = list(head) or [''] * max(map(len, rows), default=0)
  columns = (c if isinstance(c, Column) else Column(c) if isinstance(c, str) else Column(*c)
             for c in head)
  return Table(tuple(columns), rows, title, tuple(notes))


def to_markdown(shown: Table) -> list[str]:
  """The table's lines, its title above and its notes below, each after an empty line."""
  def write(cells):
    told = (re.sub(r'<(?=[A-Za-z/!])', r'\\<', c.replace('|', '/')) for c in cells)
    return f"| {' | '.join(told)} |"
  head = [f'{c.label}{f" ({c.note})" if c.note else ""}' for c in shown.columns]
  lines = ['', shown.title, ''] if shown.title else ['']
  lines += [write(head), '|---' * len(head) + '|']
  lines += [write([c.text for c in row] + [''] * (len(head) - len(row))) for row in shown.rows]
  return lines + [line for note in shown.notes for line in ('', note)]


def to_rich(shown: Table, console, most=100):
  """The table for a terminal of this width; signs that it cannot show are replaced."""
  made = rich_table.Table(title=Text(_encode(shown.title, console)) if shown.title else None,
                          title_justify='left', box=box.SIMPLE, show_header=shown.has_head,
                          width=min(console.width, most) if any(
                              c.ratio for c in shown.columns) else None)
  for column in shown.columns:
    label = Text(_encode(column.label, console), overflow='fold')
    if column.note:
      label.append(f'\n{_encode(column.note, console)}', 'dim')
    made.add_column(label, justify='right' if column.right else 'left', no_wrap=column.right,
                    overflow='fold', style='dim' if column.dim else '', ratio=column.ratio,
                    max_width=column.most)
  for row in shown.rows:
    made.add_row(*(_show_cell(c, console) for c in row))
  return made


_STYLES = {'strong': 'bold', 'bold': 'bold', 'right': 'green', 'wrong': 'red'}


def _show_cell(shown: Cell, console):
  """A cell's lines, and its notes dimmed; answers that are marked stand in columns."""
  made = []
  for line, style in [*((li, '') for li in shown.lines), *((n, 'dim') for n in shown.notes)]:
    texts = [Text(_encode(p.text, console), style or _STYLES.get(p.style, ''), overflow='fold')
             for p in line]
    marked = len(line) > 1 and all(p.style in ('right', 'wrong') for p in line)
    made.append(columns.Columns(texts) if marked else Text(overflow='fold').join(texts))
  return made[0] if len(made) == 1 else Group(*made)


def _encode(text: str, console) -> str:
  if console.options.ascii_only:
    text = text.replace('✓', 'ok').replace('✗', 'x').replace('█', '#').replace('–', '-').replace(
        '±', '+-').replace('\xa0', ' ')
  return text.encode(console.encoding, 'replace').decode(console.encoding)
