"""What must agree between the keys of a config; what one key may be stands beside it.

Sees a config's values and nothing else: no data, no device.
"""

import dataclasses
import re

from rim_jax.config import methods
from rim_jax.config.limits import SET_NAME, parse_sets
from rim_jax.errors import list_broken

SPLITS = ('train', 'valid', 'test')
_OTHER_SPLITS = ('validation', 'val', 'dev')  # how files of data.dir may name one
# The most that may be asked for: beyond what was ever trained, and within what a machine can hold.
MOST_EXAMPLES, MOST_MADE, MOST_STEPS, MOST_IDS = 10**9, 10**8, 10_000, 2**24
MOST_PARAMS, MOST_LAYERS = 10**12, 1_000
# Names of a layer's projections, as `model.lora.targets` means them.
LINEARS = ('query', 'key', 'value', 'qkv', 'out', 'up', 'gate', 'down')
GATED = ('swiglu', 'geglu')  # activations of a gate, which multiplies what goes up


def find_problems(config) -> list[str]:
  """What does not agree in a Config whose single values are within their limits."""
  return (_find_size_problems(config) + _find_data_problems(config) + _find_model_problems(config)
          + _find_training_problems(config)
          + _find_aux_problems(config)
          + config.facts.find_problems(config))


def find_start_problems(config) -> list[str]:
  """What no run begins with any more. Those that earlier versions let begin can still be asked."""
  aux, facts, layout = config.aux, config.facts, config.layout
  one_by_one = aux.decoder != 'none' and facts.has_thoughts and facts.feeds_back
  replacing = config.coconut.thoughts_per_step  # thoughts of a curriculum that replace one step
  skipped = layout.skip_steps if facts.skips_steps and layout.num_blocks else 0
  begins = facts.make_stages(config)[0][1] if facts.make_stages else config
  fed_by = _find_fed_by(config)
  return list_broken(
      (one_by_one and facts.make_stages and replacing != aux.group_tokens,
       f'aux.group_tokens={aux.group_tokens}: the coconut.thoughts_per_step={replacing} thoughts '
       f'that replace a step together spell it; use {replacing}'),
      (one_by_one and skipped > 0 and layout.block_tokens != skipped * aux.group_tokens,
       f'aux.group_tokens={aux.group_tokens}: layout.block_tokens={layout.block_tokens} thoughts '
       f'are not so many for each of the layout.skip_steps={skipped} steps that they replace'),
      (facts in (methods.CODI, methods.PCCOT) and not layout.num_blocks
       and not layout.answer_prefix,
       f'layout.num_blocks=0: right after the question {config.method} is then asked for the first '
       'step and for the answer; use 1, or give layout.answer_prefix'),
      (layout.paired_readout and not layout.step_separator and not layout.answer_prefix,
       'layout.paired_readout=True writes a chain, in which layout.step_separator or '
       'layout.answer_prefix tells the answer from the steps; give one'),
      (fed_by and not begins.layout.num_blocks and not config.curriculum.reset_optimizer,
       f'curriculum.reset_optimizer=False: the first stage has no blocks and trains no {fed_by}, '
       'of which a later stage would need moments; use True'))


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
  made = {'chain': chain, 'prosqa': data.prosqa}.get(data.source)
  count = made.num_train + made.num_valid + made.num_test if made else 0
  positions = model.max_positions if model.positions == 'learned' else 0
  heads_dim = model.num_heads * model.head_dim or model.embed_dim
  params = model.embed_dim * (model.vocab_size + positions + model.num_layers * (
      2 * heads_dim + 2 * model.mlp_dim))  # at least: of heads the queries and the output
  budgets = (
      describe_budget(f'train.num_examples={train.num_examples}', train.num_examples),
      # An epoch has one example at least; with the data at hand it is asked again.
      describe_budget(f'train.num_epochs={train.num_epochs:g}', train.num_epochs * (
          chain.num_train if data.source == 'chain' else 1)))
  return [*filter(None, budgets), *list_broken(
      (count > MOST_MADE,
       f'data.{data.source}: num_train + num_valid + num_test = {count} questions would take '
       f'about {describe_bytes(100 * count)} in data.cache_dir and more of memory while they are '
       f'drawn; the most is {MOST_MADE:,}'),
      (data.source == 'chain' and chain.max_steps > MOST_STEPS,
       f'data.chain.max_steps={chain.max_steps}: a question would have '
       f'{2 * chain.max_steps + 1:,} characters; the most is {MOST_STEPS:,} steps'),
      (model.vocab_size > MOST_IDS,
       f'model.vocab_size={model.vocab_size}: with gradients and moments the embedding would take '
       f'{describe_bytes(16 * model.vocab_size * model.embed_dim)}; the most is {MOST_IDS:,} ids'),
      (model.num_layers > MOST_LAYERS,
       f'model.num_layers={model.num_layers}: the most is {MOST_LAYERS:,}'),
      (params > MOST_PARAMS and model.vocab_size <= MOST_IDS and model.num_layers <= MOST_LAYERS,
       f'model.num_layers={model.num_layers}, model.embed_dim={model.embed_dim}, model.num_heads='
       f'{model.num_heads}, model.mlp_dim={model.mlp_dim}: {params:.3g} parameters would take '
       f'{describe_bytes(16 * params)} with gradients and moments; the most is {MOST_PARAMS:,}'))]


