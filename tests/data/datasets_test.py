"""Records mean what their source says, and nothing bad is kept, served stale or half written."""

import collections
from concurrent import futures
import contextlib
import dataclasses
import errno
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grain
import pytest

from rim_jax import locks
from rim_jax.config import ChainConfig, DataConfig
from rim_jax.data import datasets, gsm8k, hub
from rim_jax.errors import UserError
from tests import support_locks
from tests.support_data import make_rows, write_rows


def quiet(_):
  pass


def make_chain_data(tmp_path, **fields):
  sizes = {'num_train': 60, 'num_valid': 7, 'num_test': 11}
  return DataConfig(cache_dir=str(tmp_path / 'cache'), chain=ChainConfig(**{**sizes, **fields}))


def load_files(folder, tmp_path, say=quiet, **fields):
  fields = {'num_valid': 2, **fields}
  return datasets.load_dataset(
      DataConfig(source='gsm8k', dir=str(folder), cache_dir=str(tmp_path / 'cache'), **fields), say)


def read_texts(split):
  return [(r.question, r.steps, r.answer) for r in split]


# The chain task.


@pytest.mark.parametrize('fields', [
    {}, {'operators': '+-*', 'min_steps': 2, 'max_steps': 5},
    {'modulus': 97, 'operators': '-*', 'min_steps': 1, 'max_steps': 3},
    {'min_steps': 40, 'max_steps': 41, 'operators': '+*'}], ids=str)
def test_chain_steps_recompute_and_splits_are_disjoint(tmp_path, fields):
  config = make_chain_data(tmp_path, **fields)
  dataset = datasets.load_dataset(config, quiet)
  chain, questions = config.chain, []
  assert [len(s) for s in dataset.splits.values()] == [60, 7, 11]
  for name, split in dataset.splits.items():
    for i, record in enumerate(split):
      first, *rest = re.findall(r'\d+|[-+*]\d+', record.question)
      assert first + ''.join(rest) == record.question
      assert {c[0] for c in rest} <= set(chain.operators)
      assert all(int(c.lstrip('+-*')) < chain.modulus for c in [first, *rest])
      results = [int(first)]
      for operation in rest:
        results.append(eval(f'({results[-1]}{operation}) % {chain.modulus}'))
      assert record.steps == tuple(map(str, results[1:]))
      assert record.answer == record.steps[-1]
      assert chain.min_steps <= len(record.steps) <= chain.max_steps
      assert record.origin == f'rim_chain/{name}:{i + 1}'
      questions.append(record.question)
  assert len(set(questions)) == len(questions)


def test_chain_is_a_function_of_its_seed(tmp_path):
  first, again, other = (
      datasets.load_dataset(make_chain_data(tmp_path / folder, seed=seed), quiet)
      for folder, seed in [('a', 3), ('b', 3), ('a', 4)])
  assert first.fingerprint == again.fingerprint != other.fingerprint
  for name in first.splits:
    assert list(first.splits[name]) == list(again.splits[name]) != list(other.splits[name])
    assert (first.splits[name].fingerprint == again.splits[name].fingerprint
            != other.splits[name].fingerprint)
  # The very questions, so that a changed generator cannot pass unnoticed: raise VERSION.
  assert [r.question for r in first.splits['test']][:2] == ['3+3+1+6+7', '4+1+7+0+3']


def test_wrong_steps_are_those_of_a_share_of_train_and_leave_the_answer(tmp_path):
  right, wrong = (datasets.load_dataset(make_chain_data(
      tmp_path / folder, min_steps=3, max_steps=3, num_train=40, wrong_frac=share), quiet).splits
      for folder, share in (('right', 0.0), ('wrong', 0.25)))
  changed = 0
  for name in ('train', 'valid', 'test'):
    for one, other in zip(right[name], wrong[name], strict=True):
      assert (one.question, one.answer, one.steps[-1]) == (
          other.question, other.answer, other.steps[-1])
      same = [a == b for a, b in zip(one.steps[:-1], other.steps[:-1], strict=True)]
      assert all(same) or (name == 'train' and not any(same))
      changed += not all(same)
  assert changed == 10


