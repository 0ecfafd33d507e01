"""Machines that are not here: published rates of chips, and topologies by their names.

The only module that knows chips.
"""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from rim_jax.config import MeshConfig
from rim_jax.errors import UserError
from rim_jax.model import sharding


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of one chip; the network's count one direction, all links together."""
  hbm_gib: float
  flops_per_sec: float  # bf16
  hbm_bytes_per_sec: float
  ici_bytes_per_sec: float
  dcn_bytes_per_sec: float  # to other slices; 0: not published


# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in 2026: peak compute, HBM capacity
# and bandwidth, and half of the bidirectional ICI bandwidth per chip (v4: 2,400 Gbps as published);
# DCN from the bandwidth per chip (v5p: 50 Gbps) or per pod of 256 (v5e: 6.4 Tbps, v6e: 25.6 Tbps).
CHIPS = {
    'v4': Chip(32, 275e12, 1228e9, 300e9, 0),
    'v5e': Chip(16, 197e12, 819e9, 200e9, 3.125e9),
    'v5p': Chip(95, 459e12, 2765e9, 600e9, 6.25e9),
    'v6e': Chip(32, 918e12, 1638e9, 400e9, 12.5e9),
}

# Dense bf16 on tensor cores, without sparsity. Source: NVIDIA's data sheets of the SXM forms.
GPU_FLOPS_PER_SEC = {'a100': 312e12, 'h100': 989e12, 'h200': 989e12}


@dataclasses.dataclass(frozen=True)
class Peak:
  """The published bf16 rate of all chips of a machine."""
  name: str
  num_chips: int
  flops_per_sec: float


def parse_hardware(name: str) -> Peak:
  """'v5e:2x4', 'h100' or 'h100:8'.

  Raises: UserError for a kind that is not known, or a size that is none.
  """
  kind, _, size = name.partition(':')
  rates = {k: chip.flops_per_sec for k, chip in CHIPS.items()} | GPU_FLOPS_PER_SEC
  if kind not in rates or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', size or '1'):
    raise UserError(f'--hardware={name}: is not KIND or KIND:SIZE, e.g. v5e:2x4 or h100:8; kinds: '
                    f'{", ".join(rates)}')
  count = math.prod(map(int, (size or '1').split('x')))
  return Peak(name, count, count * rates[kind])


@dataclasses.dataclass(frozen=True)
class Machine:
  """A topology, its devices slice by slice, and its chips' rates."""
  name: str
  num_slices: int
  devices: list
  chip: Chip


def make_machine(topology: str, num_slices: int = 1) -> Machine:
  """The machine of a name such as 'v5e:4x4'.

  Raises: UserError for one that is unknown, and where libtpu is not installed.
  """
  kind = topology.partition(':')[0]
  if kind not in CHIPS or not re.fullmatch(r'\w+:\d+(x\d+)+', topology):
    raise UserError(f"--topology={topology!r} is not KIND:SIZE, e.g. v5e:4x4 or v5p:2x2x2; kinds: "
                    f"{', '.join(CHIPS)}")
  if num_slices < 1 or (num_slices > 1 and not CHIPS[kind].dcn_bytes_per_sec):
    raise UserError(f'--num_slices={num_slices}: must be 1 or more' if num_slices < 1 else
                    f'--num_slices={num_slices}: the network between slices of {kind} is not '
                    'published; use another kind')
  more = {} if num_slices == 1 else {'num_slices': num_slices}
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **more)
  except RuntimeError as e:  # JaxRuntimeError is one
    if 'not installed' in str(e):
      raise UserError(f"--mode=plan compiles with libtpu, which is not installed; pip install "
                      f"'jax[tpu]=={jax.__version__}' (no TPU is needed)") from None
    raise UserError(f'--topology={topology}: {" ".join(str(e).split())}; common sizes: v5e and v6e '
                    '2x2, 2x4, 4x4, 8x8, 16x16; v4 and v5p 2x2x1, 2x2x2, 4x4x4') from None
  return Machine(topology, num_slices, found.devices, CHIPS[kind])


def make_mesh(config: MeshConfig, machine: Machine):
  """Raises: UserError where the mesh does not fill the machine, or mesh.slice is not its slices."""
  try:
    return sharding.make_mesh(config, machine.devices)
  except UserError as e:
    raise UserError(str(e).replace('devices here', f'devices of {machine.name}' + (
        f' x {machine.num_slices} slices' if machine.num_slices > 1 else ''))) from None
