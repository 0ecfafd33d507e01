"""What the runs of a sweep say together: sweep.json, sweep.csv and sweep.md.

The best is chosen by accuracy on valid; that on the set of the results, test as a rule, stands
beside it and chooses nothing. Reads what each run has left (results, metrics, predictions), never
a model.
"""

import csv
import dataclasses
import io
import itertools
import pathlib

from rim_jax.config import stages as stages_lib
from rim_jax.config.grid import get_setting, name_setting
from rim_jax.report import control_results, control_sections, pairwise, sweep_tables, tables
from rim_jax.report.sweep_tables import BY_NUMBER, MEASURES, MORE, SHOWN
from rim_jax.results import stats, timings, values
from rim_jax.runtime import run_folder, storage

CONCLUSION_VERSION = 4  # counted up where a key changes its meaning or goes


def conclude(states, workdir) -> dict:
  """What the done points say: one entry a combination of factors, over its seeds.

  Writes WORKDIR/sweep.json, sweep.csv and sweep.md.
  """
  groups = {}
  for state in states:
    groups.setdefault(name_setting(state.point), []).append(state)
  entries = [_make_entry(name, members) for name, members in groups.items()]
  timings.relate(entries)
  best = choose_best(entries)
  by_name = {s.point.name: s for s in states}
  pairwise.compare_with_best(entries, best, by_name)
  conclusion = {'format': CONCLUSION_VERSION, 'best': best, 'entries': entries,
                'pairs': pairwise.compare_pairs(entries, by_name), 'effects': find_effects(states),
                'warnings': find_mixtures(states) + find_touched(states)}
  workdir = pathlib.Path(workdir)
  storage.write_json(workdir / 'sweep.json', conclusion)
  storage.write_text(workdir / 'sweep.csv', _make_csv(entries))
  storage.write_text(workdir / 'sweep.md', make_markdown(conclusion))
  return conclusion


def read_valid_acc(state) -> float | None:
  """Accuracy on valid of the checkpoint that a done point's result is of, from its metrics."""
  result = state.result
  if result is None:
    return None
  return run_folder.RunFolder(state.last[1]).load_valid_accs().get(result.step)


def _make_entry(name, members) -> dict:
  found = [(s, values.to_tree(r)) for s in members if (r := s.result)]
  entry = {'name': name, 'factors': get_setting(members[0].point), 'num_points': len(members),
           'num_done': len(found),
           'failed': {s.point.name: s.error for s in members if s.status == 'failed'},
           'dropped': {s.point.name: s.error for s in members if s.status == 'dropped'}}
  if not found:
    return entry
  asked = {s.point.name: control_results.load_asked(s.last[1], s.last[0].eval_set, r)
           for s, r in found}
  entry |= _summarize([r | ({} if (acc := read_valid_acc(s)) is None else {'valid_acc': acc})
                       | control_results.get_selected(asked[s.point.name][0], r) for s, r in found])
  entry |= control_results.summarize([told for told, _ in asked.values()])
  entry['not_carried'] = {name: why for name, (_, why) in asked.items() if why}
  entry['steps'] = sorted({_count_steps(s) for s, _ in found})
  entry['points'] = [s.point.name for s, _ in found]
  return entry


def _summarize(results) -> dict:
  found = {}
  for key in (*SHOWN, control_results.SELECTED, *MORE):
    values = [r[key] for r in results if key in r]
    if values:
      found[key] = dataclasses.asdict(stats.summarize(values)) | {'values': values}
  for key in BY_NUMBER:
    told = [r[key] for r in results if key in r]
    if told:
      found[key] = {k: dataclasses.asdict(stats.summarize([t[k] for t in told if k in t]))
                    for k in dict.fromkeys(itertools.chain(*told))}
  widths = {len(r['block_acc']) for r in results}
  if len(widths) == 1:
    found['block_acc'] = [dataclasses.asdict(stats.summarize(accs))
                          for accs in zip(*(r['block_acc'] for r in results))]
  return found | {'n': results[0]['n']} | timings.summarize(results)


