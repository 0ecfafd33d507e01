"""All methods with equal network, data, examples and seeds, in one report.

  python -m rim_jax.main --mode=sweep --config=configs/compare.py --jobs=2
      The chain task, three seeds. Cost: 36 runs of about five minutes of 1 CPU core.
      Score: direct 9.5, pause 9.3, iCoT 16.5, Coconut 56.1, CODI 16.6, PCCoT 54.1, LOTUS, SIM-CoT
      and chain of thought 100.0, RiM 99.9 % (means over seeds; docs/results.md).
  python -m rim_jax.main --mode=sweep --config=configs/compare.py:PRESET --jobs=2
      Any preset of configs/presets.py. Cost: --dry_run estimates it. Score: not measured, but
      for a part of chain_harder and prosqa_small (docs/results.md).
  python -m rim_jax.main --mode=sweep --config=configs/compare.py:PRESET,DIR --jobs=2
      The methods that a search in DIR tried, each at its best setting there
      (configs/sweeps/tuning.py).
  ... --controls Then also tests whether the blocks or thoughts of each run do the work
  (docs/controls.md).

The same command again does the runs that are left. With --point=method=rim,seed=0 in place of
--mode=sweep it does only this run.
"""

from configs import presets
from configs.sweeps import tuning
from rim_jax.config import grid as grid_lib

METHODS = tuple(tuning.KNOBS)


def get_config(asked: str = 'chain'):
  preset, _, search = asked.partition(',')
  configs = tuning.find_best(preset, search) if search else {
      method: presets.make(method, preset) for method in METHODS}
  base = presets.make(METHODS[0], preset)
  methods = [({'method': method}, grid_lib.find_changes(base, config))
             for method, config in configs.items()]
  return grid_lib.make_sweep_dict(base, grid_lib.repeat(methods, 3))
