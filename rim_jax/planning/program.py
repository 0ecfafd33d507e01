"""A program for a machine that is not here, compiled; a TPU's is read before its code is generated.

A TPU's compiler first decides what will run: what is fused, in which order, and where each array
stands in memory. A plan needs no more, and that takes seconds to minutes. Then it generates the
machine's code, which takes ten times as long. It writes down what it decided before it goes on, so
it compiles in a process of its own, which ends as soon as that is written.
"""

import collections
from collections.abc import Callable
import dataclasses
import multiprocessing
import os
import pathlib
import re
import tempfile
import threading
import time
import types

import jax

from rim_jax import reader
from rim_jax.errors import RunError

# Begun after the program and its allocations, so that these are whole once it is there. Versions
# differ in what they write before it: the report on memory comes before the program in some.
_LAST, _PROGRAM, _ALLOCATIONS = (f'*after_optimizations{end}.txt' for end in (
    '_after_buffer_assignment', '', '-buffer-assignment'))
_ALLOCATION = re.compile(r'^allocation \d+: size (\d+), (.*)', re.MULTILINE)
# Versions tell more than these, and in another order. HBM is color 0, where it is told.
_KIND = re.compile(r'\b(color(?= [1-9])|parameter|maybe-live-out|thread-local)\b')
_POLL_SECS = 0.2


class DoesNotFit(Exception):
  """There is no allocation; its arguments: why, and the GiB wanted, or None where nobody says."""


@dataclasses.dataclass(frozen=True)
class Program:
  """What a TPU's compiler decided, told as `jax.stages.Compiled` tells it."""
  text: str
  sizes: types.SimpleNamespace  # bytes of HBM, under the names that JAX gives them

  def as_text(self):
    return self.text

  def memory_analysis(self):
    return self.sizes


def find_needed_gib(message: str) -> float | None:
  """How much memory the compiler wanted, from its message that there is not so much."""
  found = re.search(r'(?:\(|[Uu]sed )([\d.]+)([KMG])(?:\) exceeds| of)', message)
  return float(found[1]) / {'K': 2**20, 'M': 2**10, 'G': 1}[found[2]] if found else None


def compile_lowered(lowered, options: dict | None = None):
  """A lowered program, compiled. Raises: DoesNotFit.

  A GPU's compiler that tunes nothing cannot cut some products into tiles of its own: then all of
  the program's products are cuBLAS's.
  """
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as e:
    message = ' '.join(str(e).split())
    if "Couldn't find output tile sizes" in message:
      return lowered.compile(compiler_options={'xla_gpu_enable_triton_gemm': False})
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    raise DoesNotFit(message[:300], find_needed_gib(message)) from None


def compile_apart(lower: Callable, *args) -> Program:
  """A program of a TPU, which `lower(*args)` gives lowered, as its compiler decided it.

  Args:
    lower: a function of a module; it and `args` are sent to another process.
  Raises: DoesNotFit; RuntimeError where the compiler fails otherwise; as `read_program` does.
  """
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  with tempfile.TemporaryDirectory() as folder:
    process = context.Process(
        target=_compile, daemon=True, args=(folder, sender, lower, args))
    process.start()
    try:
      while process.is_alive() and not list(pathlib.Path(folder).glob(_LAST)):
        time.sleep(_POLL_SECS)
    finally:
      process.kill()  # in the midst of its work: its compiler cannot be asked to stop
      process.join()
    told = '' if list(pathlib.Path(folder).glob(_LAST)) else (
        receiver.recv() if receiver.poll() else 'it was killed, perhaps for its memory')
    if not told:
      return read_program(pathlib.Path(folder))
  if isinstance(told, DoesNotFit):
    raise told
  raise RuntimeError(f'compiling failed: {told}')


def _compile(folder, sender, lower, args):
  """In a process of its own: compiles, and sends what was raised, or ''. Ends with who asked."""
  parent = multiprocessing.parent_process()
  if parent:
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
  jax.config.update('jax_enable_compilation_cache', False)  # of what it has, nothing is written
  try:
    compile_lowered(lower(*args), {'xla_dump_to': folder})
    sender.send('')
  except Exception as e:  # the process that asked raises it
    sender.send(e if isinstance(e, DoesNotFit) else f'{type(e).__name__}: {e}')


def read_program(folder: pathlib.Path) -> Program:
  """What a TPU's compiler has written of a program: its text, and its allocations in HBM.

  Raises: RunError where a part of it is missing: what it costs would be told wrong.
  """
  texts = {kind: reader.read_text(path, 'plan again') for kind in (_PROGRAM, _ALLOCATIONS)
           for path in sorted(folder.glob(kind), key=lambda path: path.stat().st_size)[-1:]}
  if _ALLOCATIONS not in texts or not texts.get(_PROGRAM, '').rstrip().endswith('}'):
    raise RunError('the compiler has not written all of the program; plan again, with '
                   'another version of libtpu if that repeats')
  sizes = collections.Counter()  # (is an argument, is of the output) -> bytes
  for size, told in _ALLOCATION.findall(texts[_ALLOCATIONS]):
    kinds = set(_KIND.findall(told))
    if not kinds & {'color', 'thread-local'}:  # of a core's own memory; of one fusion
      sizes['parameter' in kinds, 'maybe-live-out' in kinds] += int(size)
  alias = sizes[True, True]
  return Program(texts[_PROGRAM], types.SimpleNamespace(
      argument_size_in_bytes=sizes[True, False] + alias,
      output_size_in_bytes=sizes[False, True] + alias,
      alias_size_in_bytes=alias,  # of the output: what is written where an argument was
      temp_size_in_bytes=sizes[False, False], generated_code_size_in_bytes=0))  # there is none yet
