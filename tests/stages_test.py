"""A curriculum's stages share its budget and differ in what they say, and in nothing else."""

import pytest

from rim_jax import config as config_lib
from rim_jax import stages as stages_lib
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
