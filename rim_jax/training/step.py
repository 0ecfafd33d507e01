"""One update, as a pure function of (state, frozen parameters, batch).

`step` below counts completed updates of the stage: it is the s of the
schedules, it seeds dropout, and nothing else varies inside a stage, so the step
compiles once.
"""

from collections.abc import Callable
import dataclasses
import functools
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from rim_jax import methods
from rim_jax.config import Config
from rim_jax.methods.method import AddedParam
from rim_jax.model import memory, sharding
from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import batch as batch_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import optim

# Parameter paths are variable types; the trainable set is a filter on them.
# What a pretrained model has not got: the method's own trains with each set.
ADDED = nnx.Any(nnx.LoRAParam, memory.MemoryParam, AddedParam)
TRAINABLE = {'all': nnx.Param, 'memory': nnx.Any(memory.MemoryParam, AddedParam), 'lora': ADDED}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that an update changes."""
  step: jax.Array  # i32[], completed updates of the stage
  healthy: jax.Array  # bool[]; False from the first withheld update on
  params: dict  # the trainable set
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Program:
  """A model split into structure and placement, before any array exists.

  `shardings` and `abstract` mirror (state, frozen); `base` is what a pretrained model gives.
  """
  graphdef: nnx.GraphDef
  tx: optax.GradientTransformation
  abstract: tuple[TrainState, dict]
  shardings: tuple[TrainState, dict]
  base: dict
  make_params: Callable  # (key, base; {} for a random one) -> (params, frozen), placed
  make_state: Callable  # params -> a TrainState at step 0, placed

  def init(self, key, base=None):
    """A fresh (state, frozen); the arrays of `base` are taken over."""
    params, frozen = self.make_params(key, base or {})
    return self.make_state(params), frozen


def make_program(config: Config, vocab_size: int, num_steps: int, mesh) -> Program:
  """Shapes, placement and a sharded initialiser for a stage's state.

  Raises: UserError where the mesh does not divide a parameter.
  """
  reads = config.facts.reads_rows(config.layout.num_blocks)  # what a method adds is for blocks
  tx = optim.make_optimizer(config.optim, num_steps, () if reads else ('added',))
  trainable = TRAINABLE[config.optim.trainable]

  def make_model(key):
    return methods.make_model(config, vocab_size, key)

  def make_params(key, base):
    model = make_model(key)
    if base:  # the random numbers it replaces are never computed
      nnx.update(model, nnx.State(base))
      model.reset_memory(key)
    _, params, frozen = nnx.split(model, trainable, ...)
    params, frozen = map(nnx.to_pure_dict, (params, frozen))
    params = methods.begin_decoder(params, frozen)
    return (jax.tree.map(lambda x: x.astype(jnp.float32), params),
            jax.tree.map(lambda x: x.astype(config.model.frozen_dtype), frozen))

  def make_state(params):
    return TrainState(jnp.zeros((), jnp.int32), jnp.ones((), bool), params, tx.init(params))
  key = jax.eval_shape(lambda: jax.random.key(0))
  model = nnx.eval_shape(make_model, key)
  graphdef, *halves = nnx.split(model, trainable, ...)
  params_at, frozen_at = (sharding.make_state_shardings(s, mesh) for s in halves)
  params, frozen = jax.eval_shape(make_params, key, {})
  state = jax.eval_shape(make_state, params)
  everywhere = sharding.get_replicated(mesh)
  # Moments live with their parameters; left to the compiler they would all sit on one device.
  opt_at = optax.tree_map_params(
      tx, lambda _, s: s, state.opt_state, params_at, transform_non_params=lambda _: everywhere)
  shardings = (TrainState(everywhere, everywhere, params_at, opt_at), frozen_at)

  def place(abstract, shardings, dtype=None):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s),
                        abstract, shardings)
  base = nnx.split(model, ADDED, ...)[2]
  base_dtype = 'float32' if config.optim.trainable == 'all' else config.model.frozen_dtype
  return Program(
      graphdef, tx, place((state, frozen), shardings), shardings,
      place(nnx.to_pure_dict(base), sharding.make_state_shardings(base, mesh), base_dtype),
      jax.jit(make_params, out_shardings=(params_at, frozen_at), donate_argnums=1),
      jax.jit(make_state, out_shardings=shardings[0], donate_argnums=0))


# 9 parameters: what differentiates by the model takes it first, and jit needs the rest apart.
def compute_loss(model, batch: batch_lib.Batch, step, num_steps: int, num_blocks: int,
                 config: Config, dropout_key, limits=batch_lib.ONE_EXAMPLE,
                 scales: loss_lib.Scales | None = None):
  """Weighted NLL of a (micro-)batch as sums, and what its method adds to it.

  Args:
    scales: of the update's whole batch, where this is a part of it.
  Returns: (sum in nats, {'norm', 'block_nll' [num_blocks + 1], 'block_weight' [num_blocks + 1],
    'block_count' [num_blocks + 1], 'num_tokens', 'num_examples', 'added' name -> part of the sum}),
    all sums; block_nll adds up each readout's unweighted mean token NLL by the block that it reads,
    block_weight its weight: of steps and answers, other kinds being told in `added`.
  """
  method = methods.get_method(config)
  logits_bsv, added = method.forward(
      model, batch, config, limits, dropout_key)
  nll_bs = loss_lib.compute_slot_nll(logits_bsv, batch.slot_target)
  scales = scales or loss_lib.compute_scales(batch, step, num_steps, config)
  weights_bs, norm = loss_lib.compute_slot_weights(batch, step, num_steps, config, scales)
  weighted_bs = loss_lib.compute_weighted_nll(nll_bs, weights_bs)
  added = {name: value * scales.pairs for name, value in added.items()}
  parts = {batch_lib.SLOT_NAMES[kind]: jnp.where(batch.slot_kind == kind, weighted_bs, 0.0).sum()
           for kind in scales.kinds}
  of_blocks = (batch.slot_kind == batch_lib.SLOT_STEP) | (batch.slot_kind == batch_lib.SLOT_ANSWER)
  share = jnp.where(of_blocks, 1.0 / jnp.maximum(batch.slot_tokens, 1), 0.0)

  def by_block(x):
    return jax.ops.segment_sum(x.ravel(), batch.slot_block.ravel(), num_blocks + 1)
  return sum(added.values(), weighted_bs.sum()), {
      'norm': norm,
      'added': added | parts,
      'block_nll': by_block(loss_lib.compute_weighted_nll(nll_bs, share)),
      'block_weight': by_block(share * method.weight(batch, step, num_steps, config)),
      'block_count': by_block(share),
      'num_tokens': (batch.example > 0).sum(),
      'num_examples': batch.example.max(1).sum(),
  }


def _add_parts(compute, batch: batch_lib.Batch, num_parts: int):
  """Sums over a batch's parts of `compute(part, its number)`, taken one after the other."""
  # Every num_parts-th row goes together, so that each part spreads over all devices.
  parts = jax.tree.map(
      lambda x: x.reshape(x.shape[0] // num_parts, num_parts, -1).swapaxes(0, 1), batch)
  numbered = parts, jnp.arange(num_parts)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
      compute, *jax.tree.map(lambda x: x[0], numbered)))

  def accumulate(total, xs):
    return jax.tree.map(jnp.add, total, compute(*xs)), None
  return jax.lax.scan(accumulate, zeros, numbered)[0]


