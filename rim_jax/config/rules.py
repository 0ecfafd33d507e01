"""What the values of a config may be: choices, limits, and what must agree with what.

Sees a config's values and nothing else: no data, no device.
"""

import dataclasses
import difflib
import math
import re

METHODS = ('rim', 'rim_stage1', 'rim_stage2', 'direct', 'cot', 'pause', 'icot', 'coconut',
           'coconut_stage')
WITHOUT_BLOCKS = ('direct', 'cot', 'icot')
COCONUT = ('coconut', 'coconut_stage')
WRITTEN = ('cot', 'icot', *COCONUT)  # these write steps out, or learn from written ones
# Names of a layer's projections, as `model.lora.targets` means them.
LINEARS = ('query', 'key', 'value', 'qkv', 'out', 'up', 'gate', 'down')

_CHOICES = {
    'method': METHODS,
    'data.source': ('chain', 'gsm8k', 'gsm8k_perturbed', 'prosqa'),
    'data.on_bad_rows': ('stop', 'drop'),
    'data.prosqa.steps': ('path', 'facts'),
    'tokenizer.kind': ('bytes', 'chain', 'words', 'file'),
    'model.norm': ('rmsnorm', 'layernorm'),
    'model.activation': ('gelu', 'gelu_tanh', 'swiglu'),
    'model.positions': ('learned', 'rope'),
    'model.compute_dtype': ('float32', 'bfloat16'),
    'model.frozen_dtype': ('float32', 'bfloat16'),
    'model.remat': ('none', 'full', 'dots'),
    'model.rope_scaling': ('none', 'llama3'),
    'model.bias': ('none', 'qkv', 'all'),
    'model.memory_init': ('mean', 'token', 'normal'),
    'curriculum.schedule': ('relative', 'absolute', 'windowed', 'uniform', 'constant'),
    'curriculum.alpha': ('linear', 'uniform', 'final'),
    'curriculum.reduction': ('readout', 'token'),
    'curriculum.normalize': ('weight', 'readouts'),
    'optim.trainable': ('all', 'memory', 'lora'),
    'optim.decay': ('constant', 'cosine'),
    'eval.split': ('train', 'valid', 'test', 'gsm_hard'),
    'eval.checkpoint': ('best', 'last', 'splits'),
    'export.dtype': ('float32', 'bfloat16'),
}
_AT_LEAST_ONE = (
    'data.chain.num_train', 'data.chain.num_valid', 'data.chain.num_test', 'data.chain.min_steps',
    'data.num_valid', 'data.perturbed.variants_per_problem', 'data.prosqa.min_hops',
    'data.prosqa.num_train', 'data.prosqa.num_valid', 'data.prosqa.num_test', 'layout.block_tokens',
    'layout.row_tokens', 'layout.pack_window_rows',
    'model.num_layers', 'model.embed_dim', 'model.num_heads', 'model.mlp_dim',
    'model.max_positions', 'model.rope_original_positions', 'curriculum.absolute_steps',
    'icot.remove_all_beyond_tokens', 'coconut.num_stages', 'coconut.thoughts_per_step',
    'train.num_micro_batches', 'checkpoint.every_steps',
    'eval.batch_size', 'eval.max_new_tokens', 'eval.num_valid_examples', 'export.num_verified',
    'log.every_steps', 'log.prefetch_batches', 'log.profile_num_steps')
_NOT_NEGATIVE = (
    'seed', 'data.chain.seed', 'data.perturbed.seed', 'data.perturbed.total', 'data.prosqa.seed',
    'data.prosqa.extra_names', 'data.prosqa.max_children', 'layout.num_blocks',
    'layout.row_slots', 'model.num_kv_heads', 'model.head_dim', 'model.vocab_size',
    'model.memory_token', 'model.memory_noise', 'model.attention_tile_tokens', 'model.lora.rank',
    'icot.smoothing', 'icot.hold_epochs', 'optim.weight_decay',
    'train.num_examples', 'train.num_epochs', 'train.batch_examples', 'train.batch_rows',
    'eval.num_examples', 'eval.num_samples', 'eval.num_shown', 'eval.num_latency_runs',
    'controls.num_probe_examples', 'controls.num_attention', 'checkpoint.every_minutes',
    'checkpoint.keep_every_steps', 'log.stall_secs', 'log.profile_at_step')
_POSITIVE = ('model.norm_eps', 'model.rope_theta', 'model.rope_factor',
             'model.rope_low_freq_factor', 'model.lora.alpha', 'optim.learning_rate', 'optim.eps',
             'optim.clip_norm', 'export.max_shard_gb', 'curriculum.stage2_learning_rate_scale',
             'data.prosqa.parent_rate', 'eval.temperature', 'icot.remove_per_epoch')
