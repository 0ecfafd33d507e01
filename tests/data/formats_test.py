"""A row means the same in every format."""

import contextlib
import json
import re
import time

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
    assert formats.parse_row(line, formats.Reading(step_marks=True)) == (
        QUESTION, ('<<2*4=8>>', '<<-8+.50=-7.50>>'), '1234567')


@pytest.mark.parametrize('answer, read', [
    ('1,234', '1234'), ('-1,234.50', '-1234.50'), ('0.5', '0.5'), (' -7 ', '-7'),
    ('1,23', '1,23'), ('1,2,3', '1,2,3'), ('Tom is a yimpus, 1,000 times.',) * 2])
def test_answers(answer, read):
  row = {'question': 'q', 'steps': [], 'answer': answer}
  assert formats.parse_row(json.dumps(row).encode()) == ('q', (), read)


EQUATIONS = ('2*3=6', '6+4=10')
SENTENCES = ('Tom has 2*3=6 pens.', 'He gets 4, so 10.')
SOLUTION = 'Tom has 2*3=<<2*3=6>>6 pens.\nHe gets 4, so <<6+4=10>>10.'
CHAT = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'q?'}]
# name: (row, (question, steps, answer) with data.steps=equations, steps with sentences)
SHAPES = {
    'steps in lines': ({'question': 'q?', 'steps': '2*3=6\n 6+4=10\n', 'answer': 10},
                       ('q?', EQUATIONS, '10'), EQUATIONS),
    'CODI': ({'question': 'q?', 'cot': '<<2*3=6>> <<6+4=10>>', 'answer': '10'},
             ('q?', EQUATIONS, '10'), EQUATIONS),
    'cot as a list': ({'question': 'q?', 'cot': ['2*3=6', '<<6+4=10>>'], 'answer': '10'},
                      ('q?', EQUATIONS, '10'), EQUATIONS),
    'cot in lines': ({'question': 'q?', 'cot': '2*3=6\n6+4=10', 'answer': '10'},
                     ('q?', EQUATIONS, '10'), EQUATIONS),
    'cot with marks in a text': ({'question': 'q?', 'cot': SOLUTION, 'answer': '10'},
                                 ('q?', EQUATIONS, '10'), SENTENCES),
    'GSM8K': ({'question': 'q?', 'answer': f'{SOLUTION}\n#### 10'},
              ('q?', EQUATIONS, '10'), SENTENCES),
    'an answer alone': ({'question': 'q?', 'answer': '10'}, ('q?', (), '10'), ()),
    'a number': ({'question': 'q?', 'answer': 10.0}, ('q?', (), '10'), ()),
    'GSM-Hard': ({'input': 'q?', 'code': 'x', 'target': -9867630.0}, ('q?', (), '-9867630'), ()),
    'MATH': ({'problem': 'q?', 'solution': r'So it is $\boxed{\frac{1}{2}}$.', 'level': 'Level 1'},
             ('q?', (), r'\frac{1}{2}'), (r'So it is $\boxed{\frac{1}{2}}$.',)),
    'MATH with its answer': ({'problem': 'q?', 'solution': 'Easy. It is one.', 'answer': '1'},
                             ('q?', (), '1'), ('Easy.', 'It is one.')),
    'a chat': ({'messages': [*CHAT, {'role': 'assistant', 'content': f'{SOLUTION}\n#### 10'}]},
               ('Be brief.\n\nq?', EQUATIONS, '10'), SENTENCES),
    'a chat in parts': ({'messages': [
        {'role': 'user', 'content': [{'type': 'text', 'text': 'q?'}]},
        {'role': 'assistant', 'content': '10'}]}, ('q?', (), '10'), ()),
    'SVAMP': ({'ID': 'x', 'Body': 'Tom has 4 pens', 'Question': 'How many?', 'Equation': 'x',
               'Answer': 4.0}, ('Tom has 4 pens How many?', (), '4'), ()),
    'MultiArith': ({'iIndex': 1, 'sQuestion': ' q?', 'lEquations': ['X=4'], 'lSolutions': [4.0]},
                   ('q?', (), '4'), ()),
    'ASDiv': ({'body': 'Tom has 4 pens.', 'question': 'How many?', 'answer': '4 (pens)'},
              ('Tom has 4 pens. How many?', (), '4'), ()),
    'ASDiv with two': ({'body': 'b.', 'question': 'q?', 'answer': '4 (red); 5 (blue)'},
                       ('b. q?', (), '4 (red); 5 (blue)'), ()),
}