def test_chain_lengths_have_equal_shares_in_every_split(tmp_path):
  dataset = datasets.load_dataset(make_chain_data(
      tmp_path, min_steps=1, max_steps=4, num_train=900, num_valid=150, num_test=150), quiet)
  counts = {name: collections.Counter(len(r.steps) for r in split)
            for name, split in dataset.splits.items()}
  # Of the 100 questions of one step at most 80 may be drawn; the rest share what is left.
  assert sum(counts.values(), collections.Counter()) == {1: 80, 2: 373, 3: 373, 4: 374}
  assert all(min(c[t] for t in (2, 3, 4)) > 30 and c[1] for c in counts.values())
  assert any('1: 80, ' not in n and n.startswith('train: 900 rows') for n in dataset.notes)





def test_chain_uses_a_space_up_to_its_limit(tmp_path):
  dataset = datasets.load_dataset(
      make_chain_data(tmp_path, min_steps=1, max_steps=1, num_train=62), quiet)
  assert len(dataset.splits['train']) == 62


# Rows and files.

QUESTION = 'Tom  has 2 cats\u2028and \u00a312; "how" many\\legs? \x00'

@pytest.mark.parametrize('extension', ['jsonl', 'txt', 'json', 'jsonl_gz', 'txt_gz'])
def test_files_are_read_bit_for_bit(tmp_path, extension):
  texts = [(QUESTION, (), '0'), ('nine', tuple(f'{i}*-.5=-{i / 2}' for i in range(9)), '-4.0'),
           ('\u00e9\u2028\x85\x0c\u4e16\U0001f600', ('1=1',), '12')]
  if extension.startswith('txt'):
    lines = [f"{q}||{' '.join(f'<<{s}>>' for s in steps)} #### {a}" for q, steps, a in texts]
  else:
    lines = [json.dumps({'question': q, 'steps': steps, 'answer': a}, ensure_ascii=False)
             for q, steps, a in texts]
  train = '\n'.join(lines).encode()  # the last line is not ended
  test = '\r\n'.join(lines).encode() + b'\r\n\n \n'
  if extension.endswith('gz'):
    train, test = gzip.compress(train, mtime=0), gzip.compress(test)
  folder = write_rows(tmp_path / 'in', valid=make_rows(1),
                      **{f'train__{extension}': train, f'test__{extension}': test})
  dataset = load_files(folder, tmp_path)
  assert read_texts(dataset.splits['train']) == read_texts(dataset.splits['test']) == texts
  name = f"train.{extension.replace('_', '.')}"
  assert [r.origin for r in dataset.splits['train']] == [f'{name}:{i}' for i in (1, 2, 3)]
  assert dataset.splits['train'].fingerprint == dataset.splits['test'].fingerprint
  assert dataset.notes[0] == (
      'train: 3 rows, 1 without steps (rows by number of steps 0: 1, 1: 1, 9: 1)')
  assert 'test: 3 of its questions are also in train' in dataset.notes


def test_a_whole_file_may_be_one_list(tmp_path):
  """As Coconut's files are, with keys beside the three."""
  rows = [row | {'edges': [[0, 1]]} for row in make_rows(4)]
  folder = write_rows(tmp_path / 'in', train__json=json.dumps(rows, indent=1).encode(),
                      test__json=b' ' + json.dumps(rows[:2]).encode(), valid=rows[:1])
  dataset = load_files(folder, tmp_path)
  assert [(r.question, list(r.steps), r.answer) for r in dataset.splits['train']] == [
      (row['question'], row['steps'], row['answer']) for row in rows]
  assert [r.origin for r in dataset.splits['test']] == ['test.json:1', 'test.json:2']
  for content, what in (
      (b'[{"question": "q", "steps": [], "answer": "1"}, 3]', 'json:2: not a JSON object'),
      (b'[{"question": "q"', 'train.json: not JSON .Expecting'), (b'[]', 'no rows')):
    (folder / 'train.json').write_bytes(content)
    with pytest.raises(UserError, match=what) as error:
      load_files(folder, tmp_path)
    assert '\n' not in str(error.value)


