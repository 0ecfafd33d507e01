"""What only a GPU can tell, in one command and without a network: attention's kernels, and steps.

  PYTHONPATH=. python bench/gpu.py --out=runs/gpu              (within ten minutes on one H100)
  PYTHONPATH=. python bench/gpu.py --out=runs/gpu --small      (on a CPU: that it works)

It was never run on a GPU. Each part is a process of its own with a deadline, and OUT/PART.json
grows by each of its entries; what fails or takes too long loses nothing of the others. OUT/compiled
has the compiled programs for a second try, whose compile_secs then tell nothing. OUT/gpu.md is the
table for docs/hardware.md.

  kernel   the kernels against the whole score matrix, on packed rows: how far outputs and gradients
           are apart (both against float32 products in full precision), and milliseconds
  step     one update of configs/stage2.py:gsm8k_perturbed, and of LoRA on a network of the shape of
           Llama-3.2-1B, on rows of typical records: milliseconds, MFU, the most memory in use, and
           the kernels that the tuned program launches
  torch    the same updates by PyTorch, transformers and peft: the same rows, visibility as a mask,
           logits at the same places, bf16 with fused AdamW; loss and gradients of random weights
  latency  prefill and first token of five ways to answer, GPT-2's shape, batch 1 and 32
  plan     what --mode=plan says of the same steps on this card, compiled without it; beside it
           stands what `step` found: memory, launches, time
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from configs import presets
from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import MeshConfig
from rim_jax.model import attention, attention_gpu, sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import machines
from rim_jax.runtime import storage
from rim_jax.training import step as step_lib

# Nine and a half minutes in all at most; in small, on a busy CPU, each may take four times as long.
DEADLINE_SECS = {'kernel': 100, 'step': 150, 'torch': 90, 'latency': 110, 'plan': 120}
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
  layout = config_lib.LayoutConfig()
  attend = functools.partial(attention_gpu.attend, interpret=interpret)

  def measure(rows, tokens, heads, kv_heads, head_dim, dtype):
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
    return [entry]
  names = ('rows', 'tokens', 'heads', 'kv_heads', 'head_dim', 'dtype')
  return [(dict(zip(names, size)), functools.partial(measure, *size)) for size in sizes]


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
  """Rows of typical records with random ids: how long a step takes does not depend on them."""
  row = typical_lib.make_typical_row(config, methods.get_method(config).layout)
  slots = min(rows.row_slots, row.slot_index.shape[1])
  batch = batch_lib.make_empty_rows(rows.batch_rows, config.layout.row_tokens, rows.row_slots)
  rng = np.random.default_rng(0)
  for field in dataclasses.fields(batch):
    into, values = getattr(batch, field.name), getattr(row, field.name)
    if field.name.startswith('slot'):
      into[:, :slots] = values[:, :slots]
    else:
      into[:] = values
  for name in ('tokens', 'slot_target'):
    into = getattr(batch, name)
    into[:] = rng.integers(0, vocab_size, into.shape, np.int32)
  return batch


def find_kind(name: str):
  """A GPU's kind as plans name it, or None; some others have its name and are no such card."""
  words = set(re.findall(r'\w+', name.lower()))
  kinds = () if words & {'pcie', 'nvl', '40gb', 'mig'} else machines.GPU_CHIPS
  return next((kind for kind in kinds if kind in words), None)


def list_steps(measure, small):
  return [({'step': name}, functools.partial(measure, name, config))
          for name, config in make_configs(small).items()]


def prepare(config, devices):
  """(mesh, rows, size of the vocabulary, program) of a step on one device."""
  mesh = sharding.make_mesh(config.mesh, devices)
  rows = typical_lib.estimate_rows(config, methods.get_method(config).layout,
                              config.train.num_micro_batches)
  vocab_size = compile_lib.get_vocab_size(config)
  return mesh, rows, vocab_size, step_lib.make_program(config, vocab_size, 1000, mesh)


def run_step(small):
  def measure(name, config):
    mesh, rows, vocab_size, program = prepare(config, jax.devices()[:1])
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
    assert memory is not None  # a CPU and a GPU tell it
    stats = jax.devices()[0].memory_stats() or {}
    secs = statistics.median(times[2:])
    flops = compile_lib.compute_model_flops(config, program, rows)
    _, costs = compile_lib.compute_costs(compiled, config, mesh)
    kind = find_kind(jax.devices()[0].device_kind)
    return [{
        'step': name, 'rows': rows.batch_rows, 'tokens': config.layout.row_tokens,
        'ms': 1000 * secs, 'loss': float(metrics['loss']),
        'mfu': flops / secs / machines.GPU_CHIPS[kind].flops_per_sec if kind else None,
        'compile_secs': compile_secs, 'launches': costs.launches,
        'hbm_gb': costs.hbm_bytes / 1e9, 'unknown_kernels': len(costs.unknown_kernels),
        'temporaries_gib': memory.temp_size_in_bytes / 2**30,
        'peak_gib': stats['peak_bytes_in_use'] / 2**30 if stats else None}]
  return list_steps(measure, small)


