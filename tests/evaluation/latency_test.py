"""The timing logic on a clock that is known, and what the timed programs compute."""

import dataclasses
import functools
import json
import pathlib
import statistics
import types

import jax
import numpy as np
import pytest

from bench import latency as bench_latency
from rim_jax import reader
from rim_jax.config import MeshConfig
from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, latency
from rim_jax.model import sharding
from rim_jax.packing import layout as layout_lib
from rim_jax.training import step as step_lib
from tests import support

KEPT = pathlib.Path(__file__).parents[2] / 'docs' / 'kept' / 'compare_chain'


class Clock:
  """Seconds that pass only while a program runs, each run as long as the script says."""

  def __init__(self):
    self.now, self.order = 0.0, []

  def __call__(self):
    return self.now

  def make_program(self, name, seconds):
    left = iter(seconds)

    def run():
      self.order.append(name)
      self.now += next(left)
      return np.zeros(1)
    return run


def test_runs_are_interleaved_and_warm_ones_not_counted():
  clock = Clock()
  runs = {'a': clock.make_program('a', [9, 8, 0.001, 0.002, 0.003]),
          'b': clock.make_program('b', [7, 6, 0.004, 0.005, 0.006])}
  times = latency.time_runs(runs, 3, clock)
  assert clock.order == ['a', 'b'] * 5
  assert times['a'] == pytest.approx([1, 2, 3]) and times['b'] == pytest.approx([4, 5, 6])


def test_what_a_program_returns_is_waited_for(monkeypatch):
  clock = Clock()
  program = clock.make_program('a', [0.0] * 3)

  def wait(result):
    clock.now += 0.25
    return result
  monkeypatch.setattr(jax, 'block_until_ready', wait)
  assert latency.time_runs({'a': program}, 1, clock) == {'a': [250.0]}


def test_median_and_quartiles_by_hand():
  assert latency.summarize([4.0, 1.0, 3.0, 2.0, 100.0]) == {
      'median': 3.0, 'q1': 2.0, 'q3': 4.0, 'runs': 5}
  assert latency.summarize([7.0]) == {'median': 7.0, 'q1': 7.0, 'q3': 7.0, 'runs': 1}


def test_a_ratio_is_of_pairs_so_that_a_machine_that_slows_down_slows_both():
  slow = [1, 2, 50, 4]
  clock = Clock()
  warm = [1.0, 1.0]
  methods = [
      latency.Timed('direct', {'full': clock.make_program('d', warm + slow)}, {'batch': 1}),
      latency.Timed('rim', {'full': clock.make_program('r', warm + [1.1 * s for s in slow])},
                     {'batch': 1, 'trunk_tokens': 32})]
  direct, rim = latency.measure(methods, 4, clock=clock)
  assert rim['full_ratio']['median'] == pytest.approx(1.1)
  assert [rim['full_ratio'][q] for q in ('q1', 'q3')] == pytest.approx([1.1, 1.1])
  assert rim['full_ms']['median'] == pytest.approx(1000 * 1.1 * statistics.median(slow))
  assert direct['full_ratio']['median'] == 1.0 and rim['trunk_tokens'] == 32
  assert rim['method'] == 'rim'


def test_without_direct_there_is_no_ratio():
  clock = Clock()
  method = latency.Timed('rim', {'full': clock.make_program('r', [1.0] * 4)}, {})
  entry, = latency.measure([method], 2, clock=clock)
  assert set(entry) == {'method', 'full_ms'}


# ---- The programs ----


def make_method(name='m', method='rim_stage2', changes=(), **writing):
  config = support.make_config(method, model__num_layers=1, model__attention_tile_tokens=0,
                               **dict(changes))
  network, questions = support.make_network(config, support.make_model(config)), [
      [1, 2, 3], [4, 5, 6]]
  method = latency.make_timed(name, network, questions, latency.Writing(**writing))
  return method, config, network, questions


@pytest.mark.parametrize('name, changes, num_blocks, blocks, num_thoughts', [
    ('rim_stage2', {}, 3, (2, 3), 0), *(
        pytest.param('coconut_stage', {'layout__block_tokens': 4}, *case, marks=pytest.mark.slow)
        for case in ((1, (1,), 4), (0, (0,), 0)))])
