"""Plans: the rows, the roofline, what fits; and real compilations for TPUs not here.

What needs libtpu is marked `tpu`, takes minutes, and is skipped without it. The rest plans for the
eight fake CPU devices in a TPU's place.
"""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from rich import console as rich_console

from configs import presets
from rim_jax import command_line, main
from rim_jax import config as config_lib
from rim_jax.config import methods
from rim_jax.data import datasets, prosqa
from rim_jax.errors import UserError
from rim_jax.methods import get_method
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import machines
from rim_jax.report import plans
from rim_jax.runtime import hlo
from tests import support, support_pretrained
from tests.support_gpu import needs_plugin
from tests.support_plan import compile_here

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install 'jax[tpu]'")


def make_machine(num_slices=1, **changes):
  chip = dataclasses.replace(machines.CHIPS['v5e'], **changes)
  return machines.Machine('v5e:2x4', num_slices, jax.devices(), chip)


# ---- The roofline ----


def test_a_step_takes_as_long_as_its_slowest_part():
  chip = machines.Chip(16, 100.0, 10.0, 5.0, 1.0)
  costs = hlo.Costs(400.0, 0.0, 50.0, {'all-gather': hlo.Collective(2, 10.0, 0.0),
                                       'all-reduce': hlo.Collective(1, 15.0, 7.0)}, 0, ())
  assert compile_lib.compute_roofline(costs, chip) == {
      'compute': 4.0, 'hbm': 5.0, 'ici': 18 / 5, 'dcn': 7.0, 'step': 7.0}
  alone = dataclasses.replace(costs, collectives={})
  assert compile_lib.compute_roofline(alone, chip) == {
      'compute': 4.0, 'hbm': 5.0, 'ici': 0.0, 'step': 5.0}


@pytest.mark.slow
def test_the_ceiling_of_a_step_bound_by_compute_is_its_share_of_useful_flops(monkeypatch):
  monkeypatch.setattr(compile_lib, 'compile_step', compile_here)
  config = support.make_config(train__batch_rows=8)
  found = compile_lib.make_plan(config, make_machine(flops_per_sec=1.0))
  assert found['fits'] and found['bound'] == 'compute'
  flops = found['flops']
  assert flops['per_step'] == 8 * flops['per_device']
  assert found['mfu_ceiling'] == pytest.approx(flops['model_per_step'] / flops['per_step'])
  assert found['roofline_secs']['step'] == flops['per_device']


@pytest.mark.slow
def test_a_plan_whose_kernels_are_unknown_claims_no_time(monkeypatch):
  class Compiled:
    """A step's text with one call more, which nobody knows."""

    def __init__(self, *args):
      self._made = compile_here(*args)

    def memory_analysis(self):
      return self._made.memory_analysis()

    def as_text(self):
      head, entry, rest = self._made.as_text().partition('ENTRY')
      first, end, rest = rest.partition('{\n')
      return head + entry + first + end + (
          '  %c = f32[4]{0} custom-call(), custom_call_target="mosaic_gpu_v2"\n') + rest
  monkeypatch.setattr(compile_lib, 'compile_step', Compiled)
  found = compile_lib.make_plan(support.make_config(train__batch_rows=8), make_machine())
  assert found['unknown']['names'] == ['mosaic_gpu_v2']
  assert (found['mfu_ceiling'], found['bound'], found['roofline_secs']['step']) == (None,) * 3
  shown = dict(plans.list_rows(found))
  assert 'mosaic_gpu_v2' in shown['step time, MFU'] and 'MFU at most' not in shown


@pytest.mark.parametrize('platform, tile, tiles', [('gpu', 256, 64), ('gpu', 40, 32),
                                                   ('tpu', 128, 128)])
