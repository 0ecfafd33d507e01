"""How long an answer takes: one harness for every method, on the programs that decode it.

Timed are four programs of each method, warm, with what they wait for:

  prefill      the trunk: question, and blocks where there are any, of Coconut with its thoughts,
               one after the other; and the forced prefix of what is read, in the same pass
  first_token  from ids to the answer's first token: prefill, one token; a written chain of thought
               is decoded first, token by token
  decode       from a prefill that is there to the end of the answer
  full         from ids to the end of the answer

How many tokens are generated is forced (no eos ends a readout), so that every method, trained or
not, writes as many as it says. Runs are interleaved, A B A B ..., and a ratio is the median of the
pairs' ratios: a machine that slows down slows both.
"""

from collections.abc import Callable
import dataclasses
import statistics
import time

import jax

from rim_jax import reader
from rim_jax.config import Config
from rim_jax.config.methods import DIRECT
from rim_jax.errors import UserError
from rim_jax.evaluation import decode as decode_lib
from rim_jax.evaluation import scores
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import layout as layout_lib
from rim_jax.results import values
from rim_jax.runtime import status

NUM_WARM = 2  # the first compiles, the second warms
PARTS = ('prefill', 'first_token', 'decode', 'full')
_NO_EOS = -1  # no id: nothing that is generated ends a readout


@dataclasses.dataclass(frozen=True)
class Timed:
  """What one way to answer a batch of questions consists of.

  Another way of decoding plugs in with programs of its own: `parts` are called and waited for.
  """
  name: str
  parts: dict[str, Callable]  # some of PARTS
  facts: dict  # what stands beside every figure


def time_runs(runs: dict[str, Callable], num_runs: int, clock=time.perf_counter, say=None
              ) -> dict[str, list[float]]:
  """Milliseconds of every run, after NUM_WARM that are not counted, in turn: A B A B ...

  Args:
    say: is told how far it is, where that takes long.
  """
  tick = status.Ticker('timing', NUM_WARM + num_runs, 'rounds', say)
  times = {name: [] for name in runs}
  for nth in range(NUM_WARM + num_runs):
    for name, run in runs.items():
      start = clock()
      jax.block_until_ready(run())
      times[name].append(1000 * (clock() - start))
    tick(nth + 1)
  return {name: spent[NUM_WARM:] for name, spent in times.items()}


def summarize(values) -> dict:
  """Median and quartiles of some numbers, and how many there are."""
  low, middle, high = statistics.quantiles(values, n=4, method='inclusive') if (
      len(values) > 1) else values * 3
  return {'median': middle, 'q1': low, 'q3': high, 'runs': len(values)}


def measure(timed: list[Timed], num_runs: int, base: str = DIRECT.name,
            clock=time.perf_counter, say=None) -> list[dict]:
  """Times some ways to answer against each other in this process: `describe` of `time_runs`."""
  runs = {(t.name, part): run for t in timed for part, run in t.parts.items()}
  return describe(timed, time_runs(runs, num_runs, clock, say), base)


def describe(timed: list[Timed], times: dict, base: str = DIRECT.name) -> list[dict]:
  """What was found of each.

  Args:
    times: (name, part) -> milliseconds of its runs.
    base: the one that ratios are to, where it is among them.
  Returns: an entry each: its facts, `<part>_ms` (median, q1, q3, runs), and `<part>_ratio` to base.
  """
  return [{'method': t.name, **t.facts,
           **{f'{part}_ms': summarize(times[t.name, part]) for part in t.parts},
           **{f'{part}_ratio': summarize([
               a / b for a, b in zip(times[t.name, part], times[base, part], strict=True)])
              for part in t.parts if (base, part) in times}} for t in timed]


# ---- The programs ----


@dataclasses.dataclass(frozen=True)
class Writing:
  """What a method writes for a question, however it was trained."""
  prefix: tuple[int, ...] = ()  # ids forced before the answer
  num_blocks: int = 0
  blocks: tuple[int, ...] = (0,)  # which readouts are decoded, together
  num_chain: int = 0  # tokens generated before the answer's first one, one by one
  num_answer: int = 1  # tokens of the answer, eos included


