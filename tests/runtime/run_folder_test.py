"""A run's folder: what is written is read back, and what is missing or damaged is told."""

import json

import pytest

from rim_jax.errors import UserError
from rim_jax.results import values
from rim_jax.runtime import run_folder

RESULT = values.EvalResult(n=2, final_acc=0.5, block_acc=[0.0, 0.5], step=8)
PREDICTIONS = [values.Prediction(question='q?', answer='1', prediction='1', correct=True),
               values.Prediction(question='r?', answer='2', prediction='3', correct=False)]


def write_metrics(folder, *lines):
  folder.metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def folder(tmp_path):
  return run_folder.RunFolder(tmp_path)


def test_a_result_stands_behind_those_of_other_sets(folder):
  assert folder.load_results() == {} and folder.load_controls() is None
  folder.results.write_text(json.dumps({
      'test': {'final_acc': 0.0, 'block_acc': [0.0]},
      'newer': {'final_acc': 1.0, 'block_acc': [1.0], 'beauty': 3}}))
  folder.write_result('test', RESULT, PREDICTIONS)
  assert folder.load_results()['test'] == RESULT
  assert list(json.loads(folder.results.read_text())) == ['newer', 'test']
  assert json.loads(folder.results.read_text())['newer']['beauty'] == 3
  assert folder.load_predictions('test') == PREDICTIONS
  folder.write_result('chosen', RESULT, None)
  assert not folder.get_predictions('chosen').exists()


@pytest.mark.parametrize('text,told', [
    ('{"test": {}}', 'results is damaged .it lacks final_acc'), ('{"te', 'results is damaged'),
    ('[3]', 'list in place of a dict')])
def test_damaged_results_are_told(folder, text, told):
  folder.results.write_text(text)
  with pytest.raises(UserError, match=told):
    folder.load_results()


def test_accuracies_on_valid_are_those_told_last(folder):
  write_metrics(folder, {'step': 4, values.VALID_ACC: 0.1}, {'step': 6, 'train/loss': 1.0},
                {'step': 8, values.VALID_ACC: None}, {'step': 4, values.VALID_ACC: 0.2})
  assert folder.load_valid_accs() == {4: 0.2}
  assert folder.count_steps() == 8
