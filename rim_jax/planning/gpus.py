"""NVIDIA GPUs that are not here: what JAX's compiler has to know of one to compile for it.

Needs the wheels of JAX's CUDA plugin (the extra `plan-gpu`), and neither a GPU, a driver nor a
toolkit. The compiler never refuses a program for its memory, tunes nothing, and takes default tiles
for matrix products: kernels and temporaries of a real run differ from those of its program.
"""

import dataclasses

import jax
from jax.experimental import topologies

from rim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
  """One card of the SXM form.

  Source: openxla/xla, xla/backends/gpu/target_config/specs, read in 2026.
  """
  name: str
  capability: int  # the major number
  multiprocessors: int
  memory_bytes: int
  bytes_per_sec: int
  cache_bytes: int
  clock_ghz: float
  shared_bytes: int = 233472  # of a multiprocessor; a block may have 1,024 fewer
  units: int = 128  # of float32 a multiprocessor
  links: int = 18
  features: str = 'ACCELERATED_FEATURES'  # wgmma and its like


GPUS = {
    'a100': Gpu('NVIDIA A100-SXM4-80GB', 8, 108, 85100068864, 2039040000000, 41943040, 1.41,
                167936, 64, 12, 'NONE'),
    'h100': Gpu('NVIDIA H100 80GB HBM3', 9, 132, 84942979072, 3352320000000, 52428800, 1.98),
    'h200': Gpu('NVIDIA H200 141GB HBM3e', 9, 132, 151397597184, 4800000000000, 52428800, 1.98),
    'b200': Gpu('NVIDIA B200', 10, 148, 191514411008, 7672320000000, 132644864, 1.965),
}


def write_target(gpu: Gpu) -> str:
  """The card as the compiler reads it, a GpuTargetConfigProto in text form."""
  return f'''
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block_optin: {gpu.shared_bytes - 1024}
  threads_per_core_limit: 2048 core_count: {gpu.multiprocessors} fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {gpu.bytes_per_sec} l2_cache_size: {gpu.cache_bytes}
  clock_rate_ghz: {gpu.clock_ghz} device_memory_size: {gpu.memory_bytes}
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {gpu.features} }}
  device_interconnect_info {{ active_links: {gpu.links} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 28 patch: 1 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
'''


def make_devices(kind: str, num_hosts: int = 1, num_gpus: int = 1) -> list:
  """Devices to compile for: `num_gpus` of a kind on each of `num_hosts`.

  Raises: UserError without the plugin.
  """
  try:
    return topologies.get_topology_desc(
        platform='cuda', target_config=write_target(GPUS[kind]),
        topology=f'1x{num_hosts}x{num_gpus}').devices
  except NotImplementedError as e:
    if 'not implemented for cuda' not in str(e):
      raise
    raise UserError("compiling for GPUs needs JAX's CUDA plugin, which is not installed; pip "
                    f"install -e '.[plan-gpu]' jax-cuda13-plugin=={jax.__version__} (132 MB; no "
                    'GPU is needed)') from None
