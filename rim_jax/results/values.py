"""What was found, each as a value with types: of a set, of controls, of probes, of times.

`reader.to_tree` and `reader.from_tree` stand between a value and its JSON file. A file may be older
or newer than this version: what it lacks is None, what is not known here is kept in `more` and
written back. Shares are in [0, 1].
"""

import dataclasses

VALID_ACC = 'valid/final_acc'  # in metrics.jsonl, of what was saved at that step
VALID_RULE = 'valid/rule_version'  # there too: judge.RULE_VERSION; none is 1


@dataclasses.dataclass(frozen=True)
class Measure:
  """A field that people are shown: what they call it, and what it means.

  Args:
    form: how `str.format` shows it; '' for a share in %, a count with commas, or text.
    long: whether it is a sentence.
    chooses: whether it chooses among blocks, so that with one reading it says nothing.
    heads: whether it is what the result is about; readings by block belong to it.
    first: whether it stands in the first table of many runs.
    made_of: what it is made of beside one answer a question: 'answers', or 'groups' of questions.
  """
  label: str
  meaning: str = ''
  form: str = ''
  long: bool = False
  chooses: bool = False
  heads: bool = False
  first: bool = False
  made_of: str = ''
  name: str = ''  # of the field


def measure(label: str, meaning: str = '', **more):
  return dataclasses.field(default=None, metadata={'measure': Measure(label, meaning, **more)})


def list_measures(kind) -> list[Measure]:
  """What people are shown of a kind of value, in order."""
  return [dataclasses.replace(f.metadata['measure'], name=f.name)
          for f in dataclasses.fields(kind) if 'measure' in f.metadata]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
  more: dict = dataclasses.field(default_factory=dict)  # what a file has that is not known here


# ---- Times ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quartiles(Value):
  """Of some runs of one program."""
  median: float
  q1: float
  q3: float
  runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyFacts(Value):
  """What times depend on; those whose facts are equal were measured alike."""
  method: str | None = None
  device: str | None = None
  num_devices: int | None = None
  dtype: str | None = None
  batch: int | None = None
  prompt_tokens: int | None = None
  trunk_tokens: int | None = None
  num_blocks: int | None = None
  num_readouts: int | None = None
  num_passes: int | None = None  # over the blocks; None is 1
  num_thoughts: int | None = None
  prefix_tokens: int | None = None
  generated_to_first: int | None = None
  generated_in_full: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyResult(LatencyFacts):
  """How long a method's four programs take (evaluation/latency.py): ms, and x direct."""
  prefill_ms: Quartiles
  first_token_ms: Quartiles
  decode_ms: Quartiles
  full_ms: Quartiles
  prefill_ratio: Quartiles | None = None
  first_token_ratio: Quartiles | None = None
  decode_ratio: Quartiles | None = None
  full_ratio: Quartiles | None = None

