"""What a run stands on before it has a state: data, codec, mesh, pretrained model."""

import dataclasses
import hashlib
import pathlib

import jax

from rim_jax import methods
from rim_jax.config import PATH_KEYS, Config, flatten
from rim_jax.data import datasets
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.model import sharding
from rim_jax.packing import source as source_lib
from rim_jax.pretrained import families, weights
from rim_jax.runtime import hosts


@dataclasses.dataclass(frozen=True)
class Task:
  """What whoever trains, evaluates or exports a run is given."""
  config: Config
  data: datasets.Dataset | None  # None: nothing of it is read, to answer other questions
  codec: source_lib.Codec
  mesh: jax.sharding.Mesh
  base: weights.Base | None  # the pretrained model, where there is one

  @property
  def dataset(self) -> datasets.Dataset:
    assert self.data is not None  # who asks has had it loaded
    return self.data

  @property
  def vocab_size(self):
    return self.codec.memory_start


def make_task(config: Config, say=print, with_data: bool = True) -> Task:
  """Loads data and tokenizer and makes the mesh.

  Args:
    with_data: False where none of the run's own records are asked for.
  Raises: UserError for what is wrong with any of them.
  """
  mesh = sharding.make_mesh(config.mesh)
  base, codec = hosts.together(lambda: _open_model(config))
  dataset = None
  if with_data:
    dataset = hosts.lead_first(lambda: datasets.load_dataset(config.data, say=say))
    for note in dataset.notes:
      say(note)
  task = Task(config, dataset, codec, mesh, base)
  if jax.process_count() > 1:
    hosts.check_alike(_list_parts(task))
  return task


def _open_model(config: Config):
  """(the pretrained model, where there is one, the codec)."""
  base = families.get_folder(config.model) if config.model.init_from else None
  base = base and dataclasses.replace(weights.open_base(base),
                                      origin=families.get_origin(config.model))
  return base, methods.make_codec(config, tokenizer_lib.load_tokenizer(config.tokenizer))


def _list_parts(task: Task) -> dict[str, str]:
  """What all processes of a run must have alike: its name -> what it is, or a hash of it."""
  sources = sorted(pathlib.Path(__file__).parent.rglob('*.py'))
  code = hashlib.sha256(b''.join(path.read_bytes() for path in sources))
  # The same files may lie in other places.
  keys = {key: repr(value) for key, value in flatten(task.config).items() if key not in PATH_KEYS}
  return {'code of rim_jax': code.hexdigest(), 'version of jax': jax.__version__, **keys,
          'data': task.data.fingerprint if task.data else '',
          'tokenizer': task.codec.tokenizer.fingerprint,
          'pretrained model': task.base.fingerprint if task.base else ''}
