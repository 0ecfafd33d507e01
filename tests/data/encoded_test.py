"""Stored ids are those that the tokenizer gives; a store is whole, or made again."""

import contextlib
import errno
import multiprocessing
import os
import pathlib
import pickle
import shutil
import time

import pytest

from rim_jax.config import DataConfig, TokenizerConfig
from rim_jax.data import datasets, encoded
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.data.records import Record
from rim_jax.errors import UserError
from tests import support_locks


class Records(list):
  """A split in memory."""
  name = 'train'

  @property
  def fingerprint(self):
    return datasets.fingerprint_records(self)

  def __getitems__(self, indices):
    return [self[i] for i in indices]


RECORDS = Records([
    Record('1+2+3', ('3', '6'), '6', 'r:1'), Record('9', (), '9', 'r:2'),
    Record('1?', ('8',), '8', 'r:3'), Record('1', ('2', ''), '', 'r:4'),
    Record('1', ('?',), '8', 'r:5')])
CHAIN = tokenizer_lib.load_tokenizer(TokenizerConfig(kind='chain'))


def load(folder, split=RECORDS, tokenizer=CHAIN, is_first=False, say=lambda line: None):
  return encoded.load_encoded(split, tokenizer, is_first, DataConfig(cache_dir=str(folder)), say)


def get_store(folder) -> pathlib.Path:
  store, = (pathlib.Path(folder) / 'encoded').iterdir()
  return store


def test_ids_are_the_tokenizer_s_and_a_record_that_it_refuses_has_none(tmp_path):
  found = pickle.loads(pickle.dumps(load(tmp_path)))  # as a worker gets it
  for i, record in enumerate(RECORDS):
    texts = [] if '?' in record.question + ''.join(record.steps) else [
        record.question, record.answer, *record.steps]
    assert found[i] == [CHAIN.encode(text) for text in texts]
    assert found.count_tokens(i) == list(map(len, found[i]))
  assert len(found) == len(RECORDS)


def test_more_records_than_are_encoded_at_a_time(tmp_path):
  split = Records([Record(str(i), ('1',) * (i % 3), '2', f'r:{i}') for i in range(2500)])
  found = load(tmp_path, split)
  for i in (0, 999, 1000, 1001, 2499):
    assert list(map(CHAIN.decode, found[i])) == [str(i), '2', *['1'] * (i % 3)]


@pytest.mark.parametrize('split', [Records(), Records(RECORDS[2:3])])
def test_a_split_of_nothing_that_can_be_encoded(split, tmp_path):
  found = load(tmp_path, split)
  assert [found[i] for i in range(len(found))] == [[]] * len(split)


def test_large_ids_are_kept(tmp_path):
  class Wide(tokenizer_lib.ByteTokenizer):
    vocab_size, fingerprint = 70_000, 'wide'

    def encode(self, text, allow_special=False, is_first=False):
      return [69_999, *text.encode()]
  assert load(tmp_path, tokenizer=Wide())[1] == [[69_999, 57]] * 2
  assert load(tmp_path)[1] == [[9], [9]]  # another tokenizer's ids are another store


def test_a_question_that_begins_its_sequence_has_a_store_of_its_own(tmp_path):
  class Marks(tokenizer_lib.ByteTokenizer):
    vocab_size, fingerprint, marks_start = 300, 'marks', True

    def encode(self, text, allow_special=False, is_first=False):
      return [299] * is_first + list(text.encode())
  assert load(tmp_path, tokenizer=Marks(), is_first=True)[3] == [[299, 49], [], [50], []]
  assert load(tmp_path, tokenizer=Marks())[3] == [[49], [], [50], []]


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [
    flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()])
@pytest.mark.parametrize('name', ['ids.bin', 'texts.bin', 'firsts.bin', 'card.json'])
def test_it_is_made_once_and_what_is_damaged_is_made_again(name, damage, tmp_path):
  told = []
  load(tmp_path, say=told.append)
  load(tmp_path, say=told.append)
  assert told == ['encoding 5 train records (kept for the next run)']
  damage(get_store(tmp_path) / name)
  assert load(tmp_path, say=told.append)[0] == [CHAIN.encode(x) for x in ('1+2+3', '6', '3', '6')]
  assert told[1:] == [f'{get_store(tmp_path)}: damaged, made again', told[0]]


