"""What was found about a run's memory, as parts of a page: controls, attention, probes, PCA.

Reads what `--mode=controls` left (controls.json, pca.csv), never a model; and of a sweep what its
entries have of it over seeds (report/control_results.py).
"""

import csv
import dataclasses
import math

from rim_jax import reader
from rim_jax.errors import UserError
from rim_jax.report.figures import draw, draw_map
from rim_jax.report.page import (
  Blocks,
  Section,
  figures,
  items,
  optional,
  paragraph,
  section,
)
from rim_jax.report.tables import (
  MISSING,
  Cell,
  Part,
  Table,
  cell,
  clean,
  join,
  mean,
  name,
  number,
  share,
  stack,
  table,
)
from rim_jax.results.settings import ControlOverSeeds, SettingResult, StepsOverSeeds
from rim_jax.results.values import (
  AttentionResult,
  Components,
  ControlResult,
  ControlsResult,
  ControlSweep,
  ProbeResult,
  ProbesResult,
  SelectionResult,
  StepProbes,
)
from rim_jax.runtime.run_folder import RunFolder

_SHOULD = 'if the memory does the work'
_ASK = 'not asked yet: --mode=controls'
_MAX_MAPS = 4  # questions that have a map of their own
_MAX_POINTS = 1000  # of one figure
_FREQUENT = 'frequent: always the class most frequent in train'


def make_parts(run: str, folder) -> list[Section]:
  """Everything that was found about one run, a section each.

  Args:
    run: what captions call the run.
    folder: where its controls.json is.
  """
  folder = RunFolder(folder)
  found = folder.load_controls()
  probes = (found and found.probes) or ProbesResult()
  none = probes.none or f'{_ASK} --config.controls.probes=True'
  return [
      section('Does the memory do the work?', _make_controls(run, found) if found else [], _ASK),
      section('What an answer attends to', _make_attention(run, found and found.attention),
              f'{_ASK}, with --config.controls.num_attention above 0'),
      section('What block states hold', _make_probes(run, probes), none),
      section('Where block states lie',
              _make_components(run, probes.pca, folder) if probes.pca else [], none)]


def make_summary(found: ControlsResult) -> Blocks:
  """What a terminal shows of it: texts and tables; what a page has as maps are rows."""
  run, probes = found.method or '', found.probes
  swept = {f'{key}_{e.block}': e if i else dataclasses.replace(
      e, what=sweep.what, expected=sweep.expected)
           for key, sweep in found.sweeps.items() for i, e in enumerate(sweep.by_block)}
  blocks = _make_controls(
      run, dataclasses.replace(found, controls=found.controls | swept, sweeps={}))
  if not probes or probes.none or not (probes.pca and probes.steps):
    return [*blocks, *([paragraph(f'probes: {clean(probes.none)}')] if probes else [])]
  explained = probes.pca.none or ', '.join(f'{100 * e:.1f}' for e in probes.pca.explained or ())
  columns, rows = _arrange_steps(probes.steps)
  return [*blocks, *_make_probes(run, dataclasses.replace(probes, steps=None)),
          paragraph(f'Two components of block states explain, in %: {clean(explained)}'),
          table(['', *columns], [[row, *map(share, shares)] for row, shares in rows.items()],
                'does this block hold that intermediate result? % right')]


# ---- Controls ----


def tabulate_over_seeds(entries: list[SettingResult]) -> Table:
  """Controls beside what each should give, the last answer's shares as means over seeds."""
  counts = {e.name: e.num_done for e in entries}
  return tabulate_controls(
      {e.name: e.controls for e in entries if e.controls},
      lambda key, control, entry: _show_shares(control, counts[entry]),
      ("The last answer, in % right, or of questions on which it is the donor's: means over "
       'seeds.',))


def _show_control(key, control: ControlResult, _) -> Cell:
  """Accuracies after each block, the own answer's and the donor's, and what they are of."""
  lines: list[Cell | str] = [cell(label, join(map(share, shares))) for shares, label in (
      (control.block_acc, ''), (control.block_donor_acc, "donor's ")) if shares]
  if control.none:
    lines.append(clean(control.none))
  elif control.given is False:
    lines.append(f'not given: controls.{key}_dir')
  notes = [note for note in (
      control.n and cell(number(control.n), ' questions'),
      control.readout_trained and 'a readout was trained there',
      control.chain_trained and 'trained to write a chain there', clean(control.run or ''),
      _tell_differences(control)) if note]
  told = stack(lines or [MISSING])
  return told.note(join(notes, '; ')) if notes else told


