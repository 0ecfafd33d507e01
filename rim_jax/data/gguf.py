"""What a GGUF file says before its weights: metadata, where tensors stand, and its tokenizer.

Source: the format as the library `gguf` reads it; tokenizers as llama.cpp's converter stores them.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re

import numpy as np

from rim_jax import reader
from rim_jax.errors import UserError

# How a byte-level tokenizer splits text before it merges: `tokenizer.ggml.pre` -> (regular
# expressions, one after the other; whether a word that is an id is taken whole, merges or not).
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = (rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",)
_MODERN = (rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_CASES = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_TEKKEN = (r'[^\r\n\p{L}\p{N}]?%s*%s+|[^\r\n\p{L}\p{N}]?%s+%s*' % (2 * _CASES)
           + r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_SPLITS = {
    'gpt-2': (_GPT2, False),
    'smollm': ((r'\p{N}', *_GPT2), False),
    'llama-bpe': ((_MODERN % r'\p{N}{1,3}',), True),
    'qwen2': ((_MODERN % r'\p{N}',), False),
    'tekken': ((_TEKKEN,), True),  # Mistral's
}
_BEGIN_WITH_BOS = ('llama-bpe', 'tekken')  # as llama.cpp has these where a file does not say it
_TOKENIZER_VERSION = 1  # counted up where a file's tokenizer gives other ids
_COMPOSED = ('qwen2',)  # those whose text is brought to Unicode's NFC before
_MOST_READS = 5_000_000  # of a header: two a text; the largest vocabularies have 256,000 tokens
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type


@dataclasses.dataclass(frozen=True)
class Stored:
  """One tensor of a file."""
  shape: tuple[int, ...]  # as numpy has it: rows first
  kind: int  # a gguf.GGMLQuantizationType
  offset: int  # bytes from the start of the file
  rows_shape: tuple[int, ...]  # of the bytes or numbers as they stand there
  dtype: str


@dataclasses.dataclass(frozen=True)
class Header:
  path: pathlib.Path
  metadata: dict
  tensors: dict[str, Stored]
  asked: set[str] = dataclasses.field(default_factory=set)  # keys that `get` was asked for

  def get(self, key, default=None):
    """A value of the model's own group: 'block_count' is 'llama.block_count' of a llama."""
    self.asked.add(key)
    return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", default)


def is_gguf(path) -> bool:
  return pathlib.Path(path).suffix.lower() == '.gguf'


def read_header(path) -> Header:
  """Raises: UserError in one line where the file is missing, no regular file, or not whole."""
  path = pathlib.Path(path).expanduser()
  status = reader.check_regular(
      path, 'model.init_from is a GGUF file or a directory with config.json, *.safetensors and '
      'tokenizer.json')
  return _read_header(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # reading a large vocabulary takes seconds
def _read_header(path, size, changed):
  del size, changed  # parts of the key alone
  from gguf.gguf_reader import GGUFReader  # a few runs need it

  class Bounded(GGUFReader):
    """It believes what a file claims to hold, in time and memory, but for this."""
    left = _MOST_READS

    def _get(self, offset, dtype, count=1, override_order=None):
      self.left -= 1
      if self.left < 0 or int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
        raise ValueError('it claims more than it has')
      return super()._get(offset, dtype, count, override_order)
  try:
    reader = Bounded(path)
    assert reader.left < _MOST_READS, 'this version of gguf reads in another way'
    metadata = {key: field.contents() for key, field in reader.fields.items()
                if not key.startswith('GGUF.')}
    tensors = {
        t.name: Stored(tuple(int(n) for n in reversed(t.shape)), int(t.tensor_type), t.data_offset,
                       t.data.shape, t.data.dtype.str) for t in reader.tensors}
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from None
  except Exception as e:  # pylint: disable=broad-except  (it indexes past the end of a short file)
    raise UserError(f'{path}: is no whole GGUF file ({type(e).__name__}: {e}); fetch it again'
                    ) from None
  return Header(path, metadata, tensors)


# ---- Its tokenizer ----


def get_token(header: Header, name: str) -> str | None:
  """The text of the 'bos', 'eos' or 'unknown' token."""
  tokens = header.metadata.get('tokenizer.ggml.tokens') or []
  i = header.metadata.get(f'tokenizer.ggml.{name}_token_id')
  return tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else None


def begins_with_bos(header: Header) -> bool:
  """Whether engines put bos before a text; where a file does not say it, as llama.cpp has it."""
  said = header.metadata.get('tokenizer.ggml.add_bos_token')
  if said is not None:
    return bool(said)
  model = header.metadata.get('tokenizer.ggml.model')
  return model == 'llama' or (
      model == 'gpt2' and header.metadata.get('tokenizer.ggml.pre') in _BEGIN_WITH_BOS)


def describe_tokenizer(path) -> bytes:
  """Everything that `make_tokenizer` goes by, and how it does: the same bytes, the same ids."""
  header = read_header(path)
  found = {key: value for key, value in header.metadata.items()
           if key.startswith('tokenizer.') and key != 'tokenizer.chat_template'}
  return json.dumps([_TOKENIZER_VERSION, found], sort_keys=True).encode()


def make_tokenizer(path):
  """The file's tokenizer, as one of the library `tokenizers`.

  Raises: UserError for a kind that is not read; the file then needs a tokenizer.json beside it.
  """
  import tokenizers
  header = read_header(path)
  kind = header.metadata.get('tokenizer.ggml.model')
  tokens = header.metadata.get('tokenizer.ggml.tokens')
  makers = {'gpt2': _make_byte_level, 'llama': _make_sentencepiece}
  if kind not in makers or not isinstance(tokens, list):
    raise UserError(f'{path}: has a tokenizer of kind {kind!r}; {", ".join(makers)} are read; '
                    'set --config.tokenizer.kind=file --config.tokenizer.path=tokenizer.json and '
                    '--config.tokenizer.eos_token')
  vocab = {text: i for i, text in enumerate(tokens)}
  if len(vocab) != len(tokens):
    raise UserError(f'{path}: {len(tokens) - len(vocab)} of its tokens stand there twice; '
                    'fetch it again')
  try:
    tokenizer = makers[kind](header, vocab)
    types = header.metadata.get('tokenizer.ggml.token_type') or []
    tokenizer.add_special_tokens([_add(t) for t, k in zip(tokens, types) if k == _CONTROL])
    tokenizer.add_tokens([_add(t, False) for t, k in zip(tokens, types) if k == _USER_DEFINED])
  except UserError:
    raise
  except Exception as e:  # pylint: disable=broad-except  (the library raises bare Exception)
    raise UserError(f'{path}: its tokenizer cannot be made ({e}); fetch it again') from None
  bos = get_token(header, 'bos')
  if bos and begins_with_bos(header):
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, vocab[bos])])
  return tokenizer


