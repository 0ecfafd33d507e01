"""Files as people have them: any split's name, shards, tables, lists; what is not read is named."""

import bz2
import codecs
import csv
import dataclasses
import gzip
import io
import json
import tracemalloc

import pyarrow
from pyarrow import parquet
import pytest

from rim_jax.config import DataConfig
from rim_jax.data import datasets, files
from rim_jax.errors import UserError

FIELDS = dataclasses.replace(DataConfig(), num_valid=1)


def make_rows(n, tag='q'):
  return [{'question': f'{tag} {i}?', 'steps': [f'{i}+1={i + 1}'], 'answer': str(i + 1)}
          for i in range(n)]


def to_lines(rows):
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def write_table(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path, rows):
  """One file as the library `datasets` writes it: Arrow's stream format."""
  table = pyarrow.Table.from_pylist(rows)
  with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
    stream.write_table(table)


def write_saved(folder, **splits):
  """A DatasetDict as `datasets` saves it, each split in two Arrow files."""
  folder.mkdir(parents=True)
  (folder / 'dataset_dict.json').write_text(json.dumps({'splits': list(splits)}))
  for split, rows in splits.items():
    (folder / split).mkdir()
    names = [f'data-0000{i}-of-00002.arrow' for i in range(2)]
    for name, part in zip(names, (rows[:2], rows[2:])):
      write_arrow(folder / split / name, part)
    (folder / split / 'dataset_info.json').write_text('{}')
    (folder / split / 'state.json').write_text(json.dumps({
        '_data_files': [{'filename': name} for name in names], '_split': split}))
  return folder


def read(folder, config=FIELDS):
  """(split -> question of each record, what is told of files that are not read)."""
  found = files.find_files(folder)
  return {split: [r.question for r in files.parse_files(parts, config)[0]]
          for split, parts in found.splits.items()}, found.unread


QUESTIONS = {name: [r['question'] for r in make_rows(3, name)] for name in ('train', 'valid',
                                                                            'test')}
ROWS = {name: make_rows(3, name) for name in QUESTIONS}


@pytest.mark.parametrize('name', ['valid', 'validation', 'val', 'dev'])
def test_a_valid_split_has_any_of_its_names_and_nothing_is_cut_out_of_train(tmp_path, name):
  for split, rows in ROWS.items():
    (tmp_path / f'{name if split == "valid" else split}.jsonl').write_bytes(to_lines(rows))
  assert read(tmp_path) == (QUESTIONS, [])
  dataset = datasets.load_dataset(DataConfig(
      source='gsm8k', dir=str(tmp_path), cache_dir=str(tmp_path / 'cache')), lambda line: None)
  assert {s: [r.question for r in split] for s, split in dataset.splits.items()} == QUESTIONS


