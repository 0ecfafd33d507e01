"""The tables of a sweep: made once from sweep.json's content, for its page and for sweep.md."""

import itertools

from rim_jax.report import control_results, pairwise
from rim_jax.report.tables import (
  MISSING,
  Cell,
  Column,
  Table,
  cell,
  clean,
  mean,
  name,
  number,
  points,
  stack,
  table,
)
from rim_jax.results import timings

SHOWN = ('valid_acc', 'final_acc', 'any_block_acc', 'majority_acc')  # of every run
MORE = ('integer_acc', 'negative_acc', 'non_integer_acc', 'changed_acc')  # of GSM-Hard
BY_NUMBER = ('pass_at', 'budget_acc', 'steps_acc')  # k, K, or T, as text -> accuracy, where told
MEASURES = ('valid_acc', 'final_acc')  # of effects: what chooses, and what is reported
_COLUMNS = (
    Column('on valid', 'chooses the checkpoint of a run, and the best of all'), Column('final'),
    Column('any block', 'upper bound: picks the right block by looking at the answer'),
    Column('majority of blocks'))


def tabulate_results(entries) -> Table | None:
  """The headline: a row a setting, its means over seeds, its time, its test against the best."""
  chosen = any(control_results.SELECTED in e for e in entries)
  by_probe = [Column('selected by a probe', control_results.SELECTED_BY)] * chosen
  rows = []
  for entry in entries:
    cells = [mean(entry.get(key)) for key in SHOWN]
    cells[1] = cells[1].style('strong')
    cells += [mean(entry.get(control_results.SELECTED), of=entry['num_done'])] * chosen
    tests = entry.get('against_best', {}).get('tests', ())
    rows.append([
        name(entry['name']), *cells, _count_seeds(entry),
        ', '.join(map(str, entry.get('steps', ()))), _show_first_token(entry),
        stack([_show_chance(t['p_value']) for t in tests] or [MISSING], long=False)])
  return table([
      '', *_COLUMNS, *by_probe, 'seeds done', 'updates', "ms to the answer's first token",
      ('against the best: p', 'McNemar, exact, a seed each, each test alone')], rows)


def _count_seeds(entry) -> Cell:
  """How many runs are done, and why others are not."""
  told = cell(f'{entry["num_done"]} of {entry["num_points"]}', long=True)
  if entry['num_done']:
    return told
  return told.note(f'dropped {clean(min(entry["dropped"].values()))}' if entry['dropped'] else
                   f'failed: {clean(min(entry["failed"].values()))}' if entry['failed'] else
                   'not done')


def _show_first_token(entry) -> Cell:
  """The mean time to the first token, and its ratio to direct answering's."""
  if 'ttft_ms' not in entry:
    return cell(timings.UNLIKE if 'measured_on' in entry else MISSING)
  told = mean(entry['ttft_ms'], 1, '')
  return told.note(number(entry['ttft_ratio'], f'{entry["ttft_ratio"]:.2f}'),
                   f' x direct, {entry["ttft_ratio_how"]}') if 'ttft_ratio' in entry else told


def _show_chance(value):
  # On one line, on a phone too.
  return number(value, pairwise.show_chance(value).replace(' ', '\xa0').replace('-', '\u2011'))


def tabulate_pairs(conclusion) -> Table | None:
  """Differences of any two settings that were compared, below the diagonal, and their tests."""
  names, cells = pairwise.arrange(conclusion)
  if not cells:
    return None
  rows = [[name(f'{i + 1}: {setting}'), *(
      _show_pair(cells.get((i, j))) for j in range(i))]
          for i, setting in enumerate(names)]
  return table(['', *map(str, range(1, len(names)))], rows, notes=[
      f'Any two, row less column: {pairwise.PAIRS_MEAN}. Bold: p below 0.05 on every seed that '
      'both have, in one direction.'])


def _show_pair(pair) -> Cell:
  if not pair:
    return cell(MISSING)
  values = [t['p_value_holm'] for t in pair['tests']]
  ways = {test['difference'] > 0 for test in pair['tests']}
  told = cell(points(pair['difference']['mean']))
  told = told.style('bold') if max(values) < 0.05 and len(ways) == 1 else told
  for i, value in enumerate(values):
    told = told.note('p ' if not i else '', _show_chance(value))
  return told


