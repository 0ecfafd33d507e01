"""What the runs of a sweep say together: sweep.json, sweep.csv and sweep.md.

The best is chosen by accuracy on valid; that on the set of the results, test as a rule, stands
beside it and chooses nothing. Reads what each run has left (results, metrics, predictions), never
a model.
"""

import dataclasses
import pathlib

from rim_jax import reader
from rim_jax.config import stages as stages_lib
from rim_jax.config.grid import get_setting, name_setting
from rim_jax.report import control_results, control_sections, pairwise, sweep_tables, tables
from rim_jax.results import stats, timings, values
from rim_jax.results.settings import BestSetting, Conclusion, EffectResult, SettingResult
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import storage

CONCLUSION_VERSION = 6  # counted up where a key changes its meaning or goes


def conclude(states, workdir) -> Conclusion:
  """What the done points say: one entry a combination of factors, over its seeds.

  Writes WORKDIR/sweep.json, sweep.csv and sweep.md.
  """
  settings = stats.group((name_setting(state.point), state) for state in states)
  entries = [_make_entry(name, members) for name, members in settings.items()]
  doubts = find_rules(states) + find_damaged(states)
  best = None if doubts else choose_best(entries)
  by_name = {s.point.name: s for s in states}
  entries = pairwise.compare_with_best(entries, best, by_name)
  conclusion = Conclusion(
      format=CONCLUSION_VERSION, best=best, entries=entries,
      pairs=pairwise.compare_pairs(entries, by_name), effects=find_effects(states),
      warnings=find_mixtures(states) + find_touched(states) + find_otherwise(states) + doubts)
  workdir = pathlib.Path(workdir)
  storage.write_json(workdir / 'sweep.json',
                     reader.to_tree(conclusion) | ({} if best else {'best': {}}))
  storage.write_text(workdir / 'sweep.csv', _make_csv(entries))
  storage.write_text(workdir / 'sweep.md', make_markdown(conclusion))
  return conclusion


def read_valid(state) -> tuple[float | None, int]:
  """Accuracy on valid of the checkpoint that a point's result is of, and its rule's version.

  From the point's metrics; None where they do not tell it.
  """
  return state.last[1].load_valid().get(state.result and state.result.step, (None, 1))


def _make_entry(name, members) -> SettingResult:
  found = [(s, r) for s in members if (r := s.result)]
  entry = SettingResult(
      name=name, factors=get_setting(members[0].point), num_points=len(members),
      num_done=len(found),
      failed={s.point.name: s.error for s in members if s.status == 'failed'},
      dropped={s.point.name: s.error for s in members if s.status == 'dropped'})
  if not found:
    return entry
  asked = [control_results.load_asked(s.last[1], s.last[0].eval_set, r) for s, r in found]
  carried = [told for told, _ in asked if told]
  results = [dataclasses.replace(r, selected_acc=control_results.get_selected(told, r))
             for (_, r), (told, _) in zip(found, asked)]
  summaries = _summarize(results) | timings.summarize(results) | dict(
      valid_acc=control_results.average([read_valid(s)[0] for s, _ in found], keep=True))
  return dataclasses.replace(
      entry, **summaries, n=results[0].n,
      controls=control_results.summarize_controls(carried) or None,
      probes=control_results.summarize_probes(carried),
      not_carried={s.point.name: why for (s, _), (_, why) in zip(found, asked) if why},
      steps=sorted({sum(f.count_steps() for f in s.stages.values()) for s, _ in found}),
      points=[s.point.name for s, _ in found])


def _summarize(results: list[values.EvalResult]) -> dict:
  """The measures of a setting that results have, by their names, and accuracies after blocks."""
  summaries = {measure.name: control_results.average(
      [getattr(r, measure.name, None) for r in results], keep=True)
               for measure in values.list_measures(SettingResult)}
  alike = len({len(r.block_acc) for r in results}) == 1
  return summaries | dict(block_acc=[stats.summarize(accs) for accs in zip(
      *(r.block_acc for r in results))] if alike else None)


def choose_best(entries: list[SettingResult]) -> BestSetting | None:
  """The entry with the highest mean on valid, and every other with the same; None if none has any.

  Of equals the recipe's first: test has no say. `doubtful` are those that the seeds do not tell
  from it on valid: `stats.is_apart`, with as many comparisons as there are others.
  `dropped` counts the runs that ended early (sweep/halving.py): nobody knows what they would
  have had.
  """
  known = [(e.name, e.valid_acc, e.final_acc) for e in entries if e.valid_acc and e.final_acc]
  if not known:
    return None
  best, valid, final = max(known, key=lambda e: e[1].mean)  # the first of equals
  others = {name: theirs for name, theirs, _ in known if name != best}
  return BestSetting(
      name=best, valid_acc=valid, final_acc=final,
      equal=[name for name, theirs in others.items() if theirs.mean == valid.mean],
      doubtful=[name for name, theirs in others.items()
                if not stats.is_apart(valid, theirs, len(others))],
      dropped={e.name: len(e.dropped) for e in entries if e.dropped})