def tabulate_controls(found, show=_show_control, notes=()) -> Table:
  """A row a control: what is done, what it should give, and what `show` has of each run.

  Args:
    found: run -> its controls.
  """
  rows = []
  for key in dict.fromkeys(k for controls in found.values() for k in controls):
    meaning = next(c[key] for c in found.values() if key in c)
    rows.append([cell(Part(key.replace('_', ' '), style='bold'), long=True).note(
        clean(meaning.what or '')), cell(clean(meaning.expected or ''), long=True),
                 *(show(key, controls[key], run) if key in controls else cell(MISSING)
                   for run, controls in found.items())])
  return table(['', _SHOULD, *map(clean, found)], rows, notes=notes)


def _tell_differences(control: ControlResult | ControlOverSeeds) -> str:
  return f'DIFFERS in {clean(", ".join(control.differs))}' if control.differs else ''


def _show_shares(control: ControlOverSeeds, count: int) -> Cell:
  """The own answer's share and the donor's; of another run that is one for all seeds, once."""
  lines = [cell(label, mean(summary, of=count)) for summary, label in (
      (control.final_acc, ''), (control.final_donor_acc, "donor's ")) if summary]
  told = stack([*lines, *map(clean, control.none or ())] or [MISSING])
  differs = _tell_differences(control)
  return told.note(differs) if differs else told


def _make_controls(run, found: ControlsResult) -> Blocks:
  pairing, blocks = found.pairing, range(1, found.num_blocks + 1)
  told = (f'{found.set}, {found.n:,} questions, step {found.step:,} '
          f'({found.checkpoint} checkpoint). In % right, after block '
          f'{" / ".join(map(str, blocks))}.')
  counted = (f'Swaps: {pairing.num_pairs:,} pairs; {pairing.num_equal_answers:,} more have equal '
             f'answers and {pairing.num_without_partner:,} questions no partner of their length: '
             'not counted.')
  return [paragraph(told), tabulate_controls({run: found.controls}),
          paragraph(counted, small=True),
          *(block for key, sweep in found.sweeps.items()
            for block in _make_sweep(run, key, sweep, blocks))]


def _make_sweep(run, key, sweep: ControlSweep, blocks) -> Blocks:
  """Whose answer is given, by the block that is changed and the block that is read."""
  entries = [e for e in sweep.by_block if e.block_acc]
  title = key.replace('_', ' ')
  told = paragraph(Part(title, style='bold'), clean(
      f': {sweep.what}. If the memory does the work: {sweep.expected}.'))
  if not entries:
    reasons = dict.fromkeys(e.none or '' for e in sweep.by_block)
    return [told, paragraph(clean('; '.join(reasons)), muted=True)]
  changed = 'block changed' if key == 'swapped_block' else 'changed from block'
  return [told, *figures(
      draw_map(f'{run}, {title}: questions with {whose} answer, %', changed, 'read after block',
               blocks, shares)
      for shares, whose in (({e.block: e.block_acc for e in entries}, 'the own'),
                            ({e.block: e.block_donor_acc for e in entries}, "the donor's")))]


# ---- Attention ----


def _make_attention(run, attention: AttentionResult | None) -> Blocks:
  if not attention:
    return []
  by_block = attention.mean
  layers, reads = range(1, len(by_block[0]) + 1), range(1, len(by_block) + 1)
  names = ['question', *(f'm{k}' for k in reads), 'own']
  if not any(layer[-1] for by_layer in by_block for layer in by_layer):  # nothing is forced
    names.pop()
  over = f'mean over {attention.num_questions} questions'
  shares = [[sum(column) / len(layers) for column in zip(*by_layer)] for by_layer in by_block]

  def draw_weights(caption, ylabel, rows, weights):
    return draw_map(f'{run}: attention after {caption}', ylabel, 'attended to', names,
                    {row: shares[:len(names)] for row, shares in zip(rows, weights)})
  maps = [draw_weights(f'each block, %; mean over layers, {over}', 'read after block', reads,
                       shares),
          draw_weights(f'the last block, %; {over}', 'layer', layers, by_block[-1])]
  maps += [draw_weights(f'the last block, question {i}, %', 'layer', layers, q.by_group[-1])
           for i, q in enumerate(attention.questions[:_MAX_MAPS], 1)]
  rows = [[str(i), _shade(q.tokens, q.by_token[-1]), clean(q.answer)]
          for i, q in enumerate(attention.questions, 1)]
  return [paragraph(
      f'In % of {clean(attention.what)}. m1, m2, ... are the blocks, own is what is forced '
      'before the answer. What is read need not matter: that is for the controls to say.'),
          *figures(maps), paragraph(
              'Tokens of the question after the last block, mean over layers; the more is read of '
              'one, the stronger its colour, against the most of its row.'),
          table(['', 'question', 'gold'], rows)]


