"""Keeps what finished runs of a sweep say in docs/kept/, and makes docs/results.md's tables of it.

  python -m docs.make_tables --sweep=runs/compare --name=compare_chain   # keeps its finished runs
  python -m docs.make_tables                                             # makes the tables again

A kept run is one JSON file: its configuration without paths, the code's commit, versions and
hardware, its results on test (of stage 1 too, where that was asked for steps; of the chain task
also modulo 2 and 5) and its controls. A table has a row for each setting of its recipe that has a
run, and names the runs that it lacks. A test holds the page to the files.
"""

import argparse
import json
import math
import pathlib
import statistics
import textwrap

from configs import compare
from configs.sweeps import (
  aligned,
  hidden,
  inside,
  latents,
  passes,
  stories,
  targets,
  tuning,
  wrong_steps,
)
from rim_jax import reader
from rim_jax.config import PATH_KEYS, flatten, grid
from rim_jax.planning import cost
from rim_jax.runtime.run_folder import RunFolder

RUNS = pathlib.Path(__file__).parent / 'kept'
PAGE = RUNS.parent / 'results.md'
SEEDS = range(3)
SWEEPS = {'aligned': aligned.get_config(),  # of each table
          'aligned_written': aligned.get_config(),
          'compare_chain': compare.get_config(),
          'compare_chain_harder': compare.get_config('chain_harder'),
          'prosqa_longer': compare.get_config('prosqa_small'),
          'hidden': hidden.get_config(), 'inside': inside.get_config(),
          'passes': passes.get_config(),
          'latents': latents.get_config(),
          'stories_cpu': stories.get_config('cpu'), 'targets': targets.get_config(),
          'targets_written': targets.get_config(),
          'tuning_chain': tuning.get_config(),
          'tuning_chain_whole': tuning.get_config('chain,,1'),
          'wrong_steps': wrong_steps.get_config()}
SEARCHES = ('tuning_chain', 'tuning_chain_whole')  # a row of their tables has a method's settings
# Whose questions are longer than what their trunks were padded to, so that times say something.
TIMED = ('stories_cpu',)
# Whose questions take more steps or fewer, which is worth telling apart.
BY_STEPS = ('prosqa_longer',)
# Where networks learned a part of the arithmetic: the answer modulo 5, or modulo 2.
PARTLY = ('aligned', 'aligned_written', 'hidden', 'latents', 'targets', 'targets_written')
MISSING = '–'


def keep(sweep: pathlib.Path, name: str) -> list[str]:
  """Writes a file for each finished run of a sweep; returns their names."""
  kept = []
  for folder in sorted((sweep / 'points').iterdir()):
    status = folder / 'point.json'
    if not status.exists() or json.loads(status.read_text())['status'] != 'done':
      continue
    card = json.loads((folder / 'config.json').read_text())
    last = RunFolder(folder / card['stages'][-1] if 'stages' in card else folder)
    card |= {key: value for key, value in last.load_card().items() if key != 'config'}
    config = {key: value for key, value in flatten(card['config']).items()
              if key not in (*PATH_KEYS, 'eval.sets')}
    controls = reader.to_tree(last.load_controls()) if last.controls.exists() else None
    for control in (controls or {'controls': {}})['controls'].values():
      if 'run' in control:  # a matched run, by its path
        control['run'] = pathlib.Path(control['run']).name
    kept.append(folder.name)
    # A result's name may end in how many questions were asked; the test file's is the first.
    results = {key.partition('-')[0]: reader.to_tree(result)
               for key, result in last.load_results().items()}
    steps = _find_steps(folder / stage for stage in card.get('stages', ()))
    path = RUNS / name / f'{folder.name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        'point': folder.name, 'commit': card['commit'], 'versions': card['versions'],
        'hardware': {key: card['hardware'][key] for key in ('device', 'num_devices', 'mesh')},
        'data': card['data'], 'config': config,
        'test': results.pop('test'), **({'sets': results} if results else {}),
        **({'steps': steps} if steps else {}),
        **({'modulo': _count_modulo(last)} if card['config']['data']['source'] == 'chain' else {}),
        'controls': controls}, indent=1) + '\n')
  if name in SEARCHES:
    keep_choices(sweep, name)
  return kept


