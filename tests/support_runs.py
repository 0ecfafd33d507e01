"""Runs in processes of their own, and what they leave, for the tests."""

import dataclasses
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rim_jax.config import CheckpointConfig
from rim_jax.runtime import run_folder
from rim_jax.training import checkpoint as checkpoint_lib
from tests import support

# Of a process with one device, with the settings of these tests.
ENVIRONMENT = dict(os.environ, XLA_FLAGS=' '.join(
    flag for flag in os.environ['XLA_FLAGS'].split()
    if flag != '--xla_force_host_platform_device_count=8'))


def read_checkpoint(workdir):
  """Every array of the last checkpoint, bytes as they are, and its card."""
  found = checkpoint_lib.choose_checkpoint(workdir, 'last')
  with ocp.CheckpointManager(found.folder.parent) as manager:
    items = manager.restore(found.step, args=ocp.args.Composite(
        params=ocp.args.StandardRestore(), optim=ocp.args.StandardRestore()))
  return {jax.tree_util.keystr(p): np.asarray(x)
          for p, x in jax.tree_util.tree_leaves_with_path(dict(items.items()))}, found.card


def read_losses(workdir):
  """Losses by step; rates differ from run to run."""
  lines = [json.loads(x) for x in (pathlib.Path(workdir) / 'metrics.jsonl').open()]
  return [(x['step'], x['train/loss']) for x in lines if 'train/loss' in x]


def assert_same_run(a, b):
  arrays, card = read_checkpoint(a)
  others, other_card = read_checkpoint(b)
  assert arrays.keys() == others.keys() and len(arrays) > 20
  for name in arrays:
    np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)
  assert card == other_card
  assert read_losses(a) == read_losses(b)


def write_recipe(folder, **changes):
  config = support.make_config(**{
      'data__cache_dir': str(folder / 'cache'), 'train__batch_rows': 8,
      'train__num_examples': 160, 'layout__row_tokens': 32, 'model__dropout': 0.1,
      'eval__num_valid_examples': 4, 'checkpoint__every_steps': 5, **changes})
  recipe = folder / 'recipe.py'
  recipe.write_text('import ml_collections\ndef get_config():\n'
                    f'  return ml_collections.ConfigDict({dataclasses.asdict(config)!r})\n')
  return recipe


def wait_for(path, process, secs=500):
  deadline = time.monotonic() + secs
  while not path.exists():
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
    time.sleep(0.01)


def finish(process, secs=500):
  out = process.communicate(timeout=secs)[0]
  return process.returncode, out


def read_run(workdir):
  lines = run_folder.RunFolder(workdir).load_metrics()
  found = checkpoint_lib.choose_checkpoint(workdir, 'last')
  shapes = {k: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(
      jax.devices()[0])) for k, (shape, dtype) in found.card['params'].items()}
  tree = {}
  for name, shape in shapes.items():
    node, *rest = name.split('.')
    at = tree
    for part in rest:
      at, node = at.setdefault(node, {}), part
    at[node] = shape
  return ({x['step']: x['train/loss'] for x in lines if 'train/loss' in x},
          checkpoint_lib.restore(found, 'params', tree), found.card)


# 8 parameters: what differs between the checkpoints of one run.
def save_checkpoints(folder, accuracies, keep_last=2, say=lambda line: None, counted_from=0,
                     rules=(), done=0, unscheduled=(), **more):
  """One checkpoint a step, done + 1, done + 2, ...; parameters hold the step."""
  config = CheckpointConfig(keep_last=keep_last, **more)
  with checkpoint_lib.Checkpointer(folder, config, say) as checkpointer:
    for step, accuracy in enumerate(accuracies, done + 1):
      checkpointer.save(step, {'w': jnp.full(3, step, jnp.float32)},
                        {'step': jnp.int32(step)},
                        {'rows': step, 'counts': step >= counted_from,
                         'scheduled': step not in unscheduled} | (
                            {'rule_version': rules[step - done - 1]} if rules else {}), accuracy)


def find_latest(folder, say=lambda line: None):
  with checkpoint_lib.Checkpointer(folder, CheckpointConfig(), say) as checkpointer:
    return checkpointer.find_latest()


def restore_w(found, shape=(3,), dtype=jnp.float32):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoint_lib.restore(
      found, 'params', {'w': jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)})
