"""Means, errors and tests are SciPy's or a hand's; files of different data are not compared."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rim_jax.errors import UserError
from rim_jax.results import judge, stats
from rim_jax.runtime import run_folder


def test_a_mean_and_its_standard_error():
  assert stats.summarize([0.5]) == stats.Summary(0.5, None, 1)
  by_hand = stats.summarize([1, 2, 3, 6])  # deviations -2, -1, 0, 3: variance 14 / 3
  assert (by_hand.mean, by_hand.count) == (3.0, 4)
  assert by_hand.stderr == pytest.approx(math.sqrt(14 / 3 / 4))
  values = [0.731, 0.702, 0.688]
  assert stats.summarize(values).stderr == pytest.approx(scipy_stats.sem(values))
  assert stats.summarize([0.25] * 3) == stats.Summary(0.25, 0.0, 3)
  with pytest.raises(ValueError, match='at least one'):
    stats.summarize([])


def test_means_are_apart_as_welch_s_test_says_whatever_number_is_compared():
  a, b = [0.90, 0.95, 0.91], [0.80, 0.86, 0.77]
  p_value = scipy_stats.ttest_ind(a, b, equal_var=False).pvalue
  high, low = map(stats.summarize, (a, b))
  most = int(0.05 / p_value)
  assert most >= 1 and stats.is_apart(high, low, most) and not stats.is_apart(high, low, most + 1)
  assert not stats.is_apart(low, high)
  assert not stats.is_apart(high, stats.summarize([0.1]))  # one seed tells nothing of others
  for same in (0.7, 1.0):  # the standard error of three times 0.7 is 8e-17
    assert not stats.is_apart(stats.summarize([same] * 3), stats.summarize([0.1] * 3))
    assert not stats.is_apart(stats.summarize([same] * 3), stats.summarize([0.1, 0.2, 0.3]))


@pytest.mark.parametrize('num_settings', [2, pytest.param(7, marks=pytest.mark.slow)])
def test_of_equal_settings_the_best_is_seldom_called_apart_from_another(num_settings):
  rng = np.random.default_rng(0)
  wrong = 0
  for _ in range(400):
    found = sorted((stats.summarize(rng.normal(size=3)) for _ in range(num_settings)),
                   key=lambda s: s.mean)
    wrong += any(stats.is_apart(found[-1], s, num_settings - 1) for s in found[:-1])
  assert wrong <= 0.08 * 400


def make_pair(both, only_a, only_b, neither):
  pairs = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
  return tuple(zip(*pairs))


@pytest.mark.parametrize('counts, p_value', [
    # Both tails of fair coins by hand: 2 (1 + 10) / 2^10; 2 / 2^5; all of it; nothing to toss.
    ((3, 9, 1, 4), 22 / 1024), ((0, 0, 5, 0), 2 / 32), ((7, 2, 2, 1), 1.0), ((7, 0, 0, 3), 1.0)])
def test_mcnemar_by_hand(counts, p_value):
  found = stats.compare(*make_pair(*counts))
  assert found.p_value == pytest.approx(p_value)
  assert (found.both, found.only_a, found.only_b, found.neither) == counts
  assert found.count == sum(counts)
  assert found.difference == pytest.approx((counts[1] - counts[2]) / sum(counts))
  back = stats.compare(*reversed(make_pair(*counts)))
  assert back.p_value == found.p_value and back.difference == -found.difference
  assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


@pytest.mark.parametrize('only_a, only_b', [(40, 25), (3, 11), (0, 1), (25, 40), (8, 8), (7, 8)])
def test_mcnemar_is_a_sum_over_fair_coins(only_a, only_b):
  """Exactly, in whole numbers: every split of the tosses that is no likelier than the one seen."""
  tosses = only_a + only_b
  seen = math.comb(tosses, only_a)
  far = sum(ways for k in range(tosses + 1) if (ways := math.comb(tosses, k)) <= seen)
  found = stats.compare(*make_pair(100, only_a, only_b, 50))
  assert found.p_value == pytest.approx(far / 2**tosses, rel=1e-9)


def test_an_interval_by_hand():
  found = stats.compare(*make_pair(5, 4, 1, 2))  # n = 12
  spread = math.sqrt(6 - 9 / 14) / 14
  assert found.interval == pytest.approx((3 / 14 - 1.959964 * spread, 3 / 14 + 1.959964 * spread))
  narrow = stats.compare(*make_pair(5, 4, 1, 2), confidence=0.5)
  assert narrow.interval[1] - narrow.interval[0] == pytest.approx(2 * 0.6744898 * spread)
  low, high = stats.compare(*make_pair(9, 0, 0, 1)).interval  # equal answers are no certainty
  assert low == -high < 0


def test_an_interval_covers_the_truth_as_often_as_it_says():
  """All outcomes of 12 questions, weighted: a alone is right with 0.3, b alone with 0.1."""
  chances, n, covered = (0.4, 0.3, 0.1, 0.2), 12, 0.0
  for counts in itertools.product(range(n + 1), repeat=3):
    if sum(counts) <= n:
      counts = (*counts, n - sum(counts))
      low, high = stats.compare(*make_pair(*counts)).interval
      if low <= 0.3 - 0.1 <= high:
        covered += scipy_stats.multinomial.pmf(counts, n, chances)
  assert 0.93 < covered < 0.985


@pytest.mark.parametrize('a, b', [([], []), ([1], [1, 0])])
def test_what_cannot_be_compared(a, b):
  with pytest.raises(ValueError):
    stats.compare(a, b)


@pytest.mark.parametrize('values, by_hand', [
    # The least times 4, the next times 3, ...; never below one before it, never above 1.
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]), ([0.9, 0.6], [1.0, 1.0]),
    ([0.02], [0.02]), ([], [])])
def test_holm_by_hand(values, by_hand):
  assert stats.adjust_holm(values) == pytest.approx(by_hand)


def test_holm_errs_together_as_often_as_its_level():
  """Of five tests where nothing differs, independent: any is found in 1 - (1 - level / 5)^5."""
  draws = np.random.default_rng(0).random((4000, 5)).tolist()
  found = np.mean([min(stats.adjust_holm(values)) <= 0.2 for values in draws])
  assert found == pytest.approx(1 - 0.96**5, abs=0.02)


# Files.


def write(folder, correct, questions=None, fingerprint=None, name='test'):
  (folder / 'predictions').mkdir(parents=True)
  path = folder / 'predictions' / f'{name}.jsonl'
  questions = questions or [f'{i}?\u2028' for i in range(len(correct))]
  path.write_text(''.join(json.dumps(
      {'origin': f'made:{i}', 'question': q, 'answer': '1', 'correct': bool(c)},
      ensure_ascii=False) + '\n' for i, (q, c) in enumerate(zip(questions, correct))))
  if fingerprint:
    (folder / 'results.json').write_text(json.dumps({name: {
        'final_acc': sum(correct) / len(correct), 'block_acc': [], 'data_fingerprint': fingerprint,
        'rule_version': judge.RULE_VERSION}}))
  return path


def test_files_compare_as_their_contents(tmp_path):
  a, b = [1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0]
  paths = [write(tmp_path / name, correct, fingerprint='f1')
           for name, correct in (('a', a), ('b', b))]
  assert run_folder.compare_files(*paths) == stats.compare(a, b)
  (tmp_path / 'b' / 'results.json').unlink()  # then the questions alone tell
  assert run_folder.compare_files(*paths) == stats.compare(a, b)


def test_files_of_different_data_are_refused_in_one_line(tmp_path):
  a = write(tmp_path / 'a', [1, 0, 1], fingerprint='f1')
  cases = {
      'another': (write(tmp_path / 'b', [1, 0, 1], fingerprint='f2'),
                  f'of another data set than {a} (fingerprints f2 and f1)'),
      'others': (write(tmp_path / 'c', [1, 0, 1], ['0?\u2028', 'x?', 'y?'], 'f1'),
                 f'other questions than {a}: 3 and 3, of which 1 are the same, and line 2'),
      'fewer': (write(tmp_path / 'd', [1, 0]), '2 and 3, of which 2 are the same, and line 3'),
      'missing': (tmp_path / 'e' / 'predictions' / 'test.jsonl',
                  'no predictions (No such file or directory)'),
  }
  for path, what in cases.values():
    with pytest.raises(UserError) as error:
      run_folder.compare_files(a, path)
    assert str(error.value).startswith(f'{path}: ') and what in str(error.value)
    assert '; evaluate ' in str(error.value) and len(str(error.value).split('\n')) == 1
  for i, content in enumerate((' ', 'nonsense', '[]', '{"question": "q"}')):
    path = a.with_name(f'{i}.jsonl')
    path.write_text(a.read_text() + content + '\n')
    with pytest.raises(UserError, match=f'^{path}:4: not a prediction .*; ') as error:
      run_folder.compare_files(a, path)