def _is_summed_once(config: Config, mesh) -> bool:
  """Whether each device adds its parts up by itself, and all are summed over devices at the end.

  Left to the compiler, gradients cross the network after every part. By itself a device can where
  the mesh divides rows and nothing else, and where a part is no more than its rows: dropout's mask
  and the spread of paired states are of the whole part, so that no mesh changes them.
  """
  return (config.train.num_micro_batches > 1 and mesh.size > 1
          and mesh.shape['fsdp'] == mesh.shape['tensor'] == 1
          and not config.model.drops and config.distill.std == 'example')


# Long, with 7 parameters: the step closes over all that is fixed while a stage compiles once.
def make_train_step(program: Program, config: Config, num_steps: int, num_blocks: int, mesh,
                    reset_steps: tuple = (), limits=batch_lib.ONE_EXAMPLE):
  """(state, frozen, batch) -> (state, metrics), jitted, placed, `state` donated.

  The batch is taken in `num_micro_batches` pieces; gradients and losses add up
  as sums and are divided once by the summed norm, so pieces of unequal weight
  equal the whole. An update whose loss or gradient is not finite is withheld,
  and so is every later one (`healthy`): metrics that are read late never find
  it applied. After `reset_steps` completed updates the optimizer begins anew, but for its schedule.
  """
  schedule = optim.make_schedule(config.optim, num_steps)
  stage_key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(config.method.encode()))

  def train_step(state: TrainState, frozen, batch: batch_lib.Batch):
    step_key = jax.random.fold_in(stage_key, state.step)

    scales = loss_lib.compute_scales(batch, state.step, num_steps, config)

    def compute_sums(params, frozen, micro, index):
      model = transformer_lib.merge_model(program.graphdef, params, frozen)
      key = jax.random.fold_in(step_key, index) if config.model.drops else None
      return compute_loss(model, micro, state.step, num_steps, num_blocks, config, key,
                          limits, scales)

    compute_grads = jax.value_and_grad(compute_sums, has_aux=True)

    def add_up(params, frozen, batch):
      return _add_parts(functools.partial(compute_grads, params, frozen), batch,
                        config.train.num_micro_batches)

    def add_up_apart(*args):
      return jax.lax.psum(add_up(*args), mesh.axis_names)
    compute_all = add_up
    if _is_summed_once(config, mesh):
      rows = sharding.make_spec((sharding.BATCH,))
      compute_all = jax.shard_map(add_up_apart, mesh=mesh, in_specs=(P(), P(), rows),
                                  out_specs=P(), check_vma=False)
    (total, sums), grads = compute_all(state.params, frozen, batch)

    norm = sums.pop('norm')
    loss = loss_lib.divide_or_zero(total, norm)
    sums['added'] = {k: loss_lib.divide_or_zero(v, norm) for k, v in sums['added'].items()}
    grads = jax.tree.map(lambda g: loss_lib.divide_or_zero(g, norm), grads)
    # As their parameters and moments are split: an embedding's may arrive split by ids, and the
    # compiler would move all three to and fro.
    grads = jax.lax.with_sharding_constraint(grads, program.shardings[0].params)
    grad_norm = optax.global_norm(grads)
    healthy = state.healthy & jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    opt_state = state.opt_state
    if reset_steps:
      begins = jnp.isin(state.step, jnp.asarray(reset_steps))
      opt_state = jax.tree.map(lambda a, b: jnp.where(begins, a, b), optim.swap_moments(
          opt_state, program.tx.init(state.params)), opt_state)
    updates, opt_state = program.tx.update(grads, opt_state, state.params)
    new = TrainState(state.step + 1, healthy, optax.apply_updates(state.params, updates),
                     opt_state)
    old = dataclasses.replace(state, healthy=healthy)
    state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)
    return state, {'loss': loss, 'norm': norm, 'grad_norm': grad_norm, 'healthy': healthy,
                   'learning_rate': schedule(old.step), **sums}

  state_at, frozen_at = program.shardings
  return jax.jit(train_step, donate_argnums=0,
                 in_shardings=(state_at, frozen_at, sharding.get_batch_sharding(mesh)),
                 out_shardings=(state_at, sharding.get_replicated(mesh)))

