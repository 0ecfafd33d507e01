"""How many memory blocks, and how many tokens each: K and M on the chain task, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/blocks.py --jobs=2

The chain has four steps. Stage 1 has one block for each step, whatever K is. So with K below 4,
stage 2 must answer from fewer blocks than stage 1 had.

Cost: 21 runs of about five minutes of 1 CPU core.
Score: 82.9 % with K = 1, 99.7 to 100.0 with 2, 4 or 8 blocks of 1 to 3 tokens
(means; earlier code).
"""

from configs import presets
from rim_jax.config import grid as grid_lib


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  if preset == 'chain':  # its rows are one example, exactly; those of others hold 8 blocks of 2
    base.layout.row_tokens = 9 + 8 * 5 + 4  # question, the most tokens of blocks, readouts
  sizes = [({'K': k, 'M': m}, {'layout.num_blocks': k, 'layout.block_tokens': m})
           for k, m in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 3))]
  return grid_lib.make_sweep_dict(base, grid_lib.repeat(sizes, 3))
