"""The chain task's table: every method, equal network, examples and seeds, one command.

  python bench/chain.py --out=runs/bench-chain            (5 rows x 3 seeds: over an hour)

Two cores do two runs in the time of one: start it twice, with --seeds=0,1 under `taskset -c 0` and
with --seeds=2 under `taskset -c 1`, and once more with --seeds=0,1,2 for the whole table.

Every run is an ordinary run below --out: stop it at any time, and the same
command goes on. Ends with a table, and writes it to OUT/chain.json. Anything
after `--` is passed to every run, e.g. `-- --config.data.chain.seed=1`.
`rim` has the paper's targets alone; `rim-depth0`, the recipe's setting, also has a readout before
block 1, which predicts r_1.
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
    'rim': ('rim', ['--config.layout.depth0_readout=False', '--config.layout.row_tokens=25']),
    'rim-depth0': ('rim', []),
    'cot': ('cot', []),
    'direct': ('direct', []),
    'pause': ('pause', []),
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
  parser.add_argument('--methods', default='rim,rim-depth0,cot,direct,pause')
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
