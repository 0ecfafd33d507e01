"""A user's mistake ends in one line a problem that names the culprit and the fix; a good run in 0.

The mistakes are made through `cli`, in process, where a subprocess would pay
for its imports each time; the cheapest are also made as real commands.
"""

import ast
import errno
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

import jax
import pytest
from rich import console as rich_console

from rim_jax import command_line, main, modes, reader, train
from rim_jax import config as config_lib
from rim_jax.errors import NoStart
from rim_jax.evaluation import decode
from rim_jax.runtime import storage
from rim_jax.training import state as state_lib
from tests import support, support_report, support_runs
from tests.support_cli import RECIPE, check_refused, run_cli

ROOT = pathlib.Path(__file__).parents[1]
ROW = {'question': 'What is 1+1?', 'steps': ['1+1=2'], 'answer': '2'}


def write_data(folder, train=(ROW,) * 4, test=(ROW,), valid=(ROW,)):
  folder.mkdir(parents=True)
  for name, rows in (('train', train), ('valid', valid), ('test', test)):
    if rows is not None:
      lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
      (folder / f'{name}.jsonl').write_text(''.join(line + '\n' for line in lines))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A directory with recipes, data and tokenizers, good and bad."""
  folder = tmp_path_factory.mktemp('place')
  recipes = {
      'tiny': RECIPE,
      'syntax': 'def get_config(:\n',
      'raises': 'def get_config():\n  return 1 / 0\n',
      'empty': 'x = 1\n',
      'number': 'def get_config():\n  return 3\n',
      'typo': RECIPE.replace('c.checkpoint.every_steps', 'c.checkpoint.evry_steps'),
      'retyped': RECIPE.replace('c.checkpoint.every_steps = 1', "c.checkpoint.every_steps = '1'"),
  }
  for name, text in recipes.items():
    (folder / f'{name}.py').write_text(text)
  write_data(folder / 'data')
  write_data(folder / 'no_test', test=None)
  write_data(folder / 'bad_row', train=(ROW, '{"question": "1?"'))
  write_data(folder / 'no_steps', train=(ROW, ROW, {**ROW, 'answer': ''}))
  write_data(folder / 'spells_eos', train=(ROW, {**ROW, 'question': 'is <eos> the end?'}))
  write_data(folder / 'long', train=(ROW, {**ROW, 'question': 'why ' * 100 + '?'}, ROW))
  import tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator([], tokenizers.trainers.BpeTrainer(
      vocab_size=300, show_progress=False, special_tokens=['<eos>'],
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.save(str(folder / 'tokenizer.json'))
  (folder / 'broken.json').write_text('{"version": "1.0"')
  return folder


@pytest.fixture(scope='module')
def trained(place):
  """(WORKDIR, standard output) of a whole run where the command line says nothing of a WORKDIR."""
  everything = jax.devices()
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    patch.setattr(jax, 'devices', lambda: everything[:1])
    code, out = run_cli('--config=tiny.py')
  assert code == 0
  return place / 'runs' / 'tiny', out


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch):
  monkeypatch.chdir(place)
  # Recipes are imported under one name, and a failed import leaves the one before behind.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)


@pytest.fixture
def run_copy(trained, tmp_path, use_devices):
  """A copy of the trained run, to spoil; one device."""
  use_devices(1)
  return pathlib.Path(shutil.copytree(trained[0], tmp_path / 'copy'))


# ---- Flags and recipes ----

T = '--config=tiny.py'
BAD_COMMANDS = {
    'no config': ([], ('--config is missing', 'configs/rim.py')),
    'keys without a config': (['--config.data.dir=x'], ('--config is missing', 'configs/rim.py')),
    'no such recipe': (['--config=nofile.py'], ('nofile.py', 'there is no file', 'recipe')),
    'syntax error': (['--config=syntax.py'], ('syntax.py', 'line 1')),
    'recipe raises': (['--config=raises.py'], ('raises.py', 'ZeroDivisionError', 'by zero')),
    'no get_config': (['--config=empty.py'], ('empty.py', 'has no get_config', 'define it')),
    'returns a number': (['--config=number.py'], ('number.py', 'returns int', 'make_config_dict')),
    'typo in a recipe': (['--config=typo.py'], ("'evry_steps'", "did you mean 'every_steps'")),
    'type in a recipe': (['--config=retyped.py'], ('retyped.py', 'every_steps', 'int')),
    'unknown preset': ([f'--config={ROOT}/configs/rim.py:gsm9k'],
                       ('rim.py:gsm9k', "no preset 'gsm9k'", 'chain_harder, gsm8k')),
    'unknown key': ([T, '--config.optim.learning_rat=1'],
                    ("'optim.learning_rat'", "did you mean 'optim.learning_rate'")),
    'unknown group': ([T, '--config.optm.b1=1'], ("'optm.b1'", "did you mean 'optim.b1'")),
    'a group as a key': ([T, '--config.optim=3'], ("'optim'", "'optim.trainable'")),
    'two bad keys': ([T, '--config.sed=1', '--config.seed=x'],
                     ("'sed'", "'seed'"), ('config.seed=x', 'should be int')),
    'not a whole number': ([T, '--config.seed=1.5'], ('config.seed=1.5', 'should be int')),
    'not a number': ([T, '--config.optim.learning_rate=fast'],
                     ('learning_rate=fast', 'should be float', '0.001')),
    'not a bool': ([T, '--config.log.tensorboard=maybe'], ('tensorboard=maybe', 'be bool')),
    'a key without a value': ([T, '--config.seed='], ('config.seed=', 'should be int')),
    'unknown flag': ([T, '--workdr=x'], ('workdr', 'Did you mean: workdir')),
    'stray word': ([T, 'train'], ("'train' is no flag", '--flag=value')),
    'bad mode': ([T, '--mode=trian'], ('mode=trian', 'train|eval|generate')),
}


@pytest.mark.parametrize('case', BAD_COMMANDS)
def test_a_bad_command_is_refused(case, capsys, tmp_path):
  argv, *lines = BAD_COMMANDS[case]
  check_refused(capsys, [*argv, f'--workdir={tmp_path}/run'], *lines)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('where', ['a recipe of ours', "a user's own"])
def test_a_recipe_runs_from_any_directory(where, tmp_path):
  """In a process of its own, which knows the package and not the checkout's root."""
  recipe = ROOT / 'configs/smoke.py'
  if where == "a user's own":
    recipe = tmp_path / 'mine.py'
    recipe.write_text('from configs import presets\n\n\n'
                      "def get_config():\n  return presets.make('rim', 'chain')\n")
  (tmp_path / 'lib').mkdir()
  (tmp_path / 'lib/rim_jax').symlink_to(ROOT / 'rim_jax')
  done = subprocess.run(
      [sys.executable, '-m', 'rim_jax.main', f'--config={recipe}', '--config.model.num_heads=5'],
      cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(tmp_path / 'lib')}, capture_output=True,
      text=True, timeout=300)
  # Read, built, and refused for what is wrong with it.
  assert done.returncode == 2 and 'model.num_heads=5' in done.stderr, done.stderr


def test_a_recipe_with_a_path_in_another_word():
  """`--config FILE` is as good as `--config=FILE`, as for every other flag."""
  assert run_cli('--config', 'tiny.py', '--help')[0] == 0


# ---- Configs: one case for each rule ----

