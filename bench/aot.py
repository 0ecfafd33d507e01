"""What a training step takes on a TPU slice that is not here: compiled ahead of time by libtpu.

  PYTHONPATH=. python bench/aot.py --model=DIR --topology=v5e:4x4 --mesh=1,16,1

(needs pip install 'jax[tpu]'; DIR needs config.json alone). The step is the real one: RiM with
LoRA on every projection, frozen bf16 base, the recipe's rows. One JSON object on standard output.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # no cloud metadata here

import jax
from jax.experimental import topologies

from configs import presets
from rim_jax import batch as batch_lib
from rim_jax import config as config_lib
from rim_jax import families
from rim_jax import sharding
from rim_jax import train_step


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', required=True)
  parser.add_argument('--topology', default='v5e:4x4')
  parser.add_argument('--mesh', default='1,16,1')
  parser.add_argument('--method', default='rim_stage2')
  parser.add_argument('--rows', type=int, default=32)
  parser.add_argument('--slots', type=int, default=256)
  parser.add_argument('--remat', default='full')
  args = parser.parse_args()
  config = config_lib.parse_config(presets.make(args.method, 'llama3_2_1b'))
  where = pathlib.Path(args.model) / 'config.json'
  fields = families.parse_model(families.load_json(where), where)
  config = dataclasses.replace(config, model=dataclasses.replace(
      config.model, remat=args.remat, **fields))
  topology = topologies.get_topology_desc(platform='tpu', topology_name=args.topology)
  mesh = sharding.make_mesh(config_lib.MeshConfig(*map(int, args.mesh.split(','))),
                            topology.devices)
  program = train_step.make_program(config, config.model.vocab_size, 1000, mesh)
  rows = batch_lib.make_empty_rows(args.rows, config.layout.row_tokens, args.slots)
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), rows)
  step = train_step.make_train_step(program, config, 1000, config.layout.num_blocks, mesh)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    compiled = step.trace(*program.abstract, batch).lower(lowering_platforms=('tpu',)).compile()
  memory = compiled.memory_analysis()
  gib = {name: getattr(memory, f'{name}_size_in_bytes') / 2**30
         for name in ('argument', 'output', 'temp', 'alias', 'generated_code')}
  text = compiled.as_text()
  print(json.dumps({
      'topology': args.topology, 'mesh': dict(mesh.shape), 'method': args.method,
      'rows': args.rows, 'row_tokens': config.layout.row_tokens, 'slots': args.slots,
      'gib_a_device': {k: round(v, 3) for k, v in gib.items()},
      # donated state comes out where it went in
      'peak_gib_a_device': round(gib['argument'] + gib['output'] - gib['alias'] + gib['temp'], 3),
      'collectives': {name: text.count(f' {name}(') + text.count(f' {name}-start(') for name in (
          'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')},
      'compile_secs': round(time.perf_counter() - start, 1), 'jax': jax.__version__}))


if __name__ == '__main__':
  main()
