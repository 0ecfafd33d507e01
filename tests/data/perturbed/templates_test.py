"""A template's every operand is one thing and no other; whatever leaves a doubt is refused."""

from fractions import Fraction
import time

import pytest

from rim_jax.data.perturbed import templates
from rim_jax.data.perturbed.numerals import Refused

RATIO = ('A long wire is cut into three smaller pieces in the ratio of 7:3:2. If the shortest '
         'piece is 16 cm, how long was the entire wire before it was cut?', ['7+3+2=12', '8*12=96'],
         '96')


def make(question, steps, answer):
  return templates.make_template(question, tuple(steps), answer)


def get_varying(template):
  return [n.text for n, varies in zip(template.numerals, template.varies) if varies]


def test_operands_are_traced():
  template = make('Ann buys 15 pens at $6 each with a discount of 20%. She does so daily. How much '
                  'is it in a week?', ['15*6=90', '90*.20=18', '90-18=72', '72*7=504'], '504')
  sources = [[(o.source, o.index, o.scale) for o in step] for step in template.operands]
  one = Fraction(1)
  assert sources == [
      [('number', 0, one), ('number', 1, one)], [('result', 0, one), ('number', 2, one / 100)],
      [('result', 0, one), ('result', 1, one)], [('result', 2, one), ('constant', -1, one)]]
  assert get_varying(template) == ['15', '$6', '20']


@pytest.mark.parametrize('question, steps, answer, reason', [
    (*RATIO, 'a ratio or a range'),
    # The same problem in words: the 8 is 16/2, and is written nowhere.
    ('A wire is cut into pieces of 7, 3 and 2 parts. If the shortest is 16 cm, how long was it?',
     ['7+3+2=12', '8*12=96'], '96', 'an operand from nowhere'),
    ('Tom has 5 cats and 9 dogs. How many?', ['5+9=15'], '15', 'does not compute'),
    ('Tom has 5 cats and 9 dogs. How many?', ['5/0=9'], '9', 'does not compute'),
    ('Tom has 5 cats and 9 dogs. How many?', ['14=14'], '14', 'without its working'),
    ('Tom has 5 cats and 9 dogs. How many?', ['5+9=14', '5+9'], '14', 'no plain equation'),
    ('Tom has 5 cats and 9 dogs. How many?', ['5**9=14'], '14', 'no plain equation'),
    ('Tom has 5 cats and 9 dogs. How many?', ['5+9=14', '14-5=9'], '14', 'not the answer'),
    ('Tom has 5 cats and 9 dogs. How many?', [], '14', 'no steps'),
    ('Tom has 5 cats, 9 dogs and 8 fish. How many cats and dogs?', ['5+9=14'], '14',
     'that no step uses'),
    ('Tom has 5 cats and twice as many dogs, and 9 fish.', ['5+9=14'], '14', 'that no step uses'),
    ('Tom has 5 cats and 9 dogs, 14 in all, and sells 8.', ['5+9=14', '14-8=6'], '6',
     'a result that stands in the question'),
    ('Of 23 pets 8 are cats, 15 dogs, and 3 more come.', ['8+15+3=26'], '26',
     'follows from others'),
    ('Tom runs 5 km and 9 km. How many in 30 days?', ['5+9=14', '14*30=420', '420*13=5460'], '5460',
     'an operand from nowhere'),
    ('Tom has 40 pens, 5 less than Ann, who lost 9.', ['40+5=45', '45+60=105', '105-9=96'], '96',
     'a constant used otherwise'),
    ('Tom has 40 pens and 9 boxes. How many in a century of 5?', ['40+9=49', '49*5=245'], '245',
     'a time of day or a date'),
    ('Tom has 5 cats and 9 dogs, and 5/0 fish.', ['5+9=14'], '14', 'a bad fraction'),
    ('Ann had 30 pens, lost 12, found 8 and had 26 - then 4 came.', [
        '30-12=18', '18+8=26', '26+4=30'], '30', 'stands in the question'),
    ('Ann had 30 pens, gave 11 away, and 8 of hers broke.', ['30-11=19', '19-8=11', '30-19=11'],
     '11', 'two equal results|stands in the question'),
    ('Ann had 17 pens and gave 5 away, then 6 more.', ['17-5=12', '17-6=11', '12-6=6'], '6',
     'stands in the question|no later step'),
    ('Ann had 17 pens and gave 5 away, then 4 more.', ['17-5=12', '17-4=13', '13-5=8'], '8',
     'a result that no later step uses'),
    ('Ann had 5 pens and gave 9 away, then 20 more came.', ['5-9=-4', '20-4=16'], '16',
     'no plain equation'),
    ('Ann had two pens and one box.', ['2+1=3'], '3', 'no number that can change'),
    ('Tom eats 7 buns a day. How many in 9 weeks?', ['7*9=63', '63*7=441'], '441',
     'a small number that is a factor more often'),
    # Of the 5 trees 3 were palms and 2 were oaks, as 'one more' tells: those are in no word.
    ('Of 91 trees 5 fell, one more palm than oaks, and Ann planted twice the oaks and thrice the '
     'palms that fell.', ['2*2=4', '3*3=9', '4+9=13', '91-5=86', '86+13=99'], '99',
     'a small number that is a factor more often'),
    ('Of 91 trees 5 fell, one more palm than oaks, and Ann planted twice the oaks.',
     ['91-5=86', '86*2=172'], '172', 'that no step uses'),
    ('A 4-box pack of 4 pens each is for 4 boys and 90 more.', ['4*4=16', '16*4=64', '64*4=256',
     '256+90=346'], '346', 'a small number that is a factor more often'),
    ('Tom catches 2/5 times fewer than 40 fish.', ['2/5*40=16', '40-16=24'], '24',
     'that may mean two things')], ids=range(28))
