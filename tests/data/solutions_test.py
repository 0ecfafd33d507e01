"""Steps and answers in the text of a solution."""

import time

import pytest

from rim_jax.data import solutions


@pytest.mark.parametrize('text, boxed', [
    (r'\boxed{1} and \boxed{\frac{1}{2}}.', r'\frac{1}{2}'), (r'\boxed{\{1\}}', r'\{1\}'),
    (r'\boxed{1', None), ('1', None), (r'\fbox{3}', '3')])
def test_boxed_answers(text, boxed):
  assert solutions.find_boxed(text) == boxed


@pytest.mark.parametrize('part', [
    'A. ', *(pytest.param(case, marks=pytest.mark.slow) for case in ('aa. ', '1. '))])
def test_the_largest_row_of_sentences_takes_its_length_in_time(part):
  """A copy of the text at each stop is fast in rows of a test's size, and a square."""
  def spend(size):
    begin = time.process_time()
    solutions.split_sentences(part * (size // len(part)))
    return time.process_time() - begin
  few, many = (min(spend(size) for _ in range(2)) for size in (90_000, 900_000))
  assert many < 3 * 10 * few
