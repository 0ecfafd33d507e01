"""config.json: what is read from it, what is refused, and the shapes of published models."""

import dataclasses
import json
import os
import pathlib
import shutil
import types

import jax
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import MeshConfig
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.model import sharding
from rim_jax.pretrained import chat, families, weights
from rim_jax.training import step as step_lib
from tests import support
from tests.support_pretrained import PUBLISHED
from tests.support_pretrained import make_plain_config as make_config

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = ('gpt2', 'llama', 'llama3', 'qwen2', 'qwen3', 'gemma3')

@pytest.fixture
def folder(tmp_path):
  """A copy of a golden model whose config.json can be edited: `folder('llama', key=value)`."""
  def make(name, **changes):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    path = tmp_path / name / 'config.json'
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in tree.items() if v != 'absent'}))
    return tmp_path / name
  return make


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_have_their_published_size_and_place(name):
  count, tree = PUBLISHED[name]
  model = config_lib.ModelConfig(**families.parse_model(tree, name), lora=config_lib.LoraConfig(
      rank=128))
  config = support.set_keys(config_lib.Config(
      method='rim_stage2', model=model, train=config_lib.TrainConfig(num_examples=8)), {
          'optim.trainable': 'lora'})
  # GPT-2's vocabulary of 50,257 is divided by no tensor axis, nor is Gemma's one key head.
  is_odd = name == 'gpt2' or name.startswith('gemma3')
  mesh = sharding.make_mesh(MeshConfig(2, 4, 1) if is_odd else MeshConfig(1, 4, 2))
  program = step_lib.make_program(config, model.vocab_size, 10, mesh)
  base = jax.tree_util.tree_leaves_with_path(program.base)
  assert sum(x.size for _, x in base) == count
  assert {str(x.dtype) for _, x in base} == {'bfloat16'}
  kernels = [x for path, x in base if path[-1].key in ('kernel', 'embedding', 'head')]
  assert len(kernels) >= 5
  assert all(x.sharding.shard_shape(x.shape) != x.shape for x in kernels)


def test_adapters_are_those_of_the_paper():
  """Rank 128 on every projection of Llama-3.2-1B: r (in + out) each, and three memory rows."""
  model = config_lib.ModelConfig(
      **families.parse_model(PUBLISHED['llama3_2_1b'][1], ''), lora=config_lib.LoraConfig(rank=128))
  config = support.set_keys(config_lib.Config(
      model=model, train=config_lib.TrainConfig(num_examples=8)), {'optim.trainable': 'lora'})
  mesh = sharding.make_mesh(MeshConfig(8, 1, 1))
  params = step_lib.make_program(config, model.vocab_size, 10, mesh).abstract[0].params
  d, kv, f = 2048, 512, 8192
  expected = 16 * 128 * ((d + d) * 2 + (d + kv) * 2 + (d + f) * 3)
  assert sum(x.size for x in jax.tree.leaves(params)) == expected + 3 * d


def test_rope_is_read_in_both_spellings(folder):
  new = families.parse_model(json.loads((GOLDEN / 'llama3/config.json').read_text()), '')
  rope = dict(json.loads((GOLDEN / 'llama3/config.json').read_text())['rope_parameters'])
  old = folder('llama3', rope_parameters='absent', rope_theta=rope.pop('rope_theta'),
               rope_scaling={'type' if k == 'rope_type' else k: v for k, v in rope.items()})
  tree = json.loads((old / 'config.json').read_text())
  assert families.parse_model(tree, '') == new
  assert new['rope_scaling'] == 'llama3' and new['rope_original_positions'] == 16


def test_kinds_of_layers_are_read_in_every_spelling(folder):
  tree = json.loads((GOLDEN / 'gemma3/config.json').read_text())
  new = families.parse_model(tree, '')
  assert (new['global_every'], new['sliding_window'], new['local_rope_theta']) == (2, 64, 100.0)
  assert (new['rope_theta'], new['rope_scaling'], new['rope_factor']) == (10_000.0, 'linear', 8.0)
  for key in ('rope_parameters', 'layer_types', '_sliding_window_pattern'):
    del tree[key]
  assert families.parse_model(tree | {
      'rope_theta': 10_000, 'rope_local_base_freq': 100,
      'rope_scaling': {'type': 'linear', 'factor': 8.0}}, '') == new
  # Without a word on it, every sixth layer is global; where all are, there is no window.
  del tree['sliding_window_pattern']
  assert families.parse_model(tree, '')['global_every'] == 4  # of three layers: none
  assert families.parse_model(tree | {'num_hidden_layers': 7}, '')['global_every'] == 6
  found = families.parse_model(tree | {'layer_types': ['full_attention'] * 3}, '')
  assert (found['global_every'], found['sliding_window']) == (0, 0)