_BELOW_ONE = ('model.dropout', 'model.lora.dropout', 'curriculum.hold_frac',
              'curriculum.stage2_dropout', 'curriculum.stage2_lora_dropout',
              'optim.warmup_frac', 'optim.b1', 'optim.b2')


def find_problems(config, flat: dict) -> list[str]:
  """Everything wrong with a Config, given also as dotted key -> value; one line a problem."""
  problems = []
  for key, choices in _CHOICES.items():
    if flat[key] not in choices:
      close = difflib.get_close_matches(str(flat[key]), choices, 1)
      problems.append(f"{key}='{flat[key]}' is not one of {', '.join(choices)}"
                      + (f"; did you mean '{close[0]}'?" if close else ''))
  problems += [f'{k}={v} must be a finite number' for k, v in flat.items()
               if isinstance(v, float) and not math.isfinite(v)]
  problems += [f'{k}={flat[k]} must be at least 1' for k in _AT_LEAST_ONE if flat[k] < 1]
  problems += [f'{k}={flat[k]} must not be negative' for k in _NOT_NEGATIVE if flat[k] < 0]
  if flat['checkpoint.keep_last'] < 2:  # one goes when the next is written, before it is verified
    problems.append(f"checkpoint.keep_last={flat['checkpoint.keep_last']} must be at least 2: the "
                    'next to last stays until the last has been verified')
  problems += [f'{k}={flat[k]} must be above 0' for k in _POSITIVE if flat[k] <= 0]
  problems += [f'{k}={flat[k]} must be in [0, 1)' for k in _BELOW_ONE
               if flat[k] < 0 or flat[k] >= 1]
  if not 0 < flat['checkpoint.stop_frac'] <= 1:
    problems.append(f"checkpoint.stop_frac={flat['checkpoint.stop_frac']} must be above 0 and at "
                    'most 1, the whole budget')
  # JAX would drop higher bits without a word, and two seeds would be one.
  problems += [f'{k}={flat[k]} must be below 2**32' for k in ('seed',) if flat[k] >= 2**32]
  # The checks below do arithmetic on values that the ones above vouch for.
  if problems:
    return problems
  return (_find_data_problems(config) + _find_model_problems(config)
          + _find_training_problems(config) + _find_coconut_problems(config))


def parse_sizes(text: str) -> tuple[int, ...]:
  """'1,8' -> (1, 8); () where that is not what it is."""
  if not re.fullmatch(r' *[1-9]\d*( *, *[1-9]\d*)* *', text):
    return ()
  return tuple(map(int, text.split(',')))


def _find_data_problems(config):
  problems = []
  data, chain, tokenizer, layout = config.data, config.data.chain, config.tokenizer, config.layout
  if chain.max_steps < chain.min_steps:
    problems.append(f'data.chain.max_steps={chain.max_steps} is below '
                    f'data.chain.min_steps={chain.min_steps}')
  if chain.modulus < 2:
    problems.append(f'data.chain.modulus={chain.modulus} must be at least 2')
  if not chain.operators or set(chain.operators) - set('+-*'):
    problems.append(f"data.chain.operators='{chain.operators}' must be one or more of + - *")
  if data.source == 'chain' and data.dir:
    problems.append(f"data.dir='{data.dir}' is only read with data.source='gsm8k', "
                    "'gsm8k_perturbed' or 'prosqa'")
  if data.source == 'prosqa':
    problems += _find_prosqa_problems(data)
  if tokenizer.kind == 'file' and not tokenizer.path:
    problems.append("tokenizer.kind='file' needs tokenizer.path, a tokenizer.json")
  if tokenizer.kind == 'file' and not tokenizer.eos_token:
    problems.append("tokenizer.kind='file' needs tokenizer.eos_token, e.g. '<|endoftext|>'")
  if tokenizer.kind != 'file' and tokenizer.path:
    problems.append(f"tokenizer.path='{tokenizer.path}' is only read with tokenizer.kind='file'")
  if layout.chat_template and not config.model.init_from:
    problems.append('layout.chat_template=True is read from model.init_from, which is not set')
  if tokenizer.kind == 'chain' and data.source != 'chain':
    problems.append("tokenizer.kind='chain' knows digits and operators only; "
                    "use 'bytes' or 'file' for this data")
  if tokenizer.kind == 'words' and data.source != 'prosqa':
    problems.append("tokenizer.kind='words' knows ProsQA's words only; use 'bytes' or 'file' for "
                    'this data')
  if config.eval.split == 'gsm_hard' and not data.source.startswith('gsm8k'):
    problems.append("eval.split='gsm_hard' is for a run on GSM8K, and this one has data.source="
                    f"'{data.source}'; use test")
  if (config.eval.split == 'gsm_hard') != bool(config.eval.path):
    problems.append(f"eval.path='{config.eval.path}' with eval.split='{config.eval.split}': "
                    'gsm_hard, and it alone, is read from the file named there')
  if layout.num_blocks == 0 and config.method in ('rim', 'rim_stage2', 'pause'):
    problems.append(f"layout.num_blocks=0 leaves method '{config.method}' no block; "
                    "use 1 or more, or method 'direct'")
  if not layout.readout_sees_question and config.method in (*WITHOUT_BLOCKS, 'coconut'):
    problems.append(f"layout.readout_sees_question=False changes nothing for method "
                    f"'{config.method}', which has no blocks; set it to True")
  if config.method in WRITTEN and not layout.step_separator and not layout.answer_prefix:
    problems.append(f'{config.method} needs layout.step_separator or layout.answer_prefix, to '
                    'tell the answer from the steps')
  return problems


