"""What a configuration may say and is hardly meant to say is told, and nothing else."""

import dataclasses

import pytest

from rim_jax.config import rules
from tests import support


@pytest.mark.parametrize('trainable, rank, dropout, told, more', [
    ('lora', 8, 0.0, (), {}), ('all', 0, 0.1, (), {}),
    ('all', 8, 0.1, ('adapters of rank 8',), {}),
    ('lora', 8, 0.1, ("frozen model's own states",), {}),
    ('all', 0, 0.0, ('nothing is dropped',), {'model__lora__dropout': 0.1}),
    ('all', 0, 0.1, (), {'model__lora__dropout': 0.1}),
    ('lora', 8, 0.0, (), {'model__lora__dropout': 0.1}),
    ('all', 0, 0.1, ('stage 2 will have',), {'method': 'rim_stage1',
                                             'curriculum__stage2_dropout': 0.0}),
    ('all', 0, 0.1, (), {'method': 'rim_stage1', 'curriculum__stage2_dropout': 0.1})])
def test_doubts_about_a_pretrained_model(trainable, rank, dropout, told, more):
  changes = {'optim__trainable': trainable, 'model__lora__rank': rank, 'model__dropout': dropout}
  config = support.make_config(**changes, **more)
  found = rules.list_doubts(dataclasses.replace(config, model=dataclasses.replace(
      config.model, init_from='model')))
  assert len(found) == len(told) and all(part in line for part, line in zip(told, found))
  assert rules.list_doubts(config) == []
