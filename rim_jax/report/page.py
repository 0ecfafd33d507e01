"""A page: one HTML file that needs no other, light and dark, for a phone too; and its figures.

Text from data is shown as it is: never as markup. matplotlib is imported where a figure is drawn.
"""

import csv
import html
import io
import math
import re

from etils import epath

from rim_jax.runtime import storage

_INK = '#010203'  # stands for the page's text colour while a figure is drawn
_FIGURE_STYLE = dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color',
                               'ytick.color', 'grid.color'), _INK) | {
    'axes.grid': True, 'grid.alpha': 0.15, 'axes.spines.top': False, 'axes.spines.right': False,
    'legend.frameon': False, 'svg.fonttype': 'none'}
_RAMP = ('#2f81f7', '#a86cb8', '#e86a17')
_CELL = '#2f81f7'
_MARKERS = 'os^DvPX*'
_CSS = '''
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59636e; --line: #d1d9e0; --page: #fff;
  --right: #1a7f37; --wrong: #c62828 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #3d444d;
  --page: #12161c; --right: #4ac26b; --wrong: #ff8079 } }
body { max-width: 64rem; margin: auto; padding: 1rem; color: var(--ink); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line) } pre { margin: 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; overflow-wrap: normal }
th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums } small { display: block }
tbody th { white-space: nowrap } th small, th .long { font-weight: 400 }
.long { min-width: 12rem; white-space: normal; overflow-wrap: anywhere }
small, figcaption, .none, pre { color: var(--soft); white-space: pre-wrap }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0; max-width: 40rem; min-width: 0 } svg { width: 100%; height: auto }
svg text { font-family: system-ui, sans-serif !important }
.right, .wrong { display: inline-block; margin-right: .8rem; color: var(--right) }
.wrong { color: var(--wrong) }
@media (max-width: 30rem) { table, small { font-size: .8rem } .long { min-width: 6.5rem }
  .wide { min-width: 14rem }
  th, td { padding-right: .6rem } }
.token { padding: .1rem .25rem; margin-right: 1px; border-radius: .2rem }'''


def load_json(folder, name) -> dict:
  """The content of a JSON file; {} where it is absent or empty."""
  path = epath.Path(folder) / name
  there = path.exists() and path.read_text().strip()
  return storage.load_json(path, 'this file') if there else {}


def clean(text, most=None, encoding='utf-8'):
  """Text on one line and at most so long; a model can decode to control characters."""
  text = ' '.join(str(text).split())
  text = text if most is None or len(text) <= most else text[:most - 1] + '…'
  text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
  return text.encode(encoding, 'replace').decode(encoding)


def write_page(path, title: str, parts) -> epath.Path:
  """A page of parts in HTML, whole or not at all, light and dark, for a phone too."""
  storage.write_text(path, '\n'.join([
      '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>{escape(title)}</title><style>{_CSS}</style></head><body><h1>{escape(title)}</h1>',
      *parts, '</body></html>\n']))
  return epath.Path(path)


def section(title, body, otherwise='no data'):
  """A part of a page; without a body a line that says so, or how to get one."""
  return f'<h3>{title}</h3>{body or f"<p class=none>{escape(otherwise)}</p>"}'


def escape(text, most=None):
  return html.escape(clean(text, most))


def mark(value, shown=None):
  """A number as a person reads it, and exactly, as <data>."""
  return f'<data value="{value!r}">{f"{value:,}" if shown is None else shown}</data>'


def show_share(value):
  """A share of 1 in %; a dash for none."""
  return '–' if value is None else mark(value, f'{100 * value:.1f}')


def list_answers(prediction, result) -> dict:
  """Block -> (answer read, whether it is right); 0 is none: the question alone, or thoughts.

  Old files may have the mark alone.
  """
  first = int(bool(result.get('num_blocks')) and 'num_thoughts' not in result)
  return dict(enumerate(zip(prediction.get('block_predictions', ['']),
                            prediction.get('block_correct', [prediction['correct']])), first))


def mark_answers(prediction, result) -> str:
  """What `list_answers` gives, as HTML; block 0 has no number."""
  return ''.join(
      f'<span class="{"right" if ok else "wrong"}">{f"{block}: " if block else ""}'
      f'{"✓" if ok else "✗"} {escape(text, 24)}</span> '
      for block, (text, ok) in list_answers(prediction, result).items())


def describe_trained(config, beyond) -> str:
  """The K of training, beside accuracies by K; `beyond`: those K beyond its positions."""
  told = '1 a step' if config.facts.blocks_are_steps else str(config.layout.num_blocks)
  return f'{told} in training' + (
      f'; from {min(beyond)} on beyond the trained positions' if beyond else '')


