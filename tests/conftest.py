"""Eight fake CPU devices for every test, no silent rank promotion, compilations kept, few figures.

What is drawn at random (hypothesis) is the same in every run. Settings stand in the environment,
so that the processes that tests start have them too.
"""

import gc
from importlib import metadata
import os
import pathlib
import tempfile

# Without these emitters, which later versions cannot do without, compiling takes half the time, and
# in one piece a tenth less.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8',
    '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
    if metadata.version('jaxlib') < '0.11' else '']).strip()
# Eight devices share one pool of, else, eight threads. A program may run two all-reduces at a time,
# and each waits in a thread of its own: with none left for the last device, all wait for ever.
os.environ['PJRT_NPROC'] = '64'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
# Compiling is most of the time, and tiny networks need no optimised code.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# Many tests compile the same program again; keyed by program and versions, a kept one is the same.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
    pathlib.Path(tempfile.gettempdir()) / f'rim_jax_tests_{os.getuid()}')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import hypothesis
import jax
import markupsafe
import pytest

from rim_jax.report import figures

jax.config.update('jax_numpy_rank_promotion', 'raise')

# Of what tracing and compiling make little is garbage, and all of it is looked at again and again.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish():
  gc.freeze()


hypothesis.settings.register_profile('same', derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile('same')


@pytest.fixture
def use_devices(monkeypatch):
  """Makes the program see only the first n devices: `use_devices(1)`."""
  everything = jax.devices()

  def use(count):
    monkeypatch.setattr(jax, 'devices', lambda: everything[:count])
    return everything[:count]
  return use


def leave_blank(figure, caption, head, rows):
  """A figure that is not rendered, which takes a quarter of a second; with its caption and data."""
  return figures.Figure(caption, markupsafe.Markup('<svg></svg>'), b'blank', tuple(head),
                        tuple(map(tuple, rows)))


render, figures.finish = figures.finish, leave_blank


@pytest.fixture
def drawn_figures(monkeypatch):
  """Figures are rendered, as they are outside of tests."""
  monkeypatch.setattr(figures, 'finish', render)
