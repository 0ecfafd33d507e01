"""What controls and probes found stands beside the result that it is of, and beside no other."""

import dataclasses

import pytest

from rim_jax import reader
from rim_jax.report import control_results
from rim_jax.results import stats, values
from rim_jax.runtime import run_folder
from tests import support_report

RESULT = values.EvalResult(
    step=1000, final_acc=0.375, block_acc=[0.25, 0.375], data_fingerprint='d', rule_version=2)
WORDS = {version: {'rule_version': None, 'answer_rule': words} for version, words in {
    1: 'answers are compared as numbers', 2: 'a whole gold answer must be met exactly'}.items()}


def read(tree) -> values.ControlsResult:
  return reader.from_tree(values.ControlsResult, {
      'num_blocks': 3, 'controls': {}, 'sweeps': {}, 'pairing': {
          'num_pairs': 0, 'num_equal_answers': 0, 'num_without_partner': 0}, **tree})


@pytest.mark.parametrize('changes, set_name, told', [
    ({}, 'test', ''), ({'data_fingerprint': 'd'}, 'test', ''),
    ({'step': 900}, 'test', 'of step 900 on test, the result of step 1000 on test'),
    ({'set': 'test-k2'}, 'test', 'of step 1000 on test-k2, the result of step 1000 on test'),
    ({}, 'gsm_hard', 'of step 1000 on test, the result of step 1000 on gsm_hard'),
    (WORDS[2], 'test', ''),  # as the first files of version 2 tell it
    (WORDS[1], 'test', 'judged by version 1 of the rule, the result by version 2'),
    ({'rule_version': 4}, 'test', 'judged by version 4 of the rule, the result by version 2'),
    ({'data_fingerprint': 'e'}, 'test', 'of other data, the result of step 1000 on test')])
def test_another_checkpoint_set_or_data_is_not_the_result_s(tmp_path, changes, set_name, told):
  folder = run_folder.RunFolder(tmp_path)
  assert control_results.load_asked(folder, set_name, RESULT) == (None, '')
  found, _ = support_report.write_findings(tmp_path, **{'rule_version': 2} | changes)
  asked, why = control_results.load_asked(folder, set_name, RESULT)
  assert asked == (None if told else read(found))
  assert (told in why and why.startswith('controls.json ')) if told else why == ''
  assert control_results.get_selected(asked, RESULT) == (None if told else 0.5)


@pytest.mark.parametrize('method, trained, kept', [
    ('lotus_stage', None, False), ('lotus_stage', False, True), ('rim_stage2', None, True)])
def test_without_blocks_what_may_be_a_written_chain_stands_nowhere(tmp_path, method, trained, kept):
  """Earlier versions let a method that writes a chain write it there."""
  entry = {'n': 8, 'block_acc': [0.5]} | ({} if trained is None else {'chain_trained': trained})
  support_report.write_findings(tmp_path, rule_version=2, method=method, controls={
      'no_blocks': entry, 'as_trained': {'n': 8}})
  asked, _ = control_results.load_asked(run_folder.RunFolder(tmp_path), 'test', RESULT)
  assert ('no_blocks' in asked.controls) == kept and 'as_trained' in asked.controls


def test_a_damaged_file_and_several_checkpoints_are_told_and_take_nothing_along(tmp_path):
  support_report.write_findings(tmp_path)
  folder = run_folder.RunFolder(tmp_path)
  asked, why = control_results.load_asked(
      folder, 'test-splits', dataclasses.replace(RESULT, checkpoint='splits'))
  assert asked is None and why == (
      'the result is of several checkpoints, and controls are of one')
  (tmp_path / 'controls.json').write_text('{')
  asked, why = control_results.load_asked(folder, 'test', RESULT)
  assert asked is None and 'controls.json: is damaged' in why
  assert why.endswith('; ask it again with --mode=controls')


