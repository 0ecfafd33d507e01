"""LoRA adapters and memory rows in PEFT's format, out and in.

A module has `lora_A` [r, in] and `lora_B` [out, r]; the memory rows are the rows of
`trainable_token_indices` beside the embedding.

Source: PEFT's checkpoint format, as `PeftModel.from_pretrained` reads it.
"""

import json
import pathlib
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from rim_jax.config import Config, LoraConfig
from rim_jax.errors import list_broken, refuse
from rim_jax.packing.layout import NUM_MEMORY_ROWS
from rim_jax.pretrained import families, weights
from rim_jax.pretrained import tensors as tensors_lib
from rim_jax.runtime import hosts

_PREFIX = 'base_model.model.'
_FILE = 'adapter_model.safetensors'
# Keys of adapter_config.json that change nothing of what is computed from the tensors, or are only
# read by what is refused.
_HARMLESS = re.compile(
    r'task_type|auto_mapping|peft_version|base_model_name_or_path|revision|inference_mode'
    r'|target_modules|exclude_modules|lora_dropout|fan_in_fan_out|layers_to_transform'
    r'|layers_pattern|megatron_core|trainable_token_indices|eva_config|qalora_group_size'
    r'|ensure_weight_tying|unsloth_\w+')
# Others (pissa, olora, corda, ...) change the base, which is not in the file.
_INITS = (True, False, 'gaussian', 'eva', 'orthogonal')


def _list_modules(family: str, flat: dict):
  """(path of the adapter, stored module) of every adapter of a model, whose parameters are flat."""
  return [((*path[:-1], 'adapter'), tensor.module)
          for path, tensor in tensors_lib.list_tensors(family).items()
          if path[-1] == 'kernel' and (*path[:-1], 'adapter', 'a') in flat]


def _get_rows_name(family: str) -> str:
  embedding = tensors_lib.TENSORS[family]['embedding'].module
  return f'{_PREFIX}{embedding}.token_adapter.trainable_tokens_delta'


def write_adapters(folder: pathlib.Path, config: Config, base: weights.Base, params, ids):
  """Writes the adapters and the memory rows, which stand at token `ids`.

  Every process takes part; those without a `folder` (None) write nothing.
  """
  rank, tensors, modules = config.model.lora.rank, {}, set()
  flat = traverse_util.flatten_dict(params)
  for path, module in _list_modules(base.family, flat):
    a_lir, b_lro = (hosts.fetch(flat[*path, k]) for k in 'ab')
    for i, (a, b) in enumerate(zip(a_lir, b_lro)):
      name = _PREFIX + module.format(i)
      tensors[f'{name}.lora_A.weight'] = np.ascontiguousarray(
          a.reshape(-1, rank).T, np.float32)
      tensors[f'{name}.lora_B.weight'] = np.ascontiguousarray(
          b.reshape(rank, -1).T, np.float32)
    modules.add('.'.join(module.split('.')[-2:]))  # 'c_proj' alone is two of GPT-2's
  tensors[_get_rows_name(base.family)] = hosts.fetch(params['memory']).astype(np.float32)
  if folder is None:
    return
  weights.save_tensors(tensors, folder / _FILE)
  settings = {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': str(base.folder),
      'r': rank, 'lora_alpha': config.model.lora.alpha, 'lora_dropout': config.model.lora.dropout,
      'target_modules': sorted(modules), 'bias': 'none',
      'fan_in_fan_out': base.family == 'gpt2', 'inference_mode': True,
      'trainable_token_indices': list(ids)}
  (folder / 'adapter_config.json').write_text(json.dumps(settings, indent=2) + '\n')


