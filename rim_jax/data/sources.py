"""The sources of records: the chain task, GSM8K, its variants, ProsQA, and a user's files.

Owns the fingerprints by which a changed file or parameter is noticed. `datasets` writes the records
to disk, and reads them from there.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
import itertools
import json
import pathlib

import numpy as np

from rim_jax.config import DataConfig, list_identity
from rim_jax.data import chain as chain_lib
from rim_jax.data import files as files_lib
from rim_jax.data import gsm8k, prosqa
from rim_jax.data.perturbed import variation
from rim_jax.data.records import SPLITS, Record, Variant
from rim_jax.errors import UserError

# Of each source: goes up when the same input gives other records.
VERSIONS = {'rim_chain': '1.0.0', 'rim_gsm8k': '1.0.0', 'rim_gsm8k_perturbed': '1.0.0',
             'rim_prosqa': '1.0.0'}
_ROWS_VERSION = 2  # goes up when more rows are read, or fewer


@dataclasses.dataclass
class Made:
  """The records of a source, checked before anything of them is written."""
  splits: dict[str, Iterable[Record]]
  dropped: dict[str, list[str]]  # of each split, as files.parse_files tells them
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class Source:
  """What a copy is prepared from."""
  name: str  # rim_chain | rim_gsm8k | rim_gsm8k_perturbed | rim_prosqa
  fingerprint: str  # of all that the records depend on; 16 hex digits
  make: Callable[[Callable[[str], None]], Made]  # of `say`; the same every time
  fields: dict = dataclasses.field(default_factory=dict)  # of a record beside the usual ones
  unread: Sequence[str] = ()  # the line that names files which are not read
  alike: str = ''  # its fingerprint with the other value of data.on_bad_rows, if no row is bad


def make_chain_source(config: DataConfig, *unused) -> Source:
  """Chains of arithmetic: `7+3+5` has the steps 0 and 5 modulo 10, and the answer 5."""
  fingerprint = _compute_fingerprint(
      'rim_chain', VERSIONS['rim_chain'], list_identity(config.chain))
  return Source('rim_chain', fingerprint, lambda say: _make_chain(config.chain))


def _make_chain(chain):
  sizes = {'train': chain.num_train, 'valid': chain.num_valid, 'test': chain.num_test}
  questions = iter(chain_lib.draw_questions(chain, sum(sizes.values())))
  splits = {name: [chain_lib.make_record(chain, *question, f'rim_chain/{name}:{i + 1}')
                   for i, question in enumerate(itertools.islice(questions, size))]
            for name, size in sizes.items()}
  splits['train'] = chain_lib.spoil(splits['train'], chain)
  return Made(splits, {}, [])


def make_gsm8k_source(config: DataConfig, say=print) -> Source:
  """Rows of the files of `config.dir`, or else of OpenAI's; and problems made from them."""
  folder = (pathlib.Path(config.dir).expanduser() if config.dir
            else gsm8k.download_gsm8k(config, say))
  found = files_lib.find_files(folder)
  files, unread = _digest_files(found.splits), found.unread
  made = config.source == 'gsm8k_perturbed'

  def list_parts(on_bad_rows):
    options = {
        'on_bad_rows': on_bad_rows, 'step_marks': config.step_marks,
        'num_valid': 0 if 'valid' in found.splits else config.num_valid,
        **({} if config.steps == 'equations' else {'steps': config.steps})}
    return ['rim_gsm8k', VERSIONS['rim_gsm8k'], files, options, *_list_rules(on_bad_rows), *(
        ['perturbed', VERSIONS['rim_gsm8k_perturbed'], list_identity(config.perturbed)]
        if made else [])]
  fingerprint, alike = _compute_both(config, list_parts)
  if made:
    return Source('rim_gsm8k_perturbed', fingerprint,
                  lambda say: _make_perturbed(config, found.splits, say),
                  {'source_row': np.int64, 'variant': np.int64}, unread, alike)
  return Source('rim_gsm8k', fingerprint, lambda say: _make_gsm8k(config, found.splits),
                unread=unread, alike=alike)


def _make_gsm8k(config, files):
  """Questions, steps and answers from train, valid and test files."""
  made = _read_files(config, files)
  splits = made.splits
  if 'valid' not in splits:
    train_path, *others = [path for path, _ in files['train']]
    splits['train'], splits['valid'] = gsm8k.hold_out(
        splits['train'], config.num_valid, train_path)
    made.notes.append(f"valid: {len(splits['valid'])} rows held out of "
                      f"{'train' if others else train_path.name} by question hash")
  return made


