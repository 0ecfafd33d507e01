"""The invariant, causality by gradient, and the settings of the network."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.training import loss as loss_lib
from tests import support
from tests.support import make_plain_mask

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
# Between them, every setting that a published family needs.
NETWORKS = {
    'learned': {'model__norm': 'layernorm', 'model__bias': 'all', 'model__fused_qkv': True,
                'model__activation': 'gelu_tanh', 'model__attention_tile_tokens': 16},
    'rope': {'model__positions': 'rope', 'model__rope_scaling': 'llama3',
             'model__rope_original_positions': 16, 'model__bias': 'qkv', 'model__qk_norm': True,
             'model__tie_embeddings': False, 'model__activation': 'swiglu',
             'model__num_kv_heads': 1, 'model__head_dim': 6, 'model__lora__rank': 2,
             'model__attention_tile_tokens': 40},
    'local': {'model__positions': 'rope', 'model__rope_scaling': 'linear', 'model__global_every': 2,
              'model__local_rope_theta': 100.0, 'model__norm': 'rmsnorm_1p', 'model__qk_norm': True,
              'model__post_norms': True, 'model__scale_embeddings': True,
              'model__query_scale_dim': 5, 'model__activation': 'geglu', 'model__head_dim': 6},
}


def make_config(method, network, **more):
  return support.make_config(method, layout__row_tokens=96, **NETWORKS[network], **more)


def unpack(config, example, readout, memory_start):
  """`[x, m_1..m_k, readout_k]` as plain ids, and where its targets are predicted."""
  block = [memory_start] + [memory_start + 1] * config.layout.block_tokens + [memory_start + 2]
  trunk = [*example.question, *block * readout.block]
  ids = [*trunk, *readout.prefix, *readout.target[:-1]]
  first = len(trunk) + len(readout.prefix) - 1
  return ids, list(range(first, first + len(readout.target)))


def make_plain_sequences(config):
  """Every readout of ROWS as a plain sequence of its own, padded behind its end."""
  codec = support.make_codec(config)
  found = []
  for record in [r for row in ROWS for r in row]:
    example = codec.lay_out(codec.encode(record))
    found += [(example, readout, *unpack(config, example, readout, codec.memory_start))
              for readout in example.readouts]
  t = max(len(ids) for _, _, ids, _ in found)
  tokens, masks = np.zeros((len(found), t), int), np.zeros((len(found), t, t), bool)
  masks[:] = np.eye(t, dtype=bool)
  for i, (example, readout, ids, _) in enumerate(found):
    n = len(ids)
    tokens[i, :n] = ids
    masks[i, :n, :n] = make_plain_mask(config, n, len(example.question), readout.num_tokens)
  rows = np.concatenate([[i] * len(at) for i, (*_, at) in enumerate(found)])
  slots = np.concatenate([at for *_, at in found])
  targets = np.concatenate([readout.target for _, readout, *_ in found])
  return tokens, masks, rows, slots, targets


def both_losses(config):
  """(packed, separate): functions of the model giving (logits of all slots, summed NLL)."""
  batch = support.make_batch(config, ROWS, row_slots=80)
  used = np.nonzero(batch.slot_kind)
  tokens, masks, rows, slots, targets = make_plain_sequences(config)
  np.testing.assert_array_equal(batch.slot_target[used], targets)

  def packed(model):
    logits = model.compute_slot_logits(jax.tree.map(jnp.asarray, batch), config.layout)
    nll = loss_lib.compute_slot_nll(logits, jnp.asarray(batch.slot_target))
    return logits[used], nll[used].sum()

  def separate(model):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, _ = model(jnp.asarray(tokens), positions, jnp.asarray(masks))
    logits = model.compute_logits(x)[rows, slots]
    return logits, loss_lib.compute_slot_nll(logits[None], jnp.asarray(targets)[None]).sum()
  return packed, separate


DEPTH0, BIDIRECTIONAL = {'layout__depth0_readout': True}, {'layout__bidirectional_blocks': True}
HIDDEN = {'layout__readout_sees_question': False}


@pytest.mark.parametrize('network, method, prefix, switches', [
    ('rope', 'rim_stage1', '+-', BIDIRECTIONAL),
    ('learned', 'rim_stage1', '+-', DEPTH0 | HIDDEN),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('local', 'rim_stage2', '', {}), ('learned', 'rim_stage1', '', {}),
        ('learned', 'cot', '+', {}),
        ('rope', 'rim_stage1', '+-', {}), ('rope', 'rim_stage2', '', {}),
        ('learned', 'rim_stage2', '+-', {}),
        ('learned', 'rim_stage1', '+-', DEPTH0), ('learned', 'rim_stage2', '+-', HIDDEN))),
])
def test_one_packed_pass_equals_separate_forwards(network, method, prefix, switches):
  """docs/concepts.md: logits and gradients, several examples in a row, T = 0 among them."""
  config = make_config(method, network, layout__answer_prefix=prefix, layout__step_prefix=prefix,
                       **switches)
  packed, separate = both_losses(config)
  # Of the first seeds the one whose gradients cancel least: rounding alone is 5e-5 on the worst.
  graphdef, params = nnx.split(support.make_model(config, seed=3))
  outs = []
  for fn in (packed, separate):
    def compute(p, fn=fn):
      logits, loss = fn(nnx.merge(graphdef, p))
      return loss, logits
    (_, logits), grads = jax.jit(jax.value_and_grad(compute, has_aux=True))(params)
    outs.append((logits, grads))
  support.assert_close(outs[0][0], outs[1][0])
  flat = [dict(nnx.to_flat_state(o[1])) for o in outs]
  assert flat[0].keys() == flat[1].keys()
  for path in flat[0]:
    a, b = flat[0][path].get_value(), flat[1][path].get_value()
    support.assert_close(a, b)


def make_token_gradient(config, batch):
  """slot weights -> |d(weighted NLL) / d(what is added to each token's embedding)|: [b, t]."""
  model = support.make_model(config)
  batch = jax.tree.map(jnp.asarray, batch)
  real = transformer_lib.memory.look_up

  def loss(added_btd, weights):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(transformer_lib.memory, 'look_up', lambda *args: real(*args) + added_btd)
      logits = model.compute_slot_logits(batch, config.layout)
    nll = loss_lib.compute_slot_nll(logits, batch.slot_target)
    return loss_lib.compute_weighted_nll(nll, weights).sum()
  gradient = jax.jit(jax.grad(loss))
  zeros = jnp.zeros((*batch.tokens.shape, config.model.embed_dim))
  return lambda weights: np.abs(np.asarray(gradient(zeros, weights))).max(-1)


@pytest.mark.parametrize('method', ['rim_stage1', *(
    pytest.param(method, marks=pytest.mark.slow) for method in ('rim_stage2', 'cot'))])
def test_gradient_flows_from_what_a_slot_sees_and_from_nothing_else(method):
  """From every token that the slot's token sees; not from later ones, other readouts, examples."""
  config = make_config(method, 'learned', layout__answer_prefix='+-', layout__step_prefix='+')
  batch = support.make_batch(config, [support.RECORDS[:3]], row_slots=80)
  fields = batch_lib.get_fields(batch)
  # Seeing is transitive here: what is seen through another token is seen directly too.
  mask = batch_lib.visible(fields, fields)[0]
  compute = make_token_gradient(config, batch)
  for slot in np.flatnonzero(batch.slot_kind[0]):
    flows = compute(jnp.zeros(batch.slot_kind.shape).at[0, slot].set(1.0))[0] > 0
    np.testing.assert_array_equal(flows, mask[batch.slot_index[0, slot]])


def test_a_slot_of_weight_zero_gives_exactly_zero_gradient():
  config = make_config('rim_stage1', 'learned')
  batch = support.make_batch(config, [support.RECORDS[:3]], row_slots=80)
  compute = make_token_gradient(config, batch)
  assert (compute(jnp.zeros(batch.slot_kind.shape)) == 0).all()
  # and with the last example's slots off, nothing reaches its tokens
  last = batch.example == 3
  slots_of_last = np.take_along_axis(last, batch.slot_index, 1)
  gradient = compute(jnp.asarray((batch.slot_kind > 0) & ~slots_of_last, jnp.float32))
  assert (gradient[last] == 0).all() and (gradient[batch.example == 1] > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize('network, policy', [
    ('learned', 'full'), pytest.param('rope', 'dots', marks=pytest.mark.slow)])
def test_remat_changes_nothing(network, policy):
  plain = make_config('rim_stage1', network)
  remat = make_config('rim_stage1', network, model__remat=policy)
  batch = jax.tree.map(jnp.asarray, support.make_batch(plain, ROWS, row_slots=80))

  def gradient(config):
    graphdef, params = nnx.split(support.make_model(config))
    def loss(p):
      return jnp.square(nnx.merge(graphdef, p).compute_slot_logits(batch, config.layout)).sum()
    return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)), str(jax.make_jaxpr(loss)(params))
  (a, plain_jaxpr), (b, remat_jaxpr) = gradient(plain), gradient(remat)
  jax.tree.map(support.assert_close, a, b)
  assert 'remat' in remat_jaxpr and 'remat' not in plain_jaxpr


