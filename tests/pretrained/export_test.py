"""Exports: the same parameters, the same prompts, block ids that never win; whole or not at all."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from rim_jax import config as config_lib
from rim_jax.config import MeshConfig
from rim_jax.errors import RunError, UserError
from rim_jax.evaluation import decode
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.pretrained import export, families, prompts, verification, weights
from rim_jax.pretrained import peft as peft_lib
from rim_jax.results import rule
from tests import support
from tests.support_pretrained import (
    compute_logits,
    make_config,
    make_mistral,
    make_model,
    make_records,
    write_gguf,
)
from tests.support_pretrained import write_export as write

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = ('gpt2', 'llama', 'llama3', 'qwen2', 'qwen3', 'gemma3')
QUESTIONS = ('Tom has 3 pens. How many?', 'x  \n\n', '', ' "<b>" ½ é ', 'Is 1,000 > 999?\u2028no')


@pytest.mark.parametrize('family', [
    *FAMILIES[:2], *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[2:])])
def test_what_did_not_train_comes_back_bit_for_bit(family, tmp_path):
  config = make_config(family, model__lora__rank=0, optim__trainable='memory', export__untie=False)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  old, new = (safetensors.numpy.load_file(d / 'model.safetensors')
              for d in (GOLDEN / family, tmp_path / 'out'))
  assert set(old) == set(new)
  for name, value in old.items():
    np.testing.assert_array_equal(new[name][:len(value)], value)


@pytest.mark.parametrize('family, untie', [
    ('gpt2', True), ('llama', False), ('gemma3', False), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            ('gpt2', False), ('llama', True), ('gemma3', True), *(
                (family, untie) for family in FAMILIES[2:-1] for untie in (False, True))))])
def test_the_exported_model_computes_what_the_run_does(family, untie, tmp_path):
  """Read back as a plain model, on plain ids: the blocks are ordinary tokens of it."""
  config = make_config(family, export__untie=untie)
  program, params, frozen = make_model(config)
  card = write(tmp_path / 'out', config, params, frozen)
  tree = json.loads((tmp_path / 'out/config.json').read_text())
  tied = tree['tie_word_embeddings']
  assert tied == (not untie and config.model.tie_embeddings)
  ids = list(card['tokens'].values())
  assert ids == [272, 273, 274] and tree['vocab_size'] == 275

  plain_config = families.resolve(dataclasses.replace(
      config, tokenizer=config_lib.TokenizerConfig(), layout=config.layout,
      model=config_lib.ModelConfig(init_from=str(tmp_path / 'out'), frozen_dtype='float32'),
      optim=config_lib.OptimConfig(trainable='memory')))
  plain_program, plain_params, plain_frozen = make_model(plain_config)
  prompt = [5, 9, 272, 273, 273, 274, 272, 273, 273, 274, 30, 31]
  want = compute_logits(program, params, frozen, prompt)
  found = compute_logits(plain_program, plain_params, plain_frozen, prompt)
  support.assert_close(found[:, :272], want)
  if not tied:  # the three logits are the mean one, so another always wins
    np.testing.assert_allclose(found[:, 272:], want.mean(-1, keepdims=True).repeat(3, 1),
                               atol=1e-4)
  generation = json.loads((tmp_path / 'out/generation_config.json').read_text())
  assert generation.get('suppress_tokens') == (ids if tied else None)


def test_padded_rows_of_the_matrix_are_used_before_it_grows():
  matrix = np.arange(20, dtype=np.float32).reshape(10, 2)
  rows = -np.ones((3, 2), np.float32)
  inside = export.place_rows(matrix, rows, [6, 7, 8])
  assert inside.shape == (10, 2) and (inside[6:9] == -1).all()
  np.testing.assert_array_equal(inside[[0, 5, 9]], matrix[[0, 5, 9]])
  assert export.place_rows(matrix, rows, [9, 10, 11]).shape == (12, 2)


@pytest.mark.parametrize('family', ['gpt2', 'llama'])
def test_exported_prompts_have_the_layout_s_ids(family, tmp_path):
  config = make_config(family)
  _, params, frozen = make_model(config)
  card = write(tmp_path / 'out', config, params, frozen, QUESTIONS)
  tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / 'out/tokenizer.json'))
  prompt = card['prompt'].replace('{question}', 'Why?')
  block = '<|rim_begin|><|rim_memory|><|rim_memory|><|rim_end|>'
  assert prompt == f'Why?{block}{block}The final answer is \\boxed{{'
  ids = tokenizer.encode(prompt).ids
  assert ids.count(272) == ids.count(274) == 2 and ids.count(273) == 4
  assert (ids[0] == 0) == (family == 'llama')  # bos as the family has it


def test_a_separator_that_merges_with_the_question_is_refused(tmp_path):
  """`pens` is one token of this tokenizer, `pen` and `s` are two segments in training."""
  config = make_config('gpt2', layout__separator='s')
  _, params, frozen = make_model(config)
  with pytest.raises(UserError, match='as one text than as the segments'):
    write(tmp_path / 'out', config, params, frozen, ['7', 'a pen'])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('family', ['gpt2', 'llama'])
def test_html_is_no_memory_and_what_spells_a_block_is_told(family, tmp_path):
  config = make_config(family)
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen, ['Is <b>7</b> odd?', '<m>'])
  tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / 'out/tokenizer.json'))
  assert not {272, 273, 274} & set(tokenizer.encode('Is <b>7</b> odd? <m>').ids)
  readme = (tmp_path / 'out/README.md').read_text()
  assert 'A server must see to it' in readme and '`< |`' in readme
  # What it advises keeps a question from being memory.
  assert not {272, 273, 274} & set(tokenizer.encode(
      'x<|rim_begin|><|rim_memory|>'.replace('<|', '< |')).ids)
  for token in prompts.BLOCK_TOKENS:
    with pytest.raises(UserError, match='spells the block token .*; remove it from the data') as e:
      write(tmp_path / 'told', config, params, frozen, ['7', f'Is {token}?'])
    assert 'separator' not in str(e.value)


@pytest.mark.slow
def test_adapters_of_a_gguf_file_tell_how_they_are_loaded(tmp_path):
  readmes = []
  for base in (GOLDEN / 'llama', write_gguf(tmp_path / 'a model.gguf', GOLDEN / 'llama')):
    config = make_config(base, export__adapters=True)
    _, params, frozen = make_model(config)
    write(tmp_path / f'{base.stem} out', config, params, frozen)
    readmes.append((tmp_path / f'{base.stem} out/README.md').read_text())
  assert 'Resize its embedding to at least 275 rows' in readmes[0] and '```python' not in readmes[0]
  assert f"from_pretrained('{tmp_path}', gguf_file='a model.gguf')" in readmes[1]
  assert 'embeddings(max(275, model.config.vocab_size))\n' in readmes[1]


def rename_blocks(folder):
  """An export as version 1 wrote it."""
  for name in ('tokenizer.json', 'export.json', 'README.md'):
    text = (folder / name).read_text()
    for now, then in zip(prompts.BLOCK_TOKENS, ('<b>', '<m>', '</b>')):
      text = text.replace(now, then)
    (folder / name).write_text(text.replace('"format": 2', '"format": 1'))


@pytest.mark.slow
def test_an_export_with_the_older_names_is_loaded_and_exported_again(tmp_path):
  config = make_config('llama')
  _, params, frozen = make_model(config)
  write(tmp_path / 'old', config, params, frozen)
  rename_blocks(tmp_path / 'old')
  base = weights.open_base(tmp_path / 'old')
  assert base.shapes[next(k for k in base.shapes if 'embed' in str(k))][0] == 275
  again = make_config(tmp_path / 'old')
  assert again.model.vocab_size == 275
  _, params, frozen = make_model(again)
  card = write(tmp_path / 'new', again, params, frozen)
  assert list(card['tokens'].values()) == [275, 276, 277]


def test_a_task_of_lm_eval_holds_the_questions_and_the_rule(tmp_path):
  config = make_config('llama')
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen, ['1+1?', ' "½" '])
  task = tmp_path / 'out/lm_eval'
  rows = [json.loads(line) for line in (task / 'questions.jsonl').read_text().splitlines()]
  assert rows == [{'prompt': prompts.make_prompt(q, config), 'answer': '1'}
                  for q in ('1+1?', ' "½" ')]
  assert (task / 'rule.py').read_text() == pathlib.Path(rule.__file__).read_text()
  assert {p.name for p in task.iterdir()} == {'rim.yaml', 'task.py', 'rule.py', 'questions.jsonl'}
  compile((task / 'task.py').read_text(), 'task.py', 'exec')


def test_large_models_are_written_in_several_files(tmp_path):
  config = make_config('llama', export__max_shard_gb=2e-5)
  _, params, frozen = make_model(config)
  write(tmp_path / 'whole', support.set_keys(config, {'export.max_shard_gb': 1.0}), params, frozen)
  write(tmp_path / 'parts', config, params, frozen)
  files = sorted(p.name for p in (tmp_path / 'parts').glob('*.safetensors'))
  assert len(files) > 2 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  whole = weights.open_base(tmp_path / 'whole')
  parts = weights.open_base(tmp_path / 'parts')
  assert whole.shapes == parts.shapes and set(parts.files.values()) == {
      tmp_path / 'parts' / f for f in files}


def test_bfloat16_exports_are_rounded_once(tmp_path):
  config = make_config('llama', export__dtype='bfloat16')
  _, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  stored = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert {str(v.dtype) for v in stored.values()} == {'bfloat16'}
  np.testing.assert_array_equal(stored['model.embed_tokens.weight'][272:],
                                params['memory'].astype(jnp.bfloat16))


@pytest.mark.parametrize('changes, culprit', [
    ({'layout__readout_sees_question': False}, 'layout.readout_sees_question=False'),
    ({'layout__bidirectional_blocks': True}, 'layout.bidirectional_blocks=True'),
    ({'optim__trainable': 'all', 'export__adapters': True}, "optim.trainable='all'"),
])
def test_what_a_plain_engine_cannot_run_is_refused(changes, culprit):
  config = make_config('llama', **changes)
  with pytest.raises(UserError) as e:
    export.check_exportable(config, weights.open_base(GOLDEN / 'llama'), 'runs/x')
  assert culprit in str(e.value) and '\n' not in str(e.value)


def test_a_run_without_a_directory_behind_it_is_refused():
  with pytest.raises(UserError, match='was not made from a Hugging Face directory'):
    export.check_exportable(support.make_config(), None, 'runs/x')


def test_an_existing_directory_is_left_alone_and_a_failure_leaves_none(tmp_path, monkeypatch):
  config = make_config('llama')
  _, params, frozen = make_model(config)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'x').write_text('kept')
  with pytest.raises(UserError, match='exists already'):
    write(tmp_path / 'mine', config, params, frozen)
  assert (tmp_path / 'mine' / 'x').read_text() == 'kept'
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='link: exists already'):
    export.check_free(tmp_path / 'link')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    write(tmp_path / 'file' / 'out', config, params, frozen)
  # The disk fills up in the middle.
  save = safetensors.numpy.save_file
  monkeypatch.setattr(safetensors.numpy, 'save_file',
                      lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left')))
  with pytest.raises(UserError, match='No space left.*nothing was left behind'):
    write(tmp_path / 'out', config, params, frozen)
  monkeypatch.setattr(safetensors.numpy, 'save_file', save)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'link', 'mine']


def test_weights_may_be_read_as_other_files_may(tmp_path):
  weights.save_tensors({'a': np.ones(3)}, tmp_path / 'model.safetensors')
  (tmp_path / 'other').write_text('')
  assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_tokenizer_that_has_a_block_token_is_refused(tmp_path):
  config = make_config('llama')
  _, params, frozen = make_model(config)
  write(tmp_path / 'once', config, params, frozen)
  again = support.set_keys(config, {'tokenizer.path': str(tmp_path / 'once' / 'tokenizer.json')})
  with pytest.raises(UserError, match="has a token '<.rim_begin.>' already"):
    prompts.write_tokenizer(tmp_path, again, weights.open_base(GOLDEN / 'llama'))


def test_a_bos_that_was_not_trained_with_is_told(tmp_path):
  """Engines begin a prompt as the tokenizer does; a run without that bos would not be served."""
  config = make_config('llama', tokenizer__bos_token='')
  _, params, frozen = make_model(config)
  with pytest.raises(UserError, match='begins texts with .*<|end|>.*trained without'):
    write(tmp_path / 'out', config, params, frozen)


def test_ids_with_holes_are_refused(tmp_path):
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {'a': 0, 'b': 1, 'c': 3, 'd': 5}, unk_token='a'))
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  config = make_config('llama', tokenizer__path=str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'out').mkdir()
  with pytest.raises(UserError, match='its ids have holes'):
    prompts.write_tokenizer(tmp_path / 'out', config, weights.open_base(GOLDEN / 'llama'))


# ---- Beside transformers itself ----

def needs_hf(test):
  missing = any(importlib.util.find_spec(p) is None for p in ('torch', 'transformers', 'peft'))
  skip = pytest.mark.skipif(missing, reason="needs the extra: pip install -e '.[hf]'")
  return pytest.mark.hf(skip(test))


def make_padded(folder, rows=288):
  """A golden Qwen3 whose matrices have rows beyond its tokenizer's ids, as published ones do."""
  shutil.copytree(GOLDEN / 'qwen3', folder)
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  rng = np.random.default_rng(0)
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    more = rng.standard_normal((rows - len(tensors[name]), 16)).astype(np.float32)
    tensors[name] = np.concatenate([tensors[name], more])
  (folder / 'model.safetensors').unlink()
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  tree = json.loads((folder / 'config.json').read_text()) | {'vocab_size': rows}
  (folder / 'config.json').write_text(json.dumps(tree))
  return folder


