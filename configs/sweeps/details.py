"""One detail of the method changed at a time, against the preset as it is: the chain, three seeds.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/details.py --jobs=2
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/details.py:gpt2 \\
      --config.model.init_from=DIR --config.data.dir=DATA

How much each block's answer counts (alpha), whether readouts see the question, whether tokens of a
block see each other, where the memory rows begin. A readout before block 1 has the question alone,
so where it is hidden that readout goes too; `no depth0` is what to compare it with then. Each level
is compared with `none`. 24 runs on the chain (21 on a preset without that readout), of about five
minutes of one core.
"""

from configs import presets
from rim_jax import points

CHANGES = {
    'none': {},
    'alpha uniform': {'curriculum.alpha': 'uniform'},
    'alpha final': {'curriculum.alpha': 'final'},
    'question hidden': {'layout.readout_sees_question': False, 'layout.depth0_readout': False},
    'blocks bidirectional': {'layout.bidirectional_blocks': True},
    'rows from a token': {'model.memory_init': 'token'},
    'rows from noise': {'model.memory_init': 'normal'},
}


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  changes = dict(CHANGES)
  if base.layout.depth0_readout:
    changes['no depth0'] = {'layout.depth0_readout': False}
  axis = [({'changed': name}, values) for name, values in changes.items()]
  return points.make_sweep_dict(base, points.cross(axis, points.vary_seeds(3)))
