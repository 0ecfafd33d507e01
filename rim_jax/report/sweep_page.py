"""The page of a sweep: what its runs say together, read from what each has left.

Reads files (sweep.json's entries, each run's results, metrics, controls and card), never a model.
"""

import itertools

from rim_jax import config as config_lib
from rim_jax.config import stages as stages_lib
from rim_jax.report import (
  control_results,
  control_sections,
  disagreements,
  page,
  pairwise,
  paper,
  sweep_figures,
  sweep_results,
)
from rim_jax.results import timings, values
from rim_jax.runtime import run_folder

_HEAD = ('', 'on valid<small>chooses the checkpoint of a run, and the best of all</small>', 'final',
         'any block<small>upper bound: picks the right block by looking at the answer</small>',
         'majority of blocks', 'seeds done', 'updates', "ms to the answer's first token",
         'against the best: p<small>McNemar, exact, a seed each, each test alone</small>')

_show = page.show_mean
_MANY = 8  # notes that are shown at once
_MOST_LINES = 8  # in one figure


def write_summary(workdir, title: str, conclusion, states):
  """Writes WORKDIR/report.html with figures/ beside it.

  Args:
    conclusion: what sweep.json holds; `states` the sweep's points.
  """
  entries = conclusion['entries']
  finished = [e for e in entries if e['num_done']]
  done, which = _choose_drawn(finished)
  by_name = {s.point.name: s for s in states}
  firsts = {_name(e['points'][0]): by_name[e['points'][0]] for e in done}
  parts = [f'<p>{page.escape(sweep_results.describe_best(conclusion["best"]))}</p>',
           page.section('Results', _make_headline(entries)),
           _list(conclusion['warnings']) + _make_notes(entries),
           page.section('Any two', _make_pairs(conclusion),
                        pairwise.describe_unpaired(conclusion)
                        or 'no two settings have answers to the same questions by the same seed'),
           *paper.make_targets(
               (e['name'], (run := by_name[e['points'][0]]).point.config, run.last[0].eval_set,
                e['final_acc']) for e in finished),
           *([page.section('More measures', more)] if (more := _make_more(finished)) else []),
           page.section('What each factor does', _make_effects(conclusion['effects'])
                          + _draw_factors(states, workdir)),
           page.section('Accuracy after each block', _make_blocks(
               finished, done, which, workdir)),
           *_make_by_number(done, which, by_name, workdir),
           page.section('Accuracy against latency', _make_latency(
               finished, done, which, workdir)),
           page.section('Learning', _draw_learning(
               done, which, states, workdir)),
           page.section('Where they differ, by example' + which,
                        disagreements.make_examples(firsts)),
           page.section('Does the memory do the work?', _make_controls(finished, states)),
           *([page.section('What block states hold', held)] if (
               held := control_sections.make_probes_over_seeds(finished, workdir)) else []),
           page.section('Runs', _make_runs(states)),
           page.section('How to reproduce it', _make_card(states))]
  return page.write_page(workdir / 'report.html', title, parts)


def _choose_drawn(done):
  """(entries that one figure can tell apart, which those are): all, or the best by valid."""
  if len(done) <= _MOST_LINES:
    return done, ''
  ranked = sorted(done, key=lambda e: -e.get('valid_acc', {'mean': -1})['mean'])[:_MOST_LINES]
  return [e for e in done if e in ranked], f'; the best {_MOST_LINES} of {len(done)} by valid'


def _make_headline(entries):
  rows, chosen = [], any(control_results.SELECTED in e for e in entries)
  by_probe = f'selected by a probe<small>{control_results.SELECTED_BY}</small>'
  head = [*_HEAD[:5], *[by_probe] * chosen,
          *_HEAD[5:]]
  for entry in entries:
    cells = [_show(entry.get(key)) for key in sweep_results.SHOWN]
    cells += [_show(entry.get(control_results.SELECTED), of=entry['num_done'])] * chosen
    tests = entry.get('against_best', {}).get('tests', ())
    rows.append([
        _name(entry['name']), cells[0], f'<strong>{cells[1]}</strong>', *cells[2:],
        f'{entry["num_done"]} of {entry["num_points"]}',
        ', '.join(map(str, entry.get('steps', ()))),
        _show_time(entry),
        '<br>'.join(_show_chance(t['p_value']) for t in tests) or '–'])
  return page.make_table(head, rows)


