"""Frozen, validated configuration: every key, its default, and what is wrong with a value.

Owns the key names. A recipe (`configs/*.py`) edits the ConfigDict that
`make_config_dict` returns; `parse_config` turns it into a frozen `Config` once,
at the edge, and no module behind it sees a ConfigDict. Knows nothing of devices,
data or models, so a config is read and refused in milliseconds.

Units are in the names: `_steps` optimizer updates, `_examples` records,
`_tokens` token ids, `_rows` packed rows, `_frac` a share of 1, `num_` a count.
"""

import copy
import dataclasses
import difflib
import functools
import typing

import ml_collections

from rim_jax.config import rules
from rim_jax.errors import UserError


def later(neutral):
  """A key, or a section, that runs made before it lack: they did what `neutral` does.

  That is its default, at which it says nothing: the identities, fingerprints and cards of those
  runs stay as they are. Every key that is added is one, e.g. `num_passes: int = later(1)`; a
  section is one as a whole, e.g. `loop: LoopConfig = later(LoopConfig())`.
  """
  return dataclasses.field(default=neutral, metadata={'later': True})


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
class PerturbedConfig:
  """The task `rim_gsm8k_perturbed`: GSM8K's training problems with other numbers (docs/data.md)."""
  seed: int = 0
  variants_per_problem: int = 400  # at most
  total: int = 0  # of all problems, as equal a number of each as can be; 0: all there are


@dataclasses.dataclass(frozen=True)
class ProsqaConfig:
  """The task `rim_prosqa`; the defaults are fitted to the published files (docs/data.md)."""
  seed: int = 0
  min_nodes: int = 20  # names and concepts of one problem
  max_nodes: int = 25
  min_hops: int = 3  # of the steps, a shortest path; and of the chain to the wrong alternative
  max_hops: int = 6
  parent_rate: float = 1.45  # of a Poisson number, not 0, of sentences that end in a concept
  extra_names: float = 0.6  # rate of a Poisson number of names that nobody asks about
  max_facts: int = 54  # sentences of one problem
  max_children: int = 0  # sentences that begin with one word; 0: any number, 1: nothing to choose
  # path: a shortest one, as published; facts: every sentence again, in another order, which is
  # practice in reading: it needs no search, and has more to look up in each problem.
  steps: str = 'path'
  num_names: int = 17  # words to draw from
  num_concepts: int = 38
  num_train: int = 18_000
  num_valid: int = 300
  num_test: int = 500


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where records come from."""
  source: str = 'chain'  # chain | gsm8k | gsm8k_perturbed | prosqa
  # Directory with train/valid/test files. gsm8k*: '' downloads OpenAI's; prosqa: a split that has
  # no file there is drawn.
  dir: str = ''
  url: str = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'
  cache_dir: str = '~/.cache/rim_jax'  # prepared copies, downloads, token lengths
  on_bad_rows: str = 'stop'  # stop | drop
  num_valid: int = 500  # gsm8k* without a valid file: held out of train
  step_marks: bool = False  # write steps as <<a*b=c>>
  chain: ChainConfig = ChainConfig()
  perturbed: PerturbedConfig = PerturbedConfig()
  prosqa: ProsqaConfig = ProsqaConfig()


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Text to ids."""
  kind: str = 'bytes'  # bytes | chain | words (those of ProsQA) | file
  path: str = ''  # file: a tokenizer.json
  bos_token: str = ''  # file: its text; '' for none
  eos_token: str = ''  # file: its text; required
  add_bos: bool = False  # bytes, chain, words: put bos before the question


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
  """The token rows of method.md sections 1 to 3, and their packing."""
  num_blocks: int = 8  # K, blocks after a question where the method fixes it
  block_tokens: int = 2  # M, <m> tokens in one block
  # False: only the blocks, but before block 1. Read at a token of its own, that is: with an empty
  # prefix a readout begins at its block's closing token, which is memory and sees the question.
  readout_sees_question: bool = True
  bidirectional_blocks: bool = False
  depth0_readout: bool = False  # stage 1: also predict r_1, right after the question
  stage2_depth0_readout: bool = False  # stage 2, pause: also the answer, right after the question
  skip_steps: int = 0  # coconut_stage: steps that its thoughts stand for; -1: all, answer alone
  chat_template: bool = False  # take the next two from model.init_from's chat template
  question_prefix: str = ''  # before the question, after bos; may spell special tokens
  separator: str = '\n'  # after the question; may spell special tokens
  step_prefix: str = ''  # before a step's readout; never supervised
  answer_prefix: str = 'The final answer is \\boxed{'
  answer_suffix: str = '}'
  step_separator: str = '\n'  # cot only: after each written step
  row_tokens: int = 1024  # t, capacity of a packed row
  row_slots: int = 0  # s, supervised positions of a row; 0 fits it to the data
  pack_window_rows: int = 64  # open rows that first-fit chooses from


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters of the projections inside the layers."""
  rank: int = 0  # 0: none
  alpha: float = 32.0  # an adapter's output is scaled by alpha / rank
  dropout: float = 0.0  # of an adapter's input
  init_from: str = ''  # a PEFT directory whose adapters and memory rows a run begins with
  targets: str = '.*'  # regular expression on whole names, those of rules.LINEARS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer; GPT-2, Llama and Qwen are settings of it."""
  init_from: str = ''  # a Hugging Face directory; its config.json then sets the shape below
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
  rope_scaling: str = 'none'  # none | llama3
  rope_factor: float = 8.0  # llama3: by which slow frequencies are divided
  rope_low_freq_factor: float = 1.0  # llama3: slow is below this many turns ...
  rope_high_freq_factor: float = 4.0  # llama3: ... and fast above this many, ...
  rope_original_positions: int = 8192  # llama3: ... in this length
  bias: str = 'none'  # none | qkv | all: which projections have one
  qk_norm: bool = False  # RMSNorm of every query and key head
  fused_qkv: bool = False  # one kernel, and one adapter, for query, key and value
  tie_embeddings: bool = True
  dropout: float = 0.0
  compute_dtype: str = 'float32'  # float32 | bfloat16
  frozen_dtype: str = 'bfloat16'  # of parameters outside optim.trainable
  attention_tile_tokens: int = 64  # of queries and of keys; 0: the whole score matrix at once
  remat: str = 'none'  # none | full | dots
  memory_init: str = 'mean'  # mean (of the vocabulary) | token (a copy) | normal; plus noise
  memory_token: int = 0  # token: the id whose row is copied
  memory_noise: float = 0.02  # standard deviation
  lora: LoraConfig = LoraConfig()


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
  stage2_lora_dropout: float = 0.1  # rim: model.lora.dropout in stage 2
  reset_optimizer: bool = True  # a run that starts from another: fresh moments, not that one's