@dataclasses.dataclass(frozen=True)
class Part:
  """A timed program: called on a network's arrays, `static`, trunks and, of `decode`, a prefill."""
  program: Callable
  static: decode_lib.Readouts
  num_turns: int  # of its one loop


@dataclasses.dataclass(frozen=True)
class Bound:
  """A part and all that it is called on."""
  part: Part
  args: tuple
  mesh: jax.sharding.Mesh

  def __call__(self):
    with jax.set_mesh(self.mesh):
      return self.part.program(*self.args)


def make_parts(network: Network, writing: Writing) -> dict[str, Part]:
  """The programs of PARTS; nothing is run."""
  until_first, until_end = writing.num_chain + 1, writing.num_chain + writing.num_answer
  to_first, to_end = (decode_lib.Readouts(
      tuple(writing.prefix), writing.blocks, count, _NO_EOS, network.codec.tokenizer.vocab_size)
                      for count in (until_first, until_end))
  everywhere = sharding.get_replicated(network.mesh)
  whole = network.jit(decode_lib.decode, 1, everywhere)

  def prefill(model, config, readouts, trunks):
    return decode_lib.prefill(model, config, trunks, readouts.blocks, readouts.prefix)
  return {'prefill': Part(network.jit(prefill, 1), to_end, 0),
          'first_token': Part(whole, to_first, until_first - 1),
          'decode': Part(network.jit(decode_lib.read, 1, everywhere), to_end, until_end - 1),
          'full': Part(whole, to_end, until_end - 1)}


def make_timed(name: str, network: Network, questions, writing: Writing, parts: tuple = PARTS
               ) -> Timed:
  """What `decode.decode` does for a batch of encoded questions.

  Args:
    parts: what of it is timed.
  """
  config, codec, mesh = network.config, network.codec, network.mesh
  num_blocks = writing.num_blocks
  trunks = sharding.place_batch(decode_lib.make_trunks(
      questions, num_blocks, None, len(questions), config, codec.memory_start), mesh)
  made = make_parts(network, writing)

  def bind(part, *more):
    return Bound(made[part], (*network.arrays, made[part].static, trunks, *more), mesh)
  bound = {part: bind(part, *([bind('prefill')()] if part == 'decode' else [])) for part in parts}
  return Timed(name, bound, {
      'device': jax.devices()[0].device_kind, 'num_devices': mesh.size,
      'dtype': config.model.compute_dtype, 'batch': len(questions),
      'prompt_tokens': max(map(len, questions)), 'trunk_tokens': trunks.tokens.shape[1],
      'num_blocks': num_blocks, 'num_readouts': len(writing.blocks),
      'num_passes': count_passes(config, num_blocks),
      'num_thoughts': num_blocks * config.layout.block_tokens * config.has_thoughts,
      'prefix_tokens': len(writing.prefix), 'generated_to_first': writing.num_chain + 1,
      'generated_in_full': writing.num_chain + writing.num_answer})


# ---- A run's own figures ----


def count_passes(config: Config, num_blocks: int) -> int | None:
  """Passes over the blocks, where there are several; else None."""
  count = config.at_evaluation.loop.num_passes if config.loop_rule and num_blocks else 1
  return count if count > 1 else None


def measure_passes(network: Network, records, results, num_runs: int, say=None):
  """`scores.evaluate_passes`' results, each with times to the first token, all timed in turn."""
  codec, shards = network.codec, sharding.count_shards(sharding.BATCH, network.mesh)
  questions = [choose_typical(records, codec).question] * shards
  prefix = tuple(scores.get_answer_prefix(network.config, codec))
  timed = [make_timed(f'{r.num_passes} {k}',
                      scores.set_key(network, 'eval.num_passes', r.num_passes), questions,
                      Writing(prefix, int(k), (int(k),)), ('first_token',))
           for r in results for k in r.acc]
  times = {e['method']: reader.from_tree(values.Quartiles, e['first_token_ms'])
           for e in measure(timed, num_runs, say=say)}
  return [dataclasses.replace(r, first_token_ms={
      k: times[f'{r.num_passes} {k}'] for k in r.acc}) for r in results]


