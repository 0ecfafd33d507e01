"""The fastest setting of a step on a machine: remat, micro-batches, tiles, mesh and layers.

Compares the rooflines of compiled steps, by time a row: what else costs time is not seen. One thing
is changed after the other, beginning with the setting that is asked about, and each is kept where
it is faster; what compiles longest comes last. Arithmetic leaves out what cannot win, so few steps
are compiled. More rows an update are tried at the end, and only told: they are another recipe.
"""

from collections.abc import Iterator
import dataclasses
import math
import typing

from rim_jax import methods
from rim_jax.config import Config, ModelConfig, replace_keys
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning.machines import Machine, make_machine, make_mesh

MAX_COMPILES = 20
REMATS = typing.get_args(typing.get_type_hints(ModelConfig)['remat'])
_TILES = (128, 256, 512)  # whole vectors of a TPU
_FOR_LAYERS = 2 * len(REMATS) + 1  # remat again on another mesh, then layers with each
_AXES = ('mesh.data', 'mesh.fsdp', 'mesh.tensor')


@dataclasses.dataclass
class Search:
  """What was tried, how many compilations are left, and what is the fastest so far."""
  config: Config
  machine: Machine
  say: typing.Callable[[str], None]
  left: int
  keys: dict  # to be changed: of the best, or of what is asked about
  best: dict | None = None  # their plan; None: nothing that fits yet
  tried: list[dict] = dataclasses.field(default_factory=list)

  def measure(self, changes: dict) -> dict | None:
    """A plan with these keys and the fewest micro-batches that fit, or None; told and kept.

    The first allocation tells how many micro-batches the next one needs: what a step holds
    besides its state falls with their number.
    """
    rows = changes['train.batch_rows']
    shards = math.prod(changes[axis] for axis in _AXES[:2]) * self.machine.num_slices
    if rows % shards:
      self.skip(changes, 'not tried: these devices do not divide the rows')
      return None
    count = 1
    while count and self.left and not rows % (shards * count):
      found = self._compile(changes | {'train.num_micro_batches': count})
      if found is None or found['fits']:
        return found
      count = self._choose_count(found, count)
    return None

  def _choose_count(self, plan, count) -> int:
    """The next number of micro-batches to try; 0: none helps."""
    held, usable, needed = plan['state_gib'], self.machine.usable_gib, plan['hbm_gib']['needed']
    if not plan['compiled'] or held >= usable:
      return 0
    least = (needed - held) / (usable - held) if needed else 2
    return count * 2 ** max(1, math.ceil(math.log2(max(least, 1))))

  def _compile(self, keys):
    try:
      plan = compile_lib.make_plan(replace_keys(self.config, keys), self.machine)
    except UserError as e:  # a mesh that does not divide the model
      self._keep(keys, None, str(e).splitlines()[0])
      return None
    self.left -= plan['compiled']
    why = '' if plan['fits'] else 'does not fit'
    if plan['fits'] and plan['roofline_secs']['step'] is None:
      why, plan = f"unknown kernels: {', '.join(plan['unknown']['names'])}", None
    self._keep(keys, plan, why)
    return plan

  def skip(self, changes, why):
    self._keep(changes | {'train.num_micro_batches': 1}, None, why)

  def _keep(self, keys, plan, why):
    entry = {'keys': keys, 'why': why, 'compile_secs': plan and plan['compile_secs']}
    if plan:
      entry |= {'fits': plan['fits'], 'needed_gib': plan['hbm_gib']['needed'],
                'roofline_secs': plan.get('roofline_secs'), 'mfu_ceiling': plan.get('mfu_ceiling')}
    self.tried.append(entry)
    told = ' '.join(f"{key.rpartition('.')[2]}={value}" for key, value in keys.items())
    self.say(f'  {MAX_COMPILES - self.left}: {told}: ' + (
        why if why else f"{1000 * plan['roofline_secs']['step']:.1f} ms, bound by {plan['bound']}, "
        f"{plan['hbm_gib']['peak']:.1f} GiB"))

  def try_each(self, changes, spare: int = 0) -> None:
    """Keeps the fastest of what is there and of each change to it.

    Args:
      spare: compilations that are left for what comes later.
    """
    start = self.keys
    for change in changes:
      if change.items() <= start.items():
        continue
      if 0 < self.left <= spare:
        self.skip(start | change, 'not tried: what is left of the compilations is for the layers')
        continue
      plan = self.measure(start | change)
      if plan and (self.best is None or get_cost(plan) < get_cost(self.best)):
        self.keys, self.best = start | change, plan

  def try_layers(self, mesh: dict) -> None:
    """Layers the other way, in a loop or one by one, which compile longest; also on the first mesh.

    Not where products bound the step: there are as many of them.
    """
    before, best = self.keys, self.best
    other = {'model.scan_layers': not before['model.scan_layers']}
    if best is not None and best['bound'] == 'compute' and before['model.remat'] != 'full':
      self.skip(before | other, 'not tried: products bound the step, and these are as many')
      return
    self.try_each([other | {'model.remat': remat} for remat in REMATS])
    if self.keys != before:
      self.try_each([mesh])

  def choose_meshes(self) -> list[dict]:
    """Meshes from the one that sends least on; what takes longer to send than the best step is not
    tried."""
    if self.best is None:
      return list(list_meshes(self.machine))
    chosen = []
    for mesh in sorted(list_meshes(self.machine),
                       key=lambda mesh: count_sent(self.best, mesh, self.config)):
      secs = count_sent(self.best, mesh, self.config) / self.machine.chip.ici_bytes_per_sec
      if secs < self.best['roofline_secs']['step']:
        chosen.append(mesh)
      else:
        self.skip(self.keys | mesh, f'not tried: sends for {1000 * secs:.0f} ms')
    return chosen



