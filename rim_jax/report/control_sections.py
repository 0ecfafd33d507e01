"""What was found about a run's memory, as parts of a page: controls, attention, probes, PCA.

Reads what `--mode=controls` left (controls.json, pca.csv), never a model; and of a sweep what its
entries have of it over seeds (report/control_results.py).
"""

import csv

from etils import epath

from rim_jax.report.page import (
  draw,
  draw_map,
  escape,
  load_json,
  make_table,
  mark,
  section,
  show_mean,
  show_share,
  wrap_figures,
)

_SHOULD = 'if the memory does the work'
_ASK = 'not asked yet: --mode=controls'
_MAX_MAPS = 4  # questions that have a map of their own
_MAX_POINTS = 1000  # of one figure


def make_parts(name: str, folder, workdir) -> list[str]:
  """Everything that was found about one run, a section each.

  Args:
    name: what captions call the run.
    folder: where its controls.json is; `workdir` is where figures are kept.
  """
  found = load_json(folder, 'controls.json')
  probes = found.get('probes', {})
  none = probes.get('none', f'{_ASK} --config.controls.probes=True')
  return [
      section('Does the memory do the work?', found and _make_controls(name, found, workdir), _ASK),
      section('What an answer attends to', _make_attention(name, found.get('attention'), workdir),
              f'{_ASK}, with --config.controls.num_attention above 0'),
      section('What block states hold', 'right' in probes and _make_probes(name, probes, workdir),
              none),
      section('Where block states lie', 'pca' in probes and _make_components(
          name, probes['pca'], folder, workdir), none)]


# ---- Controls ----


def tabulate_controls(found: dict) -> str:
  """The controls of some runs beside what each should give; run -> its controls."""
  rows = []
  for key in dict.fromkeys(k for controls in found.values() for k in controls):
    given = [controls.get(key, {}) for controls in found.values()]
    meaning = next(g for g in given if g)
    rows.append([*_show_meaning(key, meaning),
                 *(f'<div class="long">{_show_control(key, g)}</div>' for g in given)])
  return rows and make_table(['', _SHOULD, *map(escape, found)], rows)


def _show_meaning(key, control):
  """What is done, and what it should give."""
  return [f'<div class="long"><b>{escape(key.replace("_", " "))}</b>'
          f'<small>{escape(control.get("what", ""))}</small></div>',
          f'<div class="long">{escape(control.get("expected", ""))}</div>']


def _show_control(key, control):
  """Accuracies after each block, the own answer's and the donor's, and what they are of."""
  lines = [label + ' / '.join(map(show_share, control[part])) for part, label in (
      ('block_acc', ''), ('block_donor_acc', "donor's ")) if control.get(part)]
  if 'none' in control:
    lines.append(escape(control['none']))
  elif control.get('given') is False:
    lines.append(f'not given: controls.{key}_dir')
  notes = [f'{mark(control["n"])} questions'] if control.get('n') else []
  if control.get('readout_trained'):
    notes.append('a readout was trained there')
  if 'run' in control:
    notes.append(escape(control['run']))
  if control.get('differs'):
    notes.append(f'DIFFERS in {escape(", ".join(control["differs"]))}')
  return ('<br>'.join(lines) or '–') + (f'<small>{"; ".join(notes)}</small>' if notes else '')


def _make_controls(name, found, workdir):
  pairing, blocks = found['pairing'], range(1, found['num_blocks'] + 1)
  told = (f'{found["set"]}, {found["n"]:,} questions, step {found["step"]:,} '
          f'({found["checkpoint"]} checkpoint). In % right, after block '
          f'{" / ".join(map(str, blocks))}.')
  counted = (f'Swaps: {pairing["num_pairs"]:,} pairs; {pairing["num_equal_answers"]:,} more have '
             f'equal answers and {pairing["num_without_partner"]:,} questions no partner of their '
             'length: not counted.')
  body = (f'<p>{escape(told)}</p>{tabulate_controls({name: found["controls"]})}'
          f'<p><small>{escape(counted)}</small></p>')
  return body + ''.join(_make_sweep(name, key, sweep, blocks, workdir)
                        for key, sweep in found['sweeps'].items())


