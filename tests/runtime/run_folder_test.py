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


def strip(found):
  """A value without what this version does not know, and the digest of its predictions."""
  none = ('predictions_sha256', 'card_sha256') if isinstance(found, values.EvalResult) else ()
  return dataclasses.replace(found, more={}, **dict.fromkeys(none))


def write_metrics(folder, *lines):
  folder.metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def folder(tmp_path):
  return run_folder.RunFolder(tmp_path)


def test_a_result_stands_behind_those_of_other_sets(folder):
  assert folder.load_results() == {} and folder.load_controls() is None
  folder.results.write_text(json.dumps({
      'test': {'final_acc': 0.0, 'block_acc': [0.0]},
      'newer': {'final_acc': 1.0, 'block_acc': [1.0], 'beauty': 3,
                'rule_version': judge.RULE_VERSION}}))
  folder.write_result('test', RESULT, PREDICTIONS)
  assert strip(folder.load_results()['test']) == RESULT
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
  assert folder.load_valid() == {4: (0.2, 1)}
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
  new.write_result('test', dataclasses.replace(RESULT, n=4, final_acc=0.75), asked)
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
  assert folder.load_valid() == {4: (0.2, 2), 8: (0.3, 1)}


# ---- What was changed since it was written, and what contradicts itself ----


@pytest.fixture
def written(folder):
  write_card(folder)
  folder.write_result('test', RESULT, PREDICTIONS)
  folder.write_result('valid', RESULT, PREDICTIONS)
  folder.write_controls(values.ControlsResult(num_blocks=1, step=8, pairing=values.Pairing(
      num_pairs=1, num_equal_answers=0, num_without_partner=0), controls={}, sweeps={}))
  folder.add_metrics(8, {values.VALID_ACC: 0.25, 'train/loss': 1.0})
  return folder


def write_card(folder, **changes):
  card_lib.write_card(folder.path, {
      'format': card_lib.CARD_VERSION, 'config': dataclasses.asdict(config_lib.Config(**changes)),
      'data': {}, 'tokenizer': 't', 'base': None})


def test_results_are_of_the_run_that_the_card_tells(written):
  write_card(written, seed=3)
  with pytest.raises(UserError, match='test: of a run with another config.json'):
    written.load_results()


def load_all(folder):
  return ({key: value for key, value in folder.load_card().items() if not key.startswith('s')},
          {name: strip(result) for name, result in folder.load_results().items()},
          folder.load_predictions('test'), strip(folder.load_controls()), folder.load_valid())


@pytest.mark.parametrize('name', ['config.json', 'results.json', 'controls.json',
                                  'predictions/test.jsonl', 'metrics.jsonl'])
def test_every_flipped_bit_is_seen(written, name):
  """But for one in the name of the seal itself: the file is then one without a digest."""
  path, expected = written / name, load_all(written)
  assert not written.list_unsealed() and not written.list_damaged()
  content = path.read_bytes()
  for at in range(0, len(content), max(len(content) // 60, 1)):
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1:])
    try:
      found = load_all(written)
    except UserError as e:
      assert str(path) in str(e) and '\n' not in str(e)
    else:
      assert found == expected or (written.list_damaged() and found[:4] == expected[:4])


@pytest.mark.parametrize('name, old, new', [
    ('results.json', '"test"', '"other"'),  # under another name it is another's
    ('results.json', '"step": 8', '"step": 9'), ('controls.json', '"step": 8', '"step": 9'),
    ('config.json', '"seed": 0', '"seed": 1'), ('predictions/test.jsonl', '"q?"', '"p?"')])
def test_what_was_changed_by_hand_is_refused(written, name, old, new):
  text = (written / name).read_text()
  assert old in text
  (written / name).write_text(text.replace(old, new, 1))
  with pytest.raises(UserError, match='another sha256|not those that results.json is of'):
    load_all(written)


def test_a_damaged_line_of_metrics_is_named_and_left_out(written):
  written.add_metrics(16, {values.VALID_ACC: 0.5})
  content = written.metrics.read_bytes()
  written.metrics.write_bytes(content.replace(b'0.25', b'0.75') + b'null\n\xff\n{"step": ')
  assert written.load_valid() == {16: (0.5, 1)}
  assert written.list_damaged() == [
      *(f'{written.metrics}:{number}: is damaged, was cut off or is of another run, and is left out'
        for number in (1, 3, 4)), f'{written.metrics}: so are 1 more of its lines']
  written.add_metrics(24, {values.VALID_ACC: 0.75})  # and the file is whole from here on
  assert not written.list_damaged() and written.load_valid() == {16: (0.5, 1), 24: (0.75, 1)}


def test_metrics_of_another_run_or_of_none_are_named(written):
  own = written.metrics.read_text()
  for owner in ('another', None):  # a run of this version; of an earlier one, without digests
    written.metrics.write_text(
        run_folder.format_line(8, 0, {values.VALID_ACC: 0.75}, owner) + '\n' if owner else
        json.dumps({'step': 8, values.VALID_ACC: 0.75}) + '\n')
    assert not written.load_valid() and written.list_damaged() == [
        f'{written.metrics}: no line of it is of this run, or all are damaged; it is left out']
  written.metrics.unlink()
  assert written.list_damaged() == [
      f'{written.metrics}: is missing, so that curves and accuracies on valid are not known']
  written.metrics.write_text(own + run_folder.format_line(16, 0, {values.VALID_ACC: 0.5}) + '\n')
  # The first version sealed lines alone.
  assert written.load_valid() == {8: (0.25, 1), 16: (0.5, 1)}


def test_older_files_have_no_digest_and_are_said_to_be_unsealed(written):
  for path in (written.card, written.results, written.controls, written.metrics):
    lines = path.read_text().split('\n')
    tree = [json.loads(line) for line in lines if line] if path == written.metrics else [
        json.loads('\n'.join(lines))]
    for node in tree:
      for part in (node, *node.values()):
        if isinstance(part, dict):
          for key in ('sha256', 'predictions_sha256', 'card_sha256'):
            part.pop(key, None)
    path.write_text('\n'.join(map(json.dumps, tree)) + '\n')
  assert load_all(written)[1]['test'].final_acc == 0.5
  assert [line.partition(':')[0] for line in written.list_unsealed()] == [
      str(p) for p in (written.card, written.results, written.controls)]


@pytest.mark.parametrize('changes, told', [
    ({'final_acc': 1.7}, 'final_acc is 1.7, which is no share'),
    ({'final_acc': 0.0, 'block_acc': [0.0]}, '50.00% of them are right, and results.json says 0'),
    ({'final_acc': 0.25}, '50.00% of them are right, and results.json says 25'),
    ({'pass_at': {'1': -0.5}}, 'pass_at is -0.5, which is no share'),
    ({'block_acc': [2.0, 0.5]}, 'block_acc is 2.0'), ({'n': -1}, 'n is -1, which is no count'),
    ({'n': 3}, 'has 2 predictions, and results.json is of 3'), ({'step': -8}, 'step is -8')])
def test_files_that_contradict_each_other_are_refused(written, changes, told):
  """Also without a digest, as older files are."""
  written.results.write_text(json.dumps({'test': {
      'n': 2, 'final_acc': 0.5, 'block_acc': [0.0, 0.5], 'rule_version': judge.RULE_VERSION}
                                         | changes}))
  for load in (written.load_results, lambda: written.load_predictions('test')):
    with pytest.raises(UserError) as e:
      load()
    assert told in str(e.value) and '\n' not in str(e.value) and '--mode=eval' in str(e.value)
