"""Frozen, validated configuration: every key, its default, and what is wrong with a value.

Owns the key names. A recipe (`configs/*.py`) edits the ConfigDict that
`make_config_dict` returns; `parse_config` turns it into a frozen `Config` once,
at the edge, and no module behind it sees a ConfigDict. Knows nothing of devices,
data or models, so a config is read and refused in milliseconds.

Units are in the names: `_steps` optimizer updates, `_examples` records,
`_tokens` token ids, `_rows` packed rows, `_frac` a share of 1, `num_` a count.
"""

import dataclasses
import difflib
import math
import typing

import ml_collections

METHODS = ('rim', 'rim_stage1', 'rim_stage2', 'direct', 'cot', 'pause')


class UserError(Exception):
  """A user's mistake, told in one line a problem: where, what, the fix."""


@dataclasses.dataclass(frozen=True)
class ChainConfig:
  """The built-in task `rim_chain`: r_t = r_{t-1} op c_t (mod modulus)."""
  seed: int = 0
  min_steps: int = 4
  max_steps: int = 4
  modulus: int = 10
  operators: str = '+'  # drawn from these characters: + - *
  num_train: int = 40_000
  num_valid: int = 500
  num_test: int = 1_000


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where records come from."""
  source: str = 'chain'  # chain | gsm8k
  dir: str = ''  # gsm8k: directory with train/valid/test files; '' downloads OpenAI's
  url: str = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'
  cache_dir: str = '~/.cache/rim_jax'  # prepared copies, downloads, token lengths
  on_bad_rows: str = 'stop'  # stop | drop
  num_valid: int = 500  # gsm8k without a valid file: held out of train
  step_marks: bool = False  # write steps as <<a*b=c>>
  chain: ChainConfig = ChainConfig()


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Text to ids."""
  kind: str = 'bytes'  # bytes | chain | file
  path: str = ''  # file: a tokenizer.json
  bos_token: str = ''  # file: its text; '' for none
  eos_token: str = ''  # file: its text; required
  add_bos: bool = False  # bytes, chain: put bos before the question


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
  """The token rows of method.md sections 1 to 3, and their packing."""
  num_blocks: int = 8  # K, blocks after a question where the method fixes it
  block_tokens: int = 2  # M, <m> tokens in one block
  readout_sees_question: bool = True
  bidirectional_blocks: bool = False
  depth0_readout: bool = False  # stage 1: also predict r_1, right after the question
  separator: str = '\n'  # after the question
  step_prefix: str = ''  # before a step's readout; never supervised
  answer_prefix: str = 'The final answer is \\boxed{'
  answer_suffix: str = '}'
  step_separator: str = '\n'  # cot only: after each written step
  row_tokens: int = 1024  # t, capacity of a packed row
  row_slots: int = 0  # s, supervised positions of a row; 0 fits it to the data
  pack_window_rows: int = 64  # open rows that first-fit chooses from


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer; GPT-2 and Llama are both settings of it."""
  num_layers: int = 4
  embed_dim: int = 64
  num_heads: int = 4
  num_kv_heads: int = 0  # 0: as many as num_heads
  head_dim: int = 0  # 0: embed_dim / num_heads
  mlp_dim: int = 256
  vocab_size: int = 0  # rows of the embedding; 0: the tokenizer's
  norm: str = 'rmsnorm'  # rmsnorm | layernorm
  norm_eps: float = 1e-5
  activation: str = 'gelu'  # gelu | gelu_tanh | swiglu
  positions: str = 'learned'  # learned | rope
  max_positions: int = 1024  # learned: rows of the table
  rope_theta: float = 10_000.0
  use_bias: bool = False
  tie_embeddings: bool = True
  dropout: float = 0.0
  compute_dtype: str = 'float32'  # float32 | bfloat16
  frozen_dtype: str = 'bfloat16'  # of parameters outside optim.trainable
  remat: str = 'none'  # none | full | dots
  memory_init: str = 'mean'  # mean (of the vocabulary, plus noise) | normal
  memory_noise: float = 0.02  # standard deviation of noise, or of normal


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
  """How much each supervised token counts (method.md sections 4 and 5)."""
  schedule: str = 'relative'  # relative | absolute | windowed | uniform | constant
  hold_frac: float = 0.0  # share of stage 1 before fading begins
  absolute_steps: int = 10  # absolute: T_max in place of the example's n
  alpha: str = 'linear'  # linear | uniform | final
  reduction: str = 'readout'  # readout: mean token NLL | token: summed
  normalize: str = 'weight'  # weight: the batch's total | readouts: their count
  stage1_frac: float = 0.75  # rim: stage 1's share of the budget
  stage2_learning_rate_scale: float = 0.2  # rim: stage 2's rate over stage 1's
  stage2_dropout: float = 0.2  # rim: model.dropout in stage 2


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW on the trainable set."""
  trainable: str = 'all'  # all | memory
  learning_rate: float = 1e-3
  warmup_frac: float = 0.04
  decay: str = 'constant'  # constant | cosine
  b1: float = 0.9
  b2: float = 0.98
  eps: float = 1e-8
  weight_decay: float = 0.01  # not on memory rows, norms, biases
  clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The budget and the batch."""
  num_examples: int = 0  # budget in records; or
  num_epochs: float = 0.0  # budget in passes over the training split
  batch_examples: int = 128  # mean records of a step, realised by packed rows; or
  batch_rows: int = 0  # packed rows of a step, exactly
  num_micro_batches: int = 1  # of a step, one after the other
  init_from: str = ''  # rim_stage2: the stage 1 run; '' finds runs/stage1[-<preset>]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one may be -1, for the rest."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When a run saves, and what it keeps beside the best."""
  every_steps: int = 500
  keep_last: int = 2


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is decoded, and how."""
  split: str = 'test'  # train | valid | test
  checkpoint: str = 'best'  # best (by valid) | last
  num_blocks: int = -1  # K at evaluation, 0 included; -1: layout.num_blocks
  batch_size: int = 250
  max_new_tokens: int = 16
  num_examples: int = 0  # of the split; 0: all
  num_valid_examples: int = 250  # at each checkpoint
  num_shown: int = 4  # questions shown with each block's answer
  num_latency_runs: int = 20  # behind ttft_ms; 0 leaves it out


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What a run tells while it works."""
  every_steps: int = 25
  tensorboard: bool = True
  prefetch_batches: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
  """One run: what `config.json` records."""
  method: str = 'rim_stage1'
  seed: int = 0
  data: DataConfig = DataConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  layout: LayoutConfig = LayoutConfig()
  model: ModelConfig = ModelConfig()
  curriculum: CurriculumConfig = CurriculumConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  log: LogConfig = LogConfig()

  @property
  def eval_blocks(self):
    """K at evaluation; methods without blocks have none."""
    if self.method in ('direct', 'cot'):
      return 0
    return self.layout.num_blocks if self.eval.num_blocks < 0 else self.eval.num_blocks


