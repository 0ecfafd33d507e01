"""Pretrained weights: equal to transformers, straight onto the mesh, and what is refused.

The golden models and what transformers computed with them come from `make_golden.py`.
"""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rim_jax import config as config_lib
from rim_jax.config import MeshConfig
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.evaluation import decode
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.pretrained import families, weights
from rim_jax.training import step as step_lib
from tests import support
from tests.support_pretrained import compute_logits, make_mistral

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = ('gpt2', 'llama', 'llama3', 'qwen2', 'qwen3', 'gemma3')


def make_config(folder, method='direct', **changes):
  config = config_lib.Config(
      method=method, train=config_lib.TrainConfig(num_examples=8),
      model=config_lib.ModelConfig(init_from=str(folder), frozen_dtype='float32'),
      optim=config_lib.OptimConfig(trainable='memory'))
  return support.set_keys(families.resolve(config), {
      k.replace('__', '.'): v for k, v in changes.items()})


def load(folder, config=None, mesh_config=None, devices=1):
  """(config, program, params, frozen) of a directory on a mesh."""
  config = config or make_config(folder)
  mesh = sharding.make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
  program = step_lib.make_program(config, config.model.vocab_size, 1, mesh)
  base = weights.load_params(weights.open_base(folder), program.base)
  state, frozen = program.init(jax.random.key(0), base)
  return config, program, state.params, frozen


# ---- Equal to transformers ----


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_equal_those_of_transformers(family):
  """Alone, and under transformers' left and right padding: 1e-4 at every real token, fp32."""
  golden = np.load(GOLDEN / family / 'golden.npz')
  _, program, params, frozen = load(GOLDEN / family)
  for text in (0, 1):
    logits = compute_logits(program, params, frozen, golden[f'ids_{text}'])
    names = [f'logits_{text}'] + (['logits_left_padded', 'logits_right_padded'] if text else [])
    for name in names:
      assert np.abs(logits - golden[name]).max() <= 1e-4, name
  assert np.abs(golden['logits_0']).max() > 1  # not a comparison of zeros


@pytest.mark.hf
@pytest.mark.skipif(importlib.util.find_spec('transformers') is None,
                    reason="needs the extra: pip install -e '.[hf]'")
@pytest.mark.parametrize('window', [None, 24, 23])
def test_logits_of_a_mistral_equal_those_of_transformers(window, tmp_path):
  """A window that all of a text's tokens fit into changes nothing, and one token less does."""
  import torch
  import transformers
  folder = make_mistral(tmp_path / 'mistral', window)
  ids = np.load(GOLDEN / 'llama3' / 'golden.npz')['ids_0']
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  assert type(model).__name__ == 'MistralForCausalLM'
  with torch.no_grad():
    want = model(torch.tensor(ids)[None]).logits[0].numpy()
  config, program, params, frozen = load(folder)
  found = compute_logits(program, params, frozen, ids)
  assert config.model.sliding_window == (window or 0) and len(ids) == 24
  apart = np.abs(found - want).max(-1) > 1e-5 * np.abs(want).max()
  assert apart.nonzero()[0].tolist() == ([23] if window == 23 else [])


@pytest.mark.parametrize('family', [
    *FAMILIES[:2], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[2:])])
def test_greedy_tokens_equal_those_of_transformers(family):
  golden = np.load(GOLDEN / family / 'golden.npz')
  count = len(golden['greedy_0'])
  config = make_config(GOLDEN / family, eval__max_new_tokens=count, eval__batch_size=2)
  _, program, params, frozen = load(GOLDEN / family, config)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  codec = support.make_codec(config)
  codec = dataclasses.replace(codec, tokenizer=_NeverEnds())
  decoder = decode.Decoder(Network(program.graphdef, params, frozen, config, codec, mesh))
  questions = [golden['ids_0'].tolist(), golden['ids_1'].tolist()]
  ids = np.asarray(decoder.run(decoder.place(questions, 0, 2), (), (0,)))
  for text in (0, 1):
    np.testing.assert_array_equal(ids[text, 0], golden[f'greedy_{text}'])


class _NeverEnds:
  eos_id, vocab_size = -1, 272