def _find_coconut_problems(config):
  problems = []
  layout, coconut = config.layout, config.coconut
  if config.method in COCONUT and layout.bidirectional_blocks:
    problems.append(f'layout.bidirectional_blocks=True: the thoughts of {config.method} come one '
                    'after the other; set it to False')
  if config.method == 'coconut_stage' and layout.num_blocks > 1:
    problems.append(f'layout.num_blocks={layout.num_blocks}: coconut_stage has one block, of '
                    'layout.block_tokens thoughts, or none')
  if layout.skip_steps < -1:
    problems.append(f'layout.skip_steps={layout.skip_steps} must be -1 (all), 0 or more')
  if not 0 < coconut.stage_frac * (coconut.num_stages + 1) < 1:
    problems.append(f'coconut.stage_frac={coconut.stage_frac:g}: {coconut.num_stages + 1} stages '
                    'leave the last one nothing, or have none themselves; set it between 0 and '
                    f'{1 / (coconut.num_stages + 1):.3g}')
  if config.eval.num_blocks > 0 and config.method in COCONUT:
    problems.append(f'eval.num_blocks={config.eval.num_blocks}: {config.method} has the block that '
                    'it was trained with, or with 0 none; use -1 or 0')
  return problems


def _find_prosqa_problems(data):
  problems, prosqa = [], data.prosqa
  for name in ('nodes', 'hops'):
    low, high = getattr(prosqa, f'min_{name}'), getattr(prosqa, f'max_{name}')
    if high < low:
      problems.append(f'data.prosqa.max_{name}={high} is below data.prosqa.min_{name}={low}')
  least = 2 + 2 * prosqa.min_hops
  if prosqa.min_nodes < least:
    problems.append(f'data.prosqa.min_nodes={prosqa.min_nodes} is below the {least} that two '
                    f'chains of data.prosqa.min_hops={prosqa.min_hops} take')
  for key, low, high, why in (
      ('num_names', 2, 17, 'that there are'), ('num_concepts', prosqa.max_nodes - 2, 38,
                                               'that there are; max_nodes - 2 at least')):
    if not low <= getattr(prosqa, key) <= high:
      problems.append(f'data.prosqa.{key}={getattr(prosqa, key)} must be {low} to {high}, {why}')
  if data.step_marks:
    problems.append("data.step_marks=True is for arithmetic; data.source='prosqa' has none")
  return problems


def _find_model_problems(config):
  problems = []
  model = config.model
  if model.init_from and not model.vocab_size:
    return problems  # its shape is not read yet; these rules are asked again once it is
  if not model.head_dim and model.embed_dim % model.num_heads:
    problems.append(f'model.embed_dim={model.embed_dim} is not divisible by '
                    f'model.num_heads={model.num_heads}; set model.head_dim, or change one')
  if model.num_kv_heads and model.num_heads % model.num_kv_heads:
    problems.append(f'model.num_heads={model.num_heads} is not divisible by '
                    f'model.num_kv_heads={model.num_kv_heads}')
  head_dim = model.head_dim or model.embed_dim // model.num_heads
  if model.positions == 'rope' and head_dim % 2:
    problems.append(f'rotary positions need an even head dimension, not {head_dim}')
  if model.rope_high_freq_factor <= model.rope_low_freq_factor:
    problems.append(f'model.rope_high_freq_factor={model.rope_high_freq_factor} must be above '
                    f'model.rope_low_freq_factor={model.rope_low_freq_factor}')
  if model.fused_qkv and model.num_kv_heads not in (0, model.num_heads):
    problems.append(f'model.fused_qkv=True needs as many key/value heads as heads, not '
                    f'model.num_kv_heads={model.num_kv_heads} of {model.num_heads}')
  if model.vocab_size and model.memory_token >= model.vocab_size:
    problems.append(f'model.memory_token={model.memory_token} is no id below '
                    f'model.vocab_size={model.vocab_size}')
  return problems + _find_lora_problems(config)