def test_what_is_not_read_is_named_also_once_a_copy_is_prepared(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  for split, rows in ROWS.items():
    (folder / f'{split}.jsonl').write_bytes(to_lines(rows))
  config = DataConfig(source='gsm8k', dir=str(folder), cache_dir=str(tmp_path / 'cache'))
  assert not any('not read' in n for n in datasets.load_dataset(config, lambda _: None).notes)
  (folder / 'notes').mkdir()
  for name in ('extra.jsonl', 'train-2.jsonl', '.hidden'):
    (folder / name).write_text('x')
  assert datasets.load_dataset(config, lambda _: None).notes[-1] == (
      'not read in data.dir: extra.jsonl, notes/, train-2.jsonl')
  for i in range(20):
    (folder / f'z{i}').write_text('x')
  assert datasets.load_dataset(config, lambda _: None).notes[-1].endswith(' and 13 more')


def test_shards_of_a_hub_snapshot_in_their_order(tmp_path):
  (tmp_path / 'README.md').write_text('x')
  for i in (1, 0):
    write_table(tmp_path / f'data/train-0000{i}-of-00002-a09b74b3ef9c3b56.parquet',
                ROWS['train'][2 * i:2 * i + 2])
  write_table(tmp_path / 'data/validation-00000-of-00001.parquet', ROWS['valid'])
  write_table(tmp_path / 'data/test-00000-of-00001.parquet', ROWS['test'])
  write_table(tmp_path / 'data/extra-00000-of-00001.parquet', ROWS['test'])
  assert read(tmp_path) == (
      QUESTIONS, ['not read in data.dir: README.md, data/extra-00000-of-00001.parquet'])
  (tmp_path / 'data/train-00001-of-00002-a09b74b3ef9c3b56.parquet').unlink()
  with pytest.raises(UserError, match='is one of 2 shards, and number 1 is not there; '):
    files.find_files(tmp_path)


def test_a_file_in_place_of_its_directory_is_told(tmp_path):
  (tmp_path / 'train.jsonl').write_bytes(LINES)
  with pytest.raises(UserError, match=f'is a file; pass its directory, {tmp_path}$'):
    files.find_files(tmp_path / 'train.jsonl')


def test_files_in_a_folder_of_another_name_are_pointed_at(tmp_path):
  write_table(tmp_path / '.cache/train.parquet', ROWS['train'])  # no place that is pointed at
  (tmp_path / 'a').mkdir()
  for split in ('train', 'test'):
    write_table(tmp_path / f'main/{split}-00000-of-00001.parquet', ROWS[split])
  with pytest.raises(UserError, match=f'no train file .*; pass --config.data.dir={tmp_path}/main$'):
    files.find_files(tmp_path)
  assert read(tmp_path / 'main')[0] == {s: QUESTIONS[s] for s in ('train', 'test')}


def test_valid_questions_of_shards_are_told_to_be_held_out_of_the_split(tmp_path):
  for i in range(2):
    write_table(tmp_path / f'train-0000{i}-of-00002.parquet', ROWS['train'][2 * i:2 * i + 2])
  (tmp_path / 'test.jsonl').write_bytes(LINES)
  config = dataclasses.replace(FIELDS, source='gsm8k', dir=str(tmp_path),
                               cache_dir=str(tmp_path / 'cache'))
  assert 'valid: 1 rows held out of train by question hash' in datasets.load_dataset(
      config, lambda _: None).notes


def test_a_folder_that_datasets_saved(tmp_path):
  folder = write_saved(tmp_path / 'saved', train=ROWS['train'], validation=ROWS['valid'],
                       test=ROWS['test'], other=ROWS['test'])
  assert read(folder) == (QUESTIONS, ['not read in data.dir: other/'])
  state = folder / 'train' / 'state.json'
  for text in ('[]', '{', '{"_data_files": []}', '{"_data_files": [{"filename": "../x"}]}',
               '{"_data_files": [{"filename": "x"}], "_indices_files": ["y"]}'):
    state.write_text(text)
    with pytest.raises(UserError, match=r'state\.json: .*; save the dataset again') as error:
      files.find_files(folder)
    assert '\n' not in str(error.value)


def compress(kind, content):
  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, kind) as stream:
    stream.write(content)
  return sink.getvalue().to_pybytes()


def make_csv(rows):
  text = io.StringIO()
  writer = csv.DictWriter(text, ['question', 'steps', 'answer'])
  writer.writeheader()
  writer.writerows({**row, 'steps': '\n'.join(row['steps'])} for row in rows)
  return text.getvalue().encode()


BOM = codecs.BOM_UTF8
LINES = to_lines(ROWS['test'])
LIST = json.dumps(ROWS['test'], indent=1).encode()
FORMS = {
    'test.jsonl': LINES, 'test.txt': LINES, 'test.json': LIST,
    'test.jsonl.gz': gzip.compress(LINES), 'test.json.bz2': bz2.compress(LIST),
    'test.jsonl.zst': compress('zstd', LINES), 'test.csv': make_csv(ROWS['test']),
    'test.csv.lz4': compress('lz4', make_csv(ROWS['test'])),
}


@pytest.mark.parametrize('name, content', [
    *FORMS.items(), *((name, BOM + content) for name, content in FORMS.items()
                      if name.count('.') == 1), ('test.jsonl.gz', gzip.compress(BOM + LINES))])
def test_each_form_of_a_file_has_the_same_rows(tmp_path, name, content):
  records, dropped, _ = files.parse_files([(tmp_path / name, content)], FIELDS)
  assert [(r.question, list(r.steps), r.answer) for r in records] == [
      tuple(row.values()) for row in ROWS['test']]
  assert not dropped and records[2].origin == f'{name}:3'


