"""What the design buys, as ratios measured side by side in one run.

  PYTHONPATH=. python bench/ratios.py --data=DIR        (DIR as for --config.data.dir)

On GSM8K rows under a BPE of 8,192 ids trained on them, in a GPT-2-shaped network (learned
positions, LayerNorm, biases, tied) scaled to a laptop: 4 layers of width 256. Each pair is timed in
turn, A B A B ..., and the ratio is the median of the pairs'. One JSON object a line on standard
output.

  one_pass    K = 8 readouts in one packed pass, against 8 separate sequences
  slots       logits at supervised slots, against logits everywhere (and peak memory at 128 K ids)
  packing     packed rows, against one padded row an example
  input       examples/s that a core makes, that processes make, and that the step takes
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from configs import presets
from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.data import datasets
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.model import attention
from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order as order_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.packing import source as source_lib
from rim_jax.packing import stream
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib

NUM_EXAMPLES, ROWS_A_CALL, ROW_TOKENS = 64, 1, 512


def make_config(directory, cache, method='rim_stage2', row_tokens=ROW_TOKENS):
  config = presets.make(method, 'gsm8k')
  config.data.dir, config.data.cache_dir = directory, cache
  config.layout.row_tokens = row_tokens
  config.model.update({'embed_dim': 256, 'mlp_dim': 1024, 'num_heads': 4, 'norm': 'layernorm',
                       'bias': 'all', 'positions': 'learned', 'dropout': 0.0})
  return config_lib.parse_config(config)


def write_rows(examples, config, codec, row_tokens, packed=True):
  """Examples -> batches of ROWS_A_CALL rows, packed first-fit or one a row."""
  sizes = np.asarray([layout_lib.count_example(e, config.layout)[:2] for e in examples])
  slots = order_lib.choose_row_slots(sizes, row_tokens) if packed else int(sizes[:, 1].max())
  order = np.arange(len(examples))
  rows = (order_lib.pack(order, sizes, (row_tokens, slots), 64) if packed else [[i] for i in order])
  batches = []
  for first in range(0, len(rows), ROWS_A_CALL):
    members = [[examples[i] for i in row] for row in rows[first:first + ROWS_A_CALL]]
    batch = rows_lib.make_rows(members, row_tokens, slots, config.layout, codec.memory_start)
    batches.append(jax.tree.map(jnp.asarray, batch))
  return batches, int(sizes[:, 0].sum())


def make_gradient(config, vocab_size, everywhere=False):
  """(params, batch) -> gradient of the loss; logits at slots, or at every position."""
  graphdef, params = nnx.split(
      transformer_lib.Transformer(config.model, vocab_size, jax.random.key(0)))

  def loss(params, batch):
    model = nnx.merge(graphdef, params)
    if not everywhere:
      return step_lib.compute_loss(model, batch, jnp.int32(0), 1,
                                   config.layout.num_blocks, config, None)[0]
    fields = batch_lib.get_fields(batch)
    visible = attention.find_visible(fields, fields, config.layout,
                                     config.model.attention_tile_tokens)
    x, _ = model(batch.tokens, batch.positions, visible)
    targets = jnp.minimum(jnp.roll(batch.tokens, -1, 1), vocab_size - 1)
    return loss_lib.compute_slot_nll(model.compute_logits(x), targets).sum()
  return jax.jit(jax.grad(loss)), params


def time_all(gradient, params, batches):
  start = time.perf_counter()
  for batch in batches:
    result = gradient(params, batch)
  jax.block_until_ready(result)
  return time.perf_counter() - start


def compare(a, b, pairs):
  """Median over pairs of time(b) / time(a), each a call returning seconds; both warmed first."""
  a(), b()
  times = [(a(), b()) for _ in range(pairs)]
  return (statistics.median(y / x for x, y in times), statistics.median(x for x, _ in times),
          statistics.median(y for _, y in times))


def tell(**line):
  print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}),
        flush=True)


def bench_one_pass(config, codec, examples, pairs):
  alone = [dataclasses.replace(e, num_blocks=r.block, readouts=(r,))
           for e in examples for r in e.readouts]
  whole, whole_tokens = write_rows(examples, config, codec, config.layout.row_tokens)
  parts, part_tokens = write_rows(alone, config, codec, config.layout.row_tokens)
  gradient, params = make_gradient(config, codec.memory_start)
  ratio, secs, other = compare(lambda: time_all(gradient, params, whole),
                               lambda: time_all(gradient, params, parts), pairs)
  tell(bench='one_pass', speedup=ratio, token_ratio=part_tokens / whole_tokens,
       of_token_ratio=ratio / (part_tokens / whole_tokens), goal_of_token_ratio=0.9,
       one_pass_examples_per_sec=len(examples) / secs,
       separate_examples_per_sec=len(examples) / other)


def bench_slots(config, codec, examples, pairs):
  batches, _ = write_rows(examples, config, codec, config.layout.row_tokens)
  at_slots, params = make_gradient(config, 8192)
  everywhere, _ = make_gradient(config, 8192, everywhere=True)
  ratio, *_ = compare(lambda: time_all(at_slots, params, batches[:1]),
                      lambda: time_all(everywhere, params, batches[:1]), pairs)
  peak = {}
  for name, flag in (('slots', False), ('everywhere', True)):
    gradient, params = make_gradient(config, 131_072, everywhere=flag)
    memory = gradient.lower(params, batches[0]).compile().memory_analysis()
    peak[name] = memory.temp_size_in_bytes / 2 ** 20
  tell(bench='slots', speedup_at_8k_ids=ratio, temp_mib_at_128k_ids_slots=peak['slots'],
       temp_mib_at_128k_ids_everywhere=peak['everywhere'],
       memory_ratio=peak['everywhere'] / peak['slots'])


def bench_packing(config, codec, examples, pairs):
  widest = max(layout_lib.count_example(e, config.layout)[0] for e in examples)
  packed, tokens = write_rows(examples, config, codec, config.layout.row_tokens)
  padded, _ = write_rows(examples, config, codec, -(-widest // 64) * 64, packed=False)
  gradient, params = make_gradient(config, codec.memory_start)
  ratio, *_ = compare(lambda: time_all(gradient, params, packed),
                      lambda: time_all(gradient, params, padded), pairs)
  slots = sum(b.tokens.size for b in padded) / sum(b.tokens.size for b in packed)
  tell(bench='packing', speedup=ratio, computed_token_ratio=slots,
       padded_useful_frac=tokens / sum(b.tokens.size for b in padded))


def bench_input(directory, cache, bpe, split, pairs):
  """What one core makes of an epoch, processes of twenty in batches of 32 rows, and an update."""
  for method in ('rim_stage1', 'rim_stage2', 'cot'):
    codec, stage = plan_epochs(directory, cache, method, bpe, split, 1.0)
    source, rates = source_lib.BatchSource(stage, codec), []
    for _ in range(pairs):
      start = time.process_time()
      for i in range(len(source)):
        source[i]
      rates.append(stage.num_examples / (time.process_time() - start))
    tell(bench='input', method=method, tokenizer='bpe', examples_per_sec_a_core=max(rates))
  codec, stage = plan_epochs(directory, cache, 'rim_stage2', bpe, split, 20.0, batch_rows=32)
  rates = {n: [] for n in range(1, 1 + len(os.sched_getaffinity(0)))}
  for _ in range(pairs):
    for num_workers, found in rates.items():
      found.append(time_workers(source_lib.BatchSource(stage, codec), num_workers))
  for num_workers, found in rates.items():
    tell(bench='input', workers=num_workers, examples_per_sec=statistics.median(found),
         of_one_times_workers=statistics.median(
             rate / (num_workers * one) for rate, one in zip(found, rates[1])))
  config = make_config(directory, cache)
  batch = jax.tree.map(jnp.asarray, source_lib.BatchSource(stage, codec)[0])
  gradient, params = make_gradient(config, codec.memory_start)
  time_all(gradient, params, [batch])
  tell(bench='input', step_examples_per_sec=stage.plan.examples_per_row * stage.batch_rows / min(
      time_all(gradient, params, [batch]) for _ in range(pairs)))


# 8 parameters: what the data is, and which plan of it.
def plan_epochs(directory, cache, method, tokenizer, split, num_epochs, row_tokens=1024,
                batch_rows=0):
  config = make_config(directory, cache, method, row_tokens)
  config = dataclasses.replace(config, train=dataclasses.replace(
      config.train, num_examples=0, num_epochs=num_epochs,
      **({'batch_rows': batch_rows, 'batch_examples': 0} if batch_rows else {})))
  codec = methods.make_codec(config, tokenizer)
  return codec, source_lib.make_stage_plan(split, codec, say=lambda line: None)


def time_workers(source, num_workers):
  """Batches' rows of examples a second, once all processes are at work."""
  with contextlib.closing(stream.make_batches(source, 0, 4 * num_workers, num_workers)) as batches:
    for _ in range(len(source) // 10):
      next(batches)
    start = time.perf_counter()
    count = sum(int(batch.example.max(1).sum()) for batch in batches)
    return count / (time.perf_counter() - start)


def train_bpe(records, folder, vocab_size=8192):
  """A byte-level BPE of the data, to see rows as a pretrained model would."""
  import tokenizers
  bpe = tokenizers.ByteLevelBPETokenizer()
  bpe.train_from_iterator((' '.join((r.question, *r.steps, r.answer)) for r in records), vocab_size,
                          special_tokens=['<|endoftext|>'])
  path = f'{folder}/tokenizer.json'
  bpe.save(path)
  return tokenizer_lib.load_tokenizer(config_lib.TokenizerConfig(
      kind='file', path=path, eos_token='<|endoftext|>'))


def bench_useful(directory, cache, bpe, split):
  """Useful tokens of the plan over a whole epoch, by stage and tokenizer."""
  for method in ('rim_stage1', 'rim_stage2'):
    for name, tokenizer in (('bytes', None), ('bpe', bpe)):
      config = make_config(directory, cache, method)
      _, stage = plan_epochs(
          directory, cache, method, tokenizer or tokenizer_lib.load_tokenizer(config.tokenizer),
          split, 1.0, 2048 if name == 'bytes' else 1024)
      plan = stage.plan
      tell(bench='useful_tokens', stage=method, tokenizer=name, row_tokens=plan.row_tokens,
           useful_frac=plan.useful_frac, examples_per_row=plan.examples_per_row)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True)
  parser.add_argument('--pairs', type=int, default=3)
  parser.add_argument('--only', default='useful,one_pass,slots,packing,input')
  args = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # of Grain, which asks when it starts processes
  device = jax.devices()[0]
  tell(device=device.device_kind, num_devices=jax.device_count(), jax=jax.__version__)
  with tempfile.TemporaryDirectory() as folder:
    config = make_config(args.data, folder)
    split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
    bpe = train_bpe(split.__getitems__(range(len(split))), folder)
    codec = methods.make_codec(config, bpe)
    examples = [codec.lay_out(codec.encode(r)) for r in split.__getitems__(range(NUM_EXAMPLES))]
    for name in args.only.split(','):
      if name == 'useful':
        bench_useful(args.data, folder, bpe, split)
      elif name == 'input':
        bench_input(args.data, folder, bpe, split, args.pairs)
      else:
        {'one_pass': bench_one_pass, 'slots': bench_slots, 'packing': bench_packing}[name](
            config, codec, examples, args.pairs)


if __name__ == '__main__':
  main()
