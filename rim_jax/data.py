"""Records of a task: TFDS builders for the built-in chain task and for GSM8K-format files.

Owns the meaning of a row: what a question, its steps and its answer are, which rows
are refused, and the fingerprints by which a changed file or parameter is noticed.
`load_dataset` prepares a copy in array_record files once, under a name that holds the
fingerprint of everything it was made from, and reads it by index from then on.

File formats, told apart line by line:
  {"question": str, "steps": [str], "answer": str}     other keys are allowed and unread
  {"question": str, "answer": "text <<a*b=c>> ... #### N"}            OpenAI's GSM8K
  question||<<a*b=c>> <<d+e=f>> #### N                                iCoT's GSM8K-Aug
"""

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import io
import itertools
import json
import os
import pathlib
import random
import re
import tempfile
import urllib.request
import zlib

from absl import logging
import tensorflow_datasets as tfds

from rim_jax.config import ChainConfig, DataConfig, UserError

SPLITS = ('train', 'valid', 'test')
# OpenAI's files at DataConfig.url: name -> (bytes, sha256).
GSM8K_FILES = {
    'train.jsonl': (
        4166206, '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465'),
    'test.jsonl': (
        749738, '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14'),
}
_EXTENSIONS = tuple(e + gz for e in ('.jsonl', '.txt', '.json') for gz in ('', '.gz'))
_STEP = re.compile(r'<<(.*?)>>')
_WITH_COMMAS = re.compile(r'[-+]?\d{1,3}(,\d{3})+(\.\d*)?')


@dataclasses.dataclass(frozen=True)
class Record:
  """One example: a question, T >= 0 steps and the answer, as text."""
  question: str
  steps: tuple[str, ...]
  answer: str
  origin: str  # where it comes from, both 1-based: 'train.jsonl:12' or 'rim_chain/train:12'


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
  return Record(
      question=example['question'].decode(), answer=example['answer'].decode(),
      steps=tuple(step.decode() for step in example['steps']), origin=example['origin'].decode())


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The splits of a task, and what a person should know of them."""
  name: str  # rim_chain | rim_gsm8k
  fingerprint: str  # of all it was made from: files, parameters, version; 16 hex digits
  splits: dict[str, Split]  # train, valid, test
  num_dropped: dict[str, int]  # bad rows dropped from each split's file
  notes: tuple[str, ...]  # counts, dropped rows, a held-out split, questions in two splits


@dataclasses.dataclass
class _Prepared:
  """What a builder makes, whole and checked before anything of it is written."""
  splits: dict[str, list[Record]]
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
  if config.source == 'chain':
    builder_class, builder_config = RimChain, make_chain_config(config)
  else:
    builder_class, builder_config = RimGsm8k, make_gsm8k_config(config, say)
  root = pathlib.Path(config.cache_dir).expanduser() / 'prepared'
  directory = root / builder_class.name / builder_config.name / str(builder_class.VERSION)
  if not directory.exists():
    say(f'{builder_class.name}: preparing {directory}')
    with _report_unwritable(config):
      _prepare(builder_class, builder_config, root, directory)
  with _report_damage(directory):
    card = json.loads((directory / 'card.json').read_text())
    fingerprints, num_dropped = card['fingerprints'], card['num_dropped']
    splits = {name: Split(str(directory), name, fingerprints[name]) for name in SPLITS}
    return Dataset(name=builder_class.name, fingerprint=builder_config.name, splits=splits,
                   num_dropped=num_dropped, notes=tuple(card['notes']))


def _prepare(builder_class, builder_config, root, directory):
  """Writes a prepared copy, which appears under its name complete or not at all."""
  root.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='incomplete.', dir=root) as temporary:
    with _quiet():
      builder = builder_class(
          data_dir=temporary, config=builder_config, file_format='array_record')
      builder.download_and_prepare()
    made = builder.prepared
    card = {
        'fingerprints': {
            name: _compute_fingerprint(*([r.question, r.steps, r.answer] for r in records))
            for name, records in made.splits.items()},
        'num_dropped': {name: len(made.dropped.get(name, ())) for name in made.splits},
        'notes': made.notes,
    }
    (pathlib.Path(builder.data_dir) / 'card.json').write_text(json.dumps(card, indent=1))
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
      os.rename(builder.data_dir, directory)
    except OSError:
      if not directory.exists():  # otherwise another process was first, with the same content
        raise


def _compute_fingerprint(*parts):
  digest = hashlib.sha256()
  for part in parts:
    digest.update(json.dumps(part, sort_keys=True).encode() + b'\n')
  return digest.hexdigest()[:16]


@contextlib.contextmanager
def _report(where, fix, kinds=Exception):
  """Turns an error of these kinds into a user's, in one line."""
  try:
    yield
  except UserError:
    raise
  except kinds as error:
    what = ' '.join(str(error).split())[:200] or type(error).__name__
    raise UserError(f'{where}: {what}; {fix}') from error


