"""The table of docs/appendix/plans.md: each row is a step compiled for a machine that is not here.

  PYTHONPATH=. python bench/plans.py                     (needs pip install 'jax[tpu]'; no TPU)

Compiles what --cache lacks, a minute or more a row, and writes docs/appendix/plans.md. A row is
kept as JSON in --cache; --rows=N stops after N new ones, and the table says what is missing.
Published shapes of the models are below: nothing is downloaded.
"""

import argparse
import dataclasses
import json
import os
import pathlib

from rim_jax import main as cli

os.environ.update(cli.PLAN_ENVIRONMENT)

import jax

from configs import presets
from rim_jax import config as config_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import machines as machines_lib
from rim_jax.pretrained import families

ROOT = pathlib.Path(__file__).parents[1]
_LLAMA = {'model_type': 'llama', 'hidden_act': 'silu', 'vocab_size': 128256,
          'max_position_embeddings': 131072, 'rms_norm_eps': 1e-5, 'rope_theta': 500000.0,
          'num_key_value_heads': 8}
_ROPE = {'rope_type': 'llama3', 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
         'original_max_position_embeddings': 8192}
MODELS = {  # from the published config.json files
    'Llama-3.2-1B': _LLAMA | {
        'hidden_size': 2048, 'intermediate_size': 8192, 'num_hidden_layers': 16,
        'num_attention_heads': 32, 'head_dim': 64, 'tie_word_embeddings': True,
        'rope_scaling': _ROPE | {'factor': 32.0}},
    'Llama-3.2-3B': _LLAMA | {
        'hidden_size': 3072, 'intermediate_size': 8192, 'num_hidden_layers': 28,
        'num_attention_heads': 24, 'head_dim': 128, 'tie_word_embeddings': True,
        'rope_scaling': _ROPE | {'factor': 32.0}},
    'Llama-3.1-8B': _LLAMA | {
        'hidden_size': 4096, 'intermediate_size': 14336, 'num_hidden_layers': 32,
        'num_attention_heads': 32, 'tie_word_embeddings': False,
        'rope_scaling': _ROPE | {'factor': 8.0}},
}
HOSTS = [('v5e:2x4', 1), ('v6e:2x4', 1), ('v5p:2x2x1', 1)]
POD = [('v5e:16x16', 1)]
OTHER_PODS = [('v6e:16x16', 1), ('v5p:4x4x8', 1)]
SLICES = [('v5e:8x8', 2)]
ROWS_PER_CHIP = 4


def list_rows():
  """Every row's key, in the order in which they are compiled.

  Stage 2 of every model on a host of each kind, on a pod and on two slices of v5e; the largest on
  pods of the other kinds too; stage 1, whose step is stage 2's but for the number of slots, on one
  host. Two slices take longest to compile.
  """
  grids = [('stage2', HOSTS + POD, MODELS), ('stage1', HOSTS[:1], MODELS),
           ('stage2', OTHER_PODS, list(MODELS)[-1:]), ('stage2', SLICES, MODELS)]
  return [(model, stage, trained, *machine) for stage, machines, models in grids
          for trained in ('LoRA', 'full') for machine in machines for model in models]


def make_config(model, stage, trained, chips, num_slices):
  """The recipe of the preset at four rows a chip; beyond 16 chips `data` takes the rest."""
  config = config_lib.parse_config(presets.make(f'rim_{stage}', 'llama3_2_1b'))
  fields = families.parse_model(MODELS[model], model)
  lora = config.model.lora if trained == 'LoRA' else config_lib.LoraConfig()
  replace = dataclasses.replace
  return replace(
      config, model=replace(config.model, lora=lora, remat='full', **fields),
      optim=replace(config.optim, trainable='lora' if trained == 'LoRA' else 'all'),
      train=replace(config.train, batch_examples=0, batch_rows=ROWS_PER_CHIP * chips),
      mesh=config_lib.MeshConfig(-1, min(chips, 16), 1, num_slices))


def compile_row(key):
  model, stage, trained, topology, num_slices = key
  machine = machines_lib.make_machine(topology, num_slices)
  config = make_config(model, stage, trained, len(machine.devices), num_slices)
  return compile_lib.make_plan(config, machine)


def format_row(key, found):
  model, stage, trained, topology, num_slices = key
  machine = topology + (f' x {num_slices}' if num_slices > 1 else '')
  head, hbm = f'| {model} | {stage} | {trained} | {machine} | {found["chips"]} |', found['hbm_gib']
  if not found['fits']:
    needed = f'needs {hbm["needed"]:.1f}' if hbm['needed'] else 'does not fit'
    return f'{head} **{needed}** of {hbm["chip"]:g} | | | | | |'
  secs = found['roofline_secs']
  dcn = f' + {1000 * secs["dcn"]:.0f}' if 'dcn' in secs else ''
  assert not found['unknown']['kernels'], found['unknown']['names']
  return (f'{head} {hbm["peak"]:.2f} of {hbm["chip"]:g} | '
          f'{hbm["arguments"]:.2f} + {hbm["temporaries"]:.2f} | '
          f'{found["flops"]["per_device"] / 1e12:.1f} | '
          f'{1000 * secs["compute"]:.0f} / {1000 * secs["hbm"]:.0f} / '
          f'{1000 * secs["ici"]:.0f}{dcn} | '
          f'{1000 * secs["step"]:.0f} ms, {found["bound"]} | {found["mfu_ceiling"]:.0%} |')


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cache', default='runs/plans')
  parser.add_argument('--rows', type=int, default=10**6)
  args = parser.parse_args()
  cache = pathlib.Path(args.cache)
  cache.mkdir(parents=True, exist_ok=True)
  lines, missing, new = [], [], 0
  for key in list_rows():
    path = cache / ('-'.join(map(str, key)).replace(':', '_') + '.json')
    if not path.exists() and new < args.rows:
      found = compile_row(key)
      path.write_text(json.dumps(found))
      new += 1
      print(format_row(key, found), flush=True)
    if path.exists():
      lines.append((key, format_row(key, json.loads(path.read_text()))))
    else:
      missing.append(key)
  order = [(m, s, t, *k) for m in MODELS for s in ('stage1', 'stage2') for t in ('LoRA', 'full')
           for k in HOSTS + POD + SLICES + OTHER_PODS]
  rows = [line for key, line in sorted(lines, key=lambda row: order.index(row[0]))]
  write_table(rows, missing)


def write_table(rows, missing):
  """The part of docs/appendix/plans.md between its two marks; the rest is written by hand."""
  path = ROOT / 'docs' / 'appendix' / 'plans.md'
  begin, end = '<!-- bench/plans.py: begin -->', '<!-- bench/plans.py: end -->'
  before, _, rest = path.read_text().partition(begin)
  table = [
      '| model | stage | trained | topology | chips | peak GiB a chip | arguments + temporaries | '
      'TFLOP a chip | ms: compute / HBM / ICI (+ DCN) | step at least | MFU at most |',
      '|---|---|---|---|---|---|---|---|---|---|---|', *rows]
  if missing:
    names = ', '.join(' '.join(map(str, key)) for key in missing)
    table += ['', f'Not compiled yet, {len(missing)} of {len(rows) + len(missing)} rows: {names}.']
  path.write_text('\n'.join([before + begin, '', *table, '', end]) + rest.partition(end)[2])
  print(f'{path}: {len(rows)} rows, {len(missing)} missing; jax {jax.__version__}')


if __name__ == '__main__':
  main()
