"""The visibility rule against a slow one written from the sentences of docs/concepts.md."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.packing import batch as batch_lib
from tests import support


def see_slowly(rows, r, q, k, sees_question, bidirectional):
  f = {name: getattr(rows, name)[r] for name in ('example', 'block', 'readout')}
  if f['example'][q] != f['example'][k]:
    return False
  if f['readout'][q] == 0:  # trunk: the trunk before it, by index
    if f['readout'][k] != 0:
      return False
    own = bidirectional and f['block'][q] == f['block'][k] > 0
    return bool(k <= q or own)
  if f['readout'][k] == 0:  # readout of block k: the trunk up to block k
    seen = sees_question or f['block'][k] > 0 or f['block'][q] == 0
    return bool(f['block'][k] <= f['block'][q] and seen)
  return bool(f['readout'][k] == f['readout'][q] and k <= q)


@pytest.mark.parametrize('method', ['rim_stage1', 'rim_stage2', 'cot'])
@pytest.mark.parametrize('sees_question', [True, False])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_rule_equals_the_sentences(method, sees_question, bidirectional):
  config = support.make_config(method, layout__row_tokens=80)
  rows = support.make_batch(config, [support.RECORDS[:2], support.RECORDS[2:4]])
  fields = batch_lib.get_fields(rows)
  fast = batch_lib.visible(fields, fields, sees_question, bidirectional)
  for r in range(2):
    used = np.flatnonzero(rows.example[r])
    slow = [[see_slowly(rows, r, q, k, sees_question, bidirectional) for k in used] for q in used]
    np.testing.assert_array_equal(fast[r][np.ix_(used, used)], slow)
    assert not fast[r][used][:, rows.example[r] == 0].any()


def test_numpy_and_jax_agree():
  rows = support.make_batch(support.make_config(), [support.RECORDS[:3]])
  fields = batch_lib.get_fields(rows)
  on_device = batch_lib.Fields(*(jnp.asarray(getattr(fields, f.name))
                                 for f in dataclasses.fields(fields)))
  there = batch_lib.visible(on_device, on_device)
  here = batch_lib.visible(fields, fields)
  assert isinstance(here, np.ndarray)
  np.testing.assert_array_equal(np.asarray(there), here)