# ---- PyTorch ----


def make_torch_model(config, vocab_size):
  """The shape of a config's network in transformers, with random weights, and peft's adapters."""
  import torch
  import transformers
  model = config.model
  common = {'vocab_size': vocab_size + 3, 'bos_token_id': 0, 'eos_token_id': 0}
  if model.positions == 'learned':
    made = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=model.embed_dim, n_layer=model.num_layers, n_head=model.num_heads,
        n_inner=model.mlp_dim, n_positions=model.max_positions, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, attn_implementation='sdpa', **common))
  else:
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=model.embed_dim, intermediate_size=model.mlp_dim,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads, head_dim=model.head_dim, tie_word_embeddings=True,
        max_position_embeddings=4096, attn_implementation='sdpa', **common))
  if not config.model.lora.rank:
    return made
  import peft
  made = made.to(torch.bfloat16)
  return peft.get_peft_model(made, peft.LoraConfig(
      r=model.lora.rank, lora_alpha=model.lora.alpha, lora_dropout=model.lora.dropout,
      target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
      trainable_token_indices=list(range(vocab_size, vocab_size + 3))))


def make_torch_step(config, rows, vocab_size):
  """() -> (loss, seconds) of one update on the rows of `make_batch`."""
  import torch
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = make_torch_model(config, vocab_size).to(device).train()
  if config.model.remat != 'none':
    model.gradient_checkpointing_enable({'use_reentrant': False})
    model.enable_input_require_grads()
  params = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(params, lr=1e-4, fused=device == 'cuda')
  batch = make_batch(config, rows, vocab_size)
  fields = batch_lib.get_fields(batch)
  # Padding sees itself, or its softmax would be of nothing.
  visible = batch_lib.visible(fields, fields) | np.eye(batch.tokens.shape[1], dtype=bool)
  mask = torch.tensor(visible)[:, None].to(device)
  mask = torch.zeros(mask.shape, dtype=torch.bfloat16, device=device).masked_fill(~mask, -1e30)
  tokens, positions, index, target = (
      torch.tensor(np.asarray(x)).long().to(device) for x in (
          batch.tokens, batch.positions, batch.slot_index, batch.slot_target))
  head, trunk = model.get_output_embeddings(), (
      model.get_base_model() if hasattr(model, 'get_base_model') else model).base_model

  def step():
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
      states = trunk(input_ids=tokens, attention_mask=mask, position_ids=positions,
                     use_cache=False).last_hidden_state
      states = torch.gather(states, 1, index[..., None].expand(-1, -1, states.shape[-1]))
      logits = head(states)[..., :vocab_size].float()
      loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()), time.perf_counter() - start  # `float` waits for the GPU
  return step


def run_torch(small):
  import torch

  def measure(name, config):
    on_gpu = torch.cuda.is_available()
    if on_gpu:
      torch.cuda.empty_cache()
      torch.cuda.reset_peak_memory_stats()
    rows = typical_lib.estimate_rows(config, methods.get_method(config).layout,
                                config.train.num_micro_batches)
    step = make_torch_step(config, rows, compile_lib.get_vocab_size(config))
    found = [step() for _ in range(3 if small else 12)]
    return [{
        'step': name, 'rows': rows.batch_rows, 'torch': torch.__version__,
        'ms': 1000 * statistics.median(secs for _, secs in found[2:]), 'loss': found[-1][0],
        'peak_gib': torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None}]
  return list_steps(measure, small)


# ---- Answers, and plans ----


def run_latency(small):
  from bench import latency as latency_bench
  from rim_jax.evaluation import latency
  preset = 'chain' if small else 'gpt2shape'
  args = argparse.Namespace(preset=preset, sizes=latency_bench.SIZES[preset],
                            dtype='float32' if small else 'bfloat16')
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])

  def measure(batch):
    made = latency_bench.make_methods(
        args, mesh, batch, ('direct', 'rim', 'rim_all', 'coconut', 'cot'))
    parts = ('prefill', 'first_token')
    made = [dataclasses.replace(m, parts={p: m.parts[p] for p in parts}) for m in made]
    return [{'method': found['method'], 'batch': batch, 'trunk': found['trunk_tokens']} | {
        f'{part}_{what}': found[f'{part}_{what}']['median'] for part in parts
        for what in ('ms', 'ratio')} for found in latency.measure(made, 1 if small else 20)]
  return [({'batch': batch}, functools.partial(measure, batch))
          for batch in ((1,) if small else (1, 32))]


