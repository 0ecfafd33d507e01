"""Plan before you rent: the real step, compiled ahead of time for a machine that is not there.

`libtpu`, and JAX's CUDA plugin, compile for a machine by its name alone, on a CPU. What comes out
is what it would run: its memory is the compiler's own allocation, its FLOPs, bytes and collectives
are counted in its text (`runtime/hlo.py`). A TPU's program is read before its code is generated
(`program.py`). A TPU's compiler refuses what does not fit; a GPU's does not, so there the
allocation is compared with what JAX takes of the card. The time is a roofline, and so an estimate:
the slowest of compute, HBM and network at their published rates, all else (latency, the vector
unit, what does not overlap) left out. Real steps take longer; the MFU of a plan is a ceiling, not a
forecast.
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import time

import jax
import numpy as np

from rim_jax import methods
from rim_jax.config import Config, replace_keys
from rim_jax.config import stages as stages_lib
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.model import attention_gpu, sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import typical as typical_lib
from rim_jax.planning.machines import Chip, Machine, make_machine, make_mesh
from rim_jax.planning.program import DoesNotFit, compile_apart, compile_lowered
from rim_jax.runtime import hlo
from rim_jax.training import step as step_lib

PLAN_VERSION = 1
GIB = 2**30
# What only a run can tell.
UNKNOWN = {
    True: 'autotuning (products of matrices have default tiles here), workspaces of cuBLAS and '
          "cuDNN, buffers of NCCL, CUDA's own memory; what the cache of the card saves of HBM's "
          'traffic',
    False: "the machine's code (some 0.05 GiB), which is not generated, and whether a kernel fits "
           "a core's own memory"}
_NUM_STEPS = 1000  # of the stage: it sets schedules, no shape


def get_vocab_size(config: Config) -> int:
  return config.model.vocab_size or tokenizer_lib.load_tokenizer(config.tokenizer).vocab_size


def compile_step(config: Config, program, rows: typical_lib.Rows, mesh):
  """The train step of a run, compiled for the devices of the mesh. Raises: DoesNotFit."""
  return compile_lowered(_lower_step(config, program, rows, mesh))


def _lower_step(config, program, rows, mesh):
  empty = batch_lib.make_empty_rows(rows.batch_rows, config.layout.row_tokens, rows.row_slots)
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), empty)
  step = step_lib.make_train_step(program, config, _NUM_STEPS,
                                  max(config.layout.num_blocks, 1), mesh,
                                  limits=rows.limits)
  with jax.set_mesh(mesh):
    platform = mesh.devices.flat[0].platform
    return step.trace(*program.abstract, batch).lower(
        lowering_platforms=('cuda' if platform == 'gpu' else platform,))


def _prepare(config: Config, machine: Machine):
  """(mesh, rows, program) of a step."""
  mesh = make_mesh(config.mesh, machine)
  program = step_lib.make_program(config, get_vocab_size(config), _NUM_STEPS, mesh)
  return mesh, _estimate_rows(config, mesh), program


def _estimate_rows(config, mesh) -> typical_lib.Rows:
  pieces = sharding.count_shards(sharding.BATCH, mesh) * config.train.num_micro_batches
  return typical_lib.estimate_rows(config, methods.get_method(config).layout, pieces)


def _lower(topology: str, num_slices: int, config: Config):
  """The train step of a run on a machine, lowered."""
  mesh, rows, program = _prepare(config, make_machine(topology, num_slices))
  return _lower_step(config, program, rows, mesh)


def compute_model_flops(config: Config, program, rows: typical_lib.Rows) -> float:
  """FLOPs of a step that a model needs, by arithmetic on its shapes: the numerator of MFU.

  2 for each weight that a token meets, forward; as many for the gradient of its input, and again
  for that of the weight if it trains. The vocabulary is met at slots only. An auxiliary decoder
  reads each row once, if thoughts are in it. Neither attention, which depends on the data, nor what
  is computed again nor CODI's projection is in it.
  """
  row_tokens = config.layout.row_tokens
  row_reads = methods.get_method(config).count_tokens(row_tokens, rows.limits, config)
  total = 0.0
  for part, passes in ((program.abstract[0].params, 3), (program.abstract[1], 2)):
    for path, leaf in jax.tree_util.tree_leaves_with_path(part):
      where = [key.key for key in path]
      decodes = where[:2] == ['added', 'decoder']
      if where[0] == 'added' and not (decodes and row_reads > row_tokens):
        continue
      if where[-1] in ('kernel', 'a', 'b'):
        met = row_tokens if decodes else row_reads
      elif where[-1] == ('embedding' if config.model.tie_embeddings else 'head'):
        met = rows.row_slots
      else:
        continue
      total += 2.0 * leaf.size * rows.batch_rows * met * passes
  return total


def estimate_visible(config: Config, platform: str) -> float:
  """Which part of a row's pairs stands in tiles that attention visits, in rows of typical records.

  1 where attention takes the whole score matrix at once.
  """
  tile, tokens = config.model.attention_tile_tokens, config.layout.row_tokens
  if not tile or tokens <= tile:
    return 1.0
  if platform == 'gpu':
    tile = attention_gpu.choose_tile(tile)
  fields = batch_lib.get_fields(
      typical_lib.make_typical_row(config, methods.get_method(config).layout))
  seen = batch_lib.visible(fields, fields, config.layout.readout_sees_question,
                           config.layout.bidirectional_blocks)[0]
  if platform == 'tpu':  # in the splash kernel padding sees the first key
    seen[~seen.any(1), 0] = True
  seen = np.pad(seen, (0, -tokens % tile)).reshape(-(-tokens // tile), tile, -1, tile)
  return float(seen.any((1, 3)).mean())


def compute_costs(compiled, config: Config, mesh) -> tuple[float, hlo.Costs]:
  """(`estimate_visible`, costs of a compiled step on one device, in rows of typical records)."""
  platform = mesh.devices.flat[0].platform
  visible = estimate_visible(config, platform)
  tiles = config.layout.row_tokens / max(config.model.attention_tile_tokens, 1)
  return visible, hlo.compute_costs(
      compiled.as_text(), unknown_trips=max(visible * tiles, 1), visible=visible,
      hosts=[d.process_index for d in mesh.devices.flat] if platform == 'gpu' else None)


def compute_roofline(costs: hlo.Costs, chip: Chip, links=('ici', 'dcn')) -> dict[str, float]:
  """Least seconds of a step for each of the machine's parts, and `step`, the largest of them.

  Args:
    links: what the network within a slice or a node is called, and that between them.
  """
  sent = sum(c.bytes - c.slice_bytes for c in costs.collectives.values())
  across = sum(c.slice_bytes for c in costs.collectives.values())
  secs = {'compute': costs.flops / chip.flops_per_sec,
          'hbm': costs.hbm_bytes / chip.hbm_bytes_per_sec,
          links[0]: sent / chip.ici_bytes_per_sec}
  if across:
    secs[links[1]] = across / chip.dcn_bytes_per_sec
  return secs | {'step': max(secs.values())}


def make_plan(config: Config, machine: Machine) -> dict:
  """What one stage's step takes on a machine, as JSON has it; units in the names, GiB = 2**30.

  `fits` is the compiler's word, or arithmetic's where the state alone is too large. Where it is
  false there are no FLOPs, bytes or times: there is no program to count them in.
  """
  mesh, rows, program = _prepare(config, machine)
  state, frozen = program.abstract
  (trainable, trainable_here), (base, base_here) = map(
      sharding.count_params, (state.params, frozen))
  plan = {
      'version': PLAN_VERSION, 'method': config.method, 'topology': machine.name,
      'num_slices': machine.num_slices, 'chips': machine.num_chips,
      'devices': len(machine.devices), 'mesh': dict(mesh.shape),
      'settings': {
          'train.batch_rows': rows.batch_rows, 'layout.row_tokens': config.layout.row_tokens,
          'layout.row_slots': rows.row_slots,
          'train.num_micro_batches': config.train.num_micro_batches,
          'model.remat': config.model.remat, 'model.scan_layers': config.model.scan_layers,
          'optim.trainable': config.optim.trainable,
          'model.lora.rank': config.model.lora.rank},
      'assumed': list(rows.assumed),
      'params': {'trainable': trainable, 'frozen': base},
      'params_per_device': {'trainable': trainable_here, 'frozen': base_here},
      'state_gib': sharding.count_bytes((state, frozen)) / GIB,
      'hbm_gib': {'chip': machine.chip.hbm_gib, 'usable': machine.usable_gib}, 'fits': False,
      'unknown_here': UNKNOWN[machine.is_gpu],
      'versions': {name: _get_version(name) for name in (
          'jax', 'jax-cuda13-plugin' if machine.is_gpu else 'libtpu')}}
  start = time.perf_counter()
  # Gradients are as large as what trains.
  least = sharding.count_bytes((state, frozen, state.params)) / GIB
  plan['compiled'] = least <= machine.usable_gib
  try:
    if not plan['compiled']:  # then compiling would only tell the same, a minute later
      raise DoesNotFit('state and gradients alone are more; not compiled', least)
    compiled = (compile_apart(_lower, machine.name, machine.num_slices, config)
                if machine.is_tpu else compile_step(config, program, rows, mesh))
  except DoesNotFit as e:
    reason, plan['hbm_gib']['needed'] = e.args
    return plan | {'reason': reason, 'compile_secs': round(time.perf_counter() - start, 1)}
  visible, costs = compute_costs(compiled, config, mesh)
  return plan | _describe(compiled, costs, machine, compute_model_flops(config, program, rows)) | {
      'visible_tiles': visible, 'compile_secs': round(time.perf_counter() - start, 1)}


def _get_version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _describe(compiled, costs, machine, model_flops):
  """The part of a plan that is read from a compiled step."""
  memory = compiled.memory_analysis()
  gib = {name: getattr(memory, f'{name}_size_in_bytes') / GIB
         for name in ('argument', 'output', 'temp', 'alias', 'generated_code')}
  # Donated state comes out where it went in.
  peak = gib['argument'] + gib['output'] - gib['alias'] + gib['temp'] + gib['generated_code']
  secs = compute_roofline(costs, machine.chip, machine.links)
  step, bound = secs['step'], max(secs.keys() - {'step'}, key=secs.__getitem__)
  if costs.unknown_kernels:  # their FLOPs are missing, so nothing is claimed
    step = bound = None
  count = len(machine.devices)
  fits = peak <= machine.usable_gib
  told = {} if fits else {'reason': (
      f'JAX takes {machine.usable_gib:.1f} GiB of the card' if machine.is_gpu else
      f'a program has {machine.usable_gib:.1f} GiB of the chip')}
  return {
      'hbm_gib': {'arguments': gib['argument'], 'temporaries': gib['temp'],
                  'code': gib['generated_code'], 'peak': peak, 'needed': peak,
                  'chip': machine.chip.hbm_gib, 'usable': machine.usable_gib},
      'fits': fits, **told,
      'flops': {'per_step': costs.flops * count, 'per_device': costs.flops,
                'attention_per_device': costs.kernel_flops, 'model_per_step': model_flops},
      'hbm_bytes_per_device': costs.hbm_bytes,
      'collectives': {kind: dataclasses.asdict(c) for kind, c in sorted(costs.collectives.items())},
      'launches': costs.launches,
      'unknown': {'loops': costs.unknown_loops, 'turns': costs.unknown_turns,
                  'kernels': len(costs.unknown_kernels), 'names': list(costs.unknown_kernels)},
      'roofline_secs': secs | {'step': step}, 'bound': bound,
      'mfu_ceiling': step and model_flops / (step * count * machine.chip.flops_per_sec)}


# ---- The nearest setting that fits ----


def list_alternatives(config: Config, machine: Machine) -> Iterator[tuple[str, Config]]:
  """(what to set, config) from the nearest on: remat, more micro-batches, other meshes."""
  def change(keys, more):
    return ' '.join(f'--config.{k}={v}' for k, v in keys.items()), replace_keys(config, keys | more)
  mesh = make_mesh(config.mesh, machine)
  rows = _estimate_rows(config, mesh).batch_rows
  first: dict = {} if config.model.remat == 'full' else {'model.remat': 'full'}
  # More of the mesh to fsdp, then to tensor: each divides the parameters further.
  shapes = []
  for tensor in (mesh.shape['tensor'] * 2**i for i in range(4)):
    fsdp, rest = divmod(len(machine.devices), mesh.shape['slice'] * tensor)
    shape = {'data': 1, 'fsdp': fsdp, 'tensor': tensor}
    if not rest and fsdp and not shape.items() <= mesh.shape.items():
      shapes.append({f'mesh.{axis}': size for axis, size in shape.items()})
  for keys in (first, *(first | shape for shape in shapes)):
    if keys:
      yield change(keys, {})
    shards = len(machine.devices) // keys.get('mesh.tensor', mesh.shape['tensor'])
    count = config.train.num_micro_batches
    while rows % (2 * count * shards) == 0:
      count *= 2
      yield change(keys | {'train.num_micro_batches': count},
                   {'train.batch_rows': rows, 'train.batch_examples': 0})


def find_fitting(config: Config, machine: Machine, say) -> dict | None:
  """The plan of the first alternative that fits, with `change`, what to set; None if none does.

  Compiles one after the other, a minute or more each.
  """
  for change, other in list_alternatives(config, machine):
    say(f'  trying {change}')
    try:
      plan = make_plan(other, machine)
    except UserError as e:  # a mesh that does not divide the model
      say(f'    {str(e).splitlines()[0]}')
      continue
    if plan['fits']:
      return plan | {'change': change}
    needed = plan['hbm_gib']['needed']
    say(f"    needs {f'{needed:.1f} GiB' if needed else 'more'}")
  return None


def make_plans(config: Config, topology: str, num_slices: int, say) -> list[dict]:
  """A plan for every stage of a config; where one does not fit, `nearest` is one that does.

  Raises: UserError for a topology, mesh or batch that cannot be, and without what compiles for it.
  """
  machine = make_machine(topology, num_slices)
  plans = []
  for name, stage in stages_lib.make_stages(config):
    say(f'{name or stage.method}: compiling for {machine.num_chips} chips ({topology}'
        + (f', {num_slices} slices' if num_slices > 1 else '') + '); a minute or more')
    plan = {'stage': name, **make_plan(stage, machine)}
    if not plan['fits']:
      say('it does not fit; looking for the nearest setting that does, a minute or more each')
      plan['nearest'] = find_fitting(stage, machine, say)
    plans.append(plan)
  return plans
