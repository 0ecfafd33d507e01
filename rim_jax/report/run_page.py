"""What a person sees at the end: tables on the terminal, and WORKDIR/report.html.

Reads what a run has left, never its model.
Text from data is shown as it is: never as markup, HTML or a terminal's control sequence.
"""

import dataclasses
import re

from etils import epath
from rich.text import Text

from rim_jax import config as config_lib
from rim_jax import terminal
from rim_jax.config import Config, methods
from rim_jax.config import stages as stages_lib
from rim_jax.report import control_results, control_sections, paper
from rim_jax.report.figures import draw
from rim_jax.report.page import (
  Blocks,
  Heading,
  Section,
  describe_trained,
  figures,
  items,
  mark_answers,
  optional,
  paragraph,
  section,
  show,
  write_page,
)
from rim_jax.report.tables import (
  MISSING,
  Cell,
  Column,
  Part,
  Table,
  cell,
  clean,
  join,
  number,
  share,
  stack,
  table,
)
from rim_jax.results import judge, stats, timings
from rim_jax.results.values import (
  EvalResult,
  LatencyResult,
  Prediction,
  list_measures,
)
from rim_jax.runtime import card as card_lib
from rim_jax.runtime.run_folder import RunFolder

_MAX_POINTS = 250  # of one curve
_EXAMPLES = 'Examples: as many right (✓) as wrong (✗) ones, as far as there are both'


def load_predictions(folder, name: str) -> list[Prediction]:
  """The predictions on a set.

  [] where there should be none: no such set, or one whose result is of several checkpoints.

  Raises: UserError where they are missing, damaged, or not as many as results.json says.
  """
  folder = RunFolder(folder)
  results = folder.load_results()
  if name not in results or results[name].checkpoint == 'splits':
    return []
  return folder.load_predictions(name)


