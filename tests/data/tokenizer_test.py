"""Text comes back as it was, and never becomes a special id."""

import json
import random

import pytest

from rim_jax.config import TokenizerConfig
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError

EOS, BOS, TURN = '<|end|>', '<|begin|>', '<|turn|>'
TEXTS = ['', ' ', '1+2=3', 'The answer is \\boxed{12}.\n', '  two  spaces ', '\t\r\n',
         'naïve façade', 'Ωμέγα', '数学', '👩‍👩‍👧‍👦', '\u2028\x00\x7f', 'e\u0301',
         '<b> <m> </b>', '</s>']


def make_unicode(seed=0, count=200):
  """Random texts of any code points but surrogates, which are no characters."""
  rng = random.Random(seed)
  points = [*range(0xD800), *range(0xE000, 0x110000)]
  return [''.join(map(chr, rng.choices(points, k=rng.randrange(20)))) for _ in range(count)]


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A small byte-level BPE, trained here, that would pad, truncate and add special tokens."""
  import tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(
      ['What is 12 plus 13? The answer is 25.'] * 20, tokenizers.trainers.BpeTrainer(
          vocab_size=320, show_progress=False, special_tokens=[EOS, BOS, TURN],
          initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{BOS} $A {EOS}', special_tokens=[(BOS, 1), (EOS, 0)])
  plain = tmp_path_factory.mktemp('tokenizer') / 'plain.json'
  tokenizer.save(str(plain))
  tokenizer.enable_padding(length=64, pad_id=0, pad_token=EOS)
  tokenizer.enable_truncation(3)
  tokenizer.save(str(plain.parent / 'padding.json'))
  return plain


def load_file(path, eos=EOS, bos=BOS):
  return tokenizer_lib.load_tokenizer(
      TokenizerConfig(kind='file', path=str(path), eos_token=eos, bos_token=bos))


@pytest.fixture(params=['bytes', 'file'])
def tokenizer(request, path):
  if request.param == 'bytes':
    return tokenizer_lib.load_tokenizer(TokenizerConfig(add_bos=True))
  return load_file(path)


def test_any_text_comes_back(tokenizer):
  for text in TEXTS + make_unicode():
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {tokenizer.eos_id, tokenizer.bos_id} & set(ids)


def test_special_ids_are_distinct_and_show_nothing(tokenizer):
  assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
  assert 0 <= tokenizer.bos_id < tokenizer.vocab_size
  assert tokenizer.eos_id != tokenizer.bos_id
  ids = tokenizer.encode('12')
  assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == '12'


def test_any_ids_decode_to_some_text(tokenizer):
  """A network may say anything: half a character, or ids that no text has."""
  rng = random.Random(0)
  for _ in range(50):
    text = tokenizer.decode(rng.choices(range(tokenizer.vocab_size), k=9))
    text.encode('utf-8')
  assert tokenizer.decode([]) == ''


# ---- bytes, chain ----


def test_bytes_are_bytes():
  tokenizer = tokenizer_lib.load_tokenizer(TokenizerConfig())
  assert tokenizer.encode('a\né') == [97, 10, 0xC3, 0xA9]
  assert tokenizer.decode([97, 0xC3]) == 'a\ufffd'  # half a character is shown, not dropped
  assert tokenizer.vocab_size % 8 == 0  # splits over devices


def test_chain_has_one_id_a_character():
  tokenizer = tokenizer_lib.load_tokenizer(TokenizerConfig(kind='chain', add_bos=True))
  text = '0123456789+-*\n'
  ids = tokenizer.encode(text)
  assert len(set(ids)) == len(ids) == len(text)
  assert tokenizer.decode(ids) == text
  assert not {tokenizer.eos_id, tokenizer.bos_id} & set(ids)
  assert max(*ids, tokenizer.eos_id, tokenizer.bos_id) < tokenizer.vocab_size
  assert tokenizer.decode([*ids, tokenizer.bos_id, tokenizer.eos_id]) == text


@pytest.mark.parametrize('text, culprit', [('1 + 2', "' '"), ('1/2', "'/'"), ('١', "'١'")])
def test_chain_refuses_other_characters(text, culprit):
  tokenizer = tokenizer_lib.load_tokenizer(TokenizerConfig(kind='chain'))
  with pytest.raises(UserError) as caught:
    tokenizer.encode(text)
  assert culprit in str(caught.value) and '0123456789' in str(caught.value)
  assert '\n' not in str(caught.value)  # one problem, one line


@pytest.mark.parametrize('kind', ['bytes', 'chain', 'words'])
def test_bos_is_asked_for(kind):
  load = tokenizer_lib.load_tokenizer
  assert load(TokenizerConfig(kind=kind)).bos_id is None
  assert load(TokenizerConfig(kind=kind, add_bos=True)).bos_id is not None


def test_words_have_one_id_each_and_come_back():
  tokenizer = tokenizer_lib.load_tokenizer(TokenizerConfig(kind='words', add_bos=True))
  assert tokenizer.vocab_size % 8 == 0
  ids = [i for word in tokenizer.words for i in tokenizer.encode(word)]
  assert len(set(ids)) == len(ids) == len(tokenizer.words) == 7 + 1 + 17 + 38
  assert not {tokenizer.eos_id, tokenizer.bos_id} & set(ids)
  assert max(*ids, tokenizer.eos_id, tokenizer.bos_id) < tokenizer.vocab_size
  question = 'Sally is a terpus. Every terpus is a zumpus. Is Sally a lempus or zumpus?'
  for text in (question, 'Sally is a terpus.\nEvery terpus is a zumpus.\n', '\n', ''):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, *ids, 69, tokenizer.eos_id]) == text
  assert len(tokenizer.encode(question)) == 5 + 6 + 7
  assert tokenizer.decode(tokenizer.encode(' Sally  is\ta terpus .')) == 'Sally is a terpus.'


@pytest.mark.parametrize('text, culprit', [
    ('Sally is a dog.', "'dog'"), ('sally', "'sally'"), ('<eos>', "'<'"), ('Is it 5?', "'it'"),
    ('a\u2028zumpuses', "'zumpuses'")])
def test_words_refuse_others(text, culprit):
  tokenizer = tokenizer_lib.load_tokenizer(TokenizerConfig(kind='words'))
  with pytest.raises(UserError, match=f'holds {culprit}, which is no word of ProsQA; ') as caught:
    tokenizer.encode(text)
  assert len(str(caught.value).splitlines()) == 1


# ---- A tokenizer.json ----


def test_a_file_adds_no_special_tokens(path):
  """Its post-processor would; bos and eos enter a row through the layout only."""
  tokenizer = load_file(path)
  assert tokenizer.encode('') == []
  assert tokenizer.decode(tokenizer.encode('12')) == '12'


@pytest.mark.parametrize('text', [EOS, f'is {EOS} the end?', BOS, f'12{EOS}', f'{TURN}you'])
def test_text_that_spells_a_special_token_is_refused(path, text):
  with pytest.raises(UserError, match=r'spells a special token of .*plain.json; remove it'):
    load_file(path).encode(text)


def test_padding_and_truncation_of_a_file_have_no_effect(path):
  plain, padding = load_file(path), load_file(path.parent / 'padding.json')
  for text in TEXTS + make_unicode(count=20):
    assert padding.encode(text) == plain.encode(text)


def test_a_file_without_bos(path):
  tokenizer = load_file(path, bos='')
  assert tokenizer.bos_id is None
  assert tokenizer.eos_id == 0


def test_what_a_file_can_lack(path, tmp_path):
  with pytest.raises(UserError, match=r"plain.json: has no token '</s>'.*tokenizer.eos_token"):
    load_file(path, eos='</s>')
  with pytest.raises(UserError, match=r"plain.json: has no token '<s>'.*tokenizer.bos_token"):
    load_file(path, bos='<s>')
  with pytest.raises(UserError, match=r'none.json: cannot be read .*tokenizer.path'):
    load_file(tmp_path / 'none.json')
  with pytest.raises(UserError, match='cannot be read'):
    load_file(tmp_path)
  for content in (b'', b'{}', b'\xff\xfe', path.read_bytes()[:-100]):
    (tmp_path / 'bad.json').write_bytes(content)
    with pytest.raises(UserError, match=r'bad\.json: is not a tokenizer\.json') as caught:
      load_file(tmp_path / 'bad.json')
    assert '\n' not in str(caught.value)


def test_fingerprints_tell_tokenizers_apart(path, tmp_path):
  """Whatever changes ids changes the fingerprint, under which token counts are cached."""
  tree = json.loads(path.read_text())
  tree['model']['merges'].pop()
  (tmp_path / 'other.json').write_text(json.dumps(tree))
  tokenizers = [
      tokenizer_lib.load_tokenizer(TokenizerConfig()),
      tokenizer_lib.load_tokenizer(TokenizerConfig(kind='chain')),
      tokenizer_lib.load_tokenizer(TokenizerConfig(kind='words')), load_file(path),
      load_file(path, bos=''), load_file(path, eos=BOS, bos=EOS),
      load_file(tmp_path / 'other.json')]
  prints = [t.fingerprint for t in tokenizers]
  assert len(set(prints)) == len(prints)
  assert load_file(path).fingerprint == load_file(path).fingerprint
  assert all(p.isascii() and '/' not in p for p in prints)  # it is part of a file's name


# ---- Segments ----

SEGMENTS = [
    'What is 12 plus 13?', '\n', 'The answer is \\boxed{', '25', '}', ' 2 5 ', '  x', '12+13=25']


@pytest.fixture(scope='module', params=['Prepend', 'Metaspace'])
def spaced(request, tmp_path_factory):
  """A small tokenizer in SentencePiece's manner, as Llama 2's is: it puts a space before a text."""
  import tokenizers
  from tokenizers import decoders, normalizers, pre_tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      byte_fallback=True, unk_token='<unk>', fuse_unk=True))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # no token spans a space inside
  special = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
  tokenizer.train_from_iterator(['What is 12 plus 13? The answer is 25.'] * 20,
                                tokenizers.trainers.BpeTrainer(
                                    vocab_size=330, show_progress=False, special_tokens=special))
  if request.param == 'Prepend':
    tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(' ', 1, 0)])
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always', split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Metaspace(prepend_scheme='always', split=False)])
  tree = json.loads(tokenizer.to_str())
  tree['added_tokens'] = tree['added_tokens'][:3]  # bytes are plain tokens
  tree['post_processor'] = json.loads(tokenizers.processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)]).__getstate__())
  path = tmp_path_factory.mktemp('spaced') / 'tokenizer.json'
  path.write_text(json.dumps(tree))
  return path


def test_segments_decode_to_their_texts_joined(spaced):
  import tokenizers
  plain = tokenizers.Tokenizer.from_file(str(spaced))
  tokenizer = load_file(spaced, '</s>', '<s>')
  assert tokenizer.marks_start
  ids = [tokenizer.encode(SEGMENTS[0], is_first=True), *map(tokenizer.encode, SEGMENTS[1:])]
  assert plain.decode([i for some in ids for i in some]) == ''.join(SEGMENTS)
  assert ids[0] == plain.encode(SEGMENTS[0], add_special_tokens=False).ids  # as its model expects
  assert [*tokenizer.try_encode(SEGMENTS[:1], is_first=True),
          *tokenizer.try_encode(SEGMENTS[1:])] == ids
  for text, some in zip(SEGMENTS[1:], ids[1:]):
    assert tokenizer.decode(some) == text
  for text in TEXTS[:-1]:  # the last one spells a special token here
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_whole_prompt_has_the_ids_of_its_segments(spaced):
  """What an export writes: the tokenizer with blocks between the segments."""
  import tokenizers
  tokenizer = load_file(spaced, '</s>', '<s>')
  whole = tokenizer_lib.make_first_only(tokenizers.Tokenizer.from_file(str(spaced)))
  whole.add_special_tokens(['<block>'])
  block = whole.token_to_id('<block>')
  assert whole.encode('What is 12?<block>The answer is 25').ids == [
      tokenizer.bos_id, *tokenizer.encode('What is 12?', is_first=True), block,
      *tokenizer.encode('The answer is 25')]


def test_a_gguf_tokenizer_is_known_by_its_file_and_not_by_how_it_is_written(tmp_path, monkeypatch):
  from tests.support_pretrained import GOLDEN, write_gguf
  def load(name='a.gguf', **changes):
    if not (tmp_path / name).exists():
      write_gguf(tmp_path / name, GOLDEN / 'llama', **changes)
    return load_file(tmp_path / name, '<|end|>', '')
  first = load()
  assert len(first.fingerprint) == 16
  assert load('b.gguf', block_count=9).fingerprint == first.fingerprint
  assert load('c.gguf', pre='smollm').fingerprint != first.fingerprint
  make = tokenizer_lib.gguf.make_tokenizer

  def make_as_another_version_writes_it(path):
    from tokenizers import decoders
    tokenizer = make(path)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return tokenizer
  monkeypatch.setattr(tokenizer_lib.gguf, 'make_tokenizer', make_as_another_version_writes_it)
  again = load()
  assert again.fingerprint == first.fingerprint and again.encode('12 x') == first.encode('12 x')


def test_a_tokenizer_that_marks_no_beginning_is_as_it_was(path):
  tokenizer = load_file(path)
  assert not tokenizer.marks_start
  assert tokenizer.encode('12 x', is_first=True) == tokenizer.encode('12 x')


@pytest.mark.parametrize('name', ['plain.json', 'padding.json'])
def test_many_texts_at_once_have_the_ids_of_each_alone(path, name):
  tokenizer = load_file(path.parent / name)
  texts = [*TEXTS, *make_unicode(), f'12{EOS}', f'{TURN} 12']
  expected = []
  for text in texts:
    try:
      expected.append(tokenizer.encode(text))
    except UserError:
      expected.append(None)
  assert tokenizer.try_encode(texts) == expected
  assert expected.count(None) == 2
  assert tokenizer.try_encode(texts, is_first=True) == expected  # this one marks no start
