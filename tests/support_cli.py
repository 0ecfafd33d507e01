"""Commands in process, on a network that trains in seconds, for the tests."""

import io

from rich import console as rich_console

from rim_jax import main

RECIPE = '''
"""A network that trains in seconds; the preset is the method."""
from rim_jax.config import make_config_dict


def get_config(method='rim_stage1'):
  c = make_config_dict(method=method)
  c.tokenizer.kind = 'chain'
  c.layout.update({'num_blocks': 2, 'block_tokens': 1, 'separator': '', 'answer_prefix': '',
                   'answer_suffix': '', 'row_tokens': 64})
  c.model.update({'num_layers': 1, 'embed_dim': 16, 'num_heads': 2, 'mlp_dim': 16,
                  'max_positions': 48})
  c.data.cache_dir = 'cache'
  c.data.chain.update({'num_train': 40, 'num_valid': 8, 'num_test': 8, 'min_steps': 2,
                       'max_steps': 3})
  c.train.update({'num_examples': 40, 'batch_examples': 0, 'batch_rows': 8})
  c.checkpoint.every_steps = 1
  c.eval.update({'batch_size': 8, 'max_new_tokens': 2, 'num_latency_runs': 0})
  c.log.update({'every_steps': 1, 'tensorboard': False})
  return c
'''


def run_cli(*argv):
  """(exit code, what a person saw on standard output)."""
  out = io.StringIO()
  code = main.cli(['main.py', *map(str, argv)], rich_console.Console(file=out, width=100))
  return code, out.getvalue()


def check_refused(capsys, argv, *lines):
  """Exit code 2 and exactly these errors: each a tuple of fragments of one line."""
  capsys.readouterr()
  code, _ = run_cli(*argv)
  err = capsys.readouterr().err
  assert code == 2
  assert 'Traceback' not in err
  told = err.splitlines()
  assert len(told) == len(lines), err
  for line in told:
    assert line.startswith('error: '), line
  for fragments in lines:
    fragments = (fragments,) if isinstance(fragments, str) else fragments
    assert any(all(f in line for f in fragments) for line in told), (fragments, err)
