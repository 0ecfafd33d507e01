"""What runs say together about how long their answers take, and how tables tell it.

Reads results of runs that are done, never a model.
"""

import dataclasses
from typing import Any

from rim_jax.results import stats
from rim_jax.results.settings import LatencyOverSeeds
from rim_jax.results.values import EvalResult, LatencyFacts, LatencyResult

PARTS = (  # of what evaluation/latency.py times; what a person asks for first stands first
    ('first_token', "to the answer's first token"), ('full', 'to its end'),
    ('prefill', 'prefill'), ('decode', 'decode'))
UNLIKE = 'no mean: its runs were not measured alike'
X_DIRECT = ('x direct: against direct answering by the same network without its blocks, thoughts '
            'or written steps, timed side by side in one process; 1 where that is its own program')
TIMES_MEAN = f"Latency in ms, warm: means over seeds of each run's median. {X_DIRECT}"
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

  Returns: fields of a SettingResult: `measured_on`; `ttft_ms` and `ttft_ratio` over all runs;
    `latency`, an entry for each batch size and all else that times depend on.
  """
  timed = [(r, r.latency) for r in results if r.latency]
  alike = {}  # what was measured on -> what it is in words
  for result, entries in timed:
    facts = _get_facts(entries[0])
    alike.setdefault(tuple(facts.items()), {
        'machine': _MACHINE.format(**facts), 'conditions': result.ttft_conditions})
  latency = _summarize_latency([entries for _, entries in timed])
  told = {'measured_on': list(alike.values()), 'latency': latency or None}
  if len(alike) != 1:
    return told
  ratio = latency[0].first_token_ratio
  return told | {'ttft_ms': stats.summarize([r.ttft_ms for r, _ in timed], keep=True),
                 'ttft_ratio': ratio and ratio.mean}


def _summarize_latency(timed: list[list[LatencyResult]]) -> list[LatencyOverSeeds]:
  groups = stats.group(
      pair for entries in timed  # sizes that the devices round up to one batch count once
      for pair in {tuple(_get_facts(e).items()): e for e in entries}.items())
  found = []
  for facts, entries in groups.items():
    keys = [f'{part}_{what}' for part, _ in PARTS for what in ('ms', 'ratio')]
    told: dict[str, Any] = {
        key: stats.summarize([getattr(e, key).median for e in entries]) for key in keys
        if all(getattr(e, key) for e in entries)}  # a ratio of some is not of the mean time
    found.append(LatencyOverSeeds(**dict(facts), **told))
  return found