@pytest.mark.parametrize('num_ids', [pytest.param(272, marks=pytest.mark.slow), 100])
def test_padding_rows_are_never_decoded(num_ids):
  """Rows of the embedding beyond the tokenizer's ids mean no text, whatever their logits are."""
  config = make_config(GOLDEN / 'llama', eval__batch_size=1, eval__max_new_tokens=32)
  _, program, params, frozen = load(GOLDEN / 'llama', config)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  codec = support.make_codec(config)
  tokenizer = _NeverEnds()
  tokenizer.vocab_size = num_ids
  decoder = decode.Decoder(Network(program.graphdef, params, frozen, config,
                                   dataclasses.replace(codec, tokenizer=tokenizer), mesh))
  ids = decoder.run(decoder.place([[5, 9, 30]], 0, 1), (), (0,))
  assert (np.asarray(ids) >= 100).any() == (num_ids == 272)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_directory_s_tokenizer_gives_the_ids_that_transformers_had(family):
  golden = np.load(GOLDEN / family / 'golden.npz')
  config = make_config(GOLDEN / family)
  tokenizer = tokenizer_lib.load_tokenizer(config.tokenizer)
  text = 'Tom has 3 boxes of 12 pens; he gives 7 of the pens away. How many pens are left? '
  bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  ids = (bos + tokenizer.encode(text)) * 2
  assert ids[:24] == golden['ids_0'].tolist()


@pytest.mark.hf
@pytest.mark.skipif(importlib.util.find_spec('transformers') is None,
                    reason="needs the extra: pip install -e '.[hf]'")
def test_the_golden_files_are_what_transformers_gives_today(tmp_path):
  subprocess.run([sys.executable, pathlib.Path(__file__).parents[1] / 'make_golden.py', '--out',
                  tmp_path], check=True)
  for family in FAMILIES:
    old, new = (np.load(d / family / 'golden.npz') for d in (GOLDEN, tmp_path))
    assert set(old) == set(new)
    for name in old:
      # Another kind of CPU adds in another order: 3e-5 has been seen, of logits up to 4.
      np.testing.assert_allclose(new[name], old[name], rtol=1e-5, atol=1e-4)


# ---- Onto the mesh ----


@pytest.mark.parametrize('family', ['gpt2', 'llama3'])
def test_a_mesh_gets_the_same_parameters_and_each_device_its_part(family, monkeypatch):
  _, _, _, single = load(GOLDEN / family)
  taken = []
  read = weights._read

  def count(*args):
    block = read(*args)
    taken.append(block.size)
    return block
  monkeypatch.setattr(weights, '_read', count)
  _, program, _, sharded = load(GOLDEN / family, None, MeshConfig(2, 2, 2), 8)
  jax.tree.map(np.testing.assert_array_equal, sharded, single)
  jax.tree.map(lambda x, want: _assert_same_place(x, want), sharded, program.abstract[1])
  # What is read is what the devices hold, once for those that hold the same; no more.
  held = [{str(s.index): s.data.size for s in x.addressable_shards}
          for x in jax.tree.leaves(sharded)]
  assert sum(taken) == sum(sum(blocks.values()) for blocks in held)


def _assert_same_place(x, want):
  assert x.sharding == want.sharding and x.dtype == want.dtype


def test_replicas_share_one_reading(monkeypatch):
  read, taken = weights._read, []

  def count(*args):
    taken.append(args[1])
    return read(*args)
  monkeypatch.setattr(weights, '_read', count)
  load(GOLDEN / 'llama', None, MeshConfig(4, 2, 1), 8)
  assert len(taken) == 2 * len(set(taken)) == 2 * 20  # two blocks of each, not one a device


def test_a_block_is_read_from_its_byte_ranges_alone():
  """Of GPT-2's fused [d, 3, h, k], two heads of each third: three runs, and nothing between."""
  runs = weights._find_runs([3, 4, 2], [range(3), range(1, 3), range(2)])
  assert runs == [(2, 6), (10, 14), (18, 22)]
  assert weights._find_runs([3, 4, 2], [range(1, 3), range(4), range(2)]) == [(8, 24)]
  assert weights._find_runs([6], [range(2, 4)]) == [(2, 4)]


def test_a_frozen_base_is_bfloat16_and_what_is_added_float32():
  config = make_config(GOLDEN / 'llama', model__frozen_dtype='bfloat16', model__lora__rank=2,
                       optim__trainable='lora')
  _, _, params, frozen = load(GOLDEN / 'llama', config)
  assert {str(x.dtype) for x in jax.tree.leaves(frozen)} == {'bfloat16'}
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'float32'}
  stored = safetensors.numpy.load_file(GOLDEN / 'llama' / 'model.safetensors')
  np.testing.assert_array_equal(
      frozen['embedding'], stored['model.embed_tokens.weight'].astype(jnp.bfloat16))


