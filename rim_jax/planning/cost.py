"""What a run would cost, before it starts: examples, FLOPs, hours on a machine of published rates.

Arithmetic on shapes and on a typical record (`compile.compute_model_flops`,
`typical.estimate_rows`): no attention, nothing computed twice and no evaluation. The hours rest on
a share of the peak that is assumed, and told.
"""

import dataclasses
import functools
import os

import jax

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import Config
from rim_jax.config import stages as stages_lib
from rim_jax.data import datasets, hub
from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import machines
from rim_jax.pretrained import families
from rim_jax.runtime import storage
from rim_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one run, all stages; None for what cannot be known here, and `why` not."""
  num_examples: float | None
  flops: float | None
  why: str = ''
  faults: tuple[str, ...] = ()  # of `why`: what would end the run, too


def estimate(config: Config) -> Estimate:
  """Examples and FLOPs of a run. Needs no data file and no weights; says what it lacks."""
  try:
    config = families.resolve_shape(config)
    stages = [stage for _, stage in stages_lib.make_stages(config)]
    per_example = [_compute_flops(dataclasses.replace(stage, seed=0)) for stage in stages]
    why = ''
  except UserError as e:  # a model or a tokenizer that is not here
    per_example, why = None, str(e).splitlines()[0]
  stages = [stage.train for _, stage in stages_lib.make_stages(config)]
  size, lacks = 0, ''
  if any(not train.num_examples for train in stages):
    size, lacks = _count_records(config.data)
  if size is None:
    given = config.data.dir and not hub.is_name(config.data.dir)  # the rest is fetched by a run
    return Estimate(None, None, '; '.join(filter(None, (lacks, why))),
                    tuple(filter(None, (given and lacks, why))))
  examples = [train.num_examples or train.num_epochs * size for train in stages]
  flops = sum(n * f for n, f in zip(examples, per_example)) if per_example else None
  return Estimate(sum(examples), flops, why, tuple(filter(None, (why,))))


@functools.lru_cache
def _compute_flops(config: Config) -> float:
  """FLOPs that a model needs for one example of a stage's budget."""
  rows = typical_lib.estimate_rows(
      config, methods.get_method(config).layout, config.train.num_micro_batches)
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, compile_lib.get_vocab_size(config), 1000, mesh)
  step = compile_lib.compute_model_flops(config, program, rows)
  return step / (config.train.batch_examples or rows.batch_rows * rows.limits.examples)


@functools.lru_cache
def _count_records(config) -> tuple[int | None, str]:
  """(training records, '') of a data set that is here or is drawn; (None, why) of others."""
  if config.source in ('chain', 'prosqa'):
    return getattr(config, config.source).num_train, ''
  if config.source == 'gsm8k_perturbed' and config.perturbed.total:
    return config.perturbed.total, ''
  if not config.dir or not os.path.exists(storage.expand(config.dir, 'data.dir')):
    return None, (f"the budget is in epochs of data that are not here (data.dir='{config.dir}')"
                  + '; name their directory' * bool(config.dir))
  try:
    return len(datasets.load_dataset(config, say=lambda line: None).splits['train']), ''
  except UserError as e:
    return None, str(e).splitlines()[0]


def describe(found: Estimate, machine: machines.Peak, utilization: float) -> str:
  """One line: examples, FLOPs, hours, or what is not known."""
  parts = [] if found.num_examples is None else [f'{found.num_examples:,.0f} examples']
  if found.flops is not None:
    hours = found.flops / (machine.flops_per_sec * utilization) / 3600
    parts += [f'{found.flops:.2e} FLOPs', '< 0.001 h' if hours < 0.001 else f'{hours:.3g} h']
  return ', '.join(parts) + (f' ({found.why})' if found.why and parts else found.why)