def keep_choices(sweep: pathlib.Path, name: str) -> None:
  """Of a search's sweep.json what chooses: by it configs/compare.py takes each method's best.

  What was kept of other methods stays.
  """
  found = [{'factors': entry['factors'], 'valid_acc': {'mean': entry['valid_acc']['mean']}}
           for entry in json.loads((sweep / 'sweep.json').read_text())['entries']
           if 'valid_acc' in entry]
  methods = {entry['factors']['method'] for entry in found}
  path = RUNS / name / 'sweep.json'
  before = json.loads(path.read_text())['entries'] if path.exists() else []
  kept = [entry for entry in before if entry['factors']['method'] not in methods] + found
  path.write_text(json.dumps({'entries': kept}, indent=1) + '\n')


def _find_steps(stages) -> list[float] | None:
  """Of the stage that was asked for them, the share of steps r_2, r_3, ... that its blocks say."""
  for stage in stages:
    for key, result in RunFolder(stage).load_results().items():
      if key.partition('-')[0] == 'test' and result.step_acc_by_block:
        return result.step_acc_by_block
  return None


def _count_modulo(run: RunFolder) -> dict[str, float]:
  """Share of test's answers that are right modulo 2 and 5: a network may know a part of a digit."""
  predictions = run.load_predictions('test')

  def is_right(p, by):
    return p.prediction.isdecimal() and (int(p.prediction) - int(p.answer)) % by == 0
  return {str(by): statistics.mean(is_right(p, by) for p in predictions) for by in (2, 5)}


def load(name: str) -> dict[tuple[str, int], dict]:
  """(setting, seed) -> the kept run of that name."""
  runs = [json.loads(path.read_text()) for path in sorted((RUNS / name).glob('*=*.json'))]
  return {(_name_setting(run['point']), run['config']['seed']): run for run in runs}


def list_settings(name: str) -> list[str]:
  """The settings of a sweep, in the order of its recipe."""
  points = [','.join(f'{key}={value}' for key, value in point['factors'].items())
            for point in SWEEPS[name].points]
  return list(dict.fromkeys(map(_name_setting, points)))


def _name_setting(point: str) -> str:
  """A point's name without its seed; where settings are methods, the method's name is enough."""
  return point.partition(',seed=')[0].removeprefix('method=')


def make_table(name: str) -> str:
  """A row for each setting that has a run, with what it has on other files, and what is missing."""
  runs, settings = load(name), list_settings(name)
  sets = sorted({key for run in runs.values() for key in run.get('sets', ())})
  counts = sorted({count for run in runs.values() for count in run['test'].get('steps_acc', ())}
                  if name in BY_STEPS else ())
  with_steps = len({setting for (setting, _), run in runs.items() if 'steps' in run}) > 1
  head = ['setting' if '=' in settings[0] else 'method', 'final answer by seed, %', 'mean (s.e.)',
          *(['right modulo 5, modulo 2, by seed'] * (name in PARTLY)),
          *(f'{count} steps, by seed' for count in counts),
          'after block 1, 2, ...: mean', *(['r_2, r_3, ... after stage 1: mean'] * with_steps),
          *(['first answer token, x direct (median)'] * (name in TIMED)),
          *(f'`{key}` by seed, %' for key in sets)]
  rows = []
  for setting in settings:
    there = [runs[setting, seed] for seed in SEEDS if (setting, seed) in runs]
    if not there:
      continue
    tests = [run['test'] for run in there]
    others = (_list_seeds(runs, setting, lambda run, key=key: run['sets'][key]) for key in sets)
    rows.append([f'`{setting}`', _list_seeds(runs, setting, lambda run: run['test']),
                 _average(tests), *([_list_modulo(runs, setting)] if name in PARTLY else []),
                 *(_list_seeds(runs, setting, lambda run: run['test']['steps_acc'], count)
                   for count in counts),
                 _list_means([test['block_acc'] for test in tests]),
                 *([_list_means([run.get('steps', []) for run in there])] * with_steps),
                 *([_time(tests)] * (name in TIMED)), *others])
  return '\n'.join([*_draw(head, rows), '', *_list_missing(runs, settings)])


