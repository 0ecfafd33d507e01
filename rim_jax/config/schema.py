"""Every key of a configuration: its name, its meaning, its default and its limits.

A key's comments, above it or behind it, are its documentation: docs/make_reference.py prints them,
with the limits, as docs/reference/configuration.md.

Units are in the names: `_steps` optimizer updates, `_examples` records,
`_tokens` token ids, `_rows` packed rows, `_frac` a share of 1, `num_` a count.
"""

import dataclasses
from typing import Annotated, Any, Literal

from rim_jax.config import methods
from rim_jax.config.limits import Amount, AtLeastOne, Axis, BelowOne, Count, Limit, Positive, Sizes


def later(neutral) -> Any:
  """A key, or a section, that runs made before it lack: they did what `neutral` does.

  That is its default, at which it says nothing: the identities, fingerprints and cards of those
  runs stay as they are. Every key that is added is one, e.g. `num_passes: int = later(1)`; a
  section is one as a whole, e.g. `loop: LoopConfig = later(LoopConfig())`.
  """
  return dataclasses.field(default=neutral, metadata={'later': True})


@dataclasses.dataclass(frozen=True)
class ChainConfig:
  """The built-in task: sums of digits, step by step (`r_t = r_{t-1} op c_t` modulo `modulus`)."""
  seed: Count = 0  # Which questions are drawn.
  min_steps: AtLeastOne = 4  # Fewest steps of a question.
  max_steps: AtLeastOne = 4  # Most steps of a question.
  # Results are taken modulo this number.
  modulus: Annotated[int, Limit('must be at least 2', lambda v: v >= 2)] = 10
  # Each step draws one of these characters.
  operators: Annotated[str, Limit('must be one or more of + - *',
                                  lambda v: v and not set(v) - set('+-*'))] = '+'
  # Share of the training questions with wrong written steps. Their last step, the answer, stays
  # right.
  wrong_frac: Annotated[float, Limit('must be between 0 and 1', lambda v: 0 <= v <= 1)] = later(0.0)
  num_train: AtLeastOne = 40_000  # Training questions.
  num_valid: AtLeastOne = 500  # Validation questions; none of them is a training question.
  num_test: AtLeastOne = 1_000  # Test questions; none of them is in another split.

  @property
  def num_existing(self) -> dict[int, int]:
    """Number of steps -> how many questions there are with so many."""
    return {t: self.modulus * (self.modulus * len(self.operators))**t
            for t in range(self.min_steps, self.max_steps + 1)}


@dataclasses.dataclass(frozen=True)
class PerturbedConfig:
  """The task `gsm8k_perturbed`: GSM8K's training problems with other numbers (docs/data.md)."""
  seed: Count = 0  # Which numbers are drawn.
  variants_per_problem: AtLeastOne = 400  # Most variants of one problem; all of them differ.
  # Training problems in all, spread over the originals as evenly as possible; 0: all that can be
  # made.
  total: Count = 0


