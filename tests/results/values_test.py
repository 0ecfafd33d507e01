"""Results as values: to JSON and back, older and newer files, and no key spelled anywhere else."""

import ast
import dataclasses
import json
import pathlib

import pytest

from rim_jax import reader
from rim_jax.results import values

PACKAGE = pathlib.Path(__file__).parents[2] / 'rim_jax'

RESULT = {'method': 'rim_stage2', 'step': 8, 'n': 3, 'num_blocks': 2, 'final_acc': 0.5,
          'final_acc_stderr': 0.1, 'block_acc': [0.25, 0.5], 'pass_at': {'1': 0.5},
          'latency': [{'method': 'rim_stage2', 'batch': 1, **{f'{part}_ms': {
              'median': 2.0, 'q1': 1.0, 'q3': 3.0, 'runs': 5}
              for part in ('prefill', 'first_token', 'decode', 'full')}}]}
CONTROLS = {'num_blocks': 1, 'pairing': {
    'num_pairs': 1, 'num_equal_answers': 0, 'num_without_partner': 2},
    'controls': {'direct': {'what': 'a', 'expected': 'b', 'given': False}},
    'sweeps': {'swapped_block': {'by_block': [{'block': 1, 'n': 0, 'none': 'why'}]}},
    'probes': {'steps': {'acc': [[None, 0.5]], 'majority': [None, 0.25], 'n': [0, 4],
                         'none': {'1': 'one class'}}}}


def test_what_is_read_is_written_as_it_was():
  for kind, tree in ((values.EvalResult, RESULT), (values.ControlsResult, CONTROLS)):
    found = reader.from_tree(kind, json.loads(json.dumps(tree)))
    assert reader.to_tree(found) == tree
  assert found.controls['direct'] == values.ControlResult(what='a', expected='b', given=False)
  assert found.sweeps['swapped_block'].by_block[0].none == 'why'
  assert found.probes.steps.none == {'1': 'one class'}


def test_one_reason_in_place_of_many_is_read():
  found = reader.from_tree(values.StepProbes, {'none': 'no classes'})
  assert found == values.StepProbes(none='no classes')


def test_an_older_file_lacks_what_came_later_and_a_newer_one_keeps_what_is_not_known():
  tree = {'final_acc': 0.5, 'block_acc': [0.5], 'beauty': {'n': 1}}
  found = reader.from_tree(values.EvalResult, tree)
  assert found.num_blocks is None and found.latency is None and found.more == {'beauty': {'n': 1}}
  assert reader.to_tree(dataclasses.replace(found, step=3)) == tree | {'step': 3}


@pytest.mark.parametrize('tree,told', [
    ([], 'list in place of'), ({'block_acc': []}, 'it lacks final_acc'),
    ({'final_acc': 0.5, 'block_acc': 0.5}, 'float in place of a list'),
    ({'final_acc': 0.5, 'block_acc': [], 'latency': [3]}, 'int in place of')])
def test_what_is_no_result_is_refused(tree, told):
  with pytest.raises(ValueError, match=told):
    reader.from_tree(values.EvalResult, tree)


KEYS = {field.name for kind in (values.EvalResult, values.ControlResult, values.SelectionResult)
        for field in dataclasses.fields(kind) if '_acc' in field.name} | {values.VALID_ACC}


def find_keys(source: str) -> set[str]:
  return KEYS & {node.value for node in ast.walk(ast.parse(source))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_module_spells_a_result_s_key():
  assert find_keys("result['final_acc']") == {'final_acc'} and not find_keys('result.final_acc')
  spelled = {str(path.relative_to(PACKAGE)): found for path in PACKAGE.rglob('*.py')
             if (found := find_keys(path.read_text()))}
  assert spelled == {'results/values.py': {values.VALID_ACC}}