def _make_perturbed(config, files, say):
  """Variants of the training split's problems; valid and test as they are, as variant 0."""
  made = _make_gsm8k(config, files)
  valid, test = made.splits['valid'], made.splits['test']
  perturbed = variation.Perturbed(
      made.splits['train'], [*valid, *test], config.perturbed, config.step_marks, say)
  splits = {'train': perturbed, **{
      name: [Variant(**vars(r), source_row=variation.get_source_row(r), variant=0)
             for r in records] for name, records in (('valid', valid), ('test', test))}}
  return Made(splits, made.dropped, perturbed.describe() + made.notes)


def make_prosqa_source(config: DataConfig, *unused) -> Source:
  """Problems of ProsQA's kind, and the files there are."""
  found = files_lib.Found({}, [])
  if config.dir:
    folder = pathlib.Path(config.dir).expanduser()
    found = files_lib.find_files(folder, (), 'draw all problems')
    if not found.splits:
      raise UserError(f"data.dir='{folder}': no train, valid or test file there; add one, or pass "
                      'no directory to draw all problems')
  files, drawn = _digest_files(found.splits), list_identity(config.prosqa)
  fingerprint, alike = _compute_both(config, lambda on_bad_rows: [
      'rim_prosqa', VERSIONS['rim_prosqa'], files, on_bad_rows, drawn, *_list_rules(on_bad_rows)])
  # The fingerprint is of these two as they are by default.
  config = dataclasses.replace(config, steps='equations', step_marks=False)
  return Source('rim_prosqa', fingerprint, lambda say: _make_prosqa(config, found.splits),
                unread=found.unread, alike=alike)


def _make_prosqa(config, files):
  """A split that has a file is that, and its problems are not drawn."""
  made = _read_files(config, files)
  problems = prosqa.Problems(config.prosqa, itertools.chain(*made.splits.values()))
  for name in SPLITS:
    if name not in made.splits:
      made.splits[name], note = problems.draw_split(name, getattr(config.prosqa, f'num_{name}'))
      made.notes.append(note)
  return made


def _read_files(config, files) -> Made:
  """The splits that have a file."""
  made = Made({}, {}, [])
  for name, parts in files.items():
    parsed = files_lib.parse_files(parts, config)
    made.splits[name], made.dropped[name] = parsed.records, parsed.dropped
    made.notes += files_lib.describe_parsed(name, parsed)
    num_without = sum(not record.steps for record in parsed.records)
    if config.steps == 'equations' and 2 * num_without > len(parsed.records):
      made.notes.append(
          f'{name}: {num_without} of {len(parsed.records)} rows have no steps; if their solutions '
          'are sentences, read these with --config.data.steps=sentences')
  return made


def _digest_files(splits):
  digests = {split: [(path.name, hashlib.sha256(content).hexdigest()) for path, content in parts]
             for split, parts in splits.items()}
  return {split: files if len(files) > 1 else files[0] for split, files in digests.items()}


def _compute_fingerprint(*parts):
  return hashlib.sha256(b''.join(map(to_line, parts))).hexdigest()[:16]


def to_line(part):
  return json.dumps(part, sort_keys=True).encode() + b'\n'


def _compute_both(config, list_parts) -> tuple[str, str]:
  """Fingerprints with `data.on_bad_rows` as it is, and as it is not."""
  other = {'stop': 'drop', 'drop': 'stop'}[config.on_bad_rows]
  return (_compute_fingerprint(*list_parts(config.on_bad_rows)),
          _compute_fingerprint(*list_parts(other)))


def _list_rules(on_bad_rows):
  """What a fingerprint says of how rows are read, beyond what it always said.

  Where bad rows stop a run, a rule that reads more of them changes no run that there is. Where
  they are dropped, it reads other records of the same files.
  """
  return ['rows', _ROWS_VERSION] if on_bad_rows == 'drop' else []


# data.source -> what makes its source of (DataConfig, say)
SOURCES = {'chain': make_chain_source, 'gsm8k': make_gsm8k_source,
            'gsm8k_perturbed': make_gsm8k_source, 'prosqa': make_prosqa_source}