def show_mean(summary, scale=100, unit='%', of=None):
  """A mean over seeds and its standard error; a dash for none.

  Args:
    of: how many runs there are: where fewer have a value, their number is shown.
  """
  if not summary:
    return '–'
  decimals = 1 if scale == 100 else 2
  spread = '' if summary['stderr'] is None else '\xa0±\xa0' + mark(
      summary['stderr'], f'{scale * summary["stderr"]:.{decimals}f}')
  few = f'<small>{summary["count"]} of {of} seeds</small>' if of and summary['count'] < of else ''
  return mark(summary['mean'], f'{scale * summary["mean"]:.{decimals}f}') + f'{spread}{unit}{few}'


def wrap_figures(body):
  """Figures side by side where there is room."""
  return body and f'<div class="figures">{body}</div>'


def make_table(head, rows):
  """An HTML table that scrolls by itself. Cells are HTML, the first of each row is its header."""
  head = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
  body = ''.join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>'
                 for first, *rest in rows)
  return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
          '</div>')


# ---- Figures: SVG for the page; kept as figures/NAME.png and .csv where a folder is given ----


def draw(caption, ylabel, xlabel, lines, below=None, folder=None, legend_title='', marks='line'):
  """Lines, label -> (x, y) or (x, y, standard errors or None), and lambdas below them.

  Args:
    folder: also keeps it as figures/NAME.png there, and what it shows as figures/NAME.csv.
    marks: 'line', 'points' alone, or 'path', whose end has a ring.
  """
  from matplotlib import figure as figure_lib
  from matplotlib import ticker
  style, ramp = make_style(caption)
  by_step = xlabel == 'step' and not legend_title
  num_columns = 6 if by_step or marks != 'line' else 1
  # Inches of one line of the legend below another.
  legend = 0.2 * max(len(lines) - 3, 0) if num_columns == 1 else 0.0
  with style:
    figure = figure_lib.Figure(figsize=(5.2, (4.2 if below else 3.2) + legend),
                               layout='constrained')
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
        for label, points in shown.items() for point in zip(*points)], folder)


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


def draw_map(caption, ylabel, xlabel, rows, columns, values, folder=None, decimals=0):
  """Shares of 1 in %, a cell for each row and column; None is left empty.

  Shapes: values [rows][columns].
  Args:
    folder: as in `draw`.
  """
  from matplotlib import figure as figure_lib
  from matplotlib import patches
  style, _ = make_style(caption)
  with style:
    figure = figure_lib.Figure(figsize=(5.2, 1.1 + 0.3 * max(len(rows), 2)), layout='constrained')
    ax = figure.subplots()
    ax.grid(False)
    ax.spines[:].set_visible(False)
    size = 9 if len(columns) <= 10 else 90 / len(columns)
    cells = [(i, j, v) for i, row in enumerate(values) for j, v in enumerate(row) if v is not None]
    for i, j, value in cells:  # see-through, so that ink is legible on it on any page
      ax.add_patch(patches.Rectangle((j - .47, i - .45), .94, .9, linewidth=0, facecolor=_CELL,
                                     alpha=0.04 + 0.6 * min(max(value, 0), 1)))
      ax.text(j, i, f'{100 * value:.{decimals}f}', ha='center', va='center', fontsize=size)
    ax.set(xlim=(-.5, len(columns) - .5), ylim=(len(rows) - .5, -.5), ylabel=ylabel, xlabel=xlabel)
    ax.set_xticks(range(len(columns)), list(map(str, columns)), fontsize=size)
    ax.set_yticks(range(len(rows)), list(map(str, rows)), fontsize=9)
    ax.tick_params(length=0)
    return finish(figure, caption, ('row', 'column', 'value'), [
        (rows[i], columns[j], float(v)) for i, j, v in cells], folder)


def make_style(caption):
  """(a context to draw a figure in, its colours from 0 to 1, legible on light and on dark)."""
  import matplotlib
  from matplotlib import colors
  return (matplotlib.rc_context(_FIGURE_STYLE | {'svg.hashsalt': caption}),
          colors.LinearSegmentedColormap.from_list('ramp', _RAMP))


def finish(figure, caption, head, rows, folder=None):
  """A figure, drawn in `make_style`'s context, as HTML.

  Args:
    folder: as in `draw`; `head` and `rows` are its data.
  """
  out = io.StringIO()
  figure.savefig(out, format='svg', transparent=True,
                 metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
  if folder is not None:
    _keep_figure(folder, caption, figure, head, rows)
  svg = out.getvalue()
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg[svg.index('<svg'):]).replace('xlink:href', 'href')
  svg = re.sub(r'<g id="[^"]*"', '<g', svg).replace(_INK, 'currentColor')  # ids must be unique
  return f'<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _keep_figure(folder, caption, figure, head, rows):
  folder = epath.Path(folder) / 'figures'
  folder.mkdir(parents=True, exist_ok=True)
  name = '-'.join(re.findall(r'[a-z0-9]+', caption.partition(';')[0].lower()))
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=150, facecolor='white')
  (folder / f'{name}.png').write_bytes(picture.getvalue())
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([head, *rows])
  storage.write_text(folder / f'{name}.csv', text.getvalue())
