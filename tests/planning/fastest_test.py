"""The search for the fastest setting: what is tried in which order, what is left out, what is kept.

Steps cost here what a formula says, so that the search is seen alone; what compiling says of real
steps is held by compile_test.py.
"""

import dataclasses
import io
import json
import pathlib

import jax
import pytest
from rich import console as rich_console

from rim_jax import main
from rim_jax.config import flatten
from rim_jax.planning import compile as compile_lib
from rim_jax.planning import fastest, machines
from rim_jax.report import plans, tables
from tests import support
from tests.support_plan import compile_here

GIB_A_ROW = {'none': 8.0, 'dots': 3.0, 'full': 1.0}  # of one device, in one micro-batch
SECS_A_ROW = {'none': 1.0, 'dots': 1.2, 'full': 1.5}


def make_machine(**changes):
  chip = dataclasses.replace(machines.CHIPS['v5e'], **changes)
  return machines.Machine('v5e:2x4', 1, jax.devices(), chip)


def make_fake(asked, unknown=(), bound='hbm'):
  """make_plan by arithmetic: fsdp costs a tenth more, layers one by one less, a micro-batch
  nothing."""
  def make_plan(config, machine):
    flat = flatten(config)
    asked.append(flat)
    rows, micro, remat = (flat[k] for k in (
        'train.batch_rows', 'train.num_micro_batches', 'model.remat'))
    shards = flat['mesh.data'] * flat['mesh.fsdp']
    state = 4.0 / flat['mesh.fsdp']
    peak = state + GIB_A_ROW[remat] * rows / shards / micro
    fits = peak <= machine.usable_gib
    secs = SECS_A_ROW[remat] * rows / shards * (1.0 if flat['model.scan_layers'] else 0.9)
    known = remat not in unknown
    plan = {'fits': fits, 'compiled': state <= machine.usable_gib, 'state_gib': state,
            'reason': '' if fits else 'too large', 'chips': 8, 'compile_secs': 7.0,
            'hbm_gib': {'peak': peak, 'needed': peak}, 'params': {'trainable': 10, 'frozen': 0},
            'settings': {'train.batch_rows': rows, 'train.num_micro_batches': micro,
                         'layout.row_tokens': 8}}
    if fits:
      network = 0.1 * secs * (flat['mesh.fsdp'] > 1)
      step = secs + network
      plan |= {'roofline_secs': {bound: secs, 'ici': network, 'step': step if known else None},
               'bound': bound, 'mfu_ceiling': 1 / step, 'unknown': {'names': ['a kernel']}}
    return plan
  return make_plan


def search(monkeypatch, machine, most=20, unknown=(), bound='hbm', **changes):
  asked, said = [], []
  monkeypatch.setattr(compile_lib, 'make_plan', make_fake(asked, unknown, bound))
  config = support.make_config(**({'train__batch_rows': 32} | changes))
  return fastest.find_fastest(config, machine, said.append, most), asked, said


def test_the_fastest_that_fits_is_found_and_what_does_not_fit_is_split(monkeypatch):
  found, asked, said = search(monkeypatch, make_machine(hbm_gib=24.0), model__remat='full')
  best = found['best']['keys']
  assert (best['model.remat'], best['train.num_micro_batches']) == ('none', 2)
  # 4 rows of 8 GiB beside a state of 4: the allocation says that two micro-batches are enough.
  assert [(a['model.remat'], a['train.num_micro_batches']) for a in asked[:4]] == [
      ('full', 1), ('none', 1), ('none', 2), ('dots', 1)]
  assert any('does not fit' in line for line in said)
  assert all(line.split(':')[0].strip().isdigit() for line in said)


def test_layers_one_by_one_are_tried_last_on_the_best_mesh_and_on_the_first(monkeypatch):
  machine = make_machine(hbm_gib=3.9)  # only a divided state fits
  found, asked, _ = search(monkeypatch, machine, model__remat='none')
  assert found['best']['keys']['model.scan_layers'] is False
  one_by_one = [a for a in asked if not a['model.scan_layers'] and a['train.batch_rows'] == 32]
  first = asked.index(one_by_one[0])
  assert all(a['model.scan_layers'] for a in asked[:first]) and first > 5
  assert not any(a['model.scan_layers'] for a in asked[first:])  # more rows are its too
  assert {a['mesh.fsdp'] for a in one_by_one} == {1, found['best']['keys']['mesh.fsdp']}
  table = '\n'.join(tables.to_markdown(plans.make_fastest(found)))
  assert 'one by one' in table and '| 7 |' in table  # and the seconds that it compiled


def test_layers_are_left_as_they_are_where_products_bound_the_step(monkeypatch):
  """With remat=full there are fewer products without, so it is tried."""
  found, asked, _ = search(monkeypatch, make_machine(hbm_gib=640.0), bound='compute')
  assert all(a['model.scan_layers'] for a in asked)
  assert any('products bound the step' in e['why'] for e in found['tried'])
  monkeypatch.setattr(fastest, 'REMATS', ('full',))
  _, asked, _ = search(monkeypatch, make_machine(hbm_gib=640.0), bound='compute',
                       model__remat='full')
  assert not all(a['model.scan_layers'] for a in asked)


def test_compilations_are_left_for_the_layers(monkeypatch):
  """Meshes are many, and layers one by one gain more than most of them."""
  found, asked, _ = search(monkeypatch, make_machine(hbm_gib=640.0), most=11, model__remat='full')
  assert found['best']['keys']['model.scan_layers'] is False
  assert len(asked) <= 11 and any('for the layers' in e['why'] for e in found['tried'])


