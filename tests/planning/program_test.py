"""Programs for machines that are not here: what is read of them, and that none is waited for."""

import multiprocessing
import os
import pathlib
import re
import time
import types

import jax
import jax.numpy as jnp
import pytest

from rim_jax.errors import RunError
from rim_jax.planning import program

# Of a v6e: a result that takes its argument's place, one of its own, and memory of three kinds.
ALLOCATIONS = '''BufferAssignment:
allocation 0: size 400, parameter 0, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
 value: <1 x @0> (size=400,offset=0): f32[100]{0:T(128)}
allocation 1: size 8000, parameter 1, shape |f32[2000]| at ShapeIndex {}:
allocation 2: size 16, output shape is |f32[4]|, maybe-live-out:
allocation 3: size 90000, color 1, preallocated-temp:
allocation 4: size 700, preallocated-temp:
 value: <3 y @0> (size=700,offset=0): f32[175]{0:T(128)}
allocation 5: size 33, thread-local:
allocation 6: size 50, constant:
'''


TEXT = 'HloModule jit_step\n\nENTRY %main {\n  ROOT %x = f32[] parameter(0)\n}\n\n'


def get_path(folder, end=''):
  return pathlib.Path(folder) / f'module_1.jit_step.after_optimizations{end}.txt'


def write_program(folder):
  for end, text in (('', TEXT), ('-buffer-assignment', ALLOCATIONS),
                    ('_after_buffer_assignment', '')):
    get_path(folder, end).write_text(text)


@pytest.mark.parametrize('more', ['', 'page 0, ', 'color 0, page 0, '])
def test_allocations_of_hbm_are_told_as_jax_tells_them(more, tmp_path, monkeypatch):
  """Also where a later version of the compiler says more of each."""
  monkeypatch.setitem(globals(), 'ALLOCATIONS', re.sub(
      r'(size \d+, )(?!color)(?=.*\n)', rf'\1{more}', ALLOCATIONS))
  write_program(tmp_path)
  found = program.read_program(tmp_path)
  assert found.as_text() == TEXT
  assert found.memory_analysis() == types.SimpleNamespace(
      argument_size_in_bytes=8400, output_size_in_bytes=416, alias_size_in_bytes=400,
      temp_size_in_bytes=750, generated_code_size_in_bytes=0)


@pytest.mark.parametrize('text', [None, '', TEXT[:30], TEXT.replace('}', '')])
def test_a_part_of_a_program_is_refused(text, tmp_path):
  """Its operations would be counted as if they were all."""
  write_program(tmp_path)
  get_path(tmp_path).unlink()
  if text is not None:
    get_path(tmp_path).write_text(text)
  with pytest.raises(RunError, match='not written all of the program; plan again'):
    program.read_program(tmp_path)


@pytest.fixture
def in_this_process(monkeypatch):
  """What runs in a process of its own runs in this one, to its end."""
  class Here:
    def __init__(self, target, daemon, args):
      self.start = lambda: target(*args)

    def is_alive(self):
      return False

    kill = join = is_alive

  class Context:
    Pipe = staticmethod(multiprocessing.Pipe)
  Context.Process = Here
  monkeypatch.setattr(program.multiprocessing, 'get_context', lambda _: Context)
  before = jax.config.jax_enable_compilation_cache
  yield
  jax.config.update('jax_enable_compilation_cache', before)


def lower_here(size):
  """A program of this machine's CPU that holds an array and returns a sum."""
  new = float(time.time_ns() % 10**6)  # or it would come from JAX's cache, and nothing be written
  return jax.jit(lambda x: (x + new, jnp.sin(x @ x).sum()), donate_argnums=0).lower(
      jax.ShapeDtypeStruct((size, size), jnp.float32))


