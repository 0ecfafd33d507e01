"""A GGUF file as a model directory: its config.json, and its tensors under their usual names.

What llama.cpp stores otherwise is turned back: rows of Llama's queries and keys (pairs of a
rotation side by side), GPT-2's matrices ([out, in]), Gemma's norms (plus 1), and rotary factors (a
tensor). Values are dequantised as they are read, no more than was asked for.
"""

import dataclasses
import re

import numpy as np

from rim_jax.data.gguf import Header, read_header
from rim_jax.errors import UserError

# Without '.weight' or '.bias'; '{}' is the layer.
_NAMES = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head',
          'attn_norm': 'input_layernorm', 'attn_q': 'self_attn.q_proj',
          'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
          'attn_output': 'self_attn.o_proj',
          'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm',
          'ffn_norm': 'post_attention_layernorm', 'ffn_gate': 'mlp.gate_proj',
          'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj'}
_GEMMA3_NAMES = _NAMES | {'post_attention_norm': 'post_attention_layernorm',
                          'ffn_norm': 'pre_feedforward_layernorm',
                          'post_ffw_norm': 'post_feedforward_layernorm'}
_GPT2_NAMES = {'token_embd': 'transformer.wte', 'position_embd': 'transformer.wpe',
               'output_norm': 'transformer.ln_f', 'output': 'lm_head', 'attn_norm': 'ln_1',
               'attn_qkv': 'attn.c_attn', 'attn_output': 'attn.c_proj', 'ffn_norm': 'ln_2',
               'ffn_up': 'mlp.c_fc', 'ffn_down': 'mlp.c_proj'}
_ROPE_FACTORS = 'rope_freqs.weight'
# Keys of a model's own group that decide nothing here, or that the shapes of tensors hold anyway;
# and what others say where they change nothing.
_HARMLESS = re.compile(r'vocab_size|tensor_data_layout|attention\.layer_norm_epsilon|mm\.\w+'
                       r'|attention\.(key|value)_length(_swa)?|rope\.dimension_count(_swa)?'
                       r'|rope\.scaling\.(factor|finetuned|original_context_length)')
_NEUTRAL = {'attention.causal': True, 'rope.scaling.attn_factor': 1.0, 'rope.scale_linear': 1.0}


def read_config(path) -> dict:
  """The config.json that a directory with this model would have.

  What is not known here and may change the arithmetic is in it under its own name.
  Raises: UserError for a family that is not read, and for what `read_header` refuses.
  """
  header = dataclasses.replace(read_header(path), asked=set())
  family = header.metadata.get('general.architecture')
  tokens = header.metadata.get('tokenizer.ggml.tokens')
  embedding = header.tensors.get('token_embd.weight')
  if family not in _CONFIGS or embedding is None:
    raise UserError(f'{path}: general.architecture={family!r} is not supported in a GGUF file; '
                    f"there are {', '.join(_CONFIGS)}")
  read, model_type, name = _CONFIGS[family]
  tree = {'model_type': model_type, 'architectures': [name], 'vocab_size': embedding.shape[0],
          'tie_word_embeddings': 'output.weight' not in header.tensors, **read(header)}
  tree |= _list_unknown(header, family, tree)
  for name in ('bos', 'eos'):
    i = header.metadata.get(f'tokenizer.ggml.{name}_token_id')
    if isinstance(tokens, list) and isinstance(i, int):
      tree[f'{name}_token_id'] = i
  return {key: value for key, value in tree.items() if value is not None}


def _list_unknown(header: Header, family: str, tree: dict) -> dict:
  """Keys that nobody asked for and that may change the arithmetic, for config.json's reader to
  refuse."""
  rotated, head_dim = header.get('rope.dimension_count'), tree.get('head_dim')
  found = {'partial_rotary_factor': f'{rotated} of {head_dim}'} if (
      rotated and head_dim and rotated != head_dim) else {}
  for name, value in header.metadata.items():
    group, _, key = name.partition('.')
    if (group == family and key not in header.asked and value != _NEUTRAL.get(key, 0)
        and not _HARMLESS.fullmatch(key)):
      found[name] = value
  return found


