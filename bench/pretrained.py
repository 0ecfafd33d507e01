"""Pretrained models: the memory that loading takes, and a step beside PyTorch's.

  PYTHONPATH=. python bench/pretrained.py memory                (a Llama-shaped model of 1 GiB)
  PYTHONPATH=. python bench/pretrained.py torch --data=DIR      (needs pip install -e '.[hf]')
  PYTHONPATH=. python bench/pretrained.py matmul --one_core     (needs the same)

`memory` writes a random bf16 model, loads it onto eight fake CPU devices in a fresh process and
prints the peak of resident memory against what the devices hold.

`torch` trains the same GPT-2-shaped network (its weights written once, loaded by both) with LoRA on
every projection on the same packed GSM8K rows of stage 2 in fp32: this package's step, and
transformers + peft + AdamW with the same visibility as a 4-D mask. Timed in turn, A B A B ..., each
in a process of its own, because the threads of the one would wait, spinning, on the cores of the
other. The losses of the first step are compared, so that both do the same work.

  ... torch --data=DIR --layers=12 --width=768 --vocab=50257     (GPT-2's own shape)
  ... torch --data=DIR --smollm2                                 (SmolLM2-135M's, 49,152 ids)
  ... torch --data=DIR --smollm2 --padded
  ... torch --data=DIR --smollm2 --one_core --trace              (time by operation of our step)

A third way is what a user would write who knows causal models alone: each readout as a sequence of
its own, question, blocks and answer, all padded to the longest, in the same transformers + peft.
Its loss is the same, too. `--padded` times this package beside it in place of the packed rows.

On a machine that others use, `--one_core` pins both to one core, with one thread each: then the
seconds of processor time (`cpu_speedup`) say what idle cores would.

`matmul` multiplies matrices of SmolLM2's shapes with both, in turn, and tells GFLOP a second of
processor time.

Both are asked for the floating-point operations of their products: the compiler by its program,
torch by its own counter. Their ratio, `limit`, is what could be gained if both multiplied equally
fast and did nothing else.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROW_TOKENS, NUM_ROWS, RANK = 512, 2, 16


def tell(**line):
  print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}),
        flush=True)


# ---- Memory ----


def write_llama(folder, layers=16, width=2048, mlp=5632, vocab=32_000):
  """A random Llama in several files of one layer each, in bf16."""
  import ml_dtypes
  import numpy as np
  import safetensors.numpy
  heads = width // 64
  (folder / 'config.json').write_text(json.dumps({
      'model_type': 'llama', 'hidden_size': width, 'intermediate_size': mlp,
      'num_hidden_layers': layers, 'num_attention_heads': heads, 'num_key_value_heads': heads // 4,
      'vocab_size': vocab, 'max_position_embeddings': 2048, 'rms_norm_eps': 1e-5,
      'rope_theta': 10000.0, 'tie_word_embeddings': True, 'hidden_act': 'silu'}))
  rng, where = np.random.default_rng(0), {}

  def write(file, shapes):
    safetensors.numpy.save_file({
        name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()}, folder / file)
    where.update(dict.fromkeys(shapes, file))
  write('embedding.safetensors', {'model.embed_tokens.weight': (vocab, width),
                                  'model.norm.weight': (width,)})
  for i in range(layers):
    at = f'model.layers.{i}'
    write(f'layer{i}.safetensors', {
        f'{at}.input_layernorm.weight': (width,), f'{at}.post_attention_layernorm.weight': (width,),
        f'{at}.self_attn.q_proj.weight': (width, width),
        f'{at}.self_attn.k_proj.weight': (width // 4, width),
        f'{at}.self_attn.v_proj.weight': (width // 4, width),
        f'{at}.self_attn.o_proj.weight': (width, width), f'{at}.mlp.gate_proj.weight': (mlp, width),
        f'{at}.mlp.up_proj.weight': (mlp, width), f'{at}.mlp.down_proj.weight': (width, mlp)})
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))


def load_and_measure(folder):
  import jax

  from rim_jax import config as config_lib
  from rim_jax.model import sharding
  from rim_jax.pretrained import families
  from rim_jax.pretrained import weights as weights_lib
  from rim_jax.training import step as step_lib
  tree = families.load_json(pathlib.Path(folder) / 'config.json')
  model = config_lib.ModelConfig(**families.parse_model(tree, folder))
  config = config_lib.Config(model=model, optim=config_lib.OptimConfig(trainable='memory'))
  mesh = sharding.make_mesh(config_lib.MeshConfig(1, 4, 2))
  program = step_lib.make_program(config, model.vocab_size, 1, mesh)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  start = time.perf_counter()
  params = jax.block_until_ready(
      weights_lib.load_params(weights_lib.open_base(folder), program.base))
  secs = time.perf_counter() - start
  shards = sum(s.data.nbytes for x in jax.tree.leaves(params)
               for s in x.addressable_shards) / 2**30
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  tell(bench='memory', devices=jax.device_count(), local_shards_gib=shards, peak_gib=peak,
       before_loading_gib=before, allowed_gib=1.25 * shards + 1, load_secs=secs)


def bench_memory():
  with tempfile.TemporaryDirectory() as folder:
    write_llama(pathlib.Path(folder))
    subprocess.run([sys.executable, __file__, 'load', '--data', folder], check=True, env=dict(
        os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8'))


# ---- A step beside PyTorch's ----


def write_gpt2(folder, tokenizer_path, layers, width, vocab_size):
  import transformers
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
      n_embd=width, n_layer=layers, n_head=width // 64, n_positions=1024, vocab_size=vocab_size,
      bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
  model.save_pretrained(folder)
  (folder / 'tokenizer.json').write_bytes(pathlib.Path(tokenizer_path).read_bytes())
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "<|endoftext|>"}')


def write_smollm2(folder, tokenizer_path):
  import transformers
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
      hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
      intermediate_size=1536, vocab_size=49_152, tie_word_embeddings=True, rms_norm_eps=1e-5,
      rope_theta=100_000.0, max_position_embeddings=8192)).save_pretrained(folder)
  (folder / 'tokenizer.json').write_bytes(pathlib.Path(tokenizer_path).read_bytes())
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "<|endoftext|>"}')


def run_torch(pipe, *args):
  """Answers every message of the pipe with one step; 'flops' with their number."""
  from torch.utils import flop_counter
  step = make_torch_step(*args)
  while asked := pipe.recv():
    if asked == 'flops':
      with flop_counter.FlopCounterMode(display=False) as counter:
        step()
      pipe.send(counter.get_total_flops())
    else:
      pipe.send(step())


def list_sequences(batch):
  """Each readout as a sequence: (its tokens, the place of each slot in it, the slots' columns)."""
  import numpy as np
  found = []
  for i, example in enumerate(np.asarray(batch.example)):
    block, readout, positions, tokens, index = (np.asarray(x)[i] for x in (
        batch.block, batch.readout, batch.positions, batch.tokens, batch.slot_index))
    columns = np.flatnonzero(np.asarray(batch.slot_kind)[i])
    assert readout[index[columns]].all()  # an answer has a prefix, which its readout begins with
    for e, r in sorted({(example[t], readout[t]) for t in index[columns]}):
      own = (example == e) & (readout == r)
      places = np.flatnonzero(own | ((example == e) & (readout == 0) & (block <= block[own][0])))
      places = places[np.argsort(positions[places])]
      assert (positions[places] == np.arange(len(places))).all()
      mine = columns[own[index[columns]]]
      found.append((tokens[places], np.searchsorted(positions[places], positions[index[mine]]),
                    (i, mine)))
  return found


def pad(batch, weights):
  """The sequences as a padded batch: tokens, which are real, and of each slot what torch needs."""
  import numpy as np
  found = list_sequences(batch)
  length, most = (max(len(part[k]) for part in found) for k in (0, 1))
  tokens = np.zeros((len(found), length), np.int64)
  index, target = (np.zeros((len(found), most), np.int64) for _ in range(2))
  weight = np.zeros((len(found), most), np.float32)
  for k, (ids, places, (row, columns)) in enumerate(found):
    tokens[k, :len(ids)], index[k, :len(places)] = ids, places
    target[k, :len(places)] = np.asarray(batch.slot_target)[row, columns]
    weight[k, :len(places)] = weights[row, columns]
  real = np.arange(length) < np.asarray([len(ids) for ids, *_ in found])[:, None]
  return tokens, real, index, target, weight


def make_torch_step(folder, config, batch, memory_rows, memory_start, is_padded):
  """A step of transformers + peft on the same rows, or padded: () -> (loss, seconds, of CPU)."""
  import numpy as np
  import peft
  import torch
  import transformers

  from rim_jax.packing import batch as batch_lib
  from rim_jax.training import loss as loss_lib
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  model.resize_token_embeddings(memory_start + 3, mean_resizing=False)
  with torch.no_grad():
    model.get_input_embeddings().weight[memory_start:] = torch.tensor(np.asarray(memory_rows))
  is_gpt2 = model.config.model_type == 'gpt2'
  model = peft.get_peft_model(model, peft.LoraConfig(
      r=RANK, lora_alpha=32.0, fan_in_fan_out=is_gpt2,
      target_modules=['c_attn', 'attn.c_proj', 'c_fc', 'mlp.c_proj'] if is_gpt2 else 'all-linear',
      trainable_token_indices=list(range(memory_start, memory_start + 3)))).train()
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
  fields = batch_lib.get_fields(batch)
  visible = batch_lib.visible(fields, fields) | np.eye(batch.tokens.shape[1], dtype=bool)
  mask = torch.where(torch.tensor(visible)[:, None], 0.0, torch.finfo(torch.float32).min)
  tokens, positions = (torch.tensor(np.asarray(x)).long() for x in (batch.tokens, batch.positions))
  weights, norm = loss_lib.compute_slot_weights(batch, 0, 1, config)
  weights = np.asarray(weights) / float(norm)
  index, target = batch.slot_index, batch.slot_target
  if is_padded:
    tokens, real, index, target, weights = pad(batch, weights)
    tokens, mask, positions = torch.tensor(tokens), torch.tensor(real).long(), None
  weights = torch.tensor(weights)
  index, target = (torch.tensor(np.asarray(x)).long() for x in (index, target))

  def step():
    start, spent = time.perf_counter(), time.process_time()
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
    logits = logits[..., :memory_start]  # the three rows are never targets
    chosen = torch.gather(logits, 1, index[..., None].expand(-1, -1, logits.shape[-1]))
    nll = torch.nn.functional.cross_entropy(chosen.transpose(1, 2), target, reduction='none')
    loss = (nll * weights).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), time.perf_counter() - start, time.process_time() - spent
  return step


