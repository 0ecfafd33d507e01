"""The page of a sweep: what its runs say together, read from what each has left.

Reads files (sweep.json's entries, each run's results, metrics, controls and card), never a model.
"""

import itertools

from rim_jax import config as config_lib
from rim_jax import findings
from rim_jax import metrics as metrics_lib
from rim_jax import report

_HEAD = ('', 'final',
         'any block<small>upper bound: picks the right block by looking at the answer</small>',
         'majority of blocks', 'seeds done', 'updates', "ms to the answer's first token",
         'against the best: p<small>McNemar, exact, a seed each</small>')


def write_summary(workdir, title: str, entries, states):
  """Writes WORKDIR/report.html with figures/ beside it.

  Args:
    entries: those of sweep.json; `states` the sweep's points.
  """
  done = [e for e in entries if e['num_done']]
  parts = [report.section('Results', _make_headline(entries)), _make_notes(entries),
           report.section('Accuracy after each block', _draw_blocks(done, workdir)),
           report.section('Accuracy against latency', _draw_latency(done, workdir)),
           report.section('Learning', _draw_learning(done, states, workdir)),
           report.section('Does the memory do the work?', _make_controls(states)),
           report.section('Runs', _make_runs(states)),
           report.section('How to reproduce it', _make_card(states))]
  return report.write_page(workdir / 'report.html', title, parts)


def _make_headline(entries):
  rows = []
  for entry in entries:
    cells = [_show(entry.get(key)) for key in ('final_acc', 'any_block_acc', 'majority_acc')]
    tests = entry.get('against_best', {}).get('tests', ())
    rows.append([
        report.escape(entry['name']), f'<strong>{cells[0]}</strong>', *cells[1:],
        f'{entry["num_done"]} of {entry["num_points"]}',
        ', '.join(map(str, entry.get('steps', ()))),
        _show(entry.get('ttft_ms'), 1, ''),
        ', '.join(_number(t['p_value'], f'{t["p_value"]:.2g}') for t in tests) or '–'])
  return report.make_table(_HEAD, rows)


def _show(summary, scale=100, unit='%'):
  if not summary:
    return '–'
  spread = '' if summary['stderr'] is None else ' ± ' + _number(
      summary['stderr'], f'{scale * summary["stderr"]:.1f}')
  return _number(summary['mean'], f'{scale * summary["mean"]:.{1 if scale == 100 else 2}f}') + (
      f'{spread}{unit}')


def _number(value, shown):
  return f'<data value="{value!r}">{shown}</data>'


def _make_notes(entries):
  """What the table cannot say: what failed, and where the seeds do not support an order."""
  notes = [f'{name}: failed, {error}' for e in entries for name, error in e['failed'].items()]
  ranked = sorted((e for e in entries if e['num_done']), key=lambda e: -e['final_acc']['mean'])
  for better, worse in itertools.pairwise(ranked):
    a, b = better['final_acc'], worse['final_acc']
    if a['stderr'] is None or b['stderr'] is None:
      notes.append(f'{better["name"]} above {worse["name"]}: one seed does not support an order')
    elif a['mean'] - b['mean'] <= 2 * (a['stderr']**2 + b['stderr']**2)**0.5:
      notes.append(f'{better["name"]} above {worse["name"]}: within two standard errors of the '
                   'difference; the seeds do not support this order')
  return '<ul>' + ''.join(f'<li>{report.escape(n)}</li>' for n in notes) + '</ul>' if notes else ''


def _draw_blocks(entries, workdir):
  lines = {e['name']: (list(range(1, len(e['block_acc']) + 1)), [100 * a for a in e['block_acc']])
           for e in entries if len(e.get('block_acc', ())) > 1}
  return _figure(lines and report.draw(
      'accuracy after each block, mean over seeds', 'accuracy, %', 'block', lines, folder=workdir,
      legend_title='run'))


def _draw_latency(entries, workdir):
  lines = {e['name']: ([e['ttft_ms']['mean']], [100 * e['final_acc']['mean']])
           for e in entries if 'ttft_ms' in e}
  return _figure(lines and report.draw(
      "accuracy against the time to the answer's first token", 'accuracy, %',
      'ms, warm, one question', lines, folder=workdir, legend_title='run'))


def _draw_learning(entries, states, workdir):
  """Accuracy on valid over the updates of all stages, of each entry's first run."""
  by_name, lines = {s.point.name: s for s in states}, {}
  for entry in entries:
    state, points, before = by_name[entry['points'][0]], [], 0
    for name, _ in config_lib.make_stages(state.point.config):
      metrics = metrics_lib.load_metrics(state.folder / name)
      points += [(before + x['step'], 100 * x['valid/final_acc']) for x in metrics
                 if 'valid/final_acc' in x]
      before += max((x['step'] for x in metrics), default=0)
    if points:
      lines[state.point.name] = tuple(zip(*points))
  return _figure(lines and report.draw(
      'accuracy on valid while learning, one seed each', 'accuracy, %', 'step', lines,
      folder=workdir, legend_title='run'))


def _figure(body):
  return body and f'<div class="figures">{body}</div>'


def _make_controls(states):
  """The controls of the runs that have some, beside what each should give."""
  found = {s.point.name: report.load_json(s.last[1], 'controls.json') for s in states}
  return findings.tabulate_controls({name: c['controls'] for name, c in found.items() if c})


def _make_runs(states):
  rows = []
  for state in states:
    accuracy = state.result and _number(state.result['final_acc'],
                                        f'{100 * state.result["final_acc"]:.1f}%')
    rows.append([report.escape(state.point.name), state.status, accuracy or '–',
                 f'<div class="long">{report.escape(state.folder)}</div>'])
  return report.make_table(['', 'state', 'final', 'where'], rows)


def _make_card(states):
  """What all runs share of their reproduction cards; each run's own page has the rest."""
  cards = [report.load_json(s.last[1], 'config.json') for s in states]
  flat = [config_lib.flatten({k: v for k, v in c.items() if k != 'config'}) for c in cards if c]
  shared = {k: v for k, v in (flat[0].items() if flat else ())
            if k != 'command' and all(f.get(k) == v for f in flat)}
  return shared and report.make_table((), [
      [report.escape(k), f'<div class="long">{report.escape(v)}</div>'] for k, v in shared.items()])