BAD = {
    b'': 'an empty line',
    b'nonsense': 'neither a JSON object',
    b'["q"]': 'neither a JSON object',
    b'{"question": "q", ': 'not JSON',
    b'{"question": "\xff", "steps": [], "answer": "1"}': 'no UTF-8 (invalid start byte at byte 14)',
    b'\xef\xbb\xbf{"question": "q", "steps": [], "answer": "1"}': 'byte order mark',
    b'{"question": "\\ud800", "steps": [], "answer": "1"}': 'surrogate',
    b'{"steps": [], "answer": "1"}': 'its keys are answer, steps; a row needs question + steps',
    b'{"question": "q", "steps": []}': 'its keys are question, steps; a row needs',
    b'{"question": "q", "steps": [], "answer": true}': (
        "'answer' should be a string or a number, not true"),
    b'{"question": "q", "steps": [], "answer": NaN}': "'answer' is nan, which is no number",
    b'{"question": "q", "steps": [], "answer": 1e999999999}': 'a number of more than 400 digits',
    b'{"question": "q", "x": "' + b'x' * 1_000_000 + b'"}': 'bytes; a row may have 1,000,000',
    b'{"question": null, "steps": [], "answer": "1"}': "'question' should be a string, not null",
    b'{"question": "q", "steps": [], "answer": " "}': 'the answer is empty',
    b'{"question": " ", "steps": [], "answer": "1"}': 'the question is empty',
    b'{"question": "q", "steps": 5, "answer": "1"}': "'steps' should be a list of strings, or",
    b'{"question": "q", "cot": "He has one.", "answer": "1"}': (
        "'cot' has no <<a*b=c>>, and its lines are no equations; read sentences as steps with "),
    b'{"question": "q", "steps": "[1", "answer": "1"}': "'steps' begins with [ and is no JSON list",
    b'{"problem": "q", "solution": "1"}': "'solution' has no \\boxed{...}",
    b'{"messages": [{"role": "user", "content": "q"}]}': "'messages' are of user; one question",
    b'{"question": "q", "steps": [1, 2.5], "answer": "1"}': 'on each line, not [1, 2.5]; fix',
    b'{"question": "q", "steps": ["1", null], "answer": "1"}': 'on each line, not ["1", null]; fix',
    b'{"question": "q", "steps": ["1", " "], "answer": "1"}': 'step 2 is empty',
    b'{"question": "q", "steps": ["<<1=1"], "answer": "1"}': 'step 1 has a stray',
    b'{"question": "q", "steps": [], "answer": "x #### 1"}': "second '####'",
    b'{"question": "q", "answer": "1\\n2"}': "no '####' before the answer",
    b'{"question": "q", "answer": "<<1=1>> #### 1 #### 2"}': "second '####'",
    b'{"question": "q", "answer": "<<1=1>>\\n#### 1\\nThe answer is: 1"}': (
        "more text after the answer's line: 'The answer is: 1'; end the solution with"),
    b'{"question": "q", "answer": "<<1=1 #### 1"}': 'a << without its >>',
    b'{"question": "q", "answer": "<<>> #### 1"}': 'step 1 is empty',
    b'q||<<1=1>> 1': "no '####' before the answer",
    b'q||He has 1 = 1 cat. #### 1': "'He has 1 = 1 cat.' stands outside << >>",
    b'||<<1=1>> #### 1': 'the question is empty',
}


@pytest.mark.parametrize('line, what', BAD.items(), ids=BAD.values())
def test_bad_row_stops_and_is_named(tmp_path, line, what):
  good = b'{"question": "q", "steps": [], "answer": "1"}\n'
  folder = write_rows(tmp_path / 'in', train=make_rows(5), test=good + line + b'\n' + good)
  with pytest.raises(UserError) as error:
    load_files(folder, tmp_path)
  message = str(error.value)
  assert message.startswith(f"{folder / 'test.jsonl'}:2: ") and what in message
  assert message.endswith(', or drop bad rows with --config.data.on_bad_rows=drop')
  assert '\n' not in message and not list((tmp_path / 'cache' / 'prepared').iterdir())