BAD_CONFIGS = {
    'choice': ({'method': 'rim_stag1'}, ("method='rim_stag1'", "did you mean 'rim_stage1'")),
    'choice without a close one': ({'optim.decay': 'x'}, ("optim.decay='x'", 'constant, cosine')),
    'below one': ({'eval.batch_size': 0}, ('eval.batch_size=0', 'at least 1')),
    'negative': ({'seed': -1}, ('seed=-1', 'not be negative')),
    'not above 0': ({'optim.learning_rate': 0}, ('optim.learning_rate=0', 'above 0')),
    'not below one': ({'model.dropout': 1}, ('model.dropout=1', '[0, 1)')),
    'not finite': ({'optim.weight_decay': 'nan'}, ('optim.weight_decay=nan', 'finite')),
    'infinite': ({'optim.learning_rate': 'inf'}, ('optim.learning_rate=inf', 'finite')),
    'seed': ({'seed': 2**32}, ('seed=4294967296', '2**32')),
    'steps': ({'data.chain.max_steps': 1}, ('max_steps=1', 'below', 'min_steps=2')),
    'a budget of examples': ({'train.num_examples': 10**15},
                             ('train.num_examples=10', 'would take 16 PB', 'the most is')),
    'a budget of epochs': ({'train.num_examples': 0, 'train.num_epochs': 1e30},
                           ('train.num_epochs=1e+30', 'of memory', 'the most is')),
    'too long chains': ({'data.chain.max_steps': 10**9},
                        ('max_steps=1000000000', '2,000,000,001 characters', '10,000 steps')),
    'too many chains': ({'data.chain.num_train': 10**12},
                        ('num_train', 'about 100.0 TB', '100,000,000')),
    'too many ids': ({'model.vocab_size': 10**9},
                     ('model.vocab_size=1000000000', 'would take 256.0 GB', '16,777,216 ids')),
    'too many layers': ({'model.num_layers': 10**10},
                        ('model.num_layers=10000000000', 'the most is 1,000')),
    'modulus': ({'data.chain.modulus': 1}, ('modulus=1', 'at least 2')),
    'operators': ({'data.chain.operators': '+/'}, ("operators='+/'", '+ - *')),
    'repeated operators': ({'data.chain.operators': '++'}, ("operators='++'", "use '+'")),
    'no variants': ({'data.perturbed.variants_per_problem': 0},
                    ('data.perturbed.variants_per_problem=0', 'at least 1')),
    'dir unread': ({'data.dir': 'data'}, ("data.dir='data'", "source='gsm8k'")),
    'no tokenizer file': ({'tokenizer.kind': 'file', 'tokenizer.eos_token': 'x'},
                          ("kind='file'", 'needs tokenizer.path')),
    'no eos': ({'tokenizer.kind': 'file', 'tokenizer.path': 'tokenizer.json'},
               ("kind='file'", 'needs tokenizer.eos_token', '<|endoftext|>')),
    'path unread': ({'tokenizer.path': 'x'}, ("tokenizer.path='x'", "tokenizer.kind='file'")),
    'a set from nowhere': ({'eval.split': 'svamp'}, ("eval.split='svamp'", 'give it as eval.path')),
    'a set with the name of a split': (
        {'eval.split': 'dev', 'eval.path': 'x'}, ("eval.split='dev'", 'and no split')),
    'a set with the name of a file': (
        {'eval.split': '../x', 'eval.path': 'x'}, ("eval.split='../x'", 'letters, digits and _')),
    'sets without a file': ({'eval.sets': 'a=x,b'}, ("eval.sets='a=x,b'", "'b' is no NAME=FILE")),
    'a set twice': ({'eval.sets': 'a=x,a=y'}, ('a is named twice',)),
    'sets with names of splits': ({'eval.sets': 'valid=x,val=x,a=y'}, (
        "'valid' is a split",), ("'val' is a split",)),
    'sentences with marks': (
        {'data.source': 'gsm8k', 'tokenizer.kind': 'bytes', 'data.steps': 'sentences',
         'data.step_marks': True}, ('step_marks=True', 'set it to False')),
    'sentences of chains': ({'data.steps': 'sentences'}, ("data.steps='sentences'", 'chain')),
    'a budget without blocks': ({'method': 'cot', 'eval.budget_blocks': -1},
                                ('budget_blocks=-1', "'cot' has no blocks")),
    'a negative budget': ({'eval.budget_blocks': -2}, ('budget_blocks=-2', '-1 (twice')),
    'eval.path unread': ({'eval.path': 'x'}, ("eval.path='x'", 'another name')),
    'words for chains': ({'tokenizer.kind': 'words'}, ("kind='words'", "ProsQA's words only")),
    'a small ProsQA': (
        {'data.source': 'prosqa', 'tokenizer.kind': 'words', 'data.prosqa.min_nodes': 5,
         'data.prosqa.max_nodes': 4, 'data.prosqa.min_hops': 2, 'data.prosqa.max_hops': 1,
         'data.prosqa.num_names': 1, 'data.prosqa.num_concepts': 39, 'data.step_marks': True},
        ('max_nodes=4 is below', 'min_nodes=5'), ('max_hops=1 is below', 'min_hops=2'),
        ('min_nodes=5 is below the 6', 'min_hops=2'), ('num_names=1 must be 2 to 17',),
        ('num_concepts=39 must be 2 to 38',), ('step_marks=True', 'arithmetic')),
    'chain tokenizer for text': ({'data.source': 'gsm8k'},
                                 ("tokenizer.kind='chain'", "use 'bytes'")),
    'no blocks': ({'method': 'pause', 'layout.num_blocks': 0},
                  ('layout.num_blocks=0', "'pause'", "method 'direct'")),
    'no batch size': ({'eval.latency_batch_sizes': '1,0'},
                      ("latency_batch_sizes='1,0'", "e.g. '1,8'")),
    'blind direct': ({'method': 'direct', 'layout.readout_sees_question': False},
                     ('readout_sees_question=False', "'direct'", 'set it to True')),
    'cot without a mark': ({'method': 'cot', 'layout.step_separator': ''},
                           ('layout.step_separator or layout.answer_prefix',)),
    'head size': ({'model.num_heads': 3}, ('embed_dim=16', 'num_heads=3', 'set model.head_dim')),
    'kv heads': ({'model.num_kv_heads': 3}, ('num_heads=2', 'num_kv_heads=3')),
    'odd rope': ({'model.positions': 'rope', 'model.head_dim': 3}, ('even head dimension', '3')),
    'rope factors': ({'model.rope_high_freq_factor': 1},
                     ('rope_high_freq_factor=1', 'above model.rope_low_freq_factor=1')),
    'fused kv heads': ({'model.fused_qkv': True, 'model.num_kv_heads': 1},
                       ('fused_qkv=True', 'num_kv_heads=1 of 2')),
    'memory token': ({'model.vocab_size': 60, 'model.memory_token': 60},
                     ('memory_token=60', 'vocab_size=60')),
    'adapters that never train': ({'model.lora.rank': 2, 'optim.trainable': 'memory'},
                                  ('lora.rank=2', "set it to 'lora'")),
    'no adapters to train': ({'optim.trainable': 'lora'}, ('lora.rank=0', 'e.g. to 128')),
    'no expression': ({'model.lora.targets': '('}, ("targets='('", 'no regular expression')),
    'two starts': ({'model.lora.init_from': 'a', 'train.init_from': 'b', 'model.lora.rank': 2},
                   'needs model.init_from, the model that the adapters belong to',
                   ("model.lora.init_from='a'", "train.init_from='b'", 'set one')),
    'no target': ({'model.lora.rank': 2, 'model.lora.targets': 'q_proj|gate'},
                  ("targets='q_proj|gate'", 'query, key, value, out, up, down')),
    'no model directory': ({'model.init_from': 'nodir'},
                           ('nodir/config.json', 'a directory with config.json')),
    'two budgets': ({'train.num_epochs': 1}, ('train.num_examples=40', 'train.num_epochs=1', '0')),
    'no budget': ({'train.num_examples': 0}, ('set one of train.num_examples=0',)),
    'two batch sizes': ({'train.batch_examples': 8}, ('batch_examples=8', 'batch_rows=8')),
    'micro batches': ({'train.num_micro_batches': 3},
                      ('batch_rows=8', 'num_micro_batches=3', 'use 6 or 9')),
    'stage share': ({'curriculum.stage1_frac': 1}, ('stage1_frac=1', 'between 0 and 1')),
    'mesh axis': ({'mesh.fsdp': 0}, ('mesh.fsdp=0', '-1 for the rest')),
    'two rests': ({'mesh.fsdp': -1}, ("'fsdp': -1", 'only one axis')),
    'eval blocks': ({'eval.num_blocks': -2}, ('eval.num_blocks=-2', '-1 (as trained)')),
    'eval blocks of none': ({'method': 'direct', 'eval.num_blocks': 3},
                            ('eval.num_blocks=3', "'direct'", 'use -1')),
    'five at once': ({'model.num_heads': 3, 'data.chain.modulus': 0, 'train.num_epochs': 2,
                      'eval.num_blocks': -2, 'curriculum.stage1_frac': 2},
                     'num_heads=3', 'modulus=0', 'num_epochs=2', 'eval.num_blocks=-2',
                     'stage1_frac=2'),
    'values at once': ({'model.dropout': 1, 'eval.batch_size': 0, 'optim.decay': 'cosin'},
                       'dropout=1', 'batch_size=0', "did you mean 'cosine'"),
}


