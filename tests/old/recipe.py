"""The recipe of the old runs: networks so small that a file of a few kilobytes holds them.

`recipe.py` is RiM whole, `recipe.py:sweep` two other methods with two seeds each. Of the project
it uses only what recipes may rely on, and sets what it needs, so that it goes on meaning the same.
"""

from rim_jax import points
from rim_jax.config import make_config_dict


def get_config(what: str = 'run'):
  config = make_config_dict(method='rim' if what == 'run' else 'direct')
  config.data.chain.update({'min_steps': 3, 'max_steps': 3, 'modulus': 4, 'num_train': 160,
                            'num_valid': 16, 'num_test': 24})
  config.tokenizer.kind = 'chain'
  config.layout.update({'num_blocks': 3, 'block_tokens': 1, 'separator': '', 'answer_prefix': '',
                        'answer_suffix': '', 'row_tokens': 100, 'depth0_readout': what == 'run'})
  size = 12 if what == 'run' else 8
  config.model.update({'num_layers': 2, 'embed_dim': size, 'num_heads': 2, 'mlp_dim': 2 * size,
                       'max_positions': 32})
  config.curriculum.update({'stage1_frac': 0.9375, 'stage2_dropout': 0.1})
  config.optim.update({'learning_rate': 1e-2, 'decay': 'cosine'})
  config.train.update({'num_examples': 16_000 if what == 'run' else 6_400, 'batch_examples': 0,
                       'batch_rows': 8})
  config.checkpoint.every_steps = 350
  config.eval.update({'batch_size': 24, 'num_valid_examples': 16, 'max_new_tokens': 2,
                      'num_latency_runs': 0})
  config.log.update({'every_steps': 5, 'tensorboard': False})
  if what == 'run':
    return config
  methods = [({'method': name}, {'method': name}) for name in ('direct', 'pause')]
  return points.make_sweep_dict(config, points.cross(methods, points.vary_seeds(2)))
