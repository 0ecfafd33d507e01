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
  # From scratch, r_1 as a target too is what starts learning: without it the first readout has
  # to find a sum of three numbers at once (docs/results.md). Fading waits until that is done.
  config.layout.depth0_readout = method == 'rim'
  config.curriculum.hold_frac = 0.7
  # So small a network has nothing to spare: dropout 0.2 in stage 2 costs it a third of the answers
  config.curriculum.update({'stage2_dropout': 0.0, 'stage2_learning_rate_scale': 0.5})
  config.eval.max_new_tokens = 12 if method == 'cot' else 2
  return config


def make_gsm8k(method: str):
  """GSM8K (--config.data.dir=DIR, or downloaded): every row once, a tiny byte-level network.

  Far too little to learn arithmetic from scratch: it shows the whole way on real rows in about 15
  minutes of 2 cores. The short prefix keeps 8 readouts of bytes inside a row.
  """
  config = make_config_dict(method=method)
  config.data.source = 'gsm8k'
  config.layout.update({'row_tokens': 1152, 'answer_prefix': '### ', 'answer_suffix': ''})
  config.model.update({'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'mlp_dim': 256,
                       'activation': 'gelu_tanh', 'max_positions': 1536, 'remat': 'full'})
  config.train.update({'num_epochs': 1.34, 'batch_examples': 32})  # stage 1: one epoch
  config.checkpoint.every_steps = 100
  config.eval.update({'max_new_tokens': 192 if method == 'cot' else 12, 'batch_size': 32,
                      'num_valid_examples': 32})
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
