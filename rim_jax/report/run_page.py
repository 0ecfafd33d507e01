"""What a person sees at the end: tables on the terminal, and WORKDIR/report.html.

Reads a run's files (config.json, metrics.jsonl, results.json, predictions/, and what `findings`
reads), never its model.
Text from data is shown as it is: never as markup, HTML or a terminal's control sequence.
Modules that bring JAX or matplotlib are imported where they are used.
"""

import shlex

from etils import epath
from rich import box, columns, table
from rich.console import Group
from rich.text import Text

from rim_jax import config as config_lib
from rim_jax.config import Config, methods
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError
from rim_jax.report import control_results, control_sections, paper
from rim_jax.report.page import (
  clean,
  describe_trained,
  draw,
  escape,
  list_answers,
  load_json,
  make_table,
  mark,
  mark_answers,
  section,
  wrap_figures,
  write_page,
)
from rim_jax.results import timings
from rim_jax.runtime import run_folder

_MEASURES = (  # key in results.json, label, what it means
    ('method', 'method', ''),
    ('checkpoint', 'checkpoint', 'best: by accuracy on valid; splits: by the questions themselves'),
    ('chosen_on', 'chosen on', ''),
    ('step', 'its training step', ''),
    ('n', 'questions', ''),
    ('num_blocks', 'memory blocks K', 'the same for every question'),
    ('num_thoughts', 'thoughts', 'hidden states fed back before the answer, for every question'),
    ('final_acc', 'final accuracy', 'of the last answer read, +- one standard error'),
    ('majority_acc', 'majority of blocks', 'the answer that most blocks give'),
    ('any_block_acc', 'any block', 'upper bound: picks the right block by looking at the answer'),
    (control_results.SELECTED, 'selected by a probe', control_results.SELECTED_BY),
    ('pass_at', 'pass@k', 'one of k answers is right that were drawn from the last block'),
    ('num_samples', 'drawn answers', 'of each question'),
    ('temperature', 'drawn at temperature', ''),
    ('budget_acc', 'accuracy with K blocks', 'the same model, its last answer'),
    ('beyond_positions', 'K beyond the trained positions',
     'read at rows of the position table that no training example reached'),
    ('steps_acc', 'by number of steps', 'of questions whose answer takes so many'),
    ('num_by_steps', 'how many have them', ''),
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
    ('ttft_ratio', 'x direct answering',
     'that time, timed side by side in one process; 1 where this is its own program'),
    ('ttft_conditions', 'measured on', ''))
_LONG = ('ttft_conditions', 'chosen_on')  # sentences
_MAX_POINTS = 250  # of one curve
_UNITS = {'ttft_ms': '{:,.2f} ms', 'ttft_ratio': '{:.2f}'}


def load_predictions(folder, name=None) -> list[dict]:
  """The predictions on a set, by default the first of results.json.

  [] where there should be none: no such set, or one whose result is of several checkpoints.

  Raises: UserError where they are missing, damaged, or not as many as results.json says.
  """
  results = load_json(folder, 'results.json')
  name = name or next(iter(results), '')
  if name not in results or results[name].get('checkpoint') == 'splits':
    return []
  path = epath.Path(folder) / 'predictions' / f'{name}.jsonl'
  predictions, count = run_folder.load_predictions(path), results[name]['n']
  if len(predictions) != count:
    raise UserError(f'{path}: has {len(predictions)} predictions, and results.json is of {count}; '
                    'evaluate the run with --mode=eval')
  return predictions


