"""What paired states teach if teacher and student are compared at the same token: chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/aligned.py --jobs=2
  python -m rim_jax.main --config=configs/cot.py --workdir=runs/cot
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/aligned.py \\
      --config.train.init_from=runs/cot --workdir=runs/aligned_written --jobs=2
      From scratch, and from a network that already writes chains, as the authors of CODI and PCCoT
      begin with a pretrained one.

In configs/compare.py the chain task has no prefix before an answer. The student's state is then
taken at `</b>`, and the teacher's state at a line break. Here a line break stands before every
answer. So both states are taken at a line break, as in the authors' code (methods/paired.py). With
`weight=0.0` no distance is counted: CODI's thoughts and its written chain share a row, and nothing
else.

Cost: 12 runs of about six minutes of 1 CPU core. Score: from scratch, seed 0: CODI 12.3 %, PCCoT
10.7, paired RiM 100.0. From a network that writes chains: CODI 10.2 and 12.6 (seeds 0 and 1),
PCCoT 100.0, 20.1 and 100.0. Others not run.
"""

from configs import presets
from rim_jax.config import grid
from rim_jax.errors import UserError

ROWS = (('codi', 1.0), ('pccot', 1.0), ('rim_paired', 1.0), ('codi', 0.0))


def get_config(preset: str = 'chain'):
  if preset != 'chain':
    raise UserError(f"preset '{preset}': its template forces a prefix as it is; compare there with "
                    'compare.py')
  base = presets.make(ROWS[0][0], preset)
  points = []
  for method, weight in ROWS:
    config = presets.make(method, preset)
    config.distill.weight = weight
    config.layout.update({'answer_prefix': '\n',
                          'row_tokens': config.layout.row_tokens + 5})  # a prefix for each readout
    points.append(({'method': method, 'weight': weight}, grid.find_changes(base, config)))
  return grid.make_sweep_dict(base, grid.repeat(points, 3))