@pytest.mark.parametrize('family', FAMILIES)
def test_resolving_fills_the_shape_and_the_tokenizer(family):
  config = families.resolve(make_config(GOLDEN / family))
  assert config.model.vocab_size == 272 and config.model.embed_dim == 16
  assert config.tokenizer.eos_token == '<|end|>'
  # Only the families whose tokenizer begins a text with bos have one here.
  assert config.tokenizer.bos_token == (
      '<|end|>' if family.startswith(('llama', 'gemma')) else '')
  assert families.resolve(config) == config


@pytest.mark.parametrize('key, text', [('bos_token', '<|end|>'), ('eos_token', 'a')])
def test_a_token_that_is_named_takes_the_place_of_the_model_s_own(key, text):
  config = make_config(GOLDEN / 'qwen3')
  usual = families.resolve(config).tokenizer
  found = families.resolve(support.set_key(config, f'tokenizer.{key}', text)).tokenizer
  assert found == dataclasses.replace(usual, **{key: text}) != usual and found.kind == 'file'
  with pytest.raises(UserError, match='add_bos=True is not for the tokenizer of a pretrained'):
    families.resolve(support.set_key(config, 'tokenizer.add_bos', True))


def edit_processor(path, *single):
  """Has a model's tokenizer put a text ('A') among these tokens."""
  file = path / 'tokenizer.json'
  tree = json.loads(file.read_text())
  parts = [{'Sequence' if t == 'A' else 'SpecialToken': {'id': t, 'type_id': 0}} for t in single]
  ids = tree['model']['vocab'] | {t['content']: t['id'] for t in tree['added_tokens']}
  tree['post_processor'] = {'type': 'TemplateProcessing', 'single': parts, 'pair': [],
                            'special_tokens': {t: {'id': t, 'ids': [ids[t]], 'tokens': [t]}
                                               for t in single if t != 'A'}}
  file.write_text(json.dumps(tree))


@pytest.mark.parametrize('named', ['absent', None, '<|start|>', {'content': '<|end|>'}])
def test_the_bos_is_what_the_tokenizer_puts_first_whatever_is_named(folder, named):
  path = folder('llama')
  file = path / 'tokenizer_config.json'
  tree = json.loads(file.read_text()) | {'bos_token': named}
  file.unlink()
  if named != 'absent':
    file.write_text(json.dumps(tree))
  assert families.resolve(make_config(path)).tokenizer.bos_token == '<|end|>'
  edit_processor(path, 'a', 'A')
  assert families.resolve(make_config(path)).tokenizer.bos_token == 'a'


@pytest.mark.parametrize('single', [('A', '<|end|>'), ('<|end|>', 'A', '<|end|>'), ('a', 'b', 'A')])
def test_a_tokenizer_that_adds_more_than_a_bos_is_refused_in_one_line(folder, single):
  path = folder('llama')
  edit_processor(path, *single)
  with pytest.raises(UserError, match='json: puts .* before a text and .* behind it') as e:
    families.resolve(make_config(path))
  assert '\n' not in str(e.value)
  # Named by hand it is taken, with what is said of it.
  config = support.set_key(make_config(path), 'tokenizer', config_lib.TokenizerConfig(
      kind='file', path=str(path / 'tokenizer.json'), eos_token='<|end|>'))
  assert families.resolve(config).tokenizer.bos_token == ''


def test_padding_and_truncation_hide_no_bos(folder):
  path = folder('llama')
  file = path / 'tokenizer.json'
  tree = json.loads(file.read_text()) | {
      'padding': {'strategy': {'Fixed': 9}, 'direction': 'Left', 'pad_to_multiple_of': None,
                  'pad_id': 5, 'pad_type_id': 0, 'pad_token': 'p'}}
  file.write_text(json.dumps(tree))
  assert families.resolve(make_config(path)).tokenizer.bos_token == '<|end|>'


