"""What every method says of itself: the tokens that it has the layers read."""

import jax
import numpy as np
import pytest

from rim_jax import methods
from rim_jax.packing import batch as batch_lib
from tests import support

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]


@pytest.mark.parametrize('method, changes, another_network', [
    ('cot', {}, False),
    ('rim_stage2', {}, False),
    ('rim_stage1', {'loop__num_passes': 3}, False),
    ('coconut_stage', {'layout__block_tokens': 3}, False),
    ('coconut_stage', {'layout__num_blocks': 0}, False),  # without thoughts
    ('coconut_stage', {'layout__block_tokens': 3, 'aux__decoder': 'copy'}, True),
    ('codi', {'layout__block_tokens': 3, 'aux__decoder': 'shared'}, False),
    ('pccot', {'layout__block_tokens': 3, 'loop__num_passes': 2}, False),
    ('lotus_stage', {'layout__block_tokens': 2, 'loop__num_passes': 3}, False)])
def test_the_tokens_that_enter_the_layers_are_those_of_its_count(
    method, changes, another_network, monkeypatch):
  """Padding too. An auxiliary network reads whole rows once."""
  config = support.make_config(method, layout__row_tokens=112, **changes)
  batch = support.make_batch(config, ROWS, row_slots=64)
  trunk_bt = (batch.example > 0) & (batch.readout == 0)
  limits = batch_lib.RowLimits(int(batch.example.max()), int(trunk_bt.sum(1).max()),
                               int((trunk_bt & (batch.block > 0)).sum(1).max()))
  model, counted = support.make_model(config), support.count_reads(monkeypatch)
  found = methods.get_method(config)
  jax.jit(lambda: found.forward(model, jax.tree.map(np.asarray, batch), config, limits)[0])()
  jax.effects_barrier()
  assert sum(counted) == 2 * (found.count_tokens(112, limits, config) + 112 * another_network)