def _read_gpt2(header):
  return {'n_embd': header.get('embedding_length'), 'n_layer': header.get('block_count'),
          'n_head': header.get('attention.head_count'),
          'n_inner': header.get('feed_forward_length'),
          'n_positions': header.get('context_length'),
          'layer_norm_epsilon': header.get('attention.layer_norm_epsilon')}


def _read_llama(header):
  heads, width = header.get('attention.head_count'), header.get('embedding_length')
  usual = width // heads if type(heads) is type(width) is int and heads > 0 else None
  return {'hidden_act': 'silu', 'hidden_size': width, 'num_attention_heads': heads,
          'num_hidden_layers': header.get('block_count'),
          'num_key_value_heads': header.get('attention.head_count_kv', heads),
          'head_dim': header.get('attention.key_length',
                                 header.get('rope.dimension_count', usual)),
          'intermediate_size': header.get('feed_forward_length'),
          'rms_norm_eps': _round(header.get('attention.layer_norm_rms_epsilon')),
          'max_position_embeddings': header.get('context_length'), **_read_rope(header)}


def _read_gemma3(header):
  """What a file leaves out is as llama.cpp has it: which layers are local, and the largest model's
  scale of queries."""
  tree, layers = _read_llama(header), header.get('block_count')
  window = header.get('attention.sliding_window', 0)
  pattern = header.get('attention.sliding_window_pattern', 6)
  pattern = pattern if window else 1
  if isinstance(pattern, list):
    kinds = ['sliding_attention' if is_local else 'full_attention' for is_local in pattern]
  else:
    kinds = ['sliding_attention' if pattern and i % pattern else 'full_attention'
             for i in range(1, layers + 1)] if isinstance(layers, int) else None
  scale_dim = tree['head_dim'] if layers != 62 else tree['hidden_size'] // tree[
      'num_attention_heads']
  del tree['hidden_act']
  return tree | {
      'hidden_activation': 'gelu_pytorch_tanh', 'layer_types': kinds, 'sliding_window': window,
      'query_pre_attn_scalar': scale_dim, 'rope_local_base_freq': _round(
          header.get('rope.freq_base_swa', 10_000.0)),
      'final_logit_softcapping': header.get('final_logit_softcapping')}