def make_with_image_token(folder):
  """A golden Gemma 3 whose tokenizer has one token more than the model has rows, as published."""
  shutil.copytree(GOLDEN / 'gemma3', folder)
  tree = json.loads((folder / 'tokenizer.json').read_text())
  tree['added_tokens'].append(tree['added_tokens'][0] | {'id': 272, 'content': '<image>'})
  (folder / 'tokenizer.json').write_text(json.dumps(tree))
  return folder


@pytest.mark.parametrize('untie', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_special_token_that_the_model_has_no_row_for_is_never_answered(untie, tmp_path):
  config = make_config(make_with_image_token(tmp_path / 'model'), export__untie=untie)
  _, params, frozen = make_model(config)
  card = write(tmp_path / 'out', config, params, frozen)
  assert list(card['tokens'].values()) == [273, 274, 275]
  tensors = safetensors.numpy.load_file(tmp_path / 'out/model.safetensors')
  np.testing.assert_array_equal(tensors['model.embed_tokens.weight'][273:], params['memory'])
  if untie:
    head = tensors['lm_head.weight']
    np.testing.assert_allclose(head[272:], head[:272].mean(0, keepdims=True).repeat(4, 0),
                               atol=1e-6)
  else:
    generation = json.loads((tmp_path / 'out/generation_config.json').read_text())
    assert generation['suppress_tokens'] == [272, 273, 274, 275]


def test_a_token_without_a_row_cannot_be_written(tmp_path):
  config = make_config(make_with_image_token(tmp_path / 'model'))
  codec = support.make_codec(config)
  assert codec.memory_start == 272
  with pytest.raises(UserError, match='spells a special token'):
    codec.tokenizer.encode('<image>')
  with pytest.raises(UserError, match='layout.separator spells a special token with id 272'):
    support.make_codec(support.set_keys(config, {'layout.separator': '<image>'}))
  path = tmp_path / 'model/tokenizer.json'
  tree = json.loads(path.read_text())
  tree['added_tokens'][-1]['special'] = False
  path.write_text(json.dumps(tree))
  with pytest.raises(UserError, match="vocab_size=272 is below the tokenizer's 273 ids"):
    support.make_codec(config)


def verify(out, config, spoil=lambda params: params, questions=('1+1?', 'Tom has 3 pens.', 'x'),
           say=lambda line: None):
  """Writes and compares; `spoil` changes what the run computes with, after the export."""
  program, params, frozen = make_model(config)
  base = weights.open_base(config.model.init_from)
  network = Network(program.graphdef, params, frozen, config, support.make_codec(config),
                    sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  references = verification.iterate_references(
      decode.Decoder(dataclasses.replace(network, params=spoil(params))), questions)
  return export.write_export(out, network, export.Origin(base, 'runs/it', 7),
                             make_records(questions), references, say)


@pytest.mark.slow
def test_a_reference_is_of_its_prompt_alone_and_few_widths_are_compiled(monkeypatch):
  config = make_config(GOLDEN / 'gpt2')
  program, params, frozen = make_model(config)
  network = Network(program.graphdef, params, frozen, config, support.make_codec(config),
                    sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  traced, real = [], verification._compute_logits

  def compute(model, config, dtype, ids_bt):
    traced.append(ids_bt.shape)
    return real(model, config, dtype, ids_bt)
  monkeypatch.setattr(verification, '_compute_logits', compute)
  found = list(verification.iterate_references(decode.Decoder(network), ('1+1?', '12+1?', '1+2')))
  assert len({len(reference.ids) for reference in found}) > 1 and len(traced) == 1
  alone = network.jit(real, 1)
  for reference in found:
    want_tv = alone(*network.arrays, 'float32', np.asarray([reference.ids]))[0]
    support.assert_close(reference.logits_tv, want_tv[:, :reference.logits_tv.shape[1]])


@needs_hf
@pytest.mark.parametrize('family', [*FAMILIES, 'mistral', 'padded', 'short'])
def test_transformers_computes_the_same_from_an_export(family, tmp_path):
  make = {'mistral': make_mistral, 'padded': make_padded, 'short': make_with_image_token}.get(
      family, lambda folder: GOLDEN / family)
  config = make_config(make(tmp_path / 'model'), eval__batch_size=8)
  card = verify(tmp_path / 'out', config)
  # A padding row where there is one.
  assert card['tokens']['<|rim_begin|>'] == (273 if family == 'short' else 272)
  found = card['verified']
  assert found['num_questions'] == found['num_answers_equal'] == 3
  assert found['max_difference_of_rms'] <= 1e-4


@needs_hf
def test_large_logits_may_differ_by_more_than_small_ones(tmp_path):
  """In float32 what is apart grows with the logits: 0.0001 is no limit for those of 10,000."""
  shutil.copytree(GOLDEN / 'llama', tmp_path / 'model')
  path = tmp_path / 'model/model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  tensors['model.norm.weight'] *= 3e4
  path.unlink()
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  told = []
  found = verify(tmp_path / 'out', make_config(tmp_path / 'model', eval__batch_size=8),
                 say=told.append)['verified']
  assert found['max_logit_difference'] > 1e-4 and found['max_difference_of_rms'] <= 1e-4
  assert 'logits at most ' in told[-1] and told[-1].endswith('3 of 3 answers equal')


@needs_hf
@pytest.mark.parametrize('family', FAMILIES)
def test_a_bfloat16_export_is_as_near_as_rounding_allows(family, tmp_path):
  config = make_config(family, eval__batch_size=8, export__dtype='bfloat16')
  found = verify(tmp_path / 'out', config)['verified']
  assert 1e-4 < found['distance_of_rms'] <= 2 * found['own_distance_of_rms']


def turn(tensors, config):
  name = 'model.layers.0.self_attn.o_proj.weight'
  assert tensors[name].shape[0] == tensors[name].shape[1]
  tensors[name] = np.ascontiguousarray(tensors[name].T)


def swap(tensors, config):
  a, b = (f'model.layers.{i}.mlp.up_proj.weight' for i in range(2))
  tensors[a], tensors[b] = tensors[b], tensors[a]


def change_theta(tensors, config):
  rope = config.get('rope_parameters') or config
  assert 'rope_theta' in rope
  rope['rope_theta'] = 2 * rope['rope_theta']


@needs_hf
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('damage', [turn, swap, change_theta])
def test_a_wrong_export_is_refused(damage, dtype, tmp_path, monkeypatch):
  write_model = export._write_model

  def write_wrong(folder, *args):
    write_model(folder, *args)
    path = folder / 'model.safetensors'
    tensors, tree = safetensors.numpy.load_file(path), json.loads(
        (folder / 'config.json').read_text())
    damage(tensors, tree)
    path.unlink()
    safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(tree))
  monkeypatch.setattr(export, '_write_model', write_wrong)
  with pytest.raises(UserError, match=r'computes other logits or answers .*; nothing was written'):
    verify(tmp_path / 'out', make_config('llama', eval__batch_size=8, export__dtype=dtype))
  assert not list(tmp_path.iterdir())


@needs_hf
@pytest.mark.parametrize('spoil', [
    lambda p: p | {'memory': p['memory'] + 0.01}, lambda p: p | {'memory': p['memory'] * np.nan}],
    ids=['other rows', 'nan'])
def test_an_export_that_differs_is_refused(spoil, tmp_path):
  with pytest.raises(UserError, match='nothing was written'):
    verify(tmp_path / 'out', make_config('llama', eval__batch_size=8), spoil)
  assert not list(tmp_path.iterdir())


def break_config(folder):
  (folder / 'config.json').write_text('{"model_type": "nobody"}')


def break_tokenizer(folder):
  (folder / 'tokenizer.json').write_text('{')


def break_weights(folder):
  (folder / 'model.safetensors').write_bytes(b'\xff' * 64)


@needs_hf
@pytest.mark.parametrize('spoil, told', [
    (break_config, 'ValueError'), (break_tokenizer, ''), (break_weights, 'SafetensorError')])
def test_what_transformers_cannot_read_is_one_line(spoil, told, tmp_path, monkeypatch):
  """As with a version of it that does not know the model."""
  write_model = export._write_model
  monkeypatch.setattr(export, '_write_model', lambda folder, *args: (
      write_model(folder, *args), spoil(folder)))
  with pytest.raises(UserError) as e:
    verify(tmp_path / 'out', make_config('llama', eval__batch_size=8))
  text = str(e.value)
  assert f'transformers cannot run it ({told}' in text and 'nothing was written' in text
  assert '\n' not in text and not list(tmp_path.iterdir())


@needs_hf
@pytest.mark.parametrize('error, kind', [
    (KeyError('qwen9'), UserError), (MemoryError(), RunError),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), RunError)])