def test_bad_rows_are_dropped_and_counted_when_asked(tmp_path):
  good = b'{"question": "good", "steps": [], "answer": "1"}\n'
  bad = [*BAD, b'{"\\ud800\\n": 1}']  # which no file holds as it is
  folder = write_rows(tmp_path / 'in', train=make_rows(5),
                      test=good + b''.join(line + b'\n' for line in bad) + good)
  for _ in range(2):  # prepared, then reused
    dataset = load_files(folder, tmp_path, on_bad_rows='drop')
    assert dataset.num_dropped == {'train': 0, 'valid': 0, 'test': len(bad)}
    assert [r.origin for r in dataset.splits['test']] == [
        'test.jsonl:1', f'test.jsonl:{len(bad) + 2}']
    note, listed = [n for n in dataset.notes if 'dropped' in n]
    assert note.startswith(f'test: dropped {len(bad)} bad rows: test.jsonl:2: an empty line; '
                           'test.jsonl:3: neither') and note.endswith('; ...')
    text, _, path = listed.partition(': ')
    assert text == 'all bad rows that were dropped'
    lines = pathlib.Path(path).read_text('utf-8').split('\n')
    assert lines[0] == 'test.jsonl:2: an empty line' and lines[-1] == ''
    assert [int(line.split(':')[1]) for line in lines[:-1]] == [*range(2, len(bad) + 2)]
  with pytest.raises(UserError, match='test.jsonl:2'):  # what 'drop' prepared is not 'stop'
    load_files(folder, tmp_path)


@pytest.mark.parametrize('files, what', [
    (None, "no such directory"),
    ({'test': make_rows(2), 'notes__md': b'x'}, 'no train file (looked for train with .jsonl, '),
    ({'test': make_rows(2), 'notes__md': b'x'}, 'there: notes.md, test.jsonl;'),
    ({'train': make_rows(5)}, 'no test file'),
    ({'train': make_rows(5), 'train__txt': b'x', 'test': b''},
     'train.jsonl and train.txt are both the train split; keep one'),
    ({'train': make_rows(5), 'test': b'\n\n'}, 'test.jsonl: no rows (of 0 lines)'),
    ({'train': make_rows(5), 'test__jsonl_gz': gzip.compress(b'x' * 999, mtime=0)[:-9]},
     'test.jsonl.gz: '),
    ({'train': make_rows(5), 'test__jsonl_gz': b'plain'}, 'test.jsonl.gz: '),
    ({'train': make_rows(2), 'test': make_rows(2)},
     '2 questions, of which data.num_valid=2 should be held out; lower num_valid')], ids=str)
def test_bad_directory_is_told_in_one_line(tmp_path, files, what):
  if files is not None:
    write_rows(tmp_path / 'in', **files)
  with pytest.raises(UserError) as error:
    load_files(tmp_path / 'in', tmp_path)
  message = str(error.value)
  assert what in message and str(tmp_path / 'in') in message
  assert '\n' not in message and '; ' in message


def test_questions_that_stand_in_two_splits_are_told_whatever_their_case_and_spaces(tmp_path):
  def load(name, *questions):
    dataset = load_files(write_rows(tmp_path / name, **{
        split: [{'question': q, 'steps': [], 'answer': '1'} for q in asked]
        for split, asked in zip(('train', 'valid', 'test'), questions)}), tmp_path)
    return [n for n in dataset.notes if 'question' in n]
  assert load('apart', ['a b?', 'c?'], ['d?'], ['e?', 'f?']) == []
  assert load('repeated', ['a b?'], ['d?', 'd?'], ['e?', ' E?', 'e?']) == [
      'valid: 1 rows repeat the question of an earlier row',
      'test: 2 rows repeat the question of an earlier row']
  assert load('shared', ['a b?', 'A  b? ', 'a\nB?', 'c?'], ['d?', ' A b?'], ['D?', 'C?', 'c?']) == [
      'train: 2 rows repeat the question of an earlier row',
      'valid: 1 of its questions are also in train',
      'test: 1 rows repeat the question of an earlier row',
      'test: 2 of its questions are also in train',
      'test: 1 of its questions are also in valid']


