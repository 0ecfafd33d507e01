"""One detail of the method changed at a time, compared with the preset: the chain, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/details.py --jobs=2
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/details.py:gpt2 \\
      --config.model.init_from=DIR --config.data.dir=DATA

The details are: the weights of the blocks' answers (alpha), whether readouts see the question,
whether tokens of a block see each other, the first values of the memory rows, and whether stage 2
keeps stage 1's optimizer moments. Each level is compared with `none`. Readouts that do not see the
question need a `layout.answer_prefix`. The chain's preset has none, so this level is left out
there; reading.py tries it.

Cost: 21 runs of about five minutes of 1 CPU core; 24 on a preset. Score: not measured.
"""

from configs import presets
from rim_jax.config import grid

CHANGES = {
    'none': {},
    'alpha uniform': {'curriculum.alpha': 'uniform'},
    'alpha final': {'curriculum.alpha': 'final'},
    'blocks bidirectional': {'layout.bidirectional_blocks': True},
    'rows from a token': {'model.memory_init': 'token'},
    'rows from noise': {'model.memory_init': 'normal'},
    'optimizer kept': {'curriculum.reset_optimizer': False},
}


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  changes = dict(CHANGES)
  if base.layout.answer_prefix:
    changes['question hidden'] = {'layout.readout_sees_question': False}
  axis = [({'changed': name}, values) for name, values in changes.items()]
  return grid.make_sweep_dict(base, grid.cross(axis, grid.vary_seeds(3)))