def _choose_examples(predictions, count):
  """As many right as wrong ones, as far as there are both."""
  right = [p for p in predictions if p.correct]
  wrong = [p for p in predictions if not p.correct]
  num_right = min(len(right), max(count - len(wrong), (count + 1) // 2))
  return right[:num_right] + wrong[:count - num_right]


def _by_block(values, num_blocks):
  """Block -> value; 0 stands for the question alone."""
  return dict(enumerate(values, 1 if num_blocks else 0))


def _name_block(block: int, facts: methods.Facts) -> str:
  if block:
    return 'after the thoughts' if facts.has_thoughts else f'after block {block}'
  return 'after the written steps' if facts.writes_steps else 'after the question only'


def _load_results(folder: RunFolder, first: str) -> dict[str, EvalResult]:
  """results.json, one set first, with what a probe selects beside each that controls.json is of."""
  results = folder.load_results()
  return {name: dataclasses.replace(results[name], selected_acc=control_results.get_selected(
      control_results.load_asked(folder, name, results[name])[0], results[name]))
          for name in sorted(results, key=lambda name: name != first)}


def _get_facts(result: EvalResult) -> methods.Facts:
  return methods.get_facts(result.method or '')


def show_results(console, folder, num_shown: int, name: str) -> None:
  """Shows the accuracies on a set, and `num_shown` of its questions with the answers read."""
  results = _load_results(RunFolder(folder), name)
  if name not in results:
    console.print(Text(f'{folder}: no results on {name} to show'))
    return
  result = results[name]
  examples = _choose_examples(load_predictions(folder, name), num_shown)
  show(console, [_tabulate_result(name, result),
                 *(t for field in _VARIED for t in _tabulate_varied(field, result)),
                 _tabulate_examples(examples, result), paragraph(f'Rule: {result.answer_rule}.')])


def _tabulate_result(name, result: EvalResult) -> Table:
  """Every measure of a set with what it means, and a bar for each block."""
  facts, rows = _get_facts(result), []
  for measure in result.measures:
    found = getattr(result, measure.name)
    value = cell(_show(found, measure.form).text)
    if measure.heads:
      rows += [(_name_block(block, facts), _show(acc), '█' * round(20 * acc))
               for block, acc in _by_block(result.block_acc, result.num_blocks).items()]
      value = _add_error(value, ' +- ', result).style('strong')
    meaning = facts.label if measure.name == 'method' else _describe(measure, [result])
    if measure.long or isinstance(found, (dict, list)):  # in the wide column
      value, meaning = cell(''), value.text
    rows.append((measure.label, value, f'({meaning})' if meaning else ''))
  return table([Column(), Column(right=True), Column(dim=True, ratio=1)], rows,
               f'Results on {name}')


def _tabulate_examples(examples, result: EvalResult) -> Table:
  head = [Column('question', ratio=2), Column('gold', most=12),
          Column('answer after each block' if result.num_blocks else 'answer', ratio=3)]
  rows = [[clean(p.question, 120), clean(p.answer, 24), _show_read(p, result, 160)]
          for p in examples]
  return table(head, rows, _EXAMPLES)


def _show_read(prediction: Prediction, result: EvalResult, most=None) -> Cell:
  """The answers read after each block and, where steps are written, what was written."""
  told = mark_answers(prediction, result)
  if _get_facts(result).writes_steps:
    written = prediction.text or ''
    for line in (written if most is None else clean(written, most)).split('\n'):
      told = told.note(clean(line))
  return told


def show_answers(console, question: str, blocks, texts, config: Config) -> None:
  """Shows what was decoded for one question after each of `blocks`; the last is the answer."""
  def tell(label, text, style=''):
    text = clean(text, None, console.encoding) or '(nothing)'
    # A program that reads this gets each line whole.
    console.print(Text.assemble((label, 'dim'), (text, style)), soft_wrap=not console.is_terminal)
  answers = [judge.parse_answer(text, config) for text in texts]
  tell('question: ', question)
  for line in texts[-1].split('\n') if config.writes_steps else ():
    tell('  written: ', line)
  suffix = config.layout.answer_suffix
  told = [answer or (f'{text} (unparsed)' if text.strip() and suffix not in text else '')
          for answer, text in zip(answers, texts)]
  for block, answer in zip(blocks, told):
    tell(f'  {_name_block(block, config.facts)}: ', answer)
  tell('answer: ', told[-1], 'bold green' if answers[-1] else 'bold red')


def write_report(workdir, config: Config) -> epath.Path:
  """Writes WORKDIR/report.html, whole or not at all: one file that needs no other."""
  workdir = epath.Path(workdir)
  stages = [(name or config.method, stage, RunFolder(workdir / name))
            for name, stage in stages_lib.make_stages(config)]
  results = {name: _load_results(folder, stage.eval_set) for name, stage, folder in stages}
  rules = {result.answer_rule or '' for sets in results.values() for result in sets.values()}
  blocks = [paragraph(f'{config.facts.label}.'),
            section('Results', [_make_headline(results)]),
            *(paragraph(f'Rule: {clean(rule)}.', small=True) for rule in sorted(rules)),
            section('Accuracy against latency', _make_latency(results),
                    'not measured: --mode=eval, with --config.eval.num_latency_runs above 0')]
  for name, stage, folder in stages:
    is_last = name == stages[-1][0]
    blocks += [Heading(name), paragraph(f'{stage.facts.label}.'),
               section('Accuracy after each block', _make_accuracies(name, results[name])),
               *_make_questions(name, stage, folder, results[name], is_last),
               section('Learning curves', _make_curves(name, stage, folder)),
               section('Examples', [_make_examples(folder, results[name], config.eval.num_shown)]),
               *(paper.make_target(stage, results[name]) if is_last else ()),
               section('How to reproduce it', _make_card(folder))]
  return write_page(workdir / 'report.html',
                    f'rim_jax: {config.method} on {config.data.source}', blocks)


def _show(value, form: str = '') -> Cell:
  """A number as a person reads it, and exactly; text as it is; or a dash."""
  if value is None or isinstance(value, str):
    return cell(MISSING) if value is None else cell(clean(value), long=True)
  if isinstance(value, dict):
    return stack([cell(f'{clean(k)}: ', _show(v, form)) for k, v in value.items()])
  if isinstance(value, list):
    return cell(join(map(number, value), ', '), long=True)
  shown = (form or ('{:.1%}' if isinstance(value, float) else '{:,}')).format(value)
  return cell(number(value, shown))


def _is_bounded(result: EvalResult) -> bool:
  """Whether all or none are right: then the standard error is 0 and tells nothing."""
  return result.final_acc in (0, 1) and bool(result.n)


def _describe(measure, results) -> str:
  """What a measure means, of the standard error and of bounds only where they are shown."""
  bounded = [_is_bounded(result) for result in results]
  meaning = measure.meaning.removesuffix(', +- one standard error') if all(
      bounded) else measure.meaning
  return meaning + ('; in brackets: 95% sure' if measure.heads and any(bounded) else '')


def _add_error(accuracy: Cell, sign: str, result: EvalResult) -> Cell:
  """A final accuracy with its standard error, or with its bound where all or none are right.

  The bound is that of a binomial, one-sided.
  """
  if not _is_bounded(result):
    return accuracy + sign + _show(result.final_acc_stderr)
  least = 0.05 ** (1 / (result.n or 1))
  bound = f'at most {1 - least:.1%}' if result.final_acc == 0 else f'at least {least:.1%}'
  return accuracy + f' ({bound})'  # short: the column of numbers is never broken


def _make_headline(results) -> Table:
  """Every measure of every set of every stage."""
  sets = {f'{name}: {key}': r for name, sets in results.items() for key, r in sets.items()}
  there = {measure for result in sets.values() for measure in result.measures}
  rows = []
  for measure in (m for m in list_measures(EvalResult) if m in there):
    cells = [_show(getattr(result, measure.name), measure.form) for result in sets.values()]
    if measure.heads:
      cells = [_add_error(c.style('strong'), ' ± ', result)
               for c, result in zip(cells, sets.values())]
    head = cell(Part(measure.label, style='bold'), long=True)
    meaning = _describe(measure, sets.values())
    rows.append([head.note(meaning) if meaning else head, *cells])
  return table(['', *map(clean, sets)], rows)


def _make_accuracies(name, sets: dict[str, EvalResult]) -> Blocks:
  """Accuracies by block as a table, and as a figure where there is more than one."""
  lines = {key: _by_block(r.block_acc, r.num_blocks) for key, r in sets.items()}
  lines |= {f'{key}, next step (given the gold number of steps)':
            _by_block(r.step_acc_by_block, True)
            for key, r in sets.items() if r.step_acc_by_block}
  blocks = sorted(set().union(*lines.values()))
  if not blocks:
    return []
  facts = _get_facts(next(iter(sets.values())))
  shown = table(['', *map(clean, lines)], [
      [_name_block(block, facts), *(_show(values.get(block)) for values in lines.values())]
      for block in blocks])
  return [shown, *figures([draw(f'{name}: accuracy after each block', 'accuracy, %', 'block', {
      key: (list(values), [100 * v for v in values.values()]) for key, values in lines.items()})]
          if len(blocks) > 1 else [])]


def _make_latency(results) -> Blocks:
  """How long each set's answer took, as a figure and with all that it depends on."""
  timed = [(f'{name}: {key}, batch {entry.batch}', 100 * result.final_acc, entry)
           for name, sets in results.items() for key, result in sets.items()
           for entry in result.latency or ()]
  lines = {label: ([entry.first_token_ms.median, entry.full_ms.median], [acc, acc])
           for label, acc, entry in timed}
  rows = [[cell(clean(label), long=True).note(clean(timings.describe(entry))),
           *(_show_time(entry, part) for part, _ in timings.PARTS)] for label, _, entry in timed]
  head = ['', *((label, 'ms, and x direct: median (quartiles)') for _, label in timings.PARTS)]
  return [*figures([draw("accuracy against time: from the answer's first token to its end",
                         'accuracy, %', 'ms, warm, median', lines,
                         legend_title='set and questions at once')]),
          table(head, rows, notes=[f'{timings.X_DIRECT}.'])]


def _show_time(entry: LatencyResult, part: str) -> Cell:
  time, ratio = getattr(entry, f'{part}_ms'), getattr(entry, f'{part}_ratio')
  middle, low, high, *ratios = (number(x, f'{x:.2f}') for found in (time, ratio) if found
                                for x in (found.median, found.q1, found.q3))
  told = cell(middle).note('(', low, ' to ', high, ')')
  if not ratios:  # as in older results
    return told
  middle, low, high = ratios
  return told.note(middle, '\xa0x\xa0direct (', low, ' to ', high, ')')


def _make_questions(name, stage, folder, sets, is_last) -> list[Section]:
  """What can be asked of blocks; an earlier stage is shown what is there, and asked nothing."""
  budgets = _make_budgets(name, stage, sets)
  parts = [section('Accuracy with more and fewer blocks', budgets,
                   'not asked yet: --mode=eval --config.eval.budget_blocks=-1')] if (
                       budgets or (is_last and stage.facts.has_memory)) else []
  controls = control_sections.make_parts(name, folder) if (
      is_last and stage.facts.has_blocks) else []
  return [*parts,
          *optional('Accuracy and time with more and fewer passes',
                    _make_varied('passes', name, sets)),
          *optional('Accuracy with more and fewer tokens in a block',
                    _make_varied('tokens', name, sets)),
          *controls]


def _make_budgets(name, stage, sets: dict[str, EvalResult]) -> Blocks:
  """The last answer's accuracy with K blocks, from one trained model."""
  lines = {key: (list(map(int, budget)), [100 * acc for acc in budget.values()])
           for key, result in sets.items() if (budget := result.budget_acc)}
  trained = describe_trained(
      stage, [k for key in lines for k in sets[key].beyond_positions or ()])
  return figures([draw(f'{name}: accuracy with K blocks', 'accuracy, %', f'blocks K, {trained}',
                       lines)])


# What else of a trained model may be varied beside K: the title, and heads of the first column and
# of the last.
_VARIED = {
    'passes': ('accuracy with R passes over K blocks', 'passes R', 'ms to the first token'),
    'tokens': ('accuracy with K blocks of M tokens', 'tokens M', 'positions')}


def _list_varied(field: str, result: EvalResult) -> list[tuple[int, dict[str, float], dict]]:
  """(value, accuracy by K, the last column's cell by K) for each value of a key of _VARIED."""
  if field == 'passes':
    return [(p.num_passes, p.acc, {k: number(time.median, f'{time.median:,.2f}')
                                   for k, time in (p.first_token_ms or {}).items()})
            for p in result.passes or ()]
  return [(t.block_tokens, t.acc, {k: 'not trained' if int(k) in (t.beyond_positions or ())
                                   else 'trained' for k in t.acc}) for t in result.tokens or ()]


def _tabulate_varied(field: str, result: EvalResult) -> list[Table]:
  title, first, last = _VARIED[field]
  rows = [[str(value), k, share(acc), told.get(k, MISSING)]
          for value, accs, told in _list_varied(field, result) for k, acc in accs.items()]
  return [table([first, 'blocks K', '% right', last], rows, title)] if rows else []


def _make_varied(field: str, name, sets: dict[str, EvalResult]) -> Blocks:
  """Of each set a figure of accuracies by K, if there is more than one K, and their table."""
  (title, first, _), blocks = _VARIED[field], []
  for key, result in sets.items():
    lines = {f'{first[-1]} = {value}': (list(map(int, accs)), [100 * a for a in accs.values()])
             for value, accs, _ in _list_varied(field, result)}
    if any(len(ks) > 1 for ks, _ in lines.values()):
      blocks += figures([draw(f'{name}, {key}: {title}', 'accuracy, %', 'blocks K', lines)])
    blocks += _tabulate_varied(field, result)
  return blocks


def _make_curves(name, stage, folder) -> Blocks:
  """Loss, lambda and accuracy of each block over the steps of a stage."""
  metrics = folder.load_metrics()
  losses = _get_series(metrics, 'train/nll_block_')
  accuracies = _get_series(metrics, 'valid/acc_block_', 100)
  # Older runs do not tell it; where blocks are not steps it is the same all the time.
  lambdas = _get_series(metrics, 'train/weight_block_') if stage.facts.blocks_are_steps else {}
  caption = f'{name}: training loss after each block' + '; below, its weight λ' * bool(lambdas)
  return figures([
      draw(caption, 'loss, nats a token', 'step', losses, lambdas),
      draw(f'{name}: loss on valid after each block', 'loss, nats a token', 'step',
           _get_series(metrics, 'valid/nll_block_')),
      draw(f'{name}: accuracy on valid after each block', 'accuracy, %', 'step', accuracies)])


def _get_series(metrics, prefix, scale=1):
  """Block -> (steps, values); long series are thinned to means of neighbours."""
  series = stats.group(
      (int(found[1]), (line['step'], scale * value)) for line in metrics
      for key, value in line.items() if value is not None
      and (found := re.fullmatch(prefix + '([0-9]{1,9})', key)))
  for block, points in series.items():
    size = len(points) // _MAX_POINTS + 1
    groups = [list(zip(*points[i:i + size])) for i in range(0, len(points), size)]
    series[block] = list(zip(*((sum(x) / len(x), sum(y) / len(y)) for x, y in groups)))
  return dict(sorted(series.items()))


def _make_examples(folder, sets, num_shown) -> Table:
  """Questions of the first set, with the answers read after each block."""
  rows = [[cell(clean(p.question), long=True), clean(p.answer), _show_read(p, result)]
          for name, result in [*sets.items()][:1]
          for p in _choose_examples(load_predictions(folder, name), 2 * num_shown)]
  return table(['question', 'gold', 'answers read'], rows, _EXAMPLES)


def _make_card(folder) -> Blocks:
  """The reproduction card: what ran, on what, and every setting."""
  card = card_lib.load_whole(folder.path) if folder.card.exists() else {}
  settings = config_lib.flatten(card.pop('config', {}))
  if 'command' in card:
    program, *words = card['command']
    card['command'] = terminal.join([  # a module's own path is no program that a shell runs
        *(['python', '-m', 'rim_jax.main'] if program.endswith('main.py') else [program]), *words])
  return [tabulate_flat(config_lib.flatten(card)), *optional(
      f'all {len(settings)} settings', [tabulate_flat(settings)], folded=True),
          *items(folder.list_damaged() + folder.list_unsealed())] if card else []


def tabulate_flat(flat: dict) -> Table:
  """Keys and values, as they are."""
  return table((), [[clean(key), cell(clean(value), long=True)] for key, value in flat.items()])
