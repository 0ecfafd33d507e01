"""Pretrained models for the tests: published shapes, small golden ones and what is exported."""

import functools
import json
import pathlib
import shutil

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rim_jax import config as config_lib
from rim_jax.config import MeshConfig
from rim_jax.model import sharding
from rim_jax.model import transformer as transformer_lib
from rim_jax.model.network import Network
from rim_jax.pretrained import export, families, weights
from rim_jax.training import step as step_lib
from tests import support

GOLDEN = pathlib.Path(__file__).parent / 'golden'


# The parts of published config.json files that decide a shape, and the parameters they come to.
_LLAMA3_ROPE = {'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0,
                'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}


PUBLISHED = {
    'gpt2': (124_439_808, {
        'model_type': 'gpt2', 'n_embd': 768, 'n_layer': 12, 'n_head': 12, 'n_positions': 1024,
        'n_ctx': 1024, 'vocab_size': 50257, 'activation_function': 'gelu_new',
        'layer_norm_epsilon': 1e-5, 'architectures': ['GPT2LMHeadModel'], 'attn_pdrop': 0.1,
        'task_specific_params': {'text-generation': {'do_sample': True}}}),
    'llama3_2_1b': (1_235_814_400, {
        'model_type': 'llama', 'hidden_size': 2048, 'intermediate_size': 8192,
        'num_hidden_layers': 16, 'num_attention_heads': 32, 'num_key_value_heads': 8,
        'head_dim': 64, 'vocab_size': 128256, 'max_position_embeddings': 131072,
        'rms_norm_eps': 1e-5, 'rope_theta': 500000.0, 'rope_scaling': _LLAMA3_ROPE,
        'tie_word_embeddings': True, 'hidden_act': 'silu', 'torch_dtype': 'bfloat16'}),
    'llama3_2_3b': (3_212_749_824, {
        'model_type': 'llama', 'hidden_size': 3072, 'intermediate_size': 8192,
        'num_hidden_layers': 28, 'num_attention_heads': 24, 'num_key_value_heads': 8,
        'head_dim': 128, 'vocab_size': 128256, 'max_position_embeddings': 131072,
        'rms_norm_eps': 1e-5, 'rope_theta': 500000.0, 'rope_scaling': _LLAMA3_ROPE,
        'tie_word_embeddings': True, 'hidden_act': 'silu'}),
    'llama3_1_8b': (8_030_261_248, {
        'model_type': 'llama', 'hidden_size': 4096, 'intermediate_size': 14336,
        'num_hidden_layers': 32, 'num_attention_heads': 32, 'num_key_value_heads': 8,
        'vocab_size': 128256, 'max_position_embeddings': 131072, 'rms_norm_eps': 1e-5,
        'rope_theta': 500000.0, 'rope_scaling': _LLAMA3_ROPE | {'factor': 8.0},
        'tie_word_embeddings': False, 'hidden_act': 'silu'}),
    'gemma3_270m': (268_098_176, {
        'model_type': 'gemma3_text', 'hidden_size': 640, 'intermediate_size': 2048,
        'num_hidden_layers': 18, 'num_attention_heads': 4, 'num_key_value_heads': 1,
        'head_dim': 256, 'vocab_size': 262144, 'max_position_embeddings': 32768,
        'rms_norm_eps': 1e-6, 'rope_theta': 1000000.0, 'rope_local_base_freq': 10000.0,
        'rope_scaling': None, 'hidden_activation': 'gelu_pytorch_tanh', 'sliding_window': 512,
        '_sliding_window_pattern': 6, 'query_pre_attn_scalar': 256, 'attention_bias': False,
        'layer_types': (['sliding_attention'] * 5 + ['full_attention']) * 3,
        'attn_logit_softcapping': None, 'final_logit_softcapping': None,
        'use_bidirectional_attention': False}),
    'gemma3_1b': (999_885_952, {
        'model_type': 'gemma3_text', 'hidden_size': 1152, 'intermediate_size': 6912,
        'num_hidden_layers': 26, 'num_attention_heads': 4, 'num_key_value_heads': 1,
        'head_dim': 256, 'vocab_size': 262144, 'max_position_embeddings': 32768,
        'rms_norm_eps': 1e-6, 'rope_theta': 1000000, 'rope_local_base_freq': 10000,
        'rope_scaling': None, 'hidden_activation': 'gelu_pytorch_tanh', 'sliding_window': 512,
        'sliding_window_pattern': 6, 'query_pre_attn_scalar': 256, 'attention_bias': False,
        'cache_implementation': 'hybrid'}),
    'qwen3_4b': (4_022_468_096, {
        'model_type': 'qwen3', 'hidden_size': 2560, 'intermediate_size': 9728,
        'num_hidden_layers': 36, 'num_attention_heads': 32, 'num_key_value_heads': 8,
        'head_dim': 128, 'vocab_size': 151936, 'max_position_embeddings': 40960,
        'rms_norm_eps': 1e-6, 'rope_theta': 1000000, 'rope_scaling': None,
        'tie_word_embeddings': True, 'hidden_act': 'silu', 'sliding_window': None,
        'use_sliding_window': False, 'max_window_layers': 36, 'attention_bias': False}),
}


def make_mistral(folder, window=None):
  """The golden Llama under Mistral's name, with Mistral's window."""
  golden = GOLDEN / 'llama3'
  tree = json.loads((golden / 'config.json').read_text()) | {
      'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'sliding_window': window,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 10_000.0}}
  for key in ('attention_bias', 'mlp_bias', 'pretraining_tp'):
    tree.pop(key, None)
  shutil.copytree(golden, folder)
  (folder / 'config.json').write_text(json.dumps(tree))
  return folder


def make_plain_config(folder, **changes):
  return config_lib.Config(
      method='rim_stage1', train=config_lib.TrainConfig(num_examples=8),
      model=config_lib.ModelConfig(init_from=str(folder), **changes))


def load_plain(folder, mesh_config=None, devices=1):
  """(config, program, params, frozen) of a model as it is published, on a mesh."""
  config = families.resolve(config_lib.Config(
      method='direct', train=config_lib.TrainConfig(num_examples=8),
      model=config_lib.ModelConfig(init_from=str(folder), frozen_dtype='float32'),
      optim=config_lib.OptimConfig(trainable='memory')))
  mesh = sharding.make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
  program = step_lib.make_program(config, config.model.vocab_size, 1, mesh)
  base = weights.load_params(weights.open_base(folder), program.base)
  state, frozen = program.init(jax.random.key(0), base)
  return config, program, state.params, frozen


def compute_logits(program, params, frozen, ids):
  model = transformer_lib.merge_model(program.graphdef, params, frozen)
  t = len(ids)
  x, _ = model(jnp.asarray(ids)[None], jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)))
  return np.asarray(model.compute_logits(x))[0]


