"""What an export is asked with: engines make the run's ids of a prompt, by the files beside it."""

import importlib.util
import json
import pathlib
import shutil

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rim_jax.errors import UserError
from rim_jax.pretrained import prompts, weights
from tests import support
from tests.support_pretrained import make_config, make_model, write_export

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
QUESTION = 'Tom has 3 pens?'


def needs_hf(test):
  skip = pytest.mark.skipif(importlib.util.find_spec('transformers') is None,
                            reason="needs the extra: pip install -e '.[hf]'")
  return pytest.mark.hf(skip(test))


def make_folder(folder, family='llama', **settings):
  """A copy of a golden model, with these keys in tokenizer_config.json."""
  shutil.copytree(GOLDEN / family, folder)
  path = folder / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  return folder


def make_spaced(folder, **settings):
  """A golden Llama with a small tokenizer in SentencePiece's manner, as Llama 2's is."""
  make_folder(folder, **{'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': None, **settings})
  tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # no token spans a space inside
  tokenizer.train_from_iterator(
      [f'{QUESTION} The final answer is \\boxed{{4'] * 9, trainers.BpeTrainer(
          vocab_size=100, show_progress=False, special_tokens=['<unk>', '<s>', '</s>']))
  tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
  tokenizer.normalizer = normalizers.Sequence([
      normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace('\u2581', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  tokenizer.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)])
  tokenizer.save(str(folder / 'tokenizer.json'))
  return folder


def add_stop(folder):
  """Makes a model's last token, 271, the special token <|stop|>."""
  path = folder / 'tokenizer.json'
  tree = json.loads(path.read_text())
  tree['model']['merges'].pop()
  tree['model']['vocab'] = {'<|stop|>' if i == 271 else text: i
                            for text, i in tree['model']['vocab'].items()}
  tree['added_tokens'].append(tree['added_tokens'][0] | {'id': 271, 'content': '<|stop|>'})
  path.write_text(json.dumps(tree))
  return folder


def write(out, base, **changes):
  """(config, tokenizer.json, tokenizer_config.json) of the export of a run on this model."""
  config = make_config(base, **changes)
  out.mkdir()
  prompts.write_tokenizer(out, config, weights.open_base(base))
  shutil.copy(base / 'config.json', out)
  return (config, tokenizers.Tokenizer.from_file(str(out / 'tokenizer.json')),
          json.loads((out / 'tokenizer_config.json').read_text()))


def load_transformers(out):
  import transformers
  return transformers.AutoTokenizer.from_pretrained(out)


def name_class(folder, name):
  """Settings as a model of that class is published with: its added tokens stand there, too."""
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  path = folder / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {
      'tokenizer_class': name, 'legacy': True, 'added_tokens_decoder': {
          str(i): {key: getattr(token, key) for key in (
              'content', 'lstrip', 'normalized', 'rstrip', 'single_word', 'special')}
          for i, token in tokenizer.get_added_tokens_decoder().items()}}))
  return folder


@pytest.mark.parametrize('make', [make_folder, make_spaced])
def test_an_exported_tokenizer_is_not_left_to_the_class_of_a_model(make, tmp_path):
  """Some classes make parts of it anew, or take no added token from tokenizer.json."""
  base = name_class(make(tmp_path / 'base'), 'LlamaTokenizer')
  settings = write(tmp_path / 'out', base)[2]
  assert settings['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert settings['legacy'] and 'added_tokens_decoder' not in settings
  (base / 'tokenizer_config.json').unlink()
  assert write(tmp_path / 'bare', base)[2]['tokenizer_class'] == 'PreTrainedTokenizerFast'


@needs_hf
@pytest.mark.parametrize('family, name', [
    ('qwen2', 'Qwen2Tokenizer'), ('qwen3', 'Qwen2Tokenizer'), ('gemma3', 'GemmaTokenizer'),
    ('gpt2', 'GPT2Tokenizer'), ('llama', 'GPT2Tokenizer'), ('llama3', 'PreTrainedTokenizerFast'),
    ('llama', 'LlamaTokenizer')])
def test_transformers_reads_the_blocks_whatever_class_a_model_names(family, name, tmp_path):
  base = name_class(make_folder(tmp_path / 'base', family), name)
  config, tokenizer, _ = write(tmp_path / 'out', base)
  text = prompts.make_prompt(QUESTION, config)
  found = load_transformers(tmp_path / 'out')(text).input_ids
  assert found == tokenizer.encode(text).ids
  assert set(map(tokenizer.token_to_id, prompts.BLOCK_TOKENS)) <= set(found)


@needs_hf
@pytest.mark.parametrize('legacy', [True, False, None])
def test_transformers_puts_no_space_behind_a_block(legacy, tmp_path):
  base = make_spaced(tmp_path / 'base', tokenizer_class='LlamaTokenizer', legacy=legacy)
  config, tokenizer, _ = write(tmp_path / 'out', base)
  text = prompts.make_prompt(QUESTION, config)
  assert load_transformers(tmp_path / 'out')(text).input_ids == tokenizer.encode(text).ids


@pytest.mark.parametrize('old', ['<|end|>', {'content': '<|end|>'}, None])
def test_bos_and_eos_of_a_run_take_the_place_of_the_model_s_in_every_file(old, tmp_path):
  base = add_stop(make_folder(tmp_path / 'base', eos_token=old, bos_token=old))
  (base / 'special_tokens_map.json').write_text(json.dumps({'eos_token': old, 'bos_token': old}))
  tree = json.loads((base / 'config.json').read_text()) | {'bos_token_id': 5}
  (base / 'config.json').write_text(json.dumps(tree))
  config = make_config(base, tokenizer__eos_token='<|stop|>', tokenizer__bos_token='<|end|>')
  _, params, frozen = make_model(config)
  write_export(tmp_path / 'out', config, params, frozen)
  tree = json.loads((tmp_path / 'out/config.json').read_text())
  assert (tree['eos_token_id'], tree['bos_token_id']) == (271, 0)
  assert json.loads((tmp_path / 'out/generation_config.json').read_text())['eos_token_id'] == 271
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    found = json.loads((tmp_path / 'out' / name).read_text())
    assert found['eos_token'] == '<|stop|>' and found['bos_token'] == (old or '<|end|>')


def test_a_plain_token_is_not_named_where_it_would_split_words(tmp_path):
  config = make_config('qwen3', tokenizer__eos_token='a')
  _, params, frozen = make_model(config)
  write_export(tmp_path / 'out', config, params, frozen)
  assert 'eos_token' not in json.loads((tmp_path / 'out/tokenizer_config.json').read_text())
  eos = json.loads((tmp_path / 'out/config.json').read_text())['eos_token_id']
  assert eos == tokenizers.Tokenizer.from_file(
      str(GOLDEN / 'qwen3/tokenizer.json')).token_to_id('a')


@needs_hf
@pytest.mark.parametrize('eos', ['<|stop|>', 'a'])
def test_transformers_makes_the_run_s_ids_whatever_ends_an_answer(eos, tmp_path):
  base = add_stop(make_folder(tmp_path / 'base', 'qwen3'))
  config, tokenizer, _ = write(tmp_path / 'out', base, tokenizer__eos_token=eos)
  text = prompts.make_prompt(QUESTION, config)
  found = load_transformers(tmp_path / 'out')
  assert found(text).input_ids == tokenizer.encode(text).ids
  assert found.eos_token == (eos if eos == '<|stop|>' else None)


def is_begun_by(out, bos):
  """Whether the exported tokenizer.json adds this token before a text, and no other."""
  tokenizer = tokenizers.Tokenizer.from_file(str(out / 'tokenizer.json'))
  plain = tokenizer.encode(QUESTION, add_special_tokens=False).ids
  return tokenizer.encode(QUESTION).ids == [tokenizer.token_to_id(bos), *plain]


@pytest.mark.parametrize('family, bos', [
    ('gpt2', 'a'), ('spaced', '</s>'), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('qwen3', '<|end|>'), ('llama', '<|stop|>')))])