def test_what_is_read_of_a_program_is_what_its_compilation_returns(in_this_process):
  found, whole = program.compile_apart(lower_here, 64), lower_here(64).compile()
  sizes = whole.memory_analysis()
  assert found.memory_analysis().argument_size_in_bytes == sizes.argument_size_in_bytes == 4 * 64**2
  assert found.memory_analysis().alias_size_in_bytes == sizes.alias_size_in_bytes == 4 * 64**2
  # The list of the results, a pointer each, is here a result too.
  assert 0 <= found.memory_analysis().output_size_in_bytes - sizes.output_size_in_bytes <= 16
  assert found.memory_analysis().temp_size_in_bytes >= 4 * 64**2
  assert 'ENTRY' in found.as_text() and 'f32[64,64]' in found.as_text()


class Endless:
  """Writes its program, and generates code without end; its number stands beside the program."""

  def __init__(self, told):
    self.told = told

  def compile(self, compiler_options):
    pathlib.Path(self.told).write_text(str(os.getpid()))
    write_program(compiler_options['xla_dump_to'])
    time.sleep(600)


class ReportFirst(Endless):
  """As later versions of libtpu: the report on memory is there before the program is."""

  def compile(self, compiler_options):
    folder = compiler_options['xla_dump_to']
    get_path(folder, '-memory-usage-report').write_text('all')
    time.sleep(0.5)
    with get_path(folder).open('w') as file:
      for part in (TEXT[:30], TEXT[30:]):
        file.write(part)
        file.flush()
        time.sleep(0.5)
    super().compile(compiler_options)


class Silent(Endless):
  """Decides without end."""

  def compile(self, compiler_options):
    pathlib.Path(self.told).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
def test_a_compilation_ends_with_who_asked_for_it(tmp_path):
  """Also with one that is killed: it would go on for minutes, on all cores."""
  told = tmp_path / 'pid'
  asking = multiprocessing.get_context('spawn').Process(
      target=program.compile_apart, args=(Silent, str(told)))
  asking.start()
  for _ in range(1200):
    if told.exists() and told.read_text():
      break
    time.sleep(0.1)
  compiling = int(told.read_text())
  asking.kill()
  asking.join()
  for _ in range(300):
    if not pathlib.Path(f'/proc/{compiling}').exists():
      return
    time.sleep(0.1)
  os.kill(compiling, 9)
  pytest.fail('it goes on')


def test_no_code_is_waited_for(tmp_path):
  found = program.compile_apart(Endless, str(tmp_path / 'pid'))
  assert found.as_text() == TEXT
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_a_program_is_read_when_it_is_whole(tmp_path):
  assert program.compile_apart(ReportFirst, str(tmp_path / 'pid')).as_text() == TEXT


class Refused:
  """What a compiler refuses."""

  def __init__(self, error):
    self.error = error

  def compile(self, compiler_options):
    raise self.error


def test_a_program_that_does_not_fit_is_told_to_who_asked(in_this_process):
  """And any other refusal ends in an error that says it."""
  with pytest.raises(program.DoesNotFit, match='18.2'):
    program.compile_apart(Refused, jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: Used 18.2G of 15.75G hbm.'))
  with pytest.raises(RuntimeError, match='compiling failed: ValueError: no such layout'):
    program.compile_apart(Refused, ValueError('no such layout'))


@pytest.mark.parametrize('message, needed', [
    ('total memory required for HLO temporaries (23.30G) exceeds available HBM (15.75G).', 23.3),
    ('Used 512.00M of 256.00M hbm. Exceeded', 0.5), ('no memory', None)])
def test_what_the_compiler_wanted_is_read(message, needed):
  assert program.find_needed_gib(message) == needed


def test_products_that_have_no_tiles_are_left_to_cublas():
  asked = []

  class Lowered:
    def compile(self, compiler_options=None):
      asked.append(compiler_options)
      if compiler_options is None:
        raise jax.errors.JaxRuntimeError(
            "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.56")
      return 'compiled'
  assert program.compile_lowered(Lowered()) == 'compiled'
  assert asked == [None, {'xla_gpu_enable_triton_gemm': False}]
