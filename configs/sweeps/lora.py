"""The rank of the adapters, of a pretrained model: five ranks, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/lora.py:gpt2 \\
      --config.model.init_from=DIR --config.data.dir=DATA

`model.lora.alpha` stays the same, so an adapter's output is scaled by alpha / rank. Without a
preset it runs the chain task, to try the commands. Its base is random and stays frozen, so it
learns little.

Cost: 15 runs of the preset. Score: not measured.
"""

from configs import presets
from rim_jax.config import grid


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  base.optim.trainable = 'lora'
  base.model.lora.rank = 128
  ranks = grid.vary('model.lora.rank', (8, 16, 32, 64, 128))
  return grid.make_sweep_dict(base, grid.cross(ranks, grid.vary_seeds(3)))