def _add(text, special=True):
  import tokenizers
  return tokenizers.AddedToken(text, special=special, normalized=False)


def _make_byte_level(header, vocab):
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
  name = header.metadata.get('tokenizer.ggml.pre')
  if name not in _SPLITS:
    raise UserError(f'{header.path}: splits text as {name!r}; {", ".join(_SPLITS)} are read; set '
                    '--config.tokenizer.kind=file --config.tokenizer.path=tokenizer.json and '
                    '--config.tokenizer.eos_token')
  patterns, whole_words = _SPLITS[name]
  merges = [tuple(pair.split(' ', 1)) for pair in header.metadata['tokenizer.ggml.merges']]
  tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole_words))
  if name in _COMPOSED:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      *(pre_tokenizers.Split(Regex(p), 'isolated') for p in patterns),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _make_sentencepiece(header, vocab):
  """A BPE model of SentencePiece: what it merges first is what has the higher score."""
  from tokenizers import Tokenizer, decoders, models, normalizers
  scores = header.metadata['tokenizer.ggml.scores']
  if len(scores) != len(vocab):
    raise UserError(f'{header.path}: {len(scores)} scores for {len(vocab)} tokens; fetch it again')
  unknown = get_token(header, 'unknown') or next(
      (t for t, k in zip(vocab, header.metadata.get('tokenizer.ggml.token_type') or [])
       if k == _UNKNOWN), None)
  tokenizer = Tokenizer(models.BPE(
      vocab, _list_merges(header, vocab, scores), unk_token=unknown, fuse_unk=True,
      byte_fallback=True))
  prefix = header.metadata.get('tokenizer.ggml.add_space_prefix', True)
  spaces = normalizers.Replace(' ', '▁')
  tokenizer.normalizer = (
      normalizers.Sequence([normalizers.Prepend('▁'), spaces]) if prefix else spaces)
  steps = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence(
      [*steps, decoders.Strip(' ', 1, 0)] if prefix else steps)
  return tokenizer


def _list_merges(header, vocab, scores):
  """All pairs of tokens that make a third, by its score, best first."""
  types = header.metadata.get('tokenizer.ggml.token_type') or [1] * len(vocab)
  merges = []
  for (text, i), score, kind in zip(vocab.items(), scores, types):
    if kind in (_CONTROL, _UNKNOWN) or re.fullmatch('<0x[0-9A-F]{2}>', text):
      continue
    pairs = sorted((vocab[text[:at]], vocab[text[at:]], at) for at in range(1, len(text))
                   if text[:at] in vocab and text[at:] in vocab)
    merges += [(-score, i, rank, text[:at], text[at:]) for rank, (_, _, at) in enumerate(pairs)]
  if any(math.isnan(m[0]) for m in merges):
    raise UserError(f'{header.path}: scores of its tokens are no numbers; fetch it again')
  return [(left, right) for *_, left, right in sorted(merges)]