def make_search(name: str) -> str:
  """A row for each value of a method's own key: % of valid at each rate, the method's best bold."""
  found, order = {}, list(tuning.KNOBS)
  entries = json.loads((RUNS / name / 'sweep.json').read_text())['entries']
  for entry in sorted(entries, key=lambda entry: order.index(entry['factors']['method'])):
    (_, method), (_, rate), (key, value) = entry['factors'].items()
    found[method, f'{key}={value:.3g}', rate] = 100 * entry['valid_acc']['mean']
  best = {max((at for at in found if at[0] == method), key=found.__getitem__)  # the first of equals
          for method, *_ in found}
  rates = sorted({rate for *_, rate in found})

  def show(at):
    mark = '**' if at in best else ''
    return f'{mark}{found[at]:.1f}{mark}' if at in found else MISSING
  return '\n'.join(_draw(['method', 'its own key', *(f'rate {rate:g}' for rate in rates)], [
      [f'`{method}`', f'`{own}`', *(show((method, own, rate)) for rate in rates)]
      for method, own in dict.fromkeys(at[:2] for at in found)]))


def make_costs(name: str) -> str:
  """A row for each method: what its training and an answer cost."""
  runs = load(name)
  flops = {setting: cost.estimate(grid.load_points(
      SWEEPS[name], name, f'method={setting},seed=0')[0].config).flops
           for setting in list_settings(name)}
  return '\n'.join(_draw(
      ['method', 'FLOPs of training, x direct', 'passes until the first answer token',
       'tokens that the layers read until then'],
      [[f'`{setting}`', f"{flops[setting] / flops['direct']:.2f}", *map(str, count_to_first(
          runs[setting, 0]['test']['latency'][0],
          runs[setting, 0]['config']['layout.block_tokens']))] for setting in flops]))


def count_to_first(entry: dict, block_tokens: int) -> tuple[int, int]:
  """Of an answer: (passes one after the other, tokens that they read) until its first token.

  Args:
    entry: what a run's results say of its latency.
  """
  assert not entry['prefix_tokens'], 'a forced prefix is not counted here'
  thoughts, rounds = entry['num_thoughts'], entry.get('num_passes', 1)
  blocks = entry['num_blocks'] * ((thoughts or block_tokens) + 2)
  written = entry['generated_to_first'] - 1
  # Thoughts that are found one by one: a pass for each, whose tokens are the block's.
  turns = thoughts if thoughts and rounds == 1 else 0
  return rounds + turns + written, entry['prompt_tokens'] + rounds * blocks + written


def make_controls(name: str, setting: str) -> str:
  """A row for each change of the blocks, with what it gave after the last block."""
  runs = load(name)
  if any(run['controls'] is None for (of, _), run in runs.items() if of == setting):
    return 'They were not asked of all of these runs yet.'

  def tell(control, key='final_acc'):
    return _list_seeds(runs, setting, lambda run: run['controls']['controls'][control], key)
  return '\n'.join(_draw(['% right after the last block, by seed', 'found'], [
      ['as trained', tell('as_trained')], ['no blocks', tell('no_blocks')],
      ['all blocks from another question: own answer', tell('swapped')],
      ["the same: the other question's right answer", tell('swapped', 'final_donor_acc')],
      ['the same questions, with nothing changed', tell('swapped', 'unchanged_acc')],
      ['averaged over other questions', tell('averaged')],
      ['block rows drawn anew', tell('untrained_rows')],
      ['question hidden from the readout in this test, not in training',
       tell('question_hidden')]]))


def make_swaps(name: str, settings=None) -> str:
  """A row for each setting, by seed: whether its blocks hold the answer, of runs with controls.

  Args:
    settings: of them these; all without it.
  """
  runs = {key: run for key, run in load(name).items() if run['controls']}
  asked = {setting for setting, _ in runs}

  def tell(setting, *keys):
    return ' / '.join(', '.join(
        show(runs[setting, seed]['controls']['controls'][control].get(key))
        for control, key in keys) if (setting, seed) in runs else MISSING for seed in SEEDS)

  def show(share):  # one block has no other order
    return MISSING if share is None else f'{100 * share:.0f}'
  right = 'final_acc'
  head = ['% right after the last block', 'as trained', 'no blocks',
          'all blocks from another question: own, donor', 'averaged', 'in another order',
          'rows drawn anew', 'question hidden in this test, not in training']
  rows = [['expected, if the memory does the work', '', '', '0, 100', '10', '', '', '100'], *(
      [f'`{setting}`', tell(setting, ('as_trained', right)), tell(setting, ('no_blocks', right)),
       tell(setting, ('swapped', right), ('swapped', 'final_donor_acc')),
       *(tell(setting, (control, right))
         for control in ('averaged', 'permuted', 'untrained_rows', 'question_hidden'))]
      for setting in settings or list_settings(name) if setting in asked)]
  return '\n'.join(_draw(head, rows))


