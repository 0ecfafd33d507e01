"""The page of a sweep: what its runs say together, read from what each has left.

Reads files (sweep.json's entries, each run's results, metrics, controls and card), never a model.
"""

from rim_jax import config as config_lib
from rim_jax.report import (
  control_results,
  control_sections,
  disagreements,
  page,
  pairwise,
  paper,
  run_page,
  sweep_figures,
  sweep_results,
  sweep_tables,
)
from rim_jax.report.figures import draw
from rim_jax.results.settings import Conclusion

_MOST_LINES = 8  # in one figure


def write_summary(workdir, title: str, conclusion: Conclusion, states):
  """Writes WORKDIR/report.html with figures/ beside it.

  Args:
    states: the sweep's points.
  """
  entries = conclusion.entries
  finished = [e for e in entries if e.num_done]
  drawn, which = _choose_drawn(finished)
  by_name = {s.point.name: s for s in states}
  firsts = {e.points[0]: by_name[e.points[0]] for e in drawn}
  blocks = [page.paragraph(sweep_results.describe_best(conclusion)),
            page.section('Results', [sweep_tables.tabulate_results(entries)]),
            *page.items(conclusion.warnings), *_make_notes(entries),
            page.section('Any two', _make_pairs(conclusion),
                         pairwise.describe_unpaired(conclusion)
                         or 'no two settings have answers to the same questions by the same seed'),
            *paper.make_targets(
                (e.name, (run := by_name[e.points[0]]).point.config, run.last[0].eval_set, e.n,
                 e.final_acc) for e in finished),
            *page.optional('More measures', [sweep_tables.tabulate_more(finished)]),
            page.section('What each factor does', [
                sweep_tables.tabulate_effects(conclusion.effects), *_draw_factors(states)]),
            page.section('Accuracy after each block', [
                sweep_tables.tabulate_blocks(finished), *_draw_blocks(drawn, which)]),
            *_make_by_number(drawn, which, by_name),
            page.section('Accuracy against latency', [
                *_draw_latency(finished, drawn, which), sweep_tables.tabulate_times(finished)]),
            page.section('Learning', _draw_learning(firsts, which)),
            page.section(f'Where they differ, by example{which}',
                         disagreements.make_examples(firsts)),
            page.section('Does the memory do the work?', _make_controls(finished, states)),
            *page.optional('What block states hold',
                           control_sections.make_probes_over_seeds(finished)),
            page.section('Runs', [sweep_tables.tabulate_runs(states)]),
            page.section('How to reproduce it', [_make_card(states)])]
  return page.write_page(workdir / 'report.html', title, blocks)


def _choose_drawn(done):
  """(entries that one figure can tell apart, which those are): all, or the best by valid."""
  if len(done) <= _MOST_LINES:
    return done, ''
  ranked = sorted(done, key=lambda e: -e.valid_acc.mean if e.valid_acc else 1)[:_MOST_LINES]
  return [e for e in done if e in ranked], f'; the best {_MOST_LINES} of {len(done)} by valid'


def _make_pairs(conclusion) -> page.Blocks:
  reasons = dict.fromkeys(f'{p["a"]} and {p["b"]}, {seed}: not compared, {why}'
                          for p in conclusion.pairs for seed, why in p['not_compared'].items())
  return [sweep_tables.tabulate_pairs(conclusion), *page.items(reasons)]


def _make_notes(entries) -> page.Blocks:
  """What the table cannot say: what failed, was dropped, or was not compared."""
  events = [f'{name}: failed, {error}' for e in entries for name, error in e.failed.items()]
  events += [f'{name}: dropped {why}' for e in entries for name, why in e.dropped.items()]
  done = [e for e in entries if e.num_done]
  if len(done) > pairwise.MOST_PAIRED:  # else the table of pairs has them
    events += [f'{e.name}: not compared with the best, {told}' for e in done
               for told in (e.against_best or {}).get('not_compared', {}).values()]
  return page.items(events)


def _draw_factors(states) -> page.Blocks:
  """A map of each two factors that were crossed."""
  levels = sweep_results.list_levels([s.point for s in states])
  rows = [(s.point.factors, s.result.final_acc) for s in states if s.result]
  return page.figures(sweep_figures.draw_heat_maps(rows, levels))


