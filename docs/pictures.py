"""The pictures of README.md and docs/, in light and dark, from real code and a real run.

  python docs/pictures.py                          # from docs/pictures/data/
  python docs/pictures.py --run=runs/rim           # keeps that run's figures there first

The rows, of RiM and of every method, are what methods lay out, and who sees whom is what `visible`
says. The curves are those of `python -m rim_jax.main --config=configs/rim.py`.
"""

import argparse
import dataclasses
import json
import pathlib

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
import numpy as np

from rim_jax.config import Config, LayoutConfig, TokenizerConfig
from rim_jax.data.records import Record
from rim_jax.data.tokenizer import load_tokenizer
from rim_jax.methods import METHODS, make_codec, paired, rim, sim_cot
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib

HERE = pathlib.Path(__file__).parent / 'pictures'
RECORD = Record('7+3+5', ('0', '5'), '5', 'example')
LAYOUT = LayoutConfig(num_blocks=2, block_tokens=1, separator='', answer_prefix='=',
                      answer_suffix='', row_tokens=17, row_slots=8)
MEMORY = ('<b>', '<m>', '</b>')


@dataclasses.dataclass(frozen=True)
class Look:
  """Colours of one theme."""
  name: str
  ink: str
  faint: str
  question: str
  blocks: str
  readouts: str
  lines: tuple


LOOKS = (
    Look('light', '#1f2328', '#d0d7de', '#cfe3ff', '#ffd8a8', '#c3eccb',
         ('#8c959f', '#0969da', '#bc4c00', '#1a7f37', '#8250df')),
    Look('dark', '#e6edf3', '#3d444d', '#1f4b7a', '#8a4b08', '#1f6b3a',
         ('#8b949e', '#58a6ff', '#f0883e', '#3fb950', '#bc8cff')),
)


def make_row(lay_out, layout=LAYOUT, *more):
  """One record as a row of its own under a layout: (batch of one row, label of each id)."""
  tokenizer = load_tokenizer(TokenizerConfig(kind='bytes'))
  template = layout_lib.make_template(tokenizer, layout)
  encoded = make_codec(Config(layout=layout), tokenizer).encode(RECORD)
  example = lay_out(encoded, template, layout, *more)
  rows = rows_lib.make_rows([[example]], layout.row_tokens, layout.row_slots, layout,
                            tokenizer.vocab_size)

  def label(token):
    if token >= tokenizer.vocab_size:
      return MEMORY[token - tokenizer.vocab_size]
    if token == tokenizer.eos_id:
      return 'end'
    text = tokenizer.decode([token])
    return {'\n': '\u21b5'}.get(text, text)
  return rows, label


def _choose_colour(rows, i, look):
  if rows.readout[0, i]:
    return look.readouts
  return look.blocks if rows.block[0, i] else look.question


def _draw_tokens(axes, rows, label, look):
  """The tokens of a row, and below each slot what is predicted there; returns their number."""
  count = int((rows.example[0] > 0).sum())
  for i in range(count):
    axes.add_patch(Rectangle((i + 0.05, 0), 0.9, 0.8, facecolor=_choose_colour(rows, i, look),
                             edgecolor='none'))
    axes.text(i + 0.5, 0.4, label(int(rows.tokens[0, i])), ha='center', va='center', fontsize=8,
              color=look.ink)
  for slot in np.flatnonzero(rows.slot_kind[0]):
    i = int(rows.slot_index[0, slot])
    axes.annotate('', (i + 0.5, -0.55), (i + 0.5, 0),
                  arrowprops={'arrowstyle': '->', 'color': look.ink, 'linewidth': 0.8})
    axes.text(i + 0.5, -0.8, label(int(rows.slot_target[0, slot])), ha='center', va='center',
              fontsize=8, color=look.ink, weight='bold')
  return count