@pytest.mark.parametrize('case', BAD_CONFIGS)
def test_a_bad_config_is_refused(case, capsys, tmp_path):
  changes, *lines = BAD_CONFIGS[case]
  argv = [T, *(f'--config.{k}={v}' for k, v in changes.items()), f'--workdir={tmp_path}/run']
  check_refused(capsys, argv, *lines)


# ---- What only data, tokenizer or devices tell; eight devices ----

GSM8K = {'data.source': 'gsm8k', 'tokenizer.kind': 'bytes', 'layout.row_tokens': 128,
         'model.max_positions': 256}
FILE = {'tokenizer.kind': 'file', 'tokenizer.path': 'tokenizer.json',
        'tokenizer.eos_token': '<eos>'}
BAD_RUNS = {
    'mesh': ({'mesh.data': 3}, ('data=3 x fsdp=1 x tensor=1', '8 devices', 'be -1')),
    'rows over devices': ({'train.batch_rows': 12},
                          ('batch_rows=12', 'data x fsdp', 'batch_rows=8 or 16')),
    'rows from examples': ({'train.batch_rows': 0, 'train.batch_examples': 20},
                           ('from train.batch_examples=20', '--config.train.batch_rows=')),
    'small vocabulary': ({'model.vocab_size': 10}, ('vocab_size=10', '16 ids', 'use 0')),
    'small chain space': ({'data.chain.num_train': 100_000},
                          ('num_train', '8800', 'raise max_steps or modulus')),
    'no epoch': ({'train.num_examples': 0, 'train.num_epochs': 0.001},
                 ('num_epochs=0.001 of 40 records', 'raise it')),
    'no room': ({'layout.row_tokens': 8}, ('rim_chain/train:1', 'layout.row_tokens=', 'has 8')),
    'no slots': ({'layout.row_slots': 2}, ('rim_chain/train:', 'layout.row_slots=', 'has 2')),
    'no positions': ({'model.max_positions': 9}, ('rim_chain/train:', 'max_positions=', 'has 9')),
    'nothing usable': ({'layout.row_tokens': 8, 'data.on_bad_rows': 'drop'},
                       ('none of its 40 records', 'layout.row_tokens=')),
    'unknown characters in a template': ({'layout.answer_prefix': 'So '},
                                         ("'So '", "'S'", 'chain tokenizer', 'tokenizer.kind')),
    'remote cache': ({'data.cache_dir': 'gs://x'}, ('gs://x', 'local directory')),
    'cache below a file': ({'data.cache_dir': 'tiny.py/x'},
                           ('tiny.py/x', 'pass --config.data.cache_dir=DIR')),
    'no data directory': (GSM8K | {'data.dir': 'nodir'},
                          ("data.dir='nodir'", 'no such directory', 'pass one')),
    'a budget of epochs': (GSM8K | {'data.dir': 'data', 'train.num_examples': 0,
                                    'train.num_epochs': 5e8},
                           ('num_epochs=5e+08 of 4 records', '32.0 GB', '1,000,000,000')),
    'no test file': (GSM8K | {'data.dir': 'no_test'}, ('no_test', 'no test file', 'add or rename')),
    'bad row': (GSM8K | {'data.dir': 'bad_row'},
                ('bad_row/train.jsonl:2', 'not JSON', '--config.data.on_bad_rows=drop')),
    'few templates': (GSM8K | {'data.source': 'gsm8k_perturbed', 'data.dir': 'data',
                               'data.perturbed.total': 9},
                      ('data.perturbed.total=9', 'templates', 'lower total')),
    'empty answer': (GSM8K | {'data.dir': 'no_steps'},
                     ('no_steps/train.jsonl:3', 'answer is empty', 'on_bad_rows=drop')),
    'long row': (GSM8K | {'data.dir': 'long'},
                 ('train.jsonl:2', 'layout.row_tokens=4', 'has 128', 'on_bad_rows=drop')),
    'row spells eos': (GSM8K | FILE | {'data.dir': 'spells_eos'},
                       ('train.jsonl:2', 'special token', 'tokenizer.json', 'remove it')),
    'no such tokenizer': (FILE | {'tokenizer.path': 'nofile.json'},
                          ('nofile.json', 'cannot be read', '--config.tokenizer.path')),
    'not a tokenizer': (FILE | {'tokenizer.path': 'broken.json'},
                        ('broken.json', 'is not a tokenizer.json')),
    'no such token': (FILE | {'tokenizer.eos_token': '</s>'},
                      ('tokenizer.json', "no token '</s>'", '--config.tokenizer.eos_token')),
    'no such start': ({'method': 'rim', 'train.init_from': 'nodir'},
                      ('nodir: there is no run here to start from; name another one',
                       'init_from=DIR')),
    'no stage 1': ({'method': 'rim_stage2'},
                   ('no stage1 run', '--config.method=rim_stage1', 'init_from=DIR')),
    'no such stage 1': ({'method': 'rim_stage2', 'train.init_from': 'nodir'},
                        ('nodir: no stage1 run', 'init_from=DIR')),
}


@pytest.mark.parametrize('case', BAD_RUNS)
def test_a_run_that_cannot_be_is_refused(case, capsys, tmp_path):
  changes, *lines = BAD_RUNS[case]
  argv = [T, *(f'--config.{k}={v}' for k, v in changes.items()), f'--workdir={tmp_path}/run']
  check_refused(capsys, argv, *lines)


def test_parameters_that_the_mesh_does_not_divide(capsys, tmp_path):
  """Every such dimension in a line of its own, and nothing left in its place to be replicated."""
  capsys.readouterr()
  code, _ = run_cli(T, '--config.mesh.tensor=8', '--config.mesh.data=1',
                    f'--workdir={tmp_path}/run')
  lines = capsys.readouterr().err.splitlines()
  assert code == 2
  assert {line.split(' has ')[0] for line in lines} == {
      f'error: model: blocks.{name}.kernel' for name in ('query', 'key', 'value', 'out')}
  assert all('= 2, not divisible by mesh tensor = 8; use a mesh with 2 there, or' in line
             for line in lines)


def test_a_refused_run_can_be_put_right_where_it_is(capsys, tmp_path):
  """The fix that an error names is not itself refused for what the failed attempt left."""
  workdir = f'--workdir={tmp_path}/run'
  check_refused(capsys, [T, '--config.train.batch_rows=12', workdir], 'batch_rows=12')
  check_refused(capsys, [T, '--config.layout.row_tokens=8', workdir], 'layout.row_tokens=')


@pytest.mark.slow
def test_a_wrong_value_is_told_of_all_who_may_have_given_it(run_copy, capsys):
  argv = [f'--workdir={run_copy}', '--mode=eval', '--config.eval.split=tset']
  check_refused(capsys, argv, f"{run_copy}/config.json and command line: eval.split='tset' is none")
  check_refused(capsys, [T, *argv], "tiny.py and command line: eval.split='tset'")


@pytest.mark.slow
def test_controls_of_a_run(run_copy, capsys):
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=controls')
  assert code == 0
  found = json.loads((run_copy / 'controls.json').read_text())
  assert found['n'] == 8 and found['set'] == 'test' and len(found['controls']) == 9
  assert found['controls']['as_trained']['block_acc'] == json.loads(
      (run_copy / 'results.json').read_text())['test']['block_acc']
  assert 'question hidden' in out and 'swapped from block 2' in out and 'probes' not in found
  assert found['attention']['num_questions'] == 4
  weights = [[sum(layer) for layer in block] for block in found['attention']['mean']]
  assert weights == [[pytest.approx(1, abs=1e-5)]] * 2  # one layer, after each of two blocks
  page = (run_copy / 'report.html').read_text()
  assert f'report: {run_copy}/report.html' in out and 'What an answer attends to' in page
  for value in found['controls']['as_trained']['block_acc']:
    assert f'<data value="{value!r}">' in page
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=controls',
                      '--config.controls.probes=True')
  found = json.loads((run_copy / 'controls.json').read_text())
  assert code == 0 and 'with one layer' in found['probes']['none'] and 'probes: with one' in out
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=controls',
                         f'--config.controls.pause_dir={run_copy}'],
                ("method 'rim_stage1'", 'name a pause run'))
  check_refused(capsys, ['--config=tiny.py:direct', '--mode=controls'], ("'direct' has no blocks",))


@pytest.mark.parametrize('name', ['tiny.py', 'tiny.py/below'])
def test_a_workdir_that_cannot_be_written(name, capsys):
  check_refused(capsys, [T, f'--workdir={name}'], (name, 'cannot be written', 'another --workdir'))


