"""What a person sees at the end: tables on the terminal, and WORKDIR/report.html.

Reads a run's files (config.json, metrics.jsonl, results.json, predictions/), never its model.
Text from data is shown as it is: never as markup, HTML or a terminal's control sequence.
Modules that bring JAX or matplotlib are imported where they are used.
"""

import csv
import html
import io
import json
import re
import shlex

from etils import epath
from rich import box, columns, table
from rich.console import Group
from rich.text import Text

from rim_jax import config as config_lib
from rim_jax import storage
from rim_jax.config import Config

_METHODS = {
    'rim': 'memory blocks after the question: stage 1, then stage 2',
    'rim_stage1': 'memory blocks after the question, each trained to predict the next step',
    'rim_stage2': 'memory blocks after the question, each trained to predict the answer',
    'pause': 'blocks after the question, trained on the answer only, with no stage 1 (a control)',
    'direct': 'the answer right after the question',
    'cot': 'the steps written out, then the answer (chain of thought)',
    'icot': 'trained on written steps that are taken away token by token; then the answer alone',
    'coconut': 'hidden states fed back as inputs in place of more and more written steps',
    'coconut_stage': 'hidden states fed back as inputs, one by one, in place of written steps'}
_MEASURES = (  # key in results.json, label, what it means
    ('method', 'method', ''),
    ('checkpoint', 'checkpoint', 'best: by accuracy on valid'),
    ('step', 'its training step', ''),
    ('n', 'questions', ''),
    ('num_blocks', 'memory blocks K', 'the same for every question'),
    ('final_acc', 'final accuracy', 'of the last answer read, +- one standard error'),
    ('majority_acc', 'majority of blocks', 'the answer that most blocks give'),
    ('any_block_acc', 'any block', 'upper bound: picks the right block by looking at the answer'),
    ('pass_at', 'pass@k', 'one of k answers is right that were drawn from the last block'),
    ('num_samples', 'drawn answers', 'of each question'),
    ('temperature', 'drawn at temperature', ''),
    ('budget_acc', 'accuracy with K blocks', 'the same model, its last answer'),
    ('integer_acc', 'whole answers', 'GSM-Hard, 0 or more'),
    ('num_integer', 'how many are whole', ''),
    ('negative_acc', 'negative answers', 'GSM-Hard, whole or not'),
    ('num_negative', 'how many are negative', ''),
    ('non_integer_acc', 'other answers', 'GSM-Hard, above 0 and not whole'),
    ('num_non_integer', 'how many are others', ''),
    ('changed_acc', 'changed questions', "GSM-Hard, those that are not GSM8K's word for word"),
    ('num_changed', 'how many are changed', ''),
    ('step_acc_gold_count', 'step accuracy', 'given the gold number of steps'),
    ('num_unfinished', 'unfinished answers', 'cut off at eval.max_new_tokens'),
    ('ttft_ms', 'time to first token', 'of the answer, after its chain where one is written'),
    ('ttft_conditions', 'measured on', ''))
