"""Cross-entropy at the supervised slots, as sums that are divided once, at the very end."""

import dataclasses

import jax
import jax.numpy as jnp

from rim_jax import methods
from rim_jax.config import Config
from rim_jax.packing import batch as batch_lib


@jax.custom_vjp
def compute_slot_nll(logits_bsv, targets_bs):
  """Negative log-likelihood of every slot's target.

  Its gradient is one expression of the logits, which a compiler computes where it is multiplied:
  derived step by step it is written to memory, as large as the logits, and written again.

  Shapes: logits [b, s, v] (any float; reduced in f32), targets i32[b, s] -> f32[b, s].
  Units: nats a token.
  """
  return _compute_nll(logits_bsv, targets_bs)[0]


def _compute_nll(logits_bsv, targets_bs):
  wide_bsv = logits_bsv.astype(jnp.float32)
  target_bs = jnp.take_along_axis(wide_bsv, targets_bs[..., None], axis=-1)[..., 0]
  top_bs = wide_bsv.max(-1)
  top_bs = jnp.where(jnp.isfinite(top_bs), top_bs, 0.0)
  sum_bs = jnp.exp(wide_bsv - top_bs[..., None]).sum(-1)
  return jnp.log(sum_bs) + top_bs - target_bs, (logits_bsv, targets_bs, top_bs, sum_bs)


def _pull_back_nll(residuals, gradient_bs):
  logits_bsv, targets_bs, top_bs, sum_bs = residuals
  share_bsv = jnp.exp(logits_bsv.astype(jnp.float32) - top_bs[..., None])
  pulled_bsv = jax.lax.platform_dependent(
      (gradient_bs / sum_bs)[..., None] * share_bsv, targets_bs, gradient_bs,
      cpu=_subtract_in_place, default=_subtract_everywhere)
  return pulled_bsv.astype(logits_bsv.dtype), None


def _subtract_in_place(x_bsv, ids_bs, y_bs):
  """x - y at one id of each slot: few numbers, where x is in memory anyway."""
  return x_bsv.at[(*jnp.indices(ids_bs.shape, sparse=True), ids_bs)].add(-y_bs)


def _subtract_everywhere(x_bsv, ids_bs, y_bs):
  """The same as one expression with what makes x and what reads it."""
  all_bsv = jax.lax.broadcasted_iota(jnp.int32, x_bsv.shape, x_bsv.ndim - 1)
  return x_bsv - jnp.where(all_bsv == ids_bs[..., None], y_bs[..., None], 0.0)


compute_slot_nll.defvjp(_compute_nll, _pull_back_nll)


def compute_weighted_nll(nll_bs, weights_bs):
  """NLL times weight; a slot of weight 0 gives exactly 0, also where its NLL is not finite.

  Shapes: nll f32[b, s], weights f32[b, s] >= 0 -> f32[b, s], in nats.
  """
  used = weights_bs > 0
  # Two wheres: the inner one keeps 0 * inf out of the gradient as well.
  return jnp.where(used, jnp.where(used, nll_bs, 0.0) * weights_bs, 0.0)


def divide_or_zero(total, norm):
  """total / norm, and 0 (with gradient 0) where norm is 0: a batch of padding is no NaN."""
  safe = jnp.where(norm > 0, norm, 1.0)
  return jnp.where(norm > 0, total / safe, 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scales:
  """What turns sums over an update into means of their own, once the norm has divided them."""
  kinds: dict[int, jax.Array]  # by kind of slot, for those of `Method.means`
  pairs: jax.Array
  # Norm of each supervised slot where every weight has faded: the means stay, and the norm is 1.
  faded: jax.Array


def compute_scales(batch: batch_lib.Batch, step, num_steps, config: Config) -> Scales:
  """Of the whole batch of an update, before it is divided into micro-batches."""
  method = methods.get_method(config)
  weights, norm = _weigh(batch, step, num_steps, config)
  kinds = method.means(config) if method.means else {}
  num_slots = (batch.slot_kind != batch_lib.SLOT_PAD).sum()
  faded = jnp.where(norm > 0, 0.0, divide_or_zero(1.0, num_slots)) if (
      kinds or method.losses) else jnp.zeros(())
  norm = norm + faded * num_slots
  return Scales(
      {kind: share * divide_or_zero(norm, jnp.where(batch.slot_kind == kind, weights, 0.0).sum())
       for kind, share in kinds.items()},
      divide_or_zero(norm, (batch.slot_pair >= 0).sum()), faded)


def compute_slot_weights(batch: batch_lib.Batch, step, num_steps, config: Config,
                         scales: Scales | None = None) -> tuple[jax.Array, jax.Array]:
  """Weight of every slot's token NLL, and what the weighted sum is divided by.

  `reduction='readout'` spreads a readout's weight over its tokens (mean token
  NLL), `'token'` gives it to each. `normalize='weight'` divides by the total of
  the weights, so fading shifts the emphasis and does not shrink the gradient;
  `'readouts'` divides by the number of readouts, faded or not. A method may have
  a norm of its own, and kinds of slots that count as a mean of their own.

  Args:
    scales: of the update's whole batch, where this is a part of it.
  Shapes: -> (weights f32[b, s], norm f32[]); sums over micro-batches and devices
    are taken of both before the one division.
  Units: step in completed updates of the stage, num_steps its total.
  """
  weights, norm = _weigh(batch, step, num_steps, config)
  scales = scales or compute_scales(batch, step, num_steps, config)
  for kind, scale in scales.kinds.items():
    weights = jnp.where(batch.slot_kind == kind, weights * scale, weights)
  return weights, norm + scales.faded * (batch.slot_kind != batch_lib.SLOT_PAD).sum()


def _weigh(batch, step, num_steps, config):
  """Weights before kinds are scaled, and the norm."""
  supervised = batch.slot_kind != batch_lib.SLOT_PAD
  method = methods.get_method(config)
  weights = method.weight(batch, step, num_steps, config)
  share = 1.0 / jnp.maximum(batch.slot_tokens, 1)
  if config.curriculum.reduction == 'readout':
    weights = weights * share
  weights = jnp.where(supervised, weights, 0.0)
  if method.norm:
    return weights, method.norm(batch, config)
  counted = supervised
  for kind in method.means(config) if method.means else ():
    counted = counted & (batch.slot_kind != kind)
  if config.curriculum.normalize == 'weight':
    return weights, jnp.where(counted, weights, 0.0).sum()
  return weights, jnp.where(counted, share, 0.0).sum()