def _shade(tokens, weights) -> Cell:
  most = max(weights, default=0) or 1
  return cell(*(Part(clean(text) or '·', style='token', shade=0.7 * w / most,
                     title=f'{100 * w:.2f}%') for text, w in zip(tokens, weights)), long=True)


# ---- Probes ----


def _make_probes(run, probes: ProbesResult) -> Blocks:
  right, counts = probes.right, probes.num_questions
  if not (right and counts):
    return []
  told = (f'Logistic regressions on {clean(probes.state)}: fitted on {counts["train"]:,} '
          f'questions of {clean(probes.fitted_on or "train")}, C chosen on {counts["valid"]:,} '
          f'{"others " if probes.fitted_on else ""}of valid, in % on {counts["test"]:,} of test. '
          'All blocks together: also a probe that tells no more than which block it is scores '
          'above chance there, where blocks differ in how often they are right.')
  rows = [[f'block {e.block}', *_show_ranking(e)] for e in right.by_block]
  rows.append(['all blocks', *_show_ranking(right.pooled)])
  head = ['', 'AUROC', 'AUPRC', ('right', 'the AUPRC of chance'), 'C']
  return [paragraph(told), paragraph(Part("Is this block's readout right?", style='bold')),
          table(head, rows), *_make_selection(right.selection),
          *(_make_steps(run, probes.steps) if probes.steps else [])]


def _show_ranking(entry: ProbeResult):
  if entry.none:
    base = cell(share(entry.train_right), ' of train') if (
        entry.right is None and entry.train_right is not None) else share(entry.right)
    return [cell(clean(entry.none), long=True), MISSING, base, MISSING]
  chosen = MISSING if entry.c is None else cell(
      number(entry.c, f'{entry.c:g}'), '' if entry.c_tuned else ' (not tuned)')
  return [share(entry.auroc), share(entry.auprc), share(entry.right), chosen]


def _make_selection(selection: SelectionResult) -> Blocks:
  """What choosing a block by its probe would give."""
  head = paragraph(Part('The answer of the block whose probe is most confident', style='bold'))
  if selection.none:
    return [head, paragraph(clean(selection.none), muted=True)]
  rows = [['chosen', share(selection.acc), share(selection.recoverable_acc)],
          ['the last block', share(selection.final_acc), share(selection.recoverable_final_acc)],
          [cell('any block').note('upper bound'), share(selection.any_block_acc), MISSING]]
  return [head, table(['', 'all questions', f'the {selection.num_recoverable:,} that some block '
                       'gets right'], rows),
          paragraph('Chosen, block by block: ', join(map(number, selection.chosen_blocks or ())),
                    '.', small=True)]


def _arrange_steps(steps: StepProbes | StepsOverSeeds) -> tuple[list[str], dict[str, list]]:
  """(intermediate results, what each block and the most frequent class have of them).

  Both are empty where nothing was fitted.
  """
  if not (steps.acc and steps.majority):
    return [], {}
  rows = {f'block {k}': row for k, row in enumerate(steps.acc, 1)} | {'frequent': steps.majority}
  return [f'r{t}' for t in range(1, len(steps.majority) + 1)], rows


def _make_steps(run, steps: StepProbes) -> Blocks:
  """Which intermediate result each block holds, beside the class most frequent in train."""
  columns, rows = _arrange_steps(steps)
  if not rows:
    return [paragraph(Part('Intermediate results', style='bold')),
            paragraph(clean(steps.none), muted=True)]
  return [paragraph(Part('Does this block hold that intermediate result?', style='bold')),
          *figures([draw_map(
              f'{run}: intermediate results that a probe reads off a block, %; {_FREQUENT}',
              'state of', 'intermediate result', columns, rows)]),
          *items(f'r{t}: {why}' for t, why in (
              steps.none.items() if isinstance(steps.none, dict) else ()))]


