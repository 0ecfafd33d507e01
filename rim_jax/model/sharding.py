"""Where arrays live: the mesh, the logical axes, the one table that maps them, placement.

Every parameter names its dimensions with the constants below (in the metadata
`axes` of its variable); `RULES` says which mesh axes each name is split over.
Nothing is ever replicated because it did not fit: a dimension that its mesh
axes do not divide is an error, and so is a name without a rule.
"""

import math

from flax import nnx
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from rim_jax.config import MeshConfig
from rim_jax.errors import UserError, refuse

MESH_AXES = ('slice', 'data', 'fsdp', 'tensor')

BATCH, VOCAB, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, POSITION, MEMORY, QKV, RANK = (
    'batch', 'vocab', 'embed', 'heads', 'kv_heads', 'head_dim', 'mlp', 'layers', 'position',
    'memory', 'qkv', 'rank')
# What has no `embed` to be split over `fsdp` is split there by another dimension.
ADAPTER_HEAD_DIM, ADAPTER_MLP, LOGITS = 'adapter_head_dim', 'adapter_mlp', 'logits'

RULES = {
    BATCH: ('slice', 'data', 'fsdp'),
    VOCAB: ('tensor',),
    EMBED: ('fsdp',),
    HEADS: ('tensor',),
    KV_HEADS: ('tensor',),
    MLP: ('tensor',),
    HEAD_DIM: (),
    LAYERS: (),
    POSITION: (),
    MEMORY: (),
    QKV: (),
    RANK: (),
    ADAPTER_HEAD_DIM: ('fsdp',),
    ADAPTER_MLP: ('tensor', 'fsdp'),
    LOGITS: ('fsdp',),
}


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """The mesh slice x data x fsdp x tensor over all devices.

  Raises: UserError "mesh ... does not fill the N devices here".
  """
  devices = jax.devices() if devices is None else devices
  sizes = [config.slice, config.data, config.fsdp, config.tensor]
  known = math.prod(s for s in sizes if s > 0)
  if -1 in sizes and len(devices) % known == 0:
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
  if math.prod(sizes) != len(devices):
    shown = ' x '.join(f'{a}={s}' for a, s in zip(MESH_AXES, sizes))
    raise UserError(f'mesh {shown} does not fill the {len(devices)} devices here; let one axis '
                    'be -1 and the others divide that number')
  # Auto axes: the compiler propagates shardings from parameters and batch.
  return Mesh(_arrange(devices, sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(devices, sizes) -> np.ndarray:
  """Devices in the mesh's shape, neighbours in it close to each other in the network.

  Raises: UserError where mesh.slice is not the number of slices of a TPU.
  """
  # A GPU has a slice_index too, which is its host's: one network joins them all.
  if devices[0].platform != 'tpu':
    return np.asarray(devices).reshape(sizes)
  num_slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if num_slices > 1 and sizes[0] != num_slices:
    raise UserError(f'mesh.slice={sizes[0]}: the {len(devices)} devices are in {num_slices} '
                    f'slices; use --config.mesh.slice={num_slices}')
  # An axis of 8 on a torus of 4 x 4 takes one of its sides and half of the other.
  if num_slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
      (1, *sizes[1:]), (num_slices, 1, 1, 1), devices, allow_split_physical_axes=True)


def make_spec(axes) -> P:
  """Logical axis names (None: not split) -> PartitionSpec.

  Raises: KeyError "no sharding rule for axis 'x'".
  """
  for name in axes:
    if name is not None and name not in RULES:
      raise KeyError(f"no sharding rule for axis '{name}'; add it to sharding.RULES")
  return P(*(name and RULES[name] for name in axes))


def count_shards(axis: str, mesh: Mesh) -> int:
  """Into how many pieces the mesh splits a logical axis."""
  return math.prod(mesh.shape[a] for a in RULES[axis])


def get_divided_mesh():
  """The mesh in context over which arrays are divided.

  None where there is none, and inside a `shard_map`: there each device has arrays of its own.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.manual_axes else mesh


def is_split_by_ids(num_ids: int) -> bool:
  """Whether the output matrix is split by ids over `fsdp` while logits are computed.

  It is stored split by `embed`, and would be gathered whole; split by ids, the hidden states of
  slots are gathered instead. Not where `tensor` splits the ids already, nor where they do not
  divide: there the partitioner replicates more than it saves.
  """
  mesh = get_divided_mesh()
  return (mesh is not None and mesh.shape['tensor'] == 1
          and num_ids % math.prod(mesh.shape[a] for a in RULES[LOGITS]) == 0)


def make_state_shardings(abstract_state, mesh: Mesh):
  """NamedSharding of every variable of an abstract `nnx.State`, by its `axes`.

  Raises: UserError "model: ... is not divisible", every such dimension at once.
  """
  problems = []

  def place(path, variable):
    name = '.'.join(map(str, path))
    shape, axes = variable.get_value().shape, variable.get_metadata('axes')
    for size, axis in zip(shape, axes, strict=True):
      shards = count_shards(axis, mesh)
      if size % shards:
        low = size // shards * shards
        sizes = f'{low} or {low + shards}' if low else f'{shards}'
        problems.append(
            f"model: {name} has '{axis}' = {size}, not divisible by mesh "
            f"{' x '.join(RULES[axis])} = {shards}; use a mesh with {math.gcd(size, shards)} "
            f'there, or, for a model from scratch, {sizes} here')
    return NamedSharding(mesh, make_spec(axes))

  flat = [(path, place(path, v)) for path, v in nnx.to_flat_state(abstract_state)]
  refuse(problems)
  return nnx.to_pure_dict(nnx.from_flat_state(flat))


def count_params(tree) -> tuple[int, int]:
  """Numbers in placed or abstract arrays: (in all, on one device)."""
  leaves = jax.tree.leaves(tree)
  return (sum(x.size for x in leaves),
          sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves))


def count_bytes(tree) -> int:
  """Bytes of such arrays on one device."""
  return sum(count_params(x)[1] * x.dtype.itemsize for x in jax.tree.leaves(tree))


def get_batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over slice x data x fsdp; tokens and slots of a row stay together."""
  return NamedSharding(mesh, make_spec((BATCH,)))


def get_replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def find_local_rows(num_rows: int, mesh: Mesh) -> np.ndarray:
  """Which of a batch's rows this process's devices hold, rising."""
  taken = get_batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
  return np.unique(np.concatenate([np.arange(num_rows)[index] for index in taken]))


def place_batch(batch, mesh: Mesh, rows=None, num_rows: int | None = None):
  """Rows on the host -> global arrays on the mesh.

  Args:
    rows: which of the batch's `num_rows` rows `batch` holds, at least this process's; all of them
      by default.
  """
  target = get_batch_sharding(mesh)

  def place(x):
    count = len(x) if num_rows is None else num_rows

    def read(index):
      wanted = np.arange(count)[index[0]]
      return x[wanted if rows is None else np.searchsorted(rows, wanted)]
    return jax.make_array_from_callback((count, *x.shape[1:]), target, read)
  return jax.tree.map(place, batch)


def constrain(x, *axes):
  """States where an activation lives, by logical axes; without a mesh to divide, itself.

  A mesh axis that two of them are split over goes to the later one: rows of which each holds a
  part of `embed` are rows over `data` alone.
  """
  mesh = get_divided_mesh()
  if mesh is None:
    return x
  parts, taken = [], set()
  for part in reversed(make_spec(axes)):
    kept = tuple(a for a in ((part,) if isinstance(part, str) else part or ()) if a not in taken)
    parts.insert(0, kept or None)
    taken.update(kept)
  return jax.lax.with_sharding_constraint(x, P(*parts))