def get_cost(plan: dict) -> tuple[float, float]:
  """Seconds a row of the slowest part, then of all: what is compared."""
  secs, rows = plan['roofline_secs'], plan['settings']['train.batch_rows']
  return secs['step'] / rows, sum(secs.values()) / rows


def list_meshes(machine: Machine) -> Iterator[dict]:
  """Every way to divide a machine's devices over data, fsdp and tensor."""
  count = len(machine.devices) // machine.num_slices
  for tensor in (1, 2, 4, 8):
    for fsdp in (2**i for i in range(count.bit_length())):
      data, rest = divmod(count, fsdp * tensor)
      if data and not rest:
        yield dict(zip(_AXES, (data, fsdp, tensor)))


def count_sent(plan: dict, mesh: dict, config: Config) -> float:
  """Bytes that a device sends in a step at least, as such meshes are compiled.

  In 16 bits: weights that are divided are gathered forward and backward, gradients are summed
  once, and a layer that is divided sums its states twice forward and twice backward.
  """
  data, fsdp, tensor = mesh.values()
  params, settings = plan['params'], plan['settings']
  tokens = settings['train.batch_rows'] * settings['layout.row_tokens'] / (data * fsdp)
  states = 2 * tokens * config.model.embed_dim * config.model.num_layers
  replicas = data * fsdp
  return (2 * 2 * (params['trainable'] + params['frozen']) / tensor * (fsdp - 1) / fsdp
          + 2 * params['trainable'] / tensor * (replicas - 1) / replicas
          + 4 * states * 2 * (tensor - 1) / tensor)


def find_fastest(config: Config, machine: Machine, say, most: int | None = None) -> dict:
  """{'best': the fastest plan that fits, with `keys`, or None, 'tried', 'more_rows'}, as JSON."""
  mesh = make_mesh(config.mesh, machine)
  pieces = sharding.count_shards(sharding.BATCH, mesh)
  rows = typical_lib.estimate_rows(config, methods.get_method(config).layout, pieces).batch_rows
  config = replace_keys(config, {'train.batch_examples': 0})
  keys = {'model.remat': config.model.remat, 'model.scan_layers': config.model.scan_layers,
          'model.attention_tile_tokens': config.model.attention_tile_tokens,
          **{axis: mesh.shape[axis.partition('.')[2]] for axis in _AXES}, 'train.batch_rows': rows}
  search = Search(config, machine, say, most or MAX_COMPILES, keys)
  search.best = search.measure(keys)
  search.try_each([{'model.remat': remat} for remat in REMATS])
  if machine.is_tpu and 0 < search.keys['model.attention_tile_tokens']:
    search.try_each([{'model.attention_tile_tokens': tile} for tile in _TILES
                     if tile < config.layout.row_tokens])
  if search.best is None:  # what holds least may fit on another mesh
    search.keys = search.keys | {'model.remat': 'full'}
  before = search.keys
  search.try_each(search.choose_meshes(), spare=_FOR_LAYERS if search.best else 0)
  if search.keys != before:
    search.try_each([{'model.remat': remat} for remat in REMATS])
  search.try_layers({axis: before[axis] for axis in _AXES})
  keys, best = search.keys, search.best
  more = [] if best is None else [
      plan for factor in (2, 4)
      if (plan := search.measure(keys | {'train.batch_rows': factor * rows}))]
  micro = 'train.num_micro_batches'
  return {'best': best and best | {'keys': keys | {micro: best['settings'][micro]}},
          'tried': search.tried,
          'more_rows': [plan['settings'] | {'mfu_ceiling': plan['mfu_ceiling']} for plan in more]}


def make_fastest_plans(config: Config, topology: str, num_slices: int, say
                       ) -> tuple[list[dict], dict]:
  """(a plan of every stage with the fastest setting of the first, what was tried).

  Stages differ in the number of slots alone, and a run has one setting.
  Raises: UserError as `compile.make_plans` does.
  """
  machine = make_machine(topology, num_slices)
  (name, first), *others = stages_lib.make_stages(config)
  say(f'{name or first.method}: looking for its fastest setting on {topology}; at most '
      f'{MAX_COMPILES - len(others)} steps are compiled, half a minute or more each')
  found = find_fastest(first, machine, say, MAX_COMPILES - len(others))
  if found['best'] is None:
    return [], found
  plans, change = [{'stage': name, **found['best']}], found['best']['keys']
  for name, stage in others:
    say(f'{name}: compiling with that setting')
    plans.append({'stage': name, **compile_lib.make_plan(replace_keys(
        stage, change | {'train.batch_examples': 0}), machine)})
  return plans, found

