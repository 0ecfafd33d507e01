"""Of tests that plan: the eight fake devices of this machine in place of one that is not here."""

import jax

from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.training import step as step_lib


def compile_here(config, program, rows, mesh):
  """plan.compile_step, for this machine's CPUs."""
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
      batch_lib.make_empty_rows(rows.batch_rows, config.layout.row_tokens, rows.row_slots))
  step = step_lib.make_train_step(program, config, 1000, config.layout.num_blocks, mesh)
  with jax.set_mesh(mesh):
    return step.lower(*program.abstract, batch).compile()