_MAX_POINTS = 250  # of one curve
_INK = '#010203'  # stands for the page's text colour while a figure is drawn
_FIGURE_STYLE = dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color',
                               'ytick.color', 'grid.color'), _INK) | {
    'axes.grid': True, 'grid.alpha': 0.15, 'axes.spines.top': False, 'axes.spines.right': False,
    'legend.frameon': False, 'svg.fonttype': 'none'}
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
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0; max-width: 40rem; min-width: 0 } svg { width: 100%; height: auto }
svg text { font-family: system-ui, sans-serif !important }
.right, .wrong { display: inline-block; margin-right: .8rem; color: var(--right) }
.wrong { color: var(--wrong) }'''


def load_json(folder, name) -> dict:
  """The content of a JSON file; {} where it is absent or empty."""
  path = epath.Path(folder) / name
  there = path.exists() and path.read_text().strip()
  return storage.load_json(path, 'this file') if there else {}


def load_predictions(folder, name=None) -> list[dict]:
  """The predictions on a set, by default the first of results.json; [] where there are none."""
  name = name or next(iter(load_json(folder, 'results.json')), '')
  path = epath.Path(folder) / 'predictions' / f'{name}.jsonl'
  lines = path.read_text().split('\n') if path.exists() else []
  return [json.loads(line) for line in lines if line.strip()]


def _choose_examples(predictions, count):
  """As many right as wrong ones, as far as there are both."""
  right = [p for p in predictions if p['correct']]
  wrong = [p for p in predictions if not p['correct']]
  num_right = min(len(right), max(count - len(wrong), (count + 1) // 2))
  return right[:num_right] + wrong[:count - num_right]


def _clean(text, most=None, encoding='utf-8'):
  """Text on one line and at most so long; a model can decode to control characters."""
  text = ' '.join(str(text).split())
  text = text if most is None or len(text) <= most else text[:most - 1] + '…'
  text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
  return text.encode(encoding, 'replace').decode(encoding)


def _format(key, value):
  if isinstance(value, dict):
    return ', '.join(f'{k}: {_format(key, v)}' for k, v in value.items())
  if key == 'temperature':
    return f'{value:g}'
  if isinstance(value, float):
    return f'{value:,.2f} ms' if key == 'ttft_ms' else f'{100 * value:.1f}%'
  return f'{value:,}' if isinstance(value, int) else _clean(value)


def _by_block(values, num_blocks):
  """Block -> value; 0 stands for the question alone."""
  return dict(enumerate(values, 1 if num_blocks else 0))


def _name_block(block, method):
  if block:
    return 'after the thoughts' if method == 'coconut_stage' else f'after block {block}'
  return 'after the written steps' if method == 'cot' else 'after the question only'


def _get_measures(result):
  """The measures that a result holds; with one reading there is no choice among blocks."""
  idle = ('majority_acc', 'any_block_acc') if len(result['block_acc']) == 1 else ()
  return [m for m in _MEASURES if m[0] in result and m[0] not in idle]


def _make_grid(console, title, **settings):
  return table.Table(title=Text(title), box=box.SIMPLE, width=min(console.width, 100), **settings)


def show_results(console, folder, num_shown: int, name=None) -> None:
  """Shows the accuracies on a set, and `num_shown` of its questions with the answers read."""
  results = load_json(folder, 'results.json')
  name = name or next(iter(results), '')
  if name not in results:
    console.print(Text(f'{folder}: no results to show'))
    return
  result, method = results[name], results[name]['method']
  bar = '#' if console.options.ascii_only else '█'
  grid = _make_grid(console, f'Results on {name}', show_header=False)
  grid.add_column(overflow='fold')
  grid.add_column(justify='right', no_wrap=True)
  grid.add_column(overflow='fold', ratio=1, style='dim')
  for key, label, meaning in _get_measures(result):
    value, style = _format(key, result[key]), ''
    if key == 'final_acc':
      for block, acc in _by_block(result['block_acc'], result['num_blocks']).items():
        grid.add_row(_name_block(block, method), _format('', acc), bar * round(20 * acc))
      value, style = f'{value} +- {_format("", result["final_acc_stderr"])}', 'bold'
    meaning = _METHODS.get(method, '') if key == 'method' else meaning
    if key == 'ttft_conditions' or isinstance(result[key], dict):  # long: in the wide column
      value, meaning = '', value
    grid.add_row(label, Text(value, style=style), Text(f'({meaning})' if meaning else ''))
  console.print(grid)
  examples = _choose_examples(load_predictions(folder, name), num_shown)
  if examples:
    _show_examples(console, examples, result)
  console.print(Text(f'Rule: {result["answer_rule"]}.'))


def _show_examples(console, examples, result):
  right, wrong = ('ok', 'x') if console.options.ascii_only else ('✓', '✗')
  grid = _make_grid(console, f'Example questions ({right} right, {wrong} wrong)')
  grid.add_column('question', overflow='fold', ratio=2)
  grid.add_column('gold', overflow='fold', max_width=12)
  grid.add_column('answer after each block' if result['num_blocks'] else 'answer', ratio=3)

  def clean(text, most):
    return _clean(text, most, console.encoding)
  for p in examples:
    answers = _by_block(zip(p['block_predictions'], p['block_correct']), result['num_blocks'])
    cell = columns.Columns([
        Text(f'{f"{block}: " if block else ""}{right if ok else wrong} {clean(text, 16)}',
             style='green' if ok else 'red') for block, (text, ok) in answers.items()])
    if result['method'] == 'cot':
      cell = Group(cell, Text(clean(p['text'], 160), style='dim', overflow='fold'))
    grid.add_row(Text(clean(p['question'], 120)), Text(clean(p['answer'], 24)), cell)
  console.print(grid)


def show_answers(console, question: str, blocks, texts, config: Config) -> None:
  """Shows what was decoded for one question after each of `blocks`; the last is the answer."""
  from rim_jax import evaluate

  def show(label, text, style=''):
    text = _clean(text, None, console.encoding) or '(nothing)'
    console.print(Text.assemble((label, 'dim'), (text, style)))
  answers = [evaluate.parse_answer(text, config) for text in texts]
  show('question: ', question)
  for line in texts[-1].split('\n') if config.writes_steps else ():
    show('  written: ', line)
  for block, answer in zip(blocks, answers):
    show(f'  {_name_block(block, config.method)}: ', answer)
  show('answer: ', answers[-1], 'bold green')


def write_report(workdir, config: Config) -> epath.Path:
  """Writes WORKDIR/report.html, whole or not at all: one file that needs no other."""
  workdir = epath.Path(workdir)
  stages = [(name or config.method, stage, workdir / name if name else workdir)
            for name, stage in config_lib.make_stages(config)]
  results = {name: load_json(folder, 'results.json') for name, _, folder in stages}
  rules = {result['answer_rule'] for sets in results.values() for result in sets.values()}
  page = [f'<p>{_METHODS[config.method]}.</p>',
          section('Results', _make_headline(results)),
          *(f'<p><small>Rule: {escape(rule)}.</small></p>' for rule in sorted(rules))]
  for name, stage, folder in stages:
    page += [f'<h2>{name}</h2><p>{_METHODS[stage.method]}.</p>',
             section('Accuracy after each block', _make_accuracies(name, results[name], workdir)),
             section('Learning curves', _make_curves(name, stage, folder, workdir)),
             section('Examples', _make_examples(folder, results[name], config.eval.num_shown)),
             section('How to reproduce it', _make_card(folder))]
  return write_page(workdir / 'report.html',
                    f'rim_jax: {config.method} on {config.data.source}', page)


def write_page(path, title: str, parts) -> epath.Path:
  """A page of parts in HTML, whole or not at all, light and dark, for a phone too."""
  storage.write_text(path, '\n'.join([
      '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>{escape(title)}</title><style>{_CSS}</style></head><body><h1>{escape(title)}</h1>',
      *parts, '</body></html>\n']))
  return epath.Path(path)


def section(title, body):
  return f'<h3>{title}</h3>{body or "<p class=none>no data</p>"}'


def escape(text, most=None):
  return html.escape(_clean(text, most))


def _show(key, values):
  """A number as a person reads it, and exactly, as <data>; text as it is; or a dash."""
  value = values.get(key)
  if value is None or isinstance(value, str):
    return '–' if value is None else f'<div class="long">{escape(value)}</div>'
  if isinstance(value, dict):
    cells = '<br>'.join(f'{escape(k)}: {_show(k, value)}' for k in value)
    return f'<div class="long">{cells}</div>'
  return f'<data value="{value!r}">{_format(key, value)}</data>'


def make_table(head, rows):
  """An HTML table that scrolls by itself. Cells are HTML, the first of each row is its header."""
  head = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
  body = ''.join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>'
                 for first, *rest in rows)
  return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
          '</div>')


def _make_headline(results):
  """Every measure of every set of every stage."""
  sets = {f'{name}: {key}': r for name, sets in results.items() for key, r in sets.items()}
  there = {measure for result in sets.values() for measure in _get_measures(result)}
  rows = []
  for key, label, meaning in (m for m in _MEASURES if m in there):
    cells = [_show(key, result) for result in sets.values()]
    if key == 'final_acc':
      cells = [f'<strong>{cell}</strong> ± {_show("final_acc_stderr", result)}'
               for cell, result in zip(cells, sets.values())]
    rows.append([f'<div class="long"><b>{label}</b><small>{meaning}</small></div>', *cells])
  return sets and make_table(['', *map(escape, sets)], rows)


def _make_accuracies(name, sets, folder):
  """Accuracies by block as a table, and as a figure where there is more than one."""
  lines = {key: _by_block(r['block_acc'], r['num_blocks']) for key, r in sets.items()}
  lines |= {f'{key}, next step (given the gold number of steps)':
            _by_block(r['step_acc_by_block'], True)
            for key, r in sets.items() if 'step_acc_by_block' in r}
  blocks = sorted(set().union(*lines.values()))
  if not blocks:
    return ''
  method = next(iter(sets.values()))['method']
  body = make_table(['', *map(escape, lines)], [
      [_name_block(block, method), *(_show(block, values) for values in lines.values())]
      for block in blocks])
  if len(blocks) > 1:
    body += draw(f'{name}: accuracy after each block', 'accuracy, %', 'block', {
        key: (list(values), [100 * v for v in values.values()]) for key, values in lines.items()},
        folder=folder)
  return f'<div class="figures">{body}</div>'


def _make_curves(name, stage, folder, workdir):
  """Loss, lambda and accuracy of each block over the steps of a stage."""
  from rim_jax import metrics as metrics_lib
  metrics = metrics_lib.load_metrics(folder)
  losses = _get_series(metrics, 'train/nll_block_')
  accuracies = _get_series(metrics, 'valid/acc_block_', 100)
  body, caption, lambdas = '', f'{name}: training loss after each block', None
  if losses and stage.method == 'rim_stage1':
    caption += f'; below, its weight λ for a record of {max(losses)} steps'
    lambdas = _compute_lambdas(list(losses), metrics[-1]['step'], stage)
  if losses:
    body = draw(caption, 'loss, nats a token', 'step', losses, lambdas, folder=workdir)
  if accuracies:
    body += draw(f'{name}: accuracy on valid after each block', 'accuracy, %', 'step', accuracies,
                 folder=workdir)
  return body and f'<div class="figures">{body}</div>'


def _get_series(metrics, prefix, scale=1):
  """Block -> (steps, values); long series are thinned to means of neighbours."""
  series = {}
  for line in metrics:
    for key, value in line.items():
      if key.startswith(prefix) and value is not None:
        series.setdefault(int(key.removeprefix(prefix)), []).append((line['step'], scale * value))
  for block, points in series.items():
    size = len(points) // _MAX_POINTS + 1
    groups = [list(zip(*points[i:i + size])) for i in range(0, len(points), size)]
    series[block] = list(zip(*((sum(x) / len(x), sum(y) / len(y)) for x, y in groups)))
  return dict(sorted(series.items()))


def _compute_lambdas(blocks, num_steps, stage):
  """Block -> (steps, weights) in a record with the most blocks."""
  import numpy as np
  from rim_jax import curriculum
  shift = int(stage.layout.depth0_readout)  # as in training: (t, n) becomes (t + 1, n + 1)
  steps = np.linspace(0, num_steps, _MAX_POINTS)
  return {block: (steps, np.broadcast_to(curriculum.compute_lambda(
      block + shift, max(blocks) + shift, steps, num_steps, stage.curriculum), steps.shape))
          for block in blocks}


def _make_examples(folder, sets, num_shown):
  """Questions of the first set, with the answers read after each block."""
  rows = []
  for p in _choose_examples(load_predictions(folder), 2 * num_shown):
    result = next(iter(sets.values()))
    answers = ''.join(
        f'<span class="{"right" if ok else "wrong"}">{f"{block}: " if block else ""}'
        f'{"✓" if ok else "✗"} {escape(text, 24)}</span> ' for block, (text, ok) in _by_block(
            zip(p['block_predictions'], p['block_correct']), result['num_blocks']).items())
    if result['method'] == 'cot':
      answers += f'<pre>{"<br>".join(map(escape, p["text"].split(chr(10))))}</pre>'
    rows.append([f'<div class="long">{escape(p["question"])}</div>', escape(p['answer']),
                 f'<div class="long">{answers}</div>'])
  return rows and make_table(['question', 'gold', 'answers read (✓ right, ✗ wrong)'], rows)


def _make_card(folder):
  """The reproduction card: what ran, on what, and every setting."""
  card = load_json(folder, 'config.json')
  settings = config_lib.flatten(card.pop('config', {}))
  if 'command' in card:
    card['command'] = shlex.join(card['command'])

  def tabulate(flat):
    return make_table((), [[escape(key), f'<div class="long">{escape(value)}</div>']
                            for key, value in flat.items()])
  return card and (f'{tabulate(config_lib.flatten(card))}<details><summary>all {len(settings)} '
                   f'settings</summary>{tabulate(settings)}</details>')


def draw(caption, ylabel, xlabel, lines, below=None, folder=None, legend_title=''):
  """A figure as SVG for a page: label -> (x, y), and lambdas below them.

  Args:
    folder: also keeps it as figures/NAME.png there, and what it shows as figures/NAME.csv.
  """
  from matplotlib import figure as figure_lib, ticker
  style, ramp = make_style(caption)
  with style:
    by_step = xlabel == 'step' and not legend_title
    legend = 0.0 if by_step else 0.2 * max(len(lines) - 3, 0)  # inches of one line below another
    figure = figure_lib.Figure(figsize=(5.2, (4.2 if below else 3.2) + legend),
                               layout='constrained')
    axes = figure.subplots(2 if below else 1, sharex=True, squeeze=False,
                           height_ratios=(3, 1) if below else None)[:, 0]
    for ax, panel in zip(axes, (lines, below)):
      for i, (label, (x, y)) in enumerate(panel.items()):
        ax.plot(x, y, label=str(label), color=ramp(i / max(len(panel) - 1, 1)),
                linestyle=('-', '--', '-.', ':')[i % 4], marker='o' if len(x) < 20 else None,
                markersize=4)
    axes[0].set(ylabel=ylabel, ylim=(-3, 103) if '%' in ylabel else None)
    if below:
      axes[1].set(ylabel='λ', ylim=(-.05, 1.05))
    axes[-1].set_xlabel(xlabel)
    if xlabel.startswith('ms'):
      axes[-1].set_xlim(left=0)  # ratios are what is read off
    axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(8, integer=xlabel in ('step', 'block')))
    if len(lines) > 1:
      figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center',
                    ncols=6 if by_step else 1, title='block' if by_step else legend_title or None)
    shown = {**lines, **{f'λ {label}': points for label, points in (below or {}).items()}}
    return finish(figure, caption, ('line', 'x', 'y'), [
        (label, float(a), float(b)) for label, (x, y) in shown.items() for a, b in zip(x, y)],
        folder)


def make_style(caption):
  """(a context to draw a figure in, the colours of its lines from 0 to 1)."""
  import matplotlib
  from matplotlib import colors
  # Legible on light and on dark, in order, and told apart by line style too.
  ramp = colors.LinearSegmentedColormap.from_list('ramp', ('#2f81f7', '#a86cb8', '#e86a17'))
  return matplotlib.rc_context(_FIGURE_STYLE | {'svg.hashsalt': caption}), ramp


def finish(figure, caption, head, rows, folder=None):
  """A figure, drawn in `make_style`'s context, as SVG for a page.

  Args:
    head, rows: what it shows; `folder` keeps it as `draw` does.
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


def _keep_figure(folder, caption, figure, head, table_rows):
  folder = epath.Path(folder) / 'figures'
  folder.mkdir(parents=True, exist_ok=True)
  name = '-'.join(re.findall(r'[a-z0-9]+', caption.partition(';')[0].lower()))
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=150, facecolor='white')
  (folder / f'{name}.png').write_bytes(picture.getvalue())
  text = io.StringIO()
  rows = csv.writer(text, lineterminator='\n')
  rows.writerow(head)
  rows.writerows(table_rows)
  storage.write_text(folder / f'{name}.csv', text.getvalue())