@pytest.mark.parametrize('mode', ['eval', pytest.param('controls', marks=pytest.mark.slow)])
def test_a_run_that_cannot_be_written_is_not_asked(mode, run_copy, capsys, monkeypatch):
  """As on a disk that is mounted to be read: root may write where modes forbid it."""
  def refuse(*args):
    raise OSError(30, 'Read-only file system')
  monkeypatch.setattr(storage, 'write_json', refuse)
  monkeypatch.setattr(decode.Decoder, 'decode_texts', refuse)  # nothing is decoded before
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}'], (
      'cannot be written (Read-only file system)',))


def test_a_set_that_cannot_be_asked_is_told_before_another_is(
    run_copy, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(decode.Decoder, 'decode_texts', None)
  (tmp_path / 'own.jsonl').write_text('{"question": "Who?", "answer": "3"}\n')
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=eval',
                         f'--config.eval.sets=own={tmp_path}/own.jsonl'],
                ('own.jsonl:1', "holds 'W'"))


# ---- What a run left, spoiled ----


def edit_json(path, **fields):
  """As a run with other content would have written it: sealed."""
  path.write_text(json.dumps(reader.seal(json.loads(path.read_text()) | fields)))


def flip_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def spoil_checkpoints(workdir):
  for folder in (workdir / 'checkpoints').iterdir():
    files = [p for p in (folder / 'params').rglob('*') if p.is_file()]
    flip_byte(max(files, key=lambda p: p.stat().st_size))


def test_stage2_of_an_unfinished_stage1(run_copy, capsys, tmp_path):
  (run_copy / 'results.json').unlink()
  check_refused(capsys, ['--config=tiny.py:rim_stage2', f'--workdir={tmp_path}/run',
                         f'--config.train.init_from={run_copy}'],
                (str(run_copy), 'not complete', 'run its command again'))


def test_an_export_needs_a_finished_run_from_a_model_directory(run_copy, capsys):
  argv = [T, f'--workdir={run_copy}', '--mode=export']
  check_refused(capsys, argv, (str(run_copy), 'not made from a Hugging Face directory',
                               'train from one'))
  (run_copy / 'results.json').unlink()
  check_refused(capsys, argv, (str(run_copy), 'not complete', 'run its command again'))
  assert not (run_copy / 'export').exists()


@pytest.mark.parametrize('change, fragments', [
    ('model.mlp_dim=32', ('has model.mlp_dim=16', 'this run has 32', '--config.model.mlp_dim')),
    ('tokenizer.kind=bytes', ('another tokenizer (chain-v1)', '--config.tokenizer')),
])
def test_stage2_of_another_stage1(run_copy, capsys, tmp_path, change, fragments):
  check_refused(capsys, ['--config=tiny.py:rim_stage2', f'--workdir={tmp_path}/run',
                         f'--config.{change}', f'--config.train.init_from={run_copy}'],
                (str(run_copy), *fragments))


def test_a_report_is_written_anew_from_files_alone(run_copy, monkeypatch):
  before = (run_copy / 'report.html').read_bytes()
  (run_copy / 'report.html').unlink()
  shutil.rmtree(run_copy / 'checkpoints')
  monkeypatch.setattr(train, 'make_task', None)  # neither data nor a model are opened
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=report')
  assert code == 0 and out == f'report: {run_copy}/report.html\n'
  assert (run_copy / 'report.html').read_bytes() == before


@pytest.mark.parametrize('mode, more', [
    pytest.param('report', [], marks=pytest.mark.slow),
    ('data', ['--config=tiny.py', '--config.mesh.fsdp=64'])])
def test_what_is_shown_of_files_opens_no_accelerator(run_copy, mode, more):
  """A training run may hold it, and it may not be there: here no TPU is."""
  done = subprocess.run(
      [sys.executable, '-m', 'rim_jax.main', f'--workdir={run_copy}', f'--mode={mode}', *more],
      capture_output=True, text=True, timeout=300,
      env={**support_runs.ENVIRONMENT, 'JAX_PLATFORMS': 'tpu'})
  assert done.returncode == 0, done.stderr


def test_a_recipe_that_is_not_there_is_told_with_all_that_are(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  check_refused(capsys, ['--config=configs/rmi.py'], ('configs/rim.py', 'configs/sweeps/lora.py'))
  run_cli('--config=configs/rmi.py')
  assert 'presets.py' not in capsys.readouterr().err


@pytest.mark.parametrize('mode', ['train', 'eval', 'generate', 'report'])
def test_going_on_with_another_config(run_copy, mode, capsys):
  """Every key that differs, with its old and new value; where and when it runs may differ."""
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}', '--question=1',
                         '--config.optim.b1=0.5', '--config.model.norm=layernorm',
                         '--config.log.every_steps=7', '--config.eval.batch_size=4'],
                ('optim.b1=0.9', 'now it is 0.5', '--config.optim.b1=0.9'),
                ("model.norm='rmsnorm'", "now it is 'layernorm'", '--config.model.norm=rmsnorm'))


def test_going_on_with_other_data(run_copy, capsys):
  card = json.loads((run_copy / 'config.json').read_text())
  edit_json(run_copy / 'config.json', data={**card['data'], 'fingerprint': 'abcd'})
  check_refused(capsys, [T, f'--workdir={run_copy}'],
                (str(run_copy), 'the data changed', 'abcd', 'restore it'))


@pytest.mark.parametrize('mode', ['train', 'eval', 'report'])
def test_a_card_of_another_format(run_copy, mode, capsys):
  edit_json(run_copy / 'config.json', format=99)
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}'],
                ('config.json', 'format 99', 'another --workdir'))


@pytest.mark.parametrize('content', ['{"format": 1, "con', '[]', '{"format": 1}'])
def test_a_damaged_card(run_copy, content, capsys):
  (run_copy / 'config.json').write_text(content)
  check_refused(capsys, [T, f'--workdir={run_copy}'], ('config.json', 'damaged'))


def test_damaged_results(run_copy, capsys):
  (run_copy / 'results.json').write_text('{"test"')
  check_refused(capsys, [T, f'--workdir={run_copy}'], ('results.json', 'damaged'))


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_checkpoints_of_another_format(run_copy, mode, capsys):
  for path in (run_copy / 'checkpoints').glob('*/manifest.json'):
    edit_json(path, format=99)
  (run_copy / 'results.json').unlink()
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}'],
                ('checkpoint format 99', 'use the version that wrote it'))


def test_every_checkpoint_damaged(run_copy, capsys):
  spoil_checkpoints(run_copy)
  (run_copy / 'results.json').unlink()
  check_refused(capsys, [T, f'--workdir={run_copy}'],
                ('every checkpoint is damaged', 'differs from what was saved', 'delete'))


@pytest.mark.parametrize('mode', ['eval', 'generate'])
def test_reading_a_damaged_checkpoint(run_copy, mode, capsys):
  spoil_checkpoints(run_copy)
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}', '--question=1'],
                ('damaged', 'differs from what was saved', '--config.eval.checkpoint=last'))


def test_a_damaged_manifest_is_damage(run_copy, capsys):
  for path in (run_copy / 'checkpoints').glob('*/manifest.json'):
    path.write_text('{')
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=eval'], ('damaged', 'manifest'))


@pytest.mark.parametrize('mode', ['eval', 'generate', 'report'])
def test_no_run_to_read(mode, capsys, tmp_path):
  check_refused(capsys, [T, f'--workdir={tmp_path}/run', f'--mode={mode}', '--question=1'],
                ('there is no run here', '--mode=train'))


@pytest.mark.parametrize('mode', ['eval', 'generate'])
def test_a_run_without_checkpoints(run_copy, mode, capsys):
  shutil.rmtree(run_copy / 'checkpoints')
  check_refused(capsys, [T, f'--workdir={run_copy}', f'--mode={mode}', '--question=1'],
                ('has no checkpoint', 'train it first'))


def test_no_question(run_copy, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'\n  \n')))
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=generate'],
                ('there is no question', '--question='))


def test_a_question_in_unknown_characters(run_copy, capsys):
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=generate', '--question=1 plus 2'],
                ("'1 plus 2'", "' '", '0123456789'))


def test_a_question_too_long(run_copy, capsys):
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=generate', '--question=' + '1+' * 30],
                ('question 1', '60 tokens', 'model.max_positions=48', 'shorter questions'))


