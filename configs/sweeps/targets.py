"""The paper's targets from scratch, with and without a readout before block 1: the chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/targets.py --jobs=2

Alone (`depth0=False`) block t predicts r_{t+1} and r_1 is never a target; with the readout, which
is what configs/rim.py runs, r_1 is one too.

Cost: 6 runs of about five minutes of 1 CPU core.
Score: 96.8 % without the readout before block 1, 99.8 with it (means; earlier code).
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  targets = grid.vary('layout.depth0_readout', (False, True), 'depth0')
  return grid.make_sweep_dict(presets.make('rim', preset),
                              grid.cross(targets, grid.vary_seeds(3)))
