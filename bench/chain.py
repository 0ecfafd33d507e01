"""The chain task's table: every method, equal network, examples and seeds, one command.

  python bench/chain.py --out=runs/bench-chain            (4 methods x 3 seeds: about an hour)

Every run is an ordinary run below --out: stop it at any time, and the same
command goes on. Ends with a table, and writes it to OUT/chain.json. Anything
after `--` is passed to every run, e.g. `-- --config.data.chain.max_steps=5`.
`rim-shift` is RiM with the paper's targets alone: no readout before block 1.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

from rich import console as rich_console
from rich import table as rich_table

METHODS = {
    'rim': ('rim', []),
    'cot': ('cot', []),
    'direct': ('direct', []),
    'pause': ('pause', []),
    'rim-shift': ('rim', ['--config.layout.depth0_readout=False']),
}


def run(method, seed, out, extra):
  """One run, gone on with if it is there; returns its test results and seconds."""
  recipe, flags = METHODS[method]
  workdir = out / f'{method}-seed{seed}'
  start = time.monotonic()
  subprocess.run([sys.executable, '-m', 'rim_jax.main', f'--config=configs/{recipe}.py',
                  f'--workdir={workdir}', f'--config.seed={seed}',
                  '--config.log.tensorboard=False', '--config.eval.num_latency_runs=0',
                  *flags, *extra], check=True)
  last = workdir / 'stage2' if recipe == 'rim' else workdir
  return json.loads((last / 'results.json').read_text())['test'], time.monotonic() - start


def main():
  argv, _, extra = ' '.join(sys.argv[1:]).partition(' -- ')
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/bench-chain'))
  parser.add_argument('--methods', default='rim,cot,direct,pause')
  parser.add_argument('--seeds', default='0,1,2')
  args = parser.parse_args(argv.split())
  results = {}
  # Seed by seed, so that a table of all methods exists early.
  for seed in args.seeds.split(','):
    for method in args.methods.split(','):
      result, secs = run(method, seed, args.out, extra.split())
      results.setdefault(method, []).append(
          {'seed': int(seed), 'secs': round(secs), **{k: result[k] for k in (
              'n', 'final_acc', 'block_acc', 'any_block_acc')}})
      show(results, args.out)


def show(results, out):
  table = rich_table.Table(title='chain task, % of held-out questions')
  for column in ('method', 'seeds', 'final answer', 's.e.', 'after each block'):
    table.add_column(column)
  for method, rows in results.items():
    final = [100 * r['final_acc'] for r in rows]
    error = statistics.stdev(final) / len(final) ** 0.5 if len(final) > 1 else float('nan')
    blocks = [statistics.mean(100 * x for x in block)
              for block in zip(*(r['block_acc'] for r in rows))]
    table.add_row(method, str(len(rows)), f'{statistics.mean(final):.1f}', f'{error:.1f}',
                  ' / '.join(f'{b:.0f}' for b in blocks))
  rich_console.Console().print(table)
  (out / 'chain.json').write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()