def _make_sweep(name, key, sweep, blocks, workdir):
  """Whose answer is given, by the block that is changed and the block that is read."""
  entries = [e for e in sweep['by_block'] if 'block_acc' in e]
  title = key.replace('_', ' ')
  body = (f'<p><b>{escape(title)}</b>: {escape(sweep["what"])}. If the memory does the work: '
          f'{escape(sweep["expected"])}.</p>')
  if not entries:
    reasons = dict.fromkeys(e['none'] for e in sweep['by_block'])
    return body + f'<p class="none">{escape("; ".join(reasons))}</p>'
  return body + wrap_figures(''.join(
      draw_map(f'{name}, {title}: questions with {whose} answer, %', 'block changed' if (
          key == 'swapped_block') else 'changed from block', 'read after block',
               [e['block'] for e in entries], blocks, [e[part] for e in entries], workdir)
      for part, whose in (('block_acc', 'the own'), ('block_donor_acc', "the donor's"))))


# ---- Attention ----


def _make_attention(name, attention, workdir):
  if not attention:
    return ''
  mean = attention['mean']
  layers, reads = range(1, len(mean[0]) + 1), range(1, len(mean) + 1)
  names = ['question', *(f'm{k}' for k in reads), 'own']
  if not any(layer[-1] for by_layer in mean for layer in by_layer):  # nothing is forced
    names.pop()
  over = f'mean over {attention["num_questions"]} questions'
  shares = [[sum(column) / len(layers) for column in zip(*by_layer)] for by_layer in mean]

  def draw_weights(caption, ylabel, rows, weights):
    return draw_map(f'{name}: attention after {caption}', ylabel, 'attended to', rows, names,
                    [row[:len(names)] for row in weights], workdir)
  maps = [draw_weights(f'each block, %; mean over layers, {over}', 'read after block', reads,
                       shares),
          draw_weights(f'the last block, %; {over}', 'layer', layers, mean[-1])]
  maps += [draw_weights(f'the last block, question {i}, %', 'layer', layers, q['by_group'][-1])
           for i, q in enumerate(attention['questions'][:_MAX_MAPS], 1)]
  rows = [[str(i), f'<div class="long">{_shade(q["tokens"], q["by_token"][-1])}</div>',
           escape(q['answer'])] for i, q in enumerate(attention['questions'], 1)]
  return (f'<p>In % of {escape(attention["what"])}. m1, m2, ... are the blocks, own is what is '
          'forced before the answer. What is read need not matter: that is for the controls to '
          f'say.</p>{wrap_figures("".join(maps))}'
          '<p>Tokens of the question after the last block, mean over layers; the more is read of '
          'one, the stronger its colour, against the most of its row.</p>'
          f'{make_table(["", "question", "gold"], rows)}')


def _shade(tokens, weights):
  most = max(weights, default=0) or 1
  return ''.join(
      f'<span class="token" style="background:rgb(47 129 247/{0.7 * w / most:.2f})" '
      f'title="{100 * w:.2f}%">{escape(text) or "·"}</span>' for text, w in zip(tokens, weights))


# ---- Probes ----


def _make_probes(name, probes, workdir):
  right, counts = probes['right'], probes['num_questions']
  told = (f'Logistic regressions on {probes["state"]}: fitted on {counts["train"]:,} questions of '
          f'train, C chosen on {counts["valid"]:,} of valid, in % on {counts["test"]:,} of test.')
  rows = [[f'block {e["block"]}', *_show_ranking(e)] for e in right['by_block']]
  rows.append(['all blocks', *_show_ranking(right['pooled'])])
  head = ['', 'AUROC', 'AUPRC', 'right<small>the AUPRC of chance</small>', 'C']
  return (f'<p>{escape(told)}</p><p><b>Is this block\'s readout right?</b></p>'
          f'{make_table(head, rows)}{_make_selection(right["selection"])}'
          f'{_make_steps(name, probes["steps"], workdir)}')


