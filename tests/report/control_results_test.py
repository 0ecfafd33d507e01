"""What controls and probes found stands beside the result that it is of, and beside no other."""

import json

import pytest

from rim_jax.report import control_results
from tests.report import control_sections_test as findings_test

RESULT = {'step': 1000, 'final_acc': 0.375, 'block_acc': [0.25, 0.375], 'data_fingerprint': 'd'}


@pytest.mark.parametrize('changes, set_name, told', [
    ({}, 'test', ''), ({'data_fingerprint': 'd'}, 'test', ''),
    ({'step': 900}, 'test', 'of step 900 on test, the result of step 1000 on test'),
    ({'set': 'test-k2'}, 'test', 'of step 1000 on test-k2, the result of step 1000 on test'),
    ({}, 'gsm_hard', 'of step 1000 on test, the result of step 1000 on gsm_hard'),
    ({'data_fingerprint': 'e'}, 'test', 'of other data, the result of step 1000 on test')])
def test_another_checkpoint_set_or_data_is_not_the_result_s(tmp_path, changes, set_name, told):
  assert control_results.load_asked(tmp_path, set_name, RESULT) == ({}, '')
  found, _ = findings_test.write_findings(tmp_path, **changes)
  asked, why = control_results.load_asked(tmp_path, set_name, RESULT)
  assert asked == ({} if told else json.loads(json.dumps(found)))
  assert (told in why and why.startswith('controls.json is ')) if told else why == ''
  assert control_results.get_selected(asked, RESULT) == ({} if told else {'selected_acc': 0.5})


def test_a_damaged_file_and_several_checkpoints_are_told_and_take_nothing_along(tmp_path):
  findings_test.write_findings(tmp_path)
  asked, why = control_results.load_asked(
      tmp_path, 'test-splits', RESULT | {'checkpoint': 'splits'})
  assert asked == {} and why == (
      'the result is of several checkpoints, and controls are of one')
  (tmp_path / 'controls.json').write_text('{')
  asked, why = control_results.load_asked(tmp_path, 'test', RESULT)
  assert asked == {} and 'controls.json: this file is damaged' in why
  assert why.endswith('; ask it again with --mode=controls')


@pytest.mark.parametrize('set_name', ['valid', 'valid-n7', 'gsm_hard'])
def test_probes_are_reported_on_test_and_stand_beside_no_other_set(set_name):
  found = {'step': 7, 'probes': findings_test.make_probes()}
  assert control_results.get_selected(found | {'set': set_name}, RESULT) == {}
  assert control_results.summarize([found | {'set': set_name}]) == {}
  for name in ('test', 'test-k2', 'test-n9'):
    asked = found | {'set': name}
    assert control_results.get_selected(asked, RESULT) == {'selected_acc': 0.5}
    assert control_results.get_selected(asked, RESULT | {'block_acc': [0.375]}) == {}


@pytest.mark.parametrize('probes', [
    {}, {'none': 'one layer'}, {'right': {'selection': {'none': 'no block has a probe'}}}])
def test_what_chose_no_block_selected_nothing(probes):
  assert control_results.get_selected({'set': 'test', 'probes': probes}, RESULT) == {}


def test_means_are_over_the_runs_that_have_a_number_place_by_place():
  assert control_results.average([0.25, None, 0.75]) == {'mean': 0.5, 'stderr': 0.25, 'count': 2}
  assert control_results.average([None, None]) is None
  table = control_results.average([[[0.5, None]], [[0.75, None], [1.0]]])
  assert [[x and (x['mean'], x['count']) for x in row] for row in table] == [
      [(0.625, 2), None], [(1.0, 1)]]


def make_asked(own, donor, run, **probes):
  return {'set': 'test', 'probes': findings_test.make_probes() | probes, 'controls': {
      'swapped': {'what': 'w', 'expected': 'e', 'final_acc': own, 'final_donor_acc': donor},
      'averaged': {'what': 'm', 'expected': 'x', 'none': f'no two, {run}'},
      'direct': {'what': 'd', 'expected': 'c', 'given': True, 'run': run, 'final_acc': own / 2,
                 'differs': ['seed', run]},
      'pause': {'what': 'p', 'expected': 'c', 'given': False}}}


def test_controls_over_seeds_by_hand():
  """A matched run beside two seeds is one; one that no run was given is left out."""
  told = control_results.summarize([make_asked(0.25, 0.5, 'a'), make_asked(0.75, 0.75, 'b'),
                                    make_asked(0.75, 0.75, 'b'), {'set': 'test'}])['controls']
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
  second = findings_test.make_probes()['right']
  second['by_block'][0]['auroc'] = 0.625  # the first has 0.875
  second['selection'] = {'none': 'no block has a probe'}
  told = control_results.summarize([
      make_asked(0.5, 0.5, 'a'),
      make_asked(0.5, 0.5, 'a', right=second, steps={'none': 'no classes'})])['probes']
  assert told['count'] == 2
  assert told['auroc'] == [{'mean': 0.75, 'stderr': 0.125, 'count': 2},
                           {'mean': 0.625, 'stderr': 0.0, 'count': 2}, None]
  assert told['pooled_auroc'] == {'mean': 0.875, 'stderr': 0.0, 'count': 2}
  assert told['recoverable_acc'] == {'mean': 0.6875, 'stderr': None, 'count': 1}
  assert told['recoverable_final_acc'] is None
  assert [[x and x['mean'] for x in row] for row in told['steps']['acc']] == [
      [0.5, None], [0.25, None], [0.125, None]]
  assert told['steps']['majority'] == [{'mean': 0.0625, 'stderr': None, 'count': 1}, None]