@pytest.mark.parametrize('set_name', ['valid', 'valid-n7', 'gsm_hard'])
def test_probes_are_reported_on_test_and_stand_beside_no_other_set(set_name):
  found = {'step': 7, 'probes': support_report.make_probes()}
  other = read(found | {'set': set_name})
  assert control_results.get_selected(other, RESULT) is None
  assert control_results.summarize_probes([other]) is None
  for name in ('test', 'test-k2', 'test-n9'):
    asked = read(found | {'set': name})
    assert control_results.get_selected(asked, RESULT) == 0.5
    assert control_results.get_selected(
        asked, dataclasses.replace(RESULT, block_acc=[0.375])) is None


@pytest.mark.parametrize('probes', [
    {}, {'none': 'one layer'}, {'right': {
        'by_block': [], 'pooled': {}, 'selection': {'none': 'no block has a probe'}}}])
def test_what_chose_no_block_selected_nothing(probes):
  assert control_results.get_selected(read({'set': 'test', 'probes': probes}), RESULT) is None


def test_means_are_over_the_runs_that_have_a_number_place_by_place():
  assert control_results.average([0.25, None, 0.75]) == stats.Summary(0.5, 0.25, 2)
  assert control_results.average([None, None]) is None
  table = control_results.average([[[0.5, None]], [[0.75, None], [1.0]]])
  assert [[x and (x.mean, x.count) for x in row] for row in table] == [
      [(0.625, 2), None], [(1.0, 1)]]


def make_asked(own, donor, run, **probes):
  return read({'set': 'test', 'probes': support_report.make_probes() | probes, 'controls': {
      'swapped': {'what': 'w', 'expected': 'e', 'final_acc': own, 'final_donor_acc': donor},
      'averaged': {'what': 'm', 'expected': 'x', 'none': f'no two, {run}'},
      'direct': {'what': 'd', 'expected': 'c', 'given': True, 'run': run, 'final_acc': own / 2,
                 'differs': ['seed', run]},
      'pause': {'what': 'p', 'expected': 'c', 'given': False}}})


def test_controls_over_seeds_by_hand():
  """A matched run beside two seeds is one; one that no run was given is left out."""
  told = reader.to_tree(control_results.summarize_controls([
      make_asked(0.25, 0.5, 'a'), make_asked(0.75, 0.75, 'b'), make_asked(0.75, 0.75, 'b'),
      read({'set': 'test'})]))
  assert list(told) == ['swapped', 'averaged', 'direct']
  assert told['swapped'] == {
      'what': 'w', 'expected': 'e',
      'final_acc': {'mean': pytest.approx(1.75 / 3), 'stderr': pytest.approx(1 / 6), 'count': 3},
      'final_donor_acc': {'mean': pytest.approx(2 / 3), 'stderr': pytest.approx(1 / 12),
                          'count': 3}}
  assert told['averaged'] == {'what': 'm', 'expected': 'x', 'none': ['no two, a', 'no two, b']}
  assert told['direct'] == {'what': 'd', 'expected': 'c', 'differs': ['a', 'b', 'seed'],
                            'final_acc': {'mean': 0.25, 'stderr': 0.125, 'count': 2}}


def test_probes_over_seeds_by_hand():
  second = support_report.make_probes()['right']
  second['by_block'][0]['auroc'] = 0.625  # the first has 0.875
  second['selection'] = {'none': 'no block has a probe'}
  told = reader.to_tree(control_results.summarize_probes([
      make_asked(0.5, 0.5, 'a'),
      make_asked(0.5, 0.5, 'a', right=second, steps={'none': 'no classes'})]))
  assert told['count'] == 2
  assert told['auroc'] == [{'mean': 0.75, 'stderr': 0.125, 'count': 2},
                           {'mean': 0.625, 'stderr': 0.0, 'count': 2}, None]
  assert told['pooled_auroc'] == {'mean': 0.875, 'stderr': 0.0, 'count': 2}
  assert told['recoverable_acc'] == {'mean': 0.6875, 'stderr': None, 'count': 1}
  assert told['recoverable_final_acc'] is None
  assert [[x and x['mean'] for x in row] for row in told['steps']['acc']] == [
      [0.5, None], [0.25, None], [0.125, None]]
  assert told['steps']['majority'] == [{'mean': 0.0625, 'stderr': None, 'count': 1}, None]
