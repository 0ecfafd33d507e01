"""What runs say together about time: means of what was measured alike."""

import dataclasses

import pytest

from rim_jax import reader
from rim_jax.evaluation import latency
from rim_jax.results import timings, values
from tests.support_report import (
  FACTS,
  PARTS,
  make_latency,
  make_timed,
  read_result,
)


def summarize(*results) -> dict:
  """What sweep.json has of the times of results."""
  found = timings.summarize([read_result(r) for r in results])
  return {k: v for k, v in reader.to_tree(found).items() if v is not None}


def test_parts_are_those_that_are_timed():
  assert sorted(PARTS) == sorted(latency.PARTS)


def test_times_and_ratios_are_means_over_seeds_for_each_batch_and_part():
  results = [make_timed(make_latency(2.0, 1.25), make_latency(10.0, 2.0, batch=8)),
             make_timed(make_latency(4.0, 1.75), make_latency(12.0, batch=8)),
             make_timed(make_latency(6.0, 1.5)), {}]
  found = summarize(*results)
  assert found['ttft_ms'] == {'mean': 4.0, 'stderr': pytest.approx(2 / 3**0.5), 'count': 3,
                              'values': [2.0, 4.0, 6.0]}
  assert found['ttft_ratio'] == 1.5
  one, eight = found['latency']
  for entry, batch in ((one, 1), (eight, 8)):
    assert {k: v for k, v in entry.items() if not isinstance(v, dict)} == FACTS | {'batch': batch}
  for i, part in enumerate(PARTS):
    assert one[f'{part}_ms'] == pytest.approx(
        {'mean': 4.0 + i, 'stderr': 2 / 3**0.5, 'count': 3})
    assert one[f'{part}_ratio'] == pytest.approx(
        {'mean': 1.5 + 0.5 * i, 'stderr': 0.25 / 3**0.5, 'count': 3})
    assert eight[f'{part}_ms'] == pytest.approx({'mean': 11.0 + i, 'stderr': 1.0, 'count': 2})
    assert f'{part}_ratio' not in eight  # which one of two runs alone has


def test_a_batch_that_was_measured_twice_in_a_run_counts_once():
  """Sizes 1 and 2 are both 2 where two devices share a batch."""
  (entry,) = summarize(make_timed(make_latency(2.0), make_latency(4.0)))['latency']
  assert entry['full_ms']['count'] == 1


@pytest.mark.parametrize('other', [
    {'device': 'gpu'}, {'num_devices': 2}, {'dtype': 'bfloat16'}, {'batch': 8},
    {'prompt_tokens': 10}, {'trunk_tokens': 48}, {'generated_in_full': 5}])
def test_times_that_differ_in_any_one_condition_have_no_mean(other):
  one, two = make_timed(make_latency(2.0)), make_timed(make_latency(3.0))
  two['ttft_conditions'] = 'in other words'
  alike = summarize(one, two)
  assert alike['ttft_ms']['mean'] == 2.5 and len(alike['latency']) == len(alike['measured_on']) == 1
  unlike = summarize(one, make_timed(make_latency(3.0, **other)))
  assert not {'ttft_ms', 'ttft_ratio'} & set(unlike) and len(unlike['measured_on']) == 2
  assert [(e['full_ms']['mean'], e['full_ms']['count']) for e in unlike['latency']] == [
      (3.0, 1), (4.0, 1)]
  key, = other
  assert [e[key] for e in unlike['latency']] == [FACTS[key], other[key]]


def test_thoughts_are_among_the_conditions():
  facts = values.LatencyFacts(**FACTS)
  assert '6 thoughts, found one after the other' in timings.describe(
      dataclasses.replace(facts, num_thoughts=6))
  assert timings.describe(dataclasses.replace(facts, num_thoughts=None)) == timings.describe(facts)
