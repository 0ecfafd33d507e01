"""What must agree between the keys of a config; what one key may be stands beside it.

Sees a config's values and nothing else: no data, no device.
"""

import dataclasses
import re

from rim_jax.config import limits

SPLITS = ('train', 'valid', 'test')
_OTHER_SPLITS = ('validation', 'val', 'dev')  # how files of data.dir may name one
# The most that may be asked for: beyond what was ever trained, and within what a machine can hold.
MOST_EXAMPLES, MOST_MADE, MOST_STEPS, MOST_IDS = 10**9, 10**8, 10_000, 2**24
MOST_PARAMS = 10**12
# Names of a layer's projections, as `model.lora.targets` means them.
LINEARS = ('query', 'key', 'value', 'qkv', 'out', 'up', 'gate', 'down')


def find_problems(config) -> list[str]:
  """What does not agree in a Config whose single values are within their limits."""
  return (_find_size_problems(config) + _find_data_problems(config) + _find_model_problems(config)
          + _find_training_problems(config) + _find_stage_problems(config)
          + config.facts.find_problems(config))


def describe_bytes(count: float) -> str:
  """A number of bytes in words, e.g. '16.0 GB'."""
  for unit in ('kB', 'MB', 'GB', 'TB'):
    count /= 1000
    if count < 1000:
      return f'{count:.1f} {unit}'
  return f'{count / 1000:,.0f} PB'


def describe_budget(what: str, num_examples: float) -> str:
  """What a budget in examples that is too large would take; '' for one that is not."""
  # Of each example the plan holds two numbers of 8 bytes.
  return '' if num_examples <= MOST_EXAMPLES else (
      f'{what}: a plan of {num_examples:.3g} examples would take '
      f'{describe_bytes(16 * num_examples)} of memory before the first update; the most is '
      f'{MOST_EXAMPLES:,} examples')


def _find_size_problems(config):
  """What no machine could do, told before anything is made of it."""
  train, data, chain, model = config.train, config.data, config.data.chain, config.model
  problems = [
      describe_budget(f'train.num_examples={train.num_examples}', train.num_examples),
      # An epoch has one example at least; with the data at hand it is asked again.
      describe_budget(f'train.num_epochs={train.num_epochs:g}', train.num_epochs * (
          chain.num_train if data.source == 'chain' else 1))]
  made = {'chain': chain, 'prosqa': data.prosqa}.get(data.source)
  count = made.num_train + made.num_valid + made.num_test if made else 0
  if count > MOST_MADE:
    problems.append(
        f'data.{data.source}: num_train + num_valid + num_test = {count} questions would take '
        f'about {describe_bytes(100 * count)} in data.cache_dir and more of memory while they are '
        f'drawn; the most is {MOST_MADE:,}')
  if data.source == 'chain' and chain.max_steps > MOST_STEPS:
    problems.append(f'data.chain.max_steps={chain.max_steps}: a question would have '
                    f'{2 * chain.max_steps + 1:,} characters; the most is {MOST_STEPS:,} steps')
  if model.vocab_size > MOST_IDS:
    problems.append(
        f'model.vocab_size={model.vocab_size}: with gradients and moments the embedding would take '
        f'{describe_bytes(16 * model.vocab_size * model.embed_dim)}; the most is {MOST_IDS:,} ids')
  params = (model.vocab_size * model.embed_dim + model.num_layers * model.embed_dim * (
      2 * model.embed_dim + 2 * model.mlp_dim))  # at least: of heads the output alone
  if params > MOST_PARAMS and model.vocab_size <= MOST_IDS:
    problems.append(
        f'model.num_layers={model.num_layers}, model.embed_dim={model.embed_dim}, model.mlp_dim='
        f'{model.mlp_dim}: {params:.3g} parameters would take {describe_bytes(16 * params)} with '
        f'gradients and moments; the most is {MOST_PARAMS:,}')
  return [problem for problem in problems if problem]


