"""A harder chain with more passes over the blocks, and with more layers: which helps?

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/passes.py --jobs=2 --controls
      R = 1, 2 and 3 with two layers and with four, at equal examples; one pass with as many FLOPs
      as two and as three passes; and one pass through R times as many layers. Cost: 36 runs of 10
      to 40 minutes of 1 CPU core, and by their FLOPs up to 120. Score: some of the
      runs, docs/results.md.
"""

from configs import presets
from rim_jax.config import grid
from rim_jax.errors import UserError

# (layers, passes, examples): an example of two passes computes 1.81 times as much as of one, and of
# three passes 2.28 times.
FORMS = ((4, 1, 768_000), (2, 1, 768_000), (2, 2, 768_000), (2, 3, 768_000), (4, 2, 768_000),
         (4, 3, 768_000), (2, 1, 1_392_000), (4, 1, 1_392_000), (4, 1, 1_749_504),
         (6, 1, 768_000), (8, 1, 768_000), (12, 1, 768_000))


def get_config(preset: str = 'chain_harder'):
  if preset != 'chain_harder':
    raise UserError(f"preset '{preset}': these layers and examples are for chain_harder; use it")
  base = presets.make('rim', preset)
  forms = [({'layers': layers, 'passes': passes, 'examples': examples},
            {'model.num_layers': layers, 'loop.num_passes': passes,
             'train.num_examples': examples}) for layers, passes, examples in FORMS]
  return grid.make_sweep_dict(base, grid.repeat(forms, 3))
