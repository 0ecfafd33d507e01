"""SIM-CoT: each thought must spell its step to an auxiliary decoder, which is dropped afterwards.

A modifier of methods with thoughts. For each group of thoughts one readout more stands in the row:
the group's vectors, then the step that they stand for, which is predicted. It sees nothing but
itself, neither the question nor another group; its gradient flows through the vectors into the
network that found them. Answering is the host's.

The last group says all steps that are left, where the host itself writes none. A step that does not
exist has no readout, as with the authors' CODI; `aux.answer_fills` gives it the answer, as with
their Coconut.

Departures from the source:

- With `aux.decoder='shared'` the decoder is the network itself, in the same pass. As a second one,
  which begins as a copy of it without its adapters (`copy`), it has the network's own shape, and
  reads whole rows, the rest as padding, and embeds steps by its own table; theirs may be another
  model, and on Coconut embeds by the host's table. It copies the network that the whole run begins
  with, before any stage; from scratch it has learned nothing when thoughts first come.
- The loss is the mean over readouts of their mean token loss, of the whole update (over tokens with
  `curriculum.reduction='token'`); there it is, on Coconut, a sum over tokens.
- It is there in each stage of a curriculum that has thoughts; there in the last alone.
- On CODI there is no seventh vector, which nobody feeds, and by default (`aux.last_step`) thoughts
  also spell the last step, which CODI's written chain leaves out.

Source: arXiv 2509.20317; github.com/InternLM/SIM-CoT.
"""

import dataclasses
import functools

from flax import nnx
import jax.numpy as jnp

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods.method import AddedParam, Method, weigh_apart
from rim_jax.model.lora import fold_in_name
from rim_jax.model.sharding import BATCH, constrain
from rim_jax.model.transformer import Transformer
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import Encoded, Example, Readout, Template


def spell(host: Method, config: Config) -> Method:
  """The host, whose thoughts also spell their steps as `config.aux` says."""
  size = config.aux.group_tokens

  def lay_out(encoded: Encoded, template: Template, layout: LayoutConfig) -> Example:
    example = host.layout(encoded, template, layout)
    count = layout.num_blocks * layout.block_tokens // size
    said = list_targets(encoded, template, count, config)
    return dataclasses.replace(example, readouts=(*example.readouts, *(
        Readout(-1, batch_lib.SLOT_DECODED, (), target, num_latents=size) for target in said)))

  # 6 parameters, as `inputs` has.
  def find_inputs(model, tokens_bt, fields, config, limits, dropout_key=None):
    inputs_btd = host.feed(model, tokens_bt, fields, config, limits, dropout_key)
    if inputs_btd is None:
      return None
    return hand_over(inputs_btd, tokens_bt - model.vocab_size, fields, limits.examples, size)
  spelling = dataclasses.replace(
      weigh_apart(host, batch_lib.SLOT_DECODED, lambda config: config.aux.weight),
      layout=lay_out, inputs=find_inputs)
  if config.aux.decoder == 'shared':
    return spelling

  def make_added(config: Config, key) -> nnx.Module:
    added = host.make_added(config, key) if host.make_added else nnx.Module()
    added.decoder = make_decoder(config, fold_in_name(key, 'decoder'))
    return added
  return dataclasses.replace(spelling, make_added=make_added, replace_logits=ask_decoder)


def make_decoder(config: Config, key) -> Transformer:
  """A network like the method's own, without adapters, all of whose parameters are added ones."""
  shape = dataclasses.replace(config.model, lora=dataclasses.replace(config.model.lora, rank=0))
  decoder = Transformer(shape, config.model.vocab_size, key)
  for path, variable in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
    *where, name = path
    setattr(functools.reduce(getattr, map(str, where), decoder), str(name),
            AddedParam(variable.get_value(), **variable.get_metadata()))
  return decoder


# 6 parameters, as `Method.replace_logits` has.
def ask_decoder(model, batch: batch_lib.Batch, inputs_btd, logits_bsv, config: Config,
                dropout_key=None):
  """Logits in which what is spelled is the second network's."""
  if inputs_btd is None:
    return logits_bsv
  decoder = model.added.decoder
  spelled_bt = batch.block < 0
  latent_bt = spelled_bt & (batch.tokens == model.vocab_size + 1)
  alone = dataclasses.replace(batch, example=jnp.where(spelled_bt, batch.example, 0))
  key = None if dropout_key is None else fold_in_name(dropout_key, 'decoder')
  x_btd, _ = decoder.read_rows(alone, config.layout, key, jnp.where(
      latent_bt[..., None], inputs_btd, decoder.embed(batch.tokens)))
  theirs_bsv = decoder.compute_logits_at(x_btd, batch.slot_index)
  return jnp.where((batch.slot_kind == batch_lib.SLOT_DECODED)[..., None], theirs_bsv, logits_bsv)


def list_targets(encoded: Encoded, template: Template, count: int, config: Config) -> list:
  """What each of `count` groups of thoughts spells, eos included."""
  steps = encoded.steps if config.aux.last_step else encoded.steps[:-1]
  alone = max(count - (not config.writes_steps), 0)  # groups that say one step
  said = [list(step) for step in steps[:alone]]
  if count > alone and len(steps) > alone:
    rest = [i for step in steps[alone:] for i in (*template.step_separator, *step)]
    said.append(rest[len(template.step_separator):])
  if config.aux.answer_fills:
    answer = [*template.answer_prefix, *encoded.answer, *template.answer_suffix]
    said += [answer] * (count - len(said))
  return [[*ids, *template.eos] for ids in said]


def hand_over(inputs_btd, memory_bt, fields: batch_lib.Fields, num_examples: int, size: int):
  """Inputs of rows in which the decoder's latents are the trunk's: group by group, in order.

  Shapes: inputs [b, t, d]; memory i32[b, t], 0 at `<b>` and 1 at `<m>`.
  """
  numbers_e = 1 + jnp.arange(num_examples)
  mine_bet = fields.example[:, None] == numbers_e[None, :, None]
  latent_bt = (memory_bt == 1) & (fields.block < 0)
  begin_be = ((memory_bt == 0)[:, None] & mine_bet).argmax(-1)
  most = jnp.iinfo(jnp.int32).max
  first_be = jnp.where(latent_bt[:, None] & mine_bet, fields.readout[:, None], most).min(-1)
  of_bt = jnp.clip(fields.example - 1, 0, num_examples - 1)
  begin_bt, first_bt = (jnp.take_along_axis(x, of_bt, 1) for x in (begin_be, first_be))
  from_bt = begin_bt + 1 + (fields.readout - first_bt) * size + fields.positions
  at_bt = jnp.broadcast_to(jnp.arange(memory_bt.shape[1])[None], memory_bt.shape)
  source_bt = jnp.where(latent_bt, from_bt, at_bt)
  return constrain(jnp.take_along_axis(inputs_btd, source_bt[..., None], 1), BATCH, None, None)
