"""A number is read for what it is or the question is refused, and written in the form it had."""

from fractions import Fraction

import pytest

from rim_jax.data.perturbed import numerals
from rim_jax.data.perturbed.numerals import Refused


def read(question):
  return [(n.text, n.value, n.kind) for n in numerals.read_numerals(question)]


@pytest.mark.parametrize('question, found', [
    ('He has 5 cats and $1,250.50.', [
        ('5', 5, 'count'), ('$1,250.50', Fraction('1250.5'), 'money')]),
    ('At 20% or 7 percent, 75 cents, 8 dollars.', [
        ('20', 20, 'percent'), ('7', 7, 'percent'), ('75', 75, 'cents'), ('8', 8, 'money')]),
    ('Twenty-five boys ate half of 3/4.', [
        ('Twenty-five', 25, 'count'), ('half', 2, 'fixed'), ('3/4', Fraction(3, 4), 'fixed')]),
    ('Two thirds of 12-inch rods, a quarter of them, one-fifth of 2.5 kg.', [
        ('Two thirds', Fraction(2, 3), 'fixed'), ('12', 12, 'count'),
        ('a quarter', Fraction(1, 4), 'fixed'), ('one-fifth', Fraction(1, 5), 'fixed'),
        ('2.5', Fraction(5, 2), 'count')]),
    ('On the third day twice as many, a dozen.', [('twice', 2, 'fixed'), ('dozen', 12, 'fixed')]),
    ('Two of them, one left, someone, oftentimes.', [('Two', 2, 'fixed'), ('one', 1, 'fixed')]),
], ids=range(6))
def test_numbers_are_read(question, found):
  assert read(question) == found


@pytest.mark.parametrize('question, reason', [
    ('He wakes at 7:30.', 'a time of day or a date'), ('At 7 pm.', 'a time of day or a date'),
    ('Born in 1987.', 'a time of day or a date'), ('On May 5 he ate.', 'a time of day or a date'),
    ('In the ratio of 7:3:2.', 'a ratio or a range'), ('In 3-5 days.', 'a ratio or a range'),
    ('The 5th day.', 'an ordinal number'), ('Two hundred cats.', 'a scale word'),
    ('1 1/2 cups.', 'a scale word or a mixed number'), ('5/3 of it.', 'a bad fraction'),
    ('1/0 of it.', 'a bad fraction'), ('Five thirds of it.', 'a bad fraction'),
    ('-5 apples.', 'negative'), ('5 feet 4 inches.', 'two parts'), ("5'4 tall.", 'two parts'),
    ('A B52 plane.', 'inside a word'), ('2x the cost.', 'inside a word'),
    ('In grade 5.', 'a number that is a name'), ('At least 5.', 'a threshold'),
    ('Two dice.', 'chance')], ids=str)
def test_what_is_not_surely_read_is_refused(question, reason):
  with pytest.raises(Refused, match=reason):
    numerals.read_numerals(question)


@pytest.mark.parametrize('text, value, commas, written', [
    ('5', 12, False, '12'), ('$5', 12, False, '$12'), ('1,500', 2000, True, '2,000'),
    ('$900', 1200, False, '$1200'), ('$2.50', '3', False, '$3.00'), ('$2.50', '12.25', False,
     '$12.25'), ('2.5', '3.5', False, '3.5'), ('twelve', 21, False, 'twenty-one'),
    ('Ten', 8, False, 'Eight'), ('ninety', 40, False, 'forty')])
def test_a_changed_number_keeps_its_form(text, value, commas, written):
  numeral, = numerals.read_numerals(f'x {text} y')
  assert numerals.write_numeral(numeral, Fraction(value), commas) == written


@pytest.mark.parametrize('before, number, fitted', [
    ('works a ', '8', 'works an '), ('an ', '9', 'a '), ('An ', 'twelve', 'A '),
    ('a ', '11', 'an '), ('an ', '110', 'a '), ('a ', '18', 'an '),
    ('an ', '1,800', 'a '), ('a ', '18,000', 'an '),
    ('a ', '$80', 'an '), ('an ', '$70', 'a '), ('a ', 'eighteen', 'an '), ('a total of ', '8',
     'a total of '), ('banana ', '8', 'banana '), ('a ', '180', 'a ')])
def test_articles_agree(before, number, fitted):
  assert numerals.fit_article(before, number) == fitted
