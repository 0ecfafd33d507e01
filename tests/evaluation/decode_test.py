"""Decoding is training: the same logits, with and without the cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rim_jax.errors import UserError
from rim_jax.evaluation import decode
from rim_jax.model import transformer as transformer_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib
from tests import support

NETWORKS = {'learned': {}, 'rope': {'model__positions': 'rope', 'model__num_kv_heads': 1}}
BIDIRECTIONAL = {'layout__bidirectional_blocks': True}
HIDDEN = {'layout__readout_sees_question': False}


@pytest.mark.parametrize('prefix, network, switches', [
    ('', 'learned', {}), ('+-', 'learned', BIDIRECTIONAL), ('+-', 'rope', HIDDEN),
    *(pytest.param('+-', network, {}, marks=pytest.mark.slow) for network in NETWORKS)])
def test_logits_equal_those_of_the_training_forward(prefix, network, switches, monkeypatch):
  """Decode greedily, then lay out what was decoded as a training row: the logits agree."""
  config = support.make_config('rim_stage2', layout__answer_prefix=prefix, layout__row_tokens=96,
                               **NETWORKS[network], **switches)
  model, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  blocks = (1, 2, 3)
  questions = [codec.encode(r).question for r in support.RECORDS[:2]]
  ids, seen = support.decode_and_record(
      decoder, questions, 3, codec.template.answer_prefix, blocks, monkeypatch)
  count = config.eval.max_new_tokens
  rows = []
  for question, row in zip(questions, ids):
    readouts = tuple(
        layout_lib.Readout(k, 2, codec.template.answer_prefix, row[i].tolist())
        for i, k in enumerate(blocks))
    rows.append(layout_lib.Example(question, 3, 1, readouts))
  batch = rows_lib.make_rows([[example] for example in rows], 96, 3 * count, config.layout,
                             codec.memory_start)
  trained = np.asarray(model.compute_slot_logits(
      jax.tree.map(jnp.asarray, batch), config.layout)).reshape(2, 3, count, -1)
  support.assert_decoded_logits(ids, seen, trained, codec.tokenizer.eos_id)


@pytest.mark.parametrize('method, changes, passes', [
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('direct', {}, 1), ('rim_stage2', {}, 1), ('rim_stage2', {'loop__num_passes': 3}, 3))),
    ('rim_stage2', HIDDEN | BIDIRECTIONAL, 1),
    ('coconut_stage', {'layout__num_blocks': 1, 'layout__block_tokens': 2}, 3)])
def test_a_prefix_is_read_in_the_pass_over_the_trunk(method, changes, passes, monkeypatch):
  """Its states, keys and values are those of a pass of its own; the network is called no more."""
  config = support.make_config(method, layout__answer_prefix='+-', **changes)
  model, codec = support.make_model(config), support.make_codec(config)
  prefix, num_blocks = tuple(codec.template.answer_prefix), config.eval_blocks
  blocks = tuple(range(1, num_blocks + 1)) or (0,)
  trunks = jax.tree.map(jnp.asarray, decode.make_trunks(
      [codec.encode(r).question for r in support.RECORDS], num_blocks, 32, 6, config,
      codec.memory_start))
  calls, call = [], transformer_lib.Transformer.__call__

  def count(self, tokens, positions, *args, **settings):
    jax.debug.callback(lambda: calls.append(positions.shape[1]))
    return call(self, tokens, positions, *args, **settings)
  monkeypatch.setattr(transformer_lib.Transformer, '__call__', count)
  found = jax.jit(lambda: decode.prefill(model, config, trunks, blocks, prefix))()
  jax.effects_barrier()
  assert len(calls) == passes
  bare = jax.jit(lambda: decode.prefill(model, config, trunks, blocks))()
  jax.effects_barrier()
  assert len(calls) == 2 * passes
  assert sum(calls[:passes]) == sum(calls[passes:]) + len(prefix) * len(blocks)
  want = decode.read_prefix(model, config, decode.Readouts(
      prefix, blocks, 1, codec.tokenizer.eos_id, 16), trunks, bare)
  jax.tree.map(lambda a, b: support.assert_close(a[:5], b[:5]), found[0], want[0])
  jax.tree.map(np.testing.assert_array_equal, found[2], want[2])
  seen = (want[2].example > 0)[None, :5, :, None, None]
  jax.tree.map(lambda a, b: support.assert_close(
      jnp.where(seen, a[:, :5], 0), jnp.where(seen, b[:, :5], 0)), found[1], want[1])


@pytest.mark.parametrize('method, prefix', [
    ('rim_stage2', '+'), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('rim_stage2', ''), ('cot', '')))])
def test_greedy_answers_agree_with_decoding_without_a_cache(method, prefix):
  config = support.make_config(method, layout__answer_prefix=prefix)
  model, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  num_blocks, blocks = (0, (0,)) if method == 'cot' else (3, (1, 2, 3))
  forced = () if method == 'cot' else codec.template.answer_prefix
  questions = [codec.encode(r).question for r in support.RECORDS]
  texts, ended = decoder.decode_texts(questions, num_blocks, forced, blocks)

  @jax.jit
  def next_ids(tokens):
    t = tokens.shape[1]
    x, _ = model(tokens, jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)))
    return model.compute_logits(x).argmax(-1)
  for question, row, done in zip(questions, texts, ended):
    for i, k in enumerate(blocks):
      ids = [*layout_lib.make_trunk(question, k, config.layout, codec.memory_start), *forced]
      out = []
      for _ in range(config.eval.max_new_tokens):
        padded = jnp.zeros((1, 40), jnp.int32).at[0, :len(ids)].set(jnp.asarray(ids))
        out.append(int(next_ids(padded)[0, len(ids) - 1]))
        if out[-1] == codec.tokenizer.eos_id:
          break
        ids.append(out[-1])
      assert done[i] == (out[-1] == codec.tokenizer.eos_id)
      assert row[i] == codec.tokenizer.decode([o for o in out if o != codec.tokenizer.eos_id])


@pytest.mark.slow
def test_neither_the_batch_nor_the_mesh_nor_the_width_changes_an_answer():
  config = support.make_config('rim_stage2', eval__batch_size=3)
  wide = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=8))
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS] + [codec.encode(
      support.RECORDS[0]).question * 4]
  results = []
  for c, devices in ((config, 1), (wide, 1), (config, 8)):
    _, decoder = support.make_decoder(c, devices)
    results.append(decoder.decode_texts(questions, 3, (), (1, 2, 3))[0])
  assert results[0] == results[1] == results[2]


def test_drawn_answers_do_not_depend_on_the_batch_or_the_mesh():
  config = support.make_config('rim_stage2', eval__batch_size=3)
  wide = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=8))
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS] + [codec.encode(
      support.RECORDS[0]).question * 4]
  runs = []
  for c, devices, blocks in ((config, 1, (1, 2, 3)), (wide, 8, (1, 2, 3)), (wide, 1, (3,))):
    _, decoder = support.make_decoder(c, devices)
    runs.append([decoder.decode_texts(questions, 3, (), blocks, sample=s)[0]
                 for s in (0, 1)])
  assert runs[0] == runs[1]
  assert runs[2] == [[row[-1:] for row in sample] for sample in runs[0]]
  first, second = runs[0]
  assert first != second and len({row[-1] for row in first + second}) > 2
  _, decoder = support.make_decoder(dataclasses.replace(config, seed=1))
  assert decoder.decode_texts(questions, 3, (), (1, 2, 3), sample=0)[0] != first


def test_without_temperature_an_answer_is_the_greedy_one():
  config = support.make_config('rim_stage2', eval__temperature=1e-6)
  _, decoder = support.make_decoder(config)
  questions = [support.make_codec(config).encode(r).question for r in support.RECORDS]
  run = functools.partial(decoder.decode_texts, questions, 3, (), (1, 3))
  greedy = run()
  for sample in (0, 5):
    texts, ended = run(sample=sample)
    assert texts == greedy[0] and (ended == greedy[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_first_tokens_are_drawn_from_the_softmax(temperature):
  """One question 4,000 times: each id as often as the plain forward's softmax says."""
  config = support.make_config('rim_stage2', layout__num_blocks=1, eval__max_new_tokens=1,
                               eval__batch_size=4000, eval__temperature=temperature)
  model, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  question = codec.encode(support.RECORDS[0]).question
  trunks = decoder.place([question] * 4000, 1, 4000)
  draw = np.arange(4000, dtype=np.int32), 0
  ids = np.asarray(decoder.run(trunks, (), (1,), draw))[:, 0, 0]
  tokens = layout_lib.make_trunk(question, 1, config.layout, codec.memory_start)
  t = len(tokens)
  x, _ = model(jnp.asarray(tokens)[None], jnp.arange(t)[None],
               jnp.tril(jnp.ones((1, t, t), bool)))
  chances = np.asarray(jax.nn.softmax(model.compute_logits(x)[0, -1] / temperature), np.float64)
  expected = 4000 * chances / chances.sum()
  counts = np.bincount(ids, minlength=len(expected))
  often = expected >= 5  # the test's condition; the others are one class
  if not often.all():
    counts, expected = (np.append(x[often], x[~often].sum()) for x in (counts, expected))
  assert len(expected) > 3
  assert stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.slow
