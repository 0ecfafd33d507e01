"""Pretrained models for the tests: published shapes, small golden ones and what is exported."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

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
    'qwen3_4b': (4_022_468_096, {
        'model_type': 'qwen3', 'hidden_size': 2560, 'intermediate_size': 9728,
        'num_hidden_layers': 36, 'num_attention_heads': 32, 'num_key_value_heads': 8,
        'head_dim': 128, 'vocab_size': 151936, 'max_position_embeddings': 40960,
        'rms_norm_eps': 1e-6, 'rope_theta': 1000000, 'rope_scaling': None,
        'tie_word_embeddings': True, 'hidden_act': 'silu', 'sliding_window': None,
        'use_sliding_window': False, 'max_window_layers': 36, 'attention_bias': False}),
}


def make_plain_config(folder, **changes):
  return config_lib.Config(
      method='rim_stage1', train=config_lib.TrainConfig(num_examples=8),
      model=config_lib.ModelConfig(init_from=str(folder), **changes))


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
  return export.write_export(out, network, export.Origin(base, 'runs/it', 7), questions,
                             say=lambda line: None)
