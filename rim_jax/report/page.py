"""A page: one HTML file that needs no other, light and dark, for a phone too.

A page is a list of blocks; templates/ says how each is shown, and escapes all text.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import itertools

from etils import epath
from rich.text import Text

from rim_jax.report.figures import Figure
from rim_jax.report.tables import Cell, Part, Table, cell, clean, to_rich
from rim_jax.results.values import EvalResult, Prediction
from rim_jax.runtime import storage


@dataclasses.dataclass(frozen=True)
class Heading:
  text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
  cell: Cell
  small: bool = False
  muted: bool = False


@dataclasses.dataclass(frozen=True)
class Items:
  """A list of notes."""
  lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Figures:
  """Figures side by side where there is room."""
  figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part; without blocks a line that says so, or how to get some."""
  title: str
  blocks: tuple['Block', ...]
  otherwise: str = 'no data'
  folded: bool = False  # its blocks are shown when asked for


Block = Heading | Paragraph | Items | Figures | Section | Table
Blocks = Sequence[Block]  # of which a table without rows is left out


def paragraph(*parts, small=False, muted=False) -> Paragraph:
  return Paragraph(cell(*parts), small, muted)


def items(notes) -> list[Items]:
  notes = tuple(map(clean, notes))
  return [Items(notes)] if notes else []


def figures(drawn: Iterable[Figure | None]) -> list[Figures]:
  drawn = tuple(f for f in drawn if f is not None)
  return [Figures(drawn)] if drawn else []


def section(title: str, blocks: Blocks, otherwise: str = 'no data') -> Section:
  return Section(title, keep(blocks), clean(otherwise))


def optional(title: str, blocks: Blocks, folded: bool = False) -> list[Section]:
  """A section, where there is something in it."""
  blocks = keep(blocks)
  return [Section(title, blocks, folded=folded)] if blocks else []


def keep(blocks: Iterable[Block]) -> tuple[Block, ...]:
  """Those blocks that say something: a table without rows does not."""
  return tuple(block for block in blocks if not (isinstance(block, Table) and not block.rows))


@functools.cache
def _load_template():
  import jinja2  # late: few commands write a page
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader('rim_jax.report'), autoescape=True,
      undefined=jinja2.StrictUndefined)
  return environment.get_template('page.html.j2')


def render_page(title: str, blocks: Blocks) -> str:
  """The HTML of a page."""
  return _load_template().render(title=clean(title), blocks=keep(blocks))


def write_page(path, title: str, blocks: Blocks) -> epath.Path:
  """Writes a page, whole or not at all, and its figures into figures/ beside it."""
  path = epath.Path(path)
  for figure in list_figures(blocks):
    figure.write(path.parent / 'figures')
  storage.write_text(path, render_page(title, blocks))
  return path


def show(console, blocks: Blocks) -> None:
  """What a terminal shows of some blocks: texts and tables."""
  for block in keep(blocks):
    if isinstance(block, (Paragraph, Table)):
      console.print(to_rich(block, console) if isinstance(block, Table) else Text(block.cell.text))


def list_figures(blocks):
  """Every figure of some blocks, those inside of others too."""
  return itertools.chain.from_iterable(
      block.figures if isinstance(block, Figures) else list_figures(getattr(block, 'blocks', ()))
      for block in keep(blocks))


# ---- What pages of one run and of many say alike ----


def mark_answers(prediction: Prediction, result: EvalResult) -> Cell:
  """The answer read after each block, and whether it is right.

  Without a number where there is no block, or thoughts in it. Old files may have the mark alone.
  """
  first = int(bool(result.num_blocks) and result.num_thoughts is None)
  read = zip(prediction.block_predictions or [''],
             prediction.block_correct or [prediction.correct])
  return cell(*(
      Part(f'{f"{block}: " if block else ""}{"✓" if ok else "✗"} {clean(text, 24)}',
           style='right' if ok else 'wrong') for block, (text, ok) in enumerate(read, first)),
              long=True)


def describe_trained(config, beyond) -> str:
  """The K of training, beside accuracies by K; `beyond`: those K beyond its positions."""
  told = '1 a step' if config.facts.blocks_are_steps else str(config.layout.num_blocks)
  return f'{told} in training' + (
      f'; from {min(beyond)} on beyond the trained positions' if beyond else '')
