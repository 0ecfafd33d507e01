"""bench/gpu.py in small on a CPU: every part runs and leaves its numbers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_every_part_leaves_its_numbers(tmp_path):
  done = subprocess.run(
      [sys.executable, ROOT / 'bench/gpu.py', '--small', f'--out={tmp_path}'], timeout=600,
      capture_output=True, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'))
  assert done.returncode == 0, done.stdout + (tmp_path / 'step.log').read_text()
  (kernel,) = json.loads((tmp_path / 'kernel.json').read_text())['entries']
  assert max(kernel['kernel_error']) < 1e-5 and kernel['kernel_both_ms'] > 0
  steps = json.loads((tmp_path / 'step.json').read_text())['entries']
  assert [s['step'] for s in steps] == ['gsm8k_perturbed', 'llama_1b_lora']
  assert all(0 < s['loss'] < 100 and s['ms'] > 0 and s['mfu'] is None for s in steps)
  assert 'gsm8k_perturbed' in (tmp_path / 'gpu.md').read_text()