def _draw_row(axes, rows, label, look, title):
  """A row with the names of its parts."""
  count = _draw_tokens(axes, rows, label, look)
  groups = {}
  for i in range(count):
    groups.setdefault((int(rows.readout[0, i]), int(rows.block[0, i])), []).append(i)
  for (readout, block), members in groups.items():
    name = f'readout {block}' if readout else f'block {block}' if block else 'question'
    _bracket(axes, members[0], members[-1] + 1, 1.0, name, look)
  trunk = int((rows.readout[0, :count] == 0).sum())
  _bracket(axes, 0, trunk, 1.85, 'trunk', look)
  axes.text(-0.2, 0.4, title, ha='right', va='center', fontsize=9, color=look.ink, weight='bold')
  axes.text(-0.2, -0.8, 'target of each slot', ha='right', va='center', fontsize=8, color=look.ink)
  axes.set(xlim=(-3.6, 17), ylim=(-1.2, 2.7))
  axes.axis('off')


def _bracket(axes, start, end, y, name, look):
  axes.plot([start + 0.1, start + 0.1, end - 0.1, end - 0.1], [y, y + 0.15, y + 0.15, y],
            color=look.ink, linewidth=0.8)
  axes.text((start + end) / 2, y + 0.25, name, ha='center', va='bottom', fontsize=8,
            color=look.ink)


def _draw_visibility(axes, rows, label, look):
  """A filled cell: the token of this line sees the token of this column."""
  count = int((rows.example[0] > 0).sum())
  fields = batch_lib.get_fields(rows)
  seen = batch_lib.visible(fields, fields)[0, :count, :count]
  for query, key in zip(*np.nonzero(seen)):
    axes.add_patch(Rectangle((key + 0.05, query + 0.05), 0.9, 0.9, edgecolor='none',
                             facecolor=_choose_colour(rows, key, look)))
  names = [label(int(t)) for t in rows.tokens[0, :count]]
  for edge in range(count + 1):
    axes.plot([0, count], [edge, edge], color=look.faint, linewidth=0.4, zorder=0)
    axes.plot([edge, edge], [0, count], color=look.faint, linewidth=0.4, zorder=0)
  for i, name in enumerate(names):
    axes.text(-0.2, i + 0.5, name, ha='right', va='center', fontsize=7, color=look.ink)
    axes.text(i + 0.5, -0.3, name, ha='center', va='bottom', fontsize=5.5, color=look.ink)
  lines = ('Who sees whom in the row of stage 1.', '',
           'A line is a token that looks,', 'a column a token that it may see.', '',
           'The trunk never sees a readout.', 'Readout 1 sees the question, block 1',
           'and itself: not block 2, not readout 2.')
  for i, line in enumerate(lines):
    axes.text(count + 1, 3 + i, line, ha='left', va='center', fontsize=8, color=look.ink)
  axes.set(xlim=(-3.6, 25), ylim=(count + 0.2, -1.6), aspect='equal')
  axes.axis('off')


def draw_row(look):
  figure, axes = plt.subplots(3, 1, figsize=(9, 7.2), height_ratios=(1, 1, 2.6), layout='tight')
  for axis, lay_out, title in zip(axes, (rim.lay_out_stage1, rim.lay_out_stage2),
                                  ('stage 1', 'stage 2')):
    _draw_row(axis, *make_row(lay_out), look, title)
  _draw_visibility(axes[2], *make_row(rim.lay_out_stage1), look)
  return figure


METHODS_WIDE = -4.8, 25.5  # left and right end of the picture, in tokens


@dataclasses.dataclass(frozen=True)
class Shown:
  """A method in the picture of all methods."""
  name: str
  lay_out: object
  layout: LayoutConfig
  passes: str  # before the first token of an answer
  # Whose state is fed: before: at <m> that of the token before; own: its own; all: at <b> too.
  fed: str = ''
  removed: tuple = ()  # tokens that its written chain has lost