@pytest.mark.parametrize('row, read, sentences', SHAPES.values(), ids=SHAPES)
def test_each_shape_as_a_line_and_as_a_row_of_a_table(row, read, sentences):
  for given in (json.dumps(row).encode(), row):
    loose = formats.Reading(needs_steps=False)
    assert formats.parse_row(given, loose) == read
    assert formats.parse_row(given, formats.Reading('sentences')) == (read[0], sentences, read[2])
    if read[1] or not sentences:
      assert formats.parse_row(given) == read
    else:  # never in silence a row without steps
      with pytest.raises(ValueError, match='with --config.data.steps=sentences'):
        formats.parse_row(given)


@pytest.mark.parametrize('shape', formats.SHAPES, ids=lambda shape: shape.name)
def test_the_example_of_each_shape_is_read_by_it(shape):
  row = json.loads(shape.example)
  assert next(s for s in formats.SHAPES if set(s.keys) <= set(row)) is shape
  formats.parse_row(shape.example.encode(), formats.Reading('sentences'))


def test_a_row_of_no_shape_is_told_what_is_read():
  with pytest.raises(ValueError) as error:
    formats.parse_row(b'{"q": 1, "a": 2}')
  assert all(shape.name in str(error.value) for shape in formats.SHAPES)
  assert str(error.value).startswith('its keys are a, q; a row needs ')


@pytest.mark.parametrize('row', [
    {'Question': 'q?', 'Steps': [], 'Answer': '1'}, {'QUESTION': 'q?', 'answer': '1'},
    formats.TableRow({'Question': 'q?', 'Answer': '1'}, ['Steps'])])
def test_keys_in_capitals_are_told_to_be_small(row):
  with pytest.raises(ValueError, match=r' \(did you mean small letters\?\); a row needs '):
    formats.parse_row(row)


@pytest.mark.parametrize('content', [
    '<think>\nTom has 2.\nHe gets 3.\n</think>\n\n\\boxed{5}',
    '<think>Tom has 2.\nHe gets 3.</think>\\boxed{5}'])
def test_marks_around_what_a_model_thinks_are_no_steps(content):
  row = {'messages': [{'role': 'user', 'content': 'q?'}, {'role': 'assistant', 'content': content}]}
  assert formats.parse_row(row, formats.Reading('sentences')) == (
      'q?', ('Tom has 2.', 'He gets 3.', '\\boxed{5}'), '5')


def test_sentences_of_icot_s_text_form():
  line = 'q?||Mr. Tom has 2.5 pens, i.e. few. He paid $3. "Why?" He left! It is 5 p.m. now. #### 5'
  steps = ('Mr. Tom has 2.5 pens, i.e. few.', 'He paid $3.', '"Why?"', 'He left!',
           'It is 5 p.m. now.')
  assert formats.parse_row(line.encode(), formats.Reading('sentences')) == ('q?', steps, '5')
  with pytest.raises(ValueError, match='outside << >>; read sentences as steps with --config'):
    formats.parse_row(line.encode())
  with pytest.raises(ValueError, match='read such steps with --config.data.steps=equations'):
    formats.parse_row(b'q||<<1+1=2>> #### 2', formats.Reading('sentences'))