def _find_data_problems(config):
  data, chain, tokenizer, layout = config.data, config.data.chain, config.tokenizer, config.layout
  by_sentences = data.steps == 'sentences'
  return [
      *list_broken(
          (chain.max_steps < chain.min_steps,
           f'data.chain.max_steps={chain.max_steps} is below '
           f'data.chain.min_steps={chain.min_steps}'),
          (data.source == 'chain' and data.dir,
           f"data.dir='{data.dir}' is only read with data.source='gsm8k', 'gsm8k_perturbed' or "
           "'prosqa'")),
      *(_find_prosqa_problems(data) if data.source == 'prosqa' else ()),
      *(_find_chain_problems(chain) if data.source == 'chain' else ()),
      *list_broken(
          (by_sentences and data.source != 'gsm8k',
           f"data.steps='sentences' is for data.source='gsm8k', not '{data.source}'"),
          (by_sentences and data.step_marks,
           "data.step_marks=True writes equations as <<a*b=c>>; with data.steps='sentences' set it "
           'to False'),
          (tokenizer.kind == 'file' and not tokenizer.path,
           "tokenizer.kind='file' needs tokenizer.path, a tokenizer.json"),
          (tokenizer.kind == 'file' and not tokenizer.eos_token,
           "tokenizer.kind='file' needs tokenizer.eos_token, e.g. '<|endoftext|>'"),
          (tokenizer.kind != 'file' and tokenizer.path,
           f"tokenizer.path='{tokenizer.path}' is only read with tokenizer.kind='file'"),
          (layout.chat_template and not config.model.init_from,
           'layout.chat_template=True is read from model.init_from, which is not set'),
          (tokenizer.kind == 'chain' and data.source != 'chain',
           "tokenizer.kind='chain' knows digits and operators only; use 'bytes' or 'file' for this "
           'data'),
          (tokenizer.kind == 'words' and data.source != 'prosqa',
           "tokenizer.kind='words' knows ProsQA's words only; use 'bytes' or 'file' for this "
           'data')),
      *_find_set_problems(config.eval),
      *list_broken(
          (config.curriculum.inside_weight and config.facts not in (
              methods.RIM, methods.RIM_STAGE1, methods.RIM_STAGE2),
           f'curriculum.inside_weight={config.curriculum.inside_weight:g}: method '
           f"'{config.method}' has no blocks that stand for steps; use 0"),
          (layout.paired_readout and not config.facts.has_memory,
           f"layout.paired_readout=True: method '{config.method}' has no memory block whose answer "
           'could be held to a chain; set it to False'),
          # Both are predicted from the question's end, with nothing to tell them apart.
          (layout.paired_readout and layout.depth0_readout and not layout.step_prefix,
           'layout.depth0_readout=True with layout.paired_readout=True: after the first step one '
           'asks for its end, the other for the second step; set layout.depth0_readout to False '
           '(the chain begins with the first step), or give layout.step_prefix'),
          (layout.paired_readout and layout.stage2_depth0_readout and not layout.answer_prefix,
           'layout.stage2_depth0_readout=True with layout.paired_readout=True: after the question '
           'one asks for the answer, the other for the first step; set '
           'layout.stage2_depth0_readout to False, or give layout.answer_prefix'),
          (layout.num_blocks == 0 and config.facts.needs_blocks,
           f"layout.num_blocks=0 leaves method '{config.method}' no block; use 1 or more, or "
           "method 'direct'"),
          (not layout.readout_sees_question and not config.facts.has_blocks,
           'layout.readout_sees_question=False changes nothing for method '
           f"'{config.method}', which has no blocks; set it to True"),
          (config.facts.learns_steps and not layout.step_separator and not layout.answer_prefix,
           f'{config.method} needs layout.step_separator or layout.answer_prefix, to tell the '
           'answer from the steps'))]