@dataclasses.dataclass(frozen=True)
class ProsqaConfig:
  """The task `prosqa`; defaults fit the published files (docs/appendix/made_data.md)."""
  seed: Count = 0  # Which problems are drawn.
  min_nodes: int = 20  # Fewest names and concepts in one problem.
  max_nodes: int = 25  # Most names and concepts in one problem.
  min_hops: AtLeastOne = 3  # Fewest steps of the chain to either alternative, right or wrong.
  max_hops: int = 6  # Most steps of the chain to either alternative.
  # How many sentences end in one concept: Poisson with this rate, but at least one.
  parent_rate: Positive = 1.45
  extra_names: Amount = 0.6  # How many names nobody asks about: Poisson with this rate.
  max_facts: int = 54  # Most sentences of one problem.
  # Most sentences that begin with one word. 0: any number. 1: no fork, so there is never a choice.
  max_children: Count = 0
  # What the steps are. path: a shortest path, as published. facts: every sentence of the problem
  # again, in another order; this is practice in reading.
  steps: Literal['path', 'facts'] = 'path'
  # Different names to draw from.
  num_names: Annotated[int, Limit('must be 2 to 17 (there are 17)', lambda v: 2 <= v <= 17)] = 17
  num_concepts: int = 38  # Different concepts to draw from: at most 38, at least max_nodes - 2.
  num_train: AtLeastOne = 18_000  # Training problems.
  num_valid: AtLeastOne = 300  # Validation problems, where data.dir has no valid file.
  num_test: AtLeastOne = 500  # Test problems, where data.dir has no test file.


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where questions, steps and answers come from (docs/data.md)."""
  source: Literal['chain', 'gsm8k', 'gsm8k_perturbed', 'prosqa'] = 'chain'  # Which task.
  # Directory with train, valid and test files, or hf:ORG/NAME[/PART][@REVISION] on the hub. With
  # '', gsm8k and gsm8k_perturbed download OpenAI's files. prosqa draws every split that has no file
  # in the directory.
  dir: str = ''
  # Where gsm8k's files are downloaded from.
  url: str = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'
  # Directory of prepared copies of data, downloads, and token ids of texts; several runs may share
  # it.
  cache_dir: str = '~/.cache/rim_jax'
  # What happens at a row that cannot be read or does not fit. stop: the run ends with its file and
  # line. drop: the row is left out, counted and reported.
  on_bad_rows: Literal['stop', 'drop'] = 'stop'
  # gsm8k and gsm8k_perturbed: questions held out of train if there is no valid file.
  num_valid: AtLeastOne = 500
  step_marks: bool = False  # Write every step with its marks, as `<<a*b=c>>`.
  # gsm8k: what the steps of a written solution are. equations: its `<<a*b=c>>`. sentences: its
  # lines; in a solution of one line, its sentences. Both read steps that are already a list.
  steps: Literal['equations', 'sentences'] = later('equations')
  chain: ChainConfig = ChainConfig()
  perturbed: PerturbedConfig = PerturbedConfig()
  prosqa: ProsqaConfig = ProsqaConfig()


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """How text becomes token ids. kind or path replaces the tokenizer that model.init_from brings."""
  # bytes: one id a byte. chain: digits and operators. words: the words of ProsQA. file: `path`.
  kind: Literal['bytes', 'chain', 'words', 'file'] = 'bytes'
  path: str = ''  # kind=file: a tokenizer.json of the library `tokenizers`.
  # Text of the token that begins a sequence; '': none. Only for kind=file and for model.init_from,
  # where it replaces the model's own token.
  bos_token: str = ''
  # Text of the token that ends an answer. kind=file needs it. With model.init_from it replaces the
  # model's own token. Only for these two.
  eos_token: str = ''
  add_bos: bool = False  # kind=bytes, chain or words: begin every sequence with a bos token.


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
  """The token sequence of one example, and the packed rows that hold several (docs/concepts.md)."""
  # K: memory blocks after a question. Stage 1 has one block for each step instead.
  num_blocks: Count = 8
  block_tokens: AtLeastOne = 2  # M: `<m>` tokens in one block, between its `<b>` and `</b>`.
  # False: a readout sees the blocks and not the question. It then needs a prefix: with an empty
  # prefix an answer is read at its block's closing token, which sees the question.
  readout_sees_question: bool = True
  bidirectional_blocks: bool = False  # True: tokens of one block see each other in both directions.
  depth0_readout: bool = False  # Stage 1: also predict the first step, right after the question.
  # Stage 2 and pause: also predict the answer right after the question.
  stage2_depth0_readout: bool = False
  # coconut_stage, lotus_stage: number of written steps that thoughts replace. -1 (not lotus_stage):
  # all steps, so that only the answer is written.
  skip_steps: Annotated[int, Limit('must be -1 (all), 0 or more', lambda v: v >= -1)] = 0
  # Methods with memory blocks: pair states (docs/concepts.md). A written chain also stands after
  # the question, and the answer after the last block learns from it, as the keys of `distill` say.
  paired_readout: bool = later(False)
  # codi, pccot and paired_readout: the teacher's written chain keeps its last step, which shows the
  # answer.
  teacher_last_step: bool = later(False)
  # codi, pccot: answer_prefix is a target too, as in their authors' code.
  supervise_prefix: bool = later(False)
  # Take question_prefix and separator from the chat template of model.init_from.
  chat_template: bool = False
  question_prefix: str = ''  # Before the question, after bos; may spell special tokens.
  separator: str = '\n'  # After the question; may spell special tokens.
  step_prefix: str = ''  # Before a step that a readout predicts; given, never predicted.
  answer_prefix: str = 'The final answer is \\boxed{'  # Before the answer; given, not predicted.
  answer_suffix: str = '}'  # After the answer; predicted like the answer.
  step_separator: str = '\n'  # After each step of a written chain.
  row_tokens: AtLeastOne = 1024  # Tokens in one packed row.
  # Slots (predicted tokens) in one packed row; 0: as many as the training data need.
  row_slots: Count = 0
  # Number of open rows among which packing chooses a row for the next example.
  pack_window_rows: AtLeastOne = 64


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Passes over the block tokens; each pass reads states of the pass before (docs/concepts.md)."""
  # R: how often block tokens are read, by a method that can read them again. For pccot R - 1 is the
  # number of its iterations. lotus sets R itself in every stage.
  num_passes: AtLeastOne = 1
  # Inputs of block tokens from the second pass on. gate: each token's own row, plus its last state
  # through a trained gate that begins at 0. add: for each `<m>` its row plus its last state.
  # replace: for each `<m>` its last state alone. shift: for each `<m>` the last state of the token
  # before it. '': the method's default; for RiM it is gate.
  rule: Literal['', 'gate', 'add', 'replace', 'shift'] = ''
  # shift: states go through a trained projection before they become inputs.
  projection: bool = False


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters (LoRA) on the projections inside the layers."""
  rank: Count = 0  # Rank of every adapter; 0: no adapters.
  alpha: Positive = 32.0  # An adapter's output is scaled by alpha / rank.
  dropout: BelowOne = 0.0  # Share of an adapter's input that is dropped while training.
  # Projections with the same input (query, key and value; up and gate) drop the same part of it, so
  # that the input is read only once. False: each projection drops its own part, as in PEFT.
  shared_dropout: bool = later(False)
  init_from: str = ''  # A PEFT directory. The run begins with its adapters and memory rows.
  # Regular expression: a projection gets an adapter if its whole name matches. Names: query, key,
  # value (or qkv), out, up, gate, down.
  targets: str = '.*'


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer; GPT-2, Llama, Mistral, Qwen and Gemma 3 are settings of it."""
  # A Hugging Face directory, a GGUF file, or hf:ORG/NAME[/PART][@REVISION] on the hub. The model's
  # files then set the shape below and give the weights.
  init_from: str = ''
  num_layers: AtLeastOne = 4  # Transformer layers.
  embed_dim: AtLeastOne = 64  # Width of the hidden states.
  num_heads: AtLeastOne = 4  # Attention heads (of queries).
  num_kv_heads: Count = 0  # Key and value heads; 0: as many as num_heads.
  head_dim: Count = 0  # Width of one head; 0: embed_dim / num_heads.
  mlp_dim: AtLeastOne = 256  # Width inside the feed-forward part.
  vocab_size: Count = 0  # Rows of the embedding; 0: the tokenizer's number of ids.
  # Normalization before each part of a layer. rmsnorm_1p: an RMSNorm that stores its scale minus 1.
  norm: Literal['rmsnorm', 'layernorm', 'rmsnorm_1p'] = 'rmsnorm'
  post_norms: bool = later(False)  # Also normalize the output that each part adds to a layer.
  norm_eps: Positive = 1e-5  # Added to the variance that a norm divides by.
  # Of the feed-forward part. swiglu and geglu (with gelu_tanh) have a gate.
  activation: Literal['gelu', 'gelu_tanh', 'swiglu', 'geglu'] = 'gelu'
  # learned: a table of positions. rope: rotary positions.
  positions: Literal['learned', 'rope'] = 'learned'
  max_positions: AtLeastOne = 1024  # positions=learned: rows of the table, the longest sequence.
  rope_theta: Positive = 10_000.0  # positions=rope: base of the frequencies.
  # positions=rope: how frequencies are scaled.
  rope_scaling: Literal['none', 'linear', 'llama3'] = 'none'
  # linear scaling: divides all frequencies. llama3 scaling: divides the slow frequencies.
  rope_factor: Positive = 8.0
  # llama3 scaling: a frequency is slow below this number of turns over rope_original_positions.
  rope_low_freq_factor: Positive = 1.0
  # llama3 scaling: a frequency is fast above this number of turns over rope_original_positions.
  rope_high_freq_factor: float = 4.0
  # llama3 scaling: positions over which turns are counted.
  rope_original_positions: AtLeastOne = 8192
  # positions=rope: every layer whose number is divisible by this is global, the others are local.
  # 0: all are global.
  global_every: Count = later(0)
  # With global_every: base of the frequencies in local layers. These frequencies are never scaled.
  local_rope_theta: Positive = later(10_000.0)
  # Number of positions that a token sees, counting its own; 0: all. With global_every only local
  # layers have this window. The window is not computed: an example with more positions is refused.
  sliding_window: Count = later(0)
  bias: Literal['none', 'qkv', 'all'] = 'none'  # Which projections have a bias.
  qk_norm: bool = False  # RMSNorm of every query and key head.
  # Scores are divided by the square root of this; 0: of head_dim.
  query_scale_dim: Count = later(0)
  fused_qkv: bool = False  # One kernel, and one adapter, for query, key and value together.
  tie_embeddings: bool = True  # The output matrix is the embedding.
  # Embedded tokens are multiplied by the square root of embed_dim.
  scale_embeddings: bool = later(False)
  dropout: BelowOne = 0.0  # Share of activations that is dropped while training.
  # Number format of activations. With float32, JAX's default decides the precision of products:
  # exact on CPUs, bfloat16 on TPUs, TF32 on GPUs, unless JAX_DEFAULT_MATMUL_PRECISION=highest is in
  # the environment.
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'
  # Number format of parameters that do not train (see optim.trainable).
  frozen_dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  # Attention is computed in tiles of this many queries and keys; 0: the whole score matrix at once.
  attention_tile_tokens: Count = 64
  # What the backward pass computes again, to save memory. full: each layer, except the means of its
  # norms. dots: as full, but the results of projections and of attention are kept too.
  remat: Literal['none', 'full', 'dots'] = 'none'
  # True: layers are compiled as one and run in a loop. False: each layer is compiled by itself.
  # This takes longer to compile and is faster on a GPU, because a loop there copies weights and the
  # values that the backward pass needs.
  scan_layers: bool = later(True)
  # First values of the memory rows (`<b>`, `<m>`, `</b>`), to which noise is added. mean: the mean
  # of the vocabulary's rows. token: a copy of memory_token's row. normal: noise alone.
  memory_init: Literal['mean', 'token', 'normal'] = 'mean'
  memory_token: Count = 0  # memory_init=token: the id whose row is copied.
  memory_noise: Amount = 0.02  # Standard deviation of the noise.
  lora: LoraConfig = LoraConfig()

  @property
  def drops(self) -> bool:
    """Whether training drops anything: activations, or inputs of adapters where there are any."""
    return bool(self.dropout or (self.lora.rank and self.lora.dropout))


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
  """How much each predicted token counts, and how RiM's two stages share the budget."""
  # Stage 1: how the weights of blocks fade (docs/concepts.md has the formulas). relative: by the
  # example's number of steps. absolute: by absolute_steps. Both fade earlier blocks first.
  # windowed: one block after the other. uniform: all alike. constant: no fading.
  schedule: Literal['relative', 'absolute', 'windowed', 'uniform', 'constant'] = 'relative'
  hold_frac: BelowOne = 0.0  # Stage 1: share of the updates before fading begins.
  # schedule=absolute: the number of steps that replaces each example's own.
  absolute_steps: AtLeastOne = 10
  # Stage 2 and pause: weight of the readout after block k. linear: grows with k. uniform: equal.
  # final: the last block alone.
  alpha: Literal['linear', 'uniform', 'final'] = 'linear'
  # readout: each readout counts by its mean loss per token. token: every token counts alike.
  reduction: Literal['readout', 'token'] = 'readout'
  # What the weighted sum is divided by. weight: the total weight in the batch. readouts: the number
  # of readouts, counting those whose weight is 0.
  normalize: Literal['weight', 'readouts'] = 'weight'
  # Method rim: stage 1's share of the budget.
  stage1_frac: Annotated[float, Limit('must be between 0 and 1', lambda v: 0 < v < 1)] = 0.75
  stage2_learning_rate_scale: Positive = 0.2  # rim: stage 2's learning rate divided by stage 1's.
  stage2_dropout: BelowOne = 0.2  # rim: model.dropout in stage 2.
  stage2_lora_dropout: BelowOne = 0.1  # rim: model.lora.dropout in stage 2.
  # rim: each `<m>` of a block also predicts a token of the block's own step, with this weight; 0:
  # it does not (docs/concepts.md).
  inside_weight: Amount = later(0.0)
  # A run that starts from another run begins with fresh optimizer moments. False: with the other
  # run's moments.
  reset_optimizer: bool = True
  # Each stage continues in the data at the place where the stage before it ended. False: all stages
  # begin with the same examples. Then the end of the data is never read if every stage takes less
  # than one pass.
  continue_data: bool = later(False)