def _make_more(entries):
  """What was measured of some runs only: GSM-Hard by kind of answer, pass@k, a number of blocks."""
  labels = {key: (key.removesuffix('_acc').replace('_', ' ') + ' answers' if key != 'changed_acc'
                  else 'changed questions') for key in sweep_results.MORE}
  found = {}  # entry -> label -> summary
  for entry in entries:
    mine = found[entry['name']] = {labels[k]: entry[k] for k in labels if k in entry}
    for key, label in zip(sweep_results.BY_NUMBER, ('pass@{}', 'K = {}', '{} steps')):
      mine |= {label.format(k): told for k, told in entry.get(key, {}).items()}
  head = list(dict.fromkeys(label for told in found.values() for label in told))
  return head and page.make_table(['', *head], [
      [_name(name), *(_show(told.get(label)) for label in head)]
      for name, told in found.items() if told])


def _show_time(entry):
  """The mean time to the first token, and below it its ratio to direct answering's."""
  if 'ttft_ms' not in entry:
    return timings.UNLIKE if 'measured_on' in entry else '–'
  ratio = 'ttft_ratio' in entry and page.mark(entry['ttft_ratio'], f'{entry["ttft_ratio"]:.2f}')
  return _show(entry['ttft_ms'], 1, '') + (
      f'<small>{ratio} x direct, {entry["ttft_ratio_how"]}</small>' if ratio else '')


def _make_pairs(conclusion):
  """Differences of any two settings that were compared, below the diagonal, and their tests."""
  names, cells = pairwise.arrange(conclusion)
  rows = [[_name(f'{i + 1}: {name}'), *(_show_pair(cells.get((i, j))) for j in range(i))]
          for i, name in enumerate(names)]
  reasons = dict.fromkeys(f'{p["a"]} and {p["b"]}, {seed}: not compared, {why}'
                          for p in conclusion['pairs'] for seed, why in p['not_compared'].items())
  table = (page.make_table(['', *map(str, range(1, len(names)))], rows)
           + f'<p><small>Row less column: {page.escape(pairwise.PAIRS_MEAN)}. Bold: p below '
           '0.05 on every seed that both have, in one direction.</small></p>')
  return table * bool(cells) + _list(reasons)


def _show_pair(pair):
  if not pair:
    return '–'
  mean = page.mark(pair['difference']['mean'], f'{100 * pair["difference"]["mean"]:+.1f}')
  values = [t['p_value_holm'] for t in pair['tests']]
  ways = {test['difference'] > 0 for test in pair['tests']}
  tag = 'b' if max(values) < 0.05 and len(ways) == 1 else 'span'
  return f'<{tag}>{mean}</{tag}><small>{"<br>".join(map(_show_chance, values))}</small>'


def _show_chance(value):
  text = page.escape(pairwise.show_chance(value))
  return page.mark(value, text.replace(' ', '\xa0').replace('-', '\u2011'))  # one line on a phone


def _name(text):
  """A row's name, which may break at its commas and, where it must, after an equals sign."""
  text = page.escape(text).replace(',', ',<wbr>').replace('=', '=<wbr>')
  return f'<div class="long"><b>{text}</b></div>'


def _make_notes(entries):
  """What the table cannot say: what failed or was dropped, and which order seeds do not support."""
  events = [f'{name}: failed, {error}' for e in entries for name, error in e['failed'].items()]
  events += [f'{name}: dropped {why}' for e in entries for name, why in e['dropped'].items()]
  ranked = sorted((e for e in entries if e['num_done']), key=lambda e: -e['final_acc']['mean'])
  if len(ranked) > pairwise.MOST_PAIRED:  # else the table of pairs has them
    events += [f'{e["name"]}: not compared with the best, {told}' for e in ranked
               for told in e.get('against_best', {}).get('not_compared', {}).values()]
  single = [e['name'] for e in ranked if e['final_acc']['stderr'] is None]
  doubts = [f'one seed does not support an order: {", ".join(single)}'] * (
      len(ranked) > 1 and bool(single))
  for better, worse in itertools.pairwise(ranked):
    a, b = better['final_acc'], worse['final_acc']
    if None not in (a['stderr'], b['stderr']) and not sweep_results.is_apart(a, b):
      doubts.append(f'{better["name"]} above {worse["name"]}: within two standard errors of the '
                    'difference; the seeds do not support this order')
  body = _list(doubts)
  if len(doubts) > _MANY:
    body = (f'<details><summary>{len(doubts)} neighbours by final accuracy whose order the seeds '
            f'do not support</summary>{body}</details>')
  return _list(events) + body


