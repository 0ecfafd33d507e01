"""What a compiled program does in one run, read from its text: FLOPs, bytes, collectives.

XLA's own cost analysis counts the body of a loop once. Here every computation is multiplied by how
often it runs: loops inside loops by the product of their trip counts. Counted are

  FLOPs        of matrix products and convolutions (2 an added product), at valid positions only,
               since a TPU writes a batched product as a padded convolution; and of kernels that
               are called by name, by their shapes (`runtime/hlo_kernels.py`). What the vector unit
               does is not counted. A kernel that is not known is named: its FLOPs are missing.
  HBM bytes    read and written between fusions; a slice counts as itself, not as what it is
               cut from, and what stays in a TPU's vector memory (space 1) counts nothing.
  collectives  by kind: runs, and the bytes that one device sends for them on a ring.
  launches     on a GPU: what stands outside of fusions and is no name, view or end of a copy.

The text is that of `compiled.as_text()`, read by `runtime/hlo_text.py`. Knows nothing of JAX,
models or chips.
"""

from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from rim_jax.runtime import hlo_kernels
from rim_jax.runtime.hlo_text import Instruction, count_runs, get_root, parse

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# They move no bytes of their own: names, views, and the ends of what a `-start` began.
_FREE = re.compile(r'parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call'
                   r'|after-all|partition-id|replica-id|opt-barrier|.*-done|.*-update')
_FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast', 'AssumeGatherIndicesInBound')
_GIVEN = ('parameter', 'constant', 'tuple', 'while', 'conditional', 'call')
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass
class Collective:
  """All collectives of one kind, in one run of the program."""
  runs: int = 0
  bytes: float = 0.0  # that one device sends
  slice_bytes: float = 0.0  # of these, to another slice, or to another host of GPUs


@dataclasses.dataclass(frozen=True)
class Costs:
  """One run of a program on one device."""
  flops: float
  kernel_flops: float  # of these, by arithmetic on the shapes of kernels called by name
  hbm_bytes: float
  collectives: dict[str, Collective]
  unknown_loops: int  # whose trip count depends on data; counted `unknown_trips` times
  unknown_kernels: tuple[str, ...]  # of which nothing is known: their FLOPs are missing
  launches: float = 0.0
  unknown_turns: float = 0.0  # of loops of unknown length; on a GPU the host waits in each


# ---- FLOPs ----


def _count_flops(i: Instruction, computation) -> float:
  if i.op == 'dot':
    left = computation[i.operands[0]].arrays[0].shape
    summed = re.findall(r'\d+', i.find(r'lhs_contracting_dims=\{([\d,]*)\}') or '')
    return 2.0 * math.prod(i.arrays[0].shape) * math.prod(left[int(d)] for d in summed)
  if i.op == 'convolution':
    return _count_convolution(i, *(computation[o].arrays[0].shape for o in i.operands))
  return 0.0