@dataclasses.dataclass(frozen=True)
class IcotConfig:
  """How method `icot` takes the written chain away, token by token from the left."""
  remove_per_epoch: Positive = 8.0  # Tokens removed in one epoch; 0.5: one in two epochs.
  # When this many tokens are due to be removed, the whole rest is removed.
  remove_all_beyond_tokens: AtLeastOne = 39
  # An example may lose more tokens than are due, anew each time it is read. The probability of at
  # least n more is exp(-smoothing * n). The value 0 turns this off.
  smoothing: Amount = 4.0
  hold_epochs: Amount = 0.0  # Epochs with the whole chain, before removal begins.
  reset_optimizer: bool = True  # Fresh optimizer moments each time more tokens are removed.


@dataclasses.dataclass(frozen=True)
class CoconutConfig:
  """The stages of method `coconut`: stage k has thoughts in place of the first k steps."""
  # Stages after stage 0 (a written chain). One more stage follows, which writes only the answer.
  num_stages: AtLeastOne = 3
  thoughts_per_step: AtLeastOne = 2  # Thoughts for each replaced step.
  stage_frac: float = 0.12  # Share of the budget of each stage; the last stage takes the rest.


@dataclasses.dataclass(frozen=True)
class CodiConfig:
  """What is fed back by method `codi`."""
  projection: bool = True  # A thought is a trained projection of the last hidden state before it.


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """Paired states, for codi, pccot and paired_readout (docs/concepts.md)."""
  # Weight of the distance between the two states (CODI's gamma). The answer's own loss has weight
  # 1.
  weight: Amount = 1.0
  teacher_weight: Amount = 1.0  # Weight of the loss of the written chain itself.
  # Distances are divided by a standard deviation of the chain's states. example: of one pair's
  # state after one layer. layer: of all pairs' states of a micro-batch after one layer. all: of all
  # pairs' states after all layers.
  std: Literal['example', 'layer', 'all'] = 'example'