# ---- Answers ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction(Value):
  """One question and what was read: a line of predictions/<set>.jsonl."""
  origin: str | None = None
  question: str
  answer: str
  prediction: str | None = None
  correct: bool
  block_predictions: list[str] | None = None
  block_correct: list[bool] | None = None
  block_texts: list[str] | None = None  # as decoded, from which answers are parsed
  text: str | None = None
  majority_correct: bool | None = None
  num_right_samples: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassesResult(Value):
  """What one number of passes over the blocks gives and takes, by the number of blocks K."""
  num_passes: int
  acc: dict[str, float]
  first_token_ms: dict[str, Quartiles] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensResult(Value):
  """What one number of tokens in a block gives, by the number of blocks K."""
  block_tokens: int
  acc: dict[str, float]
  beyond_positions: list[int] | None = None  # K read where no position was trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult(Value):
  """What a checkpoint scores on a set of questions: an entry of results.json."""
  method: str | None = measure('method')
  checkpoint: str | None = measure(
      'checkpoint', 'best: by accuracy on valid; splits: by the questions themselves')
  chosen_on: str | None = measure('chosen on', long=True)
  step: int | None = measure('its training step')
  n: int | None = measure('questions')
  num_blocks: int | None = measure('memory blocks K', 'the same for every question')
  num_passes: int | None = measure('passes over the blocks R', 'each fed the states of the last')
  num_thoughts: int | None = measure(
      'thoughts', 'hidden states fed back before the answer, for every question')
  final_acc: float = dataclasses.field(metadata={'measure': Measure(
      'final accuracy', 'of the last answer read, +- one standard error', heads=True)})
  final_acc_stderr: float | None = None
  block_acc: list[float]
  majority_acc: float | None = measure(
      'majority of blocks', 'the answer that most blocks give', chooses=True)
  any_block_acc: float | None = measure(
      'any block', 'upper bound: picks the right block by looking at the answer', chooses=True)
  selected_acc: float | None = measure(  # stands in controls.json, and is put beside the others
      'selected by a probe',
      'the block whose probe is most confident; probes fitted and tuned on other questions')
  pass_at: dict[str, float] | None = measure(
      'pass@k', 'one of k answers is right that were drawn from the last block', made_of='answers')
  num_samples: int | None = measure('drawn answers', 'of each question', made_of='answers')
  temperature: float | None = measure('drawn at temperature', form='{:g}', made_of='answers')
  budget_acc: dict[str, float] | None = measure(
      'accuracy with K blocks', 'the same model, its last answer', made_of='answers')
  beyond_positions: list[int] | None = measure(
      'K beyond the trained positions',
      'read at rows of the position table that no training example reached', made_of='answers')
  passes: list[PassesResult] | None = None
  tokens: list[TokensResult] | None = None
  steps_acc: dict[str, float] | None = measure(
      'by number of steps', 'of questions whose answer takes so many', made_of='groups')
  num_by_steps: dict[str, int] | None = measure('how many have them', made_of='groups')
  integer_acc: float | None = measure('whole answers', 'GSM-Hard, 0 or more', made_of='groups')
  num_integer: int | None = measure('how many are whole')
  negative_acc: float | None = measure(
      'negative answers', 'GSM-Hard, whole or not', made_of='groups')
  num_negative: int | None = measure('how many are negative')
  non_integer_acc: float | None = measure(
      'other answers', 'GSM-Hard, above 0 and not whole', made_of='groups')
  num_non_integer: int | None = measure('how many are others')
  changed_acc: float | None = measure(
      'changed questions', "GSM-Hard, those that are not GSM8K's word for word", made_of='groups')
  num_changed: int | None = measure('how many are changed')
  step_acc_gold_count: float | None = measure('step accuracy', 'given the gold number of steps')
  step_acc_by_block: list[float] | None = None
  num_unparsed: int | None = measure(
      'unparsed answers', 'empty, or without the suffix that closes an answer: never right')
  num_unfinished: int | None = measure('unfinished answers', 'cut off at eval.max_new_tokens')
  max_new_tokens: int | None = None  # None: of an earlier version
  ttft_ms: float | None = measure(
      'time to first token', 'of the answer, after its chain where one is written',
      form='{:,.2f} ms')
  ttft_ratio: float | None = measure(
      'x direct answering',
      'that time, timed side by side in one process; 1 where this is its own program',
      form='{:.2f}')
  ttft_conditions: str | None = measure('measured on', long=True)
  latency: list[LatencyResult] | None = None
  num_choosing: int | None = None  # of the paper's protocol: questions that choose, splits,
  num_splits: int | None = None
  # Of final_acc over splits, which share questions; a file without it has that as its error.
  splits_stderr: float | None = None
  chosen: dict[str, int] | None = None  # and step -> splits that chose it
  answer_rule: str | None = None
  rule_version: int | None = None  # judge.RULE_VERSION; None is 1
  data_fingerprint: str | None = None
  predictions_sha256: str | None = None  # of predictions/<set>.jsonl, its first 16 digits
  card_sha256: str | None = None  # what config.json carried
  format: int | None = None

  @property
  def unparsed_frac(self) -> float | None:
    """Share of the questions whose answer is unparsed."""
    return None if self.num_unparsed is None or not self.n else self.num_unparsed / self.n

  @property
  def measures(self) -> list[Measure]:
    """Those that it has and that say something.

    With one reading there is no choice among blocks. Thoughts stand in one block, whose number
    would say nothing.
    """
    return [m for m in list_measures(type(self)) if getattr(self, m.name) is not None
            and not (m.chooses and len(self.block_acc) == 1)
            and not (m.name == 'num_blocks' and self.num_thoughts is not None)]


