"""bench/gpu.py in small on a CPU: every part runs and leaves its numbers."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from bench import gpu
from rim_jax.planning import gpus

ROOT = pathlib.Path(__file__).parents[1]


def run(tmp_path, parts):
  done = subprocess.run(
      [sys.executable, ROOT / 'bench/gpu.py', '--small', f'--out={tmp_path}', f'--parts={parts}'],
      timeout=600, capture_output=True, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'))
  assert done.returncode == 0, done.stdout + ''.join(
      path.read_text() for path in tmp_path.glob('*.log'))
  return [json.loads((tmp_path / f'{part}.json').read_text())['entries']
          for part in parts.split(',')], (tmp_path / 'gpu.md').read_text()


@pytest.mark.parametrize('name, kind', [
    *((chip.name, kind) for kind, chip in gpus.GPUS.items()), ('NVIDIA H200', 'h200'),
    ('NVIDIA GH200 480GB', None), ('NVIDIA GB200', None), ('NVIDIA H100 PCIe', None),
    ('NVIDIA H100 NVL', None), ('NVIDIA A100-SXM4-40GB', None), ('NVIDIA A100 80GB PCIe', None),
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None), ('cpu', None)])
def test_a_card_that_is_slower_or_larger_than_its_namesake_is_not_taken_for_it(name, kind):
  assert gpu.find_kind(name) == kind


def test_what_a_part_has_found_stays_when_a_later_entry_fails_or_takes_too_long(
    tmp_path, monkeypatch):
  there = []

  def measure(number):
    path = tmp_path / 'kernel.json'
    there.append(path.exists() and len(json.loads(path.read_text())['entries']))
    if number == 1:
      raise ValueError('no | room\nat all')
    return [{'rows': number, 'ms': 2.0}]
  monkeypatch.setitem(gpu.PARTS, 'kernel', lambda small: [
      ({'rows': i}, functools.partial(measure, i)) for i in range(3)])
  assert not gpu.run_part('kernel', tmp_path, True)
  entries = json.loads((tmp_path / 'kernel.json').read_text())['entries']
  assert entries == [{'rows': 0, 'ms': 2.0}, {'rows': 1, 'error': 'ValueError: no | room'},
                     {'rows': 2, 'ms': 2.0}] and there == [False, 1, 2]
  found = {'device': 'x', 'jax': 'y', 'command': '', 'date': ''}
  table = gpu.format_table(found | {'parts': {'kernel': {'entries': entries}}})
  assert '| 1 |  | ValueError: no \\| room |' in table and '| 2 | 2 |  |' in table


def test_a_part_that_is_killed_keeps_its_entries_and_compiled_programs(tmp_path, monkeypatch):
  def run_child(command, env, timeout, **kwargs):
    (tmp_path / 'kernel.json').write_text('{"entries": [{"rows": 1}]}')
    cache.append(env['JAX_COMPILATION_CACHE_DIR'])
    raise subprocess.TimeoutExpired(command, timeout)
  cache = []
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setattr(subprocess, 'run', run_child)
  parts = gpu.run_all(tmp_path, ['kernel'], False)
  assert parts['kernel']['entries'] == [{'rows': 1}]
  assert 'took longer than 100 s' in parts['kernel']['error']
  assert pathlib.Path(*cache) == tmp_path / 'compiled'


@pytest.mark.slow
def test_every_part_leaves_its_numbers(tmp_path):
  ((kernel,), steps, latency, plans), table = run(tmp_path, 'kernel,step,latency,plan')
  assert max(kernel['kernel_error']) < 1e-5 and kernel['kernel_both_ms'] > 0
  assert [s['step'] for s in steps] == ['gsm8k_perturbed', 'llama_1b_lora']
  assert all(0 < s['loss'] < 100 and s['ms'] > 0 and s['mfu'] is None for s in steps)
  assert [e['method'] for e in latency] == ['direct', 'rim', 'rim_all', 'coconut', 'cot']
  assert all(e['first_token_ms'] > 0 and e['first_token_ratio'] > 0 for e in latency)
  # The plan is of the very step: on one machine it is its program.
  for plan, step in zip(plans, steps, strict=True):
    assert plan['step'] == step['step'] and plan['ms'] > 0
    for what in ('launches', 'hbm_gb', 'temporaries_gib'):
      assert plan[what] == pytest.approx(step[what], rel=0.02), what
  assert '| gsm8k_perturbed | launches |' in table


@pytest.mark.hf
def test_pytorchs_steps_are_of_the_same_rows(tmp_path):
  pytest.importorskip('peft')
  (steps,), table = run(tmp_path, 'torch')
  assert [s['step'] for s in steps] == ['gsm8k_perturbed', 'llama_1b_lora']
  assert all(0 < s['loss'] < 100 and s['ms'] > 0 for s in steps) and 'torch' in table