@dataclasses.dataclass(frozen=True)
class LotusConfig:
  """The stages of method `lotus`: stage k has latents in place of the first k steps."""
  # Stages after stage 0 (a written chain). The last stage takes the rest of the budget.
  num_stages: AtLeastOne = 6
  # Latents for each replaced step; each latent stands for one token of the step.
  latents_per_step: AtLeastOne = 25
  # Weight of the mean loss of the steps' tokens that latents predict.
  step_weight: Amount = 0.05
  stage_frac: float = 1 / 30  # Share of the budget of each stage except the last.
  # True: every stage reads its latents once. False: stage k reads them k + 1 times, as published.
  one_pass: bool = later(False)


@dataclasses.dataclass(frozen=True)
class AuxConfig:
  """SIM-CoT, for coconut and codi: in training each group of thoughts also writes its step."""
  # Who writes the step from its thoughts. none: nobody. shared: the network itself, which then sees
  # only those thoughts. copy: a second network. It begins as a copy of the first, trains all its
  # parameters, and is dropped after training.
  decoder: Literal['none', 'shared', 'copy'] = 'none'
  weight: Amount = 1.0  # Weight of the mean loss of the written steps.
  group_tokens: AtLeastOne = 1  # Number of thoughts that together write one step.
  last_step: bool = True  # The last step is written too. False: it is not, as in CODI's teacher.
  # A group of thoughts without a step writes the answer. False: it writes nothing.
  answer_fills: bool = False


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW on the parameters that train."""
  # Which parameters train. lora: adapters and memory rows. memory: the three memory rows alone.
  trainable: Literal['all', 'memory', 'lora'] = 'all'
  learning_rate: Positive = 1e-3  # The highest learning rate, after warm-up.
  warmup_frac: BelowOne = 0.04  # Share of a stage's updates over which the rate rises linearly.
  decay: Literal['constant', 'cosine'] = 'constant'  # After warm-up; cosine falls to 0.
  b1: BelowOne = 0.9  # AdamW's decay of the first moment.
  b2: BelowOne = 0.98  # AdamW's decay of the second moment.
  eps: Positive = 1e-8  # AdamW's epsilon.
  # AdamW's weight decay. It does not apply to memory rows, norms and biases.
  weight_decay: Amount = 0.01
  clip_norm: Positive = 1.0  # Gradients with a larger global norm are scaled down to it.


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The budget, the batch, and what a run starts from."""
  num_examples: Count = 0  # Budget in training examples. Set this or num_epochs.
  num_epochs: Amount = 0.0  # Budget in passes over the training data.
  # Mean number of examples in one update; the program turns it into a number of packed rows. Set
  # this or batch_rows.
  batch_examples: Count = 128
  batch_rows: Count = 0  # Packed rows in one update, exactly.
  # Number of examples that are left out at the beginning, in the order in which the seed draws the
  # data. With curriculum.continue_data a later stage leaves out the examples that earlier stages
  # have read.
  skip_examples: Count = later(0)
  skip_epochs: Amount = later(0.0)  # As skip_examples, in epochs; the two are added.
  num_micro_batches: AtLeastOne = 1  # Parts of one update, computed one after the other.
  # WORKDIR of a run that is finished, or that ended at a loss that is not finite. This run begins
  # with its last parameters, and must have the same model, tokenizer and base. rim_stage2: the run
  # of stage 1; '' finds the one beside this run.
  init_from: str = ''


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; one axis may be -1, for all that are left."""
  data: Axis = -1  # Each device has a part of the batch and all parameters.
  fsdp: Axis = 1  # Each device has a part of the batch and a part of the parameters.
  tensor: Axis = 1  # Each device has a part of every matrix product.
  slice: Axis = 1  # TPU slices, between which the network is slow.


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When a run saves, and what it keeps beside the checkpoint that is best on valid."""
  # Updates between two saves. Each of these saves is evaluated on valid.
  every_steps: AtLeastOne = 500
  # Also save after this many minutes without a save; 0: never. Such a save is not evaluated, and is
  # never the best checkpoint.
  every_minutes: Amount = 0.0
  # How many checkpoints are kept: the newest ones of those that every_steps asked for.
  keep_last: Annotated[int, Limit(
      'must be at least 2: the next to last stays until the last has been verified',
      lambda v: v >= 2)] = 2
  # Also keep the checkpoints at multiples of this many updates for ever; 0: none.
  keep_every_steps: Count = 0
  # The run saves and ends after this share of its budget (over all stages), at the next multiple of
  # every_steps. The same command with a larger share continues exactly.
  stop_frac: Annotated[float, Limit('must be above 0 and at most 1, the whole budget',
                                    lambda v: 0 < v <= 1)] = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is decoded, and how (docs/reference/judging.md)."""
  # Which questions: train, valid or test. Any other name names the file in `path`.
  split: str = 'test'
  # A file of rows that is not a split of data.dir. eval.split gives its name (docs/data.md).
  path: str = ''
  # More such files, all evaluated after eval.split: NAME=FILE,NAME=FILE.
  sets: str = later('')
  # Which checkpoint is reported. best: the one with the highest accuracy on valid. last: the
  # newest. splits: the paper's protocol, which chooses on the questions of eval.split themselves. A
  # random fifth of the questions chooses, the others give the score, and this is repeated 16 times.
  checkpoint: Literal['best', 'last', 'splits'] = 'best'
  # K: number of blocks in answering; -1: layout.num_blocks. Methods without blocks take -1.
  num_blocks: Annotated[int, Limit('must be -1 (as trained), 0 or more', lambda v: v >= -1)] = -1
  # R: number of passes over the blocks in answering; 0: loop.num_passes.
  num_passes: Count = later(0)
  # Also give the accuracy with every number of blocks from 0 to this one; 0: do not; -1: up to
  # twice layout.num_blocks.
  budget_blocks: Annotated[int, Limit('must be -1 (twice layout.num_blocks), 0 (none) or more',
                                      lambda v: v >= -1)] = 0
  # Also give the accuracy and the time to the first token with every number of passes from 1 to
  # this one, for every number of blocks that eval.budget_blocks asks for; 0: do not.
  budget_passes: Count = later(0)
  # Also give the accuracy with every number of `<m>` in a block from 1 to this one, for every
  # number of blocks that eval.budget_blocks asks for; 0: do not.
  budget_tokens: Count = later(0)
  num_samples: Count = 0  # Answers drawn for each question, for pass@k; 0: none.
  temperature: Positive = 1.0  # Temperature at which they are drawn.
  batch_size: AtLeastOne = 250  # Questions decoded together.
  max_new_tokens: AtLeastOne = 16  # Most tokens that are generated; a written chain counts too.
  num_examples: Count = 0  # Only this many questions of the split, the first ones; 0: all.
  # Number of valid's questions that are answered at each save, the first ones.
  num_valid_examples: AtLeastOne = 250
  # Also compute the stage's loss on these questions of valid at each save, as in training.
  valid_loss: bool = later(False)
  num_shown: Count = 4  # Questions shown on the terminal, with the answer after each block.
  # Number of timed runs for ttft_ms, ttft_ratio and latency; 0: no timing.
  num_latency_runs: Count = 20
  # Numbers of questions that are answered at once in the timed runs, with commas. ttft_ms is
  # measured with the first number.
  latency_batch_sizes: Sizes = '1'


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """`--mode=export`: a run as a Hugging Face model, or as PEFT adapters."""
  # Directory that is written, on a local disk; '': `export` in the run's own directory (for rim, in
  # stage 2's).
  dir: str = ''
  adapters: bool = False  # True: PEFT adapters; False: a whole model with merged weights.
  # Give the exported model an output matrix of its own, in which block tokens never win. False:
  # keep the embedding as output matrix, and list the block tokens in suppress_tokens.
  untie: bool = True
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'  # Number format of merged weights.
  max_shard_gb: Positive = 5.0  # Largest size of one safetensors file, in 10^9 bytes.
  # `--verify`: number of questions on which the export is compared with transformers.
  num_verified: AtLeastOne = 20


@dataclasses.dataclass(frozen=True)
class ControlsConfig:
  """`--mode=controls`: does the memory do the work? (docs/controls.md)"""
  # WORKDIR of the matched run of method direct; '': no comparison with direct.
  direct_dir: str = ''
  pause_dir: str = ''  # WORKDIR of the matched run of method pause; '': no comparison with pause.
  probes: bool = False  # Also fit linear probes and PCA on block states; needs scikit-learn.
  # Number of train's questions that probes are fitted on; 0: all. At most as many questions of
  # valid tune them.
  num_probe_examples: Count = 2000
  # train: probes are fitted on questions of train, as above. valid: they are fitted on as many
  # questions of valid, on which nothing was trained, and tuned on the other questions of valid.
  probe_split: Literal['train', 'valid'] = later('train')
  # Number of questions for which the attention of the answer is written down; 0: none.
  num_attention: Count = 4


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What a run tells while it works (docs/reference/metrics.md)."""
  every_steps: AtLeastOne = 25  # Updates between two lines of metrics.
  tensorboard: bool = True  # Also write WORKDIR/tensorboard.
  wandb: str = ''  # Project in Weights & Biases that gets the same scalars; '': do not use W&B.
  prefetch_batches: AtLeastOne = 4  # Number of batches that are made ahead.
  # Number of processes that make batches, beside each process of the run; 0: a thread of the run's
  # process. They are worth their cores if `goodput/data_frac` says that updates wait for data.
  input_workers: Count = later(0)
  profile_at_step: Count = 0  # Update at which a profile begins; 0: only on SIGUSR1.
  profile_num_steps: AtLeastOne = 5  # Updates that a profile spans.
  # Seconds without an update after which a process ends itself; 0: never.
  stall_secs: Amount = 600.0


