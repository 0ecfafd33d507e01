"""How stage 1's weights fade, and when: schedule and hold on the chain task, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/fading.py --jobs=2

With a constant weight `hold` has no effect, so it is not varied there.

Cost: 27 runs of about five minutes of 1 CPU core.
Score: 82 to 83 % when fading begins at once, 99.7 to 100.0 otherwise (means; earlier code).
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  fading = grid.cross(grid.vary('curriculum.schedule', ('relative', 'windowed')),
                      grid.vary('curriculum.hold_frac', (0.0, 0.25, 0.5, 0.75), 'hold'))
  constant = [({'schedule': 'constant', 'hold': 0.0},
               {'curriculum.schedule': 'constant', 'curriculum.hold_frac': 0.0})]
  return grid.make_sweep_dict(base, grid.cross([*fading, *constant], grid.vary_seeds(3)))
