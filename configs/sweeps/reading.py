"""Where an answer is read, and whether its readout sees the question: the chain task.

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/reading.py --jobs=2

`read_at=block` is what configs/rim.py runs. An answer has no prefix, so it is read at a block's
closing token. This token is part of the memory and sees the question. `read_at=own` puts a line
break before every answer, as GSM8K's template puts a prefix. `question=False` hides the question
from the readout, which then has only the blocks. `depth0=False` are the paper's targets, without a
readout before block 1. `--controls` tests whether each run's memory does the work.

Cost: 12 runs of about five minutes of 1 CPU core.
Score: 100.0, 100.0 and 100.0 %; with the question hidden and the paper's targets
60.3 (means; earlier code).
"""

from configs import presets
from rim_jax.config import grid as grid_lib
from rim_jax.errors import UserError


def get_config(preset: str = 'chain'):
  if preset != 'chain':
    raise UserError(f"preset '{preset}': its template forces a prefix as it is; compare there with "
                    'details.py')
  base = presets.make('rim', preset)
  own = {'layout.answer_prefix': '\n', 'layout.row_tokens': 31}  # room for a prefix each
  hidden = {**own, 'layout.readout_sees_question': False}

  def name(read_at, question, depth0):
    return {'read_at': read_at, 'question': question, 'depth0': depth0}
  reading = [(name('block', True, True), {}), (name('own', True, True), own),
             (name('own', False, True), hidden),
             (name('own', False, False), {**hidden, 'layout.depth0_readout': False})]
  return grid_lib.make_sweep_dict(base, grid_lib.repeat(reading, 3))