def _find_data_problems(config):
  problems = []
  data, chain, tokenizer, layout = config.data, config.data.chain, config.tokenizer, config.layout
  if chain.max_steps < chain.min_steps:
    problems.append(f'data.chain.max_steps={chain.max_steps} is below '
                    f'data.chain.min_steps={chain.min_steps}')
  if data.source == 'chain' and data.dir:
    problems.append(f"data.dir='{data.dir}' is only read with data.source='gsm8k', "
                    "'gsm8k_perturbed' or 'prosqa'")
  if data.source == 'prosqa':
    problems += _find_prosqa_problems(data)
  if data.steps == 'sentences' and data.source != 'gsm8k':
    problems.append(f"data.steps='sentences' is for data.source='gsm8k', not '{data.source}'")
  if data.steps == 'sentences' and data.step_marks:
    problems.append("data.step_marks=True writes equations as <<a*b=c>>; with data.steps="
                    "'sentences' set it to False")
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
  problems += _find_set_problems(config.eval)
  if layout.num_blocks == 0 and config.facts.needs_blocks:
    problems.append(f"layout.num_blocks=0 leaves method '{config.method}' no block; "
                    "use 1 or more, or method 'direct'")
  if not layout.readout_sees_question and not config.facts.can_hide_question:
    problems.append(f"layout.readout_sees_question=False changes nothing for method "
                    f"'{config.method}', which has no blocks; set it to True")
  if config.facts.learns_steps and not layout.step_separator and not layout.answer_prefix:
    problems.append(f'{config.method} needs layout.step_separator or layout.answer_prefix, to '
                    'tell the answer from the steps')
  return problems


def _find_set_problems(evaluation):
  """What is wrong with the names and files of sets beside the splits."""
  problems, split = [], evaluation.split
  if split in SPLITS and evaluation.path:
    problems.append(f"eval.path='{evaluation.path}' with eval.split='{split}', which is a split of "
                    'the data; give the set another name')
  elif split not in SPLITS and not evaluation.path:
    problems.append(f"eval.split='{split}' is none of {', '.join(SPLITS)}; to evaluate a file "
                    'under this name, give it as eval.path')
  elif split in _OTHER_SPLITS or not limits.SET_NAME.fullmatch(split):
    problems.append(f"eval.split='{split}' cannot name a set: letters, digits and _, and no split")
  try:
    sets = limits.parse_sets(evaluation.sets)
  except ValueError as e:
    return [*problems, f"eval.sets='{evaluation.sets}': {e}"]
  problems += [f"eval.sets: '{name}' is a split, or eval.split; give the set another name"
               for name in sets if name in (*SPLITS, *_OTHER_SPLITS, split)]
  return problems


def _find_stage_problems(config):
  problems, coconut = [], config.coconut
  if not 0 < coconut.stage_frac * (coconut.num_stages + 1) < 1:
    problems.append(f'coconut.stage_frac={coconut.stage_frac:g}: {coconut.num_stages + 1} stages '
                    'leave the last one nothing, or have none themselves; set it between 0 and '
                    f'{1 / (coconut.num_stages + 1):.3g}')
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
  if not prosqa.max_nodes - 2 <= prosqa.num_concepts <= 38:
    problems.append(f'data.prosqa.num_concepts={prosqa.num_concepts} must be '
                    f'{prosqa.max_nodes - 2} to 38, that there are; max_nodes - 2 at least')
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
  if lora.init_from and config.train.init_from and not config.facts.after:
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
  train, mesh = config.train, config.mesh
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
  axes = dataclasses.asdict(mesh)
  if sum(size == -1 for size in axes.values()) > 1:
    problems.append(f'mesh={axes}: only one axis can be -1, the rest')
  if config.eval.budget_blocks and not config.facts.has_memory:
    problems.append(f"eval.budget_blocks={config.eval.budget_blocks}: method '{config.method}' has "
                    'no blocks to have more or fewer of; use 0')
  if config.eval.num_blocks > 0 and not config.facts.has_blocks:
    problems.append(f"eval.num_blocks={config.eval.num_blocks}: method '{config.method}' has no "
                    'blocks; use -1')
  return problems