def make_config(family, **changes):
  config = families.resolve(config_lib.Config(
      method='rim_stage2', train=config_lib.TrainConfig(num_examples=8),
      # A path that is absolute stays itself below GOLDEN.
      model=config_lib.ModelConfig(init_from=str(GOLDEN / family), frozen_dtype='float32',
                                   lora=config_lib.LoraConfig(rank=2, alpha=4.0)),
      optim=config_lib.OptimConfig(trainable='lora')))
  return support.set_keys(config, {
      'layout.num_blocks': 2, 'layout.separator': '', 'export.dtype': 'float32',
      **{k.replace('__', '.'): v for k, v in changes.items()}})


def make_model(config, seed=0):
  """(program, params, frozen) with every trained parameter off its initial value."""
  program, *trees = _make_model(config, seed)
  return program, *jax.tree.map(lambda x: x, trees)  # in dicts of its own


@functools.cache  # several tests read the same one
def _make_model(config, seed):
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, config.model.vocab_size, 1, mesh)
  base = weights.load_params(weights.open_base(config.model.init_from), program.base)
  state, frozen = program.init(jax.random.key(0), base)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
      lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), state.params)
  return program, params, frozen


def write_export(out, config, params, frozen, questions=('1+1?',)):
  base = weights.open_base(config.model.init_from)
  network = Network(None, params, frozen, config, support.make_codec(config), None)
  return export.write_export(out, network, export.Origin(base, 'runs/it', 7),
                             make_records(questions), say=lambda line: None)


def make_records(questions):
  return [support.Record(q, (), '1', f'r:{i}') for i, q in enumerate(questions, 1)]


# ---- GGUF ----

# As llama.cpp's converter names them: (in a model directory, in a GGUF file).
_LLAMA_PARTS = (
    ('model.embed_tokens', 'token_embd'), ('model.norm', 'output_norm'), ('lm_head', 'output'),
    ('input_layernorm', 'attn_norm'), ('post_attention_layernorm', 'ffn_norm'),
    ('self_attn.q_proj', 'attn_q'), ('self_attn.k_proj', 'attn_k'),
    ('self_attn.v_proj', 'attn_v'), ('self_attn.o_proj', 'attn_output'),
    ('self_attn.q_norm', 'attn_q_norm'), ('self_attn.k_norm', 'attn_k_norm'),
    ('mlp.gate_proj', 'ffn_gate'), ('mlp.up_proj', 'ffn_up'), ('mlp.down_proj', 'ffn_down'))
_GEMMA3_PARTS = (
    ('post_attention_layernorm', 'post_attention_norm'),
    ('pre_feedforward_layernorm', 'ffn_norm'), ('post_feedforward_layernorm', 'post_ffw_norm'),
    *_LLAMA_PARTS)
_GPT2_PARTS = (
    ('transformer.wte', 'token_embd'), ('transformer.wpe', 'position_embd'),
    ('transformer.ln_f', 'output_norm'), ('lm_head', 'output'), ('ln_1', 'attn_norm'),
    ('attn.c_attn', 'attn_qkv'), ('attn.c_proj', 'attn_output'), ('ln_2', 'ffn_norm'),
    ('mlp.c_fc', 'ffn_up'), ('mlp.c_proj', 'ffn_down'))


