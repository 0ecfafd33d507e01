"""What a run scores, by one checkpoint or by the paper's protocol."""

import contextlib
import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from rim_jax import reader
from rim_jax import train as train_lib
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, scores
from rim_jax.evaluation import run_scores as run_scores_lib
from rim_jax.results import judge, values
from rim_jax.runtime import run_folder
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import state as state_lib
from tests import support

QUIET = lambda line: None


def make_result(count):
  return values.EvalResult(rule_version=judge.RULE_VERSION, n=count, final_acc=1.0, block_acc=[1.0])


@pytest.mark.slow
def test_the_papers_protocol_scores_every_kept_checkpoint(tmp_path, use_devices, monkeypatch):
  use_devices(1)
  config = support.make_config('rim_stage1', data__cache_dir=str(tmp_path / 'cache'),
                               train__batch_rows=8, train__num_examples=48, layout__row_tokens=32,
                               eval__num_valid_examples=4, checkpoint__every_steps=2,
                               checkpoint__keep_last=3, data__chain__num_test=24)
  train_lib.train(config, tmp_path / 'run', say=QUIET)
  task = train_lib.make_task(config, QUIET)
  kept = checkpoint_lib.list_counting(tmp_path / 'run')
  assert len(kept) == 3
  correct = []
  for step in kept:
    network, _ = state_lib.load_network(task, tmp_path / 'run', step)
    correct.append([p.block_correct for p in scores.evaluate(
        decode.Decoder(network), run_scores_lib.get_records(task, 'test', 0),
        config.eval_blocks)[1]])
  wanted = scores.score_splits(np.asarray(correct), config.seed)
  before = reader.load_json(tmp_path / 'run' / 'results.json', '')['test']

  splits = dataclasses.replace(config, eval=dataclasses.replace(config.eval, checkpoint='splits'))
  told, load, loaded = [], state_lib.load_network, []
  monkeypatch.setattr(state_lib, 'load_network', lambda *args, **kwargs: (
      loaded.append(args), load(*args, **kwargs))[1])
  results = run_scores_lib.evaluate_run(train_lib.make_task(splits, QUIET), tmp_path / 'run',
                                   told.append)
  assert len(loaded) == 1  # what is frozen, and the programs, are those of the first
  found = results['test-splits']
  assert reader.seal(reader.to_tree(results['test']), 'test') == before  # stays
  for key in ('final_acc', 'final_acc_stderr', 'block_acc', 'num_choosing'):
    assert getattr(found, key) == getattr(wanted, key)
  assert found.chosen == {str(step): wanted.chosen.get(str(c), 0) for c, step in enumerate(kept)}
  assert found.chosen_on.startswith('test itself') and found.chosen_on in told[-1]
  assert found.data_fingerprint == before['data_fingerprint']
  with pytest.raises(UserError, match='scores many checkpoints'):
    state_lib.load_network(task, tmp_path / 'run', 'splits')


