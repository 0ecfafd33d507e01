"""The same small search for every method, to tune the methods before they are compared.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/tuning.py --jobs=2
      The chain task. Three learning rates times two values of one key of the method, at a quarter
      of the budget, with seed 3, which the comparison does not use. A method's best setting has the
      highest accuracy on valid; of equal settings, the usual one is taken. Cost: 72 runs of one
      to four minutes of 1 CPU core. Score: of valid, chain of thought 100.0 %, looped RiM 48.4,
      paired RiM 21.2, all others 11 to 14, near chance (docs/results.md).
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/tuning.py:PRESET,METHOD,1
      One method (all methods if METHOD is empty), on any preset, at the whole budget, if a quarter
      of it is too little to choose by. PRESET,METHOD alone takes a quarter. Cost: six runs of
      METHOD's own cost. Score: CODI 100 % of valid in one run of six, at its usual rate, and chance
      in the others (docs/results.md).
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/tuning.py:PRESET,METHOD,1,4
      Also tries 4 times the usual rate, if the highest of the three was the best. Give 0.25 if the
      lowest was the best. With the same --workdir only the two new settings run.
  python -m rim_jax.main --mode=sweep --config=configs/compare.py:PRESET,DIR
      Then compares the methods that were searched, each at its best setting. DIR is the --workdir
      of a search, or a directory with those of several searches.
"""

import pathlib
from typing import Any, NotRequired, TypedDict

from configs import presets
from rim_jax import reader
from rim_jax.config import grid
from rim_jax.errors import UserError, check

SEED = 3
RATES = (1, 0.5, 2)  # factors of a preset's learning rate; of equal settings the first is taken
# Of each method the key that it is most likely to depend on: (key, factors of its usual value).
KNOBS = {
    'direct': ('optim.weight_decay', (1, 10)),
    'pause': ('layout.block_tokens', (1, 2)),
    'icot': ('icot.remove_per_epoch', (1, 2)),
    'coconut': ('coconut.stage_frac', (1, 1.15)),
    'codi': ('distill.weight', (1, 0.3)),
    'pccot': ('distill.weight', (1, 0.3)),
    'lotus': ('lotus.step_weight', (1, 20)),
    'sim_cot': ('aux.weight', (1, 0.25)),
    'cot': ('optim.weight_decay', (1, 10)),
    'rim': ('layout.block_tokens', (1, 2)),
    'rim_paired': ('distill.weight', (1, 0.3)),
    'looped': ('loop.num_passes', (1, 1.5)),
}


class _Mean(TypedDict):
  mean: float


class _Setting(TypedDict):
  """What is read of an entry of sweep.json; a setting without a finished run has no valid_acc."""
  factors: dict
  valid_acc: NotRequired[_Mean | None]


class _Search(TypedDict):
  entries: list[_Setting]


def _make(method: str, preset: str, factors: dict) -> Any:
  """A method with a rate and a value of its own key, {'lr': ..., KEY: ...}, at the whole budget."""
  config = presets.make(method, preset)
  section, _, name = KNOBS[method][0].partition('.')
  usual = config[section][name]
  config.optim.learning_rate = float(factors['lr'])
  config[section][name] = type(usual)(factors[name])
  if name == 'block_tokens':  # a row keeps as many examples
    config.layout.row_tokens += config.layout.num_blocks * (factors[name] - usual)
  return config


def _shorten(config, share: float) -> None:
  """A share of the budget; schedules that count epochs end as early."""
  budget = 'num_examples' if config.train.num_examples else 'num_epochs'
  config.train[budget] = type(config.train[budget])(config.train[budget] * share)
  config.icot.hold_epochs *= share
  config.icot.remove_per_epoch /= share


def _make_points(preset: str, method: str, share: float, rates, base) -> list:
  usual = presets.make(method, preset)
  section, _, name = KNOBS[method][0].partition('.')
  value = usual[section][name]
  points = []
  for rate in rates:
    for factor in KNOBS[method][1]:
      factors = {'lr': usual.optim.learning_rate * rate, name: type(value)(value * factor)}
      own = _make(method, preset, factors)
      own.seed = SEED
      _shorten(own, share)
      points.append(({'method': method} | factors, grid.find_changes(base, own)))
  return points


def find_best(preset: str, directory: str) -> dict[str, Any]:
  """The methods that searches tried, each as its best setting on valid has it: method -> config.

  Args:
    directory: the WORKDIR of a search of `preset`, or a folder that has some.
  Raises: UserError where there is no search, one is not finished, or it is of other keys.
  """
  folder = pathlib.Path(directory)
  files = [p for p in (folder / 'sweep.json', *sorted(folder.glob('*/sweep.json'))) if p.is_file()]
  if not files:
    raise UserError(f'{directory}: has no sweep.json, nor has a folder in it; give the --workdir '
                    f'of configs/sweeps/tuning.py:{preset}')
  searched = {}
  for path in files:
    for entry in reader.load_json(path, 'conclude the search again', _Search)['entries']:
      method = entry['factors'].get('method')
      own = KNOBS.get(method, ('',))[0].rpartition('.')[2]
      if not own or entry['factors'].keys() != {'method', 'lr', own}:
        raise UserError(f'{path}: {grid.name_point(entry["factors"])} is no setting of '
                        'configs/sweeps/tuning.py; give the --workdir of such a search')
      searched.setdefault(method, []).append((entry, path))
  return {method: _choose(method, preset, searched[method]) for method in KNOBS
          if any(entry.get('valid_acc') for entry, _ in searched.get(method, ()))}


def _choose(method: str, preset: str, entries) -> Any:
  """The first of the settings with the highest accuracy on valid."""
  (_, first), *_ = entries
  for entry, path in entries:
    check((path != first, f'{path}: {method} was searched in {first}, too, perhaps at another '
           'budget; give the folder of one of them'),
          (not entry.get('valid_acc'),
           f'{path}: {grid.name_point(entry["factors"])} is not done; finish the search first'))
  return _make(method, preset, max(
      (entry for entry, _ in entries), key=lambda entry: entry['valid_acc']['mean'])['factors'])


def get_config(asked: str = 'chain'):
  preset, method, share, rate, *more = (*asked.split(','), '', '', '', '')[:5]
  try:
    rates = (*RATES, float(rate)) if rate else RATES
  except ValueError:
    rates = ()
  if (method not in ('', *KNOBS) or share not in ('', '1') or any(more)
      or len(set(rates)) < len(rates) or not rates or min(rates) <= 0):
    raise UserError(f"there is no search '{asked}'; ask for PRESET, PRESET,METHOD, "
                    f'PRESET,METHOD,1 or PRESET,METHOD,1,FACTOR (of the rate) with METHOD of '
                    f'{", ".join(KNOBS)}')
  methods = [method] if method else list(KNOBS)
  base = presets.make(methods[0], preset)
  return grid.make_sweep_dict(base, [
      point for name in methods
      for point in _make_points(preset, name, float(share or 0.25), rates, base)])