@pytest.mark.slow
def test_layers_one_by_one_are_those_of_the_loop():
  """Values, gradients and a cache; without a loop, and computed again where that is asked for."""
  batch = support.make_batch(make_config('rim_stage1', 'rope'), ROWS, row_slots=80)
  batch = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
  visible = batch_lib.visible(*[batch_lib.get_fields(batch)] * 2)

  def compute(scan_layers):
    config = make_config('rim_stage1', 'rope', model__remat='dots', model__scan_layers=scan_layers)
    graphdef, params = nnx.split(support.make_model(config))

    def loss(p):
      model = nnx.merge(graphdef, p)
      x, kv = model(batch.tokens, batch.positions, visible, return_kv=True)
      y, kv = model(batch.tokens[:, :3], batch.positions[:, :3], visible[:, :3],
                    cache=transformer_lib.Cache(kv))
      return jnp.square(x).sum() + jnp.square(y).sum(), (x, y, kv)
    lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
    found, grads = lowered.compile()(params)
    return (found, nnx.to_pure_dict(grads)), lowered.as_text()
  (found, text), (want, in_a_loop) = compute(False), compute(True)
  jax.tree.map(support.assert_close, found, want)
  assert 'stablehlo.while' in in_a_loop and 'stablehlo.while' not in text
  assert 'optimization_barrier' in text  # else the compiler would merge what is computed twice