def _choose_examples(predictions, count):
  """As many right as wrong ones, as far as there are both."""
  right = [p for p in predictions if p['correct']]
  wrong = [p for p in predictions if not p['correct']]
  num_right = min(len(right), max(count - len(wrong), (count + 1) // 2))
  return right[:num_right] + wrong[:count - num_right]


def _format(key, value):
  if isinstance(value, dict):
    return ', '.join(f'{k}: {_format(key, v)}' for k, v in value.items())
  if isinstance(value, list):
    return ', '.join(_format('', v) for v in value)
  if key == 'temperature':
    return f'{value:g}'
  if isinstance(value, float):
    return _UNITS[key].format(value) if key in _UNITS else f'{100 * value:.1f}%'
  return f'{value:,}' if isinstance(value, int) else clean(value)


def _by_block(values, num_blocks):
  """Block -> value; 0 stands for the question alone."""
  return dict(enumerate(values, 1 if num_blocks else 0))


def _name_block(block: int, facts: methods.Facts) -> str:
  if block:
    return 'after the thoughts' if facts.has_thoughts else f'after block {block}'
  return 'after the written steps' if facts.writes_steps else 'after the question only'


def _get_measures(result):
  """The measures that a result holds; with one reading there is no choice among blocks.

  Thoughts stand in one block, whose number would say nothing.
  """
  idle = ('majority_acc', 'any_block_acc') if len(result['block_acc']) == 1 else ()
  idle += ('num_blocks',) if 'num_thoughts' in result else ()
  return [m for m in _MEASURES if m[0] in result and m[0] not in idle]


def _make_grid(console, title, **settings):
  return table.Table(title=Text(title), box=box.SIMPLE, width=min(console.width, 100), **settings)


def _load_results(folder) -> dict:
  """results.json, with what a probe selects beside each set that controls.json is of."""
  return {name: result | control_results.get_selected(
      control_results.load_asked(folder, name, result)[0], result)
          for name, result in load_json(folder, 'results.json').items()}


def show_results(console, folder, num_shown: int, name=None) -> None:
  """Shows the accuracies on a set, and `num_shown` of its questions with the answers read."""
  results = _load_results(folder)
  name = name or next(iter(results), '')
  if name not in results:
    console.print(Text(f'{folder}: no results to show'))
    return
  result = results[name]
  facts = methods.get_facts(result['method'])
  bar = '#' if console.options.ascii_only else '█'
  grid = _make_grid(console, f'Results on {name}', show_header=False)
  grid.add_column(overflow='fold')
  grid.add_column(justify='right', no_wrap=True)
  grid.add_column(overflow='fold', ratio=1, style='dim')
  for key, label, meaning in _get_measures(result):
    value, style = _format(key, result[key]), ''
    if key == 'final_acc':
      for block, acc in _by_block(result['block_acc'], result['num_blocks']).items():
        grid.add_row(_name_block(block, facts), _format('', acc), bar * round(20 * acc))
      value, style = f'{value} +- {_format("", result["final_acc_stderr"])}', 'bold'
    meaning = facts.label if key == 'method' else meaning
    if key in _LONG or isinstance(result[key], (dict, list)):  # long: in the wide column
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

  def fit(text, most):
    return clean(text, most, console.encoding)
  for p in examples:
    answers = list_answers(p, result)
    cell = columns.Columns([
        Text(f'{f"{block}: " if block else ""}{right if ok else wrong} {fit(text, 16)}',
             style='green' if ok else 'red') for block, (text, ok) in answers.items()])
    if methods.get_facts(result['method']).writes_steps:
      cell = Group(cell, Text(fit(p['text'], 160), style='dim', overflow='fold'))
    grid.add_row(Text(fit(p['question'], 120)), Text(fit(p['answer'], 24)), cell)
  console.print(grid)


def show_answers(console, question: str, blocks, texts, config: Config) -> None:
  """Shows what was decoded for one question after each of `blocks`; the last is the answer."""
  from rim_jax.evaluation import scores

  def show(label, text, style=''):
    text = clean(text, None, console.encoding) or '(nothing)'
    console.print(Text.assemble((label, 'dim'), (text, style)))
  answers = [scores.parse_answer(text, config) for text in texts]
  show('question: ', question)
  for line in texts[-1].split('\n') if config.writes_steps else ():
    show('  written: ', line)
  for block, answer in zip(blocks, answers):
    show(f'  {_name_block(block, config.facts)}: ', answer)
  show('answer: ', answers[-1], 'bold green')


def write_report(workdir, config: Config) -> epath.Path:
  """Writes WORKDIR/report.html, whole or not at all: one file that needs no other."""
  workdir = epath.Path(workdir)
  stages = [(name or config.method, stage, workdir / name if name else workdir)
            for name, stage in stages_lib.make_stages(config)]
  results = {name: _load_results(folder) for name, _, folder in stages}
  rules = {result['answer_rule'] for sets in results.values() for result in sets.values()}
  page = [f'<p>{config.facts.label}.</p>',
          section('Results', _make_headline(results)),
          *(f'<p><small>Rule: {escape(rule)}.</small></p>' for rule in sorted(rules)),
          section('Accuracy against latency', _make_latency(results, workdir),
                  'not measured: --mode=eval, with --config.eval.num_latency_runs above 0')]
  for name, stage, folder in stages:
    page += [f'<h2>{name}</h2><p>{stage.facts.label}.</p>',
             section('Accuracy after each block', _make_accuracies(name, results[name], workdir)),
             *_make_questions(name, stage, folder, results[name], workdir, stages[-1][0]),
             section('Learning curves', _make_curves(name, stage, folder, results[name], workdir)),
             section('Examples', _make_examples(folder, results[name], config.eval.num_shown)),
             *(paper.make_target(stage, results[name]) if name == stages[-1][0] else ()),
             section('How to reproduce it', _make_card(folder))]
  return write_page(workdir / 'report.html',
                    f'rim_jax: {config.method} on {config.data.source}', page)


def _show(key, values):
  """A number as a person reads it, and exactly, as <data>; text as it is; or a dash."""
  value = values.get(key)
  if value is None or isinstance(value, str):
    return '–' if value is None else f'<div class="long">{escape(value)}</div>'
  if isinstance(value, dict):
    cells = '<br>'.join(f'{escape(k)}: {_show(k, value)}' for k in value)
    return f'<div class="long">{cells}</div>'
  if isinstance(value, list):
    return f'<div class="long">{", ".join(map(mark, value))}</div>'
  return mark(value, _format(key, value))


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
  facts = methods.get_facts(next(iter(sets.values()))['method'])
  body = make_table(['', *map(escape, lines)], [
      [_name_block(block, facts), *(_show(block, values) for values in lines.values())]
      for block in blocks])
  if len(blocks) > 1:
    body += draw(f'{name}: accuracy after each block', 'accuracy, %', 'block', {
        key: (list(values), [100 * v for v in values.values()]) for key, values in lines.items()},
        folder=folder)
  return wrap_figures(body)


def _make_latency(results, workdir):
  """How long each set's answer took, as a figure and with all that it depends on."""
  lines, rows = {}, []
  for name, sets in results.items():
    for key, result in sets.items():
      for entry in result.get('latency', ()):
        label = f'{name}: {key}, batch {entry["batch"]}'
        medians = [entry[part]['median'] for part in ('first_token_ms', 'full_ms')]
        lines[label] = (medians, [100 * result['final_acc']] * 2)
        told = escape(timings.describe(entry))
        rows.append([f'<div class="long">{escape(label)}<small>{told}</small></div>',
                     *(_show_time(entry, part) for part, _ in timings.PARTS)])
  return rows and wrap_figures(draw(
      "accuracy against time: from the answer's first token to its end", 'accuracy, %',
      'ms, warm, median', lines, folder=workdir, legend_title='set and questions at once')
  ) + make_table(['', *(f'{label}<small>ms, and x direct: median (quartiles)</small>'
                        for _, label in timings.PARTS)], rows) + (
      f'<p><small>{timings.X_DIRECT}.</small></p>')


def _show_time(entry, part):
  def show(summary, unit=''):
    low, middle, high = (mark(summary[k], f'{summary[k]:.2f}') for k in ('q1', 'median', 'q3'))
    return f'{middle}{unit}<small>({low} to {high})</small>'
  ratio = entry.get(f'{part}_ratio')  # not in older results
  return show(entry[f'{part}_ms']) + (show(ratio, '\xa0x\xa0direct') if ratio else '')


def _make_questions(name, stage, folder, sets, workdir, last):
  """What can be asked of blocks; an earlier stage is shown what is there, and asked nothing."""
  budgets = _make_budgets(name, stage, sets, workdir)
  asked = name == last and stage.facts.has_memory
  parts = [section('Accuracy with more and fewer blocks', budgets,
                   'not asked yet: --mode=eval --config.eval.budget_blocks=-1')] if (
                       asked or budgets) else []
  return parts + (control_sections.make_parts(name, folder, workdir) if asked else [])


def _make_budgets(name, stage, sets, workdir):
  """The last answer's accuracy with K blocks, from one trained model."""
  lines = {key: (list(map(int, result['budget_acc'])),
                 [100 * acc for acc in result['budget_acc'].values()])
           for key, result in sets.items() if 'budget_acc' in result}
  trained = describe_trained(
      stage, [k for key in lines for k in sets[key].get('beyond_positions', ())])
  return lines and wrap_figures(draw(f'{name}: accuracy with K blocks', 'accuracy, %',
                                     f'blocks K, {trained}', lines, folder=workdir))


def _make_curves(name, stage, folder, sets, workdir):
  """Loss, lambda and accuracy of each block over the steps of a stage."""
  metrics = run_folder.RunFolder(folder).load_metrics()
  losses = _get_series(metrics, 'train/nll_block_')
  accuracies = _get_series(metrics, 'valid/acc_block_', 100)
  body, caption, lambdas = '', f'{name}: training loss after each block', None
  num_steps = losses and stage.facts.blocks_are_steps and _find_num_steps(folder, sets, metrics)
  if num_steps:
    caption += f'; below, its weight λ for a record of {max(losses)} steps'
    lambdas = _compute_lambdas(list(losses), num_steps, stage)
  if losses:
    body = draw(caption, 'loss, nats a token', 'step', losses, lambdas, folder=workdir)
  if accuracies:
    body += draw(f'{name}: accuracy on valid after each block', 'accuracy, %', 'step', accuracies,
                 folder=workdir)
  return wrap_figures(body)


def _find_num_steps(folder, sets, metrics):
  """S of a stage, which may be unfinished: as its newest checkpoint says.

  Where none is left of a run that has results, the last step that it told; else None.
  """
  from rim_jax.training import checkpoint as checkpoint_lib
  saved = checkpoint_lib.get_folder(folder)
  steps = checkpoint_lib.list_whole(saved)
  if steps:
    return checkpoint_lib.load_checkpoint(saved, steps[0]).card['num_steps']
  return metrics[-1]['step'] if sets else None


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

  from rim_jax.methods import weigh_record
  steps = np.linspace(0, num_steps, _MAX_POINTS)
  return {block: (steps, weights) for block, weights in zip(
      blocks, weigh_record(stage, blocks, steps, num_steps).T)}


def _make_examples(folder, sets, num_shown):
  """Questions of the first set, with the answers read after each block."""
  rows = []
  for p in _choose_examples(load_predictions(folder), 2 * num_shown):
    result = next(iter(sets.values()))
    answers = mark_answers(p, result)
    if methods.get_facts(result['method']).writes_steps:
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