def test_training_everything_keeps_float32_masters():
  config = make_config(GOLDEN / 'llama', optim__trainable='all',
                       model__frozen_dtype='bfloat16')
  _, _, params, frozen = load(GOLDEN / 'llama', config)
  assert not jax.tree.leaves(frozen)
  stored = safetensors.numpy.load_file(GOLDEN / 'llama' / 'model.safetensors')
  np.testing.assert_array_equal(params['embedding'], stored['model.embed_tokens.weight'])


@pytest.mark.parametrize('init, expected', [
    ('mean', lambda e: e.mean(0)), ('token', lambda e: e[7]), ('normal', lambda e: 0 * e[0])])
def test_memory_rows_start_from_the_loaded_vocabulary(init, expected):
  config = make_config(GOLDEN / 'llama', model__memory_init=init, model__memory_token=7,
                       model__memory_noise=1e-3)
  _, _, params, frozen = load(GOLDEN / 'llama', config)
  difference = np.asarray(params['memory']) - expected(np.asarray(frozen['embedding']))
  assert 0 < np.abs(difference).max() < 6e-3


# ---- Files of other shapes ----


@pytest.fixture
def folder(tmp_path):
  """A copy of a golden model; `edit` changes its tensors."""
  def make(name, edit=lambda tensors: tensors, file='model.safetensors'):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    path = tmp_path / name / 'model.safetensors'
    tensors = edit(safetensors.numpy.load_file(path))
    path.unlink()
    safetensors.numpy.save_file(tensors, tmp_path / name / file)
    return tmp_path / name
  return make


def get_frozen(folder):
  return load(folder)[3]


@pytest.mark.parametrize('dtype', [
    np.float32, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (np.uint8, np.bool_))])
def test_gpt2_without_its_prefix_and_with_its_buffers(folder, dtype):
  def edit(tensors):
    tensors = {k.removeprefix('transformer.'): v for k, v in tensors.items()}
    for layer in (0, 1):
      tensors[f'h.{layer}.attn.bias'] = np.ones((1, 1, 4, 4), dtype)
      tensors[f'h.{layer}.attn.masked_bias'] = np.ones((), np.float32)
    return tensors | {'lm_head.weight': tensors['wte.weight'].copy()}
  jax.tree.map(np.testing.assert_array_equal, get_frozen(folder('gpt2', edit)),
               get_frozen(GOLDEN / 'gpt2'))


def split_in_two(path):
  """One file as two with an index, as large models are published."""
  tensors = safetensors.numpy.load_file(path / 'model.safetensors')
  (path / 'model.safetensors').unlink()
  names = sorted(tensors)
  where = {}
  for i, part in enumerate((names[::2], names[1::2]), 1):
    file = f'model-0000{i}-of-00002.safetensors'
    safetensors.numpy.save_file({n: tensors[n] for n in part}, path / file)
    where |= dict.fromkeys(part, file)
  (path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
  return path


def test_one_whole_file_goes_before_an_index_that_does_not_name_it(folder):
  """As transformers has it: the index, and what it names, are of an earlier save."""
  path = split_in_two(folder('llama'))
  earlier = weights.open_base(path)
  assert earlier.stale is None and '2 file(s)' in weights.describe(earlier)
  tensors = safetensors.numpy.load_file(GOLDEN / 'llama/model.safetensors')
  tensors['model.norm.weight'] += 1
  safetensors.numpy.save_file(tensors, path / 'model.safetensors')
  base = weights.open_base(path)
  assert set(base.files.values()) == {path / 'model.safetensors'}
  assert base.fingerprint != earlier.fingerprint
  assert weights.describe(base).endswith(
      '1 file(s) (model.safetensors; not those that model.safetensors.index.json names)')
  # An index that names it decides.
  (path / 'model.safetensors.index.json').write_text(
      json.dumps({'weight_map': dict.fromkeys(tensors, 'model.safetensors')}))
  assert weights.open_base(path).stale is None


def test_several_files_and_their_index(folder):
  path = split_in_two(folder('llama'))
  jax.tree.map(np.testing.assert_array_equal, get_frozen(path), get_frozen(GOLDEN / 'llama'))
  (path / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match='lacks model-00002-of-00002.safetensors, which'):
    weights.open_base(path)


def test_half_precision_files_are_read(folder):
  path = folder('llama', lambda t: {k: v.astype(jnp.bfloat16) for k, v in t.items()})
  want = get_frozen(GOLDEN / 'llama')
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)),
               get_frozen(path), want)