def _draw_blocks(drawn, which) -> page.Blocks:
  """Accuracies after each block, where there is more than one."""
  lines = {e.name: (list(range(1, len(accs) + 1)), [100 * a.mean for a in accs],
                    [None if a.stderr is None else 100 * a.stderr for a in accs])
           for e in drawn if len(accs := e.block_acc or ()) > 1}
  return page.figures([draw(
      f'accuracy after each block, mean over seeds{which}; bars: one standard error',
      'accuracy, %', 'block', lines, legend_title='run')])


def _make_by_number(entries, which, states) -> list[page.Section]:
  """Accuracies with K blocks, and of k answers drawn, where some were asked for."""
  told = {e.name: page.describe_trained(states[e.points[0]].last[0], [
      k for point in e.points for k in states[point].result.beyond_positions or ()])
          for e in entries if e.budget_acc}
  alike = set(told.values()) if len(set(told.values())) == 1 else ()
  budgets = _draw_by_number(
      {e.name: e.budget_acc for e in entries}, f'accuracy with K blocks, mean over seeds{which}',
      ', '.join(['blocks K', *alike]))
  drawn = _draw_by_number({e.name: e.pass_at for e in entries},
                          f'pass@k, mean over seeds{which}', 'answers drawn, k')
  notes = [] if alike else [f'{name}: {how}' for name, how in told.items()]
  return [*page.optional('Accuracy with more and fewer blocks', [*budgets, *page.items(notes)]),
          *page.optional('One of k answers is right', drawn)]


def _draw_by_number(found, caption, xlabel) -> page.Blocks:
  """`found`: setting -> number, as text -> summary; or None."""
  lines = {name: (sorted(map(int, told)), [100 * told[k].mean for k in sorted(told, key=int)])
           for name, told in found.items() if told}
  return page.figures([draw(caption, 'accuracy, %', xlabel, lines, legend_title='run')])


def _draw_latency(entries, drawn, which) -> page.Blocks:
  lines = {e.name: _list_points(e) for e in drawn if e.ttft_ms}
  machines = sweep_tables.list_machines(entries)
  told = machines[0] if len(machines) == 1 else sweep_tables.UNLIKE
  return page.figures([draw(
      f"accuracy against time, from the answer's first token to its end; {told}{which}",
      'accuracy, %', 'ms, warm', lines, legend_title='run')])


def _list_points(entry):
  """Mean times to the answer's first token and, where it is known, to its end; and accuracies."""
  full = entry.latency and entry.latency[0].full_ms
  times = [entry.ttft_ms.mean, *([full.mean] if full else ())]
  return times, [100 * entry.final_acc.mean] * len(times)


def _draw_learning(runs, which) -> page.Blocks:
  """Accuracy on valid over the updates of all stages, of each setting's first run."""
  lines = {}
  for name, state in runs.items():
    points, before = [], 0
    for folder in state.stages.values():
      points += [(before + step, 100 * acc) for step, (acc, _) in folder.load_valid().items()]
      before += folder.count_steps()
    if points:
      lines[name] = tuple(zip(*points))
  return page.figures([draw(
      f'accuracy on valid while learning, one seed each{which}', 'accuracy, %', 'step', lines,
      legend_title='run')])


def _make_controls(entries, states) -> page.Blocks:
  """Controls beside what each should give: means over seeds, and each run's, after each block."""
  found = {s.point.name: control_results.load_asked(
      s.last[1], s.last[0].eval_set, s.result)[0] for s in states if s.result}
  return [control_sections.tabulate_over_seeds(entries),
          *page.optional('each run, after each block', [control_sections.tabulate_controls(
              {name: c.controls for name, c in found.items() if c})], folded=True),
          *page.items(f'{name}: not shown, {why}' for e in entries
                      for name, why in e.not_carried.items())]


def _make_card(states):
  """What all runs share of their reproduction cards; each run's own page has the rest."""
  cards = [s.last[1].load_card() for s in states if s.last[1].card.exists()]
  flat = [config_lib.flatten({k: v for k, v in c.items() if k != 'config'}) for c in cards]
  return run_page.tabulate_flat(
      {k: v for k, v in (flat[0].items() if flat else ())
       if k != 'command' and all(f.get(k) == v for f in flat)})