def trace(step):
  """Milliseconds that each operation of a step took, loops left out; the largest first."""
  import collections

  import jax
  found = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      step()
    (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for line in plane.lines:
        for event in line.events:
          if 'hlo_op' in dict(event.stats) and not event.name.startswith('while'):
            found[event.name] += event.duration_ns / 1e6
  return {name: round(ms, 1) for name, ms in found.most_common()}


def bench_torch(data_dir, pairs, layers, width, vocab_size, is_smollm2, is_padded,
                is_traced):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bench import ratios
  from configs import presets
  from rim_jax import config as config_lib
  from rim_jax import methods
  from rim_jax.data import datasets
  from rim_jax.data import tokenizer as tokenizer_lib
  from rim_jax.model import sharding
  from rim_jax.packing import source
  from rim_jax.planning import compile as compile_lib
  from rim_jax.pretrained import families
  from rim_jax.pretrained import weights as weights_lib
  from rim_jax.training import step as step_lib
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    config = presets.make('rim_stage2', 'gsm8k')
    config.data.dir, config.data.cache_dir = data_dir, scratch
    split = datasets.load_dataset(config_lib.parse_config(config).data, lambda line: None).splits[
        'train']
    bpe = ratios.train_bpe(split.__getitems__(range(len(split))), scratch)
    (folder / 'model').mkdir()
    if is_smollm2:
      layers, width = 30, 576
      write_smollm2(folder / 'model', folder / 'tokenizer.json')
    else:
      write_gpt2(folder / 'model', folder / 'tokenizer.json', layers, width,
                 vocab_size or bpe.vocab_size)
    config = presets.make('rim_stage2', 'gpt2')
    config.model.update({'init_from': str(folder / 'model'), 'compute_dtype': 'float32',
                         'frozen_dtype': 'float32', 'remat': 'dots'})
    config.model.lora.update({'rank': RANK, 'dropout': 0.0})
    config.layout.row_tokens, config.data.cache_dir = ROW_TOKENS, scratch
    config.data.dir, config.optim.warmup_frac = data_dir, 0.0
    config.train.update({'batch_examples': 0, 'batch_rows': NUM_ROWS})
    config = families.resolve(config_lib.parse_config(config))
    codec = methods.make_codec(config, tokenizer_lib.load_tokenizer(config.tokenizer))
    stage = source.make_stage_plan(split, codec, 1, lambda line: None)
    batch = source.BatchSource(stage, codec)[0]
    mesh = sharding.make_mesh(config.mesh)
    program = step_lib.make_program(config, codec.memory_start, 10, mesh)
    base = weights_lib.load_params(weights_lib.open_base(folder / 'model'), program.base)
    state, frozen = program.init(jax.random.key(0), base)
    pipe, end = multiprocessing.Pipe()
    child = multiprocessing.get_context('spawn').Process(target=run_torch, daemon=True, args=(
        end, folder / 'model', config, batch, np.asarray(state.params['memory']),
        codec.memory_start, is_padded))
    child.start()

    def torch_step():
      pipe.send(True)
      return pipe.recv()
    with jax.set_mesh(mesh):
      fn = step_lib.make_train_step(program, config, 10, stage.max_blocks, mesh)
      placed = sharding.place_batch(batch, mesh)
      compiled = fn.lower(state, frozen, placed).compile()

      def our_step():
        nonlocal state
        start, spent = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, frozen, placed)
        loss = float(jax.block_until_ready((state, metrics))[1]['loss'])
        return loss, time.perf_counter() - start, time.process_time() - spent
      ours, theirs = our_step(), torch_step()
      tell(bench='torch', first_loss_ours=ours[0], first_loss_torch=theirs[0])
      assert abs(ours[0] - theirs[0]) < 1e-3 * abs(theirs[0]), 'not the same work'
      _, costs = compile_lib.compute_costs(compiled, config, mesh)
      pipe.send('flops')
      torch_flops = pipe.recv()
      tell(bench='torch', ours_gflops=costs.flops / 1e9, torch_gflops=torch_flops / 1e9,
           limit=torch_flops / costs.flops, uncounted=[*costs.unknown_kernels])
      if is_traced:
        tell(bench='trace', milliseconds=trace(our_step))
      steps = [(our_step()[1:], torch_step()[1:]) for _ in range(pairs)]
    child.terminate()
    found = {'padded': is_padded, 'cores': len(os.sched_getaffinity(0))}
    for k, name in enumerate(('', 'cpu_')):
      times = [(ours[k], theirs[k]) for ours, theirs in steps]
      speedups = [theirs / ours for ours, theirs in times]
      found |= {f'{name}speedup': statistics.median(speedups), f'{name}least': min(speedups),
                f'{name}ours_secs': [min(a for a, _ in times), statistics.median(
                    a for a, _ in times)],
                f'{name}torch_secs': [min(b for _, b in times), statistics.median(
                    b for _, b in times)]}
    tell(bench='torch', **found, layers=layers, width=width,
         rank=RANK, rows=NUM_ROWS, row_tokens=ROW_TOKENS, vocabulary=codec.memory_start,
         slots=int(jnp.sum(batch.slot_kind > 0)), examples=int(batch.example.max(1).sum()),
         sequences=list(pad(batch, np.zeros(batch.slot_kind.shape))[0].shape) if is_padded else 0)


