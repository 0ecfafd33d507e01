"""Text to token ids and back: bytes, the chain task's characters, ProsQA's words, a tokenizer.json.

Invariant: text never becomes a special id. bos, eos and the memory blocks enter
a row through `packing/layout.py` only, so a question that spells "</s>" cannot end itself.

A sequence is encoded segment by segment. The ids of all segments together decode to their texts
joined, so what marks the beginning of a text, as SentencePiece's first space does, is that of the
first segment alone: `is_first`.
"""

import abc
import hashlib
import json
import pathlib
import re
import typing

from rim_jax import reader
from rim_jax.config import TokenizerConfig
from rim_jax.data import gguf, prosqa
from rim_jax.errors import UserError

# What ProsQA is written in; spaces are none of it, but for the separators of files (FS to US).
_WORD = re.compile(r'\w+|[^\w\s]|[\n\x1c-\x1f]')


class Tokenizer(abc.ABC):
  """What all have in common: no text begins otherwise than it would go on."""
  marks_start = False  # whether a text that is first has other ids
  fingerprint: str
  vocab_size: int  # 1 + the largest id
  num_text_ids: int  # 1 + the largest that a text, bos or eos can have; a model has a row for each

  @abc.abstractmethod
  def encode(self, text: str, allow_special: bool = False, is_first: bool = False) -> list[int]:
    """The ids of a text.

    Args:
      allow_special: whether the text may spell a special id.
      is_first: whether it begins a sequence, bos aside, instead of standing behind another text.
    Raises: UserError.
    """

  @abc.abstractmethod
  def decode(self, ids) -> str:
    """The text of ids; of special ones none."""

  def try_encode(self, texts: list[str], is_first: bool = False) -> list[list[int] | None]:
    """The ids of each text, as `encode` has them; None where it refuses."""
    found = []
    for text in texts:
      try:
        found.append(self.encode(text, is_first=is_first))
      except UserError:
        found.append(None)
    return found


class _BuiltIn(Tokenizer):
  """One that needs no file; its bos comes right before its eos."""
  eos_id: int

  def __init__(self, add_bos=False):
    self.bos_id = self.eos_id - 1 if add_bos else None
    self.num_text_ids = self.vocab_size


class ByteTokenizer(_BuiltIn):
  """UTF-8 bytes 0..255, then bos and eos; padded to 264 ids, which 8 divides."""
  vocab_size = 264
  fingerprint = 'bytes-v1'
  eos_id = 257

  def encode(self, text, allow_special=False, is_first=False):
    return list(text.encode('utf-8'))

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode('utf-8', errors='replace')


class ChainTokenizer(_BuiltIn):
  """One id for each character that the chain task is written in."""
  characters = '0123456789+-*\n'
  vocab_size = 16
  fingerprint = 'chain-v1'
  eos_id = 15

  def encode(self, text, allow_special=False, is_first=False):
    ids = list(map(self.characters.find, text))
    if -1 in ids:
      raise UserError(f'{text[:40]!r} holds {text[ids.index(-1)]!r}, which the chain tokenizer '
                      f'does not know; it knows {self.characters!r}; write it in these, or set '
                      "tokenizer.kind to 'bytes'")
    return ids

  def decode(self, ids):
    return ''.join(self.characters[i] for i in ids if i < len(self.characters))


class WordTokenizer(_BuiltIn):
  """One id for each word and sign of ProsQA, and for a line break; spaces are not kept.

  Decoded words have single spaces between them, none before a sign or around a line break.
  """
  words = (*prosqa.FUNCTION_WORDS, '\n', *prosqa.NAMES, *prosqa.CONCEPTS)
  vocab_size = 72  # which 8 divides
  fingerprint = 'words-v1'
  eos_id = 71

  _known: typing.ClassVar = {word: i for i, word in enumerate(words)}

  def encode(self, text, allow_special=False, is_first=False):
    try:
      return [self._known[word] for word in _WORD.findall(text)]
    except KeyError as e:
      raise UserError(f'{text[:40]!r} holds {e.args[0]!r}, which is no word of ProsQA; write it in '
                      "those, or set tokenizer.kind to 'bytes'") from None

  def decode(self, ids):
    text = ' '.join(self.words[i] for i in ids if i < len(self.words))
    return re.sub(r' (?=[.?\n])|(?<=\n) ', '', text)


def read_file(path, fix='set --config.tokenizer.path to a tokenizer.json'):
  """A tokenizer.json, or that of a GGUF file, as one of the library `tokenizers`.

  Raises: UserError, with `fix` where it cannot be read.
  """
  if gguf.is_gguf(path):
    return gguf.make_tokenizer(path)
  raw = reader.read_bytes(path, fix)
  import tokenizers  # its import costs as much as the rest of this package together
  try:
    return tokenizers.Tokenizer.from_buffer(raw)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as e:  # pylint: disable=broad-except  (bare Exception, or a panic of Rust)
    raise UserError(f'{path}: is not a tokenizer.json ({" ".join(str(e).split())[:200]})') from None


