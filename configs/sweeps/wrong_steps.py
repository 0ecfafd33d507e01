"""What a method loses when a tenth of its training questions have wrong steps: the chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/wrong_steps.py --jobs=2
      500 of the 5,000 training questions have wrong steps: every step except the last (the answer)
      is another digit than the right one. Every method that learns from steps is trained with and
      without wrong steps. Cost: 60 runs of about five minutes of 1 CPU core. Score: with wrong
      steps, seed 0: LOTUS and SIM-CoT 100.0 %, looped RiM 99.7, paired RiM 98.9, chain of thought
      97.7, RiM 96.0, PCCoT 14.3, iCoT 11.6, CODI 11.1, Coconut 10.1.
"""

from configs import compare, presets
from rim_jax.config import grid

WITHOUT_STEPS = ('direct', 'pause')


def get_config(preset: str = 'chain'):
  methods = [name for name in compare.METHODS if name not in WITHOUT_STEPS]
  base = presets.make(methods[0], preset)
  axis = [({'method': method}, grid.find_changes(base, presets.make(method, preset)))
          for method in methods]
  return grid.make_sweep_dict(base, grid.repeat(
      grid.cross(axis, grid.vary('data.chain.wrong_frac', (0.1, 0.0), 'wrong')), 3))
