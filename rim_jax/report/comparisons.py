"""--mode=compare: do two runs differ on the same questions? From the files that each has left.

Reads cards, results and predictions, never a model; asks for no device.
"""

import dataclasses

from etils import epath
from rich.text import Text

from rim_jax.config import Config
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError, refuse
from rim_jax.report import page, pairwise, tables
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import run_folder, storage

COMPARE_VERSION = 1  # counted up where a key changes its meaning or goes


def compare(config: Config, workdir, other, say, console) -> None:
  """Tests a run, a, against another, b, on the set that config.eval names; WORKDIR/compare.json.

  Args:
    other: the WORKDIR of b, whatever its recipe; of a curriculum its last stage counts.
  Raises: UserError where there is no run, another one than config says, no predictions on the
    set, or the two were asked other questions.
  """
  config, folder = stages_lib.get_last(config, epath.Path(workdir))
  if config.eval.checkpoint == 'splits':
    raise UserError("eval.checkpoint='splits': several checkpoints were scored, so that there is "
                    'no one answer a question to compare; take best, or last')
  refuse(card_lib.find_differences(card_lib.load_card(folder), config, folder))
  runs = {'a': _read_run(folder, config), 'b': _read_run(_find_run(other), config)}
  if storage.get_absolute(runs['a']['run']) == storage.get_absolute(runs['b']['run']):
    raise UserError(f'--with={other}: is the run itself; name another one')
  a, b = (epath.Path(run['run']) / 'predictions' / f'{run["set"]}.jsonl' for run in runs.values())
  found = run_folder.compare_files(a, b)
  for key, alone in (('a', found.only_a), ('b', found.only_b)):
    runs[key]['acc'] = (found.both + alone) / found.count
  _show(console, runs, found)
  path = epath.Path(workdir) / 'compare.json'
  storage.write_json(path, {'format': COMPARE_VERSION, **runs, **dataclasses.asdict(found)})
  say(f'{path}: the same as JSON')
  for run in runs.values():
    for line in run_folder.RunFolder(run['run']).list_unsealed():
      say(line)


def _find_run(named) -> epath.Path:
  """The folder of a run: the one named, or the last stage below it that has begun.

  Raises: UserError where neither is one.
  """
  folder = epath.Path(named)
  stages = sorted(folder.glob('stage*'), key=lambda path: (len(path.name), path.name))
  for path in (*reversed(stages), folder):
    if (path / 'config.json').exists():
      return path
  fix = (f'is a sweep; name one of its runs, --with={folder}/points/NAME'
         if (folder / 'points').exists() else 'there is no run here; name the WORKDIR of one')
  raise UserError(f'--with={named}: {fix}')


def _read_run(folder, config: Config) -> dict:
  """What tells a run from another, and the name that it has for the set of config.eval."""
  card = card_lib.load_card(folder)['config']
  theirs = dataclasses.replace(config, method=card['method'], layout=dataclasses.replace(
      config.layout, num_blocks=card['layout']['num_blocks']))
  result = run_folder.RunFolder(folder).load_results().get(theirs.eval_set)
  return {'run': str(folder), 'set': theirs.eval_set, 'method': card['method'],
          'seed': card['seed'], 'step': result and result.step,
          'checkpoint': result and result.checkpoint}


def _show(console, runs, found) -> None:
  rows = [[key, run['run'], run['method'], str(run['seed']),
           '' if run['step'] is None else f"{run['step']:,} ({run['checkpoint']})", run['set'],
           tables.share(run['acc'])] for key, run in runs.items()]
  page.show(console, [tables.table(['', 'run', 'method', 'seed', 'step', 'set', '% right'], rows,
                                   f'Two runs on the same {found.count:,} questions')])
  low, high = (100 * x for x in found.interval)
  console.print(Text(
      f'a less b: {100 * found.difference:+.1f} points, {found.confidence:.0%} interval '
      f'[{low:+.1f}, {high:+.1f}]\n'
      f'right by both {found.both:,}, by a alone {found.only_a:,}, by b alone {found.only_b:,}, by '
      f'neither {found.neither:,}\n'
      f"McNemar's p, exact: {pairwise.show_chance(found.p_value)}, of these two runs alone: other "
      'seeds may differ'))