def _list_methods() -> tuple[Shown, ...]:
  def change(**keys):
    return dataclasses.replace(LAYOUT, **{'row_tokens': 40, 'row_slots': 20, **keys})

  def lay_out(name):
    return METHODS[name].layout
  thought = change(num_blocks=1, block_tokens=1, skip_steps=1)
  spelled = sim_cot.spell(METHODS['coconut_stage'], Config(method='coconut_stage', layout=thought))
  plain, two, bare = change(), change(num_blocks=1, block_tokens=2), change(num_blocks=0)
  rim_layouts = lay_out('rim_stage1'), lay_out('rim_stage2')
  return (
      Shown('direct', lay_out('direct'), bare, '1 pass'),
      Shown('chain of thought', lay_out('cot'), bare, 'the chain, token by token'),
      Shown('iCoT, half-way', lay_out('icot'), bare, '1 pass, at the end', removed=(2,)),
      Shown('pause', lay_out('pause'), plain, '1 pass'),
      Shown('RiM, stage 1', rim_layouts[0], plain, '1 pass'),
      Shown('RiM, stage 2', rim_layouts[1], plain, '1 pass'),
      Shown('looped RiM', rim_layouts[1], plain, 'R passes over the blocks', 'all'),
      Shown('paired RiM', paired.pair_blocks(METHODS['rim_stage2']).layout,
            change(paired_readout=True), '1 pass'),
      Shown('Coconut, stage 1', lay_out('coconut_stage'), thought, '1 pass, 1 a thought', 'before'),
      Shown('SIM-CoT on it', spelled.layout, thought, '1 pass, 1 a thought', 'before'),
      Shown('CODI', lay_out('codi'), two, '1 pass, 1 a thought', 'before'),
      Shown('PCCoT', lay_out('pccot'), two, 'R passes over the thoughts', 'before'),
      Shown('LOTUS, stage 1', lay_out('lotus_stage'),
            change(num_blocks=1, block_tokens=2, skip_steps=1), '2 passes over the latents', 'own'),
  )


def _draw_fed(axes, rows, label, fed, look):
  """Arrows from states to the inputs that they make."""
  for i in np.flatnonzero((rows.block[0] > 0) & (rows.readout[0] == 0) & bool(fed)):
    if fed != 'all' and label(int(rows.tokens[0, i])) != '<m>':
      continue
    start, end = ((i - 0.5, i + 0.5) if fed == 'before' else (i + 0.25, i + 0.75))
    axes.annotate('', (end, 0.8), (start, 0.8), arrowprops={
        'arrowstyle': '->', 'color': look.lines[2], 'linewidth': 1,
        'connectionstyle': f'arc3,rad={-0.5 if fed == "before" else -1.6}'})


def _draw_pair(axes, rows, look):
  """A dashed line between the tokens whose states are paired."""
  for slot in np.flatnonzero(rows.slot_pair[0] >= 0):
    ends = [int(rows.slot_index[0, slot]) + 0.5, int(rows.slot_pair[0, slot]) + 0.5]
    axes.plot([ends[0], ends[0], ends[1], ends[1]], [0.8, 1.15, 1.15, 0.8], color=look.lines[4],
              linewidth=1, linestyle='--')


def _draw_legend(axes, look):
  for at, colour, name in ((0, look.question, 'question'),
                           (4, look.blocks, 'blocks, thoughts, latents'),
                           (11, look.readouts, 'written; below, the targets')):
    axes.add_patch(Rectangle((at, 0.2), 0.7, 0.5, facecolor=colour, edgecolor='none'))
    axes.text(at + 0.9, 0.45, name, ha='left', va='center', fontsize=7, color=look.ink)
  axes.text(19.4, 0.45, 'before the answer', ha='left', va='center', fontsize=7, color=look.ink,
            weight='bold')
  axes.set(xlim=METHODS_WIDE, ylim=(0, 1))
  axes.axis('off')


def draw_methods(look):
  """One row of each method: what stands in it, what is supervised, what is fed back."""
  shown = _list_methods()
  figure, axes = plt.subplots(1 + len(shown), 1, figsize=(9, 0.62 * len(shown)),
                              height_ratios=[0.5] + [1] * len(shown))
  figure.subplots_adjust(0, 0, 1, 1, hspace=0)
  _draw_legend(axes[0], look)
  for axis, method in zip(axes[1:], shown):
    rows, label = make_row(method.lay_out, method.layout, *method.removed)
    _draw_tokens(axis, rows, label, look)
    _draw_fed(axis, rows, label, method.fed, look)
    _draw_pair(axis, rows, look)
    axis.text(-0.3, 0.4, method.name, ha='right', va='center', fontsize=8, color=look.ink,
              weight='bold')
    axis.text(19.4, 0.4, method.passes, ha='left', va='center', fontsize=7, color=look.ink)
    axis.set(xlim=METHODS_WIDE, ylim=(-1.2, 1.5))
    axis.axis('off')
  return figure