def test_a_method_writes_as_many_tokens_as_it_says(name, changes, num_blocks, blocks, num_thoughts):
  method, config, network, questions = make_method(
      method=name, changes=changes, prefix=(10,), num_blocks=num_blocks, blocks=blocks,
      num_chain=2, num_answer=3)
  assert method.facts['generated_to_first'] == 3 and method.facts['generated_in_full'] == 5
  assert method.facts['prompt_tokens'] == 3
  assert method.facts['trunk_tokens'] == decode.choose_width(
      3 + num_blocks * layout_lib.get_block_size(config.layout))
  assert method.facts['batch'] == 2 and method.facts['num_readouts'] == len(blocks)
  assert method.facts['num_thoughts'] == num_thoughts
  assert method.facts['dtype'] == 'float32' and method.facts['prefix_tokens'] == 1
  ids = {part: np.asarray(method.parts[part]()) for part in ('first_token', 'decode', 'full')}
  assert {part: x.shape for part, x in ids.items()} == {
      part: (2, len(blocks), count)
      for part, count in (('first_token', 3), ('decode', 5), ('full', 5))}
  assert (ids['full'] >= 0).all() and latency._NO_EOS < 0  # nothing ended early, nor could it
  # They are the ids of plain decoding, until its eos.
  np.testing.assert_array_equal(ids['full'][:, :, :3], ids['first_token'])
  np.testing.assert_array_equal(ids['full'], ids['decode'])
  trunks = jax.tree.map(jax.numpy.asarray, decode.make_trunks(
      questions, num_blocks, 32, 2, config, 16))
  np.testing.assert_array_equal(ids['full'], network.jit(decode.decode, 1)(
      *network.arrays, decode.Readouts((10,), blocks, 5, 99, 16), trunks))


@pytest.mark.slow
def test_flops_of_a_chain_are_those_of_its_steps():
  """From the compiled program, its loop counted as often as it runs, against arithmetic."""
  flops = {}
  for num_chain in (0, 4):
    method, config, *_ = make_method(num_chain=num_chain, num_answer=2)
    flops[num_chain] = {part: bench_latency.count_flops(program)
                        for part, program in method.parts.items()}
  d, f, rows, ids = config.model.embed_dim, config.model.mlp_dim, 2, 16
  width = decode.choose_width(3)
  prefill = width * rows * (2 * (4 * d * d + 2 * d * f) + 2 * 2 * d * width)
  assert flops[0]['prefill'] == flops[4]['prefill'] == prefill
  assert flops[0]['first_token'] == prefill + rows * 2 * d * ids  # no loop runs
  # Each step: the layer, the scores over the cache (trunk and all that is decoded), the logits.
  def step(cache):
    return rows * (2 * (4 * d * d + 2 * d * f) + 2 * 2 * d * cache + 2 * d * ids)
  assert flops[4]['first_token'] == flops[0]['first_token'] + 4 * step(width + 4)
  assert flops[4]['full'] == flops[0]['first_token'] + 5 * step(width + 5)
  assert flops[4]['decode'] == flops[4]['full'] - prefill


@pytest.mark.slow
def test_the_bench_times_what_finished_runs_of_each_recipe_decoded():
  sizes = bench_latency.SIZES['chain']
  args = types.SimpleNamespace(preset='chain', dtype='float32', sizes=sizes)
  names = [name for name in bench_latency.METHODS if name != 'rim_all']
  mesh = sharding.make_mesh(MeshConfig(1), jax.devices()[:1])
  timed = bench_latency.make_methods(args, mesh, 1, names)
  for name, made in zip(names, timed, strict=True):
    kept = json.loads((KEPT / f'method={name},seed=0.json').read_text())['test']['latency'][0]
    told = {key: value for key, value in kept.items()
            if key.startswith(('num_', 'prompt_', 'prefix_', 'generated_'))}
    assert {key: made.facts[key] for key in told} == told


# ---- A run's own figures ----


@pytest.mark.parametrize('lengths, chosen', [([0, 9, 1, 2, 2], 3), ([5], 0), ([3, 1], 0)])
def test_the_question_that_is_timed_has_steps_of_median_length(lengths, chosen):
  encoded = [layout_lib.Encoded(range(i), (range(n),) if n else (), ()) for i, n in
             enumerate(lengths)]
  codec = types.SimpleNamespace(encode=lambda record: record)
  assert latency.choose_typical(encoded, codec) is encoded[chosen]