def test_visible_tiles_are_those_of_rows_of_typical_records(platform, tile, tiles):
  config = support.make_config(
      layout__row_tokens=320, model__max_positions=320, model__attention_tile_tokens=tile,
      data__chain__max_steps=4)
  row = typical_lib.make_typical_row(config, get_method(config).layout)
  codec = support.make_codec(config)
  record = datasets.load_dataset(config.data, say=lambda _: None).splits['train'][0]
  length = layout_lib.count_example(codec.lay_out(codec.encode(record)), config.layout)[0]
  assert int(row.example.max()) == 320 // length  # as many as fit
  fields = batch_lib.get_fields(row)
  mask = batch_lib.visible(fields, fields)[0]
  if platform == 'tpu':
    mask[~mask.any(1), 0] = True
  starts = range(0, 320, tiles)
  seen = [mask[i:i + tiles, j:j + tiles].any() for i in starts for j in starts]
  assert compile_lib.estimate_visible(config, platform) == sum(seen) / len(seen) < 0.8


@pytest.mark.parametrize('tile', [0, 320])
def test_a_whole_score_matrix_is_visited_whole(tile):
  config = support.make_config(layout__row_tokens=320, model__attention_tile_tokens=tile)
  assert compile_lib.estimate_visible(config, 'gpu') == 1.0


# ---- The rows ----


def estimate_rows(config, pieces):
  return typical_lib.estimate_rows(config, get_method(config).layout, pieces)


def test_rows_that_are_given_are_taken_and_nothing_is_assumed():
  config = support.make_config(train__batch_rows=8, layout__row_slots=24)
  rows = estimate_rows(config, 4)
  assert (rows.batch_rows, rows.row_slots, rows.assumed) == (8, 24, ())
  with pytest.raises(UserError, match='batch_rows=8 is not divisible by .* = 3; .*=6 or 9'):
    estimate_rows(config, 3)


@pytest.mark.parametrize('method', sorted(
    name for name, facts in methods.FACTS.items() if not facts.make_stages))
def test_the_typical_record_of_the_chain_task_is_a_real_one(method):
  config = support.make_config(method, data__chain__min_steps=4, data__chain__max_steps=4)
  codec = support.make_codec(config)
  record = datasets.load_dataset(config.data, say=lambda _: None).splits['train'][0]
  real = layout_lib.count_example(codec.lay_out(codec.encode(record)), config.layout)
  typical = typical_lib._make_typical_example(config, get_method(config).layout)
  assert layout_lib.count_example(typical, config.layout) == real


@pytest.mark.parametrize('preset, kind', [
    ('prosqa_small', 'words'), ('prosqa_walk', 'words'), ('prosqa_reading', 'words'),
    ('prosqa', 'words'), ('prosqa', 'bytes')])
def test_the_typical_record_of_prosqa_is_near_the_drawn_ones(preset, kind):
  tree = presets.make('rim_stage1', preset)
  tree.tokenizer.kind = kind
  tree.layout.row_tokens = 2048
  config = config_lib.parse_config(tree)
  codec = support.make_codec(config)
  records, _ = prosqa.Problems(config.data.prosqa, ()).draw_split('train', 60)
  sizes = [layout_lib.count_example(codec.lay_out(codec.encode(r)), config.layout)[0]
           for r in records]
  example = typical_lib._make_typical_example(config, get_method(config).layout)
  typical = layout_lib.count_example(example, config.layout)[0]
  assert typical == pytest.approx(sum(sizes) / len(sizes), rel=0.2)


def test_rows_from_examples_are_rounded_up_to_the_mesh_and_said():
  config = support.make_config(train__batch_rows=0, train__batch_examples=10)
  rows = estimate_rows(config, 8)
  assert rows.batch_rows % 8 == 0 and rows.row_slots % 8 == 0
  assert [note.split('=')[0] for note in rows.assumed[:2]] == [
      'layout.row_slots', 'train.batch_rows'] and 'typical record' in rows.assumed[2]


def test_a_row_too_short_for_a_record_is_told():
  config = support.make_config(layout__row_tokens=8)
  with pytest.raises(UserError, match='layout.row_tokens=8 is below the'):
    estimate_rows(config, 1)


