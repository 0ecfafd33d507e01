"""Records of a task: TFDS builders for the chain task, GSM8K, its variants, and ProsQA.

Owns the fingerprints by which a changed file or parameter is noticed.
`load_dataset` prepares a copy in array_record files once, under a name that holds the
fingerprint of everything it was made from, and reads it by index from then on.
"""

import abc
import collections
from collections.abc import Iterable
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
import numpy as np
import tensorflow_datasets as tfds

from rim_jax import reader
from rim_jax.config import (
    ChainConfig,
    DataConfig,
    PerturbedConfig,
    ProsqaConfig,
    list_identity,
)
from rim_jax.data import chain as chain_lib
from rim_jax.data import files as files_lib
from rim_jax.data import gsm8k, hub, prosqa
from rim_jax.data import records as records_lib
from rim_jax.data.perturbed import variation
from rim_jax.data.records import SPLITS, Record, Variant
from rim_jax.errors import UserError

_ROWS_VERSION = 2  # goes up when more rows are read, or fewer


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
    with _report_damage(self._directory):
      return _decode(self._source[index])

  def __getitems__(self, indices) -> list[Record]:
    indices = [range(len(self))[i] for i in indices]
    with _report_damage(self._directory):
      return [_decode(example) for example in self._source.__getitems__(indices)]


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


class Card(typing.TypedDict):
  """What a prepared copy says of itself in its card.json."""
  fingerprints: dict[str, str]
  num_dropped: dict[str, int]
  notes: list[str]


@dataclasses.dataclass
class _Prepared:
  """What a builder makes, checked before anything of it is written."""
  splits: dict[str, Iterable[Record]]
  dropped: dict[str, list[str]]  # '<file>:<line>: <what>'
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
  builder_class, make_config = _SOURCES[config.source]
  builder_config = make_config(config, say)
  root = pathlib.Path(config.cache_dir).expanduser() / 'prepared'
  directory = root / builder_class.name / builder_config.name / str(builder_class.VERSION)
  if not directory.exists():
    say(f'{builder_class.name}: preparing {directory}')
    with records_lib.report_unwritable(config):
      _prepare(builder_class, builder_config, root, directory, say)
  with _report_damage(directory):
    card = reader.load_json(directory / 'card.json', f'delete {directory} and run again', Card)
    fingerprints, num_dropped = card['fingerprints'], card['num_dropped']
    splits = {name: Split(str(directory), name, fingerprints[name]) for name in SPLITS}
    # Files that were not read are of today's directory, not of the one that was prepared: they are
    # in no fingerprint.
    return Dataset(name=builder_class.name, fingerprint=builder_config.name, splits=splits,
                   num_dropped=num_dropped, notes=(*card['notes'], *builder_config.unread),
                   origin=origin)


def _prepare(builder_class, builder_config, root, directory, say):
  """Writes a prepared copy, which appears under its name complete or not at all."""
  root.mkdir(parents=True, exist_ok=True)
  with records_lib.make_scratch(root) as temporary:
    with _quiet() as aloud:
      builder = builder_class(
          data_dir=temporary, config=builder_config, file_format='array_record')
      builder.say = lambda line: aloud(say, line)
      builder.download_and_prepare()
    made = builder.prepared
    card = {
        'fingerprints': {name: tally.get_fingerprint() for name, tally in builder.tallies.items()},
        'num_dropped': {name: len(made.dropped.get(name, ())) for name in made.splits},
        'notes': _describe(builder.tallies) + made.notes,
    }
    (pathlib.Path(builder.data_dir) / 'card.json').write_text(json.dumps(card, indent=1))
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
      os.rename(builder.data_dir, directory)
    except OSError:
      if not directory.exists():  # otherwise another process was first, with the same content
        raise


def _compute_fingerprint(*parts):
  return hashlib.sha256(b''.join(map(_to_line, parts))).hexdigest()[:16]


def _to_line(part):
  return json.dumps(part, sort_keys=True).encode() + b'\n'


def _report_damage(directory):
  # Whatever is raised: TFDS, protobuf and array_record have no class in common.
  return records_lib.report(f'{directory}: damaged prepared copy',
                            'delete this directory and run again')


@contextlib.contextmanager
def _quiet():
  """TFDS prints banners and progress bars, and warns of every config made at run time.

  Gives a function by which something can be said all the same.
  """
  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  stdout = sys.stdout

  def aloud(say, line):
    with contextlib.redirect_stdout(stdout):
      say(line)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield aloud
  finally:
    logging.set_verbosity(verbosity)


class _LocalInfo(tfds.core.DatasetInfo):

  def initialize_from_bucket(self):
    """Nothing: TFDS's own leaves an empty temporary directory behind, and finds no bucket."""


