"""Kills a small curriculum again and again, and compares its end with that of an undisturbed one.

  PYTHONPATH=. python bench/faults.py --processes=1 --kills=50 --out=runs/bench-faults

Both stages of RiM on the chain task run under `launch/local_hosts.py`. At random moments (while it
starts, compiles, steps, saves, evaluates, changes stage) one process gets SIGKILL; what is left is
ended and the same command runs again. A run that gets to its end begins anew, until there were so
many kills. Checked: every final parameter, loss and (one process) optimizer entry equals the
undisturbed run's bit for bit, and no start went on from an older checkpoint than the last one that
was sealed before the kill. One JSON object a run on standard output; any difference ends it with
an error.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from rim_jax.training import checkpoint as checkpoint_lib
from tests import support

ROOT = pathlib.Path(__file__).parent.parent


def write_recipe(folder):
  config = support.make_config('rim', **{
      'data__cache_dir': str(folder / 'cache'), 'train__batch_rows': 8, 'train__num_examples': 1600,
      'layout__row_tokens': 32, 'model__dropout': 0.1, 'eval__num_valid_examples': 4,
      'checkpoint__every_steps': 5, 'data__chain__num_train': 40})
  path = folder / 'recipe.py'
  path.write_text('import ml_collections\ndef get_config():\n'
                  f'  return ml_collections.ConfigDict({dataclasses.asdict(config)!r})\n')
  return path


def start(recipe, workdir, processes, log):
  return subprocess.Popen(
      [sys.executable, ROOT / 'launch/local_hosts.py', f'--processes={processes}',
       '--grace_secs=0', '--', sys.executable, '-m', 'rim_jax.main', f'--config={recipe}',
       f'--workdir={workdir}'], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
      env=dict(os.environ, **({} if processes > 1 else {
          'JAX_COMPILATION_CACHE_DIR': str(recipe.parent / 'compiled'),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'})))


def find_processes(workdir):
  """Process ids of the training processes, by --process_id."""
  found = subprocess.run(['pgrep', '-af', f'rim_jax.main.*{workdir} .*process_id='],
                         capture_output=True, text=True).stdout.splitlines()
  return [int(line.split()[0]) for line in found if 'local_hosts' not in line]


def list_sealed(workdir):
  """(stage, step) of every finished save."""
  return sorted((p.parts[-4], int(p.parts[-2])) for p in workdir.glob(
      '*/checkpoints/*/manifest.json') if p.parts[-2].isdigit())


def name_moment(workdir, text):
  """What a run was at when it was killed, from its files and last lines."""
  open_saves = [p for p in workdir.glob('*/checkpoints/*')
                if p.is_dir() and not (p / 'manifest.json').exists()]
  if open_saves:
    return 'in a save'
  if 'evaluating step' in text.rpartition('==')[2]:
    return 'in the last evaluation'
  if 'parameters, ' not in text.rpartition('==')[2]:
    return 'at the start of a stage' if '==' in text else 'at start'
  return 'compiling or in the steps'


def read_params(found):
  """Parameters of a checkpoint on this one device, whatever mesh it was saved on."""
  here, tree = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}
  for name, (shape, dtype) in found.card['params'].items():
    *nodes, last = name.split('.')
    at = tree
    for node in nodes:
      at = at.setdefault(node, {})
    at[last] = jax.ShapeDtypeStruct(shape, dtype, sharding=here)
  return {'params': checkpoint_lib.restore(found, 'params', tree)}


def read_end(workdir, processes):
  arrays = {}
  for stage in ('stage1', 'stage2'):
    found = checkpoint_lib.choose_checkpoint(workdir / stage, 'last')
    if processes > 1:  # Orbax reads an optimizer's tuples back on the mesh that saved them alone
      items = read_params(found)
    else:
      with ocp.CheckpointManager(found.folder.parent) as manager:
        items = dict(manager.restore(found.step, args=ocp.args.Composite(
            params=ocp.args.StandardRestore(), optim=ocp.args.StandardRestore())).items())
    arrays |= {f'{stage}{jax.tree_util.keystr(p)}': np.asarray(x)
               for p, x in jax.tree_util.tree_leaves_with_path(items)}
    lines = [json.loads(x) for x in (workdir / stage / 'metrics.jsonl').open()]
    for x in lines:
      if 'train/loss' in x:
        arrays[f'{stage} loss {x["step"]}'] = np.float64(x['train/loss'])
  return arrays


def check_same(workdir, whole, processes):
  mine = read_end(workdir, processes)
  assert mine.keys() == whole.keys() and len(mine) > 40, 'other arrays or steps'
  for name in whole:
    assert mine[name].tobytes() == whole[name].tobytes(), f'{workdir}: {name} differs'


def check_start(text, sealed):
  """The start after a kill went on from the last sealed save, not from an older one."""
  stage, step = sealed
  for found in re.finditer(r'== (\w+):(?:(?!== )[\s\S])*?continuing from step (\d+) of', text):
    if found[1] == stage:
      assert int(found[2]) >= step, f'{stage}: went on from {found[2]}, {step} was sealed'
  return bool(re.search('continuing from step|complete', text))


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', default='runs/bench-faults')
  args = parser.parse_args()
  out = pathlib.Path(args.out).absolute() / f'{args.processes}-processes'
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir(parents=True)
  recipe, rng = write_recipe(out), random.Random(args.seed)
  began = time.monotonic()
  for name in ('warm', 'whole'):  # the first fills caches: the second is timed
    began = time.monotonic()
    with open(out / f'{name}.log', 'w') as log:
      assert start(recipe, out / name, args.processes, log).wait() == 0, (out / f'{name}.log')
  length, whole = time.monotonic() - began, read_end(out / 'whole', args.processes)
  kills, moments, number = 0, collections.Counter(), 0
  while kills < args.kills:
    workdir, here, attempt = out / f'run{number}', 0, 0
    while True:
      sealed = list_sealed(workdir) if workdir.exists() else []
      path = out / f'run{number}-{attempt}.log'
      with open(path, 'w') as log:
        launcher = start(recipe, workdir, args.processes, log)
        # Late kills get further; early ones hit the start. Six a run, then it may end.
        wait = rng.uniform(0.5, length) if here < 6 else 1e9
        try:
          code = launcher.wait(wait)
        except subprocess.TimeoutExpired:
          code = None
          while not (running := find_processes(workdir)) and launcher.poll() is None:
            time.sleep(0.05)
          if running:
            os.kill(rng.choice(running), signal.SIGKILL)
            kills, here = kills + 1, here + 1
            moments[name_moment(workdir, path.read_text()) if workdir.exists()
                    else 'at start'] += 1
          launcher.wait(120)
      if sealed:
        check_start(path.read_text(), sealed[-1])
      if code == 0:
        break
      assert code is None, f'{path}: ended with {code}'
      attempt += 1
    check_same(workdir, whole, args.processes)
    print(json.dumps({'run': number, 'kills': here, 'kills_in_all': kills,
                      'processes': args.processes, 'bit_identical': True,
                      'arrays_and_losses': len(whole)}), flush=True)
    number += 1
  print(json.dumps({'processes': args.processes, 'kills': kills, 'runs': number, 'lost': 0,
                    'moments': dict(moments), 'undisturbed_secs': round(length, 1)}), flush=True)


if __name__ == '__main__':
  main()