# ---- What fits ----


def test_a_state_too_large_for_the_chip_is_not_even_compiled(monkeypatch):
  monkeypatch.setattr(compile_lib, 'compile_step', lambda *_: pytest.fail('compiled'))
  config = support.make_config(train__batch_rows=8)
  found = compile_lib.make_plan(config, make_machine(hbm_gib=1e-6))
  assert not found['fits']
  assert found['hbm_gib']['needed'] > found['state_gib']  # gradients come on top


@pytest.mark.slow
def test_a_gpu_has_what_jax_takes_of_it(monkeypatch):
  """Its compiler never refuses: what it allocates is compared with the part that JAX takes."""
  monkeypatch.setattr(machines.Machine, 'is_gpu', True)
  kept = {}  # one compiled step for all
  monkeypatch.setattr(compile_lib, 'compile_step', lambda *args: kept.get(0) or kept.setdefault(
      0, compile_here(*args)))
  config = support.make_config(train__batch_rows=8)
  peak = compile_lib.make_plan(config, make_machine())['hbm_gib']['peak']
  large, small = (compile_lib.make_plan(config, make_machine(hbm_gib=size * peak / 0.75))
                  for size in (1.01, 0.99))
  assert large['fits'] and not small['fits'] and small['hbm_gib']['needed'] == peak
  assert set(small['roofline_secs']) == {'compute', 'hbm', 'nvlink', 'step'}
  shown = dict(plans.list_rows(small))
  assert 'DOES NOT FIT' in shown['HBM per device'] and 'autotuning' in shown['not in it']
  assert 'launched a step' in shown['kernels'] and shown['loops of unknown length'] == '0'


def test_alternatives_go_from_remat_to_micro_batches_to_meshes():
  config = support.make_config(train__batch_rows=32, model__num_heads=8)
  changes = [c.replace('--config.', '')
             for c, _ in compile_lib.list_alternatives(config, make_machine())]
  assert changes[:3] == ['model.remat=full', 'model.remat=full train.num_micro_batches=2',
                         'model.remat=full train.num_micro_batches=4']
  assert changes[3] == 'model.remat=full mesh.data=1 mesh.fsdp=8 mesh.tensor=1'
  assert any('mesh.tensor=8' in c for c in changes)
  for change, other in compile_lib.list_alternatives(config, make_machine()):  # is what it says
    for setting in change.split():
      key, value = setting.removeprefix('--config.').split('=')
      group, name = key.split('.')
      assert str(getattr(getattr(other, group), name)) == value
    assert (other.train.batch_rows, other.train.batch_examples) == (32, 0)


def test_alternatives_of_two_slices_fill_the_machine():
  machine = make_machine()
  config = support.make_config(train__batch_rows=32, model__num_heads=8, mesh__slice=2)
  shapes = [other.mesh for _, other in compile_lib.list_alternatives(config, machine)]
  assert any(shape.fsdp > 1 for shape in shapes)
  for shape in shapes:
    sharding.make_mesh(shape, machine.devices)  # or that raises


@pytest.mark.slow
def test_the_first_setting_that_fits_is_found(monkeypatch):
  tried = []

  def compile_small(config, program, rows, mesh):
    tried.append((config.model.remat, config.train.num_micro_batches))
    if config.train.num_micro_batches < 4:
      raise compile_lib.DoesNotFit('too large', 20.0)
    return compile_here(config, program, rows, mesh)
  monkeypatch.setattr(compile_lib, 'compile_step', compile_small)
  monkeypatch.setattr(compile_lib, 'make_machine', lambda *_: make_machine())
  said = []
  config = support.make_config(train__batch_rows=32)
  found, = compile_lib.make_plans(config, 'v5e:2x4', 1, said.append)
  assert not found['fits'] and found['hbm_gib']['needed'] == 20.0
  assert tried == [('none', 1), ('full', 1), ('full', 2), ('full', 4)]
  assert found['nearest']['fits'] and found['nearest']['change'] == (
      '--config.model.remat=full --config.train.num_micro_batches=4')
  assert any('trying --config.model.remat=full' in line for line in said)


