"""Answering beside `transformers.generate`: the same weights, prompts and new tokens.

  PYTHONPATH=. python bench/generate.py [--batches=1,32] [--runs=5]   (needs pip install -e '.[hf]')

A randomly initialised network of SmolLM2-135M's shape (30 layers of width 576, 9 heads on 3, 49,152
ids, tied), written once as a Hugging Face directory and read by both in fp32. Prompts of 64 random
ids; 16 new ones each, greedily, all of which are compared. No end of text ends a row. Timed in
turn, A B A B ..., each in a process of its own, because the threads of the one would wait,
spinning, on the cores of the other. The ratio is the median of the pairs', above 1 where this
package is faster. One JSON object a line on standard output.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

NUM_PROMPT, NUM_NEW, VOCAB = 64, 16, 49_152


def write_model(folder):
  import tokenizers
  import torch
  import transformers
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
      hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
      intermediate_size=1536, vocab_size=VOCAB, tie_word_embeddings=True, rms_norm_eps=1e-5,
      rope_theta=100_000.0, max_position_embeddings=8192)).save_pretrained(folder)
  words = tokenizers.models.WordLevel({'<eos>': VOCAB - 1, 'x': 0}, unk_token='x')
  tokenizers.Tokenizer(words).save(str(pathlib.Path(folder) / 'tokenizer.json'))


def make_prompts(batch):
  import numpy as np
  return np.random.default_rng(batch).integers(1, VOCAB - 2, (batch, NUM_PROMPT))


def make_torch(folder):
  """batch -> () -> (ids of what is answered, seconds), by transformers."""
  import torch
  import transformers
  torch.set_num_threads(os.cpu_count() or 1)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  settings = transformers.GenerationConfig(
      max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0)

  def make(batch):
    tokens = torch.tensor(make_prompts(batch))

    def run():
      start = time.perf_counter()
      with torch.inference_mode():
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens),
                             generation_config=settings)
      return out[:, NUM_PROMPT:].tolist(), time.perf_counter() - start
    return run
  return make


def make_ours(folder):
  """The same, by this package."""
  import jax
  import numpy as np

  from rim_jax import config as config_lib
  from rim_jax import methods
  from rim_jax.data import tokenizer as tokenizer_lib
  from rim_jax.evaluation import decode
  from rim_jax.model import sharding
  from rim_jax.model.network import Network
  from rim_jax.pretrained import families, weights
  from rim_jax.training import step as step_lib
  tree = config_lib.make_config_dict(method='direct')
  tree.model.update({'init_from': str(folder), 'compute_dtype': 'float32',
                     'frozen_dtype': 'float32'})
  tree.train.num_examples, tree.layout.separator = 1, ''
  tree.tokenizer.update({'kind': 'file', 'path': f'{folder}/tokenizer.json', 'eos_token': '<eos>'})
  tree.optim.trainable, tree.eval.max_new_tokens = 'memory', NUM_NEW
  config = families.resolve(config_lib.parse_config(tree))
  mesh = sharding.make_mesh(config.mesh)
  codec = methods.make_codec(config, tokenizer_lib.load_tokenizer(config.tokenizer))
  program = step_lib.make_program(config, codec.memory_start, 1, mesh)
  state, frozen = program.init(jax.random.key(0), weights.load_params(
      weights.open_base(folder), program.base))
  decoder = decode.Decoder(Network(program.graphdef, state.params, frozen, config, codec, mesh))

  def make(batch):
    questions = make_prompts(batch).tolist()

    def run():
      start = time.perf_counter()
      trunks = decoder.place(questions, 0, decoder.choose_batch_size(batch))
      ids = np.asarray(decoder.run(trunks, (), (0,)))[:batch, 0]
      return ids.tolist(), time.perf_counter() - start
    return run
  return make


def work(pipe, make, folder):
  """Answers every batch size of the pipe with one run; the first of a size is not timed."""
  make, runs = make(folder), {}
  while batch := pipe.recv():
    if batch not in runs:
      runs[batch] = make(batch)
      runs[batch]()
    pipe.send(runs[batch]())


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batches', default='1,32')
  parser.add_argument('--runs', type=int, default=5)
  args = parser.parse_args()
  spawn = multiprocessing.get_context('spawn')
  with tempfile.TemporaryDirectory() as folder:
    writer = spawn.Process(target=write_model, args=(folder,))
    writer.start()
    writer.join()
    sides = []
    for make in (make_torch, make_ours):
      pipe, end = spawn.Pipe()
      process = spawn.Process(target=work, args=(end, make, folder), daemon=True)
      process.start()
      sides.append((pipe, process))
    for batch in map(int, args.batches.split(',')):
      pairs = []
      for _ in range(args.runs):
        found = []
        for pipe, _ in sides:
          pipe.send(batch)
          found.append(pipe.recv())
        pairs.append(found)
      same = sum(a == b for (a, _), (b, _) in pairs for a, b in zip(a, b)) / len(pairs) / batch
      theirs, ours = ([pair[i][1] for pair in pairs] for i in (0, 1))
      print(json.dumps({
          'bench': 'generate', 'batch': batch, 'prompt_tokens': NUM_PROMPT, 'new_tokens': NUM_NEW,
          'speedup': round(statistics.median(a / b for a, b in zip(theirs, ours)), 3),
          'transformers_secs': round(statistics.median(theirs), 3),
          'rim_jax_secs': round(statistics.median(ours), 3), 'goal': 1.0,
          'rows_with_equal_ids': round(same, 3)}), flush=True)
    for pipe, process in sides:
      pipe.send(0)
      process.join()


if __name__ == '__main__':
  main()