def _count_steps(state) -> int:
  """Updates over all stages."""
  return sum(run_folder.RunFolder(state.folder / name).count_steps()
             for name, _ in stages_lib.make_stages(state.point.config))


def choose_best(entries) -> dict:
  """The entry with the highest mean on valid, and every other with the same; {} where none has any.

  Of equals the recipe's first: test has no say. `doubtful` are those that the seeds do not tell
  from it: the difference on valid is within two standard errors, or has none, for want of seeds.
  `dropped` counts the runs that ended early (sweep/halving.py): nobody knows what they would
  have had.
  """
  known = [e for e in entries if 'valid_acc' in e]
  if not known:
    return {}
  best = max(known, key=lambda e: e['valid_acc']['mean'])  # the first of equals
  found, others = best['valid_acc'], [e for e in known if e is not best]
  return {'name': best['name'], 'valid_acc': found, 'final_acc': best['final_acc'],
          'equal': [e['name'] for e in others if e['valid_acc']['mean'] == found['mean']],
          'doubtful': [e['name'] for e in others if not is_apart(found, e['valid_acc'])],
          'dropped': {e['name']: len(e['dropped']) for e in entries if e['dropped']}}


def is_apart(high, low) -> bool:
  """Whether seeds support that one summary is above another: by two standard errors."""
  if high['stderr'] is None or low['stderr'] is None:
    return False
  return high['mean'] - low['mean'] > 2 * (high['stderr']**2 + low['stderr']**2)**0.5


def find_mixtures(states) -> list[str]:
  """Runs that one recipe names alike and that stand on other weights, start or tokenizer.

  A path is no part of what a run is, its content is; a sweep that goes on after the path came to
  mean another model would mix the two.
  """
  found = {}
  for state in states:
    first, _ = stages_lib.make_stages(state.point.config)[0]  # what lay before is its start
    path = state.folder / first / 'config.json'
    if state.result is None or not path.exists():
      continue
    card, config = storage.load_json(path, "the run's card"), state.point.config
    asked = (config.model.init_from, config.tokenizer, config.train.init_from)
    for what, digest in (('bases', card['base'] and card['base']['fingerprint']),
                         ('starts', (card.get('start') or {}).get('fingerprint')),
                         ('tokenizers', card['tokenizer'])):
      found.setdefault((what, asked), {}).setdefault(digest, []).append(state.point.name)
  return [f'runs of different {what}: ' + '; '.join(
      f"{', '.join(names)} on {digest}" for digest, names in digests.items())
          + '; run them again in another --workdir'
          for (what, _), digests in found.items() if len(digests) > 1]


def find_touched(states) -> list[str]:
  """Runs whose checkpoint was not chosen on valid, by what their results say."""
  found = {}
  for state in states:
    if state.result and state.result.chosen_on:
      found.setdefault(state.result.chosen_on, []).append(state.point.name)
  return [f"checkpoints of {', '.join(names)} were chosen on {told}"
          for told, names in found.items()]


# ---- Effects ----


def list_levels(points) -> dict:
  """Factor -> its values in the recipe's order; of what varies only, and without the seed."""
  levels = {}
  for point in points:
    for key, value in get_setting(point).items():
      if value not in levels.setdefault(key, []):
        levels[key].append(value)
  return {key: values for key, values in levels.items() if len(values) > 1}