# ---- Components ----


def _make_components(run, pca: Components, folder: RunFolder) -> Blocks:
  """Centers of blocks over training, and points of the last checkpoint by block."""
  if not (pca.centers and pca.explained and pca.spread):
    return [paragraph(clean(pca.none), muted=True)]
  steps = sorted(pca.centers, key=int)
  last = str(pca.fitted_on)
  labels = [f'component {i} ({100 * part:.0f} %)' for i, part in enumerate(pca.explained, 1)]
  blocks = range(1, len(pca.centers[last]) + 1)
  paths = {k: tuple(zip(*(pca.centers[step][k - 1] for step in steps))) for k in blocks}
  points, count = _load_points(folder, last, len(blocks))
  drawn = [draw(f'{run}: center of each block; {len(steps)} checkpoint(s), the ring is the last',
                labels[1], labels[0], paths, legend_title='block', marks='path'),
           draw(f'{run}: block states; of {count} questions, at step {int(last):,}', labels[1],
                labels[0], points, legend_title='block', marks='points')]
  rows = [[f'block {k}', *(number(v, f'{v:.2f}') for v in (pca.spread[s][k - 1] for s in steps))]
          for k in blocks]
  return [paragraph(
      f'Two components of the block states at step {int(last):,}, on which those of every '
      'checkpoint that is kept are projected; in brackets, their share of the variance.'),
          *figures(drawn), paragraph("Mean distance of a block's states to its center:"),
          table(['', *(f'step {int(step):,}' for step in steps)], rows)]



def _load_points(folder: RunFolder, step, num_blocks):
  """({block: (x, y)}, questions) of one checkpoint in pca.csv; no more than a page can carry."""
  path, fix = folder.points, 'ask it again with --mode=controls'
  most, points, questions = max(_MAX_POINTS // num_blocks, 1), {}, set()
  try:
    for row in csv.DictReader(reader.read_text(path, fix).splitlines()) if path.exists() else ():
      place = float(row['x']), float(row['y'])
      if not all(map(math.isfinite, place)):
        raise ValueError('a place that is no number')
      if row['step'] == step and int(row['question']) <= most:
        points.setdefault(int(row['block']), []).append(place)
        questions.add(row['question'])
  except (ValueError, KeyError, TypeError, csv.Error) as e:
    raise UserError(f'{path}: is damaged ({type(e).__name__}: {e}); {fix}') from None
  return {k: tuple(zip(*xy)) for k, xy in sorted(points.items())}, len(questions)


# ---- Over the seeds of a sweep ----


def make_probes_over_seeds(entries: list[SettingResult]) -> Blocks:
  """What probes read off block states, as means over seeds; [] where no entry has any."""
  probed = {e.name: (e.probes, e.num_done) for e in entries if e.probes}
  if not probed:
    return []
  width = max(len(probes.auroc) for probes, _ in probed.values())
  rows = [[name(setting), *(mean(x, of=count) for x in (
      *probes.auroc, *[None] * (width - len(probes.auroc)), probes.pooled_auroc,
      probes.recoverable_acc, probes.recoverable_final_acc))]
          for setting, (probes, count) in probed.items()]
  head = ['', *(f'AUROC, block {k}' for k in range(1, width + 1)), 'all blocks',
          ('right picks', 'by the probe, where some block is right'), ('the last block', 'there')]
  return [paragraph(
      "Is this block's readout right? Linear probes of its state, fitted and tuned on other "
      'questions, in % on test; means over seeds.'), table(head, rows),
          *(block for setting, (probes, count) in probed.items() if probes.steps
            for block in _make_steps_over_seeds(setting, probes.steps, count))]


def _make_steps_over_seeds(setting: str, steps: StepsOverSeeds, count: int) -> Blocks:
  """Which intermediate result each block holds: a map of means, and a table with their errors."""
  columns, rows = _arrange_steps(steps)
  means = {row: [x and x.mean for x in cells] for row, cells in rows.items()}
  caption = (f'{setting}: intermediate results that a probe reads off a block, %, mean over '
             f'seeds; {_FREQUENT}')
  return [*figures([draw_map(caption, 'state of', 'intermediate result', columns, means)]),
          *optional(f'{setting}: with standard errors', [
              table(['', *columns], [[row, *(mean(x, of=count) for x in cells)]
                                     for row, cells in rows.items()])], folded=True)]