def _draw(head: list[str], rows: list[list[str]]) -> list[str]:
  return [f'| {" | ".join(head)} |', '|---' * len(head) + '|',
          *(f'| {" | ".join(cells)} |' for cells in rows)]


def _list_seeds(runs, setting, get_result, key='final_acc') -> str:
  return ' / '.join(f'{100 * get_result(runs[setting, seed])[key]:.1f}'
                    if (setting, seed) in runs else MISSING for seed in SEEDS)


def _list_modulo(runs, setting) -> str:
  return ' / '.join(', '.join(f"{100 * runs[setting, seed]['modulo'][by]:.0f}" for by in '52')
                    if (setting, seed) in runs else MISSING for seed in SEEDS)


def _list_missing(runs, settings) -> list[str]:
  lines = []
  for seed in SEEDS:
    there = [s for s in settings if (s, seed) in runs]
    left = [s for s in settings if (s, seed) not in runs]
    told = f'all but {"; ".join(there)}' if 0 < len(there) < len(left) else '; '.join(left)
    if left:
      lines += textwrap.wrap(f'Missing with seed {seed}: {told if there else "all"}.', 120,
                             break_on_hyphens=False)
  return lines or ['No run is missing.']


def _average(tests) -> str:
  accs = [100 * test['final_acc'] for test in tests]
  if len(accs) < len(SEEDS):
    return MISSING
  return f'{statistics.mean(accs):.1f} ({statistics.stdev(accs) / math.sqrt(len(accs)):.1f})'


def _list_means(by_run: list[list[float]]) -> str:
  """Means over runs, in %, of what each has one for each block."""
  if not by_run or len(by_run[0]) < 2:
    return MISSING
  return ' / '.join(f'{100 * statistics.mean(accs):.0f}' for accs in zip(*by_run, strict=True))


def _time(tests) -> str:
  ratios = [test['ttft_ratio'] for test in tests if test.get('ttft_ratio')]
  return f'{statistics.median(ratios):.2f}' if ratios else MISSING


def write_tables(page: str) -> str:
  """The page with each table between its two marks."""
  tables = {f'table {name}': make_table(name) for name in SWEEPS if name not in SEARCHES}
  tables |= {f'settings in {name}': make_search(name) for name in SEARCHES}
  tables |= {f'costs of {name}': make_costs(name)
             for name in ('compare_chain', 'compare_chain_harder')}
  tables['swaps in compare_chain'] = make_swaps(
      'compare_chain', ('rim', 'rim_paired', 'looped', 'lotus', 'sim_cot'))
  tables['swaps in compare_chain_harder'] = make_swaps('compare_chain_harder', ('lotus', 'sim_cot'))
  tables['swaps in inside'] = make_swaps('inside')
  tables['swaps in passes'] = make_swaps('passes')
  tables['controls of rim in stories_cpu'] = make_controls('stories_cpu', 'rim')
  for name, table in tables.items():
    begin, end = f'<!-- {name}: python -m docs.make_tables -->', '<!-- end -->'
    before, found, rest = page.partition(begin)
    if not found:
      raise ValueError(f'{PAGE.name} has no place for {name}: {begin}')
    page = f'{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}'
  return page


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--sweep', type=pathlib.Path, help='WORKDIR of a sweep')
  parser.add_argument('--name', help='the name of its table')
  args = parser.parse_args()
  if args.sweep:
    print('kept:', ', '.join(keep(args.sweep, args.name)))
  PAGE.write_text(write_tables(PAGE.read_text()))