def get_linears(model) -> tuple[str, ...]:
  """Names of the projections that a layer of this model has."""
  absent = ('query', 'key', 'value') if model.fused_qkv else ('qkv',)
  absent += () if model.activation == 'swiglu' else ('gate',)
  return tuple(name for name in LINEARS if name not in absent)


def _find_lora_problems(config):
  lora, trainable = config.model.lora, config.optim.trainable
  problems = []
  if lora.rank and trainable == 'memory':
    problems.append(f"model.lora.rank={lora.rank} adds adapters that optim.trainable='memory' "
                    "would never train; set it to 'lora', or the rank to 0")
  if not lora.rank and trainable == 'lora':
    problems.append("optim.trainable='lora' with model.lora.rank=0: there are no adapters; set "
                    'the rank, e.g. to 128')
  if lora.init_from and not (lora.rank and config.model.init_from):
    problems.append(f"model.lora.init_from='{lora.init_from}' needs model.init_from, the model "
                    'that the adapters belong to, and model.lora.rank')
  if lora.init_from and config.train.init_from and config.method != 'rim_stage2':
    problems.append(f"model.lora.init_from='{lora.init_from}' and train.init_from="
                    f"'{config.train.init_from}' both say what adapters begin with; set one")
  try:
    pattern = re.compile(lora.targets)
  except re.error as e:
    return [*problems, f"model.lora.targets='{lora.targets}' is no regular expression ({e})"]
  names = get_linears(config.model)
  if lora.rank and not any(map(pattern.fullmatch, names)):
    problems.append(f"model.lora.targets='{lora.targets}' matches none of this model's "
                    f"projections: {', '.join(names)}")
  return problems


def _find_training_problems(config):
  problems = []
  curriculum, train, mesh = config.curriculum, config.train, config.mesh
  if (train.num_examples > 0) == (train.num_epochs > 0):
    problems.append(f'set one of train.num_examples={train.num_examples} and '
                    f'train.num_epochs={train.num_epochs:g}, the other 0')
  if (train.batch_examples > 0) == (train.batch_rows > 0):
    problems.append(f'set one of train.batch_examples={train.batch_examples} and '
                    f'train.batch_rows={train.batch_rows}, the other 0')
  if train.batch_rows % train.num_micro_batches:
    low = train.batch_rows // train.num_micro_batches * train.num_micro_batches
    fix = f'{low} or {low + train.num_micro_batches}' if low else f'{train.num_micro_batches}'
    problems.append(f'train.batch_rows={train.batch_rows} is not divisible by '
                    f'train.num_micro_batches={train.num_micro_batches}; use {fix}')
  if not 0 < curriculum.stage1_frac < 1:
    problems.append(f'curriculum.stage1_frac={curriculum.stage1_frac} must be between 0 and 1')
  axes = dataclasses.asdict(mesh)
  if any(size < 1 and size != -1 for size in axes.values()):
    problems.append(f'mesh={axes}: an axis is 1 or more, or -1 for the rest')
  if sum(size == -1 for size in axes.values()) > 1:
    problems.append(f'mesh={axes}: only one axis can be -1, the rest')
  if not parse_sizes(config.eval.latency_batch_sizes):
    problems.append(f"eval.latency_batch_sizes='{config.eval.latency_batch_sizes}' should be batch "
                    "sizes of 1 or more, e.g. '1,8'")
  if config.eval.num_blocks < -1:
    problems.append(f'eval.num_blocks={config.eval.num_blocks} must be -1 (as trained), 0 or more')
  if config.eval.budget_blocks < -1:
    problems.append(f'eval.budget_blocks={config.eval.budget_blocks} must be -1 (twice '
                    'layout.num_blocks), 0 (none) or more')
  if config.eval.budget_blocks and config.method in (*WITHOUT_BLOCKS, *COCONUT):
    problems.append(f"eval.budget_blocks={config.eval.budget_blocks}: method '{config.method}' has "
                    'no blocks to have more or fewer of; use 0')
  if config.eval.num_blocks > 0 and config.method in WITHOUT_BLOCKS:
    problems.append(f"eval.num_blocks={config.eval.num_blocks}: method '{config.method}' has no "
                    'blocks; use -1')
  return problems
