"""Sets by name are read in every shape, and a bad file is told in one line."""

import re

import pytest

from rim_jax.config import DataConfig
from rim_jax.data import evaluation_sets
from rim_jax.errors import UserError


def test_gsm_hard_in_both_forms(tmp_path):
  path = tmp_path / 'hard.jsonl'
  path.write_text('{"question": "Tom\\u2028 has?", "answer": "-9867630"}\n'
                  '{"input": "b?", "code": "def f(): ...", "target": -9867630.0}\n'
                  '{"input": "c?", "target": 1.5e-7}\n{"input": "d?", "target": 120}\n'
                  '{"question": "e?", "answer": "1,234.50"}\n\n')
  found = evaluation_sets.load_set('gsm_hard', path, DataConfig()).records
  assert [(r.question, r.steps, r.answer, r.origin) for r in found] == [
      (question, (), answer, f'hard.jsonl:{i}') for i, (question, answer) in enumerate([
          ('Tom\u2028 has?', '-9867630'), ('b?', '-9867630'), ('c?', '0.00000015'), ('d?', '120'),
          ('e?', '1234.50')], 1)]


@pytest.mark.parametrize('content, what', [
    ('[1]', ':1: not a JSON object'),
    ('{"question": "a?", "answer": "1"}\n{"question": "b?"}',
     ':2: its keys are question; a row needs '),
    ('{"target": 1}', ':1: its keys are target; '), ('{"input": "a?", "target": NaN}', ':1: '),
    ('{"input": "a?", "answer": "one"}', ":1: the answer 'one' is not a number")])
def test_a_bad_gsm_hard_file_is_told_in_one_line(tmp_path, content, what):
  path = tmp_path / 'hard.jsonl'
  path.write_text(content)
  with pytest.raises(UserError) as error:
    evaluation_sets.load_set('gsm_hard', path, DataConfig())
  assert str(error.value).startswith(f'{path}{what}')
  assert re.search('; (fix the row, or drop bad rows with|rename or add keys) ', str(error.value))
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='nothing.jsonl: .*; name a file of rows for the set svamp'):
    evaluation_sets.load_set('svamp', tmp_path / 'nothing.jsonl', DataConfig())
  (tmp_path / 'empty.jsonl').write_text('\n')
  with pytest.raises(UserError, match=r'empty.jsonl: no rows \(of 0 lines\); fill or replace '):
    evaluation_sets.load_set('svamp', tmp_path / 'empty.jsonl', DataConfig())


def test_any_shape_is_a_set_and_sentences_are_no_error(tmp_path):
  path = tmp_path / 'math.jsonl'
  path.write_text(r'{"problem": "q?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}' + '\n'
                  '{"question": "b?", "answer": "one"}\n{"question": "c?", "cot": "One.", '
                  '"answer": 1}\nd?||Words. #### 3')
  found = evaluation_sets.load_set('math', path, DataConfig()).records
  assert [(r.question, r.steps, r.answer) for r in found] == [
      ('q?', (), r'\frac{1}{2}'), ('b?', (), 'one'), ('c?', (), '1'), ('d?', (), '3')]


def test_bad_rows_of_a_set_are_dropped_where_that_is_asked(tmp_path):
  path = tmp_path / 'own.jsonl'
  path.write_text('{"question": "a?", "answer": "1"}\n\n{"question": "b?", "answer": ""}\n')
  with pytest.raises(UserError, match=':2: an empty line; fix the row, or drop bad rows'):
    evaluation_sets.load_set('own', path, DataConfig())
  found, dropped, _ = evaluation_sets.load_set('own', path, DataConfig(on_bad_rows='drop'))
  assert [r.question for r in found] == ['a?']
  assert dropped == ['own.jsonl:2: an empty line', 'own.jsonl:3: the answer is empty']