def test_every_tensor_that_does_not_fit_is_listed(folder):
  def edit(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight']
    tensors['model.layers.0.self_attn.k_proj.weight'] = np.zeros((16, 16), np.float32)
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((2, 2), np.float32)
    return tensors
  with pytest.raises(UserError) as e:
    get_frozen(folder('llama', edit))
  lines = str(e.value).split('\n')
  assert len(lines) == 3
  assert 'model.layers.1.mlp.up_proj.weight is missing; the model needs [40, 16]' in lines[1] + (
      lines[0])
  assert 'k_proj.weight is [16, 16]; the model needs [8, 16]' in str(e.value)
  assert 'model.layers.2.mlp.up_proj.weight [2, 2] is no tensor of this model' in lines[2]


def truncate(path):
  whole = (path / 'model.safetensors').read_bytes()
  (path / 'model.safetensors').write_bytes(whole[:-100])


def corrupt(path):
  whole = bytearray((path / 'model.safetensors').read_bytes())
  whole[20] ^= 0xFF
  (path / 'model.safetensors').write_bytes(whole)


@pytest.mark.parametrize('spoil, culprit', [
    (truncate, 'is no whole safetensors file'),
    (corrupt, 'is no whole safetensors file'),
    (lambda d: (d / 'model.safetensors').write_bytes(b''), 'is no whole safetensors file'),
    (lambda d: (d / 'model.safetensors').rename(d / 'pytorch_model.bin'), 'only safetensors'),
    (lambda d: (d / 'model.safetensors.index.json').write_text('{}'), 'has no weight_map'),
    (lambda d: (d / 'model.safetensors.index.json').write_text('{"weight_map": {"a": 1}}'),
     'has no weight_map'),
])
def test_a_damaged_directory_is_named(folder, spoil, culprit):
  path = folder('llama')
  spoil(path)
  with pytest.raises(UserError) as e:
    weights.open_base(path)
  assert culprit in str(e.value) and str(path) in str(e.value) and '\n' not in str(e.value)


def test_a_dtype_without_arithmetic_here_is_refused(folder):
  path = folder('llama', lambda t: {k: v.astype(np.int8) for k, v in t.items()})
  with pytest.raises(UserError, match=r'model\.safetensors: \S+ is I8; supported: F32'):
    weights.open_base(path)


def test_an_output_matrix_that_is_no_copy_of_what_it_is_tied_to_is_refused(folder):
  path = folder('llama', lambda t: t | {'lm_head.weight': 2 * t['model.embed_tokens.weight']})
  with pytest.raises(UserError, match='lm_head.weight differs from the embedding'):
    get_frozen(path)


def test_another_models_tensors_are_refused(folder):
  path = folder('llama')
  shutil.copy(GOLDEN / 'gpt2' / 'model.safetensors', path)
  with pytest.raises(UserError, match='model.embed_tokens.weight is missing'):
    get_frozen(path)


def test_the_fingerprint_reads_a_file_to_its_end(folder, monkeypatch):
  monkeypatch.setattr(weights, '_BLOCK', 64)  # 64 of them are far less than the file
  path = folder('llama')
  first = weights.open_base(path).fingerprint
  whole = bytearray((path / 'model.safetensors').read_bytes())
  assert len(whole) > 8 * 64 * weights._NUM_BLOCKS
  whole[-1] ^= 1
  (path / 'model.safetensors').write_bytes(whole)
  assert weights.open_base(path).fingerprint != first


def test_the_fingerprint_follows_content_not_place(folder):
  path = folder('llama')
  first = weights.open_base(path).fingerprint
  moved = path.rename(path.parent / 'elsewhere')
  assert weights.open_base(moved).fingerprint == first
  tensors = safetensors.numpy.load_file(moved / 'model.safetensors')
  tensors['model.norm.weight'][3] += 1e-3
  safetensors.numpy.save_file(tensors, moved / 'model.safetensors')
  assert weights.open_base(moved).fingerprint != first