def _find_other_settings(settings: dict, lora: LoraConfig) -> list[str]:
  """What adapter_config.json says that changes the arithmetic and is not so here."""
  here = {'r': lora.rank, 'lora_alpha': lora.alpha, 'use_rslora': False, 'use_dora': False,
          'bias': 'none', 'modules_to_save': None, 'rank_pattern': {}, 'alpha_pattern': {}}
  problems = [f'adapter_config.json has {key}={settings[key]!r}, here it is {mine!r}'
              for key, mine in here.items()
              # [], {}, None and False all mean that a setting is off
              if key in settings and settings[key] != mine and (settings[key] or mine)]
  kind, init = settings.get('peft_type', 'LORA'), settings.get('init_lora_weights', True)
  problems += list_broken(
      (kind != 'LORA', f'adapter_config.json has peft_type={kind!r}; LORA is read'),
      (not any(type(init) is type(known) and init == known for known in _INITS),
       f'adapter_config.json has init_lora_weights={init!r}, which changed the model below the '
       'adapters; have PEFT convert them to plain ones (path_initial_model_for_weight_conversion)'))
  known = here.keys() | {'peft_type', 'init_lora_weights'}
  return problems + [
      f'adapter_config.json has {key}={value!r}, which rim_jax does not know; if it changes no '
      'arithmetic, remove the key' for key, value in settings.items()
      if key not in known and value and not _HARMLESS.fullmatch(key)]


def load_adapters(folder, config: Config, family: str, params, say=print):
  """The parameters with adapters, and memory rows where there are any, from a PEFT directory.

  Args:
    params: the trainable set; gives shapes, dtypes and placement.
    say: told where there are no memory rows, so that fresh ones stay.
  Raises: UserError for other settings than the config's, for every module that one of them has
    and the other has not, for memory rows that were written and are gone, and for a damaged file.
  """
  folder = pathlib.Path(folder).expanduser()
  settings = families.load_json(folder / 'adapter_config.json',
                                f'model.lora.init_from is a directory with it and {_FILE}')
  problems = _find_other_settings(settings, config.model.lora)
  with weights.open_file(folder / _FILE) as f:
    stored = {name: f.get_tensor(name) for name in f.keys()}
  loaded: dict[tuple, Any] = dict(traverse_util.flatten_dict(params))
  used = set()

  def take(name, shape):
    used.add(name)
    if name not in stored:
      problems.append(f'{name} is missing; the model needs {list(shape)}')
    elif stored[name].shape != shape:
      problems.append(f'{name} is {list(stored[name].shape)}; the model needs {list(shape)}')
    else:
      return stored[name].T
    return np.zeros(shape[::-1], np.float32)

  for path, module in _list_modules(family, loaded):
    for key, part in (('a', 'lora_A'), ('b', 'lora_B')):
      like = loaded[*path, key]
      one = like.shape[1:]
      flat = ((int(np.prod(one[:-1])), one[-1]) if key == 'a' else
              (one[0], int(np.prod(one[1:]))))
      value = np.stack([
          take(f'{_PREFIX}{module.format(i)}.{part}.weight', flat[::-1]).reshape(one)
          for i in range(like.shape[0])])
      loaded[*path, key] = _place(value, like)
  rows = _get_rows_name(family)
  if rows in stored and stored[rows].shape == loaded['memory',].shape:
    loaded['memory',] = _place(stored[rows], loaded['memory',])
  elif rows in stored:
    problems.append(
        f'{rows} is {list(stored[rows].shape)}; there are {NUM_MEMORY_ROWS} memory rows')
  elif settings.get('trainable_token_indices'):
    problems.append(
        f'{rows} is missing, though adapter_config.json has trainable_token_indices: without their '
        'memory rows these adapters compute something else; save them again with both')
  elif not problems:
    say(f'{folder}: has adapters and no memory rows; those stay as they are before training')
  used.add(rows)
  problems += [f'{name} belongs to no adapter of this model'
               for name in sorted(stored.keys() - used)]
  refuse([f'{folder}: {p}' for p in problems])
  return traverse_util.unflatten_dict(loaded)


def _place(value, like):
  """The same array of every process, where `like` is."""
  value = value.astype(like.dtype)
  return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
