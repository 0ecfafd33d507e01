"""Any two settings are compared on the same questions, seed by seed, and corrected for how many."""

import pytest

from rim_jax.report import pairwise, sweep_results
from tests import support_sweep


def test_runs_of_other_questions_are_told_and_all_else_is_concluded(tmp_path):
  states = support_sweep.make_states(
      tmp_path, [({'a': 1}, 0.5, 0.9), ({'a': 2}, 0.4, 0.9), ({'a': 3}, 0.3, 0.9)])
  path = states[1].predictions
  path.write_text(path.read_text().replace('"0"', '"another"'))
  states[2].predictions.unlink()
  told = support_sweep.conclude(states, tmp_path)
  other, gone = (e['against_best'] for e in told['entries'][1:])
  assert other['tests'] == gone['tests'] == []
  assert 'other questions than' in other['not_compared']['seed None']
  assert 'no predictions' in gone['not_compared']['seed None']
  assert [e['num_done'] for e in told['entries']] == [1, 1, 1]
  assert all(p['tests'] == [] and 'difference' not in p and list(p['not_compared']) == ['seed None']
             for p in told['pairs']) and len(told['pairs']) == 3


def test_any_two_settings_are_compared_by_seed_and_corrected_for_all_pairs_of_the_seed(tmp_path):
  """Without valid there is no best, and still every pair; seed 1 has two settings, so one pair."""
  states = support_sweep.make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, None, 0.10), ({'a': 1, 'seed': 1}, None, 0.20),
      ({'a': 2, 'seed': 0}, None, 0.15), ({'a': 2, 'seed': 1}, None, 0.26),
      ({'a': 3, 'seed': 0}, None, 0.24)])
  told = support_sweep.conclude(states, tmp_path)
  by_pair = {(p['a'], p['b']): p for p in told['pairs']}
  assert list(by_pair) == [('a=2', 'a=1'), ('a=3', 'a=1'), ('a=3', 'a=2')]
  # The better one is right wherever the other is: 2 / 2^(how many it has alone).
  raw = {('a=2', 'a=1'): 2 / 2**5, ('a=3', 'a=1'): 2 / 2**14, ('a=3', 'a=2'): 2 / 2**9}
  for pair, factor in zip(raw, (1, 3, 2)):
    test = by_pair[pair]['tests'][0]
    assert (test['seed'], test['only_b']) == (0, 0)
    assert test['p_value'] == pytest.approx(raw[pair])
    assert test['p_value_holm'] == pytest.approx(factor * raw[pair])
  alone = by_pair['a=2', 'a=1']['tests'][1]
  assert alone['seed'] == 1 and alone['p_value_holm'] == alone['p_value'] == pytest.approx(2 / 2**6)
  assert by_pair['a=2', 'a=1']['difference'] == {
      'mean': pytest.approx(0.055), 'stderr': pytest.approx(0.005), 'count': 2}
  text = (tmp_path / 'sweep.md').read_text()
  assert '| 2: a=2 | +5.5 (p 0.062; 0.031) |  |' in text
  assert '| 3: a=3 | +14.0 (p 0.00037) | +9.0 (p 0.0078) |' in text


def test_of_more_settings_than_a_table_holds_each_is_compared_with_the_best_alone(tmp_path):
  states = support_sweep.make_states(
      tmp_path, [({'a': i}, 0.5 - i / 100, 0.5) for i in range(11)])
  told = sweep_results.conclude(states[:10], tmp_path)
  assert len(told.pairs) == 45 and pairwise.describe_unpaired(told) == ''
  told = support_sweep.conclude(states, tmp_path)
  assert told['pairs'] == [] and sum('against_best' in e for e in told['entries']) == 10
  assert ('11 settings are too many for a table of any two; each is compared with the best alone.'
          in (tmp_path / 'sweep.md').read_text())
