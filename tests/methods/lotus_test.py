"""LOTUS against whole forwards by hand: what latents predict, what they are fed, its two means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import stages as stages_lib
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import preview
from rim_jax.packing import rows as rows_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib
from tests import support

ROWS = [support.RECORDS[:1], support.RECORDS[1:4]]
LIMITS = batch_lib.RowLimits(examples=3)


def make_config(skip_steps=2, num_passes=3, latents=2, **more):
  return support.make_config('lotus_stage', **{
      'layout__num_blocks': int(skip_steps > 0), 'layout__skip_steps': skip_steps,
      'layout__block_tokens': max(skip_steps, 1) * latents, 'layout__row_tokens': 96,
      'loop__num_passes': num_passes, 'curriculum__reduction': 'token', 'model__positions': 'rope',
      **more})


def compute_loss(model, batch, config, *scales):
  return jax.jit(lambda batch, *scales: step_lib.compute_loss(
      model, batch, 0, 10, 4, config, None, LIMITS, *scales))(batch, *scales)


def test_each_latent_predicts_the_token_of_its_place_and_nothing_else():
  """r_1 = (a, newline) and r_2 = (b,) with two latents each: a at <b>, then newline, then b."""
  config = make_config().layout
  template = layout_lib.Template([], [], [], [], [9], [], [], [0])
  encoded = layout_lib.Encoded([5, 6], ([11], [12, 13, 14], [15]), [16])
  example = methods.METHODS['lotus_stage'].layout(encoded, template, config)
  assert example.parallel == ((2, 11), (3, 9), (4, 12), (5, 13))  # r_2 is cut at two tokens
  assert example.readouts[0].target == [15, 9, 16, 0]
  before = layout_lib.Example([5, 6, 7], 0, 1, (layout_lib.Readout(0, 2, (), [0]),))
  rows = rows_lib.make_rows([[before, example]], 20, 10, config, 20)
  assert (rows.example > 0).sum() == 3 + layout_lib.count_example(example, config)[0]
  assert (rows.slot_kind > 0).sum() == 1 + 8
  beside = rows.slot_kind[0] == batch_lib.SLOT_PARALLEL
  assert rows.slot_index[0, beside].tolist() == [5, 6, 7, 8]
  assert rows.tokens[0, 5:9].tolist() == [20, 21, 21, 21]
  assert rows.slot_target[0, beside].tolist() == [11, 9, 12, 13]
  short = methods.METHODS['lotus_stage'].layout(
      layout_lib.Encoded([5, 6], ([11],), [16]), template, config)
  assert short.parallel == ((2, 11), (3, 9)) and short.readouts[0].target == [16, 0]


def test_it_is_shown_what_latents_predict():
  config = make_config()
  lines = preview.list_lines(support.RECORDS[3], support.make_codec(config))
  assert [line.label for line in lines][-1] == 'at its blocks, all at once'
  assert lines[-1].pieces[0].text == '2\n3\n'


@pytest.mark.parametrize('num_passes, weight', [
    (3, 0.25), pytest.param(1, 0.0, marks=pytest.mark.slow)])
def test_logits_and_both_means_are_those_by_hand(num_passes, weight):
  """As many whole forwards of each sequence, without a cache; means over tokens of the batch.

  With one and no weight it is the chain behind constant tokens (`configs/sweeps/latents.py`).
  """
  config = make_config(num_passes=num_passes, lotus__step_weight=weight)
  batch, model = support.make_batch(config, ROWS), support.make_model(config)
  found = {batch_lib.SLOT_ANSWER: [], batch_lib.SLOT_PARALLEL: []}
  codec = support.make_codec(config)

  @jax.jit
  def read(ids, t):
    place = jnp.arange(48)[None]
    mask, inputs = jnp.tril(jnp.ones((1, 48, 48), bool)), model.embed(ids[None])
    embedded, is_latent = inputs, (ids == model.vocab_size + 1)[None, :, None]
    for _ in range(num_passes - 1):
      x, _ = model(None, place, mask, inputs_btd=inputs)
      inputs = jnp.where(is_latent, embedded + x, embedded)
    return jax.nn.log_softmax(model.compute_logits(
        model(None, place, mask, inputs_btd=inputs)[0][0]))
  for record in [r for row in ROWS for r in row]:
    example = codec.lay_out(codec.encode(record))
    trunk = layout_lib.make_trunk(example.question, 1, config.layout, codec.memory_start)
    target = example.readouts[0].target
    ids = [*trunk, *target[:-1]]
    logp = read(jnp.asarray(ids + [0] * (48 - len(ids))), len(ids))
    found[batch_lib.SLOT_ANSWER] += [-logp[len(trunk) - 1 + i, t] for i, t in enumerate(target)]
    found[batch_lib.SLOT_PARALLEL] += [-logp[i, t] for i, t in example.parallel]
  means = {kind: np.mean(nll) for kind, nll in found.items()}
  total, sums = compute_loss(model, batch, config)
  expected = means[batch_lib.SLOT_ANSWER] + weight * means[batch_lib.SLOT_PARALLEL]
  np.testing.assert_allclose(total / sums['norm'], expected, rtol=1e-5)
  np.testing.assert_allclose(sums['added']['parallel'] / sums['norm'],
                             weight * means[batch_lib.SLOT_PARALLEL], rtol=1e-5)
  # Micro-batches of one example and of three add up to the four.
  whole = loss_lib.compute_scales(jax.tree.map(jnp.asarray, batch), 0, 10, config)
  parts = [compute_loss(model, support.make_batch(config, rows), config, whole)[0]
           for rows in (ROWS[:1], ROWS[1:])]
  np.testing.assert_allclose(sum(parts), total, rtol=1e-5)


@pytest.mark.slow
def test_stage_0_is_cot_and_without_injection_any_passes_are_one(monkeypatch):
  config = make_config(0, 1, layout__answer_prefix='+')
  batch = support.make_batch(config, ROWS)
  other = dataclasses.replace(config, method='cot')
  jax.tree.map(np.testing.assert_array_equal, batch, support.make_batch(other, ROWS))
  model = support.make_model(config)
  losses = [compute_loss(model, batch, c) for c in (config, other)]
  np.testing.assert_allclose(*(total / sums['norm'] for total, sums in losses), rtol=1e-6)

  looped, once = make_config(), make_config(num_passes=1)
  batch = support.make_batch(looped, ROWS)

  def read(config):
    return jax.jit(lambda batch: methods.get_method(config).forward(
        model, batch, config, LIMITS)[0])(batch)
  plain = read(once)
  rule = dataclasses.replace(methods.passes.get_rule(looped), feed=(
      lambda model, tokens, embedded, states: embedded + 0 * states))
  monkeypatch.setattr(methods.passes, 'get_rule', lambda config: rule)
  support.assert_close(read(looped), plain)


@pytest.mark.slow
def test_a_later_step_and_the_answer_change_nothing_for_the_first_latents():
  config = make_config(num_passes=4)
  model, codec = support.make_model(config), support.make_codec(config)
  logits, read = [], jax.jit(lambda batch: methods.get_method(config).forward(
      model, batch, config)[0])
  for record in (support.RECORDS[3], dataclasses.replace(
      support.RECORDS[3], steps=('2', '7', '8'), answer='8')):
    batch = support.make_batch(config, [[record]])
    logits.append(np.asarray(read(batch))[np.asarray(batch.slot_kind) == batch_lib.SLOT_PARALLEL])
  assert len(logits[0]) == 4 and codec.memory_start
  np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize('one_pass, passes', [(False, (1, 2, 3)), (True, (1, 1, 1))])
def test_stages_by_hand(one_pass, passes):
  config = support.make_config('lotus', lotus__num_stages=2, lotus__latents_per_step=3,
                               lotus__stage_frac=0.25, train__num_examples=1000,
                               lotus__one_pass=one_pass)
  stages = stages_lib.make_stages(config)
  assert [(name, s.method, s.layout.num_blocks, s.layout.block_tokens, s.layout.skip_steps,
           s.train.num_examples) for name, s in stages] == [
               ('stage0', 'lotus_stage', 0, 1, 0, 250),
               ('stage1', 'lotus_stage', 1, 3, 1, 250),
               ('stage2', 'lotus_stage', 1, 6, 2, 500)]
  assert tuple(s.loop.num_passes for _, s in stages) == passes
  for _, stage in stages:
    assert config_lib.find_problems(stage) == []


@pytest.mark.parametrize('changes, told', [
    ({'layout.skip_steps': -1}, 'knows of each step that it skips'),
    ({'layout.block_tokens': 3}, 'are not as many for each'),
    ({'method': 'lotus', 'loop.num_passes': 2}, 'stage k of lotus takes k + 1 passes; use 1'),
    ({'method': 'lotus', 'loop.num_passes': 1, 'lotus.stage_frac': 0.5}, 'leave the last one')])
def test_what_cannot_be_is_told_in_one_line(changes, told):
  support.assert_one_problem(make_config(), changes, told)
