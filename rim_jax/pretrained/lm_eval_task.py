"""A task of lm-evaluation-harness beside an export: the run's questions, judged by its own rule.

The task is a directory of plain files that need nothing of rim_jax, so that it can be moved and run
with the exported model anywhere.

Source: lm-evaluation-harness's task files, as `lm_eval --include_path` reads them.
"""

import json
import pathlib
import shutil

from rim_jax.config import Config
from rim_jax.results import judge, rule

NAME = 'rim'  # of the task, and of what it measures: `acc`
FOLDER = 'lm_eval'
# What the README of an export says of it.
README = f'''`{FOLDER}/` is a task of lm-evaluation-harness, the questions that the run was \
evaluated on. Run it from this directory:

```
lm_eval --model hf --model_args pretrained=.,dtype=auto --include_path {FOLDER} --tasks {NAME} \
--batch_size 1
```'''

_YAML = '''# The questions that the run was evaluated on, as an export of it is asked them.
task: {name}
custom_dataset: !function task.load
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
generation_kwargs:
  until: []
  max_gen_toks: {max_new_tokens}
  do_sample: false
process_results: !function task.judge
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: {version}
'''

_CODE = '''"""What rim.yaml needs: the questions, and the rule by which the run was judged."""

import importlib.util
import json
import pathlib

import datasets

HERE = pathlib.Path(__file__).parent
MARKER, SUFFIX = {marker!r}, {suffix!r}  # what an answer stands behind, and what closes it

_spec = importlib.util.spec_from_file_location('rim_rule', HERE / 'rule.py')
rule = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rule)


def load(**unused):
  """The rows of questions.jsonl: prompt, answer."""
  rows = (HERE / 'questions.jsonl').read_text(encoding='utf-8').rstrip('\\n').split('\\n')
  return {{'test': datasets.Dataset.from_list([json.loads(row) for row in rows])}}


def judge(doc, results):
  """Whether the text that the model wrote holds the answer."""
  answer = rule.cut_answer(results[0], MARKER, SUFFIX)
  return {{'acc': float(rule.is_right(answer, doc['answer']))}}
'''


def write_task(folder: pathlib.Path, config: Config, prompts, records) -> None:
  """Writes FOLDER below an export: rim.yaml, task.py, rule.py and questions.jsonl.

  Args:
    prompts: the text that an engine is given for each record.
  """
  task = folder / FOLDER
  task.mkdir()
  (task / f'{NAME}.yaml').write_text(_YAML.format(
      name=NAME, max_new_tokens=config.eval.max_new_tokens, version=rule.RULE_VERSION))
  (task / 'task.py').write_text(_CODE.format(
      marker=judge.get_marker(config), suffix=config.layout.answer_suffix))
  shutil.copy(rule.__file__, task / 'rule.py')
  (task / 'questions.jsonl').write_text(''.join(
      json.dumps({'prompt': prompt, 'answer': record.answer}) + '\n'
      for prompt, record in zip(prompts, records, strict=True)), encoding='utf-8')