def test_held_out_questions_do_not_depend_on_row_order(tmp_path):
  rows = make_rows(40) + [{**row, 'answer': '0'} for row in make_rows(40)]  # each question twice
  shuffled = random.Random(0).sample(rows, len(rows))
  first, other = (load_files(write_rows(tmp_path / name, train=r, test=make_rows(3, 'test')),
                             tmp_path, num_valid=10) for name, r in [('a', rows), ('b', shuffled)])
  assert read_texts(first.splits['valid']) == read_texts(other.splits['valid'])
  for dataset in (first, other):
    questions = {name: {r.question for r in split} for name, split in dataset.splits.items()}
    assert len(questions['valid']) == 10 and not questions['valid'] & questions['train']
    assert questions['valid'] | questions['train'] == {row['question'] for row in rows}
    assert [len(s) for s in dataset.splits.values()] == [60, 20, 3]
    assert 'valid: 20 rows held out of train.jsonl by question hash' in dataset.notes
  origins = {r.origin for name in ('train', 'valid') for r in first.splits[name]}
  assert origins == {f'train.jsonl:{i + 1}' for i in range(80)}


# GSM-Hard.


def test_records_that_are_no_split_have_the_fingerprint_of_one(tmp_path):
  split = datasets.load_dataset(make_chain_data(tmp_path), quiet).splits['test']
  rows = split.__getitems__(range(len(split)))
  assert datasets.fingerprint_records(rows) == split.fingerprint
  assert datasets.fingerprint_records(rows[:-1]) != split.fingerprint


# Prepared copies.


def test_prepared_once_and_never_stale(tmp_path, capfd, monkeypatch):
  said = []
  (tmp_path / 'tmp').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
  folder = write_rows(tmp_path / 'in', train=make_rows(9), valid=make_rows(3, 'v'),
                      test=make_rows(3, 't'))
  first = load_files(folder, tmp_path, said.append)
  again = load_files(folder, tmp_path, said.append, num_valid=99)  # not used: there is a valid file
  assert len(said) == 1 and said[0].startswith('rim_gsm8k: preparing ')
  assert (first.fingerprint, first.notes) == (again.fingerprint, again.notes)
  text = (folder / 'train.jsonl').read_text()
  (folder / 'train.jsonl').write_text(text.replace('q 3?', 'q 4?'))  # same size
  os.utime(folder / 'train.jsonl', (0, 0))
  edited = load_files(folder, tmp_path, said.append)
  marked = load_files(folder, tmp_path, said.append, step_marks=True)
  assert len(said) == 3
  assert edited.splits['train'][3].question == 'q 4?'
  assert marked.splits['train'][3].steps == ('<<3+1=4>>',)
  prints = [[d.fingerprint] + [s.fingerprint for s in d.splits.values()]
            for d in (first, edited, marked)]
  for i, (before, after) in enumerate(zip(prints[0], prints[1])):
    assert (before != after) == (i < 2)  # dataset and train; valid and test are what they were
  assert not set(prints[1]) & set(prints[2])
  assert all(re.fullmatch('[0-9a-f]{16}', f) for fingerprints in prints for f in fingerprints)
  captured = capfd.readouterr()
  assert captured.out == captured.err == ''  # TFDS is kept quiet,
  assert not list((tmp_path / 'tmp').iterdir())  # and tidy


def test_split_reads_by_index_pickles_and_feeds_grain(tmp_path):
  split = datasets.load_dataset(make_chain_data(tmp_path), quiet).splits['train']
  records = list(split)
  assert len(records) == len(split) == 60
  assert split[-1] == records[59] and split.__getitems__([5, 0, 5]) == [
      records[5], records[0], records[5]]
  assert split.__getitems__([]) == []
  for bad in (60, -61):
    with pytest.raises(IndexError):
      split[bad]
    with pytest.raises(IndexError):
      split.__getitems__([0, bad])
  pickled = pickle.dumps(split)
  assert len(pickled) < 20_000  # not the input files
  assert list(pickle.loads(pickled)) == records
  shuffled = grain.MapDataset.source(split).seed(0).shuffle()
  assert sorted(r.origin for r in shuffled) == sorted(r.origin for r in records)
  assert list(shuffled) != records


