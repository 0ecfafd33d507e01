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
from rim_jax.planning import gpus


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of one chip; the network's count one direction, all links together."""
  hbm_gib: float
  flops_per_sec: float  # bf16, dense
  hbm_bytes_per_sec: float
  ici_bytes_per_sec: float  # GPUs: over NVLink
  dcn_bytes_per_sec: float  # to other slices; GPUs: to other nodes; 0: not published
  cores: int = 1  # that JAX presents as devices of their own, each with its part of all the above
  cache_bytes: float = 0.0  # of GPUs: between HBM and all multiprocessors


# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in 2026: peak compute, HBM
# capacity and bandwidth, and half of the bidirectional ICI bandwidth per chip (v4: 2,400 Gbps as
# published); DCN from the bandwidth per chip (v5p: 50 Gbps, tpu7x: 100) or per pod of 256 (v5e: 6.4
# Tbps, v6e: 25.6 Tbps).
CHIPS = {
    'v4': Chip(32, 275e12, 1228e9, 300e9, 0),
    'v5e': Chip(16, 197e12, 819e9, 200e9, 3.125e9),
    'v5p': Chip(95, 459e12, 2765e9, 600e9, 6.25e9),
    'v6e': Chip(32, 918e12, 1638e9, 400e9, 12.5e9),
    'tpu7x': Chip(192, 2307e12, 7380e9, 600e9, 12.5e9, cores=2),
}

# Source: NVIDIA's data sheets of the SXM forms: dense bf16 on tensor cores, and half of NVLink's
# bidirectional bandwidth; memory as in gpus.py. Network: of DGX A100 (8 ports of 200 Gb/s for 8
# GPUs) and of DGX H100, H200 and B200 (8 of 400 Gb/s); other nodes may have less.
GPU_CHIPS = {name: Chip(gpu.memory_bytes / 2**30, flops, gpu.bytes_per_sec, link, network,
                        cache_bytes=gpu.cache_bytes)
             for (name, gpu), (flops, link, network) in zip(gpus.GPUS.items(), (
                 (312e12, 300e9, 25e9), (989e12, 450e9, 50e9), (989e12, 450e9, 50e9),
                 (2250e12, 900e9, 50e9)), strict=True)}
# What JAX takes of a card before a program runs, unless XLA_CLIENT_MEM_FRACTION says more.
# Source: docs.jax.dev, "GPU memory allocation".
PREALLOCATED = 0.75
# Of a TPU chip's memory, what a plan leaves: the compiler keeps a quarter of a GiB, and while it
# generates code, which a plan does not wait for, it adds more: 0.7 and 0.9 GiB to 8 where that was
# waited for (docs/hardware.md).
LEFT_GIB = 1.25


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
  rates = {k: chip.flops_per_sec for k, chip in (CHIPS | GPU_CHIPS).items()}
  if kind not in rates or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', size or '1'):
    raise UserError(f'--hardware={name}: is not KIND or KIND:SIZE, e.g. v5e:2x4 or h100:8; kinds: '
                    f'{", ".join(rates)}')
  count = math.prod(map(int, (size or '1').split('x')))
  return Peak(name, count, count * rates[kind])


@dataclasses.dataclass(frozen=True)
class Machine:
  """A topology, its devices slice by slice, and the rates of one device."""
  name: str
  num_slices: int
  devices: list
  chip: Chip
  cores: int = 1  # devices a chip

  @property
  def is_gpu(self):
    return self.devices[0].platform == 'gpu'

  @property
  def is_tpu(self):
    return self.devices[0].platform == 'tpu'

  @property
  def platform(self) -> str:
    """That programs are lowered for."""
    return 'cuda' if self.is_gpu else 'tpu'

  @property
  def links(self) -> tuple[str, str]:
    """What the network within a slice or a node is called, and that between them."""
    return ('nvlink', 'network') if self.is_gpu else ('ici', 'dcn')

  @property
  def num_chips(self):
    return len(self.devices) // self.cores

  @property
  def usable_gib(self) -> float:
    """What a program can have of a device's memory."""
    if self.is_gpu:
      return self.chip.hbm_gib * PREALLOCATED
    return self.chip.hbm_gib - (LEFT_GIB / self.cores if self.is_tpu else 0)


def make_machine(topology: str, num_slices: int = 1) -> Machine:
  """The machine of a name such as 'v5e:4x4', 'h100:8' or, two nodes of eight, 'h100:2x8'.

  Raises: UserError for one that is unknown, and where what compiles for it is not installed.
  """
  kind, _, size = topology.partition(':')
  form = r'\d+(x\d+)?' if kind in GPU_CHIPS else r'\d+(x\d+)+'
  if kind not in CHIPS | GPU_CHIPS or not re.fullmatch(form, size):
    raise UserError(f"--topology={topology!r} is not KIND:SIZE, e.g. v5e:4x4, v5p:2x2x2, h100:8 "
                    f"or, two nodes of eight, h100:2x8; kinds: {', '.join(CHIPS | GPU_CHIPS)}")
  if kind in GPU_CHIPS:
    return _make_gpus(topology, kind, size, num_slices)
  chip = CHIPS[kind]
  if num_slices < 1 or (num_slices > 1 and not chip.dcn_bytes_per_sec):
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
                    '2x2, 2x4, 4x4, 8x8, 16x16; v4, v5p and tpu7x 2x2x1, 2x2x2, 4x4x4') from None
  return Machine(topology, num_slices, found.devices, _divide(chip), chip.cores)


def _divide(chip: Chip) -> Chip:
  """The rates of one of a chip's devices."""
  rates = dataclasses.astuple(chip)[:-1]
  return Chip(*(rate / chip.cores for rate in rates))


def _make_gpus(topology, kind, size, num_slices):
  if num_slices != 1:
    raise UserError(f'--num_slices={num_slices}: is for TPUs; two nodes of eight GPUs are '
                    f'--topology={kind}:2x8')
  num_hosts, num_gpus = map(int, size.split('x')) if 'x' in size else (1, int(size))
  if not num_hosts * num_gpus:
    raise UserError(f'--topology={topology}: has no GPU')
  return Machine(topology, 1, gpus.make_devices(kind, num_hosts, num_gpus), GPU_CHIPS[kind])


def make_mesh(config: MeshConfig, machine: Machine):
  """Raises: UserError where the mesh does not fill the machine, or mesh.slice is not its slices."""
  try:
    return sharding.make_mesh(config, machine.devices)
  except UserError as e:
    raise UserError(str(e).replace('devices here', f'devices of {machine.name}' + (
        f' x {machine.num_slices} slices' if machine.num_slices > 1 else ''))) from None
