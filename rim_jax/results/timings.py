"""What runs say together about how long their answers take, and how tables tell it.

Reads results of runs that are done, never a model.
"""

import dataclasses
from typing import Any

from rim_jax.config import methods
from rim_jax.results import stats
from rim_jax.results.settings import LatencyOverSeeds, SettingResult, leave_out
from rim_jax.results.values import EvalResult, LatencyFacts

PARTS = (  # of what evaluation/latency.py times; what a person asks for first stands first
    ('first_token', "to the answer's first token"), ('full', 'to its end'),
    ('prefill', 'prefill'), ('decode', 'decode'))
UNLIKE = 'no mean: its runs were not measured alike'
SIDE_BY_SIDE, OF_MEANS = 'side by side', 'of means'  # how a ratio was found
X_DIRECT = ('x direct: against direct answering by the same network without its blocks, thoughts '
            'or written steps, timed side by side in one process; 1 where that is its own program')
TIMES_MEAN = (f"Latency in ms, warm: means over seeds of each run's median. {X_DIRECT}. "
              f'{OF_MEANS.capitalize()}: of two settings that were not timed side by side')
_MACHINE = ('{device}, {num_devices} device(s), {dtype}, batch {batch}, prompt of {prompt_tokens} '
            'tokens')  # what every method's time depends on
_CONDITIONS = (
    '{device}, {num_devices} device(s), {dtype}; {prompt_tokens} prompt tokens, in a trunk of '
    '{trunk_tokens}; {num_readouts} readout(s) of {num_blocks} blocks; {prefix_tokens} tokens '
    'forced, {generated_to_first} generated to the first of the answer and {generated_in_full} to '
    'its end')
_THOUGHTS = '; {num_thoughts} thoughts, found one after the other before it'  # in their one block


def describe(entry: LatencyFacts) -> str:
  """What the times of one of `latency`'s entries, of a run or of several, depend on."""
  return (_CONDITIONS + _THOUGHTS * bool(entry.num_thoughts)).format(**vars(entry))


def _get_facts(entry: LatencyFacts) -> dict[str, Any]:
  """What an entry was measured on; runs whose facts are equal were measured alike."""
  return {f.name: getattr(entry, f.name) for f in dataclasses.fields(LatencyFacts)
          if f.name != 'more'}


def summarize(results: list[EvalResult]) -> dict[str, Any]:
  """What runs were timed on, each once, and their mean times.

  There is no mean of runs that were not measured alike: the same machine, dtype, batch, tokens.

  Returns: fields of a SettingResult: `measured_on`; `ttft_ms` over all runs; `latency`, an entry
    for each batch size and all else that times depend on.
  """
  timed = [r for r in results if r.ttft_ms is not None]
  if not timed:
    return {}
  alike = {}  # what was measured on -> what it is in words
  for result in timed:
    words = result.ttft_conditions or 'not told'
    facts = _get_facts(result.latency[0]) if result.latency else {}
    alike.setdefault(tuple(facts.items()) or words, {
        'machine': _MACHINE.format(**facts) if facts else words, 'conditions': words})
  return {'measured_on': list(alike.values()), 'latency': _summarize_latency(timed) or None,
          'ttft_ms': stats.summarize([r.ttft_ms for r in timed], keep=True) if (
              len(alike) == 1) else None}


def _summarize_latency(results) -> list[LatencyOverSeeds]:
  groups = stats.group(
      pair for result in results  # sizes that the devices round up to one batch count once
      for pair in {tuple(_get_facts(e).items()): e for e in result.latency or ()}.items())
  found = []
  for facts, entries in groups.items():
    keys = [f'{part}_{what}' for part, _ in PARTS for what in ('ms', 'ratio')]
    told: dict[str, Any] = {
        key: stats.summarize([getattr(e, key).median for e in entries]) for key in keys
        if all(getattr(e, key) for e in entries)}  # a ratio of some is not of the mean time
    found += [LatencyOverSeeds(**dict(facts), **told)] if told else []
  return found


def relate(entries: list[SettingResult]) -> list[SettingResult]:
  """The entries with `ttft_ratio`, the mean time to the first token against direct answering's.

  Timed side by side where the runs were; else it is of mean times, to those of `direct` with all
  other factors alike, on a like machine.
  """
  bases = {leave_out(e.factors, 'method'): e for e in entries
           if e.ttft_ms and methods.is_baseline(e.factors.get('method'))}

  def find_ratio(entry):
    told = entry.latency[0].first_token_ratio if entry.latency else None
    base = bases.get(leave_out(entry.factors, 'method'))
    if entry.ttft_ms and told:
      return told.mean, SIDE_BY_SIDE
    if entry.ttft_ms and base and base.ttft_ms and (
        base.measured_on[0]['machine'] == entry.measured_on[0]['machine']):
      return entry.ttft_ms.mean / base.ttft_ms.mean, OF_MEANS
    return None, None
  ratios = map(find_ratio, entries)
  return [dataclasses.replace(entry, ttft_ratio=ratio, ttft_ratio_how=how)
          for entry, (ratio, how) in zip(entries, ratios)]


@dataclasses.dataclass(frozen=True)
class TimesRow:
  """What a table of times has of a setting and a batch size."""
  means: LatencyOverSeeds
  conditions: str
  how: str = ''  # the ratio of the first token was found, where that is not as usual


def list_rows(entry: SettingResult) -> list[TimesRow]:
  """Of older results the little that they tell: a ratio of means, or no more than conditions."""
  if not entry.measured_on:
    return []
  rows = [TimesRow(means, describe(means)) for means in entry.latency or ()] or [
      TimesRow(LatencyOverSeeds(first_token_ms=entry.ttft_ms),
               '; '.join(m['conditions'] for m in entry.measured_on))]
  if entry.ttft_ratio is not None and entry.ttft_ratio_how == OF_MEANS:
    rows[0] = TimesRow(dataclasses.replace(rows[0].means, first_token_ratio=stats.Summary(
        entry.ttft_ratio, None, 1)), rows[0].conditions, OF_MEANS)
  return rows
