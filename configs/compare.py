"""Every method at equal network, data, examples and seeds, and what they say together.

  python -m rim_jax.main --mode=sweep --config=configs/compare.py [--jobs=2]
      The built-in chain task, three seeds.
  python -m rim_jax.main --mode=sweep --config=configs/compare.py:prosqa_small --jobs=2
      Any preset of configs/presets.py.

Resumable: the same command again runs what is left. One of its runs, by hand:
--point=method=rim,seed=0 in place of --mode=sweep.
"""

from configs import presets
from rim_jax import config as config_lib

METHODS = ('direct', 'pause', 'icot', 'coconut', 'cot', 'rim')
SEEDS = (0, 1, 2)


def get_config(preset: str = 'chain'):
  base = presets.make(METHODS[0], preset)
  points = [({'method': method, 'seed': seed},
             config_lib.find_changes(base, presets.make(method, preset)) | {'seed': seed})
            for seed in SEEDS for method in METHODS]
  return config_lib.make_sweep_dict(base, points)
