"""A wrong problem is found from its text alone, by code that what wrote it does not share."""

import ast
import pathlib

import pytest

from rim_jax.data.perturbed import executor

QUESTION = 'Tom buys 3 boxes of 12 pens at $1.50 each, 20% off, and gives half to Ann.'
STEPS = ('3*12=36', '36*1.5=54.00', '54*20/100=10.80', '54-10.8=43.2', '43.2/2=21.6')


def test_a_right_problem_has_no_fault():
  assert executor.find_fault(QUESTION, STEPS, '21.6') == ''
  assert executor.find_fault('Seven weeks, a third.', ['7*7=49', '1/7*(49-7)/(2+1)=2'], '2') == (
      'step 2, 1/7*(49-7)/(2+1)=2: 2 is neither in the question nor a result')


@pytest.mark.parametrize('i, step, fault', [
    (0, '3*12=37', 'its left side is 36'), (0, '3*13=39', '13 is neither'),
    (1, '36*2.5=90', '5/2 is neither'), (2, '54*20/0=5', 'not an equation'),
    (2, '54*20//100=10', 'not an equation'), (0, '36=36', '36 is neither'),
    (3, '54-(10.8=43.2', 'not an equation'), (3, '54-10.8)=43.2', 'not an equation'),
    (3, '54-10.8', 'not an equation'),
    (3, '54-10.8=43.2=43.2', 'not an equation'), (4, '43.2/2=21.60001', 'its left side is'),
    (4, '43.2/2*=21.6', 'not an equation'), (4, '43.2 /2=21.6', 'not an equation')])
def test_a_broken_step_is_found(i, step, fault):
  steps = [*STEPS[:i], step, *STEPS[i + 1:]]
  assert executor.find_fault(QUESTION, steps, '21.6').startswith(f'step {i + 1}, {step}: {fault}')


def test_another_answer_and_no_step_are_found():
  assert executor.find_fault(QUESTION, STEPS, '21') == 'the last step gives 108/5, the answer is 21'
  assert 'gives None' in executor.find_fault(QUESTION, (), '21')


def test_it_imports_nothing_of_the_project():
  tree = ast.parse(pathlib.Path(executor.__file__).read_text())
  names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
  names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
  assert names == {'fractions', 'functools', 're'}