def run_plan(small):
  """In a process for CPUs: a plan touches no GPU. Without a known GPU, of this CPU itself."""
  kind = os.environ.get('PLANNED_KIND')
  machine = machines.make_machine(f'{kind}:1') if kind else machines.Machine(
      'here', 1, jax.devices()[:1], machines.GPU_CHIPS['h100'])

  def measure(name, config):
    found = compile_lib.make_plan(config, machine)
    return [{
        'step': name, 'topology': machine.name, 'ms': 1000 * found['roofline_secs']['step'],
        'bound': found['bound'], 'mfu_at_most': found['mfu_ceiling'],
        'launches': found['launches'], 'hbm_gb': found['hbm_bytes_per_device'] / 1e9,
        'temporaries_gib': found['hbm_gib']['temporaries'], 'peak_gib': found['hbm_gib']['peak']}]
  return list_steps(measure, small)


# Of each part: (what names some entries, the call that gives them), so that each can fail alone.
PARTS = {'kernel': run_kernel, 'step': run_step, 'torch': run_torch, 'latency': run_latency,
         'plan': run_plan}


def format_table(found: dict) -> str:
  """The parts' entries as Markdown; a part that is missing says why."""
  lines = [f"{found['device']}, jax {found['jax']}, `{found['command']}`, {found['date']}", '']
  for name, part in found['parts'].items():
    lines += [f'**{name}**' + (f": {part['error']}" if 'error' in part else ''), '']
    entries = part.get('entries', [])
    if entries:
      columns = list(dict.fromkeys(c for e in entries for c in e))  # one that failed has its error
      lines += ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
      lines += ['| ' + ' | '.join(_show(e.get(c, '')) for c in columns) + ' |' for e in entries]
      lines.append('')
  return '\n'.join(lines + compare_plan(found['parts']))


def compare_plan(parts: dict) -> list[str]:
  """Lines of a table: what a plan said of each step, and what was found."""
  plans, steps = ({e['step']: e for e in parts.get(name, {}).get('entries', ()) if 'error' not in e}
                  for name in ('plan', 'step'))
  if not plans.keys() & steps.keys():
    return []
  lines = ['**plan against reality**', '', '| step | what | planned | found | found / planned |',
           '|---|---|---|---|---|']
  for name, what in ((n, w) for n in plans if n in steps for w in (
      'ms', 'launches', 'hbm_gb', 'temporaries_gib', 'peak_gib')):
    planned, found = plans[name][what], steps[name][what]
    ratio = _show(found / planned) if found and planned else ''
    lines.append(f'| {name} | {what} | {_show(planned)} | {_show(found)} | {ratio} |')
  return [*lines, '']


def _show(value):
  if isinstance(value, list):
    return ', '.join(map(_show, value))
  return f'{value:.3g}' if isinstance(value, float) else str(value).replace('|', '\\|')


def run_part(name, out, small) -> bool:
  """In this process: OUT/NAME.json, written anew after each entry; whether none failed."""
  start, entries, device = time.perf_counter(), [], jax.devices()[0].device_kind
  for what, measure in PARTS[name](small):
    try:
      entries += measure()
    except Exception as e:  # pylint: disable=broad-except  (the others are of use without it)
      traceback.print_exc()
      entries.append(what | {'error': f'{type(e).__name__}: {e}'.partition('\n')[0]})
    found = {'entries': entries, 'device': device, 'jax': jax.__version__,
             'kind': find_kind(device), 'secs': time.perf_counter() - start}
    # Whole or not at all: the deadline may come at any moment.
    storage.write_text(out / f'{name}.json', json.dumps(found, indent=2) + '\n')
  return not any('error' in entry for entry in entries)


def run_all(out, names, small):
  """Every part in a process of its own -> what each found, or its error."""
  parts = {}
  for name in names:
    path, deadline = out / f'{name}.json', DEADLINE_SECS[name] * (4 if small else 1)
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, f'--out={out}', f'--part={name}'] + ['--small'] * small
    env = {'JAX_COMPILATION_CACHE_DIR': str(out / 'compiled'), **os.environ}
    if name == 'plan':  # for CPUs, so that it leaves the GPU alone
      env['JAX_PLATFORMS'] = 'cpu'
      told = next((p['kind'] for p in parts.values() if p.get('kind')), None)
      env |= {'PLANNED_KIND': told} if told else {}
    code = None
    try:
      with (out / f'{name}.log').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env,
                              timeout=deadline).returncode
      error = f'ended with {code}; {name}.log says why'
    except subprocess.TimeoutExpired:
      error = f'took longer than {deadline} s'
    parts[name] = (json.loads(path.read_text()) if path.exists() else {}) | (
        {'error': error} if code != 0 else {})
    print(f'{name}: {parts[name].get("error", "done")}', flush=True)
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
    sys.exit(not run_part(args.part, args.out, args.small))
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
