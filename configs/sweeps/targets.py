"""The paper's targets and its fading, each alone and both: which learn? The chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/targets.py --jobs=2
      From scratch; with --config.train.init_from=runs/cot from a network that writes chains.

`depth0=False` are the paper's targets: block t predicts r_{t+1}, and r_1 is never a target. With
the readout before block 1, which configs/rim.py has, r_1 is a target too. `hold=0.0` is the paper's
fading, from the first update on. configs/rim.py keeps the weights at 1 for three quarters of stage
1.

Cost: 12 runs of about four minutes of 1 CPU core. Score: 9.1 % with the paper's targets and fading,
83.1 % with its targets alone, 82.8 % with its fading alone, 100.0 % with neither. From a network
that writes chains 8.5 % with both, 100.0 % with either alone (means).
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  targets = grid.vary('layout.depth0_readout', (False, True), 'depth0')
  fading = grid.vary('curriculum.hold_frac', (0.0, 0.75), 'hold')
  return grid.make_sweep_dict(presets.make('rim', preset), grid.repeat(
      grid.cross(targets, fading), 3))