def test_a_block_reads_the_same_whatever_follows_it():
  """The trunk is causal: K = 3's first readouts are K = 1's and K = 2's."""
  config = support.make_config('rim_stage2')
  _, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS]
  run = functools.partial(decoder.decode_texts, questions)
  three = run(3, (), (1, 2, 3))[0]
  assert [row[:1] for row in three] == run(1, (), (1,))[0]
  assert [row[:2] for row in three] == run(2, (), (1, 2))[0]


def test_widths_are_few_and_large_enough():
  widths = {decode.choose_width(n) for n in range(1, 1025)}
  assert widths == {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
  assert all(decode.choose_width(n) >= n for n in range(1, 3000))


def test_positions_beyond_a_window_are_refused():
  config = support.make_config(layout__block_tokens=1, model__positions='rope',
                               model__sliding_window=64)
  decode.check_positions(10, 3, 45, config, 'here')
  with pytest.raises(UserError, match='needs 65 positions, .* has model.sliding_window='):
    decode.check_positions(10, 3, 46, config, 'here')


def test_positions_beyond_the_table_are_refused():
  config = support.make_config('rim_stage2')
  decode.check_positions(10, 3, 45, config, 'here')
  with pytest.raises(UserError, match='here: a question of 10 tokens .* and the model has '):
    decode.check_positions(10, 3, 46, config, 'here')


def list_equations(jaxpr, name):
  """Every equation of a primitive, also within others."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from list_equations(inner, name)


def test_a_token_that_is_decoded_copies_no_cache_of_all_layers():
  """In a loop over layers the cache is carried: what is listed by layer is copied in and out."""
  config = support.make_config('rim_stage2', model__scan_layers=True)
  _, decoder = support.make_decoder(config)
  trunks = decoder.place([[1, 2], [3, 4]], 3, 2)
  with jax.set_mesh(decoder.network.mesh):
    whole = jax.make_jaxpr(decoder._decode, static_argnums=2)(
        *decoder.network.arrays, decoder.make_readouts((), (1, 2, 3)), trunks, None).jaxpr
  (loop,) = [e for e in list_equations(whole, 'while') if list(
      list_equations(e.params['body_jaxpr'].jaxpr, 'scan'))]
  layers, = list_equations(loop.params['body_jaxpr'].jaxpr, 'scan')
  one = layers.params['jaxpr'].jaxpr  # of what is listed it sees one layer's part
  pairs = [*zip(layers.invars, one.invars, strict=True),
           *zip(layers.outvars, one.outvars, strict=True)]
  carried = [x for x, y in pairs if x.aval.ndim == y.aval.ndim]
  listed = [x for x, y in pairs if x.aval.ndim == y.aval.ndim + 1]
  assert len(carried) + len(listed) == len(pairs) and any(x.aval.ndim == 5 for x in carried)
  assert listed and not [x for x in listed if x.aval.ndim == 5]