# ---- Products of matrices beside PyTorch's ----

# (rows, summed, columns) of SmolLM2's step: query, key, gate, down, logits at slots, adapters
PRODUCTS = ((1024, 576, 576), (1024, 576, 192), (1024, 576, 1536), (1024, 1536, 576),
            (128, 576, 49_152), (1024, 576, 16), (1024, 16, 1536))


def multiply_in_torch(pipe):
  """Answers (rows, summed, columns, repetitions) with seconds of processor time for one."""
  import torch
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  while asked := pipe.recv():
    rows, summed, columns, repetitions = asked
    x, w = torch.ones(rows, summed), torch.ones(columns, summed)
    torch.nn.functional.linear(x, w)
    spent = time.process_time()
    for _ in range(repetitions):
      torch.nn.functional.linear(x, w)
    pipe.send((time.process_time() - spent) / repetitions)


def bench_matmul(pairs):
  import jax
  import jax.numpy as jnp
  pipe, end = multiprocessing.Pipe()
  child = multiprocessing.get_context('spawn').Process(
      target=multiply_in_torch, daemon=True, args=(end,))
  child.start()
  multiply = jax.jit(jnp.matmul)
  for rows, summed, columns in PRODUCTS:
    x, w = jnp.ones((rows, summed)), jnp.ones((summed, columns))
    multiply(x, w).block_until_ready()
    flops, seconds = 2 * rows * summed * columns, []
    repetitions = max(1, round(1e9 / flops))
    for _ in range(pairs):
      spent = time.process_time()
      for _ in range(repetitions):
        y = multiply(x, w)
      y.block_until_ready()
      ours = (time.process_time() - spent) / repetitions
      pipe.send((rows, summed, columns, repetitions))
      seconds.append((ours, pipe.recv()))
    tell(bench='matmul', shape=(rows, summed, columns),
         speedup=statistics.median(b / a for a, b in seconds),
         ours_gflops=flops / min(a for a, _ in seconds) / 1e9,
         torch_gflops=flops / min(b for _, b in seconds) / 1e9)
  child.terminate()


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=('memory', 'torch', 'matmul', 'load'))
  parser.add_argument('--data', default='')
  parser.add_argument('--pairs', type=int, default=5)
  parser.add_argument('--layers', type=int, default=6)
  parser.add_argument('--width', type=int, default=384)
  parser.add_argument('--smollm2', action='store_true')
  parser.add_argument('--trace', action='store_true')
  parser.add_argument('--padded', action='store_true')
  parser.add_argument('--vocab', type=int, default=0, help="0: the tokenizer's 8,192 ids")
  parser.add_argument('--one_core', action='store_true')
  args = parser.parse_args()
  if args.one_core:  # before JAX and torch count them
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  if args.what == 'memory':
    bench_memory()
  elif args.what == 'matmul':
    bench_matmul(args.pairs)
  elif args.what == 'load':
    load_and_measure(args.data)
  else:
    bench_torch(args.data, args.pairs, args.layers, args.width, args.vocab, args.smollm2,
                args.padded, args.trace)


if __name__ == '__main__':
  main()
