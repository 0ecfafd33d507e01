"""What holds of every method: the tokens that it counts, and where latents may be found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import methods
from rim_jax.config import MeshConfig
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.training import step as step_lib
from tests import support

ROWS = [support.RECORDS[:3], support.RECORDS[3:]]
LIMITS = batch_lib.RowLimits(examples=3)
# Latents that are found one by one, and together: a method, its keys.
LATENTS = {
    'coconut': ('coconut_stage', {
        'layout__block_tokens': 2, 'layout__skip_steps': 1, 'model__positions': 'learned',
        'model__norm': 'layernorm', 'model__bias': 'all', 'model__fused_qkv': True,
        'model__num_kv_heads': 0, 'model__attention_tile_tokens': 16}),
    'codi': ('codi', {'layout__block_tokens': 2}),
    'pccot': ('pccot', {'layout__block_tokens': 3, 'loop__num_passes': 3}),
    'lotus': ('lotus_stage', {'layout__block_tokens': 2, 'layout__skip_steps': 2,
                              'loop__num_passes': 3, 'curriculum__reduction': 'token'})}
LATENTS['sim_cot'] = 'coconut_stage', LATENTS['coconut'][1] | {
    'aux__decoder': 'shared', 'aux__group_tokens': 2}


def make_config(latents, **more):
  method, keys = LATENTS[latents]
  return support.make_config(method, **{
      'layout__row_tokens': 112, 'layout__num_blocks': 1, 'layout__answer_prefix': '+-',
      'model__positions': 'rope', 'model__num_kv_heads': 1, 'model__activation': 'swiglu', **keys,
      **more})


@pytest.mark.parametrize('method, changes, another_network', [
    ('cot', {}, False),
    ('rim_stage1', {'loop__num_passes': 3}, False),
    ('coconut_stage', {'layout__block_tokens': 3}, False), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ('rim_stage2', {}, False),
            ('coconut_stage', {'layout__num_blocks': 0}, False),  # without thoughts
            ('coconut_stage', {'layout__block_tokens': 3, 'aux__decoder': 'copy'}, True),
            ('codi', {'layout__block_tokens': 3, 'aux__decoder': 'shared'}, False),
            ('pccot', {'layout__block_tokens': 3, 'loop__num_passes': 2}, False),
            ('lotus_stage', {'layout__block_tokens': 2, 'loop__num_passes': 3}, False)))])
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


# ---- Latents ----


@pytest.mark.slow
@pytest.mark.parametrize('latents, more', [
    *((latents, {}) for latents in LATENTS), ('codi', {'layout__block_tokens': 1}),
    ('coconut', {'layout__readout_sees_question': False})])
def test_decoding_s_logits_are_those_of_the_training_forward(latents, more, monkeypatch):
  config = make_config(latents, **more)
  model, decoder = support.make_decoder(config)
  codec = support.make_codec(config)
  questions = [codec.encode(r).question for r in support.RECORDS[:3]]
  ids, seen = support.decode_and_record(
      decoder, questions, 1, codec.template.answer_prefix, (1,), monkeypatch)
  batch = support.write_decoded_row(codec, config, questions, ids, 112)
  # The pair of states, and what is spelled, are of training alone.
  found = dataclasses.replace(methods.get_method(config), losses=None)
  trained = jax.jit(lambda: found.forward(model, batch, config, LIMITS)[0])()
  support.assert_decoded_logits(
      ids, seen, np.asarray(trained).reshape(3, 1, config.eval.max_new_tokens, -1),
      codec.tokenizer.eos_id)


@pytest.mark.slow
@pytest.mark.parametrize('latents', LATENTS)
def test_neither_the_batch_nor_the_mesh_nor_padding_changes_an_answer(latents, monkeypatch):
  """Batch 1, 3 and 8, on one device and on eight; questions of several lengths; few programs."""
  results = []
  for size, devices in ((1, 1), (3, 1), (8, 8)):
    config = make_config(latents, eval__batch_size=size)
    codec = support.make_codec(config)
    questions = [codec.encode(r).question for r in support.RECORDS]
    _, decoder = support.make_decoder(config, devices)
    results.append(decoder.decode_texts(questions, 1, (), (1,))[0])
    assert decoder._decode._cache_size() <= 2  # these questions have two widths
  assert results[0] == results[1] == results[2]
  assert len({text for text, in results[0]}) > 1
  support.assert_logits_alone_as_together(config, questions[:2], 1, (1,), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('latents', LATENTS)
def test_latents_in_bfloat16_are_near_those_in_float32(latents):
  config = make_config(latents)
  batch, model = support.make_batch(config, ROWS), support.make_model(config)

  def feed(config):
    model.config = model.blocks.config = config.model
    return jax.jit(lambda: methods.get_method(config).feed(
        model, jnp.asarray(batch.tokens), batch_lib.get_fields(batch), config, LIMITS))()
  narrow = dataclasses.replace(config, model=dataclasses.replace(
      config.model, compute_dtype='bfloat16'))
  wide, other = feed(config), feed(narrow)
  at = np.nonzero((batch.tokens == model.vocab_size + 1) & (batch.block > 0))
  assert len(at[0]) == 5 * config.layout.block_tokens and other.dtype == jnp.bfloat16
  wide, other = np.asarray(wide)[at], np.asarray(other.astype(jnp.float32))[at]
  # bfloat16 has 8 bits: a few of them are lost over layers and turns, no more.
  assert 0 < np.abs(wide - other).max() < 2**-4 * np.abs(wide).max()


@pytest.mark.slow
@pytest.mark.parametrize('latents, devices, mesh_config, more', [
    *((latents, 8, MeshConfig(2, 2, 2), {}) for latents in LATENTS),
    ('coconut', 4, MeshConfig(2, 1, 1, 2), {}),
    ('sim_cot', 8, MeshConfig(2, 2, 2), {'aux__decoder': 'copy'}),
    # The spread is over a part, wherever its rows are.
    ('codi', 4, MeshConfig(2, 1, 1, 2), {'distill__std': 'all', 'model__remat': 'full'})])
def test_a_step_on_a_mesh_is_that_of_one_device_and_compiles_once(
    latents, devices, mesh_config, more):
  config = make_config(latents, train__batch_rows=8, optim__eps=1.0, train__num_micro_batches=2,
                       model__num_kv_heads=2, **more)
  rows = [*ROWS, support.RECORDS[:1], [], *ROWS, [], support.RECORDS[2:4]]
  found = []
  for count, asked in ((1, MeshConfig()), (devices, mesh_config)):
    mesh = sharding.make_mesh(asked, jax.devices()[:count])
    program = step_lib.make_program(config, support.make_codec(config).memory_start, 10, mesh)
    step = step_lib.make_train_step(program, config, 10, 4, mesh, limits=LIMITS)
    batch = sharding.place_batch(support.make_batch(config, rows), mesh)
    with jax.set_mesh(mesh):
      state, frozen = program.init(jax.random.key(0))
      for _ in range(2):
        state, metrics = step(state, frozen, batch)
    assert step._cache_size() == 1 and metrics['healthy']
    found.append(jax.device_get((state.params, metrics['loss'], metrics['added'])))
  jax.tree.map(support.assert_close, *found)
