"""A run's folder: what is written is read back, and what is missing or damaged is told."""

import dataclasses
import json

import pytest

from rim_jax import config as config_lib
from rim_jax.errors import UserError
from rim_jax.results import judge, values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import run_folder

RESULT = values.EvalResult(n=2, final_acc=0.5, block_acc=[0.0, 0.5], step=8,
                           rule_version=judge.RULE_VERSION)
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
      'newer': {'final_acc': 1.0, 'block_acc': [1.0], 'beauty': 3, 'rule_version': 2}}))
  folder.write_result('test', RESULT, PREDICTIONS)
  assert folder.load_results()['test'] == RESULT
  assert list(json.loads(folder.results.read_text())) == ['newer', 'test']
  assert json.loads(folder.results.read_text())['newer']['beauty'] == 3
  assert folder.load_predictions('test') == PREDICTIONS
  folder.write_result('chosen', RESULT, None)
  assert not folder.get_predictions('chosen').exists()


@pytest.mark.parametrize('text,told', [
    ('{"test": {}}', 'results.json: is damaged .test: it lacks final_acc'),
    ('{"te', 'results.json: is damaged'), ('[3]', 'list in place of a dict'),
    ('null', 'NoneType in place of a dict'), ('{"test": null}', 'NoneType in place of'),
    ('{"test": {"final_acc": "1", "block_acc": []}}', 'final_acc: str in place of a float')])
def test_damaged_results_are_told(folder, text, told):
  folder.results.write_text(text)
  with pytest.raises(UserError, match=told):
    folder.load_results()


def test_accuracies_on_valid_are_those_told_last(folder):
  write_metrics(folder, {'step': 4, values.VALID_ACC: 0.1}, {'step': 6, 'train/loss': 1.0},
                {'step': 8, values.VALID_ACC: None}, {'step': 4, values.VALID_ACC: 0.2})
  assert folder.load_valid_accs() == {4: 0.2}
  assert folder.count_steps() == 8


# ---- Judged under another version of the rule ----


def write_old(folder, method='rim_stage2', **changes):
  """A run as version 1 judged it: '1,5' was '15', and 3.1405 was 3.141."""
  layout = dataclasses.asdict(config_lib.LayoutConfig(answer_suffix='}'))
  folder.card.write_text(json.dumps({
      'format': card_lib.CARD_VERSION, 'data': {}, 'tokenizer': 't', 'base': None,
      'config': dataclasses.asdict(config_lib.Config(method=method)) | {'layout': layout}}))
  folder.get_predictions('test').parent.mkdir()
  rows = [('15', ['1,5', '1,5'], '1,5}'), (r'\frac{1}{2}', ['1', r'\frac{1'], r'\frac{1}{2}}'),
          ('7', ['7', '7'], '7'), ('8', ['8', '8'], '8}')]
  marks = [[True, True], [False, False], [True, True], [True, True]]
  folder.get_predictions('test').write_text(''.join(json.dumps({
      'question': f'q{i}', 'answer': gold, 'prediction': blocks[-1], 'correct': mark[-1],
      'block_predictions': blocks, 'block_correct': mark, 'text': text, 'majority_correct': mark[1]
  } | changes) + '\n' for i, ((gold, blocks, text), mark) in enumerate(zip(rows, marks))))
  result = {'n': 4, 'num_blocks': 2, 'final_acc': 0.75, 'final_acc_stderr': 0.2, 'step': 8,
            'block_acc': [0.75, 0.75], 'any_block_acc': 0.75, 'majority_acc': 0.75,
            'answer_rule': 'the old one', 'pass_at': {'1': 0.5}, 'steps_acc': {'2': 0.75},
            'ttft_ms': 3.0, 'checkpoint': 'best', 'method': method, 'format': 1}
  folder.results.write_text(json.dumps({'test': result}))


def test_results_of_another_rule_are_judged_again(folder):
  write_old(folder)
  found = folder.load_results()['test']
  # '1,5' is no 15, the fraction is right, '7' was never closed.
  assert found.final_acc == 0.5 and found.block_acc == [0.5, 0.5] and found.num_unparsed == 1
  assert found.rule_version == judge.RULE_VERSION and found.step == 8 and found.ttft_ms == 3.0
  assert found.answer_rule.endswith('judged again, first by version 1')
  assert found.pass_at is None and found.steps_acc is None  # nothing tells them again
  assert [p.correct for p in folder.load_predictions('test')] == [False, True, False, True]
  # A set that is evaluated now leaves what was written of the others.
  folder.write_result('other', RESULT, None)
  assert json.loads(folder.results.read_text())['test']['final_acc'] == 0.75


def test_runs_judged_by_different_rules_are_compared_by_one(tmp_path):
  (tmp_path / 'old').mkdir()
  (tmp_path / 'new').mkdir()
  old, new = (run_folder.RunFolder(tmp_path / name) for name in ('old', 'new'))
  write_old(old)
  asked = [values.Prediction(question=f'q{i}', answer=a, correct=i != 1)
           for i, a in enumerate(('15', r'\frac{1}{2}', '7', '8'))]
  new.write_result('test', RESULT, asked)
  found = run_folder.compare_files(old.get_predictions('test'), new.get_predictions('test'))
  assert (found.both, found.only_a, found.only_b, found.neither) == (1, 1, 2, 0)


@pytest.mark.parametrize('change, why', [
    (lambda folder: folder.get_predictions('test').unlink(), 'no predictions'),
    (lambda folder: folder.results.write_text(folder.results.read_text().replace(
        '"best"', '"splits"')), 'of several checkpoints'),
    (lambda folder: folder.get_predictions('test').write_text(
        folder.get_predictions('test').read_text().replace('"text"', '"txet"')),
     'that kept no decoded text')])
def test_what_cannot_be_judged_again_is_refused(folder, change, why):
  write_old(folder)
  change(folder)
  with pytest.raises(UserError, match=f'{why}.*; evaluate the run with --mode=eval') as e:
    folder.load_results()
  assert '\n' not in str(e.value)


def test_rules_of_valid_are_those_told_last(folder):
  write_metrics(folder, {'step': 4, values.VALID_ACC: 0.1}, {'step': 8, values.VALID_ACC: 0.3})
  folder.add_metrics(4, {values.VALID_ACC: 0.2, values.VALID_RULE: 2})
  assert folder.load_valid_accs() == {4: 0.2, 8: 0.3}
  assert folder.load_valid_rules() == {4: 2, 8: 1}