def test_a_budget_beyond_the_positions(run_copy, capsys):
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=eval',
                         '--config.eval.budget_blocks=40'],
                ('rim_chain/test:', '40 blocks', 'max_positions=48', 'eval.budget_blocks'))


def test_more_blocks_than_positions(run_copy, capsys):
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=eval', '--config.eval.num_blocks=40'],
                ('rim_chain/test:', '40 blocks', 'max_positions=48', 'eval.num_blocks'))


# ---- Good runs ----


def test_a_whole_run(trained):
  """From nothing to answers, in a WORKDIR that no flag names, by a relative path."""
  workdir, out = trained
  assert {'config.json', 'metrics.jsonl', 'results.json', 'predictions', 'checkpoints',
          'report.html'} <= {p.name for p in workdir.iterdir()}
  assert json.loads((workdir / 'results.json').read_text())['test']['n'] == 8
  assert 'report: ' in out
  assert 'python -m rim_jax.main --workdir=runs/tiny --mode=generate --question=' in out


def test_a_second_call_says_it_is_complete(run_copy):
  before = (run_copy / 'metrics.jsonl').read_text()
  code, out = run_cli(T, f'--workdir={run_copy}')
  assert code == 0
  assert f'{run_copy}: this run is complete' in out
  assert (run_copy / 'metrics.jsonl').read_text() == before


def test_generate_answers_every_line(run_copy, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'1+2\n\n3+4+5\r\n')))
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=generate')
  assert code == 0
  assert [line.split(': ', 1)[1] for line in out.splitlines() if line.startswith('question')] == [
      '1+2', '3+4+5']
  assert out.count('answer: ') == 2


def test_generate_reads_and_writes_json(run_copy, monkeypatch, capsys):
  rows = b'{"question": "1+2", "answer": "3"}\n3+4+5\n'
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(rows)))
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=generate', '--json')
  told = [json.loads(line) for line in out.splitlines()]
  assert code == 0 and [row['question'] for row in told] == ['1+2', '3+4+5']
  for row in told:
    assert set(row) == {'question', 'answer', 'block_answers', 'block_texts'}
    assert row['answer'] == row['block_answers'][-1]
    assert len(row['block_texts']) == len(row['block_answers']) > 1
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'1+2\n{"problem": "1+2"}\n')))
  check_refused(capsys, [T, f'--workdir={run_copy}', '--mode=generate'],
                ('standard input:2: ', "without a 'question'"))


def test_a_question_is_one_line_for_programs(run_copy):
  console = rich_console.Console(file=io.StringIO(), width=20)
  code = main.cli(['main', T, f'--workdir={run_copy}', '--mode=generate',
                       '--question=1+2+3+4+5+6+7+8+9'], console)
  assert code == 0
  assert 'question: 1+2+3+4+5+6+7+8+9\n' in console.file.getvalue()


def test_eval_at_another_number_of_blocks_adds_to_the_results(run_copy):
  code, _ = run_cli(T, f'--workdir={run_copy}', '--mode=eval', '--config.eval.num_blocks=0')
  results = json.loads((run_copy / 'results.json').read_text())
  assert code == 0
  assert list(results) == ['test', 'test-k0']
  assert results['test-k0']['num_blocks'] == 0
  assert (run_copy / 'predictions' / 'test-k0.jsonl').exists()


def test_eval_adds_a_budget_curve_and_pass_at_k(run_copy):
  code, out = run_cli(T, f'--workdir={run_copy}', '--mode=eval', '--config.eval.budget_blocks=-1',
                      '--config.eval.num_samples=2')
  results = json.loads((run_copy / 'results.json').read_text())['test']
  assert code == 0
  assert list(results['budget_acc']) == list('01234')  # two blocks were trained
  assert results['budget_acc']['2'] == results['final_acc']
  lines = (run_copy / 'predictions' / 'test.jsonl').read_text().splitlines()
  right = [json.loads(line)['num_right_samples'] for line in lines]
  assert results['pass_at'] == {'1': sum(right) / 16, '2': sum(n > 0 for n in right) / 8}
  assert 'pass@k' in out and 'accuracy with K blocks' in out


def test_training_shows_the_results_that_eval_asks_for(tmp_path, monkeypatch):
  """Of a complete run asked for other sets, which stand last in results.json."""
  config, shown = support.make_config('direct'), []
  support_report.write_run(tmp_path, 'direct', 0, **{
      name: support_report.make_result('direct', 0) for name in ('test', 'test-n7')})
  monkeypatch.setattr(train, 'train_curriculum', lambda *args: None)
  monkeypatch.setattr(modes, '_write_summary', lambda *args: 'report.html')
  monkeypatch.setattr(modes, '_make_command', lambda *args: '')
  monkeypatch.setattr(modes.run_page, 'show_results', lambda *args: shown.append(args[-1]))
  for asked in (config, support.set_key(config, 'eval.num_examples', 7)):
    modes.train(asked, tmp_path, lambda line: None, None)
  assert shown == ['test', 'test-n7']


@pytest.mark.slow
def test_gsm_hard_stands_beside_test(place, use_devices, tmp_path, capsys):
  """A run on GSM8K is evaluated on GSM-Hard, which becomes a set of its own."""
  use_devices(1)
  argv = [T, f'--workdir={tmp_path}/run', *(f'--config.{k}={v}' for k, v in (
      GSM8K | {'data.dir': 'data', 'layout.num_blocks': 1, 'train.num_examples': 8}).items())]
  assert run_cli(*argv)[0] == 0
  before = json.loads((tmp_path / 'run' / 'results.json').read_text())
  rows = [('What is  1+1?', 2.0), ('What is 7+4?', 11.0), ('What is 1-7?', -6.0), ('Half?', 0.5)]
  (tmp_path / 'hard.jsonl').write_text(''.join(
      json.dumps({'input': question, 'target': target}) + '\n' for question, target in rows))
  code, out = run_cli(*argv, '--mode=eval', '--config.eval.split=gsm_hard',
                      f'--config.eval.path={tmp_path}/hard.jsonl')
  after = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert code == 0 and list(after) == ['test', 'gsm_hard'] and after['test'] == before['test']
  assert [after['gsm_hard'][f'num_{kind}'] for kind in (
      'integer', 'negative', 'non_integer', 'changed')] == [2, 1, 1, 3]
  assert after['gsm_hard']['n'] == 4 and 'num_integer' not in after['test']
  lines = (tmp_path / 'run' / 'predictions' / 'gsm_hard.jsonl').read_text().splitlines()
  assert [json.loads(line)['origin'] for line in lines] == [f'hard.jsonl:{i}' for i in (1, 2, 3, 4)]
  assert 'Results on gsm_hard' in out and 'negative answers' in out
  (tmp_path / 'svamp.json').write_text(json.dumps(
      [{'Body': 'One and', 'Question': 'one?', 'Answer': 2.0}] * 3))
  code, out = run_cli(*argv, '--mode=eval', f'--config.eval.sets=svamp={tmp_path}/svamp.json,'
                      f'hard={tmp_path}/hard.jsonl')
  several = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert code == 0 and set(several) == {'gsm_hard', 'test', 'svamp', 'hard'}
  assert [several[name]['n'] for name in ('svamp', 'hard')] == [3, 4]
  assert several['svamp']['final_acc_stderr'] is not None
  assert several['hard']['final_acc'] == several['gsm_hard']['final_acc']
  assert [line.split()[:2] for line in out[out.index('% right'):].splitlines()[1:]
          if line.split()[1:2] in (['3'], ['4'])] == [['svamp', '3'], ['hard', '4']]
  code, out = run_cli(*argv, f'--config.eval.sets=svamp={tmp_path}/none.json',
                      f'--workdir={tmp_path}/new')  # told before anything is trained
  assert code == 2 and 'none.json: ' in capsys.readouterr().err
  assert not (tmp_path / 'new' / 'config.json').exists()


# ---- A run knows its configuration ----

HOSTILE = '$(touch pwned) `x` "it\'s" \x1b[31m'


def read_commands(out):
  """The words of every command that was printed, as a shell reads them up to its line's end."""
  lines = re.findall(r'python[0-9.]* -m rim_jax\.main (.*)', out)
  return [subprocess.run(['bash', '-c', f'printf "%s\\0" {line}'], capture_output=True, text=True,
                         timeout=300).stdout.split('\0')[:-1] for line in lines]


