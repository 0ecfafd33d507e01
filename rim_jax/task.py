"""What a run stands on before it has a state: data, codec, mesh, pretrained model."""

import dataclasses

import jax

from rim_jax import methods
from rim_jax.config import Config
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
  base = families.get_folder(config.model) if config.model.init_from else None
  base = base and dataclasses.replace(weights.open_base(base),
                                      origin=families.get_origin(config.model))
  tokenizer = tokenizer_lib.load_tokenizer(config.tokenizer)
  codec = methods.make_codec(config, tokenizer)
  if not with_data:
    return Task(config, None, codec, mesh, base)
  dataset = hosts.lead_first(lambda: datasets.load_dataset(config.data, say=say))
  for note in dataset.notes:
    say(note)
  return Task(config, dataset, codec, mesh, base)
