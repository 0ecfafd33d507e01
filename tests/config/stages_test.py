"""A curriculum's stages share its budget and differ in what they say, and in nothing else."""

import pytest

from rim_jax import config as config_lib
from rim_jax.config import stages as stages_lib
from tests import support


def test_a_single_method_is_one_stage():
  config = support.make_config('pause')
  assert stages_lib.make_stages(config) == [('', config)]


@pytest.mark.parametrize('budget', [{'num_examples': 1001}, {'num_epochs': 2.5}])
def test_stages_share_the_budget_and_change_rate_and_dropout_only(budget):
  config = support.make_config(
      'rim', **{f'train__{k}': v for k, v in ({'num_examples': 0} | budget).items()},
      curriculum__stage1_frac=0.6, curriculum__stage2_learning_rate_scale=0.5,
      curriculum__stage2_dropout=0.3, model__dropout=0.1, optim__learning_rate=2e-3,
      curriculum__stage2_lora_dropout=0.2)
  (name1, stage1), (name2, stage2) = stages_lib.make_stages(config)
  assert (name1, name2) == ('stage1', 'stage2')
  key, total = next(iter(budget.items()))
  shares = [getattr(s.train, key) for s in (stage1, stage2)]
  assert sum(shares) == pytest.approx(total)
  assert shares[0] == pytest.approx(0.6 * total, abs=0.5 if key == 'num_examples' else 1e-9)
  changed = []
  for stage in (stage1, stage2):
    assert config_lib.find_problems(stage) == []
    flat, base = config_lib.flatten(stage), config_lib.flatten(config)
    changed.append({k: v for k, v in flat.items() if v != base[k] and k != f'train.{key}'})
  assert changed == [{'method': 'rim_stage1'},
                     {'method': 'rim_stage2', 'model.dropout': 0.3, 'model.lora.dropout': 0.2,
                      'optim.learning_rate': 1e-3}]


@pytest.mark.parametrize('method', ['rim', 'coconut', 'lotus'])
@pytest.mark.parametrize('key, budget', [('examples', 1001), ('epochs', 2.5)])
def test_stages_go_on_in_the_data_where_the_one_before_ended(method, key, budget):
  config = support.make_config(method, curriculum__continue_data=True, **{
      'train__num_examples': 0, f'train__num_{key}': budget, f'train__skip_{key}': 7})
  stages = [stage.train for _, stage in stages_lib.make_stages(config)]
  done, near = 7, 4 if key == 'examples' else 1e-9  # shares of examples are rounded
  for stage in stages:
    assert getattr(stage, f'skip_{key}') == pytest.approx(done, abs=near)
    done += getattr(stage, f'num_{key}')
  assert len(stages) > 1 and done == pytest.approx(7 + budget, abs=4)
  apart = stages_lib.make_stages(support.set_key(config, 'curriculum.continue_data', False))
  assert {getattr(stage.train, f'skip_{key}') for _, stage in apart} == {7}


@pytest.mark.parametrize('method', ['rim', 'coconut'])
def test_only_the_first_stage_begins_with_the_run_that_is_named(method):
  config = support.make_config(method, train__init_from='mine')
  assert config_lib.find_problems(config) == []
  named = [stage.train.init_from for _, stage in stages_lib.make_stages(config)]
  assert named == ['mine'] + [''] * (len(named) - 1) and len(named) > 1


def test_a_run_ends_at_a_step_that_is_evaluated_anyway():
  def find(stop_frac, num_steps, every_steps=500):
    return stages_lib.find_stop(num_steps, config_lib.CheckpointConfig(
        stop_frac=stop_frac, every_steps=every_steps))
  assert [find(f, 3000) for f in (0.0, 0.1, 0.5, 0.51, 1.0)] == [0, 500, 1500, 2000, 3000]
  assert find(0.9, 667) == 667 and find(1.0, 667) == 667  # the next of 500 would be 1,000
  assert find(1e-9, 3000) == 500  # one that begins has something to show
  assert find(0.1 + 0.2, 5000) == 1500  # 0.30000000000000004


@pytest.mark.parametrize('method, stop_frac, stops', [
    ('rim', 0.3, [0.4, 0.0]), ('rim', 0.75, [1.0, 0.0]), ('rim', 0.9, [1.0, 0.6]),
    ('rim', 1.0, [1.0, 1.0]), ('rim', 0.75 + 1e-12, [1.0, 0.0]),
    ('coconut', 0.5, [1.0, 1.0, 0.5, 0.0])])
@pytest.mark.parametrize('budget', [{'num_examples': 1000}, {'num_epochs': 2.5}])
def test_a_share_of_the_budget_is_each_stage_s_own(method, stop_frac, stops, budget):
  config = support.make_config(
      method, **{f'train__{k}': v for k, v in ({'num_examples': 0} | budget).items()},
      curriculum__stage1_frac=0.75, coconut__num_stages=2, coconut__stage_frac=0.2,
      checkpoint__stop_frac=stop_frac)
  stages = stages_lib.make_stages(config)
  assert [s.checkpoint.stop_frac for _, s in stages] == pytest.approx(stops)


@pytest.mark.parametrize('method, reads', [
    ('rim', [True, True]), ('coconut', [False, True, True]), ('lotus', [False, True]),
    ('cot', [False]), ('codi', [True])])
def test_a_stage_reads_memory_rows_where_blocks_stand_in_its_rows(method, reads):
  config = support.make_config(method, layout__num_blocks=1, coconut__num_stages=1,
                               lotus__num_stages=1, lotus__stage_frac=0.5)
  found = [stage.facts.reads_rows(stage.layout.num_blocks)
           for _, stage in stages_lib.make_stages(config)]
  assert found == reads
