"""The same small search for every method, before methods are compared: untuned, no row says much.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/tuning.py --jobs=2
      The chain task. Three learning rates times two values of one key of the method's own, at a
      quarter of the budget, with seed 3, which no table reports. A method's best is the setting
      with the highest accuracy on valid. Cost: 72 runs of about a minute and a half of 1 CPU core.
      Score: direct, pause, iCoT, Coconut, CODI and PCCoT: 8 to 12 % in each of 36 runs, near
      chance (docs/results.md); the others were not run.
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/tuning.py:PRESET,METHOD
      One method, on any preset. And at a whole budget, where a quarter is too little to choose by:
      :PRESET,METHOD,1. Cost: six runs of METHOD's own cost. Score: not measured.
"""

from configs import compare, presets
from rim_jax.config import grid
from rim_jax.errors import UserError

SEED = 3
# Of each method the key that it is most likely to depend on: (key, factors of its usual value).
KNOBS = {
    'direct': ('optim.weight_decay', (1, 10)),
    'pause': ('layout.block_tokens', (1, 2)),
    'icot': ('icot.remove_per_epoch', (1, 2)),
    'coconut': ('coconut.stage_frac', (1, 0.75)),
    'codi': ('distill.weight', (1, 20)),
    'pccot': ('distill.weight', (1, 20)),
    'lotus': ('lotus.step_weight', (1, 20)),
    'sim_cot': ('aux.weight', (1, 0.25)),
    'cot': ('optim.weight_decay', (1, 10)),
    'rim': ('layout.block_tokens', (1, 2)),
    'rim_paired': ('distill.weight', (1, 20)),
    'looped': ('loop.num_passes', (1, 1.5)),
}


def _make_points(preset: str, method: str, share: float, base) -> list:
  config = presets.make(method, preset)
  budget = 'num_examples' if config.train.num_examples else 'num_epochs'
  config.train[budget] = type(config.train[budget])(config.train[budget] * share)
  # These two count epochs.
  config.icot.hold_epochs *= share
  config.icot.remove_per_epoch /= share
  key, factors = KNOBS[method]
  section, _, name = key.partition('.')
  usual = config[section][name]
  points = []
  for scale in (0.5, 1, 2):
    for factor in factors:
      own = presets.make(method, preset)
      own.update(config)
      own.seed = SEED
      own.optim.learning_rate *= scale
      own[section][name] = type(usual)(usual * factor)
      if key == 'layout.block_tokens':  # a row keeps as many examples
        own.layout.row_tokens += own.layout.num_blocks * (own.layout.block_tokens - usual)
      points.append(({'method': method, 'lr': own.optim.learning_rate,
                      name: own[section][name]}, grid.find_changes(base, own)))
  return points


def get_config(asked: str = 'chain'):
  preset, method, share, *more = (*asked.split(','), '', '', '')[:4]
  if method not in ('', *KNOBS) or share not in ('', '1') or any(more):
    raise UserError(f"there is no search '{asked}'; ask for PRESET, PRESET,METHOD or "
                    f"PRESET,METHOD,1 with METHOD of {', '.join(KNOBS)}")
  methods = [method] if method else compare.METHODS
  base = presets.make(methods[0], preset)
  return grid.make_sweep_dict(base, [
      point for name in methods
      for point in _make_points(preset, name, float(share or 0.25), base)])
