"""How long an answer takes at least on a machine that is not here: programs of decoding, compiled.

Direct answering, RiM, all of its readouts, Coconut and a written chain of thought, on one network:
the trunk alone, and from ids to the answer's first token, as `evaluation/latency.py` times them.
The time is a roofline, as a plan's is; on a GPU the launches, which it leaves out, stand beside it.
There it is told twice: as if the card had no cache, and as if small arrays stayed in it.
"""

import dataclasses
import functools
import types

import jax

from rim_jax import methods
from rim_jax.config import Config, MeshConfig
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, latency
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import source
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning.machines import make_machine
from rim_jax.planning.program import compile_apart, compile_lowered
from rim_jax.runtime import hlo
from rim_jax.training import step as step_lib

PARTS = ('prefill', 'first_token')
BATCH_SIZES = (1, 32)
# An array between two kernels that takes a quarter of the cache at most is taken to stay there.
_CACHE_SHARE = 0.25


@functools.lru_cache(maxsize=1)  # each program is lowered of it, a TPU's in a process of its own
def _make_case(topology: str, config: Config):
  """(the machine, a network on one of its devices, a question, every way to answer it)."""
  machine = make_machine(topology)
  mesh = sharding.make_mesh(MeshConfig(1, 1, 1), machine.devices[:1])
  vocab_size = compile_lib.get_vocab_size(config)
  program = step_lib.make_program(config, vocab_size, 1, mesh)
  encoded, template = typical_lib.make_typical_record(config)
  codec = source.Codec(types.SimpleNamespace(vocab_size=vocab_size), template, config, vocab_size,
                       methods.get_method(config).layout)
  network = Network(program.graphdef, program.abstract[0].params, program.abstract[1], config,
                    codec, mesh)
  num_chain = sum(len(step) + len(template.step_separator) for step in encoded.steps)
  return machine, network, encoded.question, _list_kinds(
      config, tuple(template.answer_prefix), num_chain + len(template.answer_prefix),
      config.coconut.num_stages * config.coconut.thoughts_per_step)


def _list_kinds(config: Config, prefix: tuple, num_chain: int, num_thoughts: int
               ) -> list[tuple[str, Config, latency.Writing]]:
  """(name, config, what it writes) of every way to answer, on one network of a method with blocks.

  Args:
    num_chain: tokens of a written chain up to the answer's first.
  """
  blocks = tuple(range(1, config.layout.num_blocks + 1))
  read = functools.partial(latency.Writing, prefix=prefix, num_blocks=len(blocks))
  coconut = dataclasses.replace(config, method='coconut_stage', layout=dataclasses.replace(
      config.layout, num_blocks=1, block_tokens=num_thoughts, skip_steps=-1))
  return [('direct', config, latency.Writing(prefix)), ('rim', config, read(blocks=blocks[-1:])),
          ('rim_all', config, read(blocks=blocks)),
          ('coconut', coconut, latency.Writing(prefix, 1, (1,))),
          ('cot', config, latency.Writing(num_chain=num_chain))]


def plan_latency(config: Config, topology: str, say, sizes=BATCH_SIZES) -> list[dict]:
  """An entry for each way to answer and batch size, as JSON has it, on one device of a machine.

  Raises: UserError for a method without memory blocks, or that does not read them once, and as
    `make_machine` does.
  """
  config = stages_lib.make_stages(config)[-1][1]
  fault = ('has no memory blocks' if not config.facts.has_memory
           else f'reads its blocks {config.loop.num_passes} times' if config.loop.num_passes > 1
           else '')
  if fault:
    raise UserError(f'--latency: it compares direct answering, RiM, Coconut and a written chain on '
                    f'one network of RiM, and method={config.method} {fault}; use '
                    '--config=configs/rim.py:gpt2, or time every method with bench/latency.py')
  *_, question, kinds = _make_case(topology, config)
  entries = []
  for size in sizes:
    of_size = []  # the first is direct answering
    for number, (name, *_) in enumerate(kinds):
      say(f'{name}, batch {size}: compiling')
      of_size.append({'method': name, 'batch': size, 'question_tokens': len(question)}
                     | _measure(topology, config, number, size))
    for entry in of_size:
      for part in PARTS:
        for secs, ratio in (('secs', 'ratio'), ('cached_secs', 'cached_ratio')):
          mine, theirs = entry[part][secs], of_size[0][part][secs]
          entry[part][ratio] = mine / theirs if mine and theirs else None
    entries += of_size
  return entries


def _make_parts(topology: str, config: Config, number: int, size: int):
  """(machine, network, its programs, trunks as shapes) of one way to answer so many questions."""
  machine, network, question, kinds = _make_case(topology, config)
  _, own, writing = kinds[number]
  network = dataclasses.replace(network, config=own)
  trunks = decode.make_trunks([question] * size, writing.num_blocks, None, size, own,
                              network.codec.memory_start)
  at = sharding.get_batch_sharding(network.mesh)
  return machine, network, latency.make_parts(network, writing), jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), trunks)


def _lower(topology: str, config: Config, number: int, size: int, name: str):
  machine, network, parts, trunks = _make_parts(topology, config, number, size)
  with jax.set_mesh(network.mesh):
    return parts[name].program.trace(*network.arrays, parts[name].static, trunks).lower(
        lowering_platforms=(machine.platform,))


def _measure(topology: str, config: Config, number: int, size: int) -> dict:
  machine, _, parts, trunks = _make_parts(topology, config, number, size)
  found: dict = {'trunk_tokens': trunks.tokens.shape[1]}
  for name in PARTS:
    part = parts[name]
    text = (compile_apart(_lower, topology, config, number, size, name) if machine.is_tpu else
            compile_lowered(_lower(topology, config, number, size, name))).as_text()
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