class _Tally:
  """What is known of a split once its records have passed by, in their order."""

  def __init__(self):
    self.counts = collections.Counter()  # number of steps -> records
    self.questions = []  # a hash of each
    self._digest = hashlib.sha256()

  def add(self, record):
    self.counts[len(record.steps)] += 1
    self.questions.append(hashlib.sha256(record.question.encode()).digest()[:12])
    self._digest.update(_to_line([record.question, record.steps, record.answer]))

  def get_fingerprint(self):
    return self._digest.hexdigest()[:16]


def fingerprint_records(records) -> str:
  """That of records which are no split, as a split of them would have it."""
  tally = _Tally()
  for record in records:
    tally.add(record)
  return tally.get_fingerprint()


class _RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the records of `make_prepared` in their order, as they come."""
  VERSION = tfds.core.Version('1.0.0')  # goes up when the same input gives other records
  FIELDS: typing.ClassVar = {}  # of a record beside the usual ones, and their types
  say = print

  @abc.abstractmethod
  def make_prepared(self) -> _Prepared:
    """The records of every split."""

  def _info(self):
    text = tfds.features.Text()
    features = {'question': text, 'steps': tfds.features.Sequence(text), 'answer': text,
                'origin': text, **self.FIELDS}
    return _LocalInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    self.prepared = self.make_prepared()
    self.tallies = {name: _Tally() for name in self.prepared.splits}
    return {name: self._generate_examples(records, self.tallies[name])
            for name, records in self.prepared.splits.items()}

  def _generate_examples(self, records, tally):
    for i, record in enumerate(records):
      tally.add(record)
      yield i, {**vars(record), 'steps': list(record.steps)}


def _describe(tallies) -> list[str]:
  """Notes on every split: rows by number of steps, and questions it shares with train."""
  notes = []
  in_train = set(tallies['train'].questions)
  for name, tally in tallies.items():
    counts = sorted(tally.counts.items())
    steps = ', '.join(f'{t}: {n}' for t, n in counts)
    notes.append(f'{name}: {tally.counts.total()} rows, {tally.counts[0]} without steps '
                 f'(rows by number of steps {steps})')
    num_shared = sum(q in in_train for q in tally.questions)
    if name != 'train' and num_shared:
      notes.append(f'{name}: {num_shared} of its questions are also in train')
  return notes


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
  """What a builder makes its records from; its name is the fingerprint of that."""
  chain: ChainConfig | None = None
  # Read once, so that the fingerprint is of what is parsed.
  files: dict[str, files_lib.Parts] = dataclasses.field(default_factory=dict, repr=False)
  unread: tuple[str, ...] = ()  # the line that names what else is there
  on_bad_rows: str = 'stop'
  num_valid: int = 0
  steps: str = 'equations'
  step_marks: bool = False
  perturbed: PerturbedConfig | None = None
  prosqa: ProsqaConfig | None = None


# The chain task.


class RimChain(_RecordBuilder):
  """Chains of arithmetic: `7+3+5` has the steps 0 and 5 modulo 10, and the answer 5."""

  def make_prepared(self):
    chain = self.builder_config.chain
    sizes = {'train': chain.num_train, 'valid': chain.num_valid, 'test': chain.num_test}
    questions = iter(chain_lib.draw_questions(chain, sum(sizes.values())))
    splits = {name: [chain_lib.make_record(chain, *question, f'rim_chain/{name}:{i + 1}')
                     for i, question in enumerate(itertools.islice(questions, size))]
              for name, size in sizes.items()}
    splits['train'] = chain_lib.spoil(splits['train'], chain)
    return _Prepared(splits, {}, [])


def make_chain_config(config: DataConfig, *unused) -> BuilderConfig:
  """The chain task's parameters, named by their fingerprint."""
  fingerprint = _compute_fingerprint(
      'rim_chain', str(RimChain.VERSION), list_identity(config.chain))
  return BuilderConfig(name=fingerprint, chain=config.chain)


# Files in a GSM8K format, and problems made from them.


class RimGsm8k(_RecordBuilder):
  """Questions, steps and answers from train, valid and test files."""

  def read_files(self):
    """(records, dropped rows) by split that has a file, and notes."""
    config = self.builder_config
    splits, dropped, notes = {}, {}, []
    for name, parts in config.files.items():
      parsed = files_lib.parse_files(parts, config)
      splits[name], dropped[name] = parsed.records, parsed.dropped
      notes += files_lib.describe_parsed(name, parsed)
      if config.steps == 'equations':
        notes += files_lib.describe_steps(name, splits[name])
    return splits, dropped, notes

  def make_prepared(self):
    splits, dropped, notes = self.read_files()
    if 'valid' not in splits:
      train_path = self.builder_config.files['train'][0][0]
      splits['train'], splits['valid'] = gsm8k.hold_out(
          splits['train'], self.builder_config.num_valid, train_path)
      notes.append(f"valid: {len(splits['valid'])} rows held out of {train_path.name} by "
                   'question hash')
    return _Prepared({name: splits[name] for name in SPLITS}, dropped, notes)


