"""How many passes over the blocks: where RiM stops on a harder chain, and where looped RiM does.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/passes.py --jobs=2 --controls
      R = 1, 2 and 3 at equal examples, and what else a second pass could be exchanged for: twice
      the layers, or one pass with as many FLOPs as two. Cost: 15 runs of 20 to 40 minutes of 1 CPU
      core. Score: not measured.
"""

from configs import presets
from rim_jax.config import grid

# (passes, layers, examples): the chain of two passes computes 1.81 times as much an example.
FORMS = ((1, 4, 768_000), (2, 4, 768_000), (3, 4, 768_000), (1, 8, 768_000), (1, 4, 1_392_000))


def get_config(preset: str = 'chain_harder'):
  base = presets.make('rim', preset)
  forms = [({'passes': passes, 'layers': layers, 'examples': examples},
            {'loop.num_passes': passes, 'model.num_layers': layers,
             'train.num_examples': examples}) for passes, layers, examples in FORMS]
  return grid.make_sweep_dict(base, sorted(
      grid.cross(forms, grid.vary_seeds(3)), key=lambda point: point[1]['seed']))
