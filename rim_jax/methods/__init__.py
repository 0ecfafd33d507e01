"""One module a method: what stands in the sequence, how much it counts, what is fed back.

Never trains, decodes or reads files; facts that need no JAX stand in config/methods.py.
Start with method.py, which says what a method is, then rim.py; METHODS is the one table.
"""

import dataclasses
from typing import Any

from flax import traverse_util
import jax.numpy as jnp

from rim_jax.config import Config
from rim_jax.methods import (
  coconut,
  codi,
  cot,
  direct,
  icot,
  inside,
  lotus,
  paired,
  passes,
  pause,
  pccot,
  rim,
  sim_cot,
)
from rim_jax.methods.method import Method
from rim_jax.model.lora import fold_in_name
from rim_jax.model.transformer import Transformer
from rim_jax.packing import source

METHODS = {
    'direct': direct.DIRECT,
    'cot': cot.COT,
    'icot': icot.ICOT,
    'coconut_stage': coconut.COCONUT_STAGE,
    'codi': codi.CODI,
    'pccot': pccot.PCCOT,
    'lotus_stage': lotus.LOTUS_STAGE,
    'pause': pause.PAUSE,
    'rim_stage1': rim.RIM_STAGE1,
    'rim_stage2': rim.RIM_STAGE2,
}


def get_method(config: Config) -> Method:
  """The method of a run, modified as its config asks; of a curriculum, each stage has its own."""
  method, num_passes = METHODS[config.method], config.loop.num_passes
  if config.curriculum.inside_weight:
    method = inside.predict_inside(method)
  if num_passes > 1 and config.loop_rule:
    method = passes.loop(method, passes.get_rule(config), num_passes)
  if config.layout.paired_readout:
    method = paired.pair_blocks(method)
  if config.aux.decoder != 'none':
    method = sim_cot.spell(method, config)
  return method


def make_model(config: Config, vocab_size: int, key) -> Transformer:
  """A random network, with what its method adds."""
  model, make = Transformer(config.model, vocab_size, key), get_method(config).make_added
  if make:
    config = dataclasses.replace(config, model=dataclasses.replace(
        config.model, vocab_size=vocab_size))
    model.added = make(config, fold_in_name(key, 'added'))
  return model


def begin_decoder(params: dict, *others: dict) -> dict:
  """Parameters whose auxiliary decoder, where there is one, is a copy of the network's own.

  Args:
    others: where the rest of the network is, e.g. what is frozen.
  """
  if 'decoder' not in params.get('added', {}):
    return params
  known = {path: value for tree in (*others, params)
           for path, value in traverse_util.flatten_dict(tree).items()}
  flat: dict[tuple, Any] = traverse_util.flatten_dict(params)
  for path in [path for path in flat if path[:2] == ('added', 'decoder')]:
    flat[path] = jnp.array(known[path[2:]], flat[path].dtype)
  return traverse_util.unflatten_dict(flat)


def make_codec(config: Config, tokenizer) -> source.Codec:
  """A run's codec. Raises: UserError where model.vocab_size is below the tokenizer's."""
  method = get_method(config)
  return source.make_codec(config, tokenizer, method.layout, method.removal)
