"""What a configuration may say and is hardly meant to say is told, and nothing else."""

import dataclasses

import pytest

from rim_jax.config import rules
from tests import support


@pytest.mark.parametrize('trainable, rank, dropout, told', [
    ('lora', 8, 0.0, ()), ('all', 0, 0.1, ()), ('all', 8, 0.1, ('adapters of rank 8',)),
    ('lora', 8, 0.1, ("frozen model's own states",))])
def test_doubts_about_a_pretrained_model(trainable, rank, dropout, told):
  changes = {'optim__trainable': trainable, 'model__lora__rank': rank, 'model__dropout': dropout}
  config = support.make_config(**changes)
  found = rules.list_doubts(dataclasses.replace(config, model=dataclasses.replace(
      config.model, init_from='model')))
  assert len(found) == len(told) and all(part in line for part, line in zip(told, found))
  assert rules.list_doubts(config) == []