def _count_convolution(i, left, right):
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', i.attributes)
  assert labels is not None  # every convolution has them
  left_at, right_at, out_at = ({c: n for n, c in enumerate(s)} for s in labels.groups())
  out = i.arrays[0].shape
  window = dict(re.findall(r'(\w+)=([\dx_\-]+)', i.find(r'window=\{([^}]*)\}') or ''))

  def get(key, dim, default):
    return window[key].split('x')[dim] if key in window else default
  # Features of the kernel's input are already those of one group.
  flops = 2.0 * out[out_at['b']] * out[out_at['f']] * right[right_at['i']]
  for dim in range(len(left) - 2):
    size, outputs, width = (shape[at[str(dim)]] for shape, at in (
        (left, left_at), (out, out_at), (right, right_at)))
    low = int(get('pad', dim, '0_0').split('_')[0])
    stride, dilate, spread = (int(get(k, dim, 1)) for k in ('stride', 'rhs_dilate', 'lhs_dilate'))
    at = np.arange(outputs)[:, None] * stride + np.arange(width)[None] * dilate - low
    flops *= int(((at >= 0) & (at % spread == 0) & (at // spread < size)).sum())
  return flops


# ---- Bytes of HBM ----


def _get_bytes(arrays):
  return sum(a.num_bytes for a in arrays if a.in_hbm)


def _keep_small(computation, cached_bytes: float) -> dict[str, Instruction]:
  """A computation whose own results of so many bytes at most stay in a cache.

  What it is given (parameters, what a loop carries) is in HBM, whatever its size.
  """
  kept = {}
  for name, i in computation.items():
    if i.op in ('bitcast', 'get-tuple-element'):
      is_made = bool(i.operands) and i.operands[0] in kept and kept[i.operands[0]].cached_bytes > 0
    else:
      is_made = i.op not in _GIVEN
    kept[name] = dataclasses.replace(i, cached_bytes=cached_bytes) if is_made else i
  return kept


def _is_free(i: Instruction) -> bool:
  return bool(_FREE.fullmatch(i.op)) or (
      i.op == 'custom-call' and hlo_kernels.find_target(i) in _FREE_CALLS)


def _count_bytes(i: Instruction, computation, computations) -> float:
  """Read and written by one instruction outside of fusions."""
  if _is_free(i):
    return 0.0
  operands = [computation[o] for o in i.operands if o in computation]
  if i.op == 'fusion':
    return _count_fusion_bytes(i, operands, computations[i.get('calls')], computations)
  if _is_slice_start(i, computations):
    # Its result holds (operand), slice, flag: no more is read than written.
    source, result = i.arrays[:2]
    return result.num_bytes * (source.in_hbm + result.in_hbm)
  if i.op.endswith('-start'):  # its result holds its operands, or what it copies, and flags
    read = [a for o in operands for a in o.arrays]
    return _get_bytes(read) + _get_bytes(
        i.arrays[:1] if i.op == 'copy-start' else i.arrays[len(read):2 * len(read)])
  if i.op in ('send', 'recv'):  # to or from the host
    return _get_bytes(i.arrays[:1])
  if i.op in _SLICES:
    result = i.arrays[0]
    return result.num_bytes * (result.in_hbm + operands[0].arrays[0].in_hbm)
  if i.op in ('dynamic-update-slice', 'scatter'):  # in place
    update = operands[1 if i.op == 'dynamic-update-slice' else -1]
    return update.arrays[0].num_bytes * (i.arrays[0].in_hbm + update.arrays[0].in_hbm)
  return _get_bytes([a for o in operands for a in o.arrays]) + _get_bytes(i.arrays)


def _is_slice_start(i: Instruction, computations) -> bool:
  """Whether a slice begins here; a compiler writes it by name, or as a call of what it does."""
  return i.op == 'slice-start' or (
      i.op == 'async-start' and get_root(computations[i.get('calls')]).op == 'slice')


def _count_fusion_bytes(i, operands, inner, computations) -> float:
  def find_uses(name, inside):
    """(instruction, which operand) of all that reads an array, also in fusions of this fusion."""
    for user in inside.values():
      for position in [n for n, operand in enumerate(user.operands) if operand == name]:
        if user.op == 'bitcast' or _is_view(user):
          yield from find_uses(user.name, inside)
        elif user.op == 'fusion':
          nested = computations[user.get('calls')]
          yield from find_uses(_list_parameters(nested)[position].name, nested)
        else:
          yield user, position
  total = 0.0
  for number, parameter in _list_parameters(inner).items():
    source = operands[number] if number < len(operands) else None
    if source is None or not _get_bytes(source.arrays):
      continue
    uses = list(find_uses(parameter.name, inner))
    if uses and all(position == 0 and u.op in (*_SLICES, 'dynamic-update-slice')
                    for u, position in uses):
      total += min(_get_bytes(source.arrays), sum(
          u.arrays[0].num_bytes for u, _ in uses if u.op in _SLICES))
    else:
      total += _get_bytes(source.arrays)
  for (result, inside), array in zip(_find_results(inner, computations), i.arrays):
    if array.in_hbm:
      total += (inside[result.operands[1]].arrays[0].num_bytes
                if result.op == 'dynamic-update-slice' else array.num_bytes)
  return total


def _is_view(i: Instruction) -> bool:
  """Whether a fusion in a fusion only reads its operand in another tiling."""
  return i.op == 'fusion' and 'output_to_operand_aliasing={{}: (0, {})}' in i.attributes


def _list_parameters(inner) -> dict[int, Instruction]:
  return {int(p.inside): p for p in inner.values() if p.op == 'parameter'}


def _find_results(inner, computations):
  """(instruction, the computation that it stands in) of each result of a fusion, views undone."""
  root = get_root(inner)
  for result in [inner[o] for o in root.operands] if root.op == 'tuple' else [root]:
    inside = inner
    while True:
      if (result.op == 'bitcast' or _is_view(result)) and result.operands[0] in inside:
        result = inside[result.operands[0]]
      elif result.op == 'fusion' and get_root(computations[result.get('calls')]).op != 'tuple':
        inside = computations[result.get('calls')]
        result = get_root(inside)
      else:
        break
    yield result, inside


# ---- Collectives ----


def list_groups(attributes: str) -> np.ndarray:
  """Which devices take part in a collective together, i32[groups, size], however it is spelled.

  Of a permutation: its pairs.
  Raises: ValueError for a spelling that is not known; counting it as nothing would pass unseen.
  """
  listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}',
                     attributes)
  if listed:
    groups = [list(map(int, g.split(','))) for g in re.findall(r'\{([\d,]+)\}', listed[1])]
    return np.array(groups)
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
  if iota:
    return _read_iota(iota[2], iota[3]).reshape(-1, int(iota[1].split(',')[-1]))
  named = re.search(r"replica_groups=mesh\[([^\]]*)\]"
                    r"(?:, ?device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
                    attributes)
  if not named:
    raise ValueError(f'a collective with unknown groups: {attributes[:200]}')
  sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", named[1])}
  within = re.findall(r"'([^']*)'", named[4])
  axes = list(sizes)
  ids = _read_iota(named[2] or str(math.prod(sizes.values())), named[3]).ravel()
  order = [axes.index(a) for a in axes if a not in within] + [axes.index(a) for a in within]
  return ids.reshape(list(sizes.values())).transpose(order).reshape(
      -1, math.prod(sizes[a] for a in within))


def _read_iota(dims: str, order: str = '') -> np.ndarray:
  """'4,2', '1,0': the numbers from 0 on in the shape [4, 2], transposed."""
  shape = [int(n) for n in dims.split(',')]
  return np.arange(math.prod(shape)).reshape(shape).transpose(
      [int(n) for n in order.split(',')] if order else range(len(shape)))


def count_sent(kind: str, operand_bytes: float, n: int) -> float:
  """Bytes that one device sends for one collective of n devices, on a ring."""
  return operand_bytes * {'all-gather': n - 1, 'reduce-scatter': (n - 1) / n,
                          'all-reduce': 2 * (n - 1) / n, 'all-to-all': (n - 1) / n}.get(kind, 1)


def count_across(groups: np.ndarray, hosts, sent: float) -> float:
  """Of the bytes that a device sends on a ring, those to another host.

  A ring of n devices a host crosses between hosts once for each host, and n rings share the data.

  Args:
    hosts: of each device.
  """
  by_group = [np.unique([hosts[n] for n in group], return_counts=True)[1] for group in groups]
  crossing = [counts.min() for counts in by_group if len(counts) > 1]
  return sent / min(crossing) if crossing else 0.0


def list_collectives(computations, runs, fused, hosts=None):
  """(kind, instruction, runs, bytes that a device sends, bytes of them to another slice) of each.

  Args:
    fused: computation inside a fusion -> the one around.
    hosts: of each device, where it is they that divide devices and not slices: of GPUs.

  A compiler that overlaps one with products writes it in several fusions of one computation, with
  one shape under one channel. (Elsewhere a channel tells nothing: all collectives that a
  `shard_map` asks for have the same, and so have copies of a loop's body.) It writes a
  reduce-scatter as a fusion of all-reduce and slice; and between slices it leaves the
  exchange to the hosts, as a `send` that says what is exchanged.
  """
  seen = set()
  for name, times in runs.items():
    computation = computations[name]
    for i in computation.values():
      operand_bytes = sum(a.num_bytes for o in i.operands if o in computation
                          for a in computation[o].arrays)
      across = i.find(r'_xla_megascale_transfer_type="(\w+)"')
      if i.op == 'send' and across:
        kind = across.lower().replace('_', '-')
        slices = i.find(r'_xla_megascale_target="\{([\d,]+)\}') or '0,1'
        sent = count_sent(kind, operand_bytes, len(slices.split(',')))
        yield kind, i, times, sent, sent
        continue
      kind = i.op.removesuffix('-start')
      piece = (fused.get(name), i.find(r'channel_id=(\d+)') or i.name, kind,
               *((a.dtype, a.shape) for a in i.arrays))
      if kind not in COLLECTIVES or piece in seen:
        continue
      if name in fused:
        seen.add(piece)
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      groups = list_groups(i.attributes)
      sent = count_sent(kind, operand_bytes, groups.shape[1])
      yield kind, i, times, sent, count_across(groups, hosts, sent) if hosts else 0.0


def _count_collectives(computations, runs, fused, hosts):
  found = {}
  for kind, _, times, sent, across in list_collectives(computations, runs, fused, hosts):
    total = found.setdefault(kind, Collective())
    total.runs += times
    total.bytes += times * sent
    total.slice_bytes += times * across
  return found


def compute_costs(text: str, unknown_trips: float = 1, visible: float = 1.0,
                  hosts: Sequence[int] | None = None, cached_bytes: float = 0.0) -> Costs:
  """Costs of one run on one device of the program with this text.

  Args:
    unknown_trips: how often a loop runs whose length the program does not tell.
    visible: which part of attention's pairs stands in tiles that kernels visit; 1: all are counted.
    hosts: of each GPU, so that what goes between hosts is told apart; of TPUs the text tells.
    cached_bytes: arrays between kernels that are no larger count no traffic of HBM.
  """
  computations, entry = parse(text)
  if cached_bytes:
    computations = {name: _keep_small(c, cached_bytes) for name, c in computations.items()}
  runs, fused, unknown_turns = count_runs(computations, entry, unknown_trips)
  flops = kernels = moved = launches = 0.0
  unknown = {}
  for name, times in runs.items():
    computation = computations[name]
    for i in computation.values():
      flops += times * _count_flops(i, computation)
      if i.op == 'custom-call':
        count = hlo_kernels.count_flops(i, computation, visible)
        if count is None:
          unknown[hlo_kernels.find_name(i)] = True
        kernels += times * (count or 0.0)
      if name not in fused:
        moved += times * _count_bytes(i, computation, computations)
        launches += times * (not _is_free(i))
  collectives = _count_collectives(computations, runs, fused, hosts)
  return Costs(flops + kernels, kernels, moved, collectives, len(unknown_turns), tuple(unknown),
               launches, float(sum(unknown_turns)))
