"""Every method at equal network, data, examples and seeds, and what they say together.

  python -m rim_jax.main --mode=sweep --config=configs/compare.py [--jobs=2]
      The built-in chain task, three seeds.
  python -m rim_jax.main --mode=sweep --config=configs/compare.py:prosqa_small --jobs=2
      Any preset of configs/presets.py.
  ... --controls
      And then, of each run with memory, whether it does the work.

Resumable: the same command again runs what is left. One of its runs, by hand:
--point=method=rim,seed=0 in place of --mode=sweep.
"""

from configs import presets
from rim_jax.config import grid as grid_lib

METHODS = ('direct', 'pause', 'icot', 'coconut', 'cot', 'rim')


def get_config(preset: str = 'chain'):
  base = presets.make(METHODS[0], preset)
  methods = [({'method': method}, grid_lib.find_changes(base, presets.make(method, preset)))
             for method in METHODS]
  grid = grid_lib.cross(methods, grid_lib.vary_seeds(3))
  # A whole seed first: a comparison that is stopped early has every method.
  return grid_lib.make_sweep_dict(base, sorted(grid, key=lambda point: point[1]['seed']))