CODE = ('Compute (1 << 3) + (64 >> 2) = 24.\nSo x <<= 1, y >>= 2.\ncout << a; b = c; cin >> d;\n'
        'x = (1 << 3) | (y == 64 >> 2)')


def test_shifts_in_code_are_text():
  def parse(row, *reading):
    return formats.parse_row(row, formats.Reading(*reading))
  lines = tuple(CODE.split('\n'))
  rows = [{'question': 'q', 'answer': f'{CODE}\n#### 24'},
          {'question': 'q', 'cot': CODE, 'answer': 24},
          {'question': 'q', 'steps': CODE, 'answer': 24},
          {'question': 'q', 'steps': ['cout << x', 'y=64>>2'], 'answer': 24}]
  assert [parse(row, 'sentences')[1] for row in rows] == [lines] * 3 + [('cout << x', 'y=64>>2')]
  assert parse(rows[0]) == ('q', (), '24') and parse(rows[2])[1] == lines
  assert parse({'question': 'q', 'answer': '1 << 3'}) == ('q', (), '1 << 3')
  assert parse({'question': 'q', 'steps': ['cout << x'], 'answer': '1'})[1] == ('cout << x',)
  marked = {'question': 'q', 'answer': f'{CODE}\n2*3=<<2*3=6>>6\n#### 6'}
  assert parse(marked)[1] == ('2*3=6',)
  assert parse(marked, 'sentences')[1] == (*lines, '2*3=6')
  with pytest.raises(ValueError, match="'Compute .* stands outside << >>"):
    parse(b'q||Compute (1 << 3) + (64 >> 2) = 24. #### 24')


def test_numbers_and_wide_equations_in_marks_are_steps():
  row = {'question': 'q', 'answer': 'Tom has <<5>>5, then << 5 * 2 = 10 >>10.\n#### 10'}
  assert formats.parse_row(row)[1] == ('5', ' 5 * 2 = 10 ')
  assert formats.parse_row(row, formats.Reading('sentences'))[1] == ('Tom has 5, then 10.',)


def test_marks_and_nothing_else_are_steps_whatever_they_hold():
  for row in (b'q||<<Tom is a cat.>> <<5>> #### 6',
              {'question': 'q', 'cot': '<<Tom is a cat.>> <<5>>', 'answer': '6'}):
    assert formats.parse_row(row) == ('q', ('Tom is a cat.', '5'), '6')


@pytest.mark.parametrize('text, found', [
    ('Tom has <<48/2=24> 24.', "'<<48/2='"), ('Tom has 48/2=24>>24.', "'=24>>'"),
    ('Tom has <<48 / 2 = 24.', "'<<48 / 2 ='"), ('Tom has <<half>>5.', "'<<half>>'")])
def test_a_broken_mark_is_told_where_marks_are_the_steps(text, found):
  row = {'question': 'q', 'answer': f'{text}\n#### 24'}
  with pytest.raises(ValueError, match=re.escape(found)) as error:
    formats.parse_row(row)
  assert str(error.value).endswith('read it as text with --config.data.steps=sentences')
  assert formats.parse_row(row, formats.Reading('sentences'))[1] == (text,)
  assert formats.parse_row(row, formats.Reading(needs_steps=False)) == ('q', (), '24')
  row['answer'] = 'He has <<1+1=2>>2.\n' + row['answer']
  for steps in ('equations', 'sentences'):
    with pytest.raises(ValueError, match=re.escape(found)):
      formats.parse_row(row, formats.Reading(steps))


def test_a_mark_within_a_step_of_a_list_is_told():
  for step in ('He has <<2*3=6>>6.', '<<1=1>> and <<2=2>>'):
    for steps in ('equations', 'sentences'):
      with pytest.raises(ValueError, match='step 1 has a stray << or >>$'):
        formats.parse_row({'question': 'q', 'steps': [step], 'answer': '6'}, formats.Reading(steps))


