"""What the recipes share: the tasks by preset name. A recipe is one of these plus its method."""

import dataclasses

import ml_collections

from rim_jax.config import UserError, make_config_dict, make_stages, parse_config


def make_chain(method: str):
  """The built-in chain task (method.md's laptop task): a 4-layer network, one token a digit."""
  config = make_config_dict(method=method)
  config.data.source = 'chain'
  config.tokenizer.kind = 'chain'
  config.layout.update({'num_blocks': 4, 'block_tokens': 1, 'separator': '', 'answer_prefix': '',
                        'answer_suffix': '', 'row_tokens': 32})
  config.model.update({'num_layers': 4, 'embed_dim': 64, 'num_heads': 4, 'mlp_dim': 128,
                       'activation': 'gelu_tanh', 'max_positions': 64, 'remat': 'full'})
  config.optim.update({'learning_rate': 2e-3, 'decay': 'cosine'})
  config.train.update({'num_examples': 204_800, 'batch_examples': 64})
  # From scratch, r_1 as a target too is what starts learning: without it the first readout has to
  # find a sum of three numbers at once (docs/results.md). Fading waits until that is done.
  config.layout.depth0_readout = method == 'rim'
  config.curriculum.hold_frac = 0.7
  config.eval.max_new_tokens = 12 if method == 'cot' else 2
  return config


def make_gsm8k(method: str):
  """GSM8K (--config.data.dir=DIR, or downloaded) with a small byte-level network from scratch."""
  config = make_config_dict(method=method)
  config.data.source = 'gsm8k'
  config.layout.row_tokens = 2048
  config.model.update({'num_layers': 4, 'embed_dim': 128, 'num_heads': 4, 'mlp_dim': 384,
                       'activation': 'gelu_tanh', 'max_positions': 2048, 'remat': 'full'})
  config.train.update({'num_epochs': 1.0, 'batch_examples': 32})
  config.checkpoint.every_steps = 100
  config.eval.update({'max_new_tokens': 256 if method == 'cot' else 12, 'batch_size': 64,
                      'num_valid_examples': 64})
  return config


PRESETS = {'chain': make_chain, 'gsm8k': make_gsm8k}


def make(method: str, preset: str):
  """The config of a method on a preset; rim's stages are exactly those that rim would run.

  Raises: UserError "there is no preset '...'".
  """
  if preset not in PRESETS:
    raise UserError(f"there is no preset '{preset}'; there are {', '.join(PRESETS)}")
  if method not in ('rim_stage1', 'rim_stage2'):
    return PRESETS[preset](method)
  stages = {stage.method: stage for _, stage in make_stages(parse_config(PRESETS[preset]('rim')))}
  return ml_collections.ConfigDict(dataclasses.asdict(stages[method])).lock()
