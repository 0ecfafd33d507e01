"""Where an answer is read, and whether what reads it sees the question: the chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/reading.py --jobs=2

`read_at=block` is what configs/rim.py runs: with nothing forced before an answer it is read at a
block's closing token, which is part of the memory. `read_at=own` forces a line break before every
answer, as GSM8K's template forces a prefix; `question=False` hides the question from it, so that
it has the blocks alone (and there is no readout before block 1, which would see nothing). Nine
runs of about five minutes of one core; ask each of them with --mode=controls.
"""

from configs import presets
from rim_jax import points


def get_config(preset: str = 'chain'):
  base = presets.make('rim', preset)
  own = {'layout.answer_prefix': '\n', 'layout.row_tokens': 31}  # room for a prefix each
  reading = [
      ({'read_at': 'block', 'question': True}, {}), ({'read_at': 'own', 'question': True}, own),
      ({'read_at': 'own', 'question': False},
       {**own, 'layout.readout_sees_question': False, 'layout.depth0_readout': False})]
  grid = points.cross(reading, points.vary_seeds(3))
  return points.make_sweep_dict(base, sorted(grid, key=lambda point: point[1]['seed']))
