"""What runs say together about how long their answers take, and how tables tell it.

Reads results of runs that are done, never a model.
"""

import dataclasses
from typing import Any

from rim_jax.config import methods
from rim_jax.results import stats

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


def describe(entry) -> str:
  """What the times of one of `latency`'s entries, of a run or of several, depend on."""
  return (_CONDITIONS + _THOUGHTS * bool(entry.get('num_thoughts'))).format(**entry)


def _get_facts(entry) -> tuple:
  """What an entry was measured on; runs whose facts are equal were measured alike."""
  return tuple(sorted((k, v) for k, v in entry.items() if isinstance(v, (str, int))))


def summarize(results) -> dict:
  """What runs were timed on, each once, and their mean times.

  There is no mean of runs that were not measured alike: the same machine, dtype, batch, tokens.

  Returns: `measured_on`; `ttft_ms` over all runs; `latency`, an entry for each batch size and all
    else that times depend on: these facts, and of each of PARTS `<part>_ms` and, where all runs
    have it, `<part>_ratio`, each the mean over runs of medians.
  """
  timed = [r for r in results if 'ttft_ms' in r]
  if not timed:
    return {}
  alike = {}  # what was measured on -> what it is in words
  for result in timed:
    words = result.get('ttft_conditions', 'not told')
    facts = _get_facts(next(iter(result.get('latency', ())), {}))
    alike.setdefault(facts or words, {
        'machine': _MACHINE.format(**dict(facts)) if facts else words, 'conditions': words})
  found: dict[str, Any] = {'measured_on': list(alike.values())}
  if len(alike) == 1:
    values = [r['ttft_ms'] for r in timed]
    found['ttft_ms'] = dataclasses.asdict(stats.summarize(values)) | {'values': values}
  latency = _summarize_latency(timed)
  return found | ({'latency': latency} if latency else {})


def _summarize_latency(results) -> list[dict]:
  groups = {}
  for result in results:  # sizes that the devices round up to one batch count once
    for facts, entry in {_get_facts(e): e for e in result.get('latency', ())}.items():
      groups.setdefault(facts, []).append(entry)
  found = []
  for facts, entries in groups.items():
    told = {}
    for key in (f'{part}_{what}' for part, _ in PARTS for what in ('ms', 'ratio')):
      medians = [e[key]['median'] for e in entries if key in e]
      if len(medians) == len(entries):  # a ratio of some would not be that of the mean time
        told[key] = dataclasses.asdict(stats.summarize(medians))
    found += [dict(facts) | told] if told else []
  return found


def relate(entries) -> None:
  """Adds `ttft_ratio`, the mean time to the first token against direct answering's, and how.

  Timed side by side where the runs were; else it is of mean times, to those of `direct` with all
  other factors alike, on a like machine.
  """
  def leave_out_method(entry):
    return tuple(sorted((k, str(v)) for k, v in entry['factors'].items() if k != 'method'))
  timed = [e for e in entries if 'ttft_ms' in e]
  bases = {leave_out_method(e): e for e in timed if methods.is_baseline(e['factors'].get('method'))}
  for entry in timed:
    told = next(iter(entry.get('latency', ())), {}).get('first_token_ratio')
    base = bases.get(leave_out_method(entry))
    if told:
      entry |= {'ttft_ratio': told['mean'], 'ttft_ratio_how': SIDE_BY_SIDE}
    elif base and base['measured_on'][0]['machine'] == entry['measured_on'][0]['machine']:
      entry |= {'ttft_ratio': entry['ttft_ms']['mean'] / base['ttft_ms']['mean'],
                'ttft_ratio_how': OF_MEANS}


def list_rows(entry) -> list[dict]:
  """What a table of times has of a setting: `latency`'s entries, each with its `conditions`.

  Of older results the little that they tell: a ratio with `how`, or no more than conditions.
  """
  if 'measured_on' not in entry:
    return []
  rows = [row | {'conditions': describe(row)} for row in entry.get('latency', ())] or [
      {'conditions': '; '.join(m['conditions'] for m in entry['measured_on'])}
      | ({'first_token_ms': entry['ttft_ms']} if 'ttft_ms' in entry else {})]
  if entry.get('ttft_ratio_how') == OF_MEANS:
    rows[0]['first_token_ratio'] = {
        'mean': entry['ttft_ratio'], 'stderr': None, 'how': OF_MEANS}
  return rows
