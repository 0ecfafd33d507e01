"""The stage's own loss on records of valid: what training lowers, on what it never sees.

Rows are laid out, weighted and read as in training, without dropout; nothing is decoded. So beside
the training loss it tells whether a network learns a task or its training questions by heart.
"""

import jax
import numpy as np

from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from rim_jax.packing import rows as rows_lib
from rim_jax.packing import source as source_lib
from rim_jax.training import step as step_lib
from rim_jax.training.recorder import list_by_block


class ValidLoss:
  """Computes it for any state of a stage; one program, which compiles at the first."""

  # 6 parameters: what a stage is, the records, and whom to tell.
  def __init__(self, task, stage: source_lib.StagePlan, program: step_lib.Program, frozen, records,
               say):
    config, mesh = task.config, task.mesh
    self._frozen = frozen
    num_rows = stage.batch_rows // config.train.num_micro_batches
    rows = _fill_rows(task.codec, stage, records)
    if left_out := len(records) - sum(map(len, rows)):
      say(f'valid: valid/loss leaves out {left_out} of {len(records)} records, which need more '
          'room than any row of training has')
    self._batches = [sharding.place_batch(rows_lib.make_rows(
        rows[first:first + num_rows] + [[]] * (first + num_rows - len(rows)),
        stage.plan.row_tokens, stage.plan.row_slots, config.layout, task.codec.memory_start), mesh)
                     for first in range(0, len(rows), num_rows)]

    def add_up(params, frozen, batch, step):
      model = transformer_lib.merge_model(program.graphdef, params, frozen)
      total, sums = step_lib.compute_loss(model, batch, step, stage.num_steps, stage.max_blocks,
                                          config, None, stage.limits)
      return total, {key: sums[key] for key in ('norm', 'block_nll', 'block_count')}
    self._add_up = jax.jit(add_up, out_shardings=sharding.get_replicated(mesh))

  def compute(self, state: step_lib.TrainState) -> dict[str, float]:
    """'valid/loss' and 'valid/nll_block_<k>' of a state, in nats; {} where no record fits.

    Weights are those of the last update. A method that means over kinds of slots, as LOTUS does,
    means over each batch here.
    """
    if not self._batches:
      return {}
    step = np.maximum(int(state.step) - 1, 0)
    # Fetched one by one: several of them under way at once wait for each other on CPUs.
    found = [jax.tree.map(np.asarray, self._add_up(state.params, self._frozen, batch, step))
             for batch in self._batches]
    total, sums = jax.tree.map(lambda *x: sum(x), *found)
    loss = {'valid/loss': total / sums['norm']} if sums['norm'] else {}  # 0: all have faded
    return loss | list_by_block('valid', 'nll', sums)


def _fill_rows(codec: source_lib.Codec, stage: source_lib.StagePlan, records):
  """Rows of examples, none beyond what a row of training holds; what fits none is left out."""
  layout, limits, examples, sizes = codec.config.layout, stage.limits, [], []
  plan, most = stage.plan, np.iinfo(np.int64).max
  capacity = np.array([plan.row_tokens, plan.row_slots, limits.examples,
                       limits.trunk_tokens or most, limits.block_tokens or most])
  reach = source_lib.find_reach(codec.config.model)[1] or most
  for record in records:
    try:
      example = codec.lay_out(codec.encode(record), order.ALL if codec.removal else 0)
    except UserError:
      continue
    tokens, slots, positions = layout_lib.count_example(example, layout)
    blocks = layout_lib.get_block_size(layout) * example.num_blocks
    size = (tokens, slots, 1, len(example.question) + blocks, blocks)
    last = max(readout.block for readout in example.readouts)
    if (size <= capacity).all() and positions <= reach and last <= stage.max_blocks:
      examples.append(example)
      sizes.append(size)
  return [[examples[i] for i in row] for row in order.pack(
      np.arange(len(examples)), np.array(sizes), capacity, 1)]