def test_predictions_are_whole_whenever_a_run_is_killed(tmp_path, monkeypatch):
  """Half of a file is written, and then nothing more: what was there is still there."""
  first = [values.Prediction(question=f'{i}?', answer='', correct=True) for i in range(9)]
  folder = run_folder.RunFolder(tmp_path)
  folder.write_result('test', make_result(9), first)
  path = tmp_path / 'predictions' / 'test.jsonl'
  before = path.read_text()
  assert [json.loads(line) for line in before.splitlines()] == reader.to_tree(first)

  def die(self, content):
    with self.open('wb') as file:
      file.write(content[:len(content) // 2])
    raise KeyboardInterrupt
  monkeypatch.setattr(type(epath.Path(tmp_path)), 'write_bytes', die)
  with pytest.raises(KeyboardInterrupt):
    folder.write_result('test', make_result(5), first[:5])
  assert path.read_text() == before


@pytest.mark.parametrize('positions, asked, beyond', [
    ('learned', {'eval__budget_blocks': 6}, [4, 5, 6]), ('learned', {'eval__num_blocks': 5}, [5]),
    ('learned', {}, None), ('rope', {'eval__budget_blocks': 6}, None)])
def test_blocks_beyond_the_trained_positions_are_marked(tmp_path, monkeypatch, positions, asked,
                                                        beyond):
  """A question of 9 tokens and 3 blocks of 3: a table has rows for more, and RoPE has none."""
  config = support.make_config('rim_stage2', data__cache_dir=str(tmp_path / 'cache'),
                               model__positions=positions, **asked)
  monkeypatch.setattr(state_lib, 'load_network', lambda task, *args, **kwargs: (
      support.make_network(task.config), 7))
  monkeypatch.setattr(scores, 'evaluate', lambda decoder, records, *args: (
      make_result(8), [values.Prediction(question='', answer='', correct=True)] * len(records)))
  monkeypatch.setattr(scores, 'evaluate_budgets', lambda *args: {})
  result = run_scores_lib.evaluate_run(train_lib.make_task(config, QUIET), tmp_path, QUIET)[
      config.eval_set]
  assert result.beyond_positions == beyond


def test_each_number_of_tokens_is_marked_for_itself(tmp_path, monkeypatch):
  config = support.make_config('rim_stage2', data__cache_dir=str(tmp_path / 'cache'),
                               model__positions='learned', eval__budget_tokens=2,
                               eval__budget_blocks=5)
  monkeypatch.setattr(state_lib, 'load_network', lambda task, *args, **kwargs: (
      support.make_network(task.config), 7))
  monkeypatch.setattr(scores, 'evaluate', lambda decoder, records, *args: (
      make_result(8), [values.Prediction(question='', answer='', correct=True)] * len(records)))
  monkeypatch.setattr(scores, 'evaluate_budgets', lambda decoder, records, blocks, say: (
      dict.fromkeys(map(str, blocks), 0.5)))
  result = run_scores_lib.evaluate_run(
      train_lib.make_task(config, QUIET), tmp_path, QUIET)['test']
  # Blocks are of 3 tokens where they are of one <m>, and of 4 where they are of two.
  assert [(x.block_tokens, x.beyond_positions) for x in result.tokens] == [
      (1, [4, 5]), (2, [3, 4, 5])]


@pytest.mark.parametrize('changes, told', [
    ({}, ''), ({'eval__budget_blocks': 30}, 'positions'),
    ({'eval__budget_tokens': 20}, 'positions'),
    ({'eval__budget_tokens': 20, 'eval__split': 'valid'}, 'positions'),
    ({'eval__checkpoint': 'splits', 'eval__num_examples': 10}, 'too few to choose by')])
def test_what_would_end_a_run_after_its_last_update_is_told_before_its_first(
    changes, told, tmp_path):
  task = train_lib.make_task(support.make_config(
      'rim_stage2', data__cache_dir=str(tmp_path / 'cache'), model__positions='learned',
      model__max_positions=40, **changes), QUIET)
  with pytest.raises(UserError, match=told) if told else contextlib.nullcontext():
    run_scores_lib.check_questions(task)


def test_a_set_tells_what_was_dropped_and_what_can_never_be_right(tmp_path):
  (tmp_path / 'own.jsonl').write_text(
      '{"question": "1+2", "answer": "3", "choices": [3]}\n\n'
      '{"question": "2+2", "answer": "It is 4."}\n')
  task = train_lib.make_task(support.make_config(
      'rim_stage2', data__cache_dir=str(tmp_path / 'cache'), data__on_bad_rows='drop',
      eval__sets=f'own={tmp_path}/own.jsonl'), QUIET)
  told = []
  run_scores_lib.check_sets(task, told.append)
  unread, dropped, never = told
  assert unread == 'own: keys that are not read: choices'
  assert never.startswith('own: 1 of 2 gold answers can never be right: ') and "'It is 4.'" in never
  assert dropped == 'own: dropped 1 bad rows: own.jsonl:2: an empty line'


def test_a_set_tells_how_many_of_its_questions_are_also_in_train(tmp_path):
  task = train_lib.make_task(support.make_config(
      'rim_stage2', data__cache_dir=str(tmp_path / 'cache')), QUIET)

  def tell(*questions):
    (tmp_path / 'own.jsonl').write_text(''.join(
        json.dumps({'question': q, 'answer': '3'}) + '\n' for q in questions))
    config = dataclasses.replace(task.config, eval=dataclasses.replace(
        task.config.eval, sets=f'own={tmp_path}/own.jsonl'))
    told = []
    run_scores_lib.check_sets(dataclasses.replace(task, config=config), told.append)
    return told
  train, test = (task.dataset.splits[name][0].question for name in ('train', 'test'))
  assert tell(test, 'Who?') == []
  assert tell(f' {train}\n', test, train) == ['own: 2 of its questions are also in train']
  [hashes] = (tmp_path / 'cache').rglob('questions.bin')
  hashes.unlink()  # as earlier versions left a prepared copy
  [line] = tell(train)
  assert line.startswith(f'own: not compared with train, which an earlier version prepared in '
                         f'{hashes.parent}; delete ')


def test_runs_on_different_gsm_hard_files_are_told_apart_by_their_fingerprints(tmp_path,
                                                                               monkeypatch):
  """They are of the records read, wherever those lie; a split has that of the whole."""
  task = train_lib.make_task(support.make_config(
      'rim_stage2', data__cache_dir=str(tmp_path / 'cache'), model__positions='rope'), QUIET)
  assert run_scores_lib.fingerprint_set(task, []) == task.dataset.splits['test'].fingerprint
  monkeypatch.setattr(state_lib, 'load_network', lambda task, *args, **kwargs: (
      support.make_network(task.config), 7))
  monkeypatch.setattr(scores, 'evaluate', lambda decoder, records, *args: (
      make_result(len(records)), [values.Prediction(
          question=r.question, answer=r.answer, correct=True) for r in records]))

  def run(name, *answers):
    (tmp_path / name).mkdir()
    path = tmp_path / name / f'{name}.jsonl'
    path.write_text(''.join(json.dumps({'input': f'{i}+1', 'target': a}) + '\n'
                            for i, a in enumerate(answers)))
    hard = dataclasses.replace(task, config=dataclasses.replace(task.config, eval=(
        dataclasses.replace(task.config.eval, split='gsm_hard', path=str(path)))))
    told = run_scores_lib.evaluate_run(hard, tmp_path / name, QUIET)['gsm_hard'].data_fingerprint
    return told, tmp_path / name / 'predictions/gsm_hard.jsonl'
  (one, a), (same, b), (other, c) = run('a', 1, 2), run('b', 1.0, 2.0), run('c', 1, 3)
  assert one == same != other and len(other) == 16
  assert run_folder.compare_files(a, b).count == 2
  with pytest.raises(UserError) as error:
    run_folder.compare_files(a, c)
  assert str(error.value) == (
      f'{c}: of another data set than {a} (fingerprints {other} and {one}); '
      'evaluate both runs on the same data')


def test_what_is_judged_again_is_asked_as_the_run_asked_it(tmp_path, monkeypatch):
  """--config.eval.num_blocks=K of an evaluation would else be written down as the run's own."""
  config = support.make_config('rim_stage2', layout__num_blocks=3, eval__num_valid_examples=4)
  card = {'format': 2, 'data': {}, 'tokenizer': '', 'base': None,
          'config': dataclasses.asdict(config)}
  folder = run_folder.RunFolder(tmp_path)
  folder.card.write_text(json.dumps(card))
  asked = []

  @dataclasses.dataclass(frozen=True)
  class Task:
    config: object

  def evaluate(decoder, records, blocks):
    asked.append((decoder, records, blocks))
    return make_result(4), []
  # Of several processes each gets what the first one has as JSON.
  monkeypatch.setattr(run_scores_lib.hosts, 'lead', lambda fn: json.loads(json.dumps(fn())))
  monkeypatch.setattr(checkpoint_lib, 'rate_checkpoints', lambda _: {
      5: (0.5, 1), 7: (0.4, judge.RULE_VERSION)})
  monkeypatch.setattr(run_scores_lib, 'get_records', lambda task, split, limit: (split, limit))
  monkeypatch.setattr(state_lib, 'load_network',
                      lambda task, _, step: ((task.config.eval, step), step))
  monkeypatch.setattr(decode, 'Decoder', lambda network: network)
  monkeypatch.setattr(scores, 'evaluate', evaluate)
  now = dataclasses.replace(config.eval, num_blocks=1, num_valid_examples=2, max_new_tokens=2)
  run_scores_lib._judge_valid_again(
      Task(dataclasses.replace(config, eval=now)), tmp_path, QUIET)
  assert asked == [((config.eval, 5), ('valid', 4), 3)]
  assert folder.load_valid() == {5: (1.0, judge.RULE_VERSION)}