def _report_damage(directory):
  # Whatever is raised: TFDS, protobuf and array_record have no class in common.
  return _report(f'{directory}: damaged prepared copy', 'delete this directory and run again')


def _report_unwritable(config):
  return _report(f"data.cache_dir='{config.cache_dir}'",
                 'make it writable, or pass --config.data.cache_dir=DIR', OSError)


@contextlib.contextmanager
def _quiet():
  """TFDS prints banners and progress bars, and warns of every config made at run time."""
  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


class _LocalInfo(tfds.core.DatasetInfo):

  def initialize_from_bucket(self):
    """Nothing: TFDS's own leaves an empty temporary directory behind, and finds no bucket."""


class _RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the records of `make_prepared` in their order."""
  VERSION = tfds.core.Version('1.0.0')  # goes up when the same input gives other records

  def make_prepared(self) -> _Prepared:
    raise NotImplementedError

  def _info(self):
    text = tfds.features.Text()
    features = {'question': text, 'steps': tfds.features.Sequence(text), 'answer': text,
                'origin': text}
    return _LocalInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    self.prepared = self.make_prepared()
    return {name: self._generate_examples(r) for name, r in self.prepared.splits.items()}

  def _generate_examples(self, records):
    for i, record in enumerate(records):
      yield i, {**vars(record), 'steps': list(record.steps)}


def _describe(splits) -> list[str]:
  """Notes on every split: rows by number of steps, and questions it shares with train."""
  notes = []
  in_train = {r.question for r in splits['train']}
  for name, records in splits.items():
    counts = sorted(collections.Counter(len(r.steps) for r in records).items())
    steps = ', '.join(f'{t}: {n}' for t, n in counts)
    notes.append(f'{name}: {len(records)} rows, {dict(counts).get(0, 0)} without steps '
                 f'(rows by number of steps {steps})')
    num_shared = sum(r.question in in_train for r in records)
    if name != 'train' and num_shared:
      notes.append(f'{name}: {num_shared} of its questions are also in train')
  return notes


# The chain task.


@dataclasses.dataclass
class ChainBuilderConfig(tfds.core.BuilderConfig):
  chain: ChainConfig = ChainConfig()


class RimChain(_RecordBuilder):
  """Chains of arithmetic: `7+3+5` has the steps 0 and 5 modulo 10, and the answer 5."""

  def make_prepared(self):
    chain = self.builder_config.chain
    sizes = {'train': chain.num_train, 'valid': chain.num_valid, 'test': chain.num_test}
    questions = iter(draw_chain_questions(chain, sum(sizes.values())))
    splits = {name: [_make_chain_record(chain, *question, f'rim_chain/{name}:{i + 1}')
                     for i, question in enumerate(itertools.islice(questions, size))]
              for name, size in sizes.items()}
    return _Prepared(splits, {}, _describe(splits))


def make_chain_config(config: DataConfig) -> ChainBuilderConfig:
  """The chain task's parameters, named by their fingerprint."""
  fingerprint = _compute_fingerprint(
      'rim_chain', str(RimChain.VERSION), dataclasses.asdict(config.chain))
  return ChainBuilderConfig(name=fingerprint, chain=config.chain)