def test_a_record_whose_steps_the_tokenizer_does_not_know_is_asked_and_not_timed():
  codec, record = support.make_codec(support.make_config(tokenizer__kind='chain')), (
      Record('7+3', ('0',), '0', 'own:1'))
  unknown = dataclasses.replace(record, steps=('7 apples',))
  assert latency.choose_typical([unknown, record], codec) == codec.encode(record)
  with pytest.raises(UserError, match='7 apples'):
    latency.choose_typical([unknown], codec)


@pytest.fixture
def fake_time(monkeypatch):
  """Programs that take a clock's seconds: direct's 1, 1.1, ..., others 2, 3, 4 or 5 times as long.

  Returns: (the clock, what each method was made with).
  """
  clock, seen = Clock(), []

  def make(name, network, questions, writing):
    seen.append(dataclasses.asdict(writing) | {'name': name, 'config': network.config,
                                               'questions': questions})
    return latency.Timed(name, {
        part: clock.make_program((name, part), [
            (1 if name == 'direct' else 2 + i) * (1 + 0.1 * n) for n in range(9)])
        for i, part in enumerate(latency.PARTS)}, {
            'device': 'cpu', 'num_devices': 1, 'dtype': 'float32', 'batch': len(questions),
            'prompt_tokens': 3, 'trunk_tokens': 32, 'prefix_tokens': len(writing.prefix),
            'generated_to_first': writing.num_chain + 1,
            'num_passes': 0, 'num_thoughts': 3 * (name == 'coconut_stage')})
  monkeypatch.setattr(latency, 'make_timed', make)
  monkeypatch.setattr(latency, 'measure', functools.partial(latency.measure, clock=clock))
  return clock, seen


def measure_run(config, sizes=(1, 4), num_runs=7, devices=1, **arrays):
  network = dataclasses.replace(support.make_network(config, devices=devices), **arrays)
  return latency.measure_run(network, support.RECORDS, config.eval_blocks, sizes, num_runs)


@pytest.mark.parametrize('method, changes, chain', [
    ('rim_stage2', {}, 0),
    ('coconut_stage', {'layout__answer_prefix': '*', 'layout__skip_steps': -1}, 0),
    ('cot', {'layout__answer_prefix': '*'}, 5),
    ('cot', {'layout__answer_prefix': '*', 'eval__max_new_tokens': 3}, 2)])
def test_a_run_is_timed_in_turn_with_direct_answering(method, changes, chain, fake_time):
  """r:1 has the steps 3 and 6, written with a separator each, and then the answer's prefix."""
  config = support.make_config(method, model__num_layers=1, **(
      {'eval__max_new_tokens': 8} | changes))
  (clock, seen), found = fake_time, measure_run(config)
  own, direct, *more = seen
  assert len(more) == 2 and [len(s['questions']) for s in seen] == [1, 1, 4, 4]
  assert own['num_chain'] == chain and own['num_answer'] == 2  # '6', eos
  assert own['blocks'] == ({'rim_stage2': (3,), 'coconut_stage': (1,)}.get(method, (0,)))
  assert own['config'] == config and own['num_blocks'] == config.eval_blocks
  prefix = tuple(support.make_codec(config).template.answer_prefix)
  assert len(prefix) == ('layout__answer_prefix' in changes)
  assert own['prefix'] == (() if method == 'cot' else prefix)  # a chain writes it
  # Direct answering: the same network, question, number of answer tokens and batch; nothing else.
  assert {k: direct[k] for k in ('name', 'prefix', 'num_blocks', 'blocks', 'num_chain')} == {
      'name': 'direct', 'prefix': prefix, 'num_blocks': 0, 'blocks': (0,), 'num_chain': 0}
  assert direct['config'] == dataclasses.replace(config, method='direct')
  assert direct['questions'] == own['questions'] and direct['num_answer'] == own['num_answer']
  assert clock.order[:16] == [(name, part) for name in (method, 'direct')
                              for part in latency.PARTS] * 2
  assert clock.order.count(('direct', 'full')) == 2 * (latency.NUM_WARM + 7)

  entries = reader.to_tree(found['latency'])
  assert [(e['method'], e['batch']) for e in entries] == [(method, 1), (method, 4)]
  for entry in entries:
    for i, part in enumerate(latency.PARTS):  # of runs 3 to 9
      assert entry[f'{part}_ms']['median'] == pytest.approx(1500 * (2 + i))
      assert entry[f'{part}_ratio'] == pytest.approx(
          {'median': 2 + i, 'q1': 2 + i, 'q3': 2 + i, 'runs': 7})
  assert found['ttft_ms'] == 4500.0
  assert found['ttft_ratio'] == entries[0]['first_token_ratio']['median']
  assert found['ttft_conditions'] == (
      f'cpu, 1 device(s), float32, batch 1, 3 prompt tokens in a trunk of 32, {len(own["prefix"])} '
      'forced, ' + ('3 thoughts found one by one first, ' if method == 'coconut_stage' else '')
      + f'{chain + 1} generated to the first of the answer, median of 7 warm runs')