def test_what_fails_while_transformers_computes_is_one_line(error, kind, tmp_path, monkeypatch):
  import transformers

  def fail(*args, **kwargs):
    raise error
  monkeypatch.setattr(transformers.GenerationMixin, 'generate', fail)
  with pytest.raises(RunError, match='transformers cannot run it') as e:
    verify(tmp_path / 'out', make_config('llama', eval__batch_size=8))
  assert type(e.value) is kind and not list(tmp_path.iterdir())


@needs_hf
def test_a_tokenizer_that_transformers_replaces_is_told(tmp_path):
  """transformers splits every digit for Qwen2, whatever tokenizer.json says; this one does not."""
  with pytest.raises(UserError, match='makes other tokens of the prompt of .12 of 12'):
    verify(tmp_path / 'out', make_config('qwen2', eval__batch_size=8), questions=['12 of 12'])


@needs_hf
@pytest.mark.parametrize('family', FAMILIES)
def test_peft_loads_the_adapters_and_computes_the_same(family, tmp_path):
  import peft
  import torch
  import transformers
  config = make_config(family, export__adapters=True)
  program, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / family, dtype=torch.float32)
  model.resize_token_embeddings(275)
  model = peft.PeftModel.from_pretrained(model, tmp_path / 'out').eval()
  prompt = [5, 9, 272, 273, 273, 274, 30, 31]
  with torch.no_grad():
    found = model(torch.tensor([prompt])).logits[0].numpy()
  want = compute_logits(program, params, frozen, prompt)
  assert np.abs(found[:, :272] - want).max() <= 1e-4
  # And what peft itself saves comes in again.
  model.save_pretrained(tmp_path / 'again', save_embedding_layers=False)
  fresh = jax.tree.map(lambda x: 0 * x, params)
  loaded = peft_lib.load_adapters(tmp_path / 'again', config,
                                  weights.open_base(GOLDEN / family).family, fresh)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@needs_hf
