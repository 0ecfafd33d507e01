"""What a person sees at the end: tables on the terminal, and WORKDIR/report.html.

Reads a run's files (config.json, metrics.jsonl, results.json, predictions/, and what `findings`
reads), never its model.
Text from data is shown as it is: never as markup, HTML or a terminal's control sequence.
Modules that bring JAX or matplotlib are imported where they are used.
"""


from etils import epath
from rich.text import Text

from rim_jax import config as config_lib
from rim_jax import terminal
from rim_jax.config import Config, methods
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError
from rim_jax.report import control_results, control_sections, paper
from rim_jax.report.figures import draw
from rim_jax.report.page import (
  Blocks,
  Heading,
  Section,
  describe_trained,
  details,
  figures,
  load_json,
  mark_answers,
  paragraph,
  section,
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
  stack,
  table,
  to_rich,
)
from rim_jax.results import judge, timings
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
  examples = _choose_examples(load_predictions(folder, name), num_shown)
  for shown in (_tabulate_result(name, result), _tabulate_examples(examples, result)):
    if shown:
      console.print(to_rich(shown, console))
  console.print(Text(f'Rule: {result["answer_rule"]}.'))


def _tabulate_result(name, result) -> Table | None:
  """Every measure of a set with what it means, and a bar for each block."""
  facts, rows = methods.get_facts(result['method']), []
  for key, label, meaning in _get_measures(result):
    value = cell(_format(key, result[key]))
    if key == 'final_acc':
      rows += [(_name_block(block, facts), _format('', acc), '█' * round(20 * acc))
               for block, acc in _by_block(result['block_acc'], result['num_blocks']).items()]
      value = cell(f'{value.text} +- {_format("", result["final_acc_stderr"])}').style('strong')
    meaning = facts.label if key == 'method' else meaning
    if key in _LONG or isinstance(result[key], (dict, list)):  # long: in the wide column
      value, meaning = cell(''), value.text
    rows.append((label, value, f'({meaning})' if meaning else ''))
  return table([Column(), Column(right=True), Column(dim=True, ratio=1)], rows,
               f'Results on {name}')


def _tabulate_examples(examples, result) -> Table | None:
  head = [Column('question', ratio=2), Column('gold', most=12),
          Column('answer after each block' if result['num_blocks'] else 'answer', ratio=3)]
  rows = [[clean(p['question'], 120), clean(p['answer'], 24), _show_read(p, result, 160)]
          for p in examples]
  return table(head, rows, 'Example questions (✓ right, ✗ wrong)')


def _show_read(prediction, result, most=None) -> Cell:
  """The answers read after each block and, where steps are written, what was written."""
  told = mark_answers(prediction, result)
  if methods.get_facts(result['method']).writes_steps:
    written = prediction['text'] if most is None else clean(prediction['text'], most)
    for line in written.split('\n'):
      told = told.note(clean(line))
  return told


def show_answers(console, question: str, blocks, texts, config: Config) -> None:
  """Shows what was decoded for one question after each of `blocks`; the last is the answer."""
  def show(label, text, style=''):
    text = clean(text, None, console.encoding) or '(nothing)'
    console.print(Text.assemble((label, 'dim'), (text, style)))
  answers = [judge.parse_answer(text, config) for text in texts]
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
               section('Learning curves', _make_curves(name, stage, folder, results[name])),
               section('Examples', [_make_examples(folder, results[name], config.eval.num_shown)]),
               *(paper.make_target(stage, results[name]) if is_last else ()),
               section('How to reproduce it', _make_card(folder))]
  return write_page(workdir / 'report.html',
                    f'rim_jax: {config.method} on {config.data.source}', blocks)


def _show(key, value) -> Cell:
  """A number as a person reads it, and exactly; text as it is; or a dash."""
  if value is None or isinstance(value, str):
    return cell(MISSING) if value is None else cell(clean(value), long=True)
  if isinstance(value, dict):
    return stack([cell(f'{clean(k)}: ', _show(key, v)) for k, v in value.items()])
  if isinstance(value, list):
    return cell(join(map(number, value), ', '), long=True)
  return cell(number(value, _format(key, value)))


def _make_headline(results) -> Table | None:
  """Every measure of every set of every stage."""
  sets = {f'{name}: {key}': r for name, sets in results.items() for key, r in sets.items()}
  there = {measure for result in sets.values() for measure in _get_measures(result)}
  rows = []
  for key, label, meaning in (m for m in _MEASURES if m in there):
    cells = [_show(key, result.get(key)) for result in sets.values()]
    if key == 'final_acc':
      cells = [c.style('strong') + ' ± ' + _show('', result['final_acc_stderr'])
               for c, result in zip(cells, sets.values())]
    head = cell(Part(label, style='bold'), long=True)
    rows.append([head.note(meaning) if meaning else head, *cells])
  return table(['', *map(clean, sets)], rows) if sets else None