def write_gguf(path, folder, kind='F32', pre='gpt-2', says_bos=True, **changes):
  """A model directory as a GGUF file: values, names and metadata as llama.cpp's converter has them.

  Args:
    kind: of matrices; vectors are F32.
    says_bos: whether it says if texts begin with bos.
    changes: metadata in place of the converter's, without the family's prefix; None: left out.
  """
  tree = json.loads((folder / 'config.json').read_text())
  family = tree['model_type'].removesuffix('_text')
  parts = {'gpt2': _GPT2_PARTS, 'gemma3': _GEMMA3_PARTS}.get(family, _LLAMA_PARTS)
  writer = gguf.GGUFWriter(path, family)
  values = _list_metadata(tree, family) | {
      key.replace('__', '.'): value for key, value in changes.items()}
  for key, value in values.items():
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
           list: writer.add_array}
    if value is not None:
      add[type(value)](f'{family}.{key}', value)
  rope = tree.get('rope_parameters') or {}
  if rope.get('rope_type') == 'llama3':
    writer.add_tensor('rope_freqs.weight', _compute_rope_factors(rope, values))
  _add_tokenizer(writer, folder, pre, says_bos)
  heads = {'attn_q': tree.get('num_attention_heads'), 'attn_k': tree.get('num_key_value_heads')}
  for name, value in safetensors.numpy.load_file(folder / 'model.safetensors').items():
    renamed = _rename(name, parts)
    part = renamed.split('.')[-2]
    if family == 'gpt2' and value.ndim == 2 and renamed.startswith('blk.'):
      value = value.T
    if family == 'llama' and part in heads:
      value = value.reshape(heads[part], 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    if family == 'gemma3' and part.endswith('norm'):
      value = value + 1
    if part == 'attn_q_norm' and tree.get('query_pre_attn_scalar'):
      # llama.cpp has no key for the scale of queries: the norm carries it.
      value = value * (tree['head_dim'] / tree['query_pre_attn_scalar']) ** 0.5
    as_kind = gguf.GGMLQuantizationType[kind if value.ndim == 2 else 'F32']
    stored = gguf.quantize(np.ascontiguousarray(value), as_kind)
    writer.add_tensor(renamed, stored, raw_dtype=as_kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _list_metadata(tree, family):
  if family == 'gpt2':
    return {'embedding_length': tree['n_embd'], 'block_count': tree['n_layer'],
            'attention.head_count': tree['n_head'], 'feed_forward_length': 4 * tree['n_embd'],
            'context_length': tree['n_positions'],
            'attention.layer_norm_epsilon': tree['layer_norm_epsilon']}
  values = {'embedding_length': tree['hidden_size'], 'block_count': tree['num_hidden_layers'],
            'attention.head_count': tree['num_attention_heads'],
            'attention.head_count_kv': tree['num_key_value_heads'],
            'feed_forward_length': tree['intermediate_size'],
            'context_length': tree['max_position_embeddings'],
            'attention.layer_norm_rms_epsilon': tree['rms_norm_eps']}
  rope = tree['rope_parameters']
  if family == 'gemma3':
    local, rope = rope['sliding_attention'], rope['full_attention']
    values |= {'attention.sliding_window': tree['sliding_window'],
               'attention.sliding_window_pattern': tree['sliding_window_pattern'],
               'rope.freq_base_swa': local['rope_theta']}
  values['rope.freq_base'] = float(rope['rope_theta'])
  if rope['rope_type'] == 'linear':
    values |= {'rope.scaling.type': 'linear', 'rope.scaling.factor': rope['factor']}
  if tree.get('head_dim'):
    values |= {'attention.key_length': tree['head_dim'], 'attention.value_length': tree['head_dim']}
  return values


def _compute_rope_factors(rope, values):
  """Llama 3's scaling as llama.cpp has it: what each frequency is divided by."""
  half = values.get('attention.key_length',
                    values['embedding_length'] // values['attention.head_count']) // 2
  wave = 2 * np.pi * rope['rope_theta'] ** (np.arange(half) / half)
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  smooth = np.clip((rope['original_max_position_embeddings'] / wave - low) / (high - low), 0, 1)
  return (1 / ((1 - smooth) / rope['factor'] + smooth)).astype(np.float32)


def _rename(name, parts):
  stem, _, kind = name.rpartition('.')
  layer = next((p for p in stem.split('.') if p.isdigit()), None)
  part = next(new for old, new in parts if stem.endswith(old))
  return f'{part}.{kind}' if layer is None else f'blk.{layer}.{part}.{kind}'


def _add_tokenizer(writer, folder, pre, says_bos):
  model = json.loads((folder / 'tokenizer.json').read_text())
  vocab = model['model']['vocab'] | {t['content']: t['id'] for t in model['added_tokens']}
  special = {t['content'] for t in model['added_tokens'] if t['special']}
  tokens = sorted(vocab, key=vocab.get)
  writer.add_tokenizer_model('gpt2')
  if pre:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([3 if t in special else 1 for t in tokens])
  writer.add_token_merges([' '.join(pair) for pair in model['model']['merges']])
  writer.add_bos_token_id(vocab['<|end|>'])
  writer.add_eos_token_id(vocab['<|end|>'])
  if says_bos:
    writer.add_add_bos_token(bool((model['post_processor'] or {}).get('single')))