class FileTokenizer(Tokenizer):
  """A tokenizer.json, read by the `tokenizers` library."""

  def __init__(self, config: TokenizerConfig):
    path = pathlib.Path(config.path)
    self._tokenizer = read_file(path)
    # A file's own padding or truncation would change rows silently.
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._path = path
    ids = {*self._tokenizer.get_vocab(with_added_tokens=True).values()}
    self.vocab_size = 1 + max(ids, default=-1)  # not the count: a vocabulary may have holes
    special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items()
               if token.special}
    self.eos_id = self._find_id(config.eos_token, 'eos_token')
    self.bos_id = self._find_id(config.bos_token, 'bos_token') if config.bos_token else None
    self.num_text_ids = 1 + max(ids - special | {self.eos_id, self.bos_id or 0})
    self._refused = special | {self.eos_id, self.bos_id}  # ids that no text of a record may have
    self._inside = make_inside(self._tokenizer)
    self.marks_start = self._inside is not self._tokenizer
    ends = f'{config.bos_token}\0{config.eos_token}'.encode()
    raw = gguf.describe_tokenizer(path) if gguf.is_gguf(path) else reader.read_bytes(
        path, 'restore it')
    inside = b'\0inside' * self.marks_start  # every segment once began with its own mark
    self.fingerprint = hashlib.sha256(raw + ends + inside).hexdigest()[:16]

  def _find_id(self, text, key):
    i = self._tokenizer.token_to_id(text)
    if i is None:
      raise UserError(f"{self._path}: has no token '{text}'; set --config.tokenizer.{key} to the "
                      'text of one of its special tokens')
    return i

  def encode(self, text, allow_special=False, is_first=False):
    tokenizer = self._tokenizer if is_first else self._inside
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    # A template's text may spell them, a record's never.
    if not allow_special and not self._refused.isdisjoint(ids):
      raise UserError(f'{text[:40]!r} spells a special token of {self._path}; remove it')
    return ids

  def try_encode(self, texts, is_first=False):
    tokenizer = self._tokenizer if is_first else self._inside
    batch = tokenizer.encode_batch(texts, add_special_tokens=False)  # on all cores
    return [found.ids if self._refused.isdisjoint(found.ids) else None for found in batch]

  def decode(self, ids):
    return self._inside.decode(list(ids), skip_special_tokens=True)


def list_added(tokenizer) -> tuple[list[str], list[str]]:
  """The tokens that a `tokenizers.Tokenizer` itself puts before a text, and behind it.

  Switches off its padding and truncation, which have no part in a run.
  """
  tokenizer.no_padding()
  tokenizer.no_truncation()
  whole, plain = tokenizer.encode('x'), tokenizer.encode('x', add_special_tokens=False)
  n = len(plain.ids)
  start = next((i for i in range(len(whole.ids) - n + 1) if whole.ids[i:i + n] == plain.ids),
               len(whole.ids))
  return whole.tokens[:start], whole.tokens[start + n:]


def make_inside(tokenizer):
  """The `tokenizers.Tokenizer` for a text behind another one; the same where no text is marked.

  It puts no space before a text, and takes none away when it decodes.
  """
  tree = reader.parse_json(tokenizer.to_str())
  changed = {key: _change(tree[key], _leave_start) for key in ('normalizer', 'pre_tokenizer')}
  if all(changed[key] == tree[key] for key in changed):
    return tokenizer
  changed['decoder'] = _change(tree['decoder'], _leave_start)
  return tokenizer.from_str(json.dumps(tree | changed))


def make_first_only(tokenizer):
  """A `tokenizers.Tokenizer` that encodes a whole prompt as its segments were.

  As it is, one may put a space before each text between special tokens, as memory blocks are.
  """
  tree = reader.parse_json(tokenizer.to_str())
  parts = tree['normalizer'] or {}
  parts = parts.get('normalizers', [parts])
  if tree['pre_tokenizer'] is None and [part.get('type') for part in parts] == [
      'Prepend', 'Replace']:
    before = {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': 'first',
              'split': False}
    tree |= {'normalizer': None, 'pre_tokenizer': before}
  else:
    tree['pre_tokenizer'] = _change(tree['pre_tokenizer'], lambda part: (
        part | {'prepend_scheme': 'first'} if part.get('prepend_scheme') == 'always' else part))
  return tokenizer.from_str(json.dumps(tree))


def make_begin(tokenizer, bos: str):
  """A `tokenizers.Tokenizer` that itself adds this token before a text, '' none, and no other."""
  tree = reader.parse_json(tokenizer.to_str())
  old = tree['post_processor'] or {}
  parts = [part for part in old.get('processors', [old]) if part.get('type') == 'ByteLevel']
  if bos:
    begin, first, second = {'SpecialToken': {'id': bos, 'type_id': 0}}, *(
        {'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    parts.append({
        'type': 'TemplateProcessing', 'single': [begin, first],
        'pair': [begin, first, begin, second], 'special_tokens': {
            bos: {'id': bos, 'ids': [tokenizer.token_to_id(bos)], 'tokens': [bos]}}})
  tree['post_processor'] = {'type': 'Sequence', 'processors': parts} if parts else None
  return tokenizer.from_str(json.dumps(tree))


def _change(node, change):
  """A normalizer, pre-tokenizer or decoder, each part of it changed; None leaves a part out."""
  if node is None or node['type'] != 'Sequence':
    return node and change(node)
  key = next(key for key in node if key != 'type')
  parts = (_change(part, change) for part in node[key])
  return node | {key: [part for part in parts if part]}


def _leave_start(part):
  """A part as it is for a text that does not begin a sequence."""
  if part['type'] == 'Prepend' or (part['type'] == 'Strip' and 'content' in part):
    return None  # a Strip with a content is a decoder's
  return part | {'prepend_scheme': 'never'} if part['type'] == 'Metaspace' else part


def load_tokenizer(config: TokenizerConfig):
  """The tokenizer that a config names; its `bos_id` is None where sequences begin without one.

  Raises: UserError "...: is not a tokenizer.json", "...: has no token '...'".
  """
  if config.kind == 'file':
    return FileTokenizer(config)
  return {'bytes': ByteTokenizer, 'chain': ChainTokenizer, 'words': WordTokenizer}[config.kind](
      config.add_bos)