@pytest.mark.parametrize('policy, sums', [('full', 0), ('dots', 2)])
def test_what_is_kept_for_the_backward_pass(policy, sums):
  """dots: of the feed-forward layer the sums of up and of gate, once. Both: means of norms."""
  config = make_config('rim_stage1', 'rope', model__remat=policy, model__mlp_dim=33)
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS, row_slots=80))
  graphdef, params, frozen = nnx.split(support.make_model(config), nnx.LoRAParam, ...)

  def loss(params):
    return nnx.merge(graphdef, params, frozen).compute_slot_logits(batch, config.layout).sum()
  jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
  forward, _ = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'scan'
                and e.params['length'] == config.model.num_layers]
  # Stacked, an array a layer; what the loop carries is not.
  kept = [v.aval.shape for v in forward.outvars
          if v.aval.shape[:1] == (config.model.num_layers,)]
  assert len([s for s in kept if s[-1] == 33]) == sums, kept
  means = [s for s in kept if s[-1] == 1]
  assert len(means) == 4, kept  # of two norms of the width, and those of queries and keys
  if policy == 'full':
    assert {s[-1] for s in kept} == {1, config.model.embed_dim}, kept


def test_gelu_in_16_bits_is_the_exact_one_rounded():
  x = jnp.linspace(-8, 8, 4001).astype(jnp.bfloat16)
  gelu = transformer_lib._ACTIVATIONS['gelu_tanh']
  wide = x.astype(jnp.float32)
  np.testing.assert_array_equal(gelu(wide), jax.nn.gelu(wide))  # runs of before round as they did
  exact = np.asarray(x, np.float64)
  z = np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
  slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * exact**2)
  gradient = jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(x)
  for found, want in ((gelu(x), exact * (1 + np.tanh(z)) / 2),
                      (gradient, (1 + np.tanh(z)) / 2 + exact * slope / np.cosh(z)**2 / 2)):
    assert found.dtype == jnp.bfloat16
    # Rounded once: half a step of bfloat16, 2**-9 of the number.
    np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=2**-8, atol=1e-6)


def test_dropout_comes_from_its_key_alone():
  config = make_config('rim_stage1', 'learned', model__dropout=0.5)
  model = support.make_model(config)
  batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS, row_slots=80))
  def run(key):
    return np.asarray(model.compute_slot_logits(batch, config.layout, key))
  np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
  assert (run(jax.random.key(1)) != run(jax.random.key(2))).any()
  assert (run(None) != run(jax.random.key(1))).any()


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  logits = {}
  for dtype in ('float32', 'bfloat16'):
    config = make_config('rim_stage1', 'rope', model__compute_dtype=dtype)
    batch = jax.tree.map(jnp.asarray, support.make_batch(config, ROWS, row_slots=80))
    logits[dtype] = support.make_model(config).compute_slot_logits(batch, config.layout)
    assert logits[dtype].dtype == jnp.float32
  difference = np.abs(logits['float32'] - logits['bfloat16']).max()
  assert 0 < difference < 0.1 * np.abs(logits['float32']).max()


def test_rope_depends_on_distance_only():
  q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
  frequency = transformer_lib.compute_rope_frequencies(support.make_config(
      model__positions='rope', model__head_dim=8, model__rope_theta=100.0).model)
  def score(i, j):
    a, b = (transformer_lib.apply_rope(jnp.asarray(x), transformer_lib.compute_angles(
        jnp.asarray([[at]]), frequency)) for x, at in ((q, i), (k, j)))
    return float((a * b).sum())
  assert score(5, 3) == pytest.approx(score(12, 10), rel=1e-4)
  assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-4)


def test_memory_rows_take_the_ids_beyond_the_vocabulary():
  config = make_config('rim_stage1', 'learned')
  model = support.make_model(config)
  ids = jnp.arange(model.vocab_size + layout_lib.NUM_MEMORY_ROWS)[None]
  x = transformer_lib.memory.look_up(model.embedding[...], model.memory[...], ids, jnp.float32)[0]
  np.testing.assert_array_equal(x[:-3], model.embedding[...])
  np.testing.assert_array_equal(x[-3:], model.memory[...])
  assert model.compute_logits(x).shape[-1] == model.vocab_size
