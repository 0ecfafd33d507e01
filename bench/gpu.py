"""What only a GPU can tell, in one command and without a network: attention's kernels, and steps.

  PYTHONPATH=. python bench/gpu.py --out=runs/gpu              (a few minutes on one H100)
  PYTHONPATH=. python bench/gpu.py --out=runs/gpu --small      (on a CPU: that it works)

It was never run on a GPU. Each part is a process of its own with a deadline, and leaves
OUT/PART.json; one that fails or takes too long loses nothing of the others. OUT/gpu.md is the table
for docs/hardware.md.

  kernel   the kernels against the whole score matrix, on packed rows: how far outputs and gradients
           are apart (both against float32 products in full precision), and milliseconds
  step     one update of configs/stage2.py:gsm8k_perturbed, and of LoRA on a network of the shape of
           Llama-3.2-1B: milliseconds, MFU, and the most memory in use
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import presets
from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.model import attention, attention_gpu, sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import source
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import machines
from rim_jax.training import step as step_lib

DEADLINE_SECS = {'kernel': 240, 'step': 300}
LLAMA_1B = {'embed_dim': 2048, 'mlp_dim': 8192, 'num_layers': 16, 'num_heads': 32,
            'num_kv_heads': 8, 'head_dim': 64, 'vocab_size': 128256, 'positions': 'rope',
            'max_positions': 131072, 'init_from': ''}


def time_calls(fn, *args, runs=20):
  """Median milliseconds of a call, after two that are not counted."""
  times = []
  for _ in range(runs + 2):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(1000 * (time.perf_counter() - start))
  return statistics.median(times[2:])


def make_fields(rows, tokens, example_tokens):
  """Fields of packed rows: examples of a trunk of a half, and four readouts of an eighth each."""
  at = np.arange(tokens)
  within, part = at % example_tokens, example_tokens // 8
  readout = np.maximum(within // part - 3, 0)
  position = np.where(readout > 0, 4 * part + within % part, within)
  block = np.where(readout > 0, readout, np.maximum(within // part, 0))
  fields = (position, 1 + at // example_tokens, block, readout)
  return batch_lib.Fields(*(jnp.tile(jnp.asarray(f, jnp.int32)[None], (rows, 1)) for f in fields))


def differentiate(fn):
  """(q, k, v, visible, weight) -> the output, and the gradients of its sum under the weights."""
  def pull(q, k, v, visible, weight):
    out, back = jax.vjp(lambda *qkv: fn(*qkv, visible), q, k, v)
    return out, *back(weight)
  return jax.jit(pull)


def run_kernel(small):
  interpret = jax.devices()[0].platform != 'gpu'
  sizes = [(1, 128, 2, 1, 64, 'float32')] if small else [
      (27, 1536, 12, 12, 64, 'bfloat16'), (4, 1024, 32, 8, 64, 'bfloat16'),
      (4, 1024, 32, 8, 128, 'bfloat16'), (4, 1024, 32, 8, 128, 'float32'),
      (32, 512, 12, 12, 64, 'bfloat16'), (32, 256, 12, 12, 64, 'bfloat16')]
  layout, entries = config_lib.LayoutConfig(), []
  attend = functools.partial(attention_gpu.attend, name=attention.NAME, interpret=interpret)
  for rows, tokens, heads, kv_heads, head_dim, dtype in sizes:
    fields = make_fields(rows, tokens, 128)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (rows, tokens, n, head_dim), dtype)
                       for key, n in zip(keys, (heads, kv_heads, kv_heads, heads)))
    tiles = attention_gpu.find_tiles(fields, fields, layout, 64)
    mask = attention.find_visible(fields, fields, layout, 0)

    with jax.default_matmul_precision('highest'):
      exact = differentiate(attention.attend)(
          *(x.astype(jnp.float32) for x in (q, k, v)), mask, weight.astype(jnp.float32))
    entry = {'rows': rows, 'tokens': tokens, 'heads': heads, 'kv_heads': kv_heads,
             'head_dim': head_dim, 'dtype': dtype,
             'visible_tiles': float(tiles.count.sum() / tiles.order.size)}
    for name, fn, visible in (('kernel', attend, tiles), ('dense', attention.attend, mask)):
      both = differentiate(fn)
      entry[f'{name}_error'] = [
          float(jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel()))
          for a, b in zip(both(q, k, v, visible, weight), exact)]
      runs = 1 if small else 20
      entry[f'{name}_forward_ms'] = time_calls(jax.jit(fn), q, k, v, visible, runs=runs)
      entry[f'{name}_both_ms'] = time_calls(both, q, k, v, visible, weight, runs=runs)
    entries.append(entry)
  return entries


def make_configs(small):
  gpt2 = presets.make('rim_stage2', 'gsm8k_perturbed')
  llama = presets.make('rim_stage2', 'llama3_2_1b')
  with llama.unlocked():
    llama.model.update(LLAMA_1B)
    llama.train.update({'batch_examples': 0, 'batch_rows': 4})
  found = {'gsm8k_perturbed': gpt2, 'llama_1b_lora': llama}
  for tree in found.values() if small else ():
    tree.model.update({'num_layers': 1, 'embed_dim': 32, 'mlp_dim': 32, 'num_heads': 2,
                       'vocab_size': 300})
    tree.layout.row_tokens = 1024
    tree.train.update({'batch_examples': 0, 'batch_rows': 1})
  if small:
    llama.model.update({'num_kv_heads': 1, 'head_dim': 16})
    llama.model.lora.rank = 2
  return {name: config_lib.parse_config(tree) for name, tree in found.items()}


def make_batch(config, rows, vocab_size):
  """Packed rows of random tokens: how long a step takes does not depend on what they say."""
  tokens = config.layout.row_tokens
  batch = batch_lib.make_empty_rows(rows.batch_rows, tokens, rows.row_slots)
  fields = make_fields(rows.batch_rows, tokens, 128)
  rng, shape = np.random.default_rng(0), batch.slot_index.shape
  return dataclasses.replace(
      batch, tokens=rng.integers(0, vocab_size, batch.tokens.shape, np.int32),
      positions=np.asarray(fields.positions), example=np.asarray(fields.example),
      block=np.asarray(fields.block), readout=np.asarray(fields.readout),
      slot_index=rng.integers(0, tokens, shape, np.int32),
      slot_target=rng.integers(0, vocab_size, shape, np.int32),
      slot_block=np.full(shape, config.layout.num_blocks, np.int32),
      slot_kind=np.full(shape, batch_lib.SLOT_ANSWER, np.int32),
      slot_steps=np.ones(shape, np.int32), slot_tokens=np.ones(shape, np.int32))


def run_step(small):
  entries = []
  for name, config in make_configs(small).items():
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    layout = methods.get_method(config).layout
    rows = source.estimate_rows(config, layout, config.train.num_micro_batches)
    vocab_size = compile_lib.get_vocab_size(config)
    program = step_lib.make_program(config, vocab_size, 1000, mesh)
    state, frozen = program.init(jax.random.key(0))
    step = step_lib.make_train_step(program, config, 1000, max(config.layout.num_blocks, 1), mesh,
                                    limits=rows.limits)
    batch = sharding.place_batch(make_batch(config, rows, vocab_size), mesh)
    times = []
    with jax.set_mesh(mesh):
      start = time.perf_counter()
      compiled = step.lower(state, frozen, batch).compile()
      compile_secs = time.perf_counter() - start
      for _ in range(3 if small else 12):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, frozen, batch))
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    stats = jax.devices()[0].memory_stats() or {}
    secs = statistics.median(times[2:])
    flops = compile_lib.compute_model_flops(config, program, rows)
    kind = jax.devices()[0].device_kind.lower()
    peak = next((chip.flops_per_sec for k, chip in machines.GPU_CHIPS.items() if k in kind), None)
    entries.append({
        'step': name, 'rows': rows.batch_rows, 'tokens': config.layout.row_tokens,
        'ms': 1000 * secs, 'mfu': flops / secs / peak if peak else None, 'loss':
        float(metrics['loss']), 'compile_secs': compile_secs,
        'temporaries_gib': memory.temp_size_in_bytes / 2**30,
        'peak_gib': stats['peak_bytes_in_use'] / 2**30 if stats else None})
    del state, frozen, compiled
  return entries


PARTS = {'kernel': run_kernel, 'step': run_step}


def format_table(found: dict) -> str:
  """The parts' entries as Markdown; a part that is missing says why."""
  lines = [f"{found['device']}, jax {found['jax']}, `{found['command']}`, {found['date']}", '']
  for name, part in found['parts'].items():
    lines += [f'**{name}**' + (f": {part['error']}" if 'error' in part else ''), '']
    entries = part.get('entries', [])
    if entries:
      columns = list(entries[0])
      lines += ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
      lines += ['| ' + ' | '.join(_show(e[c]) for c in columns) + ' |' for e in entries] + ['']
  return '\n'.join(lines)


