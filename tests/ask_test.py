"""A trained run answers in Python what it answers on the command line."""

import io
import json

import pytest
from rich import console as rich_console

from rim_jax import ask, main
from rim_jax.errors import UserError
from tests import support_runs


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ask')
  recipe = support_runs.write_recipe(folder)
  assert main.cli(['main', f'--config={recipe}', f'--workdir={folder / "run"}']) == 0
  return folder / 'run'


def test_a_run_answers_in_python_as_on_the_command_line(workdir):
  run = ask.load_run(workdir)
  found = run.answer(['1+2', '3+4+5'])
  assert [a.question for a in found] == ['1+2', '3+4+5']
  for one in found:
    assert one.answer == one.block_answers[-1] and len(one.block_texts) == len(run.blocks) > 1
  out = io.StringIO()
  assert main.cli(['main', f'--workdir={workdir}', '--mode=generate', '--json',
                   f'--question={found[1].question}'], rich_console.Console(file=out)) == 0
  assert ask.Answer(**json.loads(out.getvalue())) == found[1]


def test_a_run_is_compiled_once_for_questions_of_a_size(workdir, caplog):
  run = ask.load_run(workdir)
  run.answer(['1+2'])
  compiled = run._decoder._decode._cache_size()
  run.answer(['4+5'])
  assert run._decoder._decode._cache_size() == compiled == 1


def test_keys_of_eval_may_be_given_and_others_may_not(workdir):
  assert list(ask.load_run(workdir, eval__num_blocks=1).blocks) == [1]
  assert ask.load_run(workdir, eval__checkpoint='last').step > 0
  with pytest.raises(UserError, match='was run with optim.learning_rate='):
    ask.load_run(workdir, optim__learning_rate=0.5)
  with pytest.raises(UserError, match='there is no run here'):
    ask.load_run(workdir / 'none')
  with pytest.raises(UserError, match=r"'who\?' holds 'w'"):
    ask.load_run(workdir).answer(['1+2', 'who?'])


def test_one_text_is_no_list_of_questions(workdir):
  with pytest.raises(UserError, match=r'takes a list of questions, not one text; write answer\('):
    ask.load_run(workdir).answer('7+3+5')


@pytest.mark.parametrize('questions, told', [
    (['1+2', ''], "question 2 is ''"), ([' \n'], r"question 1 is ' \\n'"),
    (['1+2', '3', 5], 'question 3 is 5;'), ([None], 'question 1 is None')])
def test_what_is_no_question_is_refused_by_its_number(workdir, questions, told):
  with pytest.raises(UserError, match=f'^answer: {told}'):
    ask.load_run(workdir).answer(questions)