def _list(notes):
  items = ''.join(f'<li>{page.escape(note)}</li>' for note in notes)
  return items and f'<ul>{items}</ul>'


def _make_effects(effects):
  """Paired differences, a row a level."""
  rows = [[_name(sweep_results.describe_change(e)), sweep_results.count_pairs(e),
           *(_show_effect(e.get(m)) for m in reversed(sweep_results.MEASURES))] for e in effects]
  head = ('', 'pairs<small>of runs that differ in nothing else</small>',
          'final, points<small>mean difference, its 95% interval</small>', 'on valid, points')
  return page.make_table(head, rows) + (
      '<p><small>Student\'s t over the pairs, each interval alone: of twenty, one is expected to '
      'miss.</small></p>') if rows else ''


def _show_effect(effect):
  if not effect:
    return '–'
  mean = page.mark(effect['mean'], f'{100 * effect["mean"]:+.1f}')
  if not effect['interval']:
    why = page.escape(effect['no_interval'])
    return f'<strong>{mean}</strong> <small>no interval: {why}</small>'
  low, high = (page.mark(x, f'{100 * x:+.1f}') for x in effect['interval'])
  return f'<strong>{mean}</strong>\xa0[{low},\xa0{high}]'


def _draw_factors(states, workdir):
  """Every point over its factors, and each two factors that were crossed."""
  levels = sweep_results.list_levels([s.point for s in states])
  rows = [(s.point.factors, s.result.final_acc) for s in states if s.result]
  body = sweep_figures.draw_parallel(rows, levels, 'accuracy', workdir)
  for first, second in sweep_figures.list_grids(rows, levels):
    body += sweep_figures.draw_heat_map(rows, levels, first, second, 'accuracy', workdir)
  return page.wrap_figures(body)


def _make_blocks(entries, drawn, which, workdir):
  """Accuracies after each block, where there is more than one: all in a table, `drawn` as lines."""
  told = {e['name']: e['block_acc'] for e in entries if len(e.get('block_acc', ())) > 1}
  if not told:
    return ''
  blocks = range(1, max(map(len, told.values())) + 1)
  lines = {e['name']: (list(blocks)[:len(accs)], *(
      [None if a[part] is None else 100 * a[part] for a in accs] for part in ('mean', 'stderr')))
           for e in drawn if (accs := told.get(e['name']))}
  return page.make_table(['', *(f'block {k}' for k in blocks)], [
      [_name(name), *(_show(accs[k - 1]) if k <= len(accs) else '–' for k in blocks)]
      for name, accs in told.items()]) + page.wrap_figures(lines and page.draw(
          f'accuracy after each block, mean over seeds{which}; bars: one standard error',
          'accuracy, %', 'block', lines, folder=workdir, legend_title='run'))


def _make_by_number(entries, which, states, workdir) -> list[str]:
  """Accuracies with K blocks, and of k answers drawn, where some were asked for."""
  told = {e['name']: page.describe_trained(states[e['points'][0]].last[0], [
      k for point in e['points'] for k in states[point].result.beyond_positions or ()])
          for e in entries if 'budget_acc' in e}
  alike = set(told.values()) if len(set(told.values())) == 1 else ()
  budgets = _draw_by_number(
      entries, 'budget_acc', f'accuracy with K blocks, mean over seeds{which}',
      ', '.join(['blocks K', *alike]), workdir)
  drawn = _draw_by_number(entries, 'pass_at', f'pass@k, mean over seeds{which}',
                          'answers drawn, k', workdir)
  notes = [] if alike else [f'{name}: {how}' for name, how in told.items()]
  return [page.section(title, body) for title, body in (
      ('Accuracy with more and fewer blocks', budgets + _list(notes)),
      ('One of k answers is right', drawn)) if body]


def _draw_by_number(entries, key, caption, xlabel, workdir):
  lines = {e['name']: (sorted(map(int, e[key])), [
      100 * e[key][k]['mean'] for k in sorted(e[key], key=int)]) for e in entries if key in e}
  return page.wrap_figures(page.draw(caption, 'accuracy, %', xlabel, lines, folder=workdir,
                                     legend_title='run') if lines else '')