@dataclasses.dataclass(frozen=True)
class Config:
  """The two keys that stand in no group; a whole configuration."""
  # How the model is trained to answer (docs/concepts.md).
  method: Literal[tuple(methods.FACTS)] = 'rim_stage1'  # pyright: ignore[reportInvalidTypeForm]
  # Decides every random draw of the run: parameters, order of the data, dropout.
  seed: Annotated[Count, Limit('must be below 2**32', lambda v: v < 2**32)] = 0
  data: DataConfig = DataConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  layout: LayoutConfig = LayoutConfig()
  model: ModelConfig = ModelConfig()
  curriculum: CurriculumConfig = CurriculumConfig()
  loop: LoopConfig = later(LoopConfig())
  icot: IcotConfig = IcotConfig()
  coconut: CoconutConfig = CoconutConfig()
  codi: CodiConfig = later(CodiConfig())
  distill: DistillConfig = later(DistillConfig())
  lotus: LotusConfig = later(LotusConfig())
  aux: AuxConfig = later(AuxConfig())
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  export: ExportConfig = ExportConfig()
  controls: ControlsConfig = ControlsConfig()
  log: LogConfig = LogConfig()

  @property
  def facts(self) -> methods.Facts:
    return methods.get_facts(self.method)

  @property
  def eval_blocks(self):
    """K at evaluation; methods without blocks have none."""
    if not self.facts.has_blocks:
      return 0
    return self.layout.num_blocks if self.eval.num_blocks < 0 else self.eval.num_blocks

  @property
  def loop_rule(self):
    """What passes over blocks are fed; '' where there is never more than one."""
    return self.facts.loop_rule and (self.loop.rule or self.facts.loop_rule)

  @property
  def feeds_back(self):
    """Whether hidden states stand in for inputs."""
    return self.facts.feeds_back or self.loop.num_passes > 1

  @property
  def has_thoughts(self):
    """Whether hidden states are found before an answer; latents that are read once are none."""
    return self.facts.has_thoughts and self.at_evaluation.feeds_back

  @property
  def at_evaluation(self):
    """With as many passes over blocks as answering takes."""
    return dataclasses.replace(self, loop=dataclasses.replace(
        self.loop, num_passes=self.eval.num_passes or self.loop.num_passes))

  @property
  def eval_set(self):
    """What results.json calls the set: its split; K, R, size and protocol where not the usual."""
    name, trained = self.eval.split, dataclasses.replace(
        self, eval=dataclasses.replace(self.eval, num_blocks=-1))
    name += f'-k{self.eval_blocks}' if self.eval_blocks != trained.eval_blocks else ''
    name += f'-r{self.eval.num_passes}' if self.at_evaluation.loop != self.loop else ''
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
    return self.facts.writes_steps or (self.facts.skips_steps and self.layout.skip_steps >= 0)


# A finished or resumed run may differ from its config.json in these sections only:
# they decide where and when, never what is computed.
RUNTIME_SECTIONS = ('mesh', 'checkpoint', 'eval', 'export', 'controls', 'log')
# The same holds for these single keys.
RUNTIME_KEYS = ('data.cache_dir', 'data.url', 'train.num_micro_batches', 'model.remat',
                'model.scan_layers', 'model.attention_tile_tokens',
                'model.init_from', 'tokenizer.path')  # these two: held to their fingerprints


# So for these: what was read is compared by its fingerprint.
HELD_KEYS = ('data.dir', 'data.on_bad_rows')


def is_runtime(key: str) -> bool:
  """Whether a dotted key decides where and when alone, never what is computed."""
  return key.partition('.')[0] in RUNTIME_SECTIONS or key in RUNTIME_KEYS


# Keys that name a file or a directory; a leading `~` of theirs is the home directory.
PATH_KEYS = ('data.dir', 'data.cache_dir', 'tokenizer.path', 'model.init_from',
             'model.lora.init_from', 'train.init_from', 'eval.path', 'export.dir',
             'controls.direct_dir', 'controls.pause_dir')
