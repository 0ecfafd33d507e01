"""lm-evaluation-harness, run for real on an export, scores it as the run's own evaluation does."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from rim_jax.config import MeshConfig
from rim_jax.evaluation import decode, scores
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.pretrained import export, lm_eval_task, weights
from tests import support
from tests.support_pretrained import make_config, make_model

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec('lm_eval') is None,
                                   reason="needs the extra: pip install -e '.[lm-eval]'")


@pytest.mark.hf
@needs_lm_eval
@pytest.mark.parametrize('family', ['gpt2', 'llama'])
def test_lm_eval_finds_the_run_s_own_accuracy(family, tmp_path, monkeypatch):
  import lm_eval
  import lm_eval.tasks
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  config = make_config(family, layout__answer_suffix='', eval__batch_size=12,
                       eval__max_new_tokens=4)
  program, params, frozen = make_model(config)
  network = Network(program.graphdef, params, frozen, config, support.make_codec(config),
                    sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  asked = [support.Record(f'{i}+1?', (), 'no', f'r:{i}') for i in range(12)]
  _, predictions = scores.evaluate(decode.Decoder(network), asked, 2)
  # What the network says is the answer to every third question, so that some are right.
  records = [support.Record(r.question, (), p.prediction or 'no' if i % 3 == 0 else 'no', r.origin)
             for i, (r, p) in enumerate(zip(asked, predictions))]
  result, _ = scores.evaluate(decode.Decoder(network), records, 2)
  assert 0.2 < result.final_acc < 0.8
  export.write_export(tmp_path / 'out', network, export.Origin(
      weights.open_base(config.model.init_from), 'runs/it', 7), records, say=lambda line: None)
  (tmp_path / 'out').rename(tmp_path / 'moved')  # it names no place
  tasks = lm_eval.tasks.TaskManager(include_path=str(tmp_path / 'moved' / lm_eval_task.FOLDER),
                                    include_defaults=False)
  found = lm_eval.simple_evaluate(
      model='hf', model_args={'pretrained': str(tmp_path / 'moved'), 'dtype': 'float32'},
      tasks=[lm_eval_task.NAME], task_manager=tasks, batch_size=1, device='cpu',
      log_samples=True)
  assert found['results'][lm_eval_task.NAME]['acc,none'] == pytest.approx(result.final_acc)
  assert len(found['samples'][lm_eval_task.NAME]) == 12
  told = [s['acc'] for s in sorted(found['samples'][lm_eval_task.NAME], key=lambda s: s['doc_id'])]
  rows = (tmp_path / 'moved/lm_eval/questions.jsonl').read_text().splitlines()
  assert len(rows) == 12 and 'prompt' in json.loads(rows[0])
  _, again = scores.evaluate(decode.Decoder(network), records, 2)
  assert told == [float(p.correct) for p in again]
  if family == 'gpt2':
    (command,) = re.findall(r'\n(lm_eval .*)', (tmp_path / 'moved/README.md').read_text())
    assert f'|acc   |↑  |{result.final_acc:.4f}|' in run_as_printed(command, tmp_path / 'moved')


def run_as_printed(command, folder):
  """The standard output of a command of this environment's programs, on CPUs."""
  programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  done = subprocess.run(['bash', '-c', command], cwd=folder, capture_output=True, text=True,
                        env=os.environ | {'PATH': programs, 'HF_HUB_OFFLINE': '1'}, timeout=500)
  assert done.returncode == 0, done.stderr
  return done.stdout
