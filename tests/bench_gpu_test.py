"""bench/gpu.py in small on a CPU: every part runs and leaves its numbers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

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