def test_a_line_of_text_may_begin_with_a_bracket(tmp_path):
  records, _, _ = files.parse_files(
      [(tmp_path / 'test.txt', b'[1, 2]: what is next?||<<2+1=3>> #### 3\n')], FIELDS)
  assert records[0].question == '[1, 2]: what is next?'


def test_numbers_and_empty_cells_of_tables(tmp_path):
  rows = [{'question': 'a?', 'cot': None, 'steps': None, 'answer': 2.5, 'Body': None},
          {'question': 'b?', 'cot': None, 'steps': None, 'answer': -9867630.0, 'Body': 'x'}]
  write_table(tmp_path / 'x.parquet', rows)
  path = tmp_path / 'x.parquet'
  records, _, _ = files.parse_files([(path, path.read_bytes())], FIELDS)
  assert [r.answer for r in records] == ['2.5', '-9867630']
  (tmp_path / 'x.csv').write_text('question,answer,more\na?,12345678901234567890123456789012.0,\n')
  path = tmp_path / 'x.csv'
  records, _, _ = files.parse_files([(path, path.read_bytes())], FIELDS)
  assert records[0].answer == '12345678901234567890123456789012.0'  # text, as it is written
  records, _, _ = files.parse_files([(path, b'question,answer,,\na?,2,,\n')], FIELDS)
  assert records[0].answer == '2'


def test_columns_that_are_not_read_are_named_and_take_no_memory(tmp_path):
  count = 2_000
  table = pyarrow.table({'question': ['a?'] * count, 'embedding': [[0.5] * 256] * count,
                         'id': [None] * count, 'answer': ['1'] * count})
  path = tmp_path / 'x.parquet'
  parquet.write_table(table, path)
  content = path.read_bytes()
  tracemalloc.start()
  parsed = files.parse_files([(path, content)], FIELDS)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(parsed.records) == count and parsed.unread == ['embedding', 'id']
  assert peak < 8 * 256 * count  # a list of each would have a pointer for each number
  parquet.write_table(table.select(['embedding', 'id']), path)
  with pytest.raises(UserError, match='x.parquet: row 1: its keys are embedding, id; a row needs'):
    files.parse_files([(path, path.read_bytes())], FIELDS)


def test_short_floats_of_a_table_are_the_decimals_that_were_meant(tmp_path):
  table = pyarrow.table({'question': ['a?', 'b?'], 'answer': pyarrow.array(
      [4.9, 0.1], pyarrow.float32())})
  path = tmp_path / 'x.parquet'
  parquet.write_table(table, path)
  records, _, _ = files.parse_files([(path, path.read_bytes())], FIELDS)
  assert [r.answer for r in records] == ['4.9', '0.1']


@pytest.mark.parametrize('steps, read', [
    ('2*3=6, 6+4=10', ('2*3=6, 6+4=10',)), ('2*3=6\n6+4=10', ('2*3=6', '6+4=10')),
    ('["2*3=6", "6+4=10"]', ('2*3=6', '6+4=10')), ('<<2*3=6>> <<6+4=10>>', ('2*3=6', '6+4=10'))])
def test_a_cell_of_csv_has_the_steps_that_the_page_says(tmp_path, steps, read):
  text = io.StringIO()
  csv.writer(text).writerows([('question', 'steps', 'answer'), ('a?', steps, '1')])
  records, _, _ = files.parse_files([(tmp_path / 'x.csv', text.getvalue().encode())], FIELDS)
  assert records[0].steps == read


@pytest.mark.parametrize('name', ['Valid.jsonl', 'eval.jsonl', 'valid.tsv'])
def test_a_file_of_another_name_is_no_split(tmp_path, name):
  for path in ('train.jsonl', 'test.jsonl', name):
    (tmp_path / path).write_bytes(LINES)
  assert read(tmp_path)[1] == [f'not read in data.dir: {name}']


def test_a_null_is_an_empty_cell(tmp_path):
  rows = [b'{"question": "a?", "steps": null, "answer": "2"}']
  records, _, _ = files.parse_files([(tmp_path / 'x.jsonl', rows[0])], FIELDS)
  assert (records[0].steps, records[0].answer) == ((), '2')