# A finished or resumed run may differ from its config.json in these sections only:
# they decide where and when, never what is computed.
RUNTIME_SECTIONS = ('mesh', 'checkpoint', 'eval', 'log')
# The same holds for these single keys.
RUNTIME_KEYS = ('data.cache_dir', 'data.url', 'train.num_micro_batches', 'model.remat')

_CHOICES = {
    'method': METHODS,
    'data.source': ('chain', 'gsm8k'),
    'data.on_bad_rows': ('stop', 'drop'),
    'tokenizer.kind': ('bytes', 'chain', 'file'),
    'model.norm': ('rmsnorm', 'layernorm'),
    'model.activation': ('gelu', 'gelu_tanh', 'swiglu'),
    'model.positions': ('learned', 'rope'),
    'model.compute_dtype': ('float32', 'bfloat16'),
    'model.frozen_dtype': ('float32', 'bfloat16'),
    'model.remat': ('none', 'full', 'dots'),
    'model.memory_init': ('mean', 'normal'),
    'curriculum.schedule': ('relative', 'absolute', 'windowed', 'uniform', 'constant'),
    'curriculum.alpha': ('linear', 'uniform', 'final'),
    'curriculum.reduction': ('readout', 'token'),
    'curriculum.normalize': ('weight', 'readouts'),
    'optim.trainable': ('all', 'memory'),
    'optim.decay': ('constant', 'cosine'),
    'eval.split': ('train', 'valid', 'test'),
    'eval.checkpoint': ('best', 'last'),
}
_AT_LEAST_ONE = (
    'data.chain.num_train', 'data.chain.num_valid', 'data.chain.num_test', 'data.chain.min_steps',
    'data.num_valid', 'layout.block_tokens', 'layout.row_tokens', 'layout.pack_window_rows',
    'model.num_layers', 'model.embed_dim', 'model.num_heads', 'model.mlp_dim',
    'model.max_positions', 'curriculum.absolute_steps', 'train.num_micro_batches',
    'checkpoint.every_steps', 'checkpoint.keep_last', 'eval.batch_size', 'eval.max_new_tokens',
    'eval.num_valid_examples', 'log.every_steps', 'log.prefetch_batches')
