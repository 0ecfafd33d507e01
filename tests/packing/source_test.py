"""Sizes are what the layout writes; batches are a function of their number."""

import dataclasses

import jax
import numpy as np
import pytest

from rim_jax import methods
from rim_jax.config import stages as stages_lib
from rim_jax.data import datasets
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import order as order_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.packing import source as source_lib
from tests import support


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


def make_stage(cache, num_shards=1, **changes):
  config = support.make_config(data__cache_dir=cache, data__chain__min_steps=1, **changes)
  split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
  codec = support.make_codec(config)
  return split, codec, source_lib.make_stage_plan(split, codec, num_shards, say=lambda line: None)


@pytest.mark.parametrize('method', sorted(methods.METHODS))
def test_measured_sizes_are_the_sizes_of_the_written_rows(method, cache):
  config = support.make_config(method, data__cache_dir=cache, layout__answer_prefix='+-',
                               layout__separator='*', data__chain__min_steps=1)
  split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
  codec = support.make_codec(config)
  sizes = source_lib.measure(source_lib.load_encoded(split, codec), codec)
  for i in range(len(split)):
    example = codec.lay_out(codec.encode(split[i]))
    rows = rows_lib.make_rows([[example]], 128, 64, config.layout, codec.memory_start)
    token, slot = int((rows.example > 0).sum()), int((rows.slot_kind > 0).sum())
    trunk = (rows.example > 0) & (rows.readout == 0)
    assert sizes[i].tolist() == [token, slot, rows.positions.max() + 1, max(
        len(split[i].steps), 1), trunk.sum(), (trunk & (rows.block > 0)).sum()]


def test_no_row_holds_more_than_its_limits_and_some_row_holds_as_much(cache):
  _, codec, stage = make_stage(cache, layout__row_tokens=90)
  source = source_lib.BatchSource(stage, codec)
  rows = jax.tree.map(lambda *x: np.concatenate(x), *(source[i] for i in range(len(source))))
  trunk = (rows.example > 0) & (rows.readout == 0)
  blocks = trunk & (rows.block > 0)
  assert stage.limits == batch_lib.RowLimits(
      rows.example.max(), trunk.sum(1).max(), blocks.sum(1).max())
  assert 1 < stage.limits.examples and stage.limits.block_tokens < stage.limits.trunk_tokens < 90


ICOT = {'method': 'icot', 'icot__remove_per_epoch': 10.0, 'icot__smoothing': 0.7}


@pytest.mark.parametrize('removed', [0, 1, 3, order_lib.ALL])
def test_a_removed_token_is_one_less_of_each_down_to_the_bare_answer(removed, cache):
  """What the plan reckons with is what is written: tokens, slots and positions."""
  config = support.make_config(**ICOT, data__cache_dir=cache, data__chain__min_steps=1,
                               layout__answer_prefix='+')
  split = datasets.load_dataset(config.data, say=lambda line: None).splits['train']
  codec = support.make_codec(config)
  encoded = source_lib.load_encoded(split, codec)
  full, bare = (source_lib.measure(encoded, codec, r) for r in (0, order_lib.ALL))
  for i in range(len(split)):
    example = codec.lay_out(codec.encode(split[i]), removed)
    rows = rows_lib.make_rows([[example]], 128, 64, config.layout, codec.memory_start)
    token, slot = int((rows.example > 0).sum()), int((rows.slot_kind > 0).sum())
    assert np.maximum(full[i, :3] - removed, bare[i, :3]).tolist() == [
        token, slot, rows.positions.max() + 1]


def test_icot_s_batches_hold_what_is_left_of_each_chain(cache):
  """By text: the end of the chain, and the answer; nothing but the answer at the end."""
  split, codec, stage = make_stage(cache, **ICOT)
  source, plan = source_lib.BatchSource(stage, codec), stage.plan
  decode, eos = codec.tokenizer.decode, codec.tokenizer.eos_id
  seen = 0
  for i in range(len(source)):
    batch = source[i]
    for row in range(stage.batch_rows):
      targets = batch.slot_target[row][batch.slot_kind[row] > 0].tolist()
      records, removed = plan.get_row(i * stage.batch_rows + row)
      for record, lost in zip(records.tolist(), removed.tolist()):
        chain = ''.join(f'{step}\n' for step in split[record].steps)
        end = targets.index(eos)
        assert decode(targets[:end]) == chain[lost:] + split[record].answer
        targets = targets[end + 1:]
        seen += 1
      assert not targets
  assert seen == stage.num_examples and 0 < (plan.removed == order_lib.ALL).sum() < seen
  assert plan.num_tokens == sum(int((source[i].example > 0).sum()) for i in range(len(source)))
  last = slice(plan.starts[(stage.counted_from - 1) * stage.batch_rows], None)
  assert (plan.removed[last] == order_lib.ALL).all() and len(stage.reset_steps) > 2


