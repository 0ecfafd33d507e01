"""Records of a task, written once by TFDS and then read by index.

`load_dataset` prepares a copy of a source's records in array_record files, under a name that holds
the fingerprint of everything it was made from.
"""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import sys
import typing

from absl import logging
import tensorflow_datasets as tfds

from rim_jax import locks, reader
from rim_jax.config import DataConfig
from rim_jax.data import hub, sources
from rim_jax.data import records as records_lib
from rim_jax.data.records import SPLITS, Record, Variant
from rim_jax.errors import UserError

_DROPPED = 'dropped.txt'  # of a prepared copy: a line for each bad row that was dropped
_QUESTIONS = 'questions.bin'  # of a prepared copy: a hash for each row of train
_HASH_BYTES = 12
_NUM_BETWEEN = 50_000  # records from one line that tells of them to the next


class Split:
  """The records of one split, read by index from a prepared copy; picklable.

  Raises: UserError where the prepared copy turns out to be damaged.
  """

  def __init__(self, directory: str, name: str, fingerprint: str):
    self.name = name
    self.fingerprint = fingerprint  # of questions, steps and answers in their order; 16 hex digits
    self._directory = directory
    with _report_damage(directory), _quiet():
      # Opened as a directory, not through its builder: the builder holds whole input
      # files, which would travel along wherever a split is pickled to.
      builder = tfds.builder_from_directory(directory)
      self._source = builder.as_data_source(split=name)
      shard_ends = list(itertools.accumulate(builder.info.splits[name].shard_lengths))
    # A file that is missing or cut short shows here, a flipped byte when its record is read.
    self.__getitems__([0] + [end - 1 for end in shard_ends])

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index) -> Record:
    index = range(len(self))[index]  # IndexError where out of range
    with _report_damage(self._directory):  # by itself: several at a time are read by threads
      return _decode(self._source[index])

  def __getitems__(self, indices) -> list[Record]:
    indices = [range(len(self))[i] for i in indices]
    with _report_damage(self._directory):
      return [_decode(example) for example in self._source.__getitems__(indices)]

  def __iter__(self) -> Iterator[Record]:
    for first in range(0, len(self), 1000):  # several at a time, but not all
      yield from self.__getitems__(range(first, min(first + 1000, len(self))))


def _decode(example):
  texts = {key: reader.decode(example[key]) for key in ('question', 'answer', 'origin')} | {
      'steps': tuple(map(reader.decode, example['steps']))}
  if 'variant' in example:
    return Variant(**texts, source_row=int(example['source_row']), variant=int(example['variant']))
  return Record(**texts)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits of a task, and what a person should know of them."""
  name: str  # rim_chain | rim_gsm8k | rim_gsm8k_perturbed | rim_prosqa
  fingerprint: str  # of all it was made from: files, parameters, version; 16 hex digits
  splits: dict[str, Split]  # train, valid, test
  num_dropped: dict[str, int]  # bad rows dropped from each split's file
  notes: tuple[str, ...]  # counts, dropped rows, a held-out split, questions in two splits
  origin: str = ''  # name and revision on the hub of what it was made from
  directory: str = ''  # of the prepared copy
  alike: str = ''  # its fingerprint with the other value of data.on_bad_rows, if no row is bad

  def describe_shared(self, name: str, records: Iterable[Record]) -> list[str]:
    """A line where questions of the set `name` are also in train, whatever case and spaces."""
    path = pathlib.Path(self.directory) / _QUESTIONS
    if not path.exists():
      return [f'{name}: not compared with train, which an earlier version prepared in '
              f'{self.directory}; delete this directory to have it compared']
    asked = collections.Counter(_hash_question(record.question) for record in records)
    with path.open('rb') as file:
      shared = {x for x in iter(lambda: file.read(_HASH_BYTES), b'') if x in asked}
    num_shared = sum(asked[x] for x in shared)
    return [f'{name}: {num_shared} of its questions are also in train'] if num_shared else []


class Card(typing.TypedDict):
  """What a prepared copy says of itself in its card.json."""
  fingerprints: dict[str, str]
  num_dropped: dict[str, int]
  notes: list[str]


def load_dataset(config: DataConfig, say=print) -> Dataset:
  """The dataset a config asks for; prepared on first use, reused afterwards.

  `say` gets one line for each download or preparation.
  Raises: UserError for a bad row or file, a space too small, a failed download, a cache
    directory that cannot be written, or a prepared copy that is damaged.
  """
  if '://' in config.cache_dir:  # pathlib would quietly make a local directory 'gs:'
    raise UserError(f"data.cache_dir='{config.cache_dir}': not a local directory; pass one")
  origin = ''
  if hub.is_name(config.dir):
    fetched = hub.fetch(config.dir, 'dataset', say)
    origin, config = fetched.origin, dataclasses.replace(config, dir=str(fetched.path))
  source = sources.SOURCES[config.source](config, say)
  root = pathlib.Path(config.cache_dir).expanduser() / 'prepared'
  directory = root / source.name / source.fingerprint / sources.VERSIONS[source.name]
  if not directory.exists():
    with records_lib.report_unwritable(config):
      root.mkdir(parents=True, exist_ok=True)
      # One process at a time prepares; the others wait, and find what it made.
      with locks.hold(root.with_suffix('.lock'), waits=True, say=say):
        if not directory.exists():
          say(f'{source.name}: preparing {directory}')
          _prepare(source, root, directory, say)
  with _report_damage(directory):
    card = reader.load_json(directory / 'card.json', f'delete {directory} and run again', Card)
    splits = {name: Split(str(directory), name, card['fingerprints'][name]) for name in SPLITS}
    dropped = directory / _DROPPED  # earlier versions wrote none
    listed = [f'all bad rows that were dropped: {dropped}'] if dropped.exists() else []
    # Files that were not read are of today's directory, not of the one that was prepared: they are
    # in no fingerprint.
    return Dataset(name=source.name, fingerprint=source.fingerprint, splits=splits,
                   num_dropped=card['num_dropped'],
                   notes=(*card['notes'], *listed, *source.unread), origin=origin,
                   directory=str(directory), alike=source.alike)


def _prepare(source, root, directory, say):
  """Writes a prepared copy, which appears under its name complete or not at all."""
  with records_lib.make_scratch(root) as temporary:
    with _quiet(say) as say_aloud:
      made = source.make(say_aloud)
      builder = Builder(source, {name: made.splits[name] for name in SPLITS}, temporary,
                        say_aloud)
      builder.download_and_prepare()
    card = {
        'fingerprints': {name: tally.get_fingerprint() for name, tally in builder.tallies.items()},
        'num_dropped': {name: len(made.dropped.get(name, ())) for name in SPLITS},
        'notes': _describe(builder.tallies) + made.notes,
    }
    folder = pathlib.Path(builder.data_dir)
    (folder / 'card.json').write_text(json.dumps(card, indent=1))
    (folder / _QUESTIONS).write_bytes(b''.join(builder.tallies['train'].questions))
    dropped = [' '.join(line.split()) for name in SPLITS for line in made.dropped.get(name, ())]
    if dropped:
      (folder / _DROPPED).write_bytes(
          ''.join(f'{line}\n' for line in dropped).encode(errors='backslashreplace'))
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
      os.rename(folder, directory)
    except OSError:  # where there are no locks, another process may have been first
      if not directory.exists():
        raise


def _report_damage(directory):
  # Whatever is raised: TFDS, protobuf and array_record have no class in common.
  return records_lib.report(f'{directory}: damaged prepared copy',
                            'delete this directory and run again')


@contextlib.contextmanager
def _quiet(say=print):
  """TFDS prints banners and progress bars, and warns of every config made at run time.

  Gives `say` as a function that is heard all the same.
  """
  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  stdout = sys.stdout

  def say_aloud(line):
    with contextlib.redirect_stdout(stdout):
      say(line)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield say_aloud
  finally:
    logging.set_verbosity(verbosity)


class _LocalInfo(tfds.core.DatasetInfo):

  def initialize_from_bucket(self):
    """Nothing: TFDS's own leaves an empty temporary directory behind, and finds no bucket."""