def choose_typical(records, codec) -> layout_lib.Encoded:
  """Of records the one whose steps have the median number of tokens, the first of equals.

  One whose steps or answer the tokenizer does not know is passed over: it is asked all the same.
  Raises: UserError where there is no other.
  """
  encoded, fault = [], None
  for record in records:
    try:
      encoded.append(codec.encode(record))
    except UserError as e:
      fault = e
  if fault and not encoded:
    raise fault
  sizes = [sum(map(len, one.steps)) for one in encoded]
  return encoded[sizes.index(statistics.median_high(sizes))]


def measure_run(network: Network, records, num_blocks: int, sizes: tuple, num_runs: int, say=None
                ) -> dict:
  """Latency of a run's final readout beside direct answering, for results.json.

  On one of the run's questions, whose steps are of median length. A chain of thought is as long as
  they are, so far as eval.max_new_tokens reaches. Direct answering is the run's own network
  (adapters and all) without its blocks, thoughts or chain, timed in turn with it: weights do not
  change how long a program takes, so that is the program of a run that was trained to answer
  directly. Where the run's own program is that one (direct, iCoT, no blocks), it is its own base,
  and every ratio is 1.

  Args:
    sizes: questions at once; the first is what ttft is of.
  Returns: {'ttft_ms': median time to the answer's first token at the first batch size,
    'ttft_ratio': median of its ratios to direct answering's, 'ttft_conditions': in words,
    'latency': an entry a batch size, as `measure` makes it}.
  Units: milliseconds.
  """
  config, codec = network.config, network.codec
  encoded, template = choose_typical(records, codec), codec.template
  num_chain = 0
  if config.writes_steps:
    steps = encoded.steps[max(config.layout.skip_steps, 0):]
    num_chain = min(config.eval.max_new_tokens - 1, len(template.answer_prefix) + sum(
        len(step) + len(template.step_separator) for step in steps))
  direct = Writing(prefix=tuple(template.answer_prefix),
                   num_answer=len(encoded.answer) + len(template.answer_suffix) + 1)
  own = dataclasses.replace(
      direct, prefix=tuple(scores.get_answer_prefix(config, codec)), num_blocks=num_blocks,
      blocks=scores.get_blocks(num_blocks)[-1:], num_chain=num_chain)
  kinds = [(network, own)]
  if own != direct:
    kinds.append((dataclasses.replace(
        network, config=dataclasses.replace(config, method=DIRECT.name)), direct))
  shards = sharding.count_shards(sharding.BATCH, network.mesh)
  entries = []
  for size in sizes:
    questions = [encoded.question] * (-(-size // shards) * shards)
    timed = [make_timed(n.config.method, n, questions, writing) for n, writing in kinds]
    entries.append(measure(timed, num_runs, base=timed[-1].name, say=say)[0])
  first = entries[0]
  thoughts = (first['num_passes'] and f"{first['num_passes']} passes over the blocks first, ") or (
      first['num_thoughts'] and f"{first['num_thoughts']} thoughts found one by one first, ")
  return {'ttft_ms': round(first['first_token_ms']['median'], 3),
          'ttft_ratio': first['first_token_ratio']['median'],
          'ttft_conditions': (
              f"{first['device']}, {first['num_devices']} device(s), {first['dtype']}, batch "
              f"{first['batch']}, {first['prompt_tokens']} prompt tokens in a trunk of "
              f"{first['trunk_tokens']}, {first['prefix_tokens']} forced, {thoughts or ''}"
              f"{first['generated_to_first']} generated to the first of the answer, median of "
              f'{num_runs} warm runs'),
          'latency': reader.from_tree(list[values.LatencyResult], entries)}