@pytest.mark.parametrize('method, changes', [
    ('direct', {}), ('icot', {'layout__answer_prefix': '*'}),
    ('rim_stage2', {'eval__num_blocks': 0}), ('coconut_stage', {'eval__num_blocks': 0,
                                                                'layout__skip_steps': -1})])
def test_what_is_direct_answerings_program_is_its_own_base(method, changes, fake_time):
  config = support.make_config(method, model__num_layers=1, **changes)
  (clock, seen), found = fake_time, measure_run(config, (1,), 3)
  assert [s['name'] for s in seen] == [method] and len(clock.order) == 4 * (latency.NUM_WARM + 3)
  assert found['ttft_ratio'] == 1.0
  (entry,) = reader.to_tree(found['latency'])
  assert all(entry[f'{part}_ratio'] == {
      'median': 1.0, 'q1': 1.0, 'q3': 1.0, 'runs': 3} for part in latency.PARTS)


@pytest.mark.slow
@pytest.mark.parametrize('method, changes', [
    ('rim_stage2', {'model__lora__rank': 2, 'optim__trainable': 'lora',
                    'layout__readout_sees_question': False}),
    pytest.param('coconut_stage', {'layout__block_tokens': 4, 'layout__skip_steps': -1},
                 marks=pytest.mark.slow)])
def test_the_base_is_what_direct_answering_decodes_with_the_same_network(method, changes,
                                                                         monkeypatch):
  config = support.make_config(method, model__num_layers=1, layout__answer_prefix='*', **changes)
  codec = support.make_codec(config)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = step_lib.make_program(config, codec.tokenizer.vocab_size, 1, mesh)
  state, frozen = program.init(jax.random.key(0))
  assert bool(jax.tree.leaves(frozen)) == (method == 'rim_stage2')
  seen = []

  def measure(methods, num_runs, base, say):
    seen.extend(methods)
    assert base == methods[1].name
    return [m.facts | {f'{part}_{key}': latency.summarize([1.0]) for key in ('ms', 'ratio')
                       for part in ('prefill', 'first_token', 'decode', 'full')} for m in methods]
  monkeypatch.setattr(latency, 'measure', measure)
  measure_run(config, (1,), graphdef=program.graphdef, params=state.params, frozen=frozen)
  direct = support.make_config('direct', model__num_layers=1, layout__answer_prefix='*')
  question = codec.encode(support.RECORDS[0]).question
  trunks = jax.tree.map(jax.numpy.asarray, decode.make_trunks(
      [question], 0, 32, 1, direct, codec.memory_start))
  readouts = decode.Readouts(tuple(codec.template.answer_prefix), (0,), 2, latency._NO_EOS,
                             codec.tokenizer.vocab_size)
  expected = dataclasses.replace(support.make_network(direct), graphdef=program.graphdef).jit(
      decode.decode, 1)(state.params, frozen, readouts, trunks)
  np.testing.assert_array_equal(seen[1].parts['full'](), expected)
  assert {k: seen[1].facts[k] for k in ('num_blocks', 'num_readouts', 'num_thoughts')} == {
      'num_blocks': 0, 'num_readouts': 1, 'num_thoughts': 0}