def _find_set_problems(evaluation):
  """What is wrong with the names and files of sets beside the splits."""
  split = evaluation.split
  problems = list_broken(  # the first of them says it all
      (split in SPLITS and evaluation.path,
       f"eval.path='{evaluation.path}' with eval.split='{split}', which is a split of the data; "
       'give the set another name'),
      (split not in SPLITS and not evaluation.path,
       f"eval.split='{split}' is none of {', '.join(SPLITS)}; to evaluate a file under this name, "
       'give it as eval.path'),
      (split in _OTHER_SPLITS or not SET_NAME.fullmatch(split),
       f"eval.split='{split}' cannot name a set: letters, digits and _, and no split"))[:1]
  try:
    sets = parse_sets(evaluation.sets)
  except ValueError as e:
    return [*problems, f"eval.sets='{evaluation.sets}': {e}"]
  return problems + [
      f"eval.sets: '{name}' is a split, or eval.split; give the set another name"
      for name in sets if name in (*SPLITS, *_OTHER_SPLITS, split)]


def _find_fed_by(config) -> str:
  """What is trained to feed a further pass over blocks; '' where nothing is."""
  return 'gate' if config.loop_rule == 'gate' else (
      'projection' if config.loop_rule and config.loop.projection else '')


def _find_loop_problems(config):
  """What is wrong with the passes over blocks, in training and in answering."""
  loop, method = config.loop, config.method
  asked = {f'eval.{key}': getattr(config.eval, key) for key in ('num_passes', 'budget_passes')}
  if not config.loop_rule:
    return list_broken(
        (loop.num_passes > 1,
         f"loop.num_passes={loop.num_passes}: method '{method}' has no blocks that could be read "
         'again; use 1'),
        (loop.rule, f"loop.rule='{loop.rule}' changes nothing for method '{method}'; use ''"),
        *((value > 1, f"{key}={value}: method '{method}' has no blocks that could be read again; "
           'use 0') for key, value in asked.items()))
  fed_by = _find_fed_by(config)
  return list_broken(*(
      (value > 1 and loop.num_passes == 1 and fed_by,
       f'{key}={value}: with loop.num_passes=1 no {fed_by} was trained that could feed a second '
       f'pass; train with 2 or more, or use {key}=0') for key, value in asked.items()))


def _find_aux_problems(config):
  """What is wrong with steps that thoughts spell."""
  aux, facts = config.aux, config.facts
  one_by_one = facts.has_thoughts and facts.feeds_back
  thoughts = config.coconut.thoughts_per_step if facts.make_stages else config.layout.block_tokens
  return [] if aux.decoder == 'none' else list_broken(
      (not one_by_one,
       f"aux.decoder='{aux.decoder}': method '{config.method}' has no thoughts, found one by one, "
       "that could spell a step; use 'none'"),
      # A first stage may have no thoughts yet.
      (one_by_one and (facts.make_stages or config.layout.num_blocks)
       and thoughts % aux.group_tokens,
       f'aux.group_tokens={aux.group_tokens} does not divide the {thoughts} thoughts of a block; '
       'use a number that does'))