# ---- The mode ----


@pytest.fixture
def clean_environment(monkeypatch):
  for key in main.PLAN_ENVIRONMENT:  # so that it is as before afterwards
    monkeypatch.setenv(key, os.environ.get(key, ''))


def run_cli(*argv):
  out = io.StringIO()
  code = main.cli(['main.py', *map(str, argv)], rich_console.Console(file=out, width=120))
  return code, out.getvalue()


def test_the_mode_shows_every_stage_and_writes_json(
    monkeypatch, clean_environment, tmp_path):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(compile_lib, 'make_machine', lambda *_: make_machine())
  monkeypatch.setattr(compile_lib, 'compile_step', compile_here)
  code, out = run_cli('--config=configs/rim.py', '--mode=plan', '--topology=v5e:2x4',
                      f'--workdir={tmp_path}/w', '--config.model.num_layers=1')
  assert code == 0
  for text in ('rim_stage1 on 8 chips', 'rim_stage2 on 8 chips', 'parameters', 'per device',
               'arguments', 'temporaries', 'all-reduce', 'roofline (estimate)', 'MFU at most',
               'an upper bound', 'from a typical record'):
    assert text in out, text
  tree = json.loads((tmp_path / 'w/plan.json').read_text())
  assert tree['version'] == compile_lib.PLAN_VERSION
  assert [p['stage'] for p in tree['plans']] == ['stage1', 'stage2']
  first = tree['plans'][0]
  assert first['fits'] and first['mesh'] == {
      'slice': 1, 'data': 8, 'fsdp': 1, 'tensor': 1}
  assert first['flops']['per_device'] > 0 and first['collectives']['all-reduce']['bytes'] > 0
  assert first['params_per_device'] == first['params']  # data alone splits no parameter


@pytest.mark.parametrize('argv, fragment', [
    ((), '--topology=KIND:SIZE'), (('--topology=v7:2x2',), "--topology='v7:2x2' is not"),
    (('--topology=v5e:2x2', '--num_slices=0'), '--num_slices=0')])
def test_the_mode_refuses_in_one_line(monkeypatch, clean_environment, capsys, argv, fragment):
  monkeypatch.chdir(ROOT)
  code, _ = run_cli('--config=configs/rim.py', '--mode=plan', *argv)
  told = capsys.readouterr().err.splitlines()
  assert code == 2 and len(told) == 1 and fragment in told[0]


# ---- With libtpu ----