def test_the_number_of_micro_batches_is_told_by_the_first_allocation(monkeypatch):
  _, asked, _ = search(monkeypatch, make_machine(hbm_gib=9.0), model__remat='none')
  none = [a['train.num_micro_batches'] for a in asked if a['model.remat'] == 'none'
          and (a['mesh.data'], a['mesh.fsdp']) == (8, 1)]
  assert none[0] == 1 and 2 not in none  # 32 GiB of rows in the 5 that are left: eight, not two


def test_a_mesh_that_lets_a_faster_remat_in_is_taken(monkeypatch):
  """4 GiB of state on each of 8 devices are too much: it has to be divided."""
  found, asked, _ = search(monkeypatch, make_machine(hbm_gib=3.9))
  keys = found['best']['keys']
  assert keys['mesh.fsdp'] > 1 and found['best']['fits']
  assert all(e['keys']['mesh.fsdp'] > 1 for e in found['tried'] if e.get('fits'))
  assert asked


def test_no_more_than_so_many_are_compiled_and_none_twice(monkeypatch):
  found, asked, _ = search(monkeypatch, make_machine(hbm_gib=24.0), most=5)
  assert len(asked) == 5 and found['best'] is not None
  _, asked, _ = search(monkeypatch, make_machine(hbm_gib=24.0))
  keys = [tuple(sorted((k, v) for k, v in a.items() if k.startswith(('mesh', 'model', 'train'))))
          for a in asked]
  assert 5 < len(asked) <= 20 and len(set(keys)) == len(keys)


def test_what_sends_longer_than_the_best_step_is_not_compiled(monkeypatch):
  found, asked, _ = search(monkeypatch, make_machine(hbm_gib=64.0, ici_bytes_per_sec=1e-3))
  assert {(a['mesh.fsdp'], a['mesh.tensor']) for a in asked} == {(1, 1)}
  skipped = [e for e in found['tried'] if 'sends for' in e['why']]
  assert len(skipped) > 5


def test_a_step_with_unknown_kernels_is_not_compared(monkeypatch):
  found, *_ = search(monkeypatch, make_machine(hbm_gib=64.0), unknown=('none',))
  assert found['best']['keys']['model.remat'] == 'dots'
  assert any('unknown kernels: a kernel' in e['why'] for e in found['tried'])


def test_more_rows_are_told_and_never_taken(monkeypatch):
  found, *_ = search(monkeypatch, make_machine(hbm_gib=640.0))
  assert found['best']['keys']['train.batch_rows'] == 32
  assert [p['train.batch_rows'] for p in found['more_rows']] == [64, 128]


def test_where_nothing_fits_there_is_no_fastest(monkeypatch):
  found, *_ = search(monkeypatch, make_machine(hbm_gib=0.2))
  assert found['best'] is None and found['tried']
  assert plans.make_fastest(found).notes[0].startswith('nothing that fits')


@pytest.mark.parametrize('count, expected', [(8, 10), (6, 3), (1, 1)])
def test_meshes_fill_the_machine(count, expected):
  machine = dataclasses.replace(make_machine(), devices=jax.devices()[:count])
  meshes = [tuple(mesh.values()) for mesh in fastest.list_meshes(machine)]
  assert len(set(meshes)) == len(meshes) == expected
  assert all(a * b * c == count for a, b, c in meshes)


def test_other_stages_are_planned_with_the_setting_of_the_first(monkeypatch):
  asked = []
  monkeypatch.setattr(compile_lib, 'make_plan', make_fake(asked))
  monkeypatch.setattr(fastest, 'make_machine', lambda *_: make_machine(hbm_gib=24.0))
  monkeypatch.setattr(fastest, 'MAX_COMPILES', 3)
  config = support.make_config('rim', train__batch_rows=32, model__remat='full')
  made, found = fastest.make_fastest_plans(config, 'v5e:2x4', 1, lambda line: None)
  assert [p['stage'] for p in made] == ['stage1', 'stage2']
  assert [a['method'] for a in asked] == ['rim_stage1'] * 2 + ['rim_stage2']  # three in all
  best = found['best']['keys']
  assert {key: asked[-1][key] for key in best} == best


def test_the_mode_writes_a_table_and_plans_with_the_fastest_setting(monkeypatch, tmp_path):
  for key in main.PLAN_ENVIRONMENT:
    monkeypatch.setenv(key, '')
  monkeypatch.chdir(pathlib.Path(__file__).parents[2])
  monkeypatch.setattr(fastest, 'make_machine', lambda *_: make_machine())
  monkeypatch.setattr(compile_lib, 'compile_step', compile_here)
  monkeypatch.setattr(fastest, 'MAX_COMPILES', 1)
  out = io.StringIO()
  code = main.cli(['main.py', '--config=configs/stage2.py', '--mode=plan', '--topology=v5e:2x4',
                   '--fastest', f'--workdir={tmp_path}', '--config.model.num_layers=1'],
                  rich_console.Console(file=out, width=150))
  assert code == 0 and 'MFU at most' in out.getvalue()
  tree = json.loads((tmp_path / 'plan.json').read_text())
  best, table = tree['fastest']['best'], (tmp_path / 'fastest.md').read_text()
  assert tree['plans'][0]['roofline_secs'] == best['roofline_secs']
  assert f"--config.model.remat={best['keys']['model.remat']}" in table
  assert f"{1000 * best['roofline_secs']['step']:.1f}" in table