@dataclasses.dataclass(frozen=True)
class IcotConfig:
  """How iCoT takes the written chain away, from the left (methods/icot.py)."""
  remove_per_epoch: float = 8.0  # tokens; below 1 one in several epochs
  remove_all_beyond_tokens: int = 39  # once so many are due, all that is left goes
  smoothing: float = 4.0  # lambda: a record loses o more with P(o) ~ exp(-lambda o); 0: none
  hold_epochs: float = 0.0  # before the first is removed
  reset_optimizer: bool = True  # fresh moments whenever more is removed


@dataclasses.dataclass(frozen=True)
class CoconutConfig:
  """The stages of method `coconut`: stage k has thoughts in place of the first k steps."""
  num_stages: int = 3  # after stage 0, a written chain; the last stage writes the answer alone
  thoughts_per_step: int = 2  # c, for each step, whether a record has so many or not
  stage_frac: float = 0.12  # share of the budget of each stage; the last one takes the rest


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW on the trainable set."""
  trainable: str = 'all'  # all | memory | lora (adapters and memory rows)
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
  # A complete run whose last parameters, memory rows too, this one begins with, of the same model,
  # tokenizer and base; rim_stage2: its stage 1, '' finds it. Say it in later commands as well.
  init_from: str = ''


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one may be -1, for the rest."""
  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  slice: int = 1  # TPU slices, between which the network is slow


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When a run saves, and what it keeps beside the best."""
  every_steps: int = 500
  every_minutes: float = 0.0  # and after so many since the last save; 0: by steps alone
  keep_last: int = 2
  keep_every_steps: int = 0  # keep those of every so many steps for good; 0: none
  # The run ends, saved, once it has taken this share of its budget, over all stages, up to the next
  # of every_steps: it computes what it would have. The same command with more goes on.
  stop_frac: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is decoded, and how."""
  split: str = 'test'  # train | valid | test | gsm_hard
  path: str = ''  # gsm_hard: its file
  # best (by valid) | last | splits (the paper's protocol, which chooses on eval.split itself: among
  # all that are kept, by 16 random fifths of its questions; the mean of what each leaves to score)
  checkpoint: str = 'best'
  num_blocks: int = -1  # K at evaluation, 0 included; -1: layout.num_blocks
  # Accuracy with every number of blocks from 0 to this one, from one decode; 0: none, -1: to twice
  # layout.num_blocks.
  budget_blocks: int = 0
  num_samples: int = 0  # answers drawn for each question, behind pass@k; 0: none
  temperature: float = 1.0  # at which they are drawn
  batch_size: int = 250
  max_new_tokens: int = 16
  num_examples: int = 0  # of the split; 0: all
  num_valid_examples: int = 250  # at each checkpoint
  num_shown: int = 4  # questions shown with each block's answer
  num_latency_runs: int = 20  # behind ttft_ms, ttft_ratio and latency; 0 leaves them out
  latency_batch_sizes: str = '1'  # questions at once, e.g. '1,8'; the first is ttft_ms's


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """--mode=export: a Hugging Face model of a run, or its adapters."""
  dir: str = ''  # where it is written; '' is WORKDIR/export
  adapters: bool = False  # PEFT adapters alone, instead of merged weights
  untie: bool = True  # an output matrix of its own, whose block rows never win
  dtype: str = 'bfloat16'  # float32 | bfloat16, of merged weights
  max_shard_gb: float = 5.0  # of one safetensors file
  num_verified: int = 20  # --verify: questions compared with transformers