_NOT_NEGATIVE = (
    'seed', 'data.chain.seed', 'layout.num_blocks', 'layout.row_slots', 'model.num_kv_heads',
    'model.head_dim', 'model.vocab_size', 'model.memory_noise', 'optim.weight_decay',
    'train.num_examples', 'train.num_epochs', 'train.batch_examples', 'train.batch_rows',
    'eval.num_examples', 'eval.num_shown', 'eval.num_latency_runs')
_POSITIVE = ('model.norm_eps', 'model.rope_theta', 'optim.learning_rate', 'optim.eps',
             'optim.clip_norm', 'curriculum.stage2_learning_rate_scale')
_BELOW_ONE = ('model.dropout', 'curriculum.hold_frac', 'curriculum.stage2_dropout',
              'optim.warmup_frac', 'optim.b1', 'optim.b2')


def make_config_dict(**fields) -> ml_collections.ConfigDict:
  """All keys at their defaults, with `fields` set; locked, so that a typo raises."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Config(**fields)))
  return config.lock()


def flatten(config) -> dict:
  """Dotted key -> value, in declaration order, of a Config or its dictionary."""
  tree = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update({f'{key}.{k}': v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def _build(cls, tree, where, problems):
  """Dictionary -> dataclass; unknown keys and wrong types are problems."""
  types = typing.get_type_hints(cls)
  values = {}
  for key, value in tree.items():
    if key not in types:
      close = difflib.get_close_matches(key, types, 1)
      hint = f"did you mean '{close[0]}'?" if close else f"keys here: {', '.join(types)}"
      problems.append(f"unknown key '{where}{key}'; {hint}")
    elif dataclasses.is_dataclass(types[key]):
      if isinstance(value, dict):
        values[key] = _build(types[key], value, f'{where}{key}.', problems)
      else:
        problems.append(f'{where}{key}={value!r} should be a group of keys')
    else:
      if types[key] is float and type(value) is int:
        value = float(value)
      if type(value) is not types[key]:
        problems.append(f'{where}{key}={value!r} should be {types[key].__name__}, '
                        f'not {type(value).__name__}')
      else:
        values[key] = value
  return cls(**values)


def parse_config(tree, name: str = 'config') -> Config:
  """ConfigDict or dictionary -> validated Config.

  Raises: UserError, one line for each problem, all of them at once.
  """
  tree = tree.to_dict() if isinstance(tree, ml_collections.ConfigDict) else tree
  problems = []
  config = _build(Config, tree, '', problems)
  problems = problems or find_problems(config)
  if problems:
    raise UserError('\n'.join(f'{name}: {p}' for p in problems))
  return config


def find_problems(config: Config) -> list[str]:
  """Everything wrong with a config that needs no data and no device to see."""
  flat = flatten(config)
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
  problems += [f'{k}={flat[k]} must be above 0' for k in _POSITIVE if flat[k] <= 0]
  problems += [f'{k}={flat[k]} must be in [0, 1)' for k in _BELOW_ONE
               if flat[k] < 0 or flat[k] >= 1]
  # JAX would drop higher bits without a word, and two seeds would be one.
  problems += [f'{k}={flat[k]} must be below 2**32' for k in ('seed',) if flat[k] >= 2**32]
  # The checks below do arithmetic on values that the ones above vouch for.
  if problems:
    return problems
  return (_find_data_problems(config) + _find_model_problems(config)
          + _find_training_problems(config))


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
  if data.source != 'gsm8k' and data.dir:
    problems.append(f"data.dir='{data.dir}' is only read with data.source='gsm8k'")
  if tokenizer.kind == 'file' and not tokenizer.path:
    problems.append("tokenizer.kind='file' needs tokenizer.path, a tokenizer.json")
  if tokenizer.kind == 'file' and not tokenizer.eos_token:
    problems.append("tokenizer.kind='file' needs tokenizer.eos_token, e.g. '<|endoftext|>'")
  if tokenizer.kind != 'file' and tokenizer.path:
    problems.append(f"tokenizer.path='{tokenizer.path}' is only read with tokenizer.kind='file'")
  if tokenizer.kind == 'chain' and data.source != 'chain':
    problems.append("tokenizer.kind='chain' knows digits and operators only; "
                    "use 'bytes' or 'file' for this data")
  if layout.num_blocks == 0 and config.method in ('rim', 'rim_stage2', 'pause'):
    problems.append(f"layout.num_blocks=0 leaves method '{config.method}' no block; "
                    "use 1 or more, or method 'direct'")
  if layout.depth0_readout and not layout.readout_sees_question:
    problems.append('layout.depth0_readout=True with readout_sees_question=False: the readout '
                    'before the first block would see nothing; switch one of them')
  if not layout.readout_sees_question and config.method in ('direct', 'cot'):
    problems.append(f"layout.readout_sees_question=False leaves method '{config.method}', which "
                    'has no blocks, nothing to read; set it to True')
  if config.method == 'cot' and not layout.step_separator and not layout.answer_prefix:
    problems.append('cot needs layout.step_separator or layout.answer_prefix, to tell the answer '
                    'from the steps')
  return problems


def _find_model_problems(config):
  problems = []
  model = config.model
  if not model.head_dim and model.embed_dim % model.num_heads:
    problems.append(f'model.embed_dim={model.embed_dim} is not divisible by '
                    f'model.num_heads={model.num_heads}; set model.head_dim, or change one')
  if model.num_kv_heads and model.num_heads % model.num_kv_heads:
    problems.append(f'model.num_heads={model.num_heads} is not divisible by '
                    f'model.num_kv_heads={model.num_kv_heads}')
  head_dim = model.head_dim or model.embed_dim // model.num_heads
  if model.positions == 'rope' and head_dim % 2:
    problems.append(f'rotary positions need an even head dimension, not {head_dim}')
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
  if train.init_from and config.method != 'rim_stage2':
    problems.append(f"train.init_from='{train.init_from}' is only read by method 'rim_stage2'")
  axes = dataclasses.asdict(mesh)
  if any(size < 1 and size != -1 for size in axes.values()):
    problems.append(f'mesh={axes}: an axis is 1 or more, or -1 for the rest')
  if sum(size == -1 for size in axes.values()) > 1:
    problems.append(f'mesh={axes}: only one axis can be -1, the rest')
  if config.eval.num_blocks < -1:
    problems.append(f'eval.num_blocks={config.eval.num_blocks} must be -1 (as trained), 0 or more')
  if config.eval.num_blocks > 0 and config.method in ('direct', 'cot'):
    problems.append(f"eval.num_blocks={config.eval.num_blocks}: method '{config.method}' has no "
                    'blocks; use -1')
  return problems


def make_stages(config: Config) -> list[tuple[str, Config]]:
  """The runs that a config stands for, in order: ('', itself), or rim's two stages.

  A stage is a run of its own: fresh optimizer, and in stage 2 a lower learning
  rate and a higher dropout, on the parameters of stage 1 (method.md section 5).
  """
  if config.method != 'rim':
    return [('', config)]
  train, curriculum, replace = config.train, config.curriculum, dataclasses.replace

  def budget(share):
    return replace(train, num_examples=round(train.num_examples * share),
                   num_epochs=train.num_epochs * share)
  stage1 = replace(config, method='rim_stage1', train=budget(curriculum.stage1_frac))
  stage2 = replace(
      config, method='rim_stage2', train=budget(1 - curriculum.stage1_frac),
      model=replace(config.model, dropout=curriculum.stage2_dropout),
      optim=replace(config.optim, learning_rate=(
          config.optim.learning_rate * curriculum.stage2_learning_rate_scale)))
  return [('stage1', stage1), ('stage2', stage2)]