def find_mixtures(states) -> list[str]:
  """Runs that one recipe names alike and that stand on other weights, start or tokenizer.

  A path is no part of what a run is, its content is; a sweep that goes on after the path came to
  mean another model would mix the two.
  """
  found = {}
  for state in states:
    first, _ = stages_lib.make_stages(state.point.config)[0]  # what lay before is its start
    folder = state.folder / first
    if state.result is None or not (folder / 'config.json').exists():
      continue
    card, config = card_lib.load_card(folder), state.point.config
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
  found = stats.group((s.result.chosen_on, s.point.name) for s in states
                      if s.result and s.result.chosen_on)
  return [f"checkpoints of {', '.join(names)} were chosen on {told}"
          for told, names in found.items()]


def find_otherwise(states) -> list[str]:
  """Runs that were evaluated otherwise than their points ask: beside others they say nothing."""
  found = [(state, key, getattr(state.result, key), getattr(state.point.config.eval, key))
           for state in states if state.result for key in ('checkpoint', 'max_new_tokens')]
  return [f'{state.point.name} was evaluated with eval.{key}={told}, and this sweep asks for '
          f'{wanted}; evaluate it so with --workdir={state.folder} --mode=eval '
          f'--config.eval.{key}={wanted}'
          for state, key, told, wanted in found
          if told not in (None, wanted)]  # earlier versions did not tell


def find_rules(states) -> list[str]:
  """Runs whose accuracies on valid were judged by different versions of the rule.

  What was decoded at a save is not kept, so that these cannot be judged again.
  """
  found = stats.group((read_valid(s)[1], s.point.name) for s in states
                      if s.result is not None and s.last[1].load_valid())
  return [] if len(found) < 2 else [
      'accuracies on valid were judged by different versions of the rule, so that no best is '
      'chosen: ' + '; '.join(f"{', '.join(names)} by version {rule}"
                             for rule, names in sorted(found.items()))
      + '; run the older ones again in another --workdir']


def find_damaged(states) -> list[str]:
  """Metrics that are missing or left out, so that a best would be chosen without them."""
  done = [state for state in states if state.result is not None]
  lacking = [line for state in done for folder in state.stages.values()
             for line in folder.list_damaged()]
  unknown = [state for state in done if read_valid(state)[0] is None]
  if len(unknown) < len(done):  # else none of them looked at valid
    lacking += [f'{state.last[1].metrics}: has no accuracy on valid of step {state.result.step}'
                for state in unknown]
  return [f'no best is chosen, for metrics are missing: {"; ".join(lacking[:3])}'
          + f'; and {len(lacking) - 3} more' * (len(lacking) > 3)] if lacking else []


# ---- Effects ----


def list_levels(points) -> dict:
  """Factor -> its values in the recipe's order; of what varies only, and without the seed."""
  found = stats.group(pair for point in points for pair in get_setting(point).items())
  levels = {key: list({repr(v): v for v in values}.values()) for key, values in found.items()}
  return {key: values for key, values in levels.items() if len(values) > 1}


def find_effects(states) -> list[EffectResult]:
  """What each level of a factor does against the factor's first one.

  From pairs of done points that agree in every other factor and in the seed, and, on valid, in the
  version of the rule of judging.
  """
  done = [(s.point.factors, (*read_valid(s), s.result.final_acc, s.point.config.seed))
          for s in states if s.result]
  effects = []
  for factor, (reference, *others) in list_levels([s.point for s in states]).items():
    at: dict = {  # (its level, all other factors) -> what that point has
        (factors[factor], tuple(sorted((k, str(v)) for k, v in factors.items() if k != factor))):
        accs for factors, accs in done if factor in factors}
    for level in others:
      pairs = [(mine, at[reference, rest]) for (own, rest), mine in at.items()
               if own == level and (reference, rest) in at]
      valid = [(seed, mine - theirs) for (mine, rule, _, seed), (theirs, other, *_) in pairs
               if None not in (mine, theirs) and rule == other]
      final = [(seed, mine - theirs) for (*_, mine, seed), (*_, theirs, _) in pairs]
      effects.append(EffectResult(
          factor=factor, level=level, reference=reference,
          valid_acc=stats.summarize_pairs(valid) if valid else None,
          final_acc=stats.summarize_pairs(final) if final else None))
  return effects


