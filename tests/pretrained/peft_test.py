"""Adapters in PEFT's format: what a file holds, that it comes back, and what is refused."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from rim_jax.config import MeshConfig, rules
from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.pretrained import export, peft, weights
from rim_jax.training import step as step_lib
from tests import support
from tests.support_pretrained import make_config, make_model
from tests.support_pretrained import write_export as write

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.parametrize('family', [pytest.param('gpt2', marks=pytest.mark.slow), 'llama'])
def test_adapters_hold_one_module_each_in_peft_s_layout(family, tmp_path):
  config = make_config(family, export__adapters=True)
  _, params, frozen = make_model(config)
  card = write(tmp_path / 'out', config, params, frozen)
  tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'adapter_model.safetensors')
  settings = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert settings['trainable_token_indices'] == list(card['tokens'].values())
  rows = [v for k, v in tensors.items() if 'token_adapter' in k]
  np.testing.assert_array_equal(rows[0], params['memory'])
  # A and B of a module, multiplied as PEFT does, are what merging adds.
  base = safetensors.numpy.load_file(GOLDEN / family / 'model.safetensors')
  merged = dict(export.iterate_tensors(config, weights.open_base(GOLDEN / family), params,
                                       frozen))
  modules = {k.removesuffix('.lora_A.weight') for k in tensors if k.endswith('lora_A.weight')}
  assert len(modules) == 2 * len(rules.get_linears(config.model))
  for module in modules:
    delta = 2.0 * tensors[f'{module}.lora_B.weight'] @ tensors[f'{module}.lora_A.weight']
    delta = delta.T if settings['fan_in_fan_out'] else delta
    name = module.removeprefix('base_model.model.') + '.weight'
    support.assert_close(base[name] + delta, merged[name])


def make_fresh(config, mesh_config=None, devices=1):
  mesh = sharding.make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
  program = step_lib.make_program(config, config.model.vocab_size, 1, mesh)
  return program.init(jax.random.key(5))[0].params


@pytest.mark.parametrize('family, mesh, devices', [
    ('llama', MeshConfig(2, 2, 2), 8), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ('llama', None, 1), ('gpt2', None, 1), ('gpt2', MeshConfig(2, 2, 2), 8)))])
def test_what_is_written_comes_back(family, mesh, devices, tmp_path):
  config = make_config(family, export__adapters=True)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  fresh = make_fresh(config, mesh, devices)
  loaded = peft.load_adapters(tmp_path / 'out', config, family, fresh)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  jax.tree.map(lambda x, like: _assert_placed(x, like), loaded, fresh)


def _assert_placed(x, like):
  assert x.sharding == like.sharding and x.dtype == like.dtype


def test_adapters_without_memory_rows_are_told(tmp_path):
  """Those that had some are refused; those that never had leave fresh ones, and it is said."""
  config = make_config('llama', export__adapters=True)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  path = tmp_path / 'out' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({k: v for k, v in tensors.items() if 'lora' in k}, path)
  fresh, told = make_fresh(config), []
  with pytest.raises(UserError, match='token_adapter.* is missing, though .*save them again'):
    peft.load_adapters(tmp_path / 'out', config, 'llama', fresh)
  path = tmp_path / 'out' / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'trainable_token_indices': None}))
  loaded = peft.load_adapters(tmp_path / 'out', config, 'llama', fresh, told.append)
  assert len(told) == 1 and 'has adapters and no memory rows' in told[0]
  np.testing.assert_array_equal(loaded['memory'], fresh['memory'])
  assert (np.asarray(loaded['blocks']['up']['adapter']['b']) != 0).any()


@pytest.mark.parametrize('changes, culprits', [
    pytest.param({'model__lora__rank': 3}, ['r=2, here it is 3', 'lora_A.weight is [2, 16]'],
                 marks=pytest.mark.slow),
    ({'model__lora__alpha': 8.0}, ['lora_alpha=4.0, here it is 8.0']),
    ({'model__lora__targets': 'query'}, ['o_proj.lora_A.weight belongs to no adapter']),
])
def test_adapters_of_other_settings_are_refused(changes, culprits, tmp_path):
  config = make_config('llama', export__adapters=True)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  other = make_config('llama', **changes)
  with pytest.raises(UserError) as e:
    peft.load_adapters(tmp_path / 'out', other, 'llama', make_fresh(other))
  for culprit in culprits:
    assert culprit in str(e.value)


# What peft 0.21 writes of adapters with usual settings.
USUAL = {
    'alora_invocation_tokens': None, 'alpha_pattern': {}, 'arrow_config': None,
    'auto_mapping': None,
    'base_model_name_or_path': 'x', 'bias': 'none', 'corda_config': None,
    'ensure_weight_tying': False, 'eva_config': None, 'exclude_modules': None,
    'fan_in_fan_out': False, 'inference_mode': True, 'init_lora_weights': True,
    'kasa_config': None, 'layer_replication': None, 'layers_pattern': None,
    'layers_to_transform': None, 'loftq_config': {}, 'lora_alpha': 4, 'lora_bias': False,
    'lora_dropout': 0.05, 'lora_ga_config': None, 'megatron_config': None,
    'megatron_core': 'megatron.core', 'modules_to_save': None, 'monteclora_config': None,
    'peft_type': 'LORA', 'peft_version': '0.21.2', 'qalora_group_size': 16, 'r': 2,
    'rank_pattern': {}, 'revision': None, 'target_modules': ['q_proj'], 'target_parameters': None,
    'task_type': 'CAUSAL_LM', 'trainable_token_indices': None, 'use_bdlora': None,
    'use_dora': False, 'use_qalora': False, 'use_rslora': False, 'velora_config': None}


def find_problems(**changes):
  config = make_config('llama')
  return peft._find_other_settings(USUAL | changes, config.model.lora)


@pytest.mark.parametrize('init', [True, False, 'gaussian', 'eva', 'orthogonal'])
def test_what_peft_writes_of_usual_adapters_is_read(init):
  assert find_problems(init_lora_weights=init, eva_config={'rho': 2.0}) == []


@pytest.mark.parametrize('key, value', [
    ('init_lora_weights', 'pissa'), ('init_lora_weights', 'pissa_niter_16'),
    ('init_lora_weights', 'olora'), ('init_lora_weights', 'corda'), ('init_lora_weights', 'loftq'),
    ('init_lora_weights', 1), ('alora_invocation_tokens', [5]), ('lora_bias', True),
    ('use_qalora', True), ('layer_replication', [[0, 2], [1, 2]]), ('peft_type', 'ADALORA'),
    ('target_parameters', ['w']), ('use_dora', True), ('invented_later', 'x')])
def test_what_changes_the_arithmetic_of_adapters_is_refused_in_one_line(key, value, tmp_path):
  config = make_config('llama', export__adapters=True)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  path = tmp_path / 'out/adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(UserError, match=f'out: adapter_config.json has {key}=') as e:
    peft.load_adapters(tmp_path / 'out', config, 'llama', params)
  assert '\n' not in str(e.value)


@pytest.mark.hf
@pytest.mark.skipif(importlib.util.find_spec('peft') is None,
                    reason="needs the extra: pip install -e '.[hf]'")
def test_the_installed_peft_writes_nothing_that_is_not_known(tmp_path):
  import peft as theirs
  theirs.LoraConfig(r=2, lora_alpha=4, task_type='CAUSAL_LM', target_modules=['q_proj']
                    ).save_pretrained(tmp_path)
  found = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert peft._find_other_settings(found, make_config('llama').model.lora) == []


def test_a_damaged_adapter_is_named(tmp_path):
  config = make_config('llama', export__adapters=True)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  path = tmp_path / 'out' / 'adapter_model.safetensors'
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(UserError, match='is no whole safetensors file'):
    peft.load_adapters(tmp_path / 'out', config, 'llama', make_fresh(config))
  (tmp_path / 'out' / 'adapter_config.json').unlink()
  with pytest.raises(UserError, match='adapter_config.json: cannot be read'):
    peft.load_adapters(tmp_path / 'out', config, 'llama', make_fresh(config))
