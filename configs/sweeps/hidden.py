"""Which methods still answer when readouts cannot see the question: do their latents hold it?

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/hidden.py --jobs=2
      The chain task. A line break stands before every answer, so that no answer is read at a token
      that sees the question. Readouts see only the blocks or thoughts, in training and afterwards.
      Coconut, SIM-CoT and LOTUS write steps in their first stages. As soon as there are latents,
      these steps cannot see the question either. Cost: 27 runs of about five minutes of 1 CPU core.
      Score: RiM 99.9 / 99.8 / 99.8 % (seeds 0, 1, 2), looped 99.9 / 99.9 / 100.0, paired 99.9 /
      48.2 / 19.7, PCCoT 9.8 / 41.4 / 100.0, CODI 8.7 / 8.9 / 99.9, pause 11.1 / 9.1 / 9.1; of
      seed 0 alone, LOTUS and SIM-CoT 100.0 and Coconut 50.6.
"""

from configs import presets
from rim_jax.config import grid
from rim_jax.errors import UserError

METHODS = ('rim', 'rim_paired', 'looped', 'pause', 'codi', 'pccot', 'coconut', 'sim_cot', 'lotus')


def get_config(preset: str = 'chain'):
  if preset != 'chain':
    raise UserError(f"preset '{preset}': rows there have no room for a forced prefix; use chain")
  base = presets.make(METHODS[0], preset)
  points = []
  for method in METHODS:
    config = presets.make(method, preset)
    config.layout.update({'answer_prefix': '\n', 'readout_sees_question': False,
                          'row_tokens': config.layout.row_tokens + 5})  # a prefix for each readout
    points.append(({'method': method}, grid.find_changes(base, config)))
  return grid.make_sweep_dict(base, grid.repeat(points, 3))