def test_headings_before_the_answer_are_text():
  text = '#### Step 1\nTom has <<2*3=6>>6.\n  ##### So\n####\tThe end\nIt is 6. #### 6 '
  row = {'question': 'q', 'answer': text}
  assert formats.parse_row(row) == ('q', ('2*3=6',), '6')
  assert formats.parse_row(row, formats.Reading('sentences')) == ('q', (
      '#### Step 1', 'Tom has 6.', '##### So', '####\tThe end', 'It is 6.'), '6')


@pytest.mark.parametrize('text, what', [
    ('He has 3.\n#### 3\n#### 4', "a second '####'"), ('#### Step 1 #### 4', "a second '####'"),
    ('So #### 3 cats\n#### 4', "a second '####'"),
    ('#### Step 1\nTom has 6.\n#### Step 2\nIt is 6.', "more text after the answer's line")])
def test_two_answers_or_none_are_told(text, what):
  with pytest.raises(ValueError, match=what):
    formats.parse_row({'question': 'q', 'answer': text})


@pytest.mark.parametrize('number, text', [
    ('1' * 40, '1' * 40),
    ('12345678901234567890123456789012345.0', '12345678901234567890123456789012345'),
    ('1.5e-7', '0.00000015'), ('2e3', '2000'), ('-0.0', '0'), ('0.10', '0.1')])
def test_numbers_stay_exact(number, text):
  assert formats.parse_row(b'{"input": "q", "target": %s}' % number.encode())[2] == text


HOSTILE = {
    'open marks': lambda n: b'q||' + b'<<' * n + b' #### 1',
    'half marks': lambda n: b'q||' + '<\u2039'.encode() * n + b' #### 1',
    'closing marks': lambda n: b'q||' + b'>>' * n + b' #### 1',
    'steps': lambda n: b'q||' + b'<<1=1>> ' * n + b'#### 1',
    'steps in text': lambda n: b'q||a' + b'<<1=1>> ' * n + b'#### 1',
    'one mark': lambda n: b'q||a<< ' + b'=' * n + b'#### 1',
    'equals signs': lambda n: b'q||a' + b'= a' * n + b'>> #### 1',
    'a shift': lambda n: b'q||a' + b'<< =a ' * n + b'#### 1',
    'headings': lambda n: b'{"question": "q", "answer": "%s#### 1"}' % (b'#### a\\n' * n),
    'answers': lambda n: b'q||' + b'####' * n,
    'commas': lambda n: b'{"question": "q", "steps": [], "answer": "%s"}' % (b'1,' * n),
    'stops': lambda n: b'q||' + b'. ' * n + b'#### 1',
    'quotes': lambda n: b'q||' + b".'" * n + b"'" * n + b'#### 1',
    'one quote': lambda n: b'q||a.' + b"'" * n + b'#### 1',
    'spaces': lambda n: b'q||.' + b' ' * n + b'a #### 1',
    'capital letters': lambda n: b'q||' + b'A. ' * n + b'#### 1',
    'small letters': lambda n: b'q||' + b'aa. ' * n + b'#### 1',
    'numbers': lambda n: b'q||' + b'1. ' * n + b'#### 1',
    'braces': lambda n: b'{"problem": "q", "solution": "%s"}' % (b'\\\\boxed{' * n),
}


@pytest.mark.parametrize('make', HOSTILE.values(), ids=HOSTILE)
def test_time_grows_with_the_row_and_not_with_its_square(make):
  def spend(n):
    best = float('inf')
    for _ in range(3):
      begin = time.process_time()
      for steps in ('equations', 'sentences'):
        with contextlib.suppress(ValueError):
          formats.parse_row(make(n), formats.Reading(steps))
      best = min(best, time.process_time() - begin)
    return best
  few, many = spend(2_000), spend(32_000)
  assert many < 16 * 5 * max(few, 1e-4)  # the square would be 256 times as long


