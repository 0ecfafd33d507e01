"""Distances of paired states: by hand, over unequal parts, and with no way into the teacher."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import rules
from rim_jax.methods import paired
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib
from tests import support

ALL = jnp.ones((1, 1), bool)


def draw(num_pairs, seed=0, layers=3):
  """(student, teacher) states f32[l, 1, p, 8]."""
  rng = np.random.default_rng(seed)
  return tuple(2 * rng.standard_normal((layers, 1, num_pairs, 8)).astype(np.float32)
               for _ in range(2))


@pytest.mark.parametrize('std', ['example', 'layer', 'all'])
def test_a_distance_by_hand(std):
  """Width 2, one layer: deviation sqrt(2), Huber losses 0.125 and 1.5."""
  student, teacher = (jnp.asarray([[[x]]]) for x in ((1.5, 1.0), (1.0, -1.0)))
  found = paired.compute_distance(student, teacher, ALL, std)
  assert found == pytest.approx(0.8125 / 2**0.5, rel=1e-6) == pytest.approx(0.574524, abs=1e-6)


@pytest.mark.parametrize('std, axes', [('example', 3), ('layer', (1, 2, 3)), ('all', None)])
def test_what_a_deviation_is_taken_over(std, axes):
  student, teacher = draw(4)
  spread = np.std(teacher, axes, ddof=1, keepdims=True)
  apart = np.abs(student - teacher)
  huber = np.where(apart < 1, apart**2 / 2, apart - 0.5)
  assert (apart < 1).any() and (apart > 1).any()
  found = paired.compute_distance(student, teacher, jnp.ones((1, 4), bool), std)
  np.testing.assert_allclose(found, (huber / spread).mean((0, 3)).sum(), rtol=1e-5)


@pytest.mark.parametrize('std, adds_up', [('example', True), ('layer', False)])
def test_distances_of_one_and_of_three_pairs_add_up_to_those_of_four(std, adds_up):
  student, teacher = draw(4)

  def compute(pairs):
    there = jnp.ones((1, 4), bool)[:, pairs]
    return float(paired.compute_distance(student[:, :, pairs], teacher[:, :, pairs], there, std))
  whole = compute(slice(4))
  parts = compute(slice(1)) + compute(slice(1, 4))
  assert (abs(parts - whole) < 1e-5 * whole) == adds_up


@pytest.mark.parametrize('std', ['example', 'layer', 'all'])
def test_what_is_no_pair_counts_nothing_and_its_gradient_is_zero(std):
  """Also where the states there are all alike, whose deviation is 0."""
  student, teacher = draw(3)
  student[:, :, 1], teacher[:, :, 1] = 5.0, 7.0
  there = jnp.asarray([[True, False, True]])
  value, (to_student, to_teacher) = jax.value_and_grad(paired.compute_distance, (0, 1))(
      jnp.asarray(student), jnp.asarray(teacher), there, std)
  alone = paired.compute_distance(student[:, :, ::2], teacher[:, :, ::2], there[:, ::2], std)
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  assert np.abs(to_student[:, :, ::2]).min() > 0 and not to_student[:, :, 1].any()
  assert not to_teacher.any()
  nothing, slope = jax.value_and_grad(paired.compute_distance)(
      jnp.asarray(student), teacher, jnp.zeros((1, 3), bool), std)
  assert nothing == 0 and not slope.any()


@pytest.mark.parametrize('steps, last, written', [
    (([5, 6], [7], [8]), False, [5, 6, 9, 7, 9]), (([5, 6], [7], [8]), True, [5, 6, 9, 7, 9, 8, 9]),
    (([8],), False, []), ((), False, []), ((), True, [])])
def test_the_teacher_s_chain_lacks_its_last_step(steps, last, written):
  template = layout_lib.Template([], [], [], [], [9], [3, 4], [], [0])
  encoded = layout_lib.Encoded([1, 2], steps, [8])
  found = paired.read_teacher(encoded, template, config_lib.LayoutConfig(teacher_last_step=last))
  assert list(found.target) == [*written, 3, 4, 8, 0]
  assert found.target[found.mark] == 8 and len(found.prefix) == 0
  assert (found.block, found.kind) == (0, batch_lib.SLOT_TEACHER)


# ---- RiM and pause ----

ROWS = [support.RECORDS[:2], support.RECORDS[2:4]]


def make_config(method, **more):
  return support.make_config(method, **{
      'layout__row_tokens': 96, 'layout__answer_prefix': '+', 'layout__paired_readout': True,
      **more})


@pytest.mark.parametrize('method', ['rim_stage1', 'rim_stage2', 'pause'])
def test_the_last_block_s_answer_is_paired_with_a_chain_after_the_question(method):
  config = make_config(method)
  host = methods.METHODS[method]
  assert methods.get_method(support.set_key(config, 'layout.paired_readout', False)) is host
  plain = support.lay_out(support.set_key(config, 'layout.paired_readout', False))
  for example, before in zip(support.lay_out(config), plain):
    *others, teacher = example.readouts
    assert (teacher.block, teacher.kind) == (0, batch_lib.SLOT_TEACHER)
    assert [r.pair for r in others] == [0] * (len(others) - 1) + [len(example.readouts)]
    assert [dataclasses.replace(r, pair=0) for r in others] == list(before.readouts)
  batch = support.make_batch(config, ROWS)
  assert (batch.slot_pair >= 0).sum() == 4
  for row, slot in zip(*np.nonzero(batch.slot_pair >= 0)):
    other, = np.flatnonzero(batch.slot_index[row] == batch.slot_pair[row, slot])
    assert batch.slot_kind[row, other] == batch_lib.SLOT_TEACHER
    assert batch.slot_target[row, other] == batch.slot_target[row, slot]
    assert batch.slot_block[row, slot] == max(batch.slot_block[row][
        batch.example[row][batch.slot_index[row]] == batch.example[
            row, batch.slot_index[row, slot]]])


@pytest.mark.slow
@pytest.mark.parametrize('method', ['rim_stage1', 'rim_stage2'])
def test_the_loss_is_the_host_s_and_two_means_whatever_has_faded(method):
  """Late in stage 1 the norm is below the number of examples; both means are of examples still."""
  config = make_config(method, distill__weight=0.7, distill__teacher_weight=0.4)
  plain = support.set_key(config, 'layout.paired_readout', False)
  graphdef, params = nnx.split(support.make_model(config))

  def compute(config):
    batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS))
    return jax.jit(lambda params: step_lib.compute_loss(
        nnx.merge(graphdef, params), batch, 7, 10, 4, config, None, batch_lib.RowLimits(2)))(params)
  (total, sums), (before, others) = compute(config), compute(plain)
  assert (sums['norm'] < 4) == (method == 'rim_stage1')
  for name in ('norm', 'block_nll', 'block_weight', 'block_count'):
    support.assert_close(sums[name], others[name])
  extra = sums['added']
  np.testing.assert_allclose(total, before + extra['teacher'] + extra['distilled'], rtol=1e-5)
  # The chain's loss, by another method: cot on records without their last step.
  cut = [[dataclasses.replace(r, steps=r.steps[:-1]) for r in row] for row in ROWS]
  cot = support.set_key(plain, 'method', 'cot')
  batch = jax.tree.map(jnp.asarray, support.make_batch(cot, cut))
  alone, counts = step_lib.compute_loss(
      nnx.merge(graphdef, params), batch, 7, 10, 4, cot, None, batch_lib.RowLimits(2))
  np.testing.assert_allclose(extra['teacher'] / sums['norm'], 0.4 * alone / counts['norm'],
                             rtol=1e-5)
  read = methods.get_method(config).forward(
      nnx.merge(graphdef, params), jax.tree.map(jnp.asarray, support.make_batch(config, ROWS)),
      config, batch_lib.RowLimits(2))[1]
  np.testing.assert_allclose(extra['distilled'] / sums['norm'], read['distilled'] / 4, rtol=1e-5)
  assert read['distilled'] > 0.1


@pytest.mark.slow
def test_both_means_stay_where_every_readout_has_faded():
  """In one part or two: what is divided by the norm of 1 is as without fading."""
  def compute(schedule, parts=(ROWS,)):
    config = make_config('rim_stage1', curriculum__schedule=schedule)
    graphdef, params = nnx.split(support.make_model(config))
    whole, *parts = (jax.tree.map(jnp.asarray, support.make_batch(config, rows))
                     for rows in (ROWS, *parts))
    scales = loss_lib.compute_scales(whole, 7, 10, config)
    found = [jax.jit(lambda params, part=part: step_lib.compute_loss(
        nnx.merge(graphdef, params), part, 7, 10, 4, config, None, batch_lib.RowLimits(2),
        scales))(params) for part in parts]
    total, sums = jax.tree.map(lambda *x: sum(x), *found)
    return float(total / sums['norm']), jax.tree.map(lambda x: x / sums['norm'], sums['added'])
  _, there = compute('constant')
  for parts in ((ROWS,), (ROWS[:1], ROWS[1:])):
    total, added = compute('absolute', parts)  # over 10 steps: these have 3 at most
    jax.tree.map(support.assert_close, added, there)
    assert total == pytest.approx(sum(added.values())) and total > 1


@pytest.mark.parametrize('method', ['direct', 'codi'])
def test_what_has_no_memory_block_cannot_be_paired(method):
  config = support.set_key(support.make_config(method), 'layout.paired_readout', True)
  problem, = config_lib.find_problems(config)
  assert 'layout.paired_readout=True' in problem and 'no memory block' in problem


@pytest.mark.parametrize('key, prefix', [
    ('depth0_readout', 'step_prefix'), ('stage2_depth0_readout', 'answer_prefix')])
def test_two_targets_from_the_same_state_are_refused(key, prefix):
  """A readout right after the question, and the chain: told apart by a prefix alone."""
  config = support.make_config('rim', layout__paired_readout=True, **{
      f'layout__{prefix}': '+', f'layout__{key}': True})
  assert rules.find_problems(config) == []
  problem, = rules.find_problems(support.set_key(config, f'layout.{prefix}', ''))
  assert problem.startswith(f'layout.{key}=True with layout.paired_readout=True:')
  assert f'set layout.{key} to False' in ' '.join(problem.split())