def _show_ranking(entry):
  if 'none' in entry:
    base = show_share(entry['right']) if 'right' in entry else (
        f'{show_share(entry["train_right"])} of train' if 'train_right' in entry else '–')
    return [f'<div class="long">{escape(entry["none"])}</div>', '–', base, '–']
  chosen = mark(entry['c'], f'{entry["c"]:g}') + ('' if entry['c_tuned'] else ' (not tuned)') if (
      'c' in entry) else '–'
  return [show_share(entry['auroc']), show_share(entry['auprc']), show_share(entry['right']),
          chosen]


def _make_selection(selection):
  """What choosing a block by its probe would give."""
  head = '<p><b>The answer of the block whose probe is most confident</b></p>'
  if 'none' in selection:
    return f'{head}<p class="none">{escape(selection["none"])}</p>'
  count = mark(selection['num_recoverable'])
  rows = [['chosen', show_share(selection['acc']), show_share(selection['recoverable_acc'])],
          ['the last block', show_share(selection['final_acc']),
           show_share(selection['recoverable_final_acc'])],
          ['any block<small>upper bound</small>', show_share(selection['any_block_acc']), '–']]
  chosen = ' / '.join(map(mark, selection['chosen_blocks']))
  return (head + make_table(['', 'all questions', f'the {count} that some block gets right'], rows)
          + f'<p><small>Chosen, block by block: {chosen}.</small></p>')


def _make_steps(name, steps, workdir):
  """Which intermediate result each block holds, beside the class most frequent in train."""
  if 'acc' not in steps:
    return f'<p><b>Intermediate results</b></p><p class="none">{escape(steps["none"])}</p>'
  columns = [f'r{t}' for t in range(1, len(steps['majority']) + 1)]
  rows = [f'block {k}' for k in range(1, len(steps['acc']) + 1)]
  missing = ''.join(f'<li>r{escape(t)}: {escape(why)}</li>' for t, why in steps['none'].items())
  body = wrap_figures(draw_map(
      f'{name}: intermediate results that a probe reads off a block, %; frequent: always the class '
      'most frequent in train', 'state of', 'intermediate result', [*rows, 'frequent'], columns,
      [*steps['acc'], steps['majority']], workdir))
  return ('<p><b>Does this block hold that intermediate result?</b></p>' + body
          + (f'<ul>{missing}</ul>' if missing else ''))


# ---- Components ----


def _make_components(name, pca, folder, workdir):
  """Centers of blocks over training, and points of the last checkpoint by block."""
  if 'none' in pca:
    return f'<p class="none">{escape(pca["none"])}</p>'
  steps = sorted(pca['centers'], key=int)
  last = str(pca['fitted_on'])
  labels = [f'component {i} ({100 * share:.0f} %)'
            for i, share in enumerate(pca['explained'], 1)]
  blocks = range(1, len(pca['centers'][last]) + 1)
  paths = {k: tuple(zip(*(pca['centers'][step][k - 1] for step in steps)))
           for k in blocks}
  body = draw(f'{name}: center of each block; {len(steps)} checkpoint(s), the ring is the last',
              labels[1], labels[0], paths, folder=workdir, legend_title='block', marks='path')
  points, count = _load_points(folder, last, len(blocks))
  if points:
    body += draw(f'{name}: block states; of {count} questions, at step {int(last):,}', labels[1],
                 labels[0], points, folder=workdir, legend_title='block', marks='points')
  rows = [[f'block {k}', *(_show_distance(pca['spread'][step][k - 1]) for step in steps)]
          for k in blocks]
  return (f'<p>Two components of the block states at step {int(last):,}, on which those of every '
          'checkpoint that is kept are projected; in brackets, their share of the variance.</p>'
          f'{wrap_figures(body)}'
          '<p>Mean distance of a block\'s states to its center:</p>'
          f'{make_table(["", *(f"step {int(step):,}" for step in steps)], rows)}')


def _show_distance(value):
  return mark(value, f'{value:.2f}')


