"""Time to the answer of every method, side by side in one process: one table, and JSON.

  PYTHONPATH=. python bench/latency.py --preset=gpt2shape --batch_sizes=1,32 --dtype=bfloat16
  PYTHONPATH=. python bench/latency.py --preset=chain

Weights are random and so are the questions: how long a network takes does not depend on what it
says, and how many tokens each method writes is forced. So this measures no accuracy. Runs of all
methods are interleaved; a ratio is the median of the pairs', and beside it stands the ratio of
their FLOPs, counted in the compiled programs. Leave the machine alone meanwhile.

  direct   the answer right after the question
  rim      K blocks, the last block's readout (pause is the same program)
  rim_all  K blocks, all K readouts from the one prefill
  coconut  thoughts one after the other (the chain's four; six, as on GSM8K), then the answer
  cot      --chain_tokens written out one by one, then the answer
"""

import argparse
import json
import pathlib
import types

import jax
import numpy as np
from rich import console as rich_console
from rich import table as rich_table

from configs import presets
from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.evaluation import latency
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import source
from rim_jax.runtime import hlo
from rim_jax.training import step

# preset -> (ids, tokens of the question, of the forced prefix, of a chain, of the answer with eos)
SIZES = {'chain': (16, 9, 0, 8, 2), 'gpt2shape': (50257, 64, 8, 60, 5)}
NUM_THOUGHTS = {'chain': 4, 'gpt2shape': 6}


def make_config(preset, dtype):
  tree = presets.make('rim_stage2', 'chain')
  if preset == 'gpt2shape':  # GPT-2's shape (124 M) and the paper's blocks
    tree.layout.update({'num_blocks': 8, 'block_tokens': 2})
    tree.model.update({'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 3072,
                       'norm': 'layernorm', 'bias': 'all', 'fused_qkv': True,
                       'max_positions': 1024})
  # Whole score matrices: rows are short, and FLOPs of tiles would depend on the mask.
  tree.model.update({'compute_dtype': dtype, 'attention_tile_tokens': 0, 'remat': 'none'})
  return config_lib.parse_config(tree)


def make_methods(config, args, mesh, batch):
  num_ids, num_question, num_prefix, num_chain, num_answer = args.sizes
  program = step.make_program(config, num_ids, 1, mesh)
  state, frozen = program.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  questions = rng.integers(0, num_ids, (batch, num_question)).tolist()
  prefix = tuple(rng.integers(0, num_ids, num_prefix).tolist())
  codec = source.Codec(types.SimpleNamespace(vocab_size=num_ids), None, config, num_ids,
                       methods.get_method(config).layout)
  # A chain of thought writes the prefix itself.
  return [latency.make_timed(
      name, Network(program.graphdef, state.params, frozen, own, codec, mesh), questions, writing)
          for name, own, writing in latency.list_kinds(
              config, prefix, num_chain + num_prefix, num_answer, NUM_THOUGHTS[args.preset])]


def count_flops(bound: latency.Bound) -> float | None:
  """FLOPs of one run on all devices; None where they cannot be counted."""
  with jax.set_mesh(bound.mesh):
    compiled = bound.part.program.lower(*bound.args).compile()
  costs = hlo.compute_costs(compiled.as_text(), unknown_trips=bound.part.num_turns)
  if costs.unknown_loops > 1 or costs.unknown_kernels:  # tiles, whose number depends on the mask
    return None
  return costs.flops * bound.mesh.size


def measure(timed, num_runs):
  """Entries of `latency.describe`, and `<part>_flops`, `_flops_ratio` and `to_one_readout`."""
  times = latency.time_runs({(t.name, part): run for t in timed for part, run in t.parts.items()},
                            num_runs)
  entries = latency.describe(timed, times)
  flops = [{part: count_flops(bound) for part, bound in t.parts.items()} for t in timed]
  for entry, mine in zip(entries, flops):
    for part, count in mine.items():
      theirs = flops[0][part]  # direct's
      entry |= {f'{part}_flops': count,
                f'{part}_flops_ratio': count / theirs if count and theirs else None}
  every = next(e for e in entries if e['method'] == 'rim_all')
  every['to_one_readout'] = latency.compute_ratio(times['rim_all', 'full'], times['rim', 'full'])
  return entries


def show(console, entries, preset):
  first = entries[0]
  grid = rich_table.Table(title=(
      f"{preset}, {first['device']}, {first['num_devices']} device(s), {first['dtype']}, batch "
      f"{first['batch']}, prompt {first['prompt_tokens']} tokens; ms: median (quartiles) of "
      f"{first['full_ms']['runs']} runs; trunk: its padded tokens; thoughts: hidden states "
      "found one by one before the answer; written: tokens up to the answer's first, and in full; "
      'random weights'))
  for column in ('method', 'trunk', 'thoughts', 'written', 'prefill', 'first token', 'decode',
                 'full', 'first token: x direct (FLOPs)', 'full: x direct (FLOPs)'):
    grid.add_column(column)

  def ms(entry, part):
    t = entry[f'{part}_ms']
    return f"{t['median']:.4g} ({t['q1']:.3g}-{t['q3']:.3g})"

  def ratio(entry, part):
    r, flops = entry[f'{part}_ratio'], entry.get(f'{part}_flops_ratio')
    return f"{r['median']:.3f}" + (f' ({flops:.3f})' if flops else '')
  for e in entries:
    grid.add_row(e['method'], f"{e['trunk_tokens']}", f"{e['num_thoughts']}",
                 f"{e['generated_to_first']}; {e['generated_in_full']}",
                 *(ms(e, part) for part in latency.PARTS), ratio(e, 'first_token'),
                 ratio(e, 'full'))
  console.print(grid)
  one, every = (next(e for e in entries if e['method'] == name) for name in ('rim', 'rim_all'))
  flops = every['full_flops'] and one['full_flops'] and every['full_flops'] / one['full_flops']
  console.print(f"all {every['num_readouts']} readouts / one, full answer: "
                f"{every['to_one_readout']['median']:.3f}" + (
                    f', FLOPs {flops:.3f}' if flops else ''))


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--preset', choices=SIZES, default='chain')
  parser.add_argument('--batch_sizes', default='1,8')
  parser.add_argument('--runs', type=int, default=30)
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--prompt_tokens', type=int)
  parser.add_argument('--chain_tokens', type=int)
  parser.add_argument('--answer_tokens', type=int)
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/latency'))
  args = parser.parse_args()
  ids, prompt, prefix, chain, answer = SIZES[args.preset]
  args.sizes = (ids, args.prompt_tokens or prompt, prefix, args.chain_tokens or chain,
                args.answer_tokens or answer)
  config = make_config(args.preset, args.dtype)
  mesh = sharding.make_mesh(config.mesh)
  console = rich_console.Console()
  if console.width < 150:  # a table that is folded cannot be read
    console = rich_console.Console(width=150)
  args.out.mkdir(parents=True, exist_ok=True)
  path, everything = args.out / f'{args.preset}-{args.dtype}.json', []
  for batch in map(int, args.batch_sizes.split(',')):
    entries = measure(make_methods(config, args, mesh, batch), args.runs)
    show(console, entries, args.preset)
    everything += entries
    path.write_text(json.dumps({'preset': args.preset, 'weights': 'random', 'chain_tokens':
                                args.sizes[3], 'entries': everything}, indent=2) + '\n')
  console.print(f'{path}')


if __name__ == '__main__':
  main()