def draw_chain_questions(chain: ChainConfig, num_questions: int) -> list[tuple[int, int]]:
  """Distinct questions (T, number) in random order, number < how many there are of T steps.

  Each length gets an equal share: drawn from the whole space, nearly all questions would
  have max_steps. But no length gives more than 80 % of its questions, because a model
  could look up the answers of a length that it has seen whole; longer ones make up for it.
  Raises: UserError where that leaves too few questions.
  """
  if len(set(chain.operators)) < len(chain.operators):
    raise UserError(f"data.chain.operators='{chain.operators}' repeats a character; use "
                    f"'{''.join(dict.fromkeys(chain.operators))}'")
  lengths = range(chain.min_steps, chain.max_steps + 1)
  space = {t: chain.modulus * (chain.modulus * len(chain.operators))**t for t in lengths}
  most = sum(size * 4 // 5 for size in space.values())
  if num_questions > most:
    raise UserError(
        f'data.chain: num_train + num_valid + num_test = {num_questions} questions, but of the '
        f'{sum(space.values())} there are at most 80 % ({most}) may be drawn; lower num_train, or '
        'raise max_steps or modulus')
  # Python's generator: its integers have no upper limit, and numpy does not promise to
  # keep the sequence of its own from version to version.
  rng = random.Random(chain.seed)
  questions = []
  for num_lengths_left, t in zip(reversed(range(1, len(lengths) + 1)), lengths):
    share = min((num_questions - len(questions)) // num_lengths_left, space[t] * 4 // 5)
    drawn = {}  # a dictionary, for its order
    while len(drawn) < share:
      drawn[t, rng.randrange(space[t])] = None
    questions += drawn
  rng.shuffle(questions)
  return questions


def _make_chain_record(chain, num_steps, number, origin):
  """The question with this number: its operands and operators are the number's digits."""
  number, result = divmod(number, chain.modulus)
  question, steps = str(result), []
  for _ in range(num_steps):
    number, operator = divmod(number, len(chain.operators))
    number, operand = divmod(number, chain.modulus)
    operator = chain.operators[operator]
    result = {'+': result + operand, '-': result - operand, '*': result * operand}[operator]
    result %= chain.modulus
    question += f'{operator}{operand}'
    steps.append(str(result))
  return Record(question, tuple(steps), steps[-1], origin)


# Files in a GSM8K format.


@dataclasses.dataclass
class Gsm8kBuilderConfig(tfds.core.BuilderConfig):
  # Split -> (path, its bytes): read once, so that the fingerprint is of what is parsed.
  files: dict[str, tuple[pathlib.Path, bytes]] = dataclasses.field(default_factory=dict, repr=False)
  on_bad_rows: str = 'stop'
  num_valid: int = 0
  step_marks: bool = False


class RimGsm8k(_RecordBuilder):
  """Questions, steps and answers from train, valid and test files."""

  def make_prepared(self):
    config = self.builder_config
    splits, dropped, notes = {}, {}, []
    for name, (path, content) in config.files.items():
      splits[name], dropped[name] = parse_file(path, content, config)
      if dropped[name]:
        shown = '; '.join(dropped[name][:3]) + ('; ...' if len(dropped[name]) > 3 else '')
        notes.append(f'{name}: dropped {len(dropped[name])} bad rows: {shown}')
    if 'valid' not in splits:
      train_path = config.files['train'][0]
      splits['train'], splits['valid'] = _hold_out(splits['train'], config.num_valid, train_path)
      notes.append(f"valid: {len(splits['valid'])} rows held out of {train_path.name} by "
                   'question hash')
    splits = {name: splits[name] for name in SPLITS}
    return _Prepared(splits, dropped, _describe(splits) + notes)


def make_gsm8k_config(config: DataConfig, say=print) -> Gsm8kBuilderConfig:
  """The files of `config.dir`, or else OpenAI's, named by the fingerprint of their content."""
  folder = pathlib.Path(config.dir).expanduser() if config.dir else download_gsm8k(config, say)
  files = _find_files(folder)
  options = {
      'on_bad_rows': config.on_bad_rows, 'step_marks': config.step_marks,
      'num_valid': 0 if 'valid' in files else config.num_valid}
  digests = {name: (path.name, hashlib.sha256(content).hexdigest())
             for name, (path, content) in files.items()}
  fingerprint = _compute_fingerprint('rim_gsm8k', str(RimGsm8k.VERSION), digests, options)
  return Gsm8kBuilderConfig(name=fingerprint, files=files, **options)


def _find_files(folder):
  """Split -> (path, content)."""
  if not folder.is_dir():
    raise UserError(f"data.dir='{folder}': no such directory; pass one with train and test files, "
                    'or none to download GSM8K')
  files = {}
  for split in SPLITS:
    found = [folder / f'{split}{e}' for e in _EXTENSIONS if (folder / f'{split}{e}').exists()]
    if len(found) > 1:
      raise UserError(f"{folder}: {' and '.join(p.name for p in found)} are both the {split} "
                      'split; keep one')
    if found:
      with _report(found[0], 'make it a readable file', OSError):
        files[split] = found[0], found[0].read_bytes()
    elif split != 'valid':
      there = ', '.join(sorted(p.name for p in folder.iterdir())[:10]) or 'nothing'
      raise UserError(f"{folder}: no {split} file (looked for {split} with "
                      f"{', '.join(_EXTENSIONS)}); there: {there}; add or rename one")
  return files


def parse_file(path, content, config) -> tuple[list[Record], list[str]]:
  """Records, and the bad rows that were dropped as '<file>:<line>: <what>'."""
  if path.suffix == '.gz':
    with _report(path, 'replace it by a whole gzip file', (OSError, EOFError, zlib.error)):
      content = gzip.decompress(content)
  # Lines end at \n alone: str.splitlines would also cut questions at a U+2028.
  lines = content.split(b'\n')
  while lines and not lines[-1].strip():
    lines.pop()
  records, dropped = [], []
  for number, line in enumerate(lines, 1):
    try:
      row = parse_row(line, config.step_marks)
    except ValueError as error:
      if config.on_bad_rows != 'drop':
        raise UserError(f'{path}:{number}: {error}; fix the row, or drop bad rows with '
                        '--config.data.on_bad_rows=drop') from None
      dropped.append(f'{path.name}:{number}: {error}')
    else:
      records.append(Record(*row, origin=f'{path.name}:{number}'))
  if not records:
    raise UserError(f'{path}: no rows (of {len(lines)} lines); fill or replace the file')
  return records, dropped


def parse_row(line: bytes, step_marks: bool = False) -> tuple[str, tuple[str, ...], str]:
  """One line, in any of the formats -> (question, steps, answer).

  Raises: ValueError saying what is wrong with it.
  """
  try:
    text = line.decode()  # a \r before the \n is stripped with the answer, or is space to JSON
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 (byte {error.start})') from None
  if not text.strip():
    raise ValueError('an empty line')
  if text.startswith('\ufeff'):
    raise ValueError('a byte order mark before the text')
  if text.lstrip().startswith('{'):
    question, steps, answer = _parse_json(text)
  elif '||' in text:
    question, _, rest = text.partition('||')
    steps, between, answer = _split_rationale(rest)
    if between.strip():  # a rationale without marks would pass for a row without steps
      raise ValueError(f"'{between.strip()[:40]}' stands outside << >>")
  else:
    raise ValueError("neither a JSON object nor 'question||<<step>> ... #### answer'")
  answer = answer.strip()
  if _WITH_COMMAS.fullmatch(answer):
    answer = answer.replace(',', '')
  _check_row(question, steps, answer)
  return question, tuple(f'<<{s}>>' if step_marks else s for s in steps), answer


def _parse_json(text):
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'not JSON ({error})') from None
  for key in ('question', 'answer'):
    if key not in row:
      raise ValueError(f"no '{key}'")
    if not isinstance(row[key], str):
      raise ValueError(f"'{key}' should be a string, not {json.dumps(row[key])[:40]}")
  if 'steps' not in row:
    steps, _, answer = _split_rationale(row['answer'])
    return row['question'], steps, answer
  steps = row['steps']
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise ValueError("'steps' should be a list of strings")
  steps = [s[2:-2] if _STEP.fullmatch(s) else s for s in steps]
  return row['question'], steps, row['answer']


def _split_rationale(text):
  """'text <<step>> text #### answer' -> steps, the text without them, answer."""
  rationale, mark, answer = text.partition('####')
  if not mark:
    raise ValueError("no '####' before the answer")
  between = _STEP.sub(' ', rationale)
  if '<<' in between or '>>' in between:
    raise ValueError('a << without its >>, or a >> without its <<')
  return _STEP.findall(rationale), between, answer


def _check_row(question, steps, answer):
  if not question.strip():
    raise ValueError('the question is empty')
  if not answer:
    raise ValueError('the answer is empty')
  if '####' in answer:
    raise ValueError("a second '####', or one in an answer that stands beside steps")
  for i, step in enumerate(steps, 1):
    if not step.strip():
      raise ValueError(f'step {i} is empty')
    if '<<' in step or '>>' in step:
      raise ValueError(f'step {i} has a stray << or >>')
  try:
    ''.join([question, *steps, answer]).encode()
  except UnicodeEncodeError:
    raise ValueError('half of a surrogate pair, which is no character') from None


def _hold_out(records, num_valid, path):
  """(train, valid): whole questions, those whose hash is lowest, in the order of the hash."""
  hashes = {r.question: hashlib.sha256(r.question.encode()).digest() for r in records}
  if len(hashes) <= num_valid:
    raise UserError(f'{path}: {len(hashes)} questions, of which data.num_valid={num_valid} should '
                    'be held out; lower num_valid, or add a valid file')
  held_out = set(sorted(hashes, key=hashes.get)[:num_valid])
  train = [r for r in records if r.question not in held_out]
  valid = [r for r in records if r.question in held_out]
  return train, sorted(valid, key=lambda r: (hashes[r.question], r.steps, r.answer))


def download_gsm8k(config: DataConfig, say=print) -> pathlib.Path:
  """The folder with OpenAI's files, each fetched where it is not there with the right sha256.

  Not TFDS's download manager, which keeps retrying a refused connection for minutes, and
  leaves what it refuses in the cache.
  Raises: UserError; nothing unchecked is ever in the folder.
  """
  folder = pathlib.Path(config.cache_dir).expanduser() / 'downloads' / 'gsm8k'
  for name, (size, sha256) in GSM8K_FILES.items():
    path, url = folder / name, f"{config.url.rstrip('/')}/{name}"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
      continue
    say(f'rim_gsm8k: downloading {url} ({size / 1e6:.1f} MB)')
    fix = 'download it yourself and pass --config.data.dir=DIR'
    with _report(url, fix, (OSError, ValueError, http.client.HTTPException)):
      with urllib.request.urlopen(url, timeout=60) as response:
        content = response.read(size + 1)
    if len(content) < size:
      raise UserError(f'{url}: cut off after {len(content)} of {size} bytes; {fix}')
    if hashlib.sha256(content).hexdigest() != sha256:
      raise UserError(f'{url}: not the file expected (its sha256 should be {sha256}); {fix}')
    with _report_unwritable(config):
      folder.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(prefix='incomplete.', dir=folder) as temporary:
        (pathlib.Path(temporary) / name).write_bytes(content)
        os.replace(pathlib.Path(temporary) / name, path)
  return folder