def _hash_question(text):
  """The same for questions that differ in case and spaces alone."""
  return hashlib.sha256(' '.join(text.split()).casefold().encode()).digest()[:_HASH_BYTES]


class _Tally:
  """What is known of a split once its records have passed by, in their order."""

  def __init__(self):
    self.counts = collections.Counter()  # number of steps -> records
    self.questions = []  # a hash of each
    self._digest = hashlib.sha256()

  def add(self, record):
    self.counts[len(record.steps)] += 1
    self.questions.append(_hash_question(record.question))
    self._digest.update(sources.to_line([record.question, record.steps, record.answer]))

  def get_fingerprint(self):
    return self._digest.hexdigest()[:16]


def fingerprint_records(records) -> str:
  """That of records which are no split, as a split of them would have it."""
  tally = _Tally()
  for record in records:
    tally.add(record)
  return tally.get_fingerprint()


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the records of a source in their order, as they come."""

  def __init__(self, source, splits, folder, say):
    self.name = source.name  # pyright: ignore[reportAttributeAccessIssue]
    self.VERSION = tfds.core.Version(sources.VERSIONS[source.name])
    self._fields, self._splits, self._say = source.fields, splits, say
    self.tallies = {name: _Tally() for name in splits}
    super().__init__(data_dir=folder, file_format='array_record',
                     config=tfds.core.BuilderConfig(name=source.fingerprint))

  def _info(self):
    text = tfds.features.Text()
    features = {'question': text, 'steps': tfds.features.Sequence(text), 'answer': text,
                'origin': text, **self._fields}
    return _LocalInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(records, self.tallies[name])
            for name, records in self._splits.items()}

  def _generate_examples(self, records, tally):
    for i, record in enumerate(records):
      if i and i % _NUM_BETWEEN == 0:
        self._say(f'{self.name}: {i:,} records written')
      tally.add(record)
      yield i, {**vars(record), 'steps': list(record.steps)}


def _describe(tallies) -> list[str]:
  """Notes on every split: rows by number of steps, and questions that are there before."""
  notes, earlier = [], {}  # split -> its questions
  for name, tally in tallies.items():
    counts = sorted(tally.counts.items())
    steps = ', '.join(f'{t}: {n}' for t, n in counts)
    notes.append(f'{name}: {tally.counts.total()} rows, {tally.counts[0]} without steps '
                 f'(rows by number of steps {steps})')
    questions = set(tally.questions)
    num_repeated = len(tally.questions) - len(questions)
    if num_repeated:
      notes.append(f'{name}: {num_repeated} rows repeat the question of an earlier row')
    for other, found in earlier.items():
      num_shared = sum(q in found for q in tally.questions)
      if num_shared:
        notes.append(f'{name}: {num_shared} of its questions are also in {other}')
    earlier[name] = questions
  return notes
