"""The loss on valid is training's own, without dropout, however its records are packed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rim_jax import task as task_lib
from rim_jax.config import MeshConfig
from rim_jax.evaluation import run_scores, valid_loss
from rim_jax.model import transformer
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import order
from rim_jax.packing import source as source_lib
from rim_jax.training import step as step_lib
from tests import support


def make(tmp_path, method, use_devices, devices=1, **changes):
  """A stage of that method, and what ValidLoss is given beside the records."""
  use_devices(devices)
  config = support.make_config(method, **{
      'data__cache_dir': str(tmp_path), 'data__chain__min_steps': 1, 'model__dropout': 0.5,
      'train__num_micro_batches': 2, 'layout__row_tokens': 96, **changes})
  task = task_lib.make_task(
      dataclasses.replace(config, mesh=MeshConfig(data=devices)), lambda line: None)
  stage = source_lib.make_stage_plan(
      task.dataset.splits['train'], task.codec, devices, lambda line: None)
  program = step_lib.make_program(config, task.vocab_size, stage.num_steps, task.mesh)
  with jax.set_mesh(task.mesh):
    return task, stage, program, *program.init(jax.random.key(0))


def compute(task, stage, program, state, frozen, records, say=lambda line: None):
  with jax.set_mesh(task.mesh):
    return valid_loss.ValidLoss(task, stage, program, frozen, records, say).compute(state)


@pytest.mark.parametrize('method, changes', [
    ('rim_stage1', {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('codi', {}), ('coconut_stage', {}), ('rim_stage2', {'loop__num_passes': 3}),
        ('icot', {'icot__remove_per_epoch': 32.0, 'icot__hold_epochs': 0.0,
                  'train__num_examples': 160})))])
def test_it_is_the_loss_of_each_record_by_itself(tmp_path, use_devices, method, changes):
  task, stage, program, state, frozen = make(tmp_path, method, use_devices, **changes)
  records = run_scores.get_records(task, 'valid', 0)
  found = compute(task, stage, program, state, frozen, records)
  model = transformer.merge_model(program.graphdef, state.params, frozen)
  total = norm = 0.0
  for record in records:
    example = task.codec.lay_out(
        task.codec.encode(record), order.ALL if task.codec.removal else 0)
    row = source_lib.rows_lib.make_rows(
        [[example]], 96, 48, task.config.layout, task.codec.memory_start)
    part, sums = step_lib.compute_loss(
        model, jax.tree.map(jnp.asarray, row), 0, stage.num_steps, stage.max_blocks, task.config,
        None, batch_lib.RowLimits())
    total, norm = total + float(part), norm + float(sums['norm'])
  assert found['valid/loss'] == pytest.approx(total / norm, rel=1e-5)
  assert all(key.startswith(('valid/loss', 'valid/nll_block_')) for key in found) and (
      len(found) > 1)


def test_it_is_the_same_on_a_mesh_and_leaves_out_what_has_no_room(tmp_path, use_devices):
  wide = {'model__max_positions': 256}  # so that rows alone have no room
  task, stage, program, state, frozen = make(tmp_path, 'rim_stage1', use_devices, **wide)
  records, said = run_scores.get_records(task, 'valid', 0), []
  found = compute(task, stage, program, state, frozen, records)
  long = [dataclasses.replace(records[0], steps=('1',) * 12),  # more blocks, more tokens
          dataclasses.replace(records[0], question='1+' * 60 + '1')]
  assert compute(task, stage, program, state, frozen, [*long, *records], said.append) == found
  assert said == ['valid: valid/loss leaves out 2 of 10 records, which need more room than any row '
                  'of training has']
  assert compute(task, stage, program, state, frozen, long, said.append) == {}
  on_two = compute(*make(tmp_path, 'rim_stage1', use_devices, 2, **wide), records)
  assert on_two == pytest.approx(found, rel=1e-5)
