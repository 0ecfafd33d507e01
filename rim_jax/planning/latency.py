"""How long an answer takes at least on a machine that is not here: programs of decoding, compiled.

Direct answering, RiM, all of its readouts, Coconut and a written chain of thought, on one network:
the trunk alone, and from ids to the answer's first token, as `evaluation/latency.py` times them.
The time is a roofline, as a plan's is; on a GPU the launches, which it leaves out, stand beside it.
There it is told twice: as if the card had no cache, and as if small arrays stayed in it.
"""

import types

import jax

from rim_jax import methods
from rim_jax.config import Config, MeshConfig
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError
from rim_jax.evaluation import latency
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import source
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning.machines import Machine, make_machine
from rim_jax.runtime import hlo
from rim_jax.training import step as step_lib

PARTS = ('prefill', 'first_token')
BATCH_SIZES = (1, 32)
# An array between two kernels that takes a quarter of the cache at most is taken to stay there.
_CACHE_SHARE = 0.25


def plan_latency(config: Config, topology: str, say, sizes=BATCH_SIZES) -> list[dict]:
  """An entry for each way to answer and batch size, as JSON has it, on one device of a machine.

  Raises: UserError for a method without memory blocks, and as `make_machine` does.
  """
  config = stages_lib.make_stages(config)[-1][1]
  if not config.facts.has_memory:
    raise UserError(f'--latency: method={config.method} has no memory blocks to compare with; use '
                    'a recipe of RiM, e.g. --config=configs/rim.py:gpt2')
  machine = make_machine(topology)
  mesh = sharding.make_mesh(MeshConfig(1, 1, 1), machine.devices[:1])
  vocab_size = compile_lib.get_vocab_size(config)
  program = step_lib.make_program(config, vocab_size, 1, mesh)
  encoded, template = typical_lib.make_typical_record(config)
  num_chain = sum(len(step) + len(template.step_separator) for step in encoded.steps)
  kinds = latency.list_kinds(
      config, tuple(template.answer_prefix), num_chain + len(template.answer_prefix), 1,
      config.coconut.num_stages * config.coconut.thoughts_per_step)
  entries = []
  for size in sizes:
    of_size = []  # the first is direct answering
    for name, own, writing in kinds:
      say(f'{name}, batch {size}: compiling')
      network = Network(
          program.graphdef, program.abstract[0].params, program.abstract[1], own, source.Codec(
              types.SimpleNamespace(vocab_size=vocab_size), template, own, vocab_size,
              methods.get_method(own).layout), mesh)
      of_size.append({'method': name, 'batch': size, 'question_tokens': len(encoded.question)}
                     | _measure(network, writing, [encoded.question] * size, machine))
    for entry in of_size:
      for part in PARTS:
        for secs, ratio in (('secs', 'ratio'), ('cached_secs', 'cached_ratio')):
          mine, theirs = entry[part][secs], of_size[0][part][secs]
          entry[part][ratio] = mine / theirs if mine and theirs else None
    entries += of_size
  return entries


def _measure(network, writing, questions, machine: Machine):
  trunks = latency.make_trunks(
      network.config, network.codec.memory_start, questions, writing.num_blocks)
  at = sharding.get_batch_sharding(network.mesh)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), trunks)
  parts = latency.make_parts(network, writing)
  found: dict = {'trunk_tokens': trunks.tokens.shape[1]}
  for name in PARTS:
    part = parts[name]
    with jax.set_mesh(network.mesh):
      traced = part.program.trace(*network.arrays, part.static, abstract)
      text = compile_lib.compile_lowered(
          traced.lower(lowering_platforms=(machine.platform,))).as_text()
    costs = hlo.compute_costs(text, unknown_trips=part.num_turns)
    cached = hlo.compute_costs(text, unknown_trips=part.num_turns,
                               cached_bytes=machine.chip.cache_bytes * _CACHE_SHARE)
    secs, cached_secs = (compile_lib.compute_roofline(c, machine.chip, machine.links)
                         for c in (costs, cached))
    found[name] = {
        'launches': costs.launches, 'hbm_bytes': costs.hbm_bytes, 'flops': costs.flops,
        'unknown_kernels': list(costs.unknown_kernels), 'turns': costs.unknown_turns,
        'compute_secs': secs['compute'], 'hbm_secs': secs['hbm'],
        'cached_hbm_bytes': cached.hbm_bytes, 'cached_hbm_secs': cached_secs['hbm'],
        'secs': None if costs.unknown_kernels else secs['step'],
        'cached_secs': None if costs.unknown_kernels else cached_secs['step']}
  return found