def _show(value):
  if isinstance(value, list):
    return ', '.join(map(_show, value))
  return f'{value:.3g}' if isinstance(value, float) else str(value)


def run_part(name, out, small):
  """In this process: OUT/NAME.json."""
  start = time.perf_counter()
  found = {'entries': PARTS[name](small), 'device': jax.devices()[0].device_kind,
           'jax': jax.__version__}
  found['secs'] = time.perf_counter() - start
  (out / f'{name}.json').write_text(json.dumps(found, indent=2) + '\n')


def run_all(out, names, small):
  """Every part in a process of its own -> what each found, or its error."""
  parts = {}
  for name in names:
    path = out / f'{name}.json'
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, f'--out={out}', f'--part={name}'] + ['--small'] * small
    try:
      with (out / f'{name}.log').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT,
                              timeout=DEADLINE_SECS[name]).returncode
      error = f'ended with {code}; {name}.log says why'
    except subprocess.TimeoutExpired:
      error = f'took longer than {DEADLINE_SECS[name]} s'
    parts[name] = json.loads(path.read_text()) if path.exists() else {'error': error}
    print(f'{name}: {"done" if path.exists() else error}', flush=True)
  return parts


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/gpu'))
  parser.add_argument('--parts', default=','.join(PARTS))
  parser.add_argument('--part', choices=PARTS, help='this one, in this process')
  parser.add_argument('--small', action='store_true')
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  if args.part:
    run_part(args.part, args.out, args.small)
    return
  parts = run_all(args.out, args.parts.split(','), args.small)
  first = next((p for p in parts.values() if 'device' in p), {})
  found = {'device': first.get('device', 'nothing ran'), 'jax': first.get('jax'), 'parts': parts,
           'command': ' '.join(['python bench/gpu.py', *sys.argv[1:]]),
           'date': time.strftime('%Y-%m-%d')}
  (args.out / 'gpu.json').write_text(json.dumps(found, indent=2) + '\n')
  (args.out / 'gpu.md').write_text(format_table(found))
  sys.exit(any('error' in part for part in parts.values()))


if __name__ == '__main__':
  main()
