"""AdamW, its schedule, and which parameters decay."""

import functools

import jax
import optax

from rim_jax.config import OptimConfig

# Names of parameters that weight decay leaves alone: norms, biases, memory rows.
_NO_DECAY = ('scale', 'bias', 'memory')


def make_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
  """Learning rate of update s (0-based): linear warm-up, then constant or cosine to 0."""
  warmup = round(config.warmup_frac * num_steps)
  rate = config.learning_rate
  after = (optax.cosine_decay_schedule(rate, max(num_steps - warmup, 1))
           if config.decay == 'cosine' else optax.constant_schedule(rate))
  if not warmup:
    return after
  # The first update counts: it takes rate / warmup, not 0.
  ramp = optax.linear_schedule(rate / warmup, rate, max(warmup - 1, 1))
  return optax.join_schedules([ramp, after], [warmup])


def make_decay_mask(params, idle=()):
  """True where weight decay applies, by parameter name; nowhere in the trees named in `idle`."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key not in _NO_DECAY and path[0].key not in idle, params)


def swap_moments(state, other):
  """An optimizer state with the moments of another one, at its own place in the schedule."""
  def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)
  return jax.tree.map(lambda mine, theirs: mine if is_schedule(mine) else theirs, state, other,
                      is_leaf=is_schedule)


def make_optimizer(config: OptimConfig, num_steps: int, idle=()) -> optax.GradientTransformation:
  """Args: idle: trees of parameters that no update of the stage reads, so that none decays."""
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(make_schedule(config, num_steps), b1=config.b1, b2=config.b2, eps=config.eps,
                  weight_decay=config.weight_decay,
                  mask=functools.partial(make_decay_mask, idle=idle)))
