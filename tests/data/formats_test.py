"""A row means the same in every format."""

import json

import pytest

from rim_jax.data import formats

QUESTION = 'Tom  has 2 cats\u2028and \u00a312; "how" many\\legs? \x00'
ROWS = {
    'normalised': json.dumps({'question': QUESTION, 'steps': ['2*4=8', '-8+.50=-7.50'],
                              'answer': '1,234,567', 'level': 3}),
    'normalised, marked': json.dumps({'question': QUESTION, 'answer': ' 1234567',
                                      'steps': ['<<2*4=8>>', '<<-8+.50=-7.50>>']}),
    'openai': json.dumps({'question': QUESTION, 'answer': (
        'Two cats have 2*4=<<2*4=8>>8 legs.\nThen <<-8+.50=-7.50>>.\n#### 1,234,567 ')},
        ensure_ascii=False),
    'icot': f'{QUESTION}||<<2*4=8>> <<-8+.50=-7.50>> #### 1,234,567',
}


@pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)
def test_formats_agree(row):
  for line in (row.encode(), row.encode() + b'\r'):
    assert formats.parse_row(line) == (QUESTION, ('2*4=8', '-8+.50=-7.50'), '1234567')
    assert formats.parse_row(line, step_marks=True) == (
        QUESTION, ('<<2*4=8>>', '<<-8+.50=-7.50>>'), '1234567')


@pytest.mark.parametrize('answer, read', [
    ('1,234', '1234'), ('-1,234.50', '-1234.50'), ('0.5', '0.5'), (' -7 ', '-7'),
    ('1,23', '1,23'), ('1,2,3', '1,2,3'), ('Tom is a yimpus, 1,000 times.',) * 2])
def test_answers(answer, read):
  row = {'question': 'q', 'steps': [], 'answer': answer}
  assert formats.parse_row(json.dumps(row).encode()) == ('q', (), read)