@dataclasses.dataclass(frozen=True)
class ControlsConfig:
  """--mode=controls: does the memory do the work?"""
  direct_dir: str = ''  # WORKDIR of the matched direct run; '' leaves it out
  pause_dir: str = ''  # WORKDIR of the matched pause run; '' leaves it out
  probes: bool = False  # linear probes and PCA of block states too; needs scikit-learn
  num_probe_examples: int = 2000  # of train, and of valid, that probes are fitted on; 0: all
  num_attention: int = 4  # questions whose answers' attention is written down; 0: none


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What a run tells while it works."""
  every_steps: int = 25
  tensorboard: bool = True
  wandb: str = ''  # project in Weights & Biases; '': none
  prefetch_batches: int = 4
  profile_at_step: int = 0  # write a profile from here on; 0: only on SIGUSR1
  profile_num_steps: int = 5  # how many steps a profile spans
  stall_secs: float = 600.0  # without a step, after which a process ends itself; 0: never


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
  icot: IcotConfig = IcotConfig()
  coconut: CoconutConfig = CoconutConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  export: ExportConfig = ExportConfig()
  controls: ControlsConfig = ControlsConfig()
  log: LogConfig = LogConfig()

  @property
  def eval_blocks(self):
    """K at evaluation; methods without blocks have none."""
    if self.method in rules.WITHOUT_BLOCKS:
      return 0
    return self.layout.num_blocks if self.eval.num_blocks < 0 else self.eval.num_blocks

  @property
  def eval_set(self):
    """What results.json calls the set: its split, and K, size and protocol where not the usual."""
    name, trained = self.eval.split, dataclasses.replace(
        self, eval=dataclasses.replace(self.eval, num_blocks=-1))
    if self.eval_blocks != trained.eval_blocks:
      name += f'-k{self.eval_blocks}'
    name += f'-n{self.eval.num_examples}' if self.eval.num_examples else ''
    return name + ('-splits' if self.eval.checkpoint == 'splits' else '')

  @property
  def eval_budget(self):
    """The largest K of a budget curve; 0 for none."""
    most = self.eval.budget_blocks
    return 2 * self.layout.num_blocks if most < 0 else most

  @property
  def writes_steps(self):
    """Whether steps are written before the answer once the run is done."""
    return self.method == 'cot' or (
        self.method == 'coconut_stage' and self.layout.skip_steps >= 0)


# A finished or resumed run may differ from its config.json in these sections only:
# they decide where and when, never what is computed.
RUNTIME_SECTIONS = ('mesh', 'checkpoint', 'eval', 'export', 'controls', 'log')
# The same holds for these single keys.
RUNTIME_KEYS = ('data.cache_dir', 'data.url', 'train.num_micro_batches', 'model.remat',
                'model.attention_tile_tokens',
                'model.init_from', 'tokenizer.path')  # these two: held to their fingerprints


def is_runtime(key: str) -> bool:
  """Whether a dotted key decides where and when alone, never what is computed."""
  return key.partition('.')[0] in RUNTIME_SECTIONS or key in RUNTIME_KEYS


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


@functools.cache
def list_neutral(cls) -> dict:
  """Dotted key -> neutral value, of every key of a config class that is `later`."""
  neutral = {}
  for field in dataclasses.fields(cls):
    if field.metadata.get('later'):
      neutral |= flatten({field.name: dataclasses.asdict(field.default) if (
          dataclasses.is_dataclass(field.default)) else field.default})
    elif dataclasses.is_dataclass(field.default):
      neutral |= {f'{field.name}.{k}': v for k, v in list_neutral(type(field.default)).items()}
  return neutral


def list_identity(config) -> dict:
  """Dotted key -> value of what tells a config, or a section of one, from others.

  Whatever hashes or compares configs uses this: a later key at its neutral value is left out, so
  that a key that is added makes no other run of one that was made before.

  Args:
    config: a dataclass, or the dictionary of a whole Config.
  """
  neutral = list_neutral(type(config) if dataclasses.is_dataclass(config) else Config)
  return {k: v for k, v in flatten(config).items() if k not in neutral or v != neutral[k]}


def complete(tree: dict) -> dict:
  """The dictionary of a Config as an earlier version wrote it, with the later keys, at neutral."""
  tree = copy.deepcopy(tree)
  for key, value in list_neutral(Config).items():
    *sections, name = key.split('.')
    node = functools.reduce(lambda node, section: node.setdefault(section, {}), sections, tree)
    node.setdefault(name, value)
  return tree


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
  return rules.find_problems(config, flatten(config))