@pytest.fixture(scope='module')
def overridden(place, tmp_path_factory):
  """(WORKDIR, standard output) of a curriculum with overrides, on data and below a path of evil."""
  everything, folder = jax.devices(), tmp_path_factory.mktemp('evil')
  write_data(folder / 'rows', test=({**ROW, 'question': HOSTILE}, ROW))
  workdir = folder / "a b'\n$(touch pwned)"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    patch.delitem(sys.modules, 'config_config', raising=False)
    patch.setattr(jax, 'devices', lambda: everything[:1])
    words = [f'{T}:rim', f'--workdir={workdir}', *(f'--config.{k}={v}' for k, v in (
        GSM8K | {'data.dir': folder / 'rows', 'layout.num_blocks': 1, 'model.embed_dim': 8,
                 'layout.separator': ' = '}).items())]
    patch.setattr(sys, 'argv', [main.__file__, *words])  # the card keeps it
    code, out = run_cli(*words)
  assert code == 0
  return workdir, out


@pytest.mark.slow
def test_a_command_that_a_run_prints_runs_as_printed(overridden, use_devices, place):
  use_devices(1)
  workdir, out = overridden
  assert '\x1b' not in out and out.count('files: ') == 1
  (command,) = read_commands(out)
  assert f'--workdir={workdir}' in command and f'--question={HOSTILE}' in command
  code, out = run_cli(*command)
  assert code == 0 and 'answer: ' in out and '\x1b' not in out
  assert not (place / 'pwned').exists()


def run_printed(text, num_commands):
  """Runs every command in what a person saw, which are so many; what each says."""
  commands = read_commands(text)
  assert len(commands) == num_commands, text
  told = []
  for command in commands:
    code, out = run_cli(*command)
    assert code == 0, command
    told.append(out)
  return told


@pytest.mark.slow
def test_the_command_on_a_run_s_page_runs_as_it_stands_there(overridden, use_devices):
  use_devices(1)
  page = support_report.Page(overridden[0] / 'report.html')
  shown = [row[1][0] for table in page.tables for row in table if row[0][0] == 'command']
  assert len(shown) == 2  # of each stage
  for told in run_printed('\n'.join(shown[:1]), 1):
    assert 'this run is complete' in told


@pytest.mark.slow
def test_the_commands_of_a_sweep_run_as_printed(use_devices, place, tmp_path):
  use_devices(1)
  recipe = RECIPE.replace('  return c', '''  from rim_jax.config.grid import make_sweep_dict
  return make_sweep_dict(c, [({'odd': "a 'b' $(touch pwned)"}, {})])''')
  (tmp_path / 'many runs.py').write_text(recipe)
  sweep = [f'--config={tmp_path}/many runs.py', f'--workdir={tmp_path}/it is', '--mode=sweep',
           '--config.eval.num_shown=1']
  code, out = run_cli(*sweep, '--dry_run')
  assert code == 0
  (told,) = run_printed(out, 1)  # it trains
  assert 'answer: ' in run_printed(told, 1)[0]
  # A job of its own tells the sweep that it is done.
  assert run_cli(sweep[0], '--point=0', f'--sweep_dir={tmp_path}/it is')[0] == 0
  code, out = run_cli(*sweep, '--conclude', '--config.eval.num_examples=3')
  assert code == 0 and 'was not evaluated as eval now says' in out
  assert 'Results on test-n3' in run_printed(out, 1)[0]
  code, out = run_cli(*sweep, '--conclude', '--config.eval.num_examples=3')
  assert code == 0 and 'was not evaluated' not in out and not read_commands(out)
  assert not (place / 'pwned').exists()


@pytest.mark.slow
def test_stage_2_says_how_to_make_stage_1(use_devices, tmp_path, monkeypatch, capsys):
  """In a checkout: recipes stand in configs/, and runs below runs/."""
  use_devices(1)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  for stage in ('stage1', 'stage2'):
    (tmp_path / f'configs/{stage}.py').write_text(RECIPE.replace('rim_stage1', f'rim_{stage}'))
  # Data of our own below a path that a shell would read otherwise, and a network of another shape.
  write_data(tmp_path / "a $(touch pwned) 'b'")
  typed = [f'--config.{k}={v}' for k, v in (GSM8K | {
      'data.dir': f"{tmp_path}/a $(touch pwned) 'b'", 'layout.num_blocks': 1,
      'train.num_examples': 8}).items()]
  stage2 = ['--config=configs/stage2.py', *typed, '--config.checkpoint.stop_frac=1']
  code, _ = run_cli(*stage2)
  (told,) = capsys.readouterr().err.splitlines()
  assert code == 2 and 'no stage1 run to start from' in told
  assert read_commands(told) == [['--config=configs/stage1.py', *typed]]
  run_printed(told, 1)
  code, out = run_cli(*stage2)
  assert code == 0, capsys.readouterr().err
  assert 'answer: ' in run_printed(out, 1)[0]
  assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize('argv, told', [
    (['configs/stage2.py:gsm8k', '--workdir=mine'],
     ', e.g. mine-stage1 after python -m rim_jax.main --config=configs/stage1.py:gsm8k '
     '--workdir=mine-stage1'),
    (['configs/stage2.py:gsm8k', '--workdir=x/stage2'],
     ', or make it with python -m rim_jax.main --config=configs/stage1.py:gsm8k '
     '--workdir=x/stage1'),
    (['configs/stage2.py', '--config.train.init_from=a b', '--config.seed=3'],
     ', or make it with python -m rim_jax.main --config=configs/stage1.py --config.seed=3 '
     "--workdir='a b'"),
    (['configs/rim.py', '--config.method=rim_stage2', '--config.seed=3', '--workdir=x/stage2'],
     ', or make it with python -m rim_jax.main --config=configs/rim.py --config.method=rim_stage1 '
     '--config.seed=3 --workdir=x/stage1')])
def test_a_command_for_stage_1_goes_by_what_was_typed_for_stage_2(argv, told, monkeypatch):
  monkeypatch.chdir(ROOT)
  words = ['main.py', f'--config={argv[0]}', *argv[1:]]
  command = command_line.parse(words)
  with pytest.raises(NoStart) as e:
    state_lib.find_init(command.config, command.workdir)
  assert command_line.describe_start(command, words, e.value) == str(e.value) + told


def test_a_key_that_a_refusal_offers_is_taken(run_copy, capsys):
  words = [T, f'--workdir={run_copy}', '--config.optim.learning_rate=0.5']
  assert run_cli(*words)[0] == 2
  (told,) = capsys.readouterr().err.splitlines()
  (offered,) = re.findall(r'or (--config\.\S+)$', told)
  assert run_cli(*words, offered)[0] == 0


def test_whoever_prints_a_command_has_a_test_that_runs_it():
  tested = {  # module -> the test above, or where it stands
      'modes.py': test_a_command_that_a_run_prints_runs_as_printed,
      'report/run_page.py': test_the_command_on_a_run_s_page_runs_as_it_stands_there,
      'sweep/driver.py': test_the_commands_of_a_sweep_run_as_printed,
      'command_line.py': test_stage_2_says_how_to_make_stage_1,
      'pretrained/lm_eval_task.py': 'tests/pretrained/lm_eval_task_test.py'}
  package = ROOT / 'rim_jax'
  found = {path.relative_to(package).as_posix() for path in package.rglob('*.py')
           for node in ast.walk(ast.parse(path.read_text()))
           if isinstance(node, ast.Constant) and isinstance(node.value, str)
           and node.lineno > 1  # no docstring of a module
           and re.search(r'(^|python -m )rim_jax\.main\b|\blm_eval --', node.value)}
  assert found == set(tested)


@pytest.mark.slow
@pytest.mark.parametrize('mode, more, told', [
    ('eval', ['--config.eval.num_blocks=0', '--config.eval.num_examples=1'],
     'Results on test-k0-n1'),
    ('report', [], 'report: '), ('controls', [], 'controls.json'),
    ('compare', ['--with=runs/tiny'], ''), ('generate', ['--question=1+1'], 'answer: '),
    ('export', [], '')])
def test_a_run_is_asked_without_its_recipe(mode, more, told, overridden, trained, use_devices,
                                           capsys):
  use_devices(1)
  capsys.readouterr()
  code, out = run_cli(f'--workdir={overridden[0]}', f'--mode={mode}', *more)
  err = capsys.readouterr().err
  if told:
    assert code == 0 and told in out, err
  else:  # as with the recipe: the two are of other data, and it began with no model directory
    assert code == 2 and {'compare': 'other data', 'export': 'model.init_from'}[mode] in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.slow