def _make_accuracies(name, sets) -> Blocks:
  """Accuracies by block as a table, and as a figure where there is more than one."""
  lines = {key: _by_block(r['block_acc'], r['num_blocks']) for key, r in sets.items()}
  lines |= {f'{key}, next step (given the gold number of steps)':
            _by_block(r['step_acc_by_block'], True)
            for key, r in sets.items() if 'step_acc_by_block' in r}
  blocks = sorted(set().union(*lines.values()))
  if not blocks:
    return []
  facts = methods.get_facts(next(iter(sets.values()))['method'])
  shown = table(['', *map(clean, lines)], [
      [_name_block(block, facts), *(_show('', values.get(block)) for values in lines.values())]
      for block in blocks])
  return [shown, *figures([draw(f'{name}: accuracy after each block', 'accuracy, %', 'block', {
      key: (list(values), [100 * v for v in values.values()]) for key, values in lines.items()})]
          if len(blocks) > 1 else [])]


def _make_latency(results) -> Blocks:
  """How long each set's answer took, as a figure and with all that it depends on."""
  lines, rows = {}, []
  for name, sets in results.items():
    for key, result in sets.items():
      for entry in result.get('latency', ()):
        label = f'{name}: {key}, batch {entry["batch"]}'
        medians = [entry[part]['median'] for part in ('first_token_ms', 'full_ms')]
        lines[label] = (medians, [100 * result['final_acc']] * 2)
        rows.append([cell(clean(label), long=True).note(clean(timings.describe(entry))),
                     *(_show_time(entry, part) for part, _ in timings.PARTS)])
  if not rows:
    return []
  head = ['', *((label, 'ms, and x direct: median (quartiles)') for _, label in timings.PARTS)]
  return [*figures([draw("accuracy against time: from the answer's first token to its end",
                         'accuracy, %', 'ms, warm, median', lines,
                         legend_title='set and questions at once')]),
          table(head, rows, notes=[f'{timings.X_DIRECT}.'])]


def _show_time(entry, part) -> Cell:
  def show(summary):
    return (number(summary[k], f'{summary[k]:.2f}') for k in ('median', 'q1', 'q3'))
  middle, low, high = show(entry[f'{part}_ms'])
  told, ratio = cell(middle).note('(', low, ' to ', high, ')'), entry.get(f'{part}_ratio')
  if ratio is None:  # as in older results
    return told
  middle, low, high = show(ratio)
  return told.note(middle, '\xa0x\xa0direct (', low, ' to ', high, ')')


def _make_questions(name, stage, folder, sets, is_last) -> list[Section]:
  """What can be asked of blocks; an earlier stage is shown what is there, and asked nothing."""
  budgets = _make_budgets(name, stage, sets)
  asked = is_last and stage.facts.has_memory
  parts = [section('Accuracy with more and fewer blocks', budgets,
                   'not asked yet: --mode=eval --config.eval.budget_blocks=-1')] if (
                       asked or budgets) else []
  return parts + (control_sections.make_parts(name, folder) if asked else [])


def _make_budgets(name, stage, sets) -> Blocks:
  """The last answer's accuracy with K blocks, from one trained model."""
  lines = {key: (list(map(int, result['budget_acc'])),
                 [100 * acc for acc in result['budget_acc'].values()])
           for key, result in sets.items() if 'budget_acc' in result}
  trained = describe_trained(
      stage, [k for key in lines for k in sets[key].get('beyond_positions', ())])
  return figures([draw(f'{name}: accuracy with K blocks', 'accuracy, %', f'blocks K, {trained}',
                       lines)] if lines else [])


def _make_curves(name, stage, folder, sets) -> Blocks:
  """Loss, lambda and accuracy of each block over the steps of a stage."""
  metrics = run_folder.RunFolder(folder).load_metrics()
  losses = _get_series(metrics, 'train/nll_block_')
  accuracies = _get_series(metrics, 'valid/acc_block_', 100)
  drawn, caption, lambdas = [], f'{name}: training loss after each block', None
  num_steps = losses and stage.facts.blocks_are_steps and _find_num_steps(folder, sets, metrics)
  if num_steps:
    caption += f'; below, its weight λ for a record of {max(losses)} steps'
    lambdas = _compute_lambdas(list(losses), num_steps, stage)
  if losses:
    drawn.append(draw(caption, 'loss, nats a token', 'step', losses, lambdas))
  if accuracies:
    drawn.append(draw(f'{name}: accuracy on valid after each block', 'accuracy, %', 'step',
                      accuracies))
  return figures(drawn)


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


def _make_examples(folder, sets, num_shown) -> Table | None:
  """Questions of the first set, with the answers read after each block."""
  chosen = _choose_examples(load_predictions(folder), 2 * num_shown)
  return table(['question', 'gold', 'answers read (✓ right, ✗ wrong)'], [
      [cell(clean(p['question']), long=True), clean(p['answer']),
       _show_read(p, next(iter(sets.values())))] for p in chosen])


def _make_card(folder) -> Blocks:
  """The reproduction card: what ran, on what, and every setting."""
  card = load_json(folder, 'config.json')
  settings = config_lib.flatten(card.pop('config', {}))
  if 'command' in card:
    card['command'] = terminal.join(card['command'])
  return [tabulate_flat(config_lib.flatten(card)), *details(
      f'all {len(settings)} settings', [tabulate_flat(settings)])] if card else []


def tabulate_flat(flat: dict) -> Table | None:
  """Keys and values, as they are."""
  return table((), [[clean(key), cell(clean(value), long=True)] for key, value in flat.items()])