def _load_points(folder, step, num_blocks):
  """({block: (x, y)}, questions) of one checkpoint in pca.csv; no more than a page can carry."""
  path = epath.Path(folder) / 'pca.csv'
  most = max(_MAX_POINTS // num_blocks, 1)
  rows = [row for row in csv.DictReader(path.read_text().splitlines())
          if row['step'] == step and int(row['question']) <= most] if path.exists() else []
  points = {}
  for row in rows:
    points.setdefault(int(row['block']), []).append((float(row['x']), float(row['y'])))
  return {k: tuple(zip(*xy)) for k, xy in sorted(points.items())}, len(
      {row['question'] for row in rows})


# ---- Over the seeds of a sweep ----


def tabulate_over_seeds(found: dict) -> str:
  """Controls beside what each should give, the last answer's shares as means over seeds.

  Args:
    found: setting -> (the controls of its entry, how many runs it has).
  """
  rows = []
  for key in dict.fromkeys(k for controls, _ in found.values() for k in controls):
    meaning = next(controls[key] for controls, _ in found.values() if key in controls)
    rows.append([*_show_meaning(key, meaning), *(
        f'<div class="long">{_show_shares(controls.get(key, {}), count)}</div>'
        for controls, count in found.values())])
  return make_table(['', _SHOULD, *map(escape, found)], rows) + (
      '<p><small>The last answer, in % right, or of questions on which it is the donor\'s: means '
      'over seeds.</small></p>') if rows else ''


def _show_shares(control, count):
  """The own answer's share and the donor's; of another run that is one for all seeds, once."""
  lines = [label + show_mean(control[key], of=count) for key, label in (
      ('final_acc', ''), ('final_donor_acc', "donor's ")) if key in control]
  lines += [escape(why) for why in control.get('none', ())]
  differs = ', '.join(control.get('differs', ()))
  return (''.join(f'<div>{line}</div>' for line in lines) or '–') + (
      f'<small>DIFFERS in {escape(differs)}</small>' if differs else '')


def make_probes_over_seeds(entries, workdir) -> str:
  """What probes read off block states, as means over seeds; '' where no entry has any."""
  probed = [e for e in entries if 'probes' in e]
  if not probed:
    return ''
  width = max(len(e['probes']['auroc']) for e in probed)
  rows = []
  for entry in probed:
    found, count = entry['probes'], entry['num_done']
    blocks = found['auroc'] + [None] * (width - len(found['auroc']))
    rows.append([f'<div class="long"><b>{escape(entry["name"])}</b></div>', *(
        show_mean(x, of=count) for x in (*blocks, found['pooled_auroc'], found['recoverable_acc'],
                                         found['recoverable_final_acc']))])
  head = ['', *(f'AUROC, block {k}' for k in range(1, width + 1)), 'all blocks',
          'right picks<small>by the probe, where some block is right</small>',
          'the last block<small>there</small>']
  return ('<p>Is this block\'s readout right? Linear probes of its state, fitted on train, C '
          f'chosen on valid, in % on test; means over seeds.</p>{make_table(head, rows)}'
          + ''.join(_make_steps_over_seeds(e, workdir) for e in probed if 'steps' in e['probes']))


def _make_steps_over_seeds(entry, workdir):
  """Which intermediate result each block holds: a map of means, and a table with their errors."""
  steps, count = entry['probes']['steps'], entry['num_done']
  columns = [f'r{t}' for t in range(1, len(steps['majority']) + 1)]
  rows = {f'block {k}': row for k, row in enumerate(steps['acc'], 1)}
  rows['frequent'] = steps['majority']
  means = [[x and x['mean'] for x in row] for row in rows.values()]
  return wrap_figures(draw_map(
      f'{entry["name"]}: intermediate results that a probe reads off a block, %, mean over seeds; '
      'frequent: always the class most frequent in train', 'state of', 'intermediate result',
      list(rows), columns, means, workdir)) + (
          f'<details><summary>{escape(entry["name"])}: with standard errors</summary>'
          + make_table(['', *columns], [[name, *(show_mean(x, of=count) for x in row)]
                                        for name, row in rows.items()]) + '</details>')
