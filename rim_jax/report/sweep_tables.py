"""The tables of a sweep: made once from sweep.json's content, for its page and for sweep.md."""

from rim_jax.report import pairwise
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
from rim_jax.results import stats, timings
from rim_jax.results.settings import Conclusion, EffectResult, LatencyOverSeeds, SettingResult
from rim_jax.results.values import list_measures

UNLIKE = 'not all measured alike; only those that were can be compared'


def tabulate_results(entries: list[SettingResult]) -> Table:
  """The headline: a row a setting, its means over seeds, its time, its test against the best."""
  measures = [m for m in list_measures(SettingResult) if m.first
              and any(getattr(e, m.name) for e in entries)]
  rows = []
  for entry in entries:
    cells = [mean(getattr(entry, m.name), of=entry.num_done) for m in measures]
    tests = (entry.against_best or {}).get('tests', ())
    rows.append([
        name(entry.name), *(c.style('strong') if m.heads else c for c, m in zip(cells, measures)),
        _count_seeds(entry), ', '.join(map(str, entry.steps)), _show_first_token(entry),
        stack([_show_chance(t['p_value']) for t in tests] or [MISSING], long=False)])
  return table([
      '', *(Column(m.label, m.meaning) for m in measures), 'seeds done', 'updates',
      "ms to the answer's first token",
      ('against the best: p', 'McNemar, exact, a seed each, each test alone')], rows)


def _count_seeds(entry: SettingResult) -> Cell:
  """How many runs are done, and why others are not."""
  told = cell(f'{entry.num_done} of {entry.num_points}', long=True)
  if entry.num_done:
    return told
  return told.note(f'dropped {clean(min(entry.dropped.values()))}' if entry.dropped else
                   f'failed: {clean(min(entry.failed.values()))}' if entry.failed else
                   'not done')


def _show_first_token(entry: SettingResult) -> Cell:
  """The mean time to the first token, and its ratio to direct answering's."""
  if not entry.ttft_ms:
    return cell(timings.UNLIKE if entry.measured_on else MISSING)
  told = mean(entry.ttft_ms, 1, '')
  return told.note(number(entry.ttft_ratio, f'{entry.ttft_ratio:.2f}'),
                   ' x direct') if entry.ttft_ratio else told


def _show_chance(value):
  # On one line, on a phone too.
  return number(value, pairwise.show_chance(value).replace(' ', '\xa0').replace('-', '\u2011'))


def tabulate_pairs(conclusion: Conclusion) -> Table:
  """Differences of any two settings that were compared, below the diagonal, and their tests."""
  pairs = {(p['a'], p['b']): p for p in conclusion.pairs if p['tests']}
  names = [e.name for e in conclusion.entries if e.num_done]
  rows = [[name(f'{i}: {row}'), *(_show_pair(pairs.get((row, column))) for column in names[:i - 1])]
          for i, row in enumerate(names, 1)] if pairs else []
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


def tabulate_more(entries: list[SettingResult]) -> Table:
  """What was measured of some runs only: GSM-Hard by kind of answer, pass@k, a number of blocks."""
  measures = [m for m in list_measures(SettingResult) if not m.first]
  found = {entry.name: {  # entry -> label -> summary
      m.label.format(k): summary for m in measures if (given := getattr(entry, m.name))
      for k, summary in (given.items() if isinstance(given, dict) else [('', given)])}
           for entry in entries}
  head = list(dict.fromkeys(label for told in found.values() for label in told))
  return table(['', *head], [[name(setting), *(mean(told.get(label)) for label in head)]
                             for setting, told in found.items() if told])


def tabulate_effects(effects: list[EffectResult]) -> Table:
  """Paired differences, a row a level."""
  return table(
      ['changed', ('pairs', 'of runs that differ in nothing else'), 'seeds',
       ('final, points', 'mean difference, its 95% interval'), 'on valid, points'],
      [[name(f'{e.factor}: {e.level} for {e.reference}'),
        *(str(max(getattr(m, key) if m else 0 for m in (e.final_acc, e.valid_acc)))
          for key in ('count', 'num_seeds')),
        _show_effect(e.final_acc), _show_effect(e.valid_acc)] for e in effects],
      notes=["Student's t over the seeds, each interval alone: of twenty, one is expected to "
             'miss.'])


def _show_effect(effect: stats.Effect | None) -> Cell:
  if not effect:
    return cell(MISSING)
  told = cell(points(effect.mean)).style('strong')
  if not effect.interval:
    return told + f' no interval: {effect.no_interval}'
  low, high = map(points, effect.interval)
  return told + cell('\xa0[', low, ',\xa0', high, ']')


def tabulate_blocks(entries: list[SettingResult]) -> Table:
  """Accuracy after each block, where there is more than one."""
  told = {e.name: e.block_acc for e in entries if e.block_acc and len(e.block_acc) > 1}
  blocks = range(1, max(map(len, told.values()), default=0) + 1)
  return table(['', *(f'block {k}' for k in blocks)], [
      [name(setting), *(mean(accs[k - 1]) if k <= len(accs) else MISSING for k in blocks)]
      for setting, accs in told.items()])


def tabulate_times(entries: list[SettingResult]) -> Table:
  """Times beside what they were measured on, a row a batch size."""
  rows = [[name(e.name), number(means.batch),
           *(_show_time(means, part) for part, _ in timings.PARTS),
           cell(clean(timings.describe(means)), long=True, wide=True)]
          for e in entries for means in e.latency or ()]
  notes = [timings.TIMES_MEAN, *[UNLIKE] * (len(list_machines(entries)) > 1)]
  head = ['', 'questions at once', *((label, 'ms, and x direct') for _, label in timings.PARTS),
          'measured on']
  return table(head, rows, notes=[f'{"; ".join(notes)}.'])


def list_machines(entries: list[SettingResult]) -> list[str]:
  """What settings were timed on, each once."""
  return list(dict.fromkeys(m['machine'] for e in entries for m in e.measured_on))


def _show_time(means: LatencyOverSeeds, part: str) -> Cell:
  """A mean time, and its ratio to direct answering's."""
  told, ratio = mean(getattr(means, f'{part}_ms'), 1, ''), getattr(means, f'{part}_ratio')
  return told.note(mean(ratio, 1, ' x')) if ratio else told


def tabulate_runs(states) -> Table:
  """Where each run stands."""
  return table(['', 'state', 'final', 'where'], [
      [name(state.point.name), state.status,
       number(result.final_acc, f'{result.final_acc:.1%}') if result else MISSING,
       cell(clean(state.folder), long=True)]
      for state, result in ((state, state.result) for state in states)])