def _find_chain_problems(chain):
  count = chain.num_train + chain.num_valid + chain.num_test
  if chain.max_steps > MOST_STEPS or count > MOST_MADE:  # told already
    return []
  sizes = chain.num_existing.values()
  most = sum(size * 4 // 5 for size in sizes)
  return list_broken(
      (len(set(chain.operators)) < len(chain.operators),
       f"data.chain.operators='{chain.operators}' repeats a character; use "
       f"'{''.join(dict.fromkeys(chain.operators))}'"),
      (sizes and count > most,
       f'data.chain: num_train + num_valid + num_test = {count} questions, but of the '
       f'{sum(sizes)} there are at most 80 % ({most}) may be drawn; lower num_train, or raise '
       'max_steps or modulus'))


def _find_prosqa_problems(data):
  prosqa = data.prosqa
  least, needed = 2 + 2 * prosqa.min_hops, prosqa.max_nodes - 2
  return list_broken(
      *((getattr(prosqa, f'max_{name}') < getattr(prosqa, f'min_{name}'),
         f'data.prosqa.max_{name}={getattr(prosqa, f"max_{name}")} is below '
         f'data.prosqa.min_{name}={getattr(prosqa, f"min_{name}")}') for name in ('nodes', 'hops')),
      (prosqa.min_nodes < least,
       f'data.prosqa.min_nodes={prosqa.min_nodes} is below the {least} that two chains of '
       f'data.prosqa.min_hops={prosqa.min_hops} take'),
      (not needed <= prosqa.num_concepts <= 38,
       f'data.prosqa.num_concepts={prosqa.num_concepts} must be {needed} to 38 (there are 38); '
       'max_nodes - 2 at least'),
      (data.step_marks,
       "data.step_marks=True is for arithmetic; data.source='prosqa' has none"))


def _find_model_problems(config):
  model = config.model
  if model.init_from and not model.vocab_size:
    return []  # its shape is not read yet; these rules are asked again once it is
  head_dim = model.head_dim or model.embed_dim // model.num_heads
  return list_broken(
      (not model.head_dim and model.embed_dim % model.num_heads,
       f'model.embed_dim={model.embed_dim} is not divisible by model.num_heads={model.num_heads}; '
       'set model.head_dim, or change one'),
      (model.num_kv_heads and model.num_heads % model.num_kv_heads,
       f'model.num_heads={model.num_heads} is not divisible by '
       f'model.num_kv_heads={model.num_kv_heads}'),
      (model.positions == 'rope' and head_dim % 2,
       f'rotary positions need an even head dimension, not {head_dim}'),
      (model.global_every and model.positions != 'rope',
       f'model.global_every={model.global_every} gives local layers rotary positions of their own; '
       "use it with model.positions='rope', or set it to 0"),
      (model.rope_high_freq_factor <= model.rope_low_freq_factor,
       f'model.rope_high_freq_factor={model.rope_high_freq_factor} must be above '
       f'model.rope_low_freq_factor={model.rope_low_freq_factor}'),
      (model.fused_qkv and model.num_kv_heads not in (0, model.num_heads),
       'model.fused_qkv=True needs as many key/value heads as heads, not '
       f'model.num_kv_heads={model.num_kv_heads} of {model.num_heads}'),
      (model.vocab_size and model.memory_token >= model.vocab_size,
       f'model.memory_token={model.memory_token} is no id below '
       f'model.vocab_size={model.vocab_size}')) + _find_lora_problems(config)


def get_linears(model) -> tuple[str, ...]:
  """Names of the projections that a layer of this model has."""
  absent = ('query', 'key', 'value') if model.fused_qkv else ('qkv',)
  absent += () if model.activation in GATED else ('gate',)
  return tuple(name for name in LINEARS if name not in absent)


def _find_lora_problems(config):
  lora, trainable, start = config.model.lora, config.optim.trainable, config.train.init_from
  problems = list_broken(
      (lora.rank and trainable == 'memory',
       f"model.lora.rank={lora.rank} adds adapters that optim.trainable='memory' would never "
       "train; set it to 'lora', or the rank to 0"),
      (not lora.rank and trainable == 'lora',
       "optim.trainable='lora' with model.lora.rank=0: there are no adapters; set the rank, e.g. "
       'to 128'),
      (lora.init_from and not (lora.rank and config.model.init_from),
       f"model.lora.init_from='{lora.init_from}' needs model.init_from, the model that the "
       'adapters belong to, and model.lora.rank'),
      (lora.init_from and start and not config.facts.after,
       f"model.lora.init_from='{lora.init_from}' and train.init_from='{start}' both say what "
       'adapters begin with; set one'))
  names = get_linears(config.model)
  try:
    matched = any(map(re.compile(lora.targets).fullmatch, names))
  except re.error as e:
    return [*problems, f"model.lora.targets='{lora.targets}' is no regular expression ({e})"]
  return problems + list_broken((
      lora.rank and not matched,
      f"model.lora.targets='{lora.targets}' matches none of this model's projections: "
      f'{", ".join(names)}'))


def _find_training_problems(config):
  train, axes, method = config.train, dataclasses.asdict(config.mesh), config.method
  pieces = train.num_micro_batches
  low = train.batch_rows // pieces * pieces
  frac, num_stages = config.coconut.stage_frac, config.coconut.num_stages + 1
  return list_broken(
      (not 0 < frac * num_stages < 1,
       f'coconut.stage_frac={frac:g}: {num_stages} stages leave the last one nothing, or have none '
       f'themselves; set it between 0 and {1 / num_stages:.3g}'),
      ((train.num_examples > 0) == (train.num_epochs > 0),
       f'set one of train.num_examples={train.num_examples} and '
       f'train.num_epochs={train.num_epochs:g}, the other 0'),
      ((train.batch_examples > 0) == (train.batch_rows > 0),
       f'set one of train.batch_examples={train.batch_examples} and '
       f'train.batch_rows={train.batch_rows}, the other 0'),
      (train.batch_rows % pieces,
       f'train.batch_rows={train.batch_rows} is not divisible by train.num_micro_batches={pieces}; '
       f'use {f"{low} or {low + pieces}" if low else pieces}'),
      (sum(size == -1 for size in axes.values()) > 1,
       f'mesh={axes}: only one axis can be -1, the rest'),
      (config.eval.budget_blocks and not config.facts.has_memory,
       f"eval.budget_blocks={config.eval.budget_blocks}: method '{method}' has no blocks to have "
       'more or fewer of; use 0'),
      (config.eval.budget_tokens and not config.facts.has_memory,
       f"eval.budget_tokens={config.eval.budget_tokens}: method '{method}' has no blocks whose "
       'tokens could be more or fewer; use 0'),
      (config.eval.num_blocks > 0 and not config.facts.has_blocks,
       f"eval.num_blocks={config.eval.num_blocks}: method '{method}' has no blocks; use -1")
  ) + _find_loop_problems(config)


def list_doubts(config) -> list[str]:
  """What a run may do and is hardly meant to; a line each."""
  model, trainable, layout = config.model, config.optim.trainable, config.layout
  hidden = list_broken(
      (not layout.readout_sees_question and not layout.answer_prefix,
       'layout.readout_sees_question=False without layout.answer_prefix: the first token of an '
       'answer is read at the last token of the blocks, which sees the question'))
  return hidden if not model.init_from else hidden + [line for is_so, line in (
      (trainable == 'all' and model.lora.rank,
       f"optim.trainable='all' trains every weight and adapters of rank {model.lora.rank} beside "
       'them; for the weights alone set model.lora.rank=0 and a lower optim.learning_rate'),
      (trainable != 'all' and model.dropout,
       f"model.dropout={model.dropout:g} takes parts of the frozen model's own states away (stage "
       '2 has curriculum.stage2_dropout); model.lora.dropout is that of its adapters'),
      (model.lora.dropout and not model.drops,
       f'model.lora.dropout={model.lora.dropout:g} is of adapters, and model.lora.rank=0 leaves '
       'none: nothing is dropped; model.dropout is of all weights (stage 2 has '
       'curriculum.stage2_dropout)'),
      (config.facts.blocks_are_steps and model.dropout > config.curriculum.stage2_dropout,
       f'stage 2 will have curriculum.stage2_dropout={config.curriculum.stage2_dropout:g}, less '
       f'than model.dropout={model.dropout:g} here; the paper has more in stage 2')) if is_so]