def find_effects(states) -> list[dict]:
  """What each level of a factor does against the factor's first one.

  From pairs of done points that agree in every other factor and in the seed.
  """
  found, effects = {s.point.name: {'final_acc': s.result.final_acc,
                                   'valid_acc': read_valid_acc(s)} for s in states if s.result}, []
  for factor, (reference, *others) in list_levels([s.point for s in states]).items():
    at = {}  # level -> what else a point is -> its measures
    for state in states:
      factors = state.point.factors
      if state.point.name in found and factor in factors:
        rest = tuple(sorted((k, str(v)) for k, v in factors.items() if k != factor))
        at.setdefault(factors[factor], {})[rest] = found[state.point.name]
    for level in others:
      pairwise = [(mine, at[reference][rest]) for rest, mine in at.get(level, {}).items()
                  if rest in at.get(reference, {})]
      effect = {'factor': factor, 'level': level, 'reference': reference}
      for measure in MEASURES:
        differences = [a[measure] - b[measure] for a, b in pairwise
                       if None not in (a[measure], b[measure])]
        if differences:
          effect[measure] = dataclasses.asdict(stats.summarize_pairs(differences))
      effects.append(effect)
  return effects


# ---- Files ----


def _make_csv(entries) -> str:
  out = io.StringIO()
  rows = csv.writer(out, lineterminator='\n')
  keys = list(dict.fromkeys(k for e in entries for k in e['factors']))
  rows.writerow([*keys, 'measure', 'seeds', 'mean', 'stderr'])
  for entry in entries:
    for measure, found in entry.items():
      alone = measure == 'block_acc' and len(found) == 1  # no blocks, and final_acc itself
      told = (() if measure == 'factors' or alone else
              [(f'{k} batch {row["batch"]}', x) for row in found for k, x in row.items()
               if isinstance(x, dict) and 'ttft_ms' in entry] if measure == 'latency' else
              _list_summaries(measure, found))
      for name, x in told:
        rows.writerow([*(entry['factors'].get(k, '') for k in keys), name, x['count'], x['mean'],
                       '' if x['stderr'] is None else x['stderr']])
  return out.getvalue()


def _list_summaries(name, found):
  """(name, summary) of each in a measure: of a list's by their places: blocks, or steps."""
  if isinstance(found, dict) and {'mean', 'stderr', 'count'} <= found.keys():
    yield name, found
  elif isinstance(found, (dict, list)):
    for key, part in found.items() if isinstance(found, dict) else enumerate(found, 1):
      yield from _list_summaries(f'{name} {key}', part)


def make_markdown(conclusion) -> str:
  """The tables of the page, ready to paste."""
  entries = conclusion['entries']
  done = [e for e in entries if e['num_done']]
  lines = [*conclusion['warnings'], describe_best(conclusion['best'])]
  for shown in (sweep_tables.tabulate_results(entries), sweep_tables.tabulate_blocks(done),
                sweep_tables.tabulate_more(done), sweep_tables.tabulate_times(done),
                control_sections.tabulate_over_seeds([e for e in done if 'controls' in e]),
                sweep_tables.tabulate_pairs(conclusion),
                sweep_tables.tabulate_effects(conclusion['effects'])):
    lines += tables.to_markdown(shown) if shown else []
  unpaired = pairwise.describe_unpaired(conclusion)
  return '\n'.join([*lines, *(['', unpaired] if unpaired else [])]) + '\n'


def describe_best(best) -> str:
  """One sentence: what valid chose, what it has elsewhere, and what the seeds do not tell."""
  if not best:
    return 'No best point: no run that is done has an accuracy on valid.'
  valid, final = (tables.mean(best[key]).text for key in MEASURES)
  told = (f"Best by valid: {best['name']} ({valid} of valid, mean of "
          f"{best['valid_acc']['count']} seed(s); {final} final).")
  if best['equal']:
    told += f" Equal on valid: {', '.join(best['equal'])}."
  doubtful = [name for name in best['doubtful'] if name not in best['equal']]
  if doubtful:
    told += f" The seeds do not tell it from: {', '.join(doubtful)}."
  if best['dropped']:
    told += ' Runs dropped early, which are in no comparison: ' + ', '.join(
        f'{count} of {name}' for name, count in best['dropped'].items()) + '.'
  return told