def run_plan(tmp_path, name, recipe, *argv):
  """plan.json of a real command on a published model's config.json."""
  (tmp_path / name).mkdir()
  (tmp_path / name / 'config.json').write_text(json.dumps(support_pretrained.PUBLISHED[name][1]))
  # A user's own environment, without the settings of conftest.py: a plan is of real numerics.
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS' and not k.startswith('JAX_')}
  done = subprocess.run(
      [sys.executable, '-m', 'rim_jax.main', f'--config={recipe}', '--mode=plan',
       f'--workdir={tmp_path}/w', f'--config.model.init_from={tmp_path}/{name}', *argv],
      cwd=ROOT, env=env | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr
  return json.loads((tmp_path / 'w/plan.json').read_text())['plans'][0]


def check_plan(found, num_params):
  """What holds for every plan with adapters on a frozen base."""
  assert found['params']['frozen'] == num_params
  hbm, flops = found['hbm_gib'], found['flops']
  # The arguments are the state, the base and a batch; nothing of them is held twice.
  assert found['state_gib'] <= hbm['arguments'] < 1.05 * found['state_gib'] + 0.02
  assert hbm['arguments'] < hbm['peak'] < hbm['chip'] and found['fits']
  # Forward and backward alone: the presets' remat=dots computes no product again, but attention.
  products = flops['per_step'] - found['chips'] * flops['attention_per_device']
  assert products == pytest.approx(flops['model_per_step'], rel=0.02)
  assert 0 < found['mfu_ceiling'] < 1 and 0 < found['visible_tiles'] < 0.7
  assert found['unknown']['loops'] == found['unknown']['kernels'] == 0


@needs_libtpu
@pytest.mark.tpu
def test_gpt2_compiles_for_two_slices_and_says_what_crosses_between_them(tmp_path):
  found = run_plan(tmp_path, 'gpt2', 'configs/stage2.py:gpt2', '--topology=v5e:2x2',
                   '--num_slices=2', '--config.mesh.slice=2', '--config.mesh.fsdp=4')
  check_plan(found, 124_439_808)
  assert found['chips'] == 8 and found['mesh'] == {
      'slice': 2, 'data': 1, 'fsdp': 4, 'tensor': 1}
  assert found['hbm_gib']['peak'] < 1.5
  # Each of a slice's 4 devices sends its quarter of the gradients, in bf16, and a few sums.
  crossing = sum(c['slice_bytes'] for c in found['collectives'].values())
  assert crossing == pytest.approx(2 * found['params']['trainable'] / 4, rel=0.01)
  assert found['roofline_secs']['dcn'] > 0


@needs_libtpu
@pytest.mark.tpu
def test_a_stage2_step_of_llama_1b_with_lora_compiles_for_a_v5e_slice(tmp_path):
  found = run_plan(tmp_path, 'llama3_2_1b', 'configs/stage2.py:llama3_2_1b',
                   '--topology=v5e:4x4', '--config.mesh.fsdp=16', '--config.mesh.data=1',
                   '--config.train.batch_rows=32', '--config.train.batch_examples=0')
  check_plan(found, 1_235_814_400)
  assert found['chips'] == 16
  # 2.3 GB of bf16 base over 16 chips, and adapters whose halves without `embed` are on each.
  assert 0.15 < found['hbm_gib']['arguments'] < 0.3
  assert 1.8 < found['hbm_gib']['peak'] < 3  # most of it what remat=dots keeps
  # A base that is split is gathered twice a step (forward, backward), and hardly more often.
  gathered = sum(c['bytes'] for kind, c in found['collectives'].items()
                 if kind in ('all-gather', 'collective-permute', 'all-to-all'))
  assert 1.5 < gathered / (2 * found['params']['frozen'] * 15 / 16) < 2.6


@needs_libtpu
@pytest.mark.tpu
def test_libtpu_refuses_a_size_in_one_line():
  """In a process of its own: libtpu reads its environment once."""
  code = '''
import os
from rim_jax import main
os.environ.update(main.PLAN_ENVIRONMENT)
from rim_jax.planning import machines as plan
from rim_jax.config import MeshConfig, UserError
try:
  plan.make_machine('v5e:3x3x3')
except UserError as e:
  assert 'common sizes' in str(e) and len(str(e).splitlines()) == 1
machine = plan.make_machine('v5e:2x2', 2)
mesh = plan.make_mesh(MeshConfig(1, 2, 2, slice=2), machine)
assert [d.slice_index for d in mesh.devices.ravel()] == [0] * 4 + [1] * 4
print('good')
'''
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=300)
  assert done.stdout.strip() == 'good', done.stderr


def test_the_reader_of_shapes_is_that_of_training(tmp_path):
  """A plan needs config.json alone: no tokenizer, no tensors."""
  from rim_jax.pretrained import families
  folder = tmp_path / 'llama'
  folder.mkdir()
  (folder / 'config.json').write_text(
      json.dumps(support_pretrained.PUBLISHED['llama3_2_1b'][1]))
  config = support_pretrained.make_plain_config(folder)
  resolved = families.resolve_shape(config)
  assert resolved.model.vocab_size == compile_lib.get_vocab_size(resolved) == 128256
  with pytest.raises(UserError, match=r'tokenizer\.json'):
    families.resolve(config)
  argv = ['main.py', f'--config={ROOT}/configs/stage2.py:llama3_2_1b', '--topology=v5e:2x2',
          f'--config.model.init_from={folder}', '--mode=plan']
  assert command_line.parse(argv)[1].model.vocab_size == 128256
  with pytest.raises(UserError, match=r'tokenizer\.json'):  # as every other mode needs
    command_line.parse([*argv, '--mode=train'])
  assert estimate_rows(resolved, 8).batch_rows % 8 == 0


