"""A variant is as sensible as its original: same kinds, sizes, wholeness and order of numbers."""

from fractions import Fraction
import re

import pytest

from rim_jax.data.perturbed import executor, templates, variants

TREE = ('Ann has 48 pens and gives 1/4 of them away. She sells 20 of the rest and buys half as '
        'many as she has left.', ('48*1/4=12', '48-12=36', '36-20=16', '16/2=8', '16+8=24'), '24')
WEEK = ('Ann works 5 days a week, 8 hours a day, for $12 an hour. How much is it in 3 weeks?',
        ('5*8=40', '40*12=480', '480*3=1440'), '1440')


def draw(problem, limit=10_000, seed=0):
  template = templates.make_template(*problem)
  drawn = variants.Drawn(template, limit, seed, 1)
  return template, [drawn[i] for i in range(len(drawn))]


def read_numbers(text):
  return [Fraction(n.replace(',', '')) for n in re.findall(r'\d[\d,]*\.?\d*', text)]


@pytest.mark.parametrize('problem', [TREE, WEEK], ids=['tree', 'week'])
def test_variants_compute_are_distinct_and_keep_the_words(problem):
  _, found = draw(problem)
  assert len(found) > 15
  assert len({question for question, _, _ in found}) == len(found)
  mask = lambda text: re.sub(r'[\d.,]+|\ban?\b', '#', text)
  for question, steps, answer in found:
    assert executor.find_fault(question, steps, answer) == ''
    assert mask(question) == mask(problem[0]) and question != problem[0]
    assert [mask(s) for s in steps] == [mask(s) for s in problem[1]]


def test_whole_numbers_stay_whole_and_in_order():
  """A quarter of the pens, half of those left: all are pens, and none is sold that is not there."""
  for question, steps, answer in draw(TREE)[1]:
    pens, sold = (read_numbers(question)[i] for i in (0, -1))
    results = [Fraction(s.partition('=')[2]) for s in steps]
    assert pens % 4 == 0 and 0 < sold < pens * 3 / 4
    assert all(r.denominator == 1 and r > 0 for r in results) and Fraction(answer) == results[-1]
    order = [pens, *results, sold]
    original = [Fraction(48), 12, 36, 16, 8, 24, 20]
    assert sorted(range(7), key=order.__getitem__) == sorted(range(7), key=original.__getitem__)
    assert 24 <= pens <= 96 and 8 <= results[-1] <= 72


def test_days_of_a_week_and_hours_of_a_day_keep_to_them():
  days, hours = set(), set()
  for question, _, _ in draw(WEEK)[1]:
    day, hour, _, _ = read_numbers(question)
    days.add(day)
    hours.add(hour)
  assert max(days) <= 7 and max(hours) <= 24 and len(days) > 1 and len(hours) > 1


def test_money_percent_and_zeros_are_written_as_they_were():
  problem = ('A pen costs $3.50. Ann buys 40 with 20% off. How much does she pay?',
             ('40*3.5=140.00', '140*.20=28.00', '140-28=112.00'), '112')
  _, found = draw(problem)
  assert len(found) > 100
  for question, steps, answer in found:
    price, pens, percent = re.fullmatch(
        r'A pen costs \$(\d+\.\d\d)\. Ann buys (\d+) with (\d+)% off\..*', question).groups()
    assert Fraction(price) % Fraction(1, 4) == 0 and int(percent) % 5 == 0 and int(percent) < 100
    assert all(re.search(r'=\d+\.\d\d$', s) for s in steps) and answer.isdigit()
    assert re.fullmatch(rf'{pens}\*[\d.]+=[\d.]+', steps[0])
    assert re.search(rf'\*\.{int(percent):02d}=', steps[1])
  assert any('0' != q.partition('$')[2][3] for q, _, _ in found)


def test_draws_are_a_function_of_the_seed_and_the_row():
  template = templates.make_template(*TREE)
  texts = {key: [variants.Drawn(template, 5, *key)[i] for i in range(5)]
           for key in ((0, 1), (0, 2), (1, 1))}
  assert texts[0, 1] == draw(TREE, 5)[1]
  assert len({str(t) for t in texts.values()}) == 3
  # The very numbers, so that another stream cannot pass unnoticed: raise the builder's VERSION.
  assert [read_numbers(t[0])[0] for t in texts[0, 1]] == [80, 36, 52, 76, 84]


def test_more_choices_than_a_word_can_count():
  numbers = [1234567 * k + 11 for k in (1, 2, 4, 8, 16, 32)]
  problem = (f'Some towns have {", ".join(map(str, numbers[:-1]))} and {numbers[-1]} people.',
             (f"{'+'.join(map(str, numbers))}={sum(numbers)}",), str(sum(numbers)))
  _, found = draw(problem, 50)
  assert len(found) == 50
  for i, old in enumerate(numbers):
    values = [read_numbers(question)[i] for question, _, _ in found]
    assert old / 2 <= min(values) < old * .8 and old * 1.25 < max(values) <= old * 2


def test_a_result_stays_near_what_it_was():
  problem = ('Ann fills 5 crates of 6 boxes of 7 pens.', ('5*6=30', '30*7=210'), '210')
  answers = [int(answer) for _, _, answer in draw(problem)[1]]
  assert 70 <= min(answers) < 100 and 400 < max(answers) <= 630


def test_few_choices_are_all_found():
  problem = ('A visit costs $40, and two are made.', ('40*2=80',), '80')
  assert {read_numbers(q)[0] for q, _, _ in draw(problem)[1]} == set(range(20, 81)) - {40}
