"""What blocks predict inside stands where it should, and adds its mean to the loss."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.training import loss as loss_lib
from rim_jax.training import step as step_lib
from tests import support

TEMPLATE = layout_lib.Template((), (), (), (), (), (), (), (14,))
ENCODED = layout_lib.Encoded([1, 2], ([3, 4, 5], [6]), [6])


@pytest.mark.parametrize('method, num_blocks, parallel', [
    ('rim_stage1', 2, ((3, 3), (4, 4), (7, 6))), ('rim_stage2', 3, ((3, 3), (4, 4), (7, 6))),
    ('rim_stage2', 1, ((3, 3), (4, 4)))])
def test_each_m_predicts_a_token_of_its_block_s_step(method, num_blocks, parallel):
  """[1 2 <b> <m> <m> </b> <b> <m> <m> </b>]: the steps are 3 4 5, whose 5 has no place, and 6."""
  config = support.make_config(method, layout__block_tokens=2, layout__num_blocks=num_blocks,
                               curriculum__inside_weight=1.0)
  plain = dataclasses.replace(config, curriculum=dataclasses.replace(
      config.curriculum, inside_weight=0.0))
  found, before = (methods.get_method(c).layout(ENCODED, TEMPLATE, c.layout)
                   for c in (config, plain))
  assert found == dataclasses.replace(before, parallel=parallel) and not before.parallel
  assert found.num_blocks == num_blocks


@pytest.mark.parametrize('changes', [
    {'layout__paired_readout': True}, {'layout__paired_readout': True, 'loop__num_passes': 2}, {}])
def test_whatever_else_modifies_the_method_its_share_stays(changes):
  config = support.make_config('rim_stage1', curriculum__inside_weight=0.5,
                               distill__teacher_weight=0.25, **changes)
  assert methods.get_method(config).means(config) == {batch_lib.SLOT_PARALLEL: 0.5} | (
      {batch_lib.SLOT_TEACHER: 0.25} if changes else {})


@pytest.mark.parametrize('method, changes', [
    ('rim_stage1', {'curriculum__schedule': 'absolute', 'curriculum__absolute_steps': 4}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('rim_stage1', {'curriculum__schedule': 'absolute', 'curriculum__absolute_steps': 10}),
        ('rim_stage2', {'loop__num_passes': 2})))])
def test_the_loss_grows_by_the_weighted_mean_of_what_is_predicted_inside(method, changes):
  def compute(weight):
    config = support.make_config(method, layout__row_tokens=96, layout__block_tokens=2,
                                 curriculum__inside_weight=weight, **changes)
    model = support.make_model(config)
    batch = jax.tree.map(jnp.asarray, support.make_batch(
        config, [support.RECORDS[:2], support.RECORDS[2:]]))
    limits = batch_lib.RowLimits(examples=3)
    # Where the weights of most readouts have faded, or of all.
    total, sums = nnx.jit(lambda model, batch: step_lib.compute_loss(
        model, batch, 5, 10, 4, config, None, limits))(model, batch)
    logits = methods.get_method(config).forward(model, batch, config, limits, None)[0]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.slot_target[..., None], -1)[..., 0]
    # Each example counts alike, however many tokens its blocks say.
    share = jnp.where(batch.slot_kind == batch_lib.SLOT_PARALLEL, 1 / jnp.maximum(
        batch.slot_tokens, 1), 0)
    return float(loss_lib.divide_or_zero(total, sums['norm'])), float(
        (nll * share).sum() / jnp.maximum(share.sum(), 1))
  (plain, none), (half, inside), (whole, _) = map(compute, (0.0, 0.5, 1.0))
  assert none == 0 and half - plain == pytest.approx(inside / 2, rel=1e-4)
  assert whole - plain == pytest.approx(inside, rel=1e-4) and inside > 1


@pytest.mark.parametrize('method', ['pause', 'direct', 'codi'])
def test_it_is_for_blocks_that_stand_for_steps(method):
  config = support.make_config(method)
  problems = config_lib.find_problems(dataclasses.replace(config, curriculum=dataclasses.replace(
      config.curriculum, inside_weight=1.0)))
  assert len(problems) == 1 and f"'{method}' has no blocks that stand for steps" in problems[0]