def test_a_bos_that_the_model_s_tokenizer_does_not_add_is_added_by_that_of_the_export(
    family, bos, tmp_path):
  base = (make_spaced(tmp_path / 'base') if family == 'spaced' else
          add_stop(make_folder(tmp_path / 'base', family, add_bos_token=False)))
  config = make_config(base, tokenizer__bos_token=bos)
  _, params, frozen = make_model(config)
  write_export(tmp_path / 'out', config, params, frozen, [QUESTION])
  assert is_begun_by(tmp_path / 'out', bos)
  # As llama.cpp's converter reads it.
  assert gguf.SpecialVocab(tmp_path / 'out').add_special_token['bos']


def test_what_a_tokenizer_adds_behind_a_text_is_told_or_left_out(tmp_path):
  base = make_folder(tmp_path / 'base')
  path = base / 'tokenizer.json'
  tree = json.loads(path.read_text())
  tree['post_processor']['single'].append(tree['post_processor']['single'][0])
  path.write_text(json.dumps(tree))
  named = {'tokenizer.kind': 'file', 'tokenizer.path': str(path), 'tokenizer.eos_token': '<|end|>'}
  config = support.set_keys(make_config('llama'), named | {'model.init_from': str(base)})
  _, params, frozen = make_model(config)
  write_export(tmp_path / 'out', config, params, frozen)
  assert is_begun_by(tmp_path / 'out', '<|end|>')
  tree['post_processor']['single'].pop(0)
  path.write_text(json.dumps(tree))
  with pytest.raises(UserError, match=r"ends texts with \['<.end.>'\], which the run"):
    write_export(tmp_path / 'no', support.set_keys(config, {'tokenizer.bos_token': ''}), params,
                 frozen)


@needs_hf
@pytest.mark.parametrize('said', [
    {}, {'add_bos_token': False, 'tokenizer_class': 'Qwen2Tokenizer'}])
@pytest.mark.parametrize('bos', ['<|stop|>', 'a'])
def test_transformers_begins_with_the_bos_of_the_run(bos, said, tmp_path):
  base = add_stop(make_folder(tmp_path / 'base', 'qwen3', **said))
  config, tokenizer, _ = write(tmp_path / 'out', base, tokenizer__bos_token=bos)
  text = prompts.make_prompt(QUESTION, config)
  assert tokenizer.encode(text).tokens[0] == bos
  assert load_transformers(tmp_path / 'out')(text).input_ids == tokenizer.encode(text).ids


def make_byte_fallback(folder):
  """Gemma's kind, but for its size: it marks spaces, and no beginnings."""
  path = make_folder(folder) / 'tokenizer.json'
  tree = json.loads(path.read_text())
  tree['model']['byte_fallback'] = True
  path.write_text(json.dumps(tree))
  return folder


@pytest.mark.parametrize('make', [make_spaced, make_byte_fallback, make_folder])
def test_the_readme_says_where_llama_cpp_must_be_given_ids(make, tmp_path):
  config = make_config(make(tmp_path / 'base'))
  _, params, frozen = make_model(config)
  write_export(tmp_path / 'out', config, params, frozen, [QUESTION])
  readme = (tmp_path / 'out/README.md').read_text()
  assert ('`"prompt": [ids]`' in readme) == (make is not make_folder)