def test_refused(question, steps, answer, reason):
  with pytest.raises(Refused, match=reason):
    make(question, steps, answer)


@pytest.mark.parametrize('question, steps, answer, varying', [
    # Equal numbers, and one with two roles: which of them a step means is not known.
    ('Tom buys a 4-dollar bun and 3 rolls for 4 dollars each, and a 15-dollar cake.',
     ['4*3=12', '12+4=16', '16+15=31'], '31', ['3', '15']),
    ('Tom eats 8 buns a day for 3 days, and 20 people eat 8 each.',
     ['8*3=24', '20*8=160', '24+160=184'], '184', ['3', '20']),
    # A week has 7 days, whether a step's 7 is that or not.
    ('A trip of 7 days costs $90 a day.', ['7*90=630'], '630', ['$90']),
    # Legs, and what a unit has of another, are the world's.
    ('Each of 30 dogs has 4 legs. How many legs?', ['30*4=120'], '120', ['30']),
    ('There are 8 pints in a gallon. How many are 25 gallons?', ['25*8=200'], '200', ['25']),
    # Friends may be named: then their number stands twice.
    ('Each of his 3 friends earns $90.', ['90*3=270'], '270', ['$90']),
    ('Ann pays for 6 cups of $4 with a $50 bill.', ['6*4=24', '50-24=26'], '26', ['6', '$4']),
    ('There were three boxes of 15 pens.', ['3*15=45'], '45', ['15']),
    ('Tom filled 15, 30 and 48 jars on 3 mornings.', ['15+30+48=93', '93/3=31'], '31',
     ['15', '30', '48']),
    # Three times as many: both together are four parts, which the 4 may be.
    ('Ann has 3 times as many pens as Tom, who got 60 shared by 4.',
     ['60/4=15', '15*3=45'], '45', ['3', '60'])], ids=range(10))
def test_a_number_with_a_second_role_does_not_change(question, steps, answer, varying):
  assert get_varying(make(question, steps, answer)) == varying


@pytest.mark.parametrize('question, steps, answer', [
    ('1,' * 2_000, ('1+1=2',), '2'), ('1,' * 20_000, ('1+1=2',), '2'),
    ('a third ' * 2_000, ('1+1=2',), '2'), ('12 apples ' * 200, ('1+1=2',), '2'),
    ('Tom has 1 and 7.', ('+'.join('1' * 2_000) + '=2000',), '2000'),
    ('Tom has 1 and 7.', ('(' * 900 + '1' + ')' * 900 + '+1=2',), '2'),
    ('Tom has 1 and 7.', tuple(f'{i}+1={i + 1}' for i in range(1, 3_000)), '3000'),
    ('Tom has 1 and ' + '7' * 5_000, ('1+7=8',), '8'),
    ('Tom has 1 and 7.', ('1+' + '7' * 5_000 + '=8',), '8'),
    ('Tom has 1 and 7.', ('1+7=8',), '8' * 5_000)])
def test_a_hostile_problem_is_refused_at_once(question, steps, answer):
  began = time.process_time()
  with pytest.raises(Refused):
    templates.make_template(question, steps, answer)
  assert time.process_time() - began < 0.5