def test_a_stage_is_a_run_that_knows_itself(overridden, use_devices):
  use_devices(1)
  code, out = run_cli(f'--workdir={overridden[0]}/stage2', '--mode=generate', '--question=1+1')
  assert code == 0 and 'answer: ' in out


def test_a_mode_in_another_word(run_copy):
  code, out = run_cli('--workdir', str(run_copy), '--mode', 'report')
  assert code == 0 and 'report: ' in out


def put_folder(path):
  path.unlink(missing_ok=True)
  path.mkdir()


def put_file(path):
  shutil.rmtree(path)
  path.write_text('')


@pytest.mark.parametrize('name, spoil, mode, told', [
    ('report.html', put_folder, 'report', 'report.html: Is a directory'),
    ('results.json', put_folder, 'report', 'results.json: cannot be read (Is a directory)'),
    ('metrics.jsonl', put_folder, 'report', 'metrics.jsonl: cannot be read (Is a directory)'),
    ('predictions/test.jsonl', put_folder, 'report', 'test.jsonl: cannot be read (Is a directory)'),
    ('predictions', put_file, 'report', 'predictions'),
    ('figures', put_file, 'report', 'figures: File exists'),
    ('checkpoints', put_file, 'generate', 'checkpoints'),
    ('config.json', put_folder, 'generate', 'config.json: cannot be read (Is a directory)')])
def test_a_directory_in_place_of_a_file_and_the_other_way_round(run_copy, capsys, name, spoil, mode,
                                                                told):
  spoil(run_copy / name)
  check_refused(capsys, [f'--workdir={run_copy}', f'--mode={mode}', '--question=1+2'][
      :3 if mode == 'generate' else 2], told)


def test_a_checkpoint_folder_of_another_digit_is_none(run_copy):
  (run_copy / 'checkpoints/²').mkdir()
  (run_copy / 'checkpoints/²/manifest.json').write_text('{}')
  assert run_cli(f'--workdir={run_copy}', '--mode=generate', '--question=1+2')[0] == 0


def test_a_question_that_is_no_utf_8_is_refused(run_copy, capsys, monkeypatch):
  command = [f'--workdir={run_copy}', '--mode=generate']
  check_refused(capsys, [*command, '--question=1+\udcff'], ('--question: is no UTF-8', 'write it'))
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'1+2\n\xff\n')))
  check_refused(capsys, command, 'standard input: is no UTF-8')


def test_an_empty_results_json_completes_nothing(run_copy):
  (run_copy / 'results.json').write_text('{}')
  code, out = run_cli(T, f'--workdir={run_copy}')
  assert code == 0 and 'evaluating step' in out and 'this run is complete' not in out


def test_a_run_s_own_configuration_stays(run_copy, capsys):
  check_refused(capsys, [f'--workdir={run_copy}', '--mode=report', '--config.seed=3'],
                ('was run with seed=0', 'now it is 3'))
  check_refused(capsys, [f'--workdir={run_copy}', '--mode=eval', '--config.sed=3'], "'seed'")
  check_refused(capsys, [f'--workdir={run_copy}'], ('--config is missing',))
  check_refused(capsys, ['--workdir=nothing', '--mode=eval'], ('nothing', 'there is no run here'))


def test_keys_of_where_that_were_given_later_are_in_the_printed_command(run_copy):
  _, out = run_cli(T, f'--workdir={run_copy}', '--config.eval.batch_size=3', '--config.log.wandb=',
                   '--config.checkpoint.keep_last=3')
  (command,) = read_commands(out)
  assert command[:3] == [f'--workdir={run_copy}', '--mode=generate', '--config.eval.batch_size=3']
  assert len(command) == 4


def test_stages_of_an_earlier_version_name_what_can_be_asked(run_copy, tmp_path, capsys):
  run_copy.rename(tmp_path / 'stage2')
  check_refused(capsys, [f'--workdir={tmp_path}', '--mode=generate', '--question=1'],
                ('give --config', f'--workdir={tmp_path}/stage2'))


def test_the_home_directory_is_found_in_every_path(run_copy, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  code, out = run_cli('--workdir', '~/copy', '--mode=report')
  assert code == 0 and f'report: {run_copy}/report.html' in out
  monkeypatch.setattr(main, '_run', lambda argv, console: seen.append(command_line.parse(argv)))
  seen, keys = [], [k for k in config_lib.PATH_KEYS if k not in ('model.lora.init_from',)]
  (tmp_path / 'tiny.py').write_text(RECIPE)
  given = {'data.source': 'gsm8k', 'eval.split': 'gsm_hard', 'tokenizer.kind': 'file',
           'tokenizer.eos_token': 'x', **{k: '~/x' for k in keys if k != 'model.init_from'}}
  assert run_cli('--config=~/tiny.py', *(f'--config.{k}={v}' for k, v in given.items())) == (0, '')
  flat = config_lib.flatten(seen[0][1])
  assert {flat[k] for k in keys if k != 'model.init_from'} == {f'{tmp_path}/x'}
  assert seen[0][2] == f'{tmp_path}/tiny.py'
  for flag in ('--workdir=', '--sweep_dir=', '--with=', '--config=',
               '--config.data.cache_dir='):
    check_refused(capsys, [T, f'{flag}~nosuch/x'], ('~nosuch/x', "no user 'nosuch'"))


def test_every_key_that_names_a_path_is_one_of_the_paths():
  names = ('dir', 'path', 'init_from')
  assert {k for k in config_lib.flatten(config_lib.Config()) if k.endswith(names)} == set(
      config_lib.PATH_KEYS)


def test_a_question_is_answered_alone_and_no_data_are_opened(run_copy, monkeypatch, tmp_path):
  """One row is decoded, not one of eval.batch_size padded ones."""
  from rim_jax.data import datasets
  from rim_jax.evaluation import decode
  rows, place = [], decode.Decoder.place

  def see(self, questions, num_blocks, batch_size):
    rows.append((len(questions), batch_size))
    return place(self, questions, num_blocks, batch_size)
  monkeypatch.setattr(decode.Decoder, 'place', see)
  monkeypatch.setattr(datasets, 'load_dataset', lambda *args, **kwargs: 1 / 0)
  argv = [f'--workdir={run_copy}', '--mode=generate', '--config.eval.batch_size=250']
  assert run_cli(*argv, '--question=1+2')[0] == 0
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'1+2\n' * 5)))
  assert run_cli(*argv)[0] == 0
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'1+2\n' * 5)))
  assert run_cli(*argv, '--config.eval.batch_size=4')[0] == 0
  assert rows == [(1, 1), (5, 8), (4, 4), (1, 4)]


def test_help_needs_no_config():
  code, out = run_cli('--help')
  assert code == 0
  assert '--mode=generate' in out


def test_default_workdir():
  assert str(command_line.get_workdir('configs/rim.py')) == 'runs/rim'
  assert str(command_line.get_workdir('configs/rim.py:gsm8k')) == 'runs/rim-gsm8k'


def test_a_bucket_is_no_local_directory(monkeypatch, capsys):
  """A WORKDIR reaches the program as it was written: pathlib would make `gs:/x` of `gs://x`."""
  from rim_jax import modes
  seen = []
  monkeypatch.setattr(modes, 'train', lambda config, workdir, *rest: seen.append(str(workdir)))
  assert run_cli(T, '--workdir=gs://bucket/run')[0] == 0
  assert seen == ['gs://bucket/run']


def test_debug_shows_the_traceback(place):
  with pytest.raises(config_lib.UserError, match='seed=-1'):
    run_cli(T, '--config.seed=-1', '--debug')


def test_a_bug_is_not_called_a_users_mistake(monkeypatch):
  from rim_jax import modes

  def fail(*unused):
    raise AssertionError('a bug')
  monkeypatch.setattr(modes, 'train', fail)
  with pytest.raises(AssertionError, match='a bug'):
    run_cli(T)


# ---- Real commands ----