# ---- Files ----


def _make_csv(entries: list[SettingResult]) -> str:
  keys = list(dict.fromkeys(k for e in entries for k in e.factors))
  rows = [[*keys, 'measure', 'seeds', 'mean', 'stderr']]
  for entry in entries:
    told = {measure: found for measure, found in vars(entry).items() if measure != 'latency'
            # No blocks, and the final accuracy itself.
            and not (found is entry.block_acc and len(found or ()) == 1)}
    for row in entry.latency or () if entry.ttft_ms else ():
      told |= {f'{k} batch {row.batch}': x for k, x in vars(row).items()}
    rows += [[*(entry.factors.get(k, '') for k in keys), name, x.count, x.mean,
              '' if x.stderr is None else x.stderr]
             for measure, found in told.items() for name, x in _list_summaries(measure, found)]
  return storage.format_csv(rows)


def _list_summaries(name, found):
  """(name, summary) of each in a measure: of a list's by their places: blocks, or steps."""
  if isinstance(found, stats.Summary):
    yield name, found
  elif isinstance(found, (dict, list, values.Value)):
    parts = enumerate(found, 1) if isinstance(found, list) else (
        found if isinstance(found, dict) else vars(found)).items()
    for key, part in parts:
      yield from _list_summaries(f'{name} {key}', part)


def make_markdown(conclusion: Conclusion) -> str:
  """The tables of the page, ready to paste."""
  entries = conclusion.entries
  done = [e for e in entries if e.num_done]
  lines = [*conclusion.warnings, describe_best(conclusion)]
  for shown in (sweep_tables.tabulate_results(entries), sweep_tables.tabulate_blocks(done),
                sweep_tables.tabulate_more(done), sweep_tables.tabulate_times(done),
                control_sections.tabulate_over_seeds(done),
                sweep_tables.tabulate_pairs(conclusion),
                sweep_tables.tabulate_effects(conclusion.effects)):
    lines += tables.to_markdown(shown) if shown.rows else []
  unpaired = pairwise.describe_unpaired(conclusion)
  return '\n'.join([*lines, *(['', unpaired] if unpaired else [])]) + '\n'


def describe_best(conclusion: Conclusion) -> str:
  """One sentence: what valid chose, what it has elsewhere, and what the seeds do not tell."""
  best = conclusion.best
  if not best:
    return 'No best point: ' + (
        'accuracies on valid were judged by different versions of the rule.'
        if any(entry.valid_acc for entry in conclusion.entries) else
        'no run that is done has an accuracy on valid.')
  told = (f'Best by valid: {best.name} ({tables.mean(best.valid_acc).text} of valid, mean of '
          f'{best.valid_acc.count} seed(s); {tables.mean(best.final_acc).text} final).')
  if best.equal:
    told += f" Equal on valid: {', '.join(best.equal)}."
  doubtful = [name for name in best.doubtful if name not in best.equal]
  if doubtful:
    told += (" All its seeds are equal, so no test can tell these from it: " if (
        best.valid_acc.count > 1 and not best.valid_acc.has_spread) else
             " On other seeds these may be as good: ") + f"{', '.join(doubtful)}."
  missing = [f'{e.name} ({e.num_done} of {e.num_points} done)' for e in conclusion.entries
             if e.num_done < e.num_points and not e.dropped]
  if missing:
    told += f" With the runs that failed or are missing another may be best: {', '.join(missing)}."
  for factor, value, end, count in _find_ends(conclusion.entries, best.name):
    told += (f' Its {factor}={value} is the {end} of {count} that were tried: a better one may lie '
             'beyond.')
  if best.dropped:
    told += ' Runs dropped early, which are in no comparison: ' + ', '.join(
        f'{count} of {name}' for name, count in best.dropped.items()) + '.'
  return told


def _find_ends(entries: list[SettingResult], best: str):
  """The numbers of the best that are the lowest or highest of three or more values of a factor."""
  chosen = next(entry.factors for entry in entries if entry.name == best)

  def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  alike = [e.factors for e in entries if e.valid_acc and e.factors.keys() == chosen.keys() and all(
      is_number(value) or e.factors[key] == value for key, value in chosen.items())]
  for factor, value in chosen.items():
    tried = {factors[factor] for factors in alike}  # by the same method, say
    if all(map(is_number, tried)) and len(tried) > 2 and value in (min(tried), max(tried)):
      yield factor, value, 'lowest' if value == min(tried) else 'highest', len(tried)
