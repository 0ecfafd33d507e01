"""What the runs of a sweep say together, as values with types: what sweep.json holds.

A setting is one combination of factors; its runs differ in the seed alone.
"""

import dataclasses

from rim_jax.results.stats import Effect, Summary
from rim_jax.results.values import LatencyFacts, Value, measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyOverSeeds(LatencyFacts):
  """Means over runs of medians; a ratio where all runs have it."""
  first_token_ms: Summary | None = None
  first_token_ratio: Summary | None = None
  full_ms: Summary | None = None
  full_ratio: Summary | None = None
  prefill_ms: Summary | None = None
  prefill_ratio: Summary | None = None
  decode_ms: Summary | None = None
  decode_ratio: Summary | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlOverSeeds(Value):
  """One control; `none` and `differs` are what any of the runs says there."""
  what: str
  expected: str
  final_acc: Summary | None = None
  final_donor_acc: Summary | None = None
  none: list[str] | None = None
  differs: list[str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsOverSeeds(Value):
  acc: list[list[Summary | None]]  # [block][step]
  majority: list[Summary | None]  # by step


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbesOverSeeds(Value):
  count: int  # runs that have probes
  auroc: list[Summary | None]  # by block
  pooled_auroc: Summary | None
  recoverable_acc: Summary | None
  recoverable_final_acc: Summary | None
  steps: StepsOverSeeds | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingResult(Value):
  """One setting over its seeds; None where no run, or not every one that counts, has it."""
  name: str
  factors: dict
  num_points: int
  num_done: int
  failed: dict[str, str]  # run -> why
  dropped: dict[str, str]
  valid_acc: Summary | None = measure(
      'on valid', 'chooses the checkpoint of a run, and the best of all', first=True)
  final_acc: Summary | None = measure('final', heads=True, first=True)
  any_block_acc: Summary | None = measure(
      'any block', 'upper bound: picks the right block by looking at the answer', first=True)
  majority_acc: Summary | None = measure('majority of blocks', first=True)
  selected_acc: Summary | None = measure(
      'selected by a probe',
      'the block whose probe is most confident; probes fitted and tuned on other questions',
      first=True)
  unparsed_frac: Summary | None = measure(
      'unparsed', 'answers that are empty, or lack the suffix that closes them: never right',
      first=True)
  integer_acc: Summary | None = measure('integer answers')
  negative_acc: Summary | None = measure('negative answers')
  non_integer_acc: Summary | None = measure('non integer answers')
  changed_acc: Summary | None = measure('changed questions')
  pass_at: dict[str, Summary] | None = measure('pass@{}')
  budget_acc: dict[str, Summary] | None = measure('K = {}')
  steps_acc: dict[str, Summary] | None = measure('{} steps')
  block_acc: list[Summary] | None = None  # where all runs have as many
  n: int | None = None  # questions
  # `machine` and `conditions`, in words
  measured_on: list[dict[str, str]] = dataclasses.field(default_factory=list)
  ttft_ms: Summary | None = None
  latency: list[LatencyOverSeeds] | None = None
  ttft_ratio: float | None = None  # mean time to the first token / direct answering's
  controls: dict[str, ControlOverSeeds] | None = None
  probes: ProbesOverSeeds | None = None
  # Run -> why its controls are not of its result.
  not_carried: dict[str, str] = dataclasses.field(default_factory=dict)
  steps: list[int] = dataclasses.field(default_factory=list)  # updates of a run
  points: list[str] = dataclasses.field(default_factory=list)  # runs that are done
  against_best: dict | None = None  # as an entry of `Conclusion.pairs`


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestSetting(Value):
  """The setting that valid chose; `doubtful` are those that the seeds do not tell from it."""
  name: str
  valid_acc: Summary
  final_acc: Summary
  equal: list[str]
  doubtful: list[str]
  dropped: dict[str, int]  # setting -> runs that ended early


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectResult(Value):
  """What a level of a factor does against its first one, `reference`."""
  factor: str
  level: object
  reference: object
  valid_acc: Effect | None = None
  final_acc: Effect | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conclusion(Value):
  format: int
  best: BestSetting | None
  entries: list[SettingResult]
  pairs: list[dict]  # `a`, `b`, `tests`, `not_compared`, `difference`
  effects: list[EffectResult]
  warnings: list[str]