def _round(value):
  """A number that was written in f32, as it was meant: 9.9999997e-06 is 1e-05."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _read_rope(header):
  theta = _round(header.get('rope.freq_base', 10_000.0))
  factor = header.get('rope.scaling.factor')
  # llama.cpp scales linearly where a file has a factor and no type; a factor of 0 is none.
  scaling = header.get('rope.scaling.type', 'none' if factor in (None, 0, 1) else 'linear')
  if _ROPE_FACTORS in header.tensors:
    both = {} if scaling == 'none' or factor in (None, 0, 1) else {
        'rope.scaling.type': f'{scaling} beside {_ROPE_FACTORS}'}
    return {'rope_theta': theta, 'rope_scaling': _find_llama3(header, theta), **both}
  if scaling == 'none':
    return {'rope_theta': theta}
  return {'rope_theta': theta, 'rope_scaling': {'rope_type': scaling, 'factor': factor}}


def _find_llama3(header, theta):
  """Llama 3's settings from the factors that they come to, which is what a file has of them.

  Between 1 and the largest, 1 / factor is linear in the turns that a wave makes. Only ratios of
  the three lengths matter, so the lower one is 1.
  Raises: UserError where the factors are of another kind.
  """
  factors = TensorView(header, _ROPE_FACTORS)[:].astype(np.float64)
  turns_a_token = theta ** (-np.arange(len(factors)) / len(factors)) / (2 * np.pi)
  factor = _round(float(factors.max()))
  inside = (factors > 1.0 + 1e-6) & (factors < factor * (1 - 1e-6))
  keep = (1 / factors - 1 / factor) / (1 - 1 / factor) if factor > 1.0 else np.ones(len(factors))
  # The published upper length is 4 times the lower one; else both are fitted.
  candidates = [(4.0, ((3 * keep + 1) / turns_a_token)[inside].mean())] if inside.any() else []
  if inside.sum() >= 2:
    slope, start = np.polyfit(turns_a_token[inside], keep[inside], 1)
    candidates.append((round(1 - 1 / start, 3), -slope / start))
  for high, original in candidates:
    found = np.clip((round(original) * turns_a_token - 1) / (high - 1), 0, 1)
    if np.abs(found - keep).max() < 1e-4:
      return {'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0,
              'high_freq_factor': high, 'original_max_position_embeddings': round(original)}
  raise UserError(f'{header.path}: {_ROPE_FACTORS} is not of the llama3 kind; use the model '
                  'directory that the file was made from')


# general.architecture -> (what reads it, model_type, class in transformers)
_CONFIGS = {'gpt2': (_read_gpt2, 'gpt2', 'GPT2LMHeadModel'),
            'llama': (_read_llama, 'llama', 'LlamaForCausalLM'),
            'qwen2': (_read_llama, 'qwen2', 'Qwen2ForCausalLM'),
            'qwen3': (_read_llama, 'qwen3', 'Qwen3ForCausalLM'),
            'gemma3': (_read_gemma3, 'gemma3_text', 'Gemma3ForCausalLM')}


# ---- Tensors ----


def list_tensors(path) -> dict[str, 'TensorView']:
  """Usual name -> tensor, of all that a file has but its rotary factors."""
  header = read_header(path)
  family = header.metadata.get('general.architecture')
  return {_rename(name, family): TensorView(header, name)
          for name in header.tensors if name != _ROPE_FACTORS}


def _rename(name, family):
  """The name in a model directory; one that is not known stays, and is then refused by name."""
  match = re.fullmatch(r'(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)', name)
  names = {'gpt2': _GPT2_NAMES, 'gemma3': _GEMMA3_NAMES}.get(family, _NAMES)
  layers = 'transformer.h' if family == 'gpt2' else 'model.layers'
  if not match or match[2] not in names:
    return name
  module = names[match[2]]
  return f'{module}.{match[3]}' if match[1] is None else f'{layers}.{match[1]}.{module}.{match[3]}'


class TensorView:
  """One tensor as a model directory has it; slices of it are read and dequantised in f32."""

  def __init__(self, header: Header, name: str):
    self._header, self._name, self._stored = header, name, header.tensors[name]
    family = header.metadata.get('general.architecture')
    part = name.split('.')[-2]
    self._is_flipped = family == 'gpt2' and part in (
        'attn_qkv', 'attn_output', 'ffn_up', 'ffn_down') and len(self._stored.shape) == 2
    heads = {'attn_q': 'attention.head_count', 'attn_k': 'attention.head_count_kv'}.get(part)
    self._num_heads = (header.get(heads, header.get('attention.head_count'))
                       if family == 'llama' and heads else None)
    # llama.cpp's norms have no `1 +` of their own.
    self._added = 1.0 if family == 'gemma3' and part.endswith('norm') else 0.0

  @property
  def shape(self) -> tuple[int, ...]:
    return self._stored.shape[::-1] if self._is_flipped else self._stored.shape

  def __getitem__(self, index):
    """Rows, or (rows, columns), as slices without steps."""
    index = index if isinstance(index, tuple) else (index,)
    if self._is_flipped:
      rows, columns = (*index, slice(None))[:2]
      return self._read(columns)[:, rows].T
    rows, *rest = index
    return self._read(rows)[:, *rest]

  def _read(self, rows):
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize
    stored, numbers = self._stored, np.arange(self._stored.shape[0])[rows]
    if self._num_heads:
      # Half-and-half order to pairs side by side: row (h, half, i) stands at (h, i, half).
      order = np.arange(stored.shape[0]).reshape(self._num_heads, -1, 2).swapaxes(1, 2).ravel()
      numbers = order[numbers]
    whole = np.memmap(self._header.path, stored.dtype, 'r', stored.offset, stored.rows_shape)
    is_run = len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and not self._num_heads
    part = whole[numbers[0]:numbers[-1] + 1] if is_run else whole[numbers]
    try:
      values = dequantize(np.ascontiguousarray(part), GGMLQuantizationType(stored.kind))
      return values - np.float32(self._added) if self._added else values
    except NotImplementedError:
      raise UserError(f'{self._header.path}: {self._name} is '
                      f'{GGMLQuantizationType(stored.kind).name}, which is not read; use a '
                      'file of F16, BF16, Q8_0 or Q4_K, say') from None