@pytest.mark.parametrize('damage', ['truncate', 'empty', 'delete', 'card', 'info', 'flip'])
def test_damaged_copy_is_told_in_one_line(tmp_path, damage):
  config = make_chain_data(tmp_path, num_train=500)
  datasets.load_dataset(config, quiet)
  [records] = tmp_path.glob('cache/prepared/rim_chain/*/*/*-train.array_record*')
  directory = records.parent
  content = records.read_bytes()
  if damage == 'truncate':
    records.write_bytes(content[:-1000])
  elif damage == 'empty':
    records.write_bytes(b'')
  elif damage == 'delete':
    records.unlink()
  elif damage == 'flip':
    i = 20_000  # among the records, neither the first nor the last
    records.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1:])
  else:
    path = directory / {'card': 'card.json', 'info': 'dataset_info.json'}[damage]
    path.write_bytes(path.read_bytes()[:40])
  for read in (list, lambda split: split.__getitems__(range(500))):
    with pytest.raises(UserError) as error:
      split = datasets.load_dataset(config, quiet).splits['train']
      assert damage == 'flip'  # all others show at once
      read(split)
    starts, ends = {'card': ('/card.json: is damaged ', f'; delete {directory} and run again')}.get(
        damage, (': damaged prepared copy: ', '; delete this directory and run again'))
    assert str(error.value).startswith(f'{directory}{starts}')
    assert str(error.value).endswith(ends)
    assert '\n' not in str(error.value)


def test_killed_preparation_leaves_nothing_that_is_read(tmp_path):
  config = make_chain_data(tmp_path)
  program = '\n'.join([
      'import os, signal',
      'from rim_jax.data import datasets',
      'from rim_jax.config import ChainConfig, DataConfig, PerturbedConfig, ProsqaConfig',
      'def generate(self, records, tally):',
      '  yield 0, {**vars(records[0]), "steps": list(records[0].steps)}',
      '  os.kill(os.getpid(), signal.SIGKILL)',
      'datasets.Builder._generate_examples = generate',
      f'datasets.load_dataset({config!r})'])
  root = pathlib.Path(__file__).resolve().parents[2]
  killed = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True)
  assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
  assert list((tmp_path / 'cache' / 'prepared').iterdir())
  said = []
  assert len(list(datasets.load_dataset(config, said.append).splits['train'])) == 60
  assert len(said) == 1


def test_a_process_waits_for_the_one_that_prepares_and_takes_what_it_made(tmp_path):
  made = tmp_path / 'other'
  records = list(datasets.load_dataset(make_chain_data(made), quiet).splits['test'])
  root, said = tmp_path / 'cache' / 'prepared', []
  root.mkdir(parents=True)
  with futures.ThreadPoolExecutor(1) as pool:
    with locks.hold(root.with_suffix('.lock'), waits=True):
      waiting = pool.submit(datasets.load_dataset, make_chain_data(tmp_path), said.append)
      time.sleep(0.5)
      shutil.copytree(made / 'cache' / 'prepared', root, dirs_exist_ok=True)
    assert list(waiting.result(60).splits['test']) == records
  assert said == [f'{root}.lock: waiting for the process that has this lock']


def test_a_long_preparation_says_how_far_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, '_NUM_BETWEEN', 25)
  said = []
  datasets.load_dataset(make_chain_data(tmp_path), said.append)
  assert said[1:] == [f'rim_chain: {n} records written' for n in (25, 50)]


def test_another_process_may_prepare_the_same_first_where_there_are_no_locks(tmp_path, monkeypatch):
  support_locks.refuse_locks(monkeypatch, errno.ENOLCK)
  config = make_chain_data(tmp_path)
  rename, renamed = os.rename, []

  def come_second(source, target):
    monkeypatch.setattr(datasets.os, 'rename', rename)
    datasets.load_dataset(config, quiet)  # the other process, between our last look and our rename
    renamed.append(target)
    rename(source, target)

  monkeypatch.setattr(datasets.os, 'rename', come_second)
  assert len(list(datasets.load_dataset(config, quiet).splits['train'])) == 60
  assert renamed and [p.name for p in (tmp_path / 'cache' / 'prepared').iterdir()] == ['rim_chain']


def test_unwritable_cache_is_told_in_one_line(tmp_path):
  (tmp_path / 'cache').write_text('a file')
  with pytest.raises(UserError, match='data.cache_dir=.*; make it writable'):
    datasets.load_dataset(make_chain_data(tmp_path), quiet)
  config = dataclasses.replace(make_chain_data(tmp_path), cache_dir='gs://bucket/cache')
  with pytest.raises(UserError, match='gs://bucket/cache.*not a local directory'):
    datasets.load_dataset(config, quiet)


# Downloads.