def draw_curves(data, look):
  """Left: loss after each block over both stages. Right: accuracy after each block."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(2, 1),
                                       layout='tight')
  start = 0
  for stage in data['stages']:
    steps = np.array(stage['step'])
    for block, losses in stage['loss_by_block'].items():
      left.plot(start + steps, losses, color=look.lines[int(block)], linewidth=1,
                label=f'block {block}' if block != '0' else 'before block 1')
    start += int(steps[-1])
    if stage is not data['stages'][-1]:
      left.axvline(start, color=look.ink, linewidth=0.8, linestyle=':')
      left.text(start - 40, 2.4, 'stage 1', ha='right', color=look.ink, fontsize=8)
      left.text(start + 120, 2.4, 'stage 2', ha='left', color=look.ink, fontsize=8)
  known = dict(zip(*left.get_legend_handles_labels()[::-1]))
  left.legend(known.values(), known.keys(), frameon=False, labelcolor=look.ink, fontsize=8,
              loc=(0.05, 0.62))
  left.set_xlabel('update', color=look.ink)
  left.set_ylabel('loss, nats a token', color=look.ink)
  width = 0.38
  for i, stage in enumerate(data['stages']):
    blocks = np.arange(1, len(stage['block_acc']) + 1)
    bars = right.bar(blocks + (i - 0.5) * width, 100 * np.array(stage['block_acc']), width,
                     color=(look.lines[0], look.lines[1])[i], label=f'after {stage["name"]}')
    right.bar_label(bars, fmt='%.0f', color=look.ink, fontsize=7)
  right.axhline(10, color=look.ink, linewidth=0.8, linestyle=':')
  right.text(4.6, 12, 'chance', color=look.ink, fontsize=7)
  right.set(xticks=blocks, xlim=(0.4, 5.3), ylim=(0, 125))
  right.set_xlabel('the answer read after block', color=look.ink)
  right.set_ylabel('% of test questions right', color=look.ink)
  right.legend(frameon=False, labelcolor=look.ink, fontsize=8, loc='upper left', ncols=2)
  for axes in (left, right):
    axes.tick_params(colors=look.ink, labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['bottom', 'left']].set_color(look.ink)
    axes.set_facecolor('none')
  return figure


def collect(workdir) -> dict:
  """What the curves need of a run of configs/rim.py: a few KB."""
  stages = []
  for name in ('stage1', 'stage2'):
    lines = [json.loads(line) for line in (workdir / name / 'metrics.jsonl').read_text().split('\n')
             if line]
    lines = [x for x in lines if 'train/loss' in x][::2]
    blocks = sorted(k.rpartition('_')[2] for k in lines[0] if k.startswith('train/nll_block_'))
    result = json.loads((workdir / name / 'results.json').read_text())['test']
    stages.append({
        'name': name.replace('stage', 'stage '), 'step': [x['step'] for x in lines],
        'loss_by_block': {b: [round(x[f'train/nll_block_{b}'], 4) for x in lines] for b in blocks},
        'block_acc': result['block_acc'], 'final_acc': result['final_acc'], 'n': result['n']})
  card = json.loads((workdir / 'stage2' / 'config.json').read_text())
  return {'command': 'python -m rim_jax.main --config=configs/rim.py',
          'versions': {k: card['versions'][k] for k in ('python', 'jax', 'flax', 'numpy')},
          'device': card['hardware']['device'], 'stages': stages}


def draw_all(data):
  # Text stays text; a fixed salt gives the same file for the same picture.
  with plt.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'rim_jax',
                       'font.family': 'sans-serif'}):
    for look in LOOKS:
      for name, figure in (('row', draw_row(look)), ('methods', draw_methods(look)),
                           ('curves', draw_curves(data, look))):
        figure.savefig(HERE / f'{name}-{look.name}.svg', transparent=True, metadata={'Date': None})
        plt.close(figure)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--run', type=pathlib.Path, help='WORKDIR of a run of configs/rim.py')
  args = parser.parse_args()
  path = HERE / 'data' / 'rim_chain.json'
  if args.run:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(collect(args.run)) + '\n')
  draw_all(json.loads(path.read_text()))


if __name__ == '__main__':
  main()