class RimGsm8kPerturbed(RimGsm8k):
  """Variants of the training split's problems; valid and test as they are, as variant 0."""
  FIELDS: typing.ClassVar = {'source_row': np.int64, 'variant': np.int64}

  def make_prepared(self):
    made = super().make_prepared()
    valid, test = made.splits['valid'], made.splits['test']
    perturbed = variation.Perturbed(
        made.splits['train'], [*valid, *test], self.builder_config.perturbed,
        self.builder_config.step_marks, self.say)
    splits = {'train': perturbed, **{
        name: [Variant(**vars(r), source_row=variation.get_source_row(r), variant=0)
               for r in records] for name, records in (('valid', valid), ('test', test))}}
    return _Prepared(splits, made.dropped, perturbed.describe() + made.notes)


class RimProsqa(RimGsm8k):
  """Problems of ProsQA's kind; a split that has a file is that, and its problems are not drawn."""

  def make_prepared(self):
    config = self.builder_config.prosqa
    splits, dropped, notes = self.read_files()
    problems = prosqa.Problems(config, itertools.chain(*splits.values()))
    for name in SPLITS:
      if name not in splits:
        splits[name], note = problems.draw_split(name, getattr(config, f'num_{name}'))
        notes.append(note)
    return _Prepared({name: splits[name] for name in SPLITS}, dropped, notes)


def make_prosqa_config(config: DataConfig, *unused) -> BuilderConfig:
  """The task's parameters and the files there are, named by their fingerprint."""
  found = files_lib.Found({}, ())
  if config.dir:
    folder = pathlib.Path(config.dir).expanduser()
    found = files_lib.find_files(folder, (), 'draw all problems')
    if not found.splits:
      raise UserError(f"data.dir='{folder}': no train, valid or test file there; add one, or pass "
                      'no directory to draw all problems')
  fingerprint = _compute_fingerprint(
      'rim_prosqa', str(RimProsqa.VERSION), _digest_files(found.splits), config.on_bad_rows,
      list_identity(config.prosqa), *_list_rules(config))
  return BuilderConfig(
      name=fingerprint, files=found.splits, unread=tuple(found.describe_unread()),
      on_bad_rows=config.on_bad_rows, prosqa=config.prosqa)


def _digest_files(splits):
  digests = {split: [(path.name, hashlib.sha256(content).hexdigest()) for path, content in parts]
             for split, parts in splits.items()}
  return {split: files if len(files) > 1 else files[0] for split, files in digests.items()}


def _list_rules(config):
  """What a fingerprint says of how rows are read, beyond what it always said.

  Where bad rows stop a run, a rule that reads more of them changes no run that there is. Where
  they are dropped, it reads other records of the same files.
  """
  return ['rows', _ROWS_VERSION] if config.on_bad_rows == 'drop' else []


def make_gsm8k_config(config: DataConfig, say=print) -> BuilderConfig:
  """The files of `config.dir`, or else OpenAI's, named by the fingerprint of their content."""
  folder = (pathlib.Path(config.dir).expanduser() if config.dir
            else gsm8k.download_gsm8k(config, say))
  found = files_lib.find_files(folder)
  options = {
      'on_bad_rows': config.on_bad_rows, 'step_marks': config.step_marks,
      'num_valid': 0 if 'valid' in found.splits else config.num_valid,
      **({} if config.steps == 'equations' else {'steps': config.steps})}
  parts = ['rim_gsm8k', str(RimGsm8k.VERSION), _digest_files(found.splits), options,
           *_list_rules(config)]
  perturbed = None
  if config.source == 'gsm8k_perturbed':
    perturbed = config.perturbed
    parts += ['perturbed', str(RimGsm8kPerturbed.VERSION), list_identity(perturbed)]
  return BuilderConfig(
      name=_compute_fingerprint(*parts), files=found.splits,
      unread=tuple(found.describe_unread()), perturbed=perturbed, **options)


# data.source -> the builder, and what makes its config of (DataConfig, say)
_SOURCES = {'chain': (RimChain, make_chain_config), 'gsm8k': (RimGsm8k, make_gsm8k_config),
            'gsm8k_perturbed': (RimGsm8kPerturbed, make_gsm8k_config),
            'prosqa': (RimProsqa, make_prosqa_config)}