def test_a_budget_that_ends_before_the_chain_does_is_refused(cache):
  with pytest.raises(UserError, match='budget of 64 examples, 1.60 epochs, ends before the written '
                     'chain is gone'):
    make_stage(cache, **ICOT | {'icot__remove_per_epoch': 3.0})


@pytest.mark.parametrize('method', ['rim', 'coconut', 'lotus'])
@pytest.mark.parametrize('goes_on', [True, False])
def test_stages_of_one_pass_read_every_record_once_where_they_go_on(method, goes_on, cache):
  whole = support.make_config(method, data__cache_dir=cache, train__num_examples=0,
                              train__num_epochs=1.0, curriculum__continue_data=goes_on,
                              layout__row_tokens=256, model__max_positions=256)
  split = datasets.load_dataset(whole.data, say=lambda line: None).splits['train']
  read = []
  for _, config in stages_lib.make_stages(whole):
    stage = source_lib.make_stage_plan(split, support.make_codec(config), say=lambda line: None)
    read += stage.plan.records.tolist()
    assert ('after the first' in stage.describe()) == (goes_on and len(read) > stage.num_examples)
  count = len(split)
  assert len(read) == pytest.approx(count, abs=len(stages_lib.make_stages(whole)))
  assert len(set(read)) >= count - 3 if goes_on else len(set(read)) <= 0.8 * count


def test_a_chain_that_epochs_take_away_begins_with_the_first(cache):
  with pytest.raises(UserError, match='set train.skip_examples and train.skip_epochs to 0'):
    make_stage(cache, **ICOT, train__num_epochs=3.0, train__num_examples=0, train__skip_examples=5)


def test_every_record_of_an_epoch_is_in_the_batches_once(cache):
  _, codec, stage = make_stage(cache, train__num_examples=40)
  source = source_lib.BatchSource(stage, codec)
  seen = [r for i in range(len(source)) for row in source.get_records(i) for r in row]
  assert sorted(seen) == list(range(40))
  tokens = sum(int((source[i].example > 0).sum()) for i in range(len(source)))
  assert tokens == stage.plan.num_tokens


@pytest.mark.parametrize('how', [{}, ICOT])
def test_processes_together_read_the_rows_of_one(cache, how):
  _, codec, stage = make_stage(cache, **how)
  whole = source_lib.BatchSource(stage, codec)
  parts = [source_lib.BatchSource(stage, codec, rows)
           for rows in np.split(np.arange(stage.batch_rows), 4)]
  for i in range(len(whole)):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(part[i] for part in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole[i])


def test_batch_examples_sets_the_rows(cache):
  _, _, stage = make_stage(cache, train__batch_rows=0, train__batch_examples=8)
  assert stage.batch_rows == round(8 / stage.plan.examples_per_row)
  with pytest.raises(UserError, match=r'from train.batch_examples=8\) is not divisible by'):
    make_stage(cache, num_shards=64, train__batch_rows=0, train__batch_examples=8)


def test_records_that_do_not_fit_stop_or_are_dropped_and_counted(cache):
  small = {'layout__row_tokens': 20, 'train__num_examples': 40}
  with pytest.raises(UserError, match=r'rim_chain/train:\d+: needs layout.row_tokens='):
    make_stage(cache, **small)
  split, _, stage = make_stage(cache, data__on_bad_rows='drop', **small)
  used = set(stage.plan.records.tolist())
  assert 0 < len(used) < len(split) and len(used) + len(stage.dropped) == len(split)


def test_a_window_is_held_against_positions_of_an_example_and_not_of_its_row(cache):
  """A row holds several examples, and a readout is near its block however many others there are."""
  split, codec, _ = make_stage(cache)
  sizes = source_lib.measure(source_lib.load_encoded(split, codec), codec)
  longest = int(sizes[:, 2].max())
  assert longest < sizes[:, 0].max() < codec.config.layout.row_tokens
  _, _, stage = make_stage(cache, model__positions='rope', model__sliding_window=longest)
  assert not stage.dropped
  with pytest.raises(UserError, match=f'needs model.sliding_window={longest}, has {longest - 1}'):
    make_stage(cache, model__positions='rope', model__sliding_window=longest - 1)


def test_epochs_and_examples_are_the_same_budget(cache):
  by_examples = make_stage(cache, train__num_examples=60)[2]
  by_epochs = make_stage(cache, train__num_examples=0, train__num_epochs=1.5)[2]
  assert dataclasses.asdict(by_examples).keys() == dataclasses.asdict(by_epochs).keys()
  np.testing.assert_array_equal(by_examples.plan.records, by_epochs.plan.records)