# ---- Controls ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlResult(Value):
  """What one control gave, beside what it should give if the memory does the work.

  Where there is nothing to tell, `none` says why. Of swaps: `donor` shares are of answers that are
  the donor's, `donor_model` of those that the model gave the donor.
  """
  what: str | None = None
  expected: str | None = None
  block: int | None = None  # of a sweep over blocks: the one that is changed
  given: bool | None = None  # of a matched run, which may not be named
  run: str | None = None
  seed: int | None = None
  n: int | None = None
  final_acc: float | None = None
  final_acc_stderr: float | None = None
  block_acc: list[float] | None = None
  unchanged_acc: float | None = None  # over the same questions, with nothing changed
  final_donor_acc: float | None = None
  final_donor_acc_stderr: float | None = None
  block_donor_acc: list[float] | None = None
  n_donor_model: int | None = None  # pairs that the unchanged model answers differently
  final_donor_model_acc: float | None = None
  final_donor_model_acc_stderr: float | None = None
  block_donor_model_acc: list[float] | None = None
  differs: list[str] | None = None  # keys that a matched run has otherwise
  readout_trained: bool | None = None  # the answer, at the place where it is read
  chain_trained: bool | None = None  # a written chain, at that place
  none: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlSweep(Value):
  """One control asked of each block in turn."""
  what: str | None = None
  expected: str | None = None
  by_block: list[ControlResult]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairing(Value):
  """Questions that swaps count, and those that they do not."""
  num_pairs: int
  num_equal_answers: int
  num_without_partner: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOfQuestion(Value):
  question: str
  answer: str
  tokens: list[str]
  by_group: list[list[list[float]]]  # [block read][layer][group]
  by_token: list[list[float]]  # [block read][token of the question], a mean over layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionResult(Value):
  """What answers attend to; weights are shares of 1."""
  what: str
  num_questions: int
  groups: list[str]
  mean: list[list[list[float]]]  # [block read][layer][group], over the questions
  questions: list[AttentionOfQuestion]


# ---- Probes ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult(Value):
  """Whether a block's state says that its readout is right; `none`: why there is no probe."""
  block: int | None = None
  n: int | None = None
  right: float | None = None  # share of right readouts on test: the AUPRC of chance
  none: str | None = None
  auroc: float | None = None
  auprc: float | None = None
  c: float | None = None
  c_tuned: bool | None = None
  train_right: float | None = None
  acc: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionResult(Value):
  """What choosing the block whose probe is most confident gives, beside the last block."""
  none: str | None = None
  acc: float | None = None
  final_acc: float | None = None
  any_block_acc: float | None = None  # an upper bound: it looks at the answer
  num_recoverable: int | None = None  # questions that some block gets right
  recoverable_acc: float | None = None
  recoverable_final_acc: float | None = None
  chosen_blocks: list[int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RightProbes(Value):
  by_block: list[ProbeResult]
  num_fitted: int | None = None
  pooled: ProbeResult  # over all blocks' states, each scored by its block's probe
  selection: SelectionResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepProbes(Value):
  """Which intermediate result each block holds."""
  acc: list[list[float | None]] | None = None  # [block][step], on test; None: not fitted
  majority: list[float | None] | None = None  # by step, of the class most frequent in train
  n: list[int] | None = None  # by step, questions of test
  none: dict[str, str] | str | None = None  # step -> why not; or why there is nothing at all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components(Value):
  """Two principal components of block states, and each checkpoint's states on them."""
  none: str | None = None
  explained: list[float] | None = None
  fitted_on: int
  centers: dict[str, list[list[float]]] | None = None  # step -> [x, y] of each block
  spread: dict[str, list[float]] | None = None  # step -> by block, mean distance to its center


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbesResult(Value):
  none: str | None = None
  state: str | None = None
  num_questions: dict[str, int] | None = None  # by what they are for: train, valid, test
  fitted_on: str | None = None  # the split that 'train' and 'valid' are of; None: of their own
  right: RightProbes | None = None
  steps: StepProbes | None = None
  pca: Components | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlsResult(Value):
  """Everything that was asked of one checkpoint's memory: controls.json."""
  format: int | None = None
  method: str | None = None
  set: str | None = None
  n: int | None = None
  num_blocks: int
  step: int | None = None
  checkpoint: str | None = None
  answer_rule: str | None = None
  rule_version: int | None = None  # judge.RULE_VERSION; None is 1
  data_fingerprint: str | None = None
  pairing: Pairing
  controls: dict[str, ControlResult]
  sweeps: dict[str, ControlSweep]
  attention: AttentionResult | None = None
  probes: ProbesResult | None = None