@pytest.mark.parametrize('argv, fragments', [
    ([], ('--config is missing', 'configs/rim.py')),
    (['--config=configs/none.py'], ('configs/none.py', 'there are the recipes configs/')),
    (['--config=configs/rim.py', '--config.optim.learning_rat=1'], ("'optim.learning_rate'",)),
    (['--config=configs/rim.py:gsm9k'], ("'gsm9k'", 'chain_harder, gsm8k')),
    (['--config=configs/rim.py', '--config.model.num_heads=5'], ('num_heads=5', 'head_dim')),
    (['--config=configs/rim.py', '--mode=trian'], ('trian', 'train|eval|generate')),
])
def test_commands(argv, fragments):
  done = subprocess.run([sys.executable, '-m', 'rim_jax.main', *argv], cwd=ROOT, text=True,
                        capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
  assert done.returncode == 2, done.stderr
  assert done.stdout == ''
  line, = done.stderr.splitlines()
  assert line.startswith('error: ')
  assert all(f in line for f in fragments), line


def test_compiled_programs_are_kept_unless_told_where(monkeypatch, tmp_path):
  from rim_jax import modes
  config = support.make_config(data__cache_dir=str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
    modes.keep_compiled(config)
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    modes.keep_compiled(config)
    # By kind of CPU: another kind would run into instructions that it has not got.
    assert re.fullmatch(f'{tmp_path}/compiled/cpu-[0-9a-f]{{8}}',
                        jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
    monkeypatch.setattr(jax, 'process_count', lambda: 2)  # whose programs must be the same
    modes.keep_compiled(config)
    assert not jax.config.jax_enable_compilation_cache
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    jax.config.update('jax_enable_compilation_cache', True)


def test_control_characters_are_shown_as_text(monkeypatch, capsys):
  """Of data that an error quotes, or of a path; and of whatever else is printed."""
  def fail(argv, console):
    console.print('\x1b[31m', markup=False)
    raise config_lib.UserError('x.jsonl:1: \x1b[31m\r is no row')
  monkeypatch.setattr(main, '_run', fail)
  out = io.StringIO()
  assert main.cli(['main.py'], rich_console.Console(file=out)) == 2
  assert out.getvalue() == '\\x1b[31m\n'
  assert capsys.readouterr().err == 'error: x.jsonl:1: \\x1b[31m\\r is no row\n'


@pytest.mark.parametrize('cause, told', [
    (OSError(28, 'No space left on device'), 'none that is known'),
    (OSError(122, 'Disk quota exceeded', '/a/b\n'), '/a/b\\n'),
    (ValueError('RESOURCE_EXHAUSTED: Error writing "/x/y": [OS error 28: No space left on device]'),
     '/x/y')])
def test_a_full_disk_is_told_in_one_line(cause, told, monkeypatch, capsys):
  def fail(*args):
    try:
      raise cause
    except Exception as e:
      raise RuntimeError('a save failed') from e
  monkeypatch.setattr(main, '_run', fail)
  assert main.cli(['main.py']) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: the disk is full') and 'goes on from the last one' in line
  assert f'({told})' in line


@pytest.mark.parametrize('cause', [
    MemoryError(), OSError(12, 'Cannot allocate memory'), RuntimeError("can't start new thread"),
    ImportError('x.so: failed to map segment from shared object')])
def test_no_memory_is_one_line(cause, monkeypatch, capsys):
  def fail(*args):
    raise cause
  monkeypatch.setattr(main, '_run', fail)
  assert main.cli(['main.py']) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: there is no memory left') and 'ulimit -v' in line


def test_the_disk_that_is_full_is_named(monkeypatch):
  """A file that an error names, or else the places that have no room."""
  error = OSError(28, 'No space left on device', 'standard output')
  assert main._find_full(RuntimeError('bad'), ['--workdir=x']) == []
  assert main._find_full(error, []) == ['standard output']
  free = dict.fromkeys(('f_bavail', 'f_frsize'), 0)
  monkeypatch.setattr(os, 'statvfs', lambda path: types.SimpleNamespace(**(
      free if str(path).endswith('/place') else dict.fromkeys(free, 10**6))))
  (pathlib.Path.cwd() / 'place').mkdir()
  assert main._find_full(OSError(28, 'full'), ['--workdir=place/run']) == ['place/run']
  assert main._find_full(OSError(28, 'full'), [
      '--config.data.cache_dir=place/cache', '--workdir=x']) == ['place/cache']


INTERRUPTED = """
import gc, signal, time
from rim_jax import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores

def interrupt(phase, info):  # as JAX's own callback of the collector: what it raises is dropped
  gc.callbacks.remove(interrupt)
  signal.raise_signal(signal.SIGINT)

def work(argv, console):
  gc.callbacks.append(interrupt)
  gc.collect()
  time.sleep(300)
main._run = work
main.main()
"""


def test_an_interrupt_inside_a_callback_is_not_lost():
  began = time.monotonic()
  done = subprocess.run([sys.executable, '-c', INTERRUPTED], env=support_runs.ENVIRONMENT,
                        capture_output=True, text=True, timeout=500)
  assert done.returncode == 130 and time.monotonic() - began < 290
  (line,) = done.stderr.splitlines()
  assert line.startswith('stopped; run the same command again')


ASKED = """
import os, signal
from rim_jax import main
main._run = lambda argv, console: os.kill(os.getpid(), signal.SIGUSR1)
main.main()
"""


def test_a_profile_that_is_asked_for_outside_of_the_updates_ends_nothing():
  done = subprocess.run([sys.executable, '-c', ASKED], env=support_runs.ENVIRONMENT,
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert done.stderr == 'SIGUSR1: no updates are under way, so no profile is written\n'


FAILING = """
import threading
from rim_jax import main
def work(argv, console):
  threading.Thread(target=threading.Event().wait).start()  # as one of Orbax's that was not told
  raise AssertionError('a bug')
main._run = work
main.main()
"""


def test_a_failure_ends_the_process_whatever_its_threads_wait_for():
  done = subprocess.run([sys.executable, '-c', FAILING], env=support_runs.ENVIRONMENT,
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 1 and done.stderr.endswith('AssertionError: a bug\n')


def test_writes_of_a_failed_save_say_no_more(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, '__unraisablehook__', shown.append)
  dropped = [types.SimpleNamespace(exc_type=RuntimeError, exc_value=RuntimeError(text))
             for text in ('Event loop is closed', 'a bug')]
  for one in dropped:
    main._hear_dropped(one)
  assert shown == dropped[1:]


@pytest.mark.slow
@pytest.mark.parametrize('limit', ['-f 4', '-n 30', '-n 20', '-v 1500000', '-v 2500000'])
def test_a_limit_of_the_system_ends_a_run_in_one_line_with_whole_files(limit, tmp_path, place):
  """That of memory (-v) ends in imports, in Python's threads, or by XLA's own abort."""
  command = [sys.executable, '-m', 'rim_jax.main', '--config=tiny.py', f'--workdir={tmp_path}/run',
             f'--config.data.cache_dir={tmp_path}/cache']
  done = subprocess.run(['bash', '-c', f'ulimit {limit}; exec "$@"', 'bash', *command],
                        capture_output=True, text=True, timeout=300, env=support_runs.ENVIRONMENT)
  if '-v' in limit:
    assert done.returncode not in (0, 2), done.stderr
  else:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ') and f'raise the limit of ulimit {limit[:2]}' in line
  for path in (tmp_path / 'run').rglob('*.json'):
    json.loads(path.read_text())
  done = subprocess.run(command, capture_output=True, text=True, timeout=300,  # without it
                        env=support_runs.ENVIRONMENT)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('how', ['2>&-', '>&- 2>&- <&-', '2>&1 | true'])
def test_a_mistake_is_2_whatever_became_of_the_streams(how):
  done = subprocess.run(
      ['bash', '-c', f'"$0" -m rim_jax.main --config=none.py {how}; exit ${{PIPESTATUS[0]}}',
       sys.executable], env=support_runs.ENVIRONMENT, capture_output=True, timeout=300, cwd=ROOT)
  assert done.returncode == 2


def test_another_failure_keeps_its_traceback(monkeypatch):
  def fail(*args):
    raise OSError(errno.ENOTCONN, 'not connected')
  monkeypatch.setattr(main, '_run', fail)
  with pytest.raises(OSError, match='not connected'):
    main.cli(['main.py'])


def test_a_file_system_that_fails_is_told_in_a_line_and_worth_another_start(monkeypatch, capsys):
  def fail(*args):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), '/shared/run/manifest.json')
  monkeypatch.setattr(main, '_run', fail)
  assert main.cli(['main.py']) == 1
  assert capsys.readouterr().err == (
      'error: /shared/run/manifest.json: Stale file handle; look at the file system that holds it, '
      'and the same command goes on from the last checkpoint\n')