def test_peft_loads_adapters_of_a_gguf_file_as_their_readme_says(tmp_path, monkeypatch):
  import torch
  path = write_gguf(tmp_path / 'model.gguf', GOLDEN / 'llama')
  config = make_config(path, export__adapters=True)
  program, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  monkeypatch.chdir(tmp_path / 'out')
  _, _, rest = pathlib.Path('README.md').read_text().partition('```python\n')
  told = {}
  exec(rest.partition('```')[0], told)
  prompt = [5, 9, 272, 273, 273, 274, 30, 31]
  with torch.no_grad():
    found = told['model'](torch.tensor([prompt])).logits[0].numpy()
  assert np.abs(found[:, :272] - compute_logits(program, params, frozen, prompt)).max() <= 1e-4


@needs_hf
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('family', ['gpt2', 'llama'])
def test_adapters_that_peft_merges_saves_and_loads_again_compute_the_same(family, tied, tmp_path):
  import peft
  import torch
  import transformers
  folder = set_tied(tmp_path / 'model', family, tied)
  config = make_config(folder, export__adapters=True)
  assert config.model.tie_embeddings == tied
  program, params, frozen = make_model(config)
  write(tmp_path / 'out', config, params, frozen)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  model.resize_token_embeddings(275, mean_resizing=False)
  model = peft.PeftModel.from_pretrained(model, tmp_path / 'out').merge_and_unload()
  model.save_pretrained(tmp_path / 'merged')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').eval()
  prompt = [5, 9, 272, 273, 273, 274, 30, 31]
  with torch.no_grad():
    found = model(torch.tensor([prompt])).logits[0].numpy()
  want = compute_logits(program, params, frozen, prompt)
  support.assert_close(found[:, :272], want)
  without = compute_logits(program, params | {'memory': 0 * params['memory']}, frozen, prompt)
  assert np.abs(without - want).max() > 1e-2  # the rows matter


def set_tied(folder, family, tied):
  """A golden model with its output matrix tied to the embedding, or one of its own."""
  shutil.copytree(GOLDEN / family, folder)
  tree = json.loads((folder / 'config.json').read_text()) | {'tie_word_embeddings': tied}
  (folder / 'config.json').write_text(json.dumps(tree))
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  if tied:
    tensors.pop('lm_head.weight', None)
  elif 'lm_head.weight' not in tensors:
    embedding = next(v for k, v in tensors.items() if 'embed_tokens' in k or 'wte' in k)
    tensors['lm_head.weight'] = embedding[::-1].copy()
  (folder / 'model.safetensors').unlink()
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder
