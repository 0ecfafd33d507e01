"""Figures as values: an SVG for a page, a PNG, and the numbers that it shows.

Who makes a figure returns it; `page.write_page` alone writes it. matplotlib is imported where a
figure is drawn.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import io
import math
import re
import typing

import markupsafe

from rim_jax.runtime import storage

_INK = '#010203'  # stands for the page's text colour while a figure is drawn
_FIGURE_STYLE = dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color',
                               'ytick.color', 'grid.color'), _INK) | {
    'axes.grid': True, 'grid.alpha': 0.15, 'axes.spines.top': False, 'axes.spines.right': False,
    'legend.frameon': False, 'svg.fonttype': 'none'}
_RAMP = ('#2f81f7', '#a86cb8', '#e86a17')
_CELL = '#2f81f7'
_MARKERS = 'os^DvPX*'


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawn figure; `head` and `rows` are the numbers that it shows."""
  caption: str
  svg: markupsafe.Markup  # matplotlib's own, in which texts are escaped
  png: bytes
  head: tuple[str, ...]
  rows: tuple[tuple, ...]

  @property
  def name(self) -> str:
    return '-'.join(re.findall(r'[a-z0-9]+', self.caption.partition(';')[0].lower()))

  def write(self, folder) -> None:
    """Keeps it as NAME.png and NAME.csv in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{self.name}.png').write_bytes(self.png)
    storage.write_text(folder / f'{self.name}.csv', storage.format_csv([self.head, *self.rows]))


# 7 parameters: what a figure of lines can have; all but four have a default.
def draw(caption: str, ylabel: str, xlabel: str, lines: dict, below: dict | None = None,
         legend_title: str = '', marks: str = 'line') -> Figure | None:
  """Lines, label -> (x, y) or (x, y, standard errors or None), and lambdas below them.

  Args:
    marks: 'line', 'points' alone, or 'path', whose end has a ring.
  Returns: None where there are no lines.
  """
  if not lines:
    return None
  from matplotlib import ticker
  by_step = xlabel == 'step' and not legend_title
  num_columns = 6 if by_step or marks != 'line' else 1
  # Inches of one line of the legend below another.
  legend = 0.2 * max(len(lines) - 3, 0) if num_columns == 1 else 0.0
  with begin(caption, 5.2, (4.2 if below else 3.2) + legend) as (figure, ramp):
    axes = figure.subplots(2 if below else 1, sharex=True, squeeze=False,
                           height_ratios=(3, 1) if below else None)[:, 0]
    for ax, panel in zip(axes, (lines, below)):
      _draw_lines(ax, panel, marks, ramp)
    axes[0].set(ylabel=ylabel, ylim=(-3, 103) if ylabel.endswith('%') else None)
    if below:
      axes[1].set(ylabel='λ', ylim=(-.05, 1.05))
    axes[-1].set_xlabel(xlabel)
    if xlabel.startswith('ms'):
      axes[-1].set_xlim(left=0)  # ratios are what is read off
    axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(
        8, integer=xlabel.partition(' ')[0] in ('step', 'block', 'blocks', 'answers')))
    if len(lines) > 1:
      figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center',
                    ncols=num_columns, title='block' if by_step else legend_title or None)
    shown = lines | {f'λ {label}': points for label, points in (below or {}).items()}
    head = ('line', 'x', 'y', 'stderr')[:max(map(len, shown.values())) + 1]
    return finish(figure, caption, head, [
        (label, *('' if value is None else float(value) for value in point))
        for label, points in shown.items() for point in zip(*points)])


def _draw_lines(ax, lines, marks, ramp):
  """In order, and told apart by line style or marker too."""
  for i, (label, (x, y, *errors)) in enumerate(lines.items()):
    color = ramp(i / max(len(lines) - 1, 1))
    if marks == 'points':
      ax.plot(x, y, label=str(label), color=color, linestyle='', marker=_MARKERS[i % len(_MARKERS)],
              markersize=4, alpha=0.55, markeredgewidth=0)
      continue
    ax.plot(x, y, label=str(label), color=color, linestyle=('-', '--', '-.', ':')[i % 4],
            marker='o' if len(x) < 20 else None, markersize=4)
    for bars in errors:
      ax.errorbar(x, y, [math.nan if bar is None else bar for bar in bars], fmt='none',
                  ecolor=color, capsize=3)
    if marks == 'path':
      ax.plot(x[-1:], y[-1:], color=color, marker='o', markersize=10, fillstyle='none')


def draw_map(caption: str, ylabel: str, xlabel: str, columns: Sequence, rows: dict,
             decimals: int = 0) -> Figure:
  """Shares of 1 in %, a cell for each row and column; None is left empty.

  Args:
    columns: their names.
    rows: name -> a value of each column.
  """
  from matplotlib import patches
  with begin(caption, 5.2, 1.1 + 0.3 * max(len(rows), 2)) as (figure, _):
    ax = figure.subplots()
    ax.grid(False)
    ax.spines[:].set_visible(False)
    size = 9 if len(columns) <= 10 else 90 / len(columns)
    cells = [(i, j, v) for i, values in enumerate(rows.values()) for j, v in enumerate(values)
             if v is not None]
    for i, j, value in cells:  # see-through, so that ink is legible on it on any page
      ax.add_patch(patches.Rectangle((j - .47, i - .45), .94, .9, linewidth=0, facecolor=_CELL,
                                     alpha=0.04 + 0.6 * min(max(value, 0), 1)))
      ax.text(j, i, f'{100 * value:.{decimals}f}', ha='center', va='center', fontsize=size)
    ax.set(xlim=(-.5, len(columns) - .5), ylim=(len(rows) - .5, -.5), ylabel=ylabel, xlabel=xlabel)
    ax.set_xticks(range(len(columns)), list(map(str, columns)), fontsize=size)
    ax.set_yticks(range(len(rows)), list(map(str, rows)), fontsize=9)
    ax.tick_params(length=0)
    names = list(rows)
    return finish(figure, caption, ('row', 'column', 'value'), [
        (names[i], columns[j], float(v)) for i, j, v in cells])


@contextlib.contextmanager
def begin(caption: str, width: float, height: float):
  """A context to draw in: (a figure of so many inches, colours from 0 to 1 for light and dark)."""
  import matplotlib
  from matplotlib import colors
  from matplotlib import figure as figure_lib
  style: dict[typing.Any, typing.Any] = {**_FIGURE_STYLE, 'svg.hashsalt': caption}
  with matplotlib.rc_context(style):
    yield (figure_lib.Figure(figsize=(width, height), layout='constrained'),
           colors.LinearSegmentedColormap.from_list('ramp', _RAMP))


def finish(figure, caption: str, head, rows) -> Figure:
  """A Figure of what was drawn in `begin`'s context; `head` and `rows` are its data."""
  out, picture = io.StringIO(), io.BytesIO()
  figure.savefig(out, format='svg', transparent=True,
                 metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
  figure.savefig(picture, format='png', dpi=150, facecolor='white')
  svg = out.getvalue()
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg[svg.index('<svg'):]).replace('xlink:href', 'href')
  svg = re.sub(r'<g id="[^"]*"', '<g', svg).replace(_INK, 'currentColor')  # ids must be unique
  return Figure(caption, markupsafe.Markup(svg), picture.getvalue(), tuple(head),
                tuple(map(tuple, rows)))
