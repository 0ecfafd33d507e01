"""Weights of attention against a forward pass in numpy, on each readout's own plain sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from rim_jax.evaluation import attention_weights
from rim_jax.model import attention
from tests import support

SWITCHES = {
    'closing token': ('', {}), 'prefix': ('+-', {}),
    'tiles, one head of keys': ('+-', {'model__attention_tile_tokens': 16,
                                       'model__num_kv_heads': 1}),
    'hidden question': ('+-', {'layout__readout_sees_question': False}),
    'bidirectional': ('', {'layout__bidirectional_blocks': True})}


def make_config(prefix, **switches):
  return support.make_config('rim_stage2', layout__answer_prefix=prefix, **switches)


def read(config, records=support.RECORDS, devices=1):
  network = support.make_network(config, support.make_model(config), devices)
  return attention_weights.read_attention(network, records), network.params, network.codec


def compute_plainly(params, config, ids, mask):
  """f[l, t, t], means over heads: RMSNorm, softmax, GELU and residuals written out."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = np.concatenate([p['embedding'], p['memory']])[ids] + p['positions'][:len(ids)]

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.model.norm_eps) * scale
  found, b = [], p['blocks']
  repeat = config.model.num_heads // b['key']['kernel'].shape[2]
  for i in range(config.model.num_layers):
    h = norm(x, b['attention_norm']['scale'][i])
    q, k, v = (np.einsum('td,dhk->htk', h, b[name]['kernel'][i]) for name in (
        'query', 'key', 'value'))
    k, v = (np.repeat(y, repeat, 0) for y in (k, v))
    scores = np.where(mask, np.einsum('htk,hck->htc', q, k) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found.append(weights.mean(0))
    x = x + np.einsum('htc,hck,hkd->td', weights, v, b['out']['kernel'][i])
    u = norm(x, b['mlp_norm']['scale'][i]) @ b['up']['kernel'][i]
    x = x + u * (1 + special.erf(u / np.sqrt(2))) / 2 @ b['down']['kernel'][i]
  return np.stack(found)


@pytest.mark.parametrize('case', SWITCHES)
def test_weights_are_those_of_a_forward_pass_written_out(case):
  prefix, switches = SWITCHES[case]
  config = make_config(prefix, **switches)
  found, params, codec = read(config)
  num_prefix, size, total = len(prefix), 3, []
  assert found['groups'] == ['question', 'block 1', 'block 2', 'block 3', 'readout']
  assert ('closing' in found['what']) == (not prefix)
  for record, entry in zip(support.RECORDS, found['questions'], strict=True):
    question = codec.tokenizer.encode(record.question)
    assert (entry['question'], entry['answer']) == (record.question, record.answer)
    assert ''.join(entry['tokens']) == record.question
    total.append(entry['by_group'])
    for k in (1, 2, 3):
      memory = list(range(codec.memory_start, codec.memory_start + size)) * k
      ids = [*question, *memory, *codec.tokenizer.encode(prefix)]
      mask = support.make_plain_mask(config, len(ids), len(question), num_prefix)
      want = compute_plainly(params, config, ids, mask)[:, -1]
      n = len(question)
      groups = [want[:, :n].sum(-1),
                *(want[:, n + size * j:n + size * (j + 1)].sum(-1) if j < k else 0 * want[:, 0]
                  for j in range(3)), want[:, n + size * k:].sum(-1)]
      np.testing.assert_allclose(entry['by_group'][k - 1], np.stack(groups, 1), atol=3e-6)
      np.testing.assert_allclose(entry['by_token'][k - 1], want[:, :n].mean(0), atol=3e-6)
  np.testing.assert_allclose(found['mean'], np.mean(total, 0), atol=1e-6)


@pytest.mark.parametrize('case', ['prefix', 'hidden question'])
def test_weights_sum_to_one_and_are_none_where_nothing_is_seen(case):
  """By block: f[block read, layer, group]; a later block, and a hidden question, get exactly 0."""
  prefix, switches = SWITCHES[case]
  config = make_config(prefix, **switches)
  weights = np.asarray([q['by_group'] for q in read(config)[0]['questions']])
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  for k in (1, 2, 3):
    assert not weights[:, k - 1, :, 1 + k:4].any() and weights[:, k - 1, :, 1:1 + k].all()
  assert weights[..., 0].any() == (case == 'prefix') and weights[..., 4].all()


def test_devices_change_nothing():
  config = make_config('+-')
  one, eight = (read(config, devices=n)[0] for n in (1, 8))
  assert one['num_questions'] == eight['num_questions'] == 5
  np.testing.assert_allclose(one['mean'], eight['mean'], atol=3e-6)
  assert [q['tokens'] for q in one['questions']] == [q['tokens'] for q in eight['questions']]


@pytest.mark.slow
def test_the_weights_are_those_by_which_attention_means():
  """Whatever the values: on more keys than a head has dimensions, in bfloat16 too."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, (2, t, heads, 4)) for key, t, heads in zip(
      keys, (3, 11, 11), (2, 1, 1)))
  visible = jax.random.bernoulli(keys[3], 0.5, (2, 3, 11)).at[:, :, 0].set(True)
  visible = visible.at[1, 2].set(False)  # padding
  weights = np.asarray(attention_weights.weigh(q, k, visible))
  out = attention.attend(q, k, v, visible)
  np.testing.assert_allclose(np.einsum('bsc,bck->bsk', weights, v[:, :, 0])[:, :2],
                             out.mean(2)[:, :2], atol=1e-5)
  assert not weights[~np.asarray(visible)].any()
  half = np.asarray(attention_weights.weigh(
      q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), visible))
  assert half.dtype == np.float32
  np.testing.assert_allclose(half.sum(-1), [[1, 1, 1], [1, 1, 0]], atol=1e-6)
