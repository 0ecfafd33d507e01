"""What a method is: the `Method` value that its module exports.

Array suffixes beside model/transformer.py's: p pairs of tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rim_jax.config import Config
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order


class AddedParam(nnx.Param):
  """A parameter that a method trains beside the network, and that an export leaves out.

  It trains whatever optim.trainable is, and is no part of a pretrained model. Weight decay spares
  those that are named `scale` or `bias`.
  """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
  """What a forward has read of a batch; states are those after each layer and the final norm."""
  student_lbpd: jax.Array  # states at slots that have a pair (`Batch.slot_pair`)
  teacher_lbpd: jax.Array  # states of their pairs: no gradient passes here
  paired_bp: jax.Array  # bool, which of the p pairs there are


def weigh_equally(batch: batch_lib.Batch, step, num_steps, config: Config) -> jax.Array:
  """Every readout counts 1."""
  return jnp.ones_like(batch.slot_block, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Method:
  """A method, to whoever packs rows, takes a step or decodes; None is the plain way.

  What stands in the sequence, and how much it counts, are its two halves. One that feeds states
  back says what is fed in, for rows of training and trunks of decoding alike: every forward ends in
  one ordinary pass over these inputs, so that a modifier can wrap any method with
  `dataclasses.replace`.
  """
  # (Encoded, Template, LayoutConfig) -> Example; with a removal also how many tokens are removed.
  layout: Callable[..., layout_lib.Example]
  # (Batch, step, num_steps, Config) -> weight of a readout, given at each of its slots: f32[b, s].
  weight: Callable[..., jax.Array] = weigh_equally
  # (Batch, Config) -> f32[], what the sums over a step are divided by; counts, which add up over
  # micro-batches. None: what curriculum.normalize says.
  norm: Callable[..., jax.Array] | None = None
  # Config -> kind of slot -> share: slots of such a kind count as one mean over all that an update
  # has of them, by their weights, times this share. The others are divided by the norm alone.
  means: Callable[[Config], dict[int, float]] | None = None
  removal: order.Removal | None = None  # what its written chains lose, epoch by epoch
  # (model, tokens i32[b, t], Fields, Config, RowLimits, dropout key)
  # -> what stands in for the embedded tokens, f[b, t, d], or None: they do.
  inputs: Callable[..., jax.Array | None] | None = None
  # (tokens of a row, RowLimits, Config) -> tokens of a row that enter the layers before these
  # inputs are found, padding too.
  count_inputs: Callable[..., int] | None = None
  # (model, Batch, Read, Config) -> name -> a sum over pairs. Its mean over those of an update is
  # added to the loss, and told in metrics.jsonl as train/added_NAME.
  losses: Callable[..., dict[str, jax.Array]] | None = None
  # (model, Trunks, starts i32[b, r], Config, Tail) -> as `decode.prefill`: a cheaper way to the
  # same. The tail is read in the last pass.
  prefill: Callable | None = None
  # (model, Batch, inputs f[b, t, d] or None, logits f32[b, s, v], Config, dropout key)
  # -> logits, in which some slots are those of another network.
  replace_logits: Callable[..., jax.Array] | None = None
  # (Config, with model.vocab_size, and key) -> a module of AddedParam, found at `model.added`. What
  # it calls `decoder` begins as a copy of the network.
  make_added: Callable[..., nnx.Module] | None = None

  def forward(self, model, batch: batch_lib.Batch, config: Config,
              limits: batch_lib.RowLimits = batch_lib.ONE_EXAMPLE, dropout_key=None
              ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(logits at the supervised slots, f32[b, s, v]; `losses`).

    Args:
      limits: of its examples each has at most one pair.
    """
    inputs_btd = self.feed(model, batch.tokens, batch_lib.get_fields(batch), config, limits,
                           dropout_key)
    logits_bsv, added = self._read(model, batch, inputs_btd, config, limits, dropout_key)
    if self.replace_logits:
      logits_bsv = self.replace_logits(model, batch, inputs_btd, logits_bsv, config, dropout_key)
    return logits_bsv, added

  # 7 parameters: `forward`'s, and what it fed.
  def _read(self, model, batch, inputs_btd, config, limits, dropout_key):
    if not self.losses:
      return model.compute_slot_logits(batch, config.layout, dropout_key, inputs_btd), {}
    student_bp, teacher_bp, paired_bp = _find_pairs(batch, limits.examples)
    x_btd, states_lbpd = model.read_rows(
        batch, config.layout, dropout_key, inputs_btd, jnp.concatenate([student_bp, teacher_bp], 1))
    student_lbpd, teacher_lbpd = jnp.split(states_lbpd.astype(jnp.float32), 2, 2)
    read = Read(student_lbpd, jax.lax.stop_gradient(teacher_lbpd), paired_bp)
    return model.compute_logits_at(x_btd, batch.slot_index), self.losses(model, batch, read, config)

  def count_tokens(self, row_tokens: int, limits: batch_lib.RowLimits, config: Config) -> int:
    """Tokens of a row that enter the layers in a forward for training, padding too."""
    found = self.count_inputs(row_tokens, limits, config) if self.count_inputs else 0
    return found + row_tokens

  def feed(self, model, tokens_bt, fields: batch_lib.Fields, config: Config,
           limits: batch_lib.RowLimits = batch_lib.ONE_EXAMPLE, dropout_key=None
           ) -> jax.Array | None:
    """`inputs` of rows or trunks; None where tokens are embedded as they are."""
    return self.inputs and self.inputs(model, tokens_bt, fields, config, limits, dropout_key)


def count_examples(batch: batch_lib.Batch, config: Config) -> jax.Array:
  """A norm, which no kind of slot depends on."""
  return batch.example.max(1).sum().astype(jnp.float32)


def weigh_apart(host: Method, kind: int, share: Callable[[Config], float]) -> Method:
  """The host, whose slots of one kind weigh 1 and count as a mean of their own, times a share."""
  def weigh(batch, *args):
    return jnp.where(batch.slot_kind == kind, 1.0, host.weight(batch, *args))

  def share_means(config: Config) -> dict[int, float]:
    return {**(host.means(config) if host.means else {}), kind: share(config)}
  return dataclasses.replace(host, weight=weigh, means=share_means)


def _find_pairs(batch: batch_lib.Batch, count: int):
  """(slots' tokens, their pairs' tokens, whether they are pairs): [b, count] each."""
  paired_bs = batch.slot_pair >= 0
  at_bp = jnp.argsort(~paired_bs, axis=1, stable=True)[:, :count]
  return (*(jnp.take_along_axis(x, at_bp, 1)
            for x in (batch.slot_index, jnp.maximum(batch.slot_pair, 0), paired_bs)),)
