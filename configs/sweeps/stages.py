"""Stage 1's share of the budget, from none to all of it: the chain task, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/stages.py --jobs=2

Stage 2 alone is `pause`: the same blocks, answers only, at stage 1's learning rate and dropout.
Stage 1 alone answers as any run does, after `eval.num_blocks` blocks.

Cost: 18 runs of about five minutes of 1 CPU core.
Score: 9.0 % without stage 1, 51.0, 82.8, 100.0, 99.8 and 100.0 with more of it
(means; earlier code).
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  # What configs/rim.py runs comes first: the others are compared with it.
  shares = grid.vary('curriculum.stage1_frac', (0.75, 0.25, 0.5, 0.9), 'stage1')
  alone = [({'stage1': 'none'}, {'method': 'pause', 'layout.depth0_readout': False}),
           ({'stage1': 'all'}, {'method': 'rim_stage1'})]
  return grid.make_sweep_dict(base, grid.cross([*shares, *alone], grid.vary_seeds(3)))