def test_the_eos_may_be_named_by_id_alone(folder):
  path = folder('qwen2', eos_token_id=[0, 5])
  (path / 'tokenizer_config.json').unlink()
  assert families.resolve(make_config(path)).tokenizer.eos_token == '<|end|>'


@pytest.mark.parametrize('family, changes, culprit', [
    ('llama', {'model_type': 'bloom'}, "model_type='bloom' is not supported; there are gpt2"),
    ('llama', {'hidden_act': 'relu'}, "hidden_act='relu'"),
    ('llama', {'attention_bias': True}, 'attention_bias=True'),
    ('llama', {'mlp_bias': True}, 'mlp_bias=True'),
    ('llama', {'pretraining_tp': 2}, 'pretraining_tp=2'),
    ('llama', {'hidden_size': 'absent'}, "lacks 'hidden_size'"),
    ('llama', {'num_local_experts': 8}, 'num_local_experts=8, which rim_jax does not know'),
    ('llama', {'embedding_multiplier': 12.0}, 'embedding_multiplier=12.0'),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantized'),
    ('llama', {'rope_scaling': {'rope_type': 'llama3'}}, 'one group of rotary settings'),
    ('llama', {'rope_parameters': {'rope_type': 'default', 'type': 'llama3'}}, 'have both of'),
    ('llama', {'rope_parameters': ['default']}, 'one group of rotary settings'),
    ('llama', {'rope_interleaved': True}, 'rope_interleaved=True'),
    ('llama', {'is_causal': False}, 'is_causal=False'),
    ('llama', {'sliding_window': 8}, 'sliding_window=8'),
    ('llama', {'some_scale': 0.0}, 'some_scale=0.0'),
    ('llama', {'tie_word_embeddings': 'false'}, "'false', which should be bool"),
    ('llama', {'intermediate_size': 40.0}, 'intermediate_size=40.0, which should be int'),
    ('llama', {'hidden_size': '16'}, "hidden_size='16', which should be int"),
    ('llama', {'rms_norm_eps': 'x'}, "rms_norm_eps='x', which should be float"),
    ('llama', {'num_hidden_layers': True}, 'num_hidden_layers=True, which should be int'),
    ('llama', {'layer_types': 3}, 'layer_types=3, which should be list'),
    ('llama', {'layer_types': [['a']]}, 'only full_attention'),
    ('llama', {'model_type': ['llama']}, "model_type=['llama'] is not supported"),
    ('qwen3', {'head_dim': 'absent'}, "lacks 'head_dim'"),
    ('qwen2', {'num_key_value_heads': 'absent'}, "lacks 'num_key_value_heads'"),
    ('llama', {'rope_parameters': {'rope_type': 'yarn', 'factor': 4.0}}, "rope_type='yarn'"),
    ('llama', {'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor=0.5'),
    ('llama3', {'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}},
     "rotary settings: lacks 'low_freq_factor'"),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': 8}, 'use_sliding_window=True'),
    ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'layer_types'),
    ('gemma3', {'hidden_activation': 'silu'}, "hidden_activation='silu'"),
    ('gemma3', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping=50.0'),
    ('gemma3', {'final_logit_softcapping': 30.0}, 'final_logit_softcapping=30.0'),
    ('gemma3', {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    ('gemma3', {'layer_types': ['sliding_attention', 'full_attention', 'full_attention']},
     'at regular places'),
    ('gemma3', {'rope_parameters': {'full_attention': {'rope_type': 'yarn'}}},
     "full_attention: rotary settings: has rope_type='yarn'"),
    ('gemma3', {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
     'scaled rotary positions in sliding layers'),
    ('gemma3', {'rope_parameters': {'chunked_attention': {}}}, "for ['chunked_attention']"),
    ('gemma3', {'head_dim': 'absent'}, "lacks 'head_dim'"),
    ('gpt2', {'activation_function': 'relu'}, "activation_function='relu'"),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights=False'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention=True'),
])
def test_what_would_change_the_arithmetic_is_named(folder, family, changes, culprit):
  path = folder(family, **changes)
  with pytest.raises(UserError) as e:
    families.resolve(make_config(path))
  assert culprit in str(e.value) and str(path / 'config.json') in str(e.value)


def test_all_problems_are_told_at_once(folder):
  with pytest.raises(UserError) as e:
    families.resolve(make_config(folder('llama', mlp_bias=True, hidden_act='relu')))
  assert len(str(e.value).split('\n')) == 2


def test_a_home_that_is_nobody_s_is_named():
  with pytest.raises(UserError, match="init_from='~no such user/x'"):
    families.resolve(make_config('~no such user/x'))


@pytest.mark.parametrize('family, targets', [('gpt2', 'qkv'), ('llama', 'gate')])
def test_targets_are_those_of_the_model_in_the_directory(family, targets):
  """The command line is parsed before the directory is read, when the shape is still unknown."""
  tree = config_lib.make_config_dict(method='rim_stage1')
  tree.train.num_examples = 8
  tree.model.init_from = str(GOLDEN / family)
  tree.model.lora.update({'rank': 2, 'targets': targets})
  assert families.resolve(config_lib.parse_config(tree)).model.lora.targets == targets
  tree.model.lora.targets = 'q_proj'
  with pytest.raises(UserError, match="targets='q_proj' matches none of this model's"):
    families.resolve(config_lib.parse_config(tree))


def test_harmless_and_switched_off_keys_pass(folder):
  # As transformers writes a model that it read from a GGUF file.
  path = folder('llama', _name_or_path='x', _model_name_or_path='x', unk_token_id=0,
                new_switch=False, new_list=[], torch_dtype='float16')
  assert families.resolve(make_config(path)).model.embed_dim == 16
  # As gpt2-medium and distilgpt2 were published.
  path = folder('gpt2', n_special=0, predict_special_tokens=True, _num_labels=1, top_k=50,
                max_length=20)
  assert families.resolve(make_config(path)).model.embed_dim == 16


def test_a_shape_key_that_disagrees_is_refused():
  assert families.resolve(make_config(GOLDEN / 'llama', num_layers=2)).model.num_layers == 2
  with pytest.raises(UserError, match=r'model\.num_layers=3, but .*config\.json has 2'):
    families.resolve(make_config(GOLDEN / 'llama', num_layers=3))


@pytest.mark.parametrize('spoil, culprit', [
    (lambda d: (d / 'config.json').unlink(), 'config.json: cannot be read'),
    (lambda d: (d / 'config.json').write_text('{'), 'config.json: is damaged'),
    (lambda d: (d / 'config.json').write_text('[]'), 'damaged (list in place of a dict'),
    (lambda d: (d / 'tokenizer.json').unlink(), 'tokenizer.json: cannot be read'),
    (lambda d: (d / 'tokenizer.json').write_text('{}'), 'tokenizer.json: is not a tokenizer.json'),
])
def test_a_directory_that_is_not_whole_is_refused(folder, spoil, culprit):
  path = folder('llama')
  spoil(path)
  with pytest.raises(UserError) as e:
    families.resolve(make_config(path))
  assert culprit in str(e.value)


@pytest.mark.parametrize('ids, token, told', [
    (-1, None, 'eos token; set'), (1 << 40, None, 'eos token; set'), (True, None, 'eos token; set'),
    ('x', None, 'eos token; set'), ([], None, 'eos token; set'), (None, 7, 'eos_token is .7.'),
    (None, {'content': [1]}, 'eos_token is'), (None, ['a'], 'eos_token is')])
def test_an_eos_of_another_kind_or_range_is_told(folder, ids, token, told):
  path = folder('llama', eos_token_id=ids)
  (path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': token}))
  with pytest.raises(UserError, match=told) as e:
    families.resolve(make_config(path))
  assert '\n' not in str(e.value)


def test_no_eos_anywhere_asks_for_one(folder):
  path = folder('llama', eos_token_id='absent')
  (path / 'tokenizer_config.json').unlink()
  with pytest.raises(UserError, match='eos token; set --config.tokenizer.kind=file'):
    families.resolve(make_config(path))


CHAT = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}")


@pytest.mark.parametrize('family, file', [
    ('llama', 'chat_template.jinja'), ('qwen2', 'tokenizer_config.json'), ('qwen2', 'named')])
def test_a_chat_template_stands_around_the_question(folder, family, file):
  path = folder(family)
  if file.endswith('.jinja'):
    (path / file).write_text(CHAT)
  else:
    found = CHAT if file != 'named' else [{'name': 'tool_use', 'template': 'x'},
                                          {'name': 'default', 'template': CHAT}]
    file = path / 'tokenizer_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'chat_template': found}))
  config = make_config(path)
  config = families.resolve(support.set_keys(config, {'layout.chat_template': True}))
  assert config.layout.question_prefix == '<|user|> '
  assert config.layout.separator == '<|end|><|assistant|> '
  assert families.resolve(config) == config
  # Its special tokens are tokens; a question still cannot spell one.
  tokenizer = tokenizer_lib.load_tokenizer(config.tokenizer)
  codec = methods.make_codec(config, tokenizer)
  ids = codec.encode_question('1+1?')
  bos = [0] if family == 'llama' else []
  text = tokenizer.encode('<|user|> ') + tokenizer.encode('1+1?')
  assert ids[:len(bos) + len(text) + 1] == [*bos, *text, 0]
  with pytest.raises(UserError, match='spells a special token'):
    codec.encode_question('<|end|>')


def test_a_chat_template_may_have_the_tags_that_transformers_knows(folder):
  path = folder('llama')
  (path / 'chat_template.jinja').write_text(
      "{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}"
      "Q: {{ m['content'] }}{% generation %} A:{% endgeneration %}{% break %}{% endfor %}")
  layout = families.resolve(support.set_keys(
      make_config(path), {'layout.chat_template': True})).layout
  assert (layout.question_prefix, layout.separator) == ('Q: ', ' A:')


@pytest.mark.parametrize('template, culprit', [
    (None, 'has no chat template'),
    ('{{ messages', 'the chat template fails'),
    ('hello', 'does not hold the question once'),
    ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", 'does not hold the question'),
    ("{{ raise_exception('no system turn') }}", 'no system turn'),
    ("{{ ().__class__.__base__.__subclasses__() }}", 'the chat template fails'),
])
def test_a_chat_template_that_cannot_be_used_is_named(folder, template, culprit):
  path = folder('llama')
  if template:
    (path / 'chat_template.jinja').write_text(template)
  with pytest.raises(UserError) as e:
    families.resolve(support.set_keys(make_config(path), {'layout.chat_template': True}))
  assert culprit in str(e.value) and '\n' not in str(e.value)


def test_named_chat_templates_without_a_default_are_named(folder):
  path = folder('llama')
  tree = json.loads((path / 'tokenizer_config.json').read_text()) | {'chat_template': [
      {'name': 'tool_use', 'template': CHAT}, {'name': 'rag', 'template': CHAT}]}
  (path / 'tokenizer_config.json').write_text(json.dumps(tree))
  with pytest.raises(UserError, match='has chat templates tool_use, rag, and none that is named'):
    families.resolve(support.set_keys(make_config(path), {'layout.chat_template': True}))


def test_a_model_on_the_hub_is_described_without_its_weights(monkeypatch):
  kinds = []
  monkeypatch.setattr(families.hub, 'fetch', lambda name, kind: kinds.append(kind) or (
      types.SimpleNamespace(path=GOLDEN / 'llama')))
  config = families.resolve(make_config('hf:org/name'))  # what a plan or --dry_run goes by
  assert kinds and set(kinds) == {'description'}
  assert config.tokenizer.path == str(GOLDEN / 'llama/tokenizer.json')
  families.get_folder(config.model)
  assert kinds[-1] == 'model'


@pytest.mark.parametrize('template', [
    "{{ 'x' * 10 ** 9 * 4 }}", *(pytest.param(case, marks=pytest.mark.slow) for case in (
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        "{% set s = 'x' * 99999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}"
        '{% endfor %}{% endfor %}'))])
def test_a_template_that_takes_too_much_ends(folder, template, monkeypatch):
  monkeypatch.setattr(chat, '_SECONDS', 2)
  path = folder('llama')
  (path / 'chat_template.jinja').write_text(template)
  with pytest.raises(UserError, match='the chat template fails') as e:
    families.resolve(support.set_keys(make_config(path), {'layout.chat_template': True}))
  assert '\n' not in str(e.value)


def test_an_error_of_a_template_is_one_line(folder):
  path = folder('llama')
  (path / 'chat_template.jinja').write_text(r"{{ raise_exception('one\ntwo' * 999) }}")
  with pytest.raises(UserError, match='one two') as e:
    families.resolve(support.set_keys(make_config(path), {'layout.chat_template': True}))
  assert '\n' not in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize('changes, culprit', [
    ({'num_hidden_layers': 10 ** 9}, 'num_layers=1000000000: the most is 1,000'),
    ({'vocab_size': 10 ** 12}, 'the most is 16,777,216 ids'),
    ({'num_attention_heads': 10 ** 10, 'num_key_value_heads': 1, 'head_dim': 8},
     'parameters would take'),
    ({'head_dim': 10 ** 12}, 'parameters would take'),
    ({'hidden_size': 2 ** 17, 'intermediate_size': 2 ** 20, 'num_hidden_layers': 999,
      'num_attention_heads': 2 ** 12, 'num_key_value_heads': 1}, 'parameters would take'),
    ({'rms_norm_eps': 10 ** 400}, 'has more than 300 digits'),
])
def test_a_size_that_no_model_has_is_refused_before_anything_is_built(folder, changes, culprit):
  with pytest.raises(UserError) as e:
    families.resolve(make_config(folder('llama', **changes)))
  assert culprit in str(e.value)


def test_layers_that_no_model_has_are_refused_before_they_are_listed(folder):
  with pytest.raises(UserError, match='num_layers=1000000000000: the most is 1,000'):
    families.resolve(make_config(folder(
        'gemma3', num_hidden_layers=10 ** 12, layer_types=None, sliding_window_pattern=6)))


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'tokenizer_config.json',
                                  'chat_template.jinja', 'model.safetensors'])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder, name):
  path = folder('llama')
  (path / name).unlink(missing_ok=True)
  os.mkfifo(path / name)
  with pytest.raises(UserError, match=f'{name}: is no regular file'):
    if name == 'model.safetensors':
      weights.open_base(path)
    families.resolve(support.set_keys(make_config(path), {'layout.chat_template': True}))


def test_json_that_is_nested_too_deep_is_told(folder):
  path = folder('llama')
  (path / 'config.json').write_text('[' * 100_000)
  with pytest.raises(UserError, match='config.json: is damaged'):
    families.resolve(make_config(path))


@pytest.mark.parametrize('name', ['../llama/model.safetensors', '/etc/passwd', 'a/b', 'x' * 5_000])
def test_an_index_names_files_of_its_directory_alone(folder, name):
  path = folder('llama')
  (path / 'model.safetensors').rename(path / 'part.safetensors')  # a whole file goes before it
  (path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': name}}))
  with pytest.raises(UserError, match='which is no file of this directory') as e:
    weights.open_base(path)
  assert len(str(e.value)) < 400


@pytest.mark.parametrize('path, before, now, found', [
    ('models/a/tokenizer.json', 'models/a', 'models/a', 'models/a/tokenizer.json'),
    ('models/a/tokenizer.json', 'models/a', 'elsewhere/a', 'elsewhere/a/tokenizer.json'),
    ('models/a/sub/t.json', 'models/a', 'elsewhere/a', 'elsewhere/a/sub/t.json'),
    ('other/tokenizer.json', 'models/a', 'elsewhere/a', 'other/tokenizer.json'),
    ('models/a.gguf', 'models/a.gguf', 'elsewhere/a.gguf', 'elsewhere/a.gguf'),
    ('models/a.gguf', 'models/a.gguf', 'models/a.gguf', 'models/a.gguf'),
    ('models/ab/t.json', 'models/a', 'elsewhere/a', 'models/ab/t.json'),
    ('gone/snapshots/1/tokenizer.json', 'hf:o/n', 'hf:o/n', 'cache/hf:o/n/tokenizer.json'),
    ('gone/snapshots/1/x.gguf', 'hf:o/n', 'hf:o/n/x.gguf', 'cache/hf:o/n/x.gguf'),
    ('gone/snapshots/1/tokenizer.json', 'hf:o/n', 'models/a', 'models/a/tokenizer.json'),
    ('there.json', 'hf:o/n', 'hf:o/n', 'there.json'),
])
def test_a_model_that_has_moved_has_its_tokenizer_with_it(path, before, now, found, tmp_path,
                                                          monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'there.json').touch()
  monkeypatch.setattr(families.hub, 'fetch', lambda name, kind: types.SimpleNamespace(
      path=pathlib.Path('cache') / name))
  model = config_lib.ModelConfig(init_from=now)
  assert families.find_moved_tokenizer(path, before, model) == found