def test_keys_that_are_not_read_are_named(tmp_path):
  def describe(*rows):
    return files.describe_parsed('train', files.parse_files(
        [(tmp_path / 'x.jsonl', to_lines(rows))], dataclasses.replace(FIELDS, steps='sentences')))
  assert describe({'question': 'a?', 'answer': '1'}, {'problem': 'b?', 'solution': '2',
                                                      'answer': '2'}) == []
  assert describe({'question': 'a?', 'choices': ['1', '2'], 'answer': 'B', 'id': 3},
                  {'question': 'b?', 'rationale': 'x', 'answer': '1'}) == [
                      'train: keys that are not read: choices, id, rationale']
  fields = dataclasses.replace(FIELDS, on_bad_rows='drop')
  parsed = files.parse_files(
      [(tmp_path / 'x.jsonl', b'a?||<<1+1=2>> #### 2\n{"no": "row"}')], fields)
  assert parsed.unread == [] and len(parsed.dropped) == 1


def test_where_all_rows_were_dropped_the_first_says_why(tmp_path):
  fields = dataclasses.replace(FIELDS, on_bad_rows='drop')
  with pytest.raises(UserError, match=r'no rows \(of 2 lines\); the first is bad \(x.jsonl:1: its '
                     r'keys are a; .*\); mend or replace'):
    files.parse_files([(tmp_path / 'x.jsonl', b'{"a": 1}\n{"b": 1}')], fields)


@pytest.mark.parametrize('name, content, what', [
    ('test.parquet', b'PAR1', 'replace it by a whole parquet file'),
    ('test.arrow', b'ARROW1\0\0', 'replace it by a whole arrow file'),
    ('test.jsonl.gz', gzip.compress(LINES, mtime=0)[:-9], 'replace it by a whole gzip file'),
    ('test.jsonl.zst', b'plain', 'replace it by a whole zstandard file'),
    ('test.csv', b'question,answer\nq,1,2\n', 'row 1 has more values than the header'),
    ('test.csv', b'question,answer\n"q\n?",1\nq,"1"2\n', "line 4: ',' expected after '\"'; give"),
    ('test.csv', b'question;steps;answer\nq;;1\n', "separated by ';'; save it with commas"),
    ('test.csv', b'"question";"answer"\n"a, b";"1"\n', "separated by ';'; save it with commas"),
    ('test.csv', b'question\tanswer\nq\t1\n', 'separated by tabs; save it with commas'),
    ('test.csv', b'question,answer,answer\nq,1,2\n', "the header names 'answer' twice"),
    *((f'test.{kind}', b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n',
       'is a Git LFS pointer and not the file itself; run git lfs pull')
      for kind in ('parquet', 'arrow', 'csv', 'jsonl', 'jsonl.gz', 'txt')),
    ('test.json', b'[' * 100_000, 'give a list of JSON objects'),
    ('test.json', b'[1]', 'not a JSON object')], ids=str)
def test_a_bad_file_is_told_in_one_line(tmp_path, name, content, what):
  with pytest.raises(UserError) as error:
    files.parse_files([(tmp_path / name, content)], FIELDS)
  assert str(error.value).startswith(f'{tmp_path / name}:') and what in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('names', [
    ('valid.jsonl', 'dev.jsonl'), ('test.json', 'test.csv'), ('test.jsonl', 'data/test.jsonl'),
    ('test.jsonl', 'test-00000-of-00001.parquet')])
def test_two_files_of_one_split_are_refused(tmp_path, names):
  (tmp_path / 'data').mkdir()
  for name in ('train.jsonl', 'test.jsonl', *names):
    (tmp_path / name).write_bytes(LINES)
  with pytest.raises(UserError, match='are both the (valid|test) split; keep one'):
    files.find_files(tmp_path)


def test_rows_without_steps_are_told_and_what_may_be_done(tmp_path):
  for split in ('train', 'test'):
    (tmp_path / f'{split}.jsonl').write_bytes(to_lines(
        {'question': f'{split} {i}?', 'answer': f'He has one.\nHe gets {i}.\n#### {i}'}
        for i in range(3)))
  config = DataConfig(source='gsm8k', dir=str(tmp_path), num_valid=1,
                      cache_dir=str(tmp_path / 'cache'))
  told = ('train: 3 of 3 rows have no steps; if their solutions are sentences, read these with '
          '--config.data.steps=sentences')
  assert told in datasets.load_dataset(config, lambda _: None).notes
  dataset = datasets.load_dataset(dataclasses.replace(config, steps='sentences'), lambda _: None)
  assert dataset.splits['test'][2].steps == ('He has one.', 'He gets 2.')
  assert told not in dataset.notes


@pytest.mark.parametrize('name', ['x.csv', 'x.json', 'x.jsonl'])
@pytest.mark.parametrize('encoding', ['latin-1', 'utf-16'])
def test_another_encoding_is_told_to_be_saved_as_utf_8(tmp_path, name, encoding):
  row = {'question': 'déjà?', 'steps': [], 'answer': '1'}
  text = {'x.csv': 'question,answer\ndéjà?,1\n', 'x.json': json.dumps([row], ensure_ascii=False),
          'x.jsonl': json.dumps(row, ensure_ascii=False)}[name]
  with pytest.raises(UserError, match=r'no UTF-8 \(.*\); save it as UTF-8$'):
    files.parse_files([(tmp_path / name, text.encode(encoding))], FIELDS)


OTHER_KEYS = {'prompt': 'a?', 'response': '1'}
SHARED_FAULTS = {
    'other keys': (to_lines([OTHER_KEYS] * 2), 'its keys are prompt, response; a row needs .*; '
                   r'rename or add keys \(docs/data.md shows rows that are read\)$'),
    'a chat of other keys': (to_lines([{'conversations': [{'from': 'human', 'value': 'a?'}]}]),
                             'its keys are conversations; .*; rename or add keys [^;]*$'),
    'a list in an object': (json.dumps({'data': ROWS['test']}).encode(), 'an object that holds a '
                            "list of rows, 'data', and no row; give the list alone, or [^;]*$"),
    'the same in lines': (json.dumps({'data': ROWS['test']}, indent=1).encode(),
                          'not JSON .*; give a list of rows alone, or each row on one line$'),
}


@pytest.mark.parametrize('content, what', SHARED_FAULTS.values(), ids=SHARED_FAULTS)
def test_a_first_row_unlike_any_is_not_told_to_be_dropped_with_all_others(tmp_path, content, what):
  with pytest.raises(UserError, match=f'x.json:1: {what}'):
    files.parse_files([(tmp_path / 'x.json', content)], FIELDS)
  with pytest.raises(UserError, match='x.json:2: its keys .*; rename .*, or drop bad rows with'):
    files.parse_files([(tmp_path / 'x.json', LINES.splitlines(True)[0] + to_lines([OTHER_KEYS]))],
                      FIELDS)


def test_keys_with_spaces_and_without_a_name_are_seen(tmp_path):
  path = tmp_path / 'x.csv'
  with pytest.raises(UserError, match="its keys are ' answer', question; a row needs"):
    files.parse_files([(path, b'question, answer\na?,1\n')], FIELDS)
  parsed = files.parse_files([(path, b',question,answer\n0,a?,1\n1,b?,2\n')], FIELDS)
  assert files.describe_parsed('train', parsed) == ["train: keys that are not read: ''"]


def test_bad_rows_of_a_table_are_told_by_their_row_and_good_ones_keep_their_origin(tmp_path):
  content = b'question,answer\n"a\n?",1\n"b\n?",\n'
  fields = dataclasses.replace(FIELDS, on_bad_rows='drop')
  parsed = files.parse_files([(tmp_path / 'x.csv', content)], fields)
  assert [r.origin for r in parsed.records] == ['x.csv:1']
  assert [line.partition(" 'answer'")[0] for line in parsed.dropped] == ['x.csv: row 2:']
  with pytest.raises(UserError, match='x.csv: row 2: '):
    files.parse_files([(tmp_path / 'x.csv', content)], FIELDS)


def test_empty_cells_of_keys_that_are_needed_are_named(tmp_path):
  with pytest.raises(UserError, match="x.csv.*1: 'answer' should not be empty; fix the row, or"):
    files.parse_files([(tmp_path / 'x.csv', b'question,steps,answer\na?,,\n')], FIELDS)
  path = tmp_path / 'x.parquet'
  write_table(path, [{'input': 'a?', 'target': 1, 'x': 1}, {'input': None, 'target': None}])
  with pytest.raises(UserError, match="x.parquet.*2: 'input' and 'target' should not be empty; "):
    files.parse_files([(path, path.read_bytes())], FIELDS)
