"""Plans of an answer: what is compiled for each method, and what is made of it."""

import jax
import pytest

from rim_jax.errors import UserError
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import latency, machines
from rim_jax.report import plans, tables
from tests import support


@pytest.fixture
def here(monkeypatch):
  """This CPU in place of a machine that is not here."""
  machine = machines.Machine('h100:1', 1, jax.devices(), machines.GPU_CHIPS['h100'])
  monkeypatch.setattr(latency, 'make_machine', lambda *_: machine)
  monkeypatch.setattr(machines.Machine, 'platform', 'cpu')


@pytest.mark.slow
def test_every_method_is_compiled_and_compared_with_direct_answering(here):
  config = support.make_config('rim', model__num_layers=1, model__embed_dim=16,
                               layout__answer_prefix='+', model__attention_tile_tokens=0,
                               data__chain__max_steps=12)
  entries = latency.plan_latency(config, 'v5e:2x4', lambda line: None, sizes=(1,))
  found = {e['method']: e for e in entries}
  assert list(found) == ['direct', 'rim', 'rim_all', 'coconut', 'cot']
  for entry in entries:
    for part in latency.PARTS:
      got = entry[part]
      assert got['secs'] == max(got['compute_secs'], got['hbm_secs']) > 0
      assert got['unknown_kernels'] == []
      assert got['ratio'] == got['secs'] / found['direct'][part]['secs']
      assert got['cached_ratio'] == got['cached_secs'] / found['direct'][part]['cached_secs']
      assert got['cached_hbm_bytes'] < got['hbm_bytes']
  encoded, template = typical_lib.make_typical_record(config)
  chain = sum(len(s) + len(template.step_separator) for s in encoded.steps)
  # One turn for each token that stands before the answer's first.
  assert found['cot']['first_token']['turns'] == chain + len(template.answer_prefix)
  assert found['direct']['first_token']['turns'] == 0
  flops = {name: entry['first_token']['flops'] for name, entry in found.items()}
  assert flops['direct'] < flops['rim'] < flops['rim_all']
  assert flops['direct'] < min(flops['cot'], flops['coconut'])
  _, *table = tables.to_markdown(plans.make_latency(entries))
  assert len(table) == 2 + len(entries) and '| rim_all | 1 |' in '\n'.join(table)


@pytest.mark.parametrize('method, changes, told', [
    ('direct', {}, 'method=direct has no memory blocks'),
    ('codi', {'layout__num_blocks': 1}, 'method=codi has no memory blocks'),
    ('rim', {'loop__num_passes': 2}, 'reads its blocks 2 times')])
def test_what_is_not_rim_in_one_pass_is_refused(method, changes, told):
  with pytest.raises(UserError, match=told):
    latency.plan_latency(support.make_config(method, **changes), 'v5e:2x4', lambda line: None)