class Server(http.server.ThreadingHTTPServer):
  """Serves `files`; counts requests; cuts off what is in `cut`; `drips`, a byte at a time."""

  def __init__(self, files):
    super().__init__(('127.0.0.1', 0), Handler)
    self.files, self.cut, self.requests, self.drips = files, set(), [], False
    self.url = f'http://127.0.0.1:{self.server_port}/data'


class Handler(http.server.BaseHTTPRequestHandler):

  def log_message(self, *_):
    pass

  def do_GET(self):
    name = self.path.removeprefix('/data/')
    self.server.requests.append(name)
    if name not in self.server.files:
      self.send_error(404)
      return
    content = self.server.files[name]
    self.send_response(200)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    with contextlib.suppress(ConnectionError):  # given up
      for at in range(200 * self.server.drips):  # no read of it ever waits for long
        self.wfile.write(content[at:at + 1])
        time.sleep(0.05)
      self.wfile.write(content[:100] if name in self.server.cut else content)


@pytest.fixture
def server(tmp_path, monkeypatch):
  folder = write_rows(tmp_path / 'served', train=make_rows(30), test=make_rows(5, 't'))
  files = {p.name: p.read_bytes() for p in folder.iterdir()}
  monkeypatch.setattr(gsm8k, 'GSM8K_FILES', {
      name: (len(files[name]), hashlib.sha256(files[name]).hexdigest())
      for name in ('train.jsonl', 'test.jsonl')})
  with Server(files) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def list_downloads(tmp_path):
  folder = tmp_path / 'cache' / 'downloads' / 'gsm8k'
  return {p.name: p.read_bytes() for p in folder.glob('*')}


def test_download_once_and_again_when_damaged(tmp_path, server):
  said = []
  dataset = load_files('', tmp_path, said.append, url=server.url + '/')
  assert [len(s) for s in dataset.splits.values()] == [28, 2, 5]
  assert list_downloads(tmp_path) == server.files
  assert [line.split(' (')[0] for line in said[:2]] == [
      f'rim_gsm8k: downloading {server.url}/{name}' for name in ('train.jsonl', 'test.jsonl')]
  load_files('', tmp_path, url=server.url)
  assert server.requests == ['train.jsonl', 'test.jsonl']
  (tmp_path / 'cache/downloads/gsm8k/test.jsonl').write_bytes(b'damaged')
  load_files('', tmp_path, url=server.url)
  assert server.requests == ['train.jsonl', 'test.jsonl', 'test.jsonl']
  assert list_downloads(tmp_path) == server.files


def test_a_download_that_drips_ends(tmp_path, server, monkeypatch):
  server.drips = True
  monkeypatch.setattr(hub, 'get_deadline', lambda num_bytes: 0.3)
  with pytest.raises(UserError, match='took more than 0 s; download it yourself') as error:
    load_files('', tmp_path, url=server.url)
  assert '\n' not in str(error.value) and list_downloads(tmp_path) == {}


@pytest.mark.parametrize('fault, what', [
    ('wrong', 'not the file expected'), ('longer', 'not the file expected'),
    ('cut', 'cut off after 100 of '), ('missing', 'HTTP Error 404'), ('refused', 'refused')])
def test_bad_download_is_told_and_not_kept(tmp_path, server, fault, what):
  url, good = server.url, dict(server.files)
  if fault == 'wrong':
    server.files['test.jsonl'] = good['test.jsonl'].replace(b't 3?', b't 4?')
  elif fault == 'longer':
    server.files['test.jsonl'] = good['test.jsonl'] + b'\n'
  elif fault == 'cut':
    server.cut.add('test.jsonl')
  elif fault == 'missing':
    del server.files['test.jsonl']
  else:
    url = 'http://127.0.0.1:9'
  with pytest.raises(UserError, match=what) as error:
    load_files('', tmp_path, url=url)
  name = 'train.jsonl' if fault == 'refused' else 'test.jsonl'
  assert str(error.value).startswith(f'{url}/{name}: ') and '\n' not in str(error.value)
  assert str(error.value).endswith('; download it yourself and pass --config.data.dir=DIR')
  kept = {} if fault == 'refused' else {'train.jsonl': good['train.jsonl']}
  assert list_downloads(tmp_path) == kept
