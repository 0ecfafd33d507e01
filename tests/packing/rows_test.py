"""Rows are what a simple reference writes token by token, for every method and odd examples."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from rim_jax import methods
from rim_jax.data import datasets
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order as order_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.packing import source as source_lib
from tests import support

B = 90  # memory ids from here on

ROW_FIELDS = ('tokens', 'positions', 'example', 'block', 'readout')
SLOT_FIELDS = ('slot_index', 'slot_target', 'slot_block', 'slot_steps', 'slot_kind', 'slot_tokens')


def write_reference(rows, row_tokens, row_slots, config, memory_start) -> batch_lib.Batch:
  """`rows.make_rows` one token and one slot at a time, as docs/concepts.md says it."""
  batch = batch_lib.make_empty_rows(len(rows), row_tokens, row_slots)
  for row, members in enumerate(rows):
    token = slot = 0
    for number, example in enumerate(members, 1):
      token, slot = write_example(batch, row, token, slot, number, example, config, memory_start)
  return batch


# 8 parameters: three places in the rows, which move on, beside what is written there.
def write_example(batch, row, token, slot, number, example, config, memory_start):
  """Writes one example; returns the next free (token, slot)."""
  start, marks = token, []

  def put(i, position, block, readout):
    nonlocal token
    for name, value in zip(ROW_FIELDS, (i, position, number, block, readout)):
      getattr(batch, name)[row, token] = value
    token += 1

  def predict(index, target, block, kind, count):
    nonlocal slot
    for name, value in zip(SLOT_FIELDS, (
        index, target, block, example.num_steps, kind, count)):
      getattr(batch, name)[row, slot] = value
    slot += 1
  ids = layout_lib.make_trunk(example.question, example.num_blocks, config, memory_start)
  trunk = [(i, max(0, (place - len(example.question)) // (config.block_tokens + 2) + 1))
           for place, i in enumerate(ids)]
  for position, (i, block) in enumerate(trunk):
    put(i, position, block, 0)
  for ordinal, readout in enumerate(example.readouts, 1):
    begin = 0 if readout.block < 0 else sum(block <= readout.block for _, block in trunk)
    given = [memory_start + 1] * readout.num_latents + [*readout.prefix]
    # Where nothing is given, the last token of the block predicts the first target.
    at = [token + j for j in range(-1, len(given) + len(readout.target) - 1)][len(given):]
    if not given:
      at[0] = start + begin - 1
    for offset, i in enumerate((*given, *readout.target[:-1])):
      put(i, begin + offset, readout.block, ordinal)
    marks.append(slot + readout.mark)
    for index, target in zip(at, readout.target):
      predict(index, target, readout.block, readout.kind, len(readout.target))
  for mark, readout in zip(marks, example.readouts):
    if readout.pair:
      batch.slot_pair[row, mark] = batch.slot_index[row, marks[readout.pair - 1]]
  for index, target in example.parallel:
    predict(start + index, target, example.num_blocks, batch_lib.SLOT_PARALLEL,
            len(example.parallel))
  return token, slot


def assert_as_reference(examples, config, memory_start=B):
  """Packed first-fit, each in a row of its own, and packed with an empty row between."""
  sizes = np.asarray([layout_lib.count_example(e, config)[:2] for e in examples])
  packed = order_lib.pack(np.arange(len(examples)), sizes, (200, 150), 4)
  assert max(map(len, packed)) > 1
  for rows in (packed, [[i] for i in range(len(examples))], [packed[0], [], *packed[1:]]):
    rows = [[examples[i] for i in row] for row in rows]
    jax.tree.map(np.testing.assert_array_equal,
                 rows_lib.make_rows(rows, 200, 150, config, memory_start),
                 write_reference(rows, 200, 150, config, memory_start))


def draw_ids(rng, most, least=0):
  return rng.integers(1, B, rng.integers(least, most + 1)).tolist()


def draw_record(rng):
  steps = tuple(draw_ids(rng, 5) for _ in range(rng.integers(0, 5)))
  return layout_lib.Encoded(draw_ids(rng, 12, 1), steps, draw_ids(rng, 3))


HOSTS = {**{method: {} for method in methods.METHODS},
         'rim_stage1+depth0': {'layout__depth0_readout': True},
         'rim_stage2+depth0': {'layout__stage2_depth0_readout': True},
         'rim_stage2+paired': {'layout__paired_readout': True},
         'codi+prefix': {'layout__supervise_prefix': True},
         'codi+aux': {'aux__decoder': 'shared', 'aux__group_tokens': 1},
         'coconut_stage+aux': {'aux__decoder': 'shared', 'aux__group_tokens': 1,
                               'aux__answer_fills': True}}


@pytest.mark.parametrize('host', sorted(HOSTS))
@pytest.mark.parametrize('seed', range(3))
def test_rows_of_every_method_are_those_of_the_reference(host, seed):
  config = support.make_config(host.partition('+')[0], layout__block_tokens=1 + seed, **{
      key: value * (1 + seed) if key == 'aux__group_tokens' else value
      for key, value in HOSTS[host].items()})
  method, rng = methods.get_method(config), np.random.default_rng(seed)
  template = layout_lib.Template(*(draw_ids(rng, 2) for _ in range(7)), eos=[80])
  examples = [method.layout(draw_record(rng), template, config.layout,
                            *([int(rng.integers(0, 9))] if method.removal else []))
              for _ in range(20)]
  assert_as_reference(examples, config.layout)


@pytest.mark.parametrize('seed', range(20))
def test_rows_of_any_examples_are_those_of_the_reference(seed):
  """What no method has today, too: several pairs, marks and latents anywhere, no readout at all."""
  rng, config = np.random.default_rng(seed), support.make_config(layout__block_tokens=2).layout

  def draw_readout(num_blocks, count):
    block = int(rng.integers(-1, num_blocks + 1))
    prefix, target = draw_ids(rng, 2), draw_ids(rng, 4, 1)
    latents = int(rng.integers(not prefix, 3) if block < 0 else rng.integers(0, 2))
    return layout_lib.Readout(block, int(rng.integers(1, 6)), prefix, target,
                              int(rng.integers(len(target))), int(rng.integers(count + 1)), latents)

  def draw_example():
    question, num_blocks, count = draw_ids(rng, 8, 1), int(rng.integers(4)), int(rng.integers(5))
    parallel = tuple((int(rng.integers(len(question))), i) for i in draw_ids(rng, 3))
    return layout_lib.Example(question, num_blocks, int(rng.integers(1, 5)), tuple(
        draw_readout(num_blocks, count) for _ in range(count)), parallel)
  assert_as_reference([draw_example() for _ in range(30)], config)


def test_what_does_not_fit_a_row_is_an_error_and_not_in_the_next_row():
  config = support.make_config()
  example, = support.lay_out(config, support.RECORDS[:1])
  tokens, slots, _ = layout_lib.count_example(example, config.layout)
  rows_lib.make_rows([[example], []], tokens, slots, config.layout, B)
  for fewer in ((tokens - 1, slots), (tokens, slots - 1)):
    with pytest.raises(ValueError, match='cannot hold its examples'):
      rows_lib.make_rows([[example], []], *fewer, config.layout, B)


# Of the batches that the version before this module made, one token at a time.
GOLDEN = {'rim_stage1': 'a9c11ed90e9bc5d7', 'rim_stage2': 'f42ed97761a58672',
          'cot': 'fe09baa59c9b42a0', 'icot': 'ac17d0f8d582a995',
          'codi': 'a490e1d5643ead1c', 'lotus_stage': 'a333f959d6c4b492'}


@pytest.mark.parametrize('method', GOLDEN)
def test_batches_are_bit_for_bit_those_of_earlier_versions(method, tmp_path_factory):
  more = {'icot__remove_per_epoch': 10.0, 'icot__smoothing': 0.7} if method == 'icot' else {}
  cache = str(tmp_path_factory.getbasetemp() / 'golden')
  config = support.make_config(
      method, data__cache_dir=cache, layout__row_tokens=120, data__chain__min_steps=1,
      layout__answer_prefix='+-', layout__separator='*', layout__step_prefix='-',
      layout__answer_suffix='*', seed=7, **more)
  split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
  codec = support.make_codec(config)
  source = source_lib.BatchSource(
      source_lib.make_stage_plan(split, codec, say=lambda line: None), codec)
  digest = hashlib.sha256()
  for i in [*range(min(len(source), 6)), len(source) - 1]:
    for field in dataclasses.fields(batch_lib.Batch):
      x = getattr(source[i], field.name)
      assert x.dtype == np.int32
      digest.update(f'{field.name}{x.shape}'.encode() + x.tobytes())
  assert digest.hexdigest()[:16] == GOLDEN[method]
