"""What an export is asked with: engines make the run's ids of a prompt, by the files beside it."""

import importlib.util
import json
import pathlib
import shutil

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rim_jax.pretrained import prompts, weights
from tests.support_pretrained import make_config

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


def test_a_tokenizer_that_marks_beginnings_is_not_left_to_the_class_of_a_model(tmp_path):
  named = {'tokenizer_class': 'LlamaTokenizer', 'legacy': True}
  settings = write(tmp_path / 'spaced', make_spaced(tmp_path / 'a', **named))[2]
  assert settings['tokenizer_class'] == 'PreTrainedTokenizerFast'
  plain = make_folder(tmp_path / 'b', **named)  # its own class is left where nothing is marked
  assert write(tmp_path / 'plain', plain)[2] == json.loads(
      (plain / 'tokenizer_config.json').read_text())
  (plain / 'tokenizer_config.json').unlink()
  assert write(tmp_path / 'bare', plain)[2]['tokenizer_class'] == 'PreTrainedTokenizerFast'


@needs_hf
@pytest.mark.parametrize('legacy', [True, False, None])
def test_transformers_puts_no_space_behind_a_block(legacy, tmp_path):
  base = make_spaced(tmp_path / 'base', tokenizer_class='LlamaTokenizer', legacy=legacy)
  config, tokenizer, _ = write(tmp_path / 'out', base)
  text = prompts.make_prompt(QUESTION, config)
  assert load_transformers(tmp_path / 'out')(text).input_ids == tokenizer.encode(text).ids
