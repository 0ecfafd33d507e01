"""A trained network in hand: everything that evaluating, timing or exporting one needs."""

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax

from rim_jax.config import Config
from rim_jax.model.transformer import merge_model
from rim_jax.packing.source import Codec


@dataclasses.dataclass(frozen=True)
class Network:
  """Parameters, how a model is made of them, and how text becomes its input.

  It is no pytree: a program is made for a structure (graphdef, config, mesh) and called on arrays,
  so that one program serves every checkpoint of a run.
  """
  graphdef: nnx.GraphDef
  params: dict  # the trainable set, placed on the mesh
  frozen: dict  # all other parameters, placed too
  config: Config
  codec: Codec
  mesh: jax.sharding.Mesh

  @property
  def arrays(self) -> tuple[dict, dict]:
    """What a program of `jit` is called on first."""
    return self.params, self.frozen

  def jit(self, function: Callable, num_static: int = 0, out_shardings=None) -> Callable:
    """`function(model, config, *static, *rest)` as a jitted (params, frozen, *static, *rest).

    Args:
      num_static: how many arguments after the config are constants of the program.
    """
    graphdef, config = self.graphdef, self.config  # not self: a program keeps no arrays alive

    def run(params, frozen, *args):
      return function(merge_model(graphdef, params, frozen), config, *args)
    return jax.jit(run, static_argnums=range(2, 2 + num_static), out_shardings=out_shardings)

  def draw_rows(self, key) -> dict:
    """The parameters with memory rows as `model.memory_init` begins them, all else as it is."""
    old = self.params['memory']

    def make(model, config):
      model.reset_memory(key)
      return model.memory[...].astype(old.dtype)
    return dict(self.params, memory=self.jit(make, out_shardings=old.sharding)(*self.arrays))
