"""How much every supervised token counts: lambda and alpha as pure functions of (Batch, step).

Everything here is traced and runs on the device inside the train step, so a
batch that was prefetched long ago cannot carry a stale weight. A new method
that only changes weights is one function here, entered in `WEIGHTS`.

Source: arXiv 2605.30343; docs/concepts.md, "Stage 1" and "Stage 2".
"""

import jax.numpy as jnp

from rim_jax.config import Config, CurriculumConfig
from rim_jax.packing import batch as batch_lib


def compute_lambda(block, num_steps_n, step, num_steps, config: CurriculumConfig):
  """Stage 1's weight of the readout after block t of an example with n steps.

  Shapes: block (t >= 1) and num_steps_n (n) broadcast together; step and
    num_steps are scalars, in completed updates (s) and the stage's total (S).
  Returns: f32 in [0, 1]; 1 until hold_frac * S, then falling as the schedule says.
  Source: arXiv 2605.30343; docs/concepts.md, "Stage 1".
  """
  hold = config.hold_frac * num_steps
  s = jnp.maximum(step - hold, 0.0) / (num_steps - hold)  # s / S after the hold
  t = jnp.asarray(block, jnp.float32)
  n = jnp.asarray(num_steps_n, jnp.float32)
  if config.schedule == 'relative':
    fade = jnp.maximum(0.0, 1.0 - s * n / t)
  elif config.schedule == 'absolute':
    fade = jnp.maximum(0.0, 1.0 - s * config.absolute_steps / t)
  elif config.schedule == 'windowed':
    fade = jnp.clip(t - s * n, 0.0, 1.0)
  elif config.schedule == 'uniform':
    fade = jnp.maximum(0.0, 1.0 - s) * jnp.ones_like(t * n)
  else:  # constant
    fade = jnp.ones_like(t * n)
  return fade


def compute_alpha(block, num_blocks: int, config: CurriculumConfig):
  """Stage 2's weight of the readout after block k of K; sums to 1 over k = 1..K.

  Source: arXiv 2605.30343, alpha_k = 2k / (K (K + 1)).
  """
  k = jnp.asarray(block, jnp.float32)
  if config.alpha == 'linear':
    return 2.0 * k / (num_blocks * (num_blocks + 1))
  if config.alpha == 'uniform':
    return jnp.full_like(k, 1.0 / num_blocks)
  return jnp.where(k == num_blocks, 1.0, 0.0)  # final


def _weigh_stage1(batch, step, num_steps, config: Config):
  # With a readout before the first block, (t, n) becomes (t + 1, n + 1).
  shift = int(config.layout.depth0_readout)
  # Padding has t = 0; 1 keeps the division finite, and its weight is masked below.
  block = jnp.maximum(batch.slot_block + shift, 1)
  return compute_lambda(block, batch.slot_steps + shift, step, num_steps, config.curriculum)


def _weigh_stage2(batch, step, num_steps, config: Config):
  del step, num_steps
  # With a readout before the first block, (k, K) becomes (k + 1, K + 1), as in stage 1.
  shift = int(config.layout.stage2_depth0_readout)
  return compute_alpha(batch.slot_block + shift, config.layout.num_blocks + shift,
                       config.curriculum)


def _weigh_equally(batch, step, num_steps, config: Config):
  del step, num_steps, config
  return jnp.ones_like(batch.slot_block, jnp.float32)


# method -> weight of a readout, given at each of its slots.
WEIGHTS = {
    'direct': _weigh_equally,
    'cot': _weigh_equally,
    'icot': _weigh_equally,
    'coconut_stage': _weigh_equally,
    'pause': _weigh_stage2,
    'rim_stage1': _weigh_stage1,
    'rim_stage2': _weigh_stage2,
}


def compute_slot_weights(batch: batch_lib.Batch, step, num_steps, config: Config):
  """Weight of every slot's token NLL, and what the weighted sum is divided by.

  `reduction='readout'` spreads a readout's weight over its tokens (mean token
  NLL), `'token'` gives it to each. `normalize='weight'` divides by the total of
  the weights, so fading shifts the emphasis and does not shrink the gradient;
  `'readouts'` divides by the number of readouts, faded or not.

  Shapes: -> (weights f32[b, s], norm f32[]); sums over micro-batches and devices
    are taken of both before the one division.
  Units: step in completed updates of the stage, num_steps its total.
  """
  supervised = batch.slot_kind != batch_lib.SLOT_PAD
  weights = WEIGHTS[config.method](batch, step, num_steps, config)
  share = 1.0 / jnp.maximum(batch.slot_tokens, 1)
  if config.curriculum.reduction == 'readout':
    weights = weights * share
  weights = jnp.where(supervised, weights, 0.0)
  if config.curriculum.normalize == 'weight':
    return weights, weights.sum()
  return weights, jnp.where(supervised, share, 0.0).sum()
