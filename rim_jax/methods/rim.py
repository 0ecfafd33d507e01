"""RiM: memory blocks after the question, a readout after each; stage 1, then stage 2.

Stage 1 has a block for each step, whose readout says the next one, and lambda(s) fades those that
come early; in stage 2 every block's readout says the answer, and alpha_k makes later ones count
more. Weights are traced and run on the device inside the train step, so a batch that was prefetched
long ago cannot carry a stale one.

Readings of the paper, where it leaves a choice (docs/reproduction.md has each key):

- A readout's loss is the mean over its tokens, and the sum is divided by the total weight, so that
  fading moves the emphasis and does not shrink the gradient.
- With the schedule `relative` all steps of a record have faded at the end of the stage. `absolute`
  has one n for all; its default, 10, is below GSM8K-Aug's 13 steps (configs/sweeps/absolute.py).

Source: docs/concepts.md; arXiv 2605.30343.
"""

import jax.numpy as jnp

from rim_jax.config import Config, CurriculumConfig, LayoutConfig
from rim_jax.methods.method import Method
from rim_jax.packing.layout import (
  Encoded,
  Example,
  Template,
  count_steps,
  read_answer,
  read_step,
)


def lay_out_stage1(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """One block a step: block t's readout predicts r_{t+1}, the last block's the answer."""
  num_steps, first = count_steps(encoded), 0 if config.depth0_readout else 1
  return Example(encoded.question, num_steps, num_steps, tuple(
      read_step(encoded, template, t, t) if t < len(encoded.steps) else
      read_answer(encoded, template, t) for t in range(first, num_steps + 1)))


def lay_out_stage2(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """K blocks for every record: each block's readout predicts the answer."""
  first = 0 if config.stage2_depth0_readout else 1
  return Example(encoded.question, config.num_blocks, count_steps(encoded),
                 tuple(read_answer(encoded, template, k)
                       for k in range(first, config.num_blocks + 1)))


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
  return {
      'relative': jnp.maximum(0.0, 1.0 - s * n / t),
      'absolute': jnp.maximum(0.0, 1.0 - s * config.absolute_steps / t),
      'windowed': jnp.clip(t - s * n, 0.0, 1.0),
      'uniform': jnp.maximum(0.0, 1.0 - s) * jnp.ones_like(t * n),
      'constant': jnp.ones_like(t * n)}[config.schedule]


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


def weigh_stage1(batch, step, num_steps, config: Config):
  """lambda of each readout."""
  # With a readout before the first block, (t, n) becomes (t + 1, n + 1).
  shift = int(config.layout.depth0_readout)
  # Padding has t = 0; 1 keeps the division finite, and its weight is masked below.
  block = jnp.maximum(batch.slot_block + shift, 1)
  return compute_lambda(block, batch.slot_steps + shift, step, num_steps, config.curriculum)


def weigh_stage2(batch, step, num_steps, config: Config):
  """alpha of each readout."""
  # With a readout before the first block, (k, K) becomes (k + 1, K + 1), as in stage 1.
  shift = int(config.layout.stage2_depth0_readout)
  return compute_alpha(batch.slot_block + shift, config.layout.num_blocks + shift,
                       config.curriculum)


RIM_STAGE1 = Method(lay_out_stage1, weigh_stage1)
RIM_STAGE2 = Method(lay_out_stage2, weigh_stage2)
