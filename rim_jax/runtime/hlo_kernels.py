"""FLOPs of what a compiled program calls by name: kernels of libraries, of Pallas and of Triton.

A call's FLOPs follow from its shapes and from what it says of itself. Counted are attention's
kernels (JAX's splash, this project's own, cuDNN's) and cuBLAS's products. A few names are known
to multiply nothing. Every other name is unknown, and whoever makes a claim of a time has to say so.
"""

import math
import re

from rim_jax import reader
from rim_jax.runtime.hlo_text import Instruction

# Products [t, k] x [k, c] of a kernel that visits tiles: scores and values; backward, the scores
# once more. They skip tiles in which nothing is visible.
_SPLASH = {'splash_mqa_fwd': 2, 'splash_mha_fwd': 2, 'splash_mqa_dq': 3, 'splash_mha_dq': 3,
           'splash_mqa_dkv': 4, 'splash_mha_dkv': 4}
_OWN = {'rim_attention_forward': 2, 'rim_attention_dq': 3, 'rim_attention_dkv': 4}
_FLOAT = ('bf16', 'f32', 'f16')
_NO_PRODUCTS = re.compile(
    r'AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound|GatherScatterIndicesBitpacked'
    r'|AsyncCollective(Start|Done)|PrepareAsyncCall(Start|Done)|Sharding|SPMD\w+|LayoutConstraint'
    r'|X64\w+|PadToStatic|SliceToDynamic|MoveTo(Host|Device)|annotate_device_placement'
    r'|SliceId|ZeroCrop|(__gpu\$)?TopK|__cub\$\w+|xla\.gpu\.ext\.cub_\w+|cu_threefry2x32(_ffi)?|__nop')


def find_target(i: Instruction) -> str:
  """What a custom call calls."""
  return i.find(r'custom_call_target="([^"]*)"') or ''


def _find_path(i: Instruction) -> str:
  """Where in the program a call stands, '' where it does not say."""
  return i.find(r'op_name="([^"]*)"') or ''


def find_name(i: Instruction) -> str:
  """How to name a call to people: its target, and where in the program it stands."""
  path = _find_path(i)
  return find_target(i) + (f" ({'/'.join(path.split('/')[-2:])})" if path else '')


def count_flops(i: Instruction, computation, visible: float) -> float | None:
  """FLOPs of one custom call, None where they are not known.

  Args:
    visible: which part of all pairs of attention stands in tiles that are visited.
  """
  target = find_target(i)
  if target.startswith('__cublas$'):
    return _count_gemm(i, computation)
  if target.startswith('__cudnn$fmha'):
    return _count_cudnn_attention(i, computation)
  path = _find_path(i)
  arrays = [a for o in i.operands if o in computation for a in computation[o].arrays[:1]
            if a.dtype in _FLOAT]
  for names, keys_at in ((_SPLASH, -2), (_OWN, 1)):  # q [.., t, k], k [.., c, k]; [b, t, h, k]
    products = next((n for name, n in names.items() if name in path), None)
    if products and len(arrays) > 1:
      return 2.0 * products * math.prod(arrays[0].shape) * arrays[1].shape[keys_at] * visible
  return 0.0 if _NO_PRODUCTS.fullmatch(target) else None


def _count_gemm(i, computation):
  """cuBLAS: its result comes first, and a workspace behind it."""
  summed = i.find(r'"lhs_contracting_dimensions":(\[[^\]]*\])')
  if not summed:
    return None
  left = computation[i.operands[0]].arrays[0].shape
  return 2.0 * math.prod(i.arrays[0].shape) * math.prod(
      left[int(d)] for d in reader.parse_json(summed))


def _count_cudnn_attention(i, computation):
  """cuDNN: the shape of all scores, [b, h, t, c]; a mask skips none of them."""
  scores = i.find(r'"intermediate_tensor_shape":.*?"dimensions":\s*(\[[^\]]*\])')
  if not scores:
    return None
  products = 5 if find_target(i).endswith('Backward') else 2  # scores once more, and four gradients
  head_dim = computation[i.operands[0]].arrays[0].shape[-1]
  return 2.0 * products * math.prod(map(int, reader.parse_json(scores))) * head_dim