def _make_latency(entries, drawn, which, workdir):
  """Times beside what they were measured on, a row a batch size, and their figure."""
  rows = [[_name(e['name']), page.mark(row['batch']) if 'batch' in row else '–',
           *(_show_part(row, part) for part, _ in timings.PARTS),
           f'<div class="long wide">{page.escape(row["conditions"])}</div>']
          for e in entries for row in timings.list_rows(e)]
  if not rows:
    return ''
  lines = {e['name']: _list_points(e) for e in drawn if 'ttft_ms' in e}
  machines = {m['machine'] for e in entries for m in e.get('measured_on', ())}
  warning = 'not all measured alike; only those that were can be compared' * (len(machines) > 1)
  figure = page.draw(
      "accuracy against time, from the answer's first token to its end; "
      f'{warning or machines.pop()}{which}', 'accuracy, %', 'ms, warm', lines, folder=workdir,
      legend_title='run') if lines else ''
  notes = '; '.join(filter(None, (timings.TIMES_MEAN, warning)))
  head = (f'{label}<small>ms, and x direct</small>' for _, label in timings.PARTS)
  return (page.wrap_figures(figure)
          + page.make_table(['', 'questions at once', *head, 'measured on'], rows)
          + f'<p><small>{page.escape(notes)}.</small></p>')


def _list_points(entry):
  """Mean times to the answer's first token and, where it is known, to its end; and accuracies."""
  full = next(iter(entry.get('latency', ())), {}).get('full_ms')
  times = [entry['ttft_ms']['mean'], *([full['mean']] if full else ())]
  return times, [100 * entry['final_acc']['mean']] * len(times)


def _show_part(row, part):
  """A mean time, and below it its ratio to direct answering's."""
  if 'first_token_ms' not in row:
    return timings.UNLIKE if part == 'first_token' else '–'
  ratio = row.get(f'{part}_ratio')
  how = f', {ratio["how"]}' if ratio and 'how' in ratio else ''
  return _show(row.get(f'{part}_ms'), 1, '') + (
      f'<small>{_show(ratio, 1, " x")}{how}</small>' if ratio else '')


def _draw_learning(entries, which, states, workdir):
  """Accuracy on valid over the updates of all stages, of each entry's first run."""
  by_name, lines = {s.point.name: s for s in states}, {}
  for entry in entries:
    state, points, before = by_name[entry['points'][0]], [], 0
    for name, _ in stages_lib.make_stages(state.point.config):
      folder = run_folder.RunFolder(state.folder / name)
      points += [(before + step, 100 * acc) for step, acc in folder.load_valid_accs().items()]
      before += folder.count_steps()
    if points:
      lines[state.point.name] = tuple(zip(*points))
  return page.wrap_figures(lines and page.draw(
      f'accuracy on valid while learning, one seed each{which}', 'accuracy, %', 'step', lines,
      folder=workdir, legend_title='run'))


def _make_controls(entries, states):
  """Controls beside what each should give: means over seeds, and each run's, after each block."""
  found = {s.point.name: control_results.load_asked(
      s.last[1], s.last[0].eval_set, values.to_tree(s.result))[0] for s in states if s.result}
  body = control_sections.tabulate_over_seeds({e['name']: (e['controls'], e['num_done'])
                                               for e in entries if 'controls' in e})
  runs = control_sections.tabulate_controls({name: c['controls'] for name, c in found.items() if c})
  return body + (f'<details><summary>each run, after each block</summary>{runs}</details>'
                 if runs else '') + _list([f'{name}: not shown, {why}' for e in entries
                                           for name, why in e.get('not_carried', {}).items()])


def _make_runs(states):
  rows = []
  for state in states:
    accuracy = state.result and page.mark(state.result.final_acc,
                                        f'{100 * state.result.final_acc:.1f}%')
    rows.append([_name(state.point.name), state.status, accuracy or '–',
                 f'<div class="long">{page.escape(state.folder)}</div>'])
  return page.make_table(['', 'state', 'final', 'where'], rows)


def _make_card(states):
  """What all runs share of their reproduction cards; each run's own page has the rest."""
  cards = [page.load_json(s.last[1], 'config.json') for s in states]
  flat = [config_lib.flatten({k: v for k, v in c.items() if k != 'config'}) for c in cards if c]
  shared = {k: v for k, v in (flat[0].items() if flat else ())
            if k != 'command' and all(f.get(k) == v for f in flat)}
  return shared and page.make_table((), [
      [page.escape(k), f'<div class="long">{page.escape(v)}</div>'] for k, v in shared.items()])