# ---- With the CUDA plugin ----


@needs_plugin
@pytest.mark.gpu_plan
@pytest.mark.parametrize('topology, hosts', [('h100:1', 1), ('b200:2x2', 2)])
def test_a_step_compiles_for_gpus_and_its_flops_are_those_of_arithmetic(tmp_path, topology, hosts):
  """In a process of its own, as users compile; with the settings of conftest.py registers spill."""
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS' and not k.startswith('JAX_')}
  env |= {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  sets = {'model.num_layers': 2, 'model.embed_dim': 128, 'model.num_heads': 2, 'model.mlp_dim': 256,
          'train.batch_examples': 0, 'train.batch_rows': 4, 'layout.row_slots': 168,
          'mesh.data': -1, 'mesh.fsdp': 1}
  done = subprocess.run(
      [sys.executable, '-m', 'rim_jax.main', '--config=configs/stage2.py:gsm8k_perturbed',
       '--mode=plan', f'--topology={topology}', f'--workdir={tmp_path}',
       *(f'--config.{k}={v}' for k, v in sets.items())],
      cwd=ROOT, env=env | {'PYTHONPATH': os.pathsep.join([str(ROOT), env.get('PYTHONPATH', '')])},
      capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  # What is kept for a machine that is not here cannot be read, and each later plan would say so.
  assert not list((tmp_path / 'compiled').glob('*'))
  found, = json.loads((tmp_path / 'plan.json').read_text())['plans']
  assert found['fits'] and found['unknown']['loops'] == found['unknown']['kernels'] == 0
  flops = found['flops']
  # Of each layer and head: two products forward, three and four backward, in visited tiles.
  attention = 9 * 2 * 4 * 2 * 1536**2 * 128 * found['visible_tiles']
  assert found['chips'] * flops['attention_per_device'] == pytest.approx(attention)
  assert flops['per_step'] == pytest.approx(flops['model_per_step'] + attention, rel=0.01)
  assert 50 < found['launches'] < 1000
  sent = found['collectives'].values()
  if hosts > 1:  # gradients go around both nodes, over two rings
    reduce = found['collectives']['all-reduce']
    assert reduce['bytes'] > 4 * found['params']['trainable'] / 4
    assert reduce['slice_bytes'] == pytest.approx(reduce['bytes'] / 2)
    assert found['roofline_secs']['network'] > 0
  else:
    assert not sent


@needs_plugin
@pytest.mark.gpu_plan
def test_layers_one_by_one_move_fewer_bytes_on_a_gpu():
  """Neither weights nor what the backward pass needs are copied into a stack and out of it."""
  machine = machines.make_machine('h100:1')
  config = config_lib.replace_keys(
      config_lib.parse_config(presets.make('rim_stage2', 'gsm8k_perturbed')),
      {'model.num_layers': 3, 'model.embed_dim': 256, 'model.num_heads': 4, 'model.mlp_dim': 1024,
       'train.batch_examples': 0, 'train.batch_rows': 4, 'layout.row_slots': 168,
       'model.remat': 'none'})
  single, scanned = (compile_lib.make_plan(config_lib.replace_keys(
      config, {'model.scan_layers': scan}), machine) for scan in (False, True))
  assert single['hbm_bytes_per_device'] < 0.75 * scanned['hbm_bytes_per_device']
  assert single['launches'] < scanned['launches']
  assert single['flops']['per_step'] == pytest.approx(scanned['flops']['per_step'], rel=1e-3)