def test_a_store_that_is_read_stays_readable_while_it_is_made_again(tmp_path):
  found = load(tmp_path)
  flip(get_store(tmp_path) / 'card.json')
  load(tmp_path)
  assert CHAIN.decode(found[0][0]) == '1+2+3'


def make_at_once(folder, barrier, queue):
  told = []
  barrier.wait()
  queue.put((load(folder, say=told.append)[0], told))


def test_several_processes_make_one_store(tmp_path):
  context = multiprocessing.get_context('fork')
  barrier, queue = context.Barrier(3), context.Queue()
  workers = [context.Process(target=make_at_once, args=(tmp_path, barrier, queue))
             for _ in range(3)]
  for worker in workers:
    worker.start()
  found = [queue.get(timeout=300) for _ in workers]
  for worker in workers:
    worker.join()
  assert [ids for ids, _ in found] == [[CHAIN.encode(x) for x in ('1+2+3', '6', '3', '6')]] * 3
  assert sum(line.startswith('encoding') for _, told in found for line in told) == 1
  assert [path.name for path in (tmp_path / 'encoded').iterdir()] == [get_store(tmp_path).name]


@pytest.mark.parametrize('is_whole', [True, False])
def test_a_store_that_another_host_made_meanwhile_is_taken_if_it_is_whole(is_whole, tmp_path):
  """Where hosts do not see each other's locks; here as it begins to encode itself."""
  load(tmp_path / 'other')
  if not is_whole:
    flip(get_store(tmp_path / 'other') / 'ids.bin')

  def make_elsewhere(line):
    shutil.copytree(tmp_path / 'other/encoded', tmp_path / 'mine/encoded', dirs_exist_ok=True)
  with contextlib.nullcontext() if is_whole else pytest.raises(UserError, match='not empty'):
    found = load(tmp_path / 'mine', say=make_elsewhere)
    assert found[0] == [CHAIN.encode(x) for x in ('1+2+3', '6', '3', '6')]
  assert [path.name for path in (tmp_path / 'mine/encoded').iterdir()] == [
      get_store(tmp_path / 'other').name]  # nothing is left behind


def test_a_store_is_made_where_there_are_no_locks(tmp_path, monkeypatch):
  support_locks.refuse_locks(monkeypatch, errno.ENOLCK)
  assert load(tmp_path)[1] == [[9], [9]]


def test_what_was_cut_off_leaves_nothing(tmp_path, monkeypatch):
  """A maker that was killed: its folder goes with the next one, and is never read."""
  scratch = tmp_path / 'encoded/incomplete.x/made'
  scratch.mkdir(parents=True)
  (scratch / 'ids.bin').write_bytes(b'123')
  os.utime(scratch.parent, (0, 0))
  load(tmp_path)
  assert not scratch.parent.exists()
  assert [path.name for path in (tmp_path / 'encoded').iterdir()] == [get_store(tmp_path).name]


def test_what_nobody_opened_for_a_month_goes_when_another_is_made(tmp_path):
  def age(split, days):
    load(tmp_path, split)
    store, = (tmp_path / 'encoded').glob(f'{split.fingerprint}*')
    os.utime(store / 'card.json', (time.time() - days * 86_400,) * 2)
    return store
  old, used, recent = (age(Records(RECORDS[i:i + 1]), days) for i, days in enumerate((31, 31, 29)))
  load(tmp_path, Records(RECORDS[1:2]))  # opened
  load(tmp_path)
  assert not old.exists() and used.exists() and recent.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'encoded').write_text('')
  with pytest.raises(UserError, match=r"data.cache_dir='.*make it writable, or pass --config.data"):
    load(tmp_path)


def test_ids_are_as_small_as_they_can_be(tmp_path):
  load(tmp_path)
  assert (get_store(tmp_path) / 'ids.bin').stat().st_size == 2 * sum(
      len(ids) for i in range(5) for ids in load(tmp_path)[i])
