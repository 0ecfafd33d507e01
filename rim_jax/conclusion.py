"""What the runs of a sweep say together: sweep.json, sweep.csv and sweep.md.

Reads what each run has left (results, metrics, predictions), never a model.
"""

import csv
import dataclasses
import io
import pathlib

from rim_jax import config as config_lib
from rim_jax import metrics as metrics_lib
from rim_jax import stats
from rim_jax import storage
from rim_jax.points import name_point

CONCLUSION_VERSION = 1


def conclude(states, workdir) -> dict:
  """What the done points say: one entry a combination of factors, over its seeds.

  Writes WORKDIR/sweep.json, sweep.csv and sweep.md.
  """
  groups = {}
  for state in states:
    factors = {k: v for k, v in state.point.factors.items() if k != 'seed'}
    groups.setdefault(name_point(factors), []).append(state)
  entries = []
  for name, members in groups.items():
    found = [(s, r) for s in members if (r := s.result)]
    entry = {'name': name, 'factors': {k: v for k, v in members[0].point.factors.items()
                                       if k != 'seed'},
             'num_points': len(members), 'num_done': len(found),
             'failed': {s.point.name: s.error for s in members if s.status == 'failed'}}
    if found:
      entry |= _summarize([r for _, r in found])
      entry['steps'] = sorted({_count_steps(s) for s, _ in found})
      entry['points'] = [s.point.name for s, _ in found]
    entries.append(entry)
  _compare_with_best(entries, {s.point.name: s for s in states})
  conclusion = {'format': CONCLUSION_VERSION, 'entries': entries}
  workdir = pathlib.Path(workdir)
  storage.write_json(workdir / 'sweep.json', conclusion)
  storage.write_text(workdir / 'sweep.csv', _make_csv(entries))
  storage.write_text(workdir / 'sweep.md', make_markdown(entries))
  return conclusion


def _summarize(results) -> dict:
  found = {}
  for key in ('final_acc', 'any_block_acc', 'majority_acc', 'ttft_ms'):
    values = [r[key] for r in results if key in r]
    if values:
      found[key] = dataclasses.asdict(stats.summarize(values)) | {'values': values}
  widths = {len(r['block_acc']) for r in results}
  if len(widths) == 1:
    found['block_acc'] = [stats.summarize(b).mean for b in zip(*(r['block_acc'] for r in results))]
  return found | {'n': results[0]['n']}


def _count_steps(state) -> int:
  """Updates over all stages."""
  return sum(max((x['step'] for x in metrics_lib.load_metrics(state.folder / name)), default=0)
             for name, _ in config_lib.make_stages(state.point.config))


def _compare_with_best(entries, states) -> None:
  """McNemar of each entry against the best, on the same questions, for each seed that both have."""
  done = [e for e in entries if e['num_done']]
  if len(done) < 2:
    return
  best = max(done, key=lambda e: e['final_acc']['mean'])
  for entry in done:
    if entry is best:
      continue
    mine, theirs = ({states[n].point.factors.get('seed'): states[n].predictions
                     for n in e['points']} for e in (entry, best))
    entry['against_best'] = {'best': best['name'], 'tests': [
        {'seed': seed, **dataclasses.asdict(stats.compare_files(path, theirs[seed]))}
        for seed, path in mine.items() if seed in theirs]}


def _make_csv(entries) -> str:
  out = io.StringIO()
  rows = csv.writer(out, lineterminator='\n')
  keys = list(dict.fromkeys(k for e in entries for k in e['factors']))
  rows.writerow([*keys, 'measure', 'seeds', 'mean', 'stderr'])
  for entry in entries:
    for measure, found in entry.items():
      if isinstance(found, dict) and 'mean' in found:
        rows.writerow([*(entry['factors'].get(k, '') for k in keys), measure, found['count'],
                       found['mean'], '' if found['stderr'] is None else found['stderr']])
  return out.getvalue()


def make_markdown(entries) -> str:
  """The table, ready to paste; accuracies in %."""
  lines = ['| | final | after each block | any block (upper bound) | seeds | steps '
           '| first token, ms | against the best, p |', '|---|---|---|---|---|---|---|---|']
  for entry in entries:
    if not entry['num_done']:
      lines.append(f"| {entry['name']} | not done | | | 0 of {entry['num_points']} | | | |")
      continue
    blocks = ' / '.join(f'{100 * a:.1f}' for a in entry.get('block_acc', []))
    time_ms = f"{entry['ttft_ms']['mean']:.2f}" if 'ttft_ms' in entry else ''
    tests = entry.get('against_best', {}).get('tests', [])
    chances = ', '.join(format(test['p_value'], '.2g') for test in tests)
    lines.append(
        f"| {entry['name']} | {_show(entry['final_acc'])} | {blocks} | "
        f"{_show(entry['any_block_acc'])} | {entry['num_done']} of {entry['num_points']} | "
        f"{', '.join(map(str, entry['steps']))} | {time_ms} | {chances} |")
  return '\n'.join(lines) + '\n'


def _show(summary) -> str:
  spread = '' if summary['stderr'] is None else f" ± {100 * summary['stderr']:.1f}"
  return f"{100 * summary['mean']:.1f}{spread}"
