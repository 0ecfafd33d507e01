"""Who spells the steps from the thoughts: a second network in place of the own one, and on CODI.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/spelling.py --jobs=2

Thoughts of Coconut or CODI must spell their steps in training (methods/sim_cot.py), either to the
network itself (`decoder=shared`) or to a second one that begins as its copy (`decoder=copy`), as
SIM-CoT's authors have it. Coconut with `shared` is `sim_cot` in configs/compare.py; without a
decoder the hosts are `coconut` and `codi` there. For the chain task, whose rows are made longer for
what CODI's thoughts spell.

Cost: 9 runs; not measured. Score: not measured.
"""

from configs import presets
from rim_jax.config import grid
from rim_jax.errors import UserError

ROWS = (('sim_cot', 'copy'), ('codi', 'shared'), ('codi', 'copy'))


def get_config(preset: str = 'chain'):
  if preset != 'chain':
    raise UserError(f"preset '{preset}': rows are as long as the chain task needs; use chain")
  base = presets.make(ROWS[0][0], preset)
  points = []
  for method, decoder in ROWS:
    config = presets.make(method, preset)
    config.aux.decoder = decoder
    if method == 'codi':
      config.aux.last_step = False  # which CODI's written chain leaves out, too
      config.layout.row_tokens = 29
    points.append(({'host': method, 'decoder': decoder}, grid.find_changes(base, config)))
  return grid.make_sweep_dict(base, grid.repeat(points, 3))
