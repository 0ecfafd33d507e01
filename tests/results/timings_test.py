"""What runs say together about time: means of what was measured alike, and ratios by hand."""

import dataclasses

import pytest

from rim_jax import reader
from rim_jax.evaluation import latency
from rim_jax.results import timings, values
from tests.support_report import (
  FACTS,
  PARTS,
  make_entry,
  make_latency,
  make_timed,
  read_result,
  relate,
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
  assert 'ttft_ms' not in unlike and len(unlike['measured_on']) == 2
  assert [(e['full_ms']['mean'], e['full_ms']['count']) for e in unlike['latency']] == [
      (3.0, 1), (4.0, 1)]
  key, = other
  assert [e[key] for e in unlike['latency']] == [FACTS[key], other[key]]


def test_older_results_are_told_by_their_words():
  words = {'ttft_ms': 2.0, 'ttft_conditions': 'here'}
  alike = summarize(words, words)
  assert alike['ttft_ms']['count'] == 2 and 'latency' not in alike
  assert alike['measured_on'] == [{'machine': 'here', 'conditions': 'here'}]
  for other in (words | {'ttft_conditions': 'there'}, make_timed(make_latency(2.0))):
    found = summarize(words, other)
    assert 'ttft_ms' not in found and len(found['measured_on']) == 2
  assert summarize({}) == {}


def test_a_ratio_that_was_timed_side_by_side_goes_before_one_of_means():
  """Of means, pause's would be 8 / 2; its runs say 1.25 and 1.75. rim's are older results."""
  direct, pause, rim, other = relate(
      make_entry(make_timed(make_latency(2.0)), method='direct', rate=1),
      make_entry(make_timed(make_latency(7.0, 1.25), make_latency(20.0, 9.0, batch=8)),
                 make_timed(make_latency(9.0, 1.75)), method='pause', rate=1),
      make_entry(make_timed(make_latency(3.0)), method='rim', rate=1),
      make_entry(make_timed(make_latency(3.0)), method='rim', rate=2))
  assert (pause.ttft_ratio, pause.ttft_ratio_how) == (1.5, 'side by side')
  assert (rim.ttft_ratio, rim.ttft_ratio_how) == (1.5, 'of means')
  assert direct.ttft_ratio == 1.0 and other.ttft_ratio is None  # its rate has no direct


def test_a_ratio_of_means_is_to_direct_on_a_like_machine():
  _, rim = relate(make_entry(make_timed(make_latency(2.0)), method='direct'),
                  make_entry(make_timed(make_latency(3.0, device='b')), method='rim'))
  assert rim.ttft_ratio is None
  _, rim = relate(make_entry(make_timed(make_latency(2.0)), method='direct'),
                  make_entry(make_timed(make_latency(3.0, 1.25, device='b')), method='rim'))
  assert rim.ttft_ratio == 1.25  # side by side needs no other run


def test_thoughts_are_among_the_conditions():
  facts = values.LatencyFacts(**FACTS)
  assert '6 thoughts, found one after the other' in timings.describe(
      dataclasses.replace(facts, num_thoughts=6))
  assert timings.describe(dataclasses.replace(facts, num_thoughts=None)) == timings.describe(facts)
