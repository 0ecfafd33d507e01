"""Whether targets inside the blocks make RiM's blocks hold the answer: the chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/inside.py --jobs=2 --controls

With `inside=1.0` the `<m>` of block k also predicts step k (methods/inside.py), in both stages;
without, this is configs/rim.py. Controls test whether the blocks hold the answer
(docs/controls.md).

Cost: 6 runs of about five minutes of 1 CPU core. Score: with
`inside=1.0` 100.0 % on all seeds; the blocks hold the answer in part with seed 0, not with seeds 1
and 2. Without: as configs/rim.py; not run with controls here.
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  return grid.make_sweep_dict(presets.make('rim', preset), grid.repeat(
      grid.vary('curriculum.inside_weight', (1.0, 0.0), 'inside'), 3))