def tabulate_more(entries) -> Table | None:
  """What was measured of some runs only: GSM-Hard by kind of answer, pass@k, a number of blocks."""
  labels = {key: (key.removesuffix('_acc').replace('_', ' ') + ' answers' if key != 'changed_acc'
                  else 'changed questions') for key in MORE}
  found = {}  # entry -> label -> summary
  for entry in entries:
    mine = found[entry['name']] = {labels[k]: entry[k] for k in labels if k in entry}
    for key, label in zip(BY_NUMBER, ('pass@{}', 'K = {}', '{} steps')):
      mine |= {label.format(k): told for k, told in entry.get(key, {}).items()}
  head = list(dict.fromkeys(label for told in found.values() for label in told))
  return table(['', *head], [[name(setting), *(mean(told.get(label)) for label in head)]
                             for setting, told in found.items() if told])


def tabulate_effects(effects) -> Table | None:
  """Paired differences, a row a level."""
  return table(
      ['changed', ('pairs', 'of runs that differ in nothing else'),
       ('final, points', 'mean difference, its 95% interval'), 'on valid, points'],
      [[name(describe_change(e)), str(count_pairs(e)),
        *(_show_effect(e.get(m)) for m in reversed(MEASURES))] for e in effects],
      notes=["Student's t over the pairs, each interval alone: of twenty, one is expected to "
             'miss.'])


def describe_change(effect) -> str:
  return f"{effect['factor']}: {effect['level']} for {effect['reference']}"


def count_pairs(effect) -> int:
  return max((effect[m]['count'] for m in MEASURES if m in effect), default=0)


def _show_effect(effect) -> Cell:
  if not effect:
    return cell(MISSING)
  told = cell(points(effect['mean'])).style('strong')
  if not effect['interval']:
    return told + f' no interval: {effect["no_interval"]}'
  low, high = map(points, effect['interval'])
  return told + cell('\xa0[', low, ',\xa0', high, ']')


def tabulate_blocks(entries) -> Table | None:
  """Accuracy after each block, where there is more than one."""
  told = {e['name']: e['block_acc'] for e in entries if len(e.get('block_acc', ())) > 1}
  blocks = range(1, max(map(len, told.values()), default=0) + 1)
  return table(['', *(f'block {k}' for k in blocks)], [
      [name(setting), *(mean(accs[k - 1]) if k <= len(accs) else MISSING for k in blocks)]
      for setting, accs in told.items()])


def tabulate_times(entries) -> Table | None:
  """Times beside what they were measured on, a row a batch size."""
  rows = [[name(e['name']), number(row['batch']) if 'batch' in row else MISSING,
           *(_show_time(row, part) for part, _ in timings.PARTS),
           cell(clean(row['conditions']), long=True, wide=True)]
          for e in entries for row in timings.list_rows(e)]
  warning = 'not all measured alike; only those that were can be compared'
  notes = [timings.TIMES_MEAN, *[warning] * (len(list_machines(entries)) > 1)]
  head = ['', 'questions at once', *((label, 'ms, and x direct') for _, label in timings.PARTS),
          'measured on']
  return table(head, rows, notes=[f'{"; ".join(notes)}.'])


def list_machines(entries) -> list[str]:
  """What settings were timed on, each once."""
  return list(dict.fromkeys(m['machine'] for e in entries for m in e.get('measured_on', ())))


def _show_time(row, part) -> Cell:
  """A mean time, and its ratio to direct answering's."""
  if 'first_token_ms' not in row:
    return cell(timings.UNLIKE if part == 'first_token' else MISSING)
  told, ratio = mean(row.get(f'{part}_ms'), 1, ''), row.get(f'{part}_ratio')
  return told.note(mean(ratio, 1, ' x'), f', {ratio["how"]}' if 'how' in ratio else '') if (
      ratio) else told


def tabulate_runs(states) -> Table | None:
  """Where each run stands."""
  rows = []
  for state in states:
    accuracy = state.result and number(state.result.final_acc,
                                       f'{100 * state.result.final_acc:.1f}%')
    rows.append([name(state.point.name), state.status, accuracy or MISSING,
                 cell(clean(state.folder), long=True)])
  return table(['', 'state', 'final', 'where'], rows)


def list_doubts(entries, is_apart) -> list[str]:
  """Which order of settings by final accuracy the seeds do not support."""
  ranked = sorted((e for e in entries if e['num_done']), key=lambda e: -e['final_acc']['mean'])
  single = [e['name'] for e in ranked if e['final_acc']['stderr'] is None]
  doubts = [f'one seed does not support an order: {", ".join(single)}'] * (
      len(ranked) > 1 and bool(single))
  for better, worse in itertools.pairwise(ranked):
    a, b = better['final_acc'], worse['final_acc']
    if None not in (a['stderr'], b['stderr']) and not is_apart(a, b):
      doubts.append(f'{better["name"]} above {worse["name"]}: within two standard errors of the '
                    'difference; the seeds do not support this order')
  return doubts
