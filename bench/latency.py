"""Time to the answer of every method, side by side in one process: one table, and JSON.

  PYTHONPATH=. python bench/latency.py --preset=gpt2shape --batch_sizes=1,32 --dtype=bfloat16
  PYTHONPATH=. python bench/latency.py --preset=chain

Each method has the blocks, thoughts and passes of its recipe for the chain task, or for GPT-2.
Weights are random and so are the questions: how long a network takes does not depend on what it
says, and how many tokens each method writes is forced. So this measures no accuracy. Runs of all
methods are interleaved; a ratio is the median of the pairs', and beside it stands the ratio of
their FLOPs, counted in the compiled programs. Leave the machine alone meanwhile.

  direct   the answer right after the question (iCoT ends as the same program)
  rim      K blocks, the last block's readout (pause and rim_paired are the same program)
  rim_all  K blocks, all K readouts from the one prefill
  looped   K blocks, read twice
  coconut  thoughts one after the other, then the answer (sim_cot is the same program)
  codi     the same with a projection of each thought
  pccot    thoughts read together, in several passes
  lotus    latents for every step, read together in one pass more than there are steps
  cot      --chain_tokens written out one by one, then the answer
"""

import argparse
import functools
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
from rim_jax.config import stages
from rim_jax.evaluation import latency
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import source
from rim_jax.runtime import hlo
from rim_jax.training import step

# preset -> (ids, tokens of the question, of the forced prefix, of a chain, of the answer with eos)
SIZES = {'chain': (16, 9, 0, 8, 2), 'gpt2shape': (50257, 64, 8, 60, 5)}
RECIPES = {'chain': 'chain', 'gpt2shape': 'gpt2'}
METHODS = ('direct', 'rim', 'rim_all', 'looped', 'coconut', 'codi', 'pccot', 'lotus', 'cot')


def make_config(preset: str, dtype: str, method: str) -> config_lib.Config:
  """What a method's recipe decodes with, at the end of its curriculum, without adapters."""
  tree = presets.make(method, RECIPES[preset])
  if preset == 'gpt2shape':  # GPT-2's own shape (124 M), which the recipe reads from its folder
    tree.model.update({'init_from': '', 'num_layers': 12, 'embed_dim': 768, 'num_heads': 12,
                       'mlp_dim': 3072, 'norm': 'layernorm', 'bias': 'all', 'fused_qkv': True,
                       'max_positions': 1024})
    tree.model.lora.rank, tree.optim.trainable = 0, 'all'
  # Whole score matrices: rows are short, and FLOPs of tiles would depend on the mask.
  tree.model.update({'compute_dtype': dtype, 'attention_tile_tokens': 0, 'remat': 'none'})
  return stages.make_stages(config_lib.parse_config(tree))[-1][1]


def make_methods(args, mesh, batch: int, names=METHODS) -> list[latency.Timed]:
  """Every method's programs on networks of the same shape; methods of one layout share theirs."""
  num_ids, num_question, num_prefix, num_chain, num_answer = args.sizes
  rng = np.random.default_rng(0)
  questions = rng.integers(0, num_ids, (batch, num_question)).tolist()
  prefix = tuple(rng.integers(0, num_ids, num_prefix).tolist())

  @functools.cache
  def make_network(method):
    config = make_config(args.preset, args.dtype, method)
    program = step.make_program(config, num_ids, 1, mesh)
    state, frozen = program.init(jax.random.key(0))
    codec = source.Codec(types.SimpleNamespace(vocab_size=num_ids), None, config, num_ids,
                         methods.get_method(config).layout)
    return Network(program.graphdef, state.params, frozen, config, codec, mesh)

  def make(name):
    network = make_network('rim' if name in ('direct', 'rim_all', 'cot') else name)
    last = network.config.layout.num_blocks
    write = functools.partial(latency.Writing, prefix, num_answer=num_answer)
    writing = {'direct': write(), 'rim_all': write(last, tuple(range(1, last + 1))),
               # A chain of thought writes the prefix itself.
               'cot': latency.Writing(num_chain=num_chain + num_prefix, num_answer=num_answer)
               }.get(name, write(last, (last,)))
    return latency.make_timed(name, network, questions, writing)
  return [make(name) for name in names]


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
  every['to_one_readout'] = latency.summarize([
      a / b for a, b in zip(times['rim_all', 'full'], times['rim', 'full'])])
  return entries


def show(console, entries, preset):
  first = entries[0]
  grid = rich_table.Table(title=(
      f"{preset}, {first['device']}, {first['num_devices']} device(s), {first['dtype']}, batch "
      f"{first['batch']}, prompt {first['prompt_tokens']} tokens; ms: median (quartiles) of "
      f"{first['full_ms']['runs']} runs; trunk: its padded tokens; thoughts: hidden states "
      'found before the answer; passes: over them or the blocks, where these are read together; '
      "written: tokens up to the answer's first, and in full; random weights"))
  for column in ('method', 'trunk', 'thoughts', 'passes', 'written', 'prefill', 'first token',
                 'decode', 'full', 'first token: x direct (FLOPs)', 'full: x direct (FLOPs)'):
    grid.add_column(column)

  def ms(entry, part):
    t = entry[f'{part}_ms']
    return f"{t['median']:.4g} ({t['q1']:.3g}-{t['q3']:.3g})"

  def ratio(entry, part):
    r, flops = entry[f'{part}_ratio'], entry.get(f'{part}_flops_ratio')
    return f"{r['median']:.3f}" + (f' ({flops:.3f})' if flops else '')
  for e in entries:
    grid.add_row(e['method'], f"{e['trunk_tokens']}", f"{e['num_thoughts']}",
                 f"{e['num_passes'] or ''}", f"{e['generated_to_first']}; {e['generated_in_full']}",
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
  mesh = sharding.make_mesh(make_config(args.preset, args.dtype, 'direct').mesh)
  console = rich_console.Console()
  if console.width < 150:  # a table that is folded cannot be read
    console = rich_console.Console(width=150)
  args.out.mkdir(parents=True, exist_ok=True)
  path, everything = args.out / f'{args.preset}-{args.dtype}.json', []
  for batch in map(int, args.batch_sizes.split(',')):
    entries = measure(make_methods(args, mesh, batch), args.runs)
    show(console, entries, args.preset)
    everything += entries
    path.write_text(json.dumps({'preset': args.preset, 'weights': 'random', 'chain_tokens':
                                args.sizes[3], 'entries': everything}, indent=2) + '\n')
  console.print(f'{path}')


if __name__ == '__main__':
  main()
