"""What a run's checkpoint scores on a set of questions: results.json and predictions/.

`task` is a `task.Task`: config, dataset, codec, mesh, base.
"""

import dataclasses

from etils import epath
import numpy as np

from rim_jax import reader
from rim_jax.config import limits, replace_keys
from rim_jax.data import datasets as datasets_lib
from rim_jax.data import evaluation_sets, files
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, latency, scores
from rim_jax.packing import preview
from rim_jax.packing import source as source_lib
from rim_jax.results import judge, values
from rim_jax.runtime import hosts, run_folder, status, storage
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import state as state_lib

# What accuracies on valid depend on, beside what was trained.
_OF_VALID = ('num_blocks', 'num_passes', 'num_valid_examples', 'max_new_tokens')


def get_records(task, split: str, limit: int):
  """The first `limit` records of a split, or of the set that eval.path has; 0: all."""
  source = task.dataset.splits.get(split)
  if source is None:
    return _load_set(task, split).records[:limit or None]
  return source.__getitems__(range(len(source))[:limit or None])


def _load_set(task, name: str):
  return evaluation_sets.load_set(
      name, epath.Path(storage.expand(task.config.eval.path, 'eval.path')), task.config.data)


def check_questions(task, with_valid: bool = True):
  """Asks at the beginning what would end a run at its first save, or after its last update.

  Raises: UserError for a question of valid, or of a set of results, that cannot be encoded or
    leaves no room for its answer, with any number of blocks or tokens that is asked for; and for
    fewer questions than are needed to choose a checkpoint by.
  """
  if with_valid:
    scores.encode_questions(get_records(task, 'valid', task.config.eval.num_valid_examples),
                            task.config, task.codec, task.config.eval_blocks)
  for one in list_sets(task):
    config = one.config
    records = get_records(one, config.eval.split, config.eval.num_examples)
    largest = replace_keys(config, {'layout.block_tokens': max(
        config.layout.block_tokens, config.eval.budget_tokens)})
    scores.encode_questions(
        records, largest, one.codec, max(config.eval_blocks, config.eval_budget))
    if config.eval.checkpoint == 'splits':
      scores.check_splits(records)
    if config.facts.blocks_are_steps:
      scores.check_steps(records, config, one.codec)


def fingerprint_set(task, records) -> str:
  """By what two runs are known to have had the same: the whole split's, or a file's as read."""
  source = task.dataset.splits.get(task.config.eval.split)
  return datasets_lib.fingerprint_records(records) if source is None else source.fingerprint


def list_sets(task) -> list:
  """The task as it is, and once for each of eval.sets, which are not timed."""
  evaluation = task.config.eval
  more = [dataclasses.replace(evaluation, split=name, path=path, sets='', num_latency_runs=0)
          for name, path in limits.parse_sets(evaluation.sets).items()]
  return [task, *(dataclasses.replace(task, config=dataclasses.replace(task.config, eval=one))
                  for one in more)]


def check_sets(task, say) -> None:
  """Reads every file that will be evaluated: before training, not after it.

  Tells which rows were dropped, which keys are not read, which answers can never be right and
  how many questions are also in train.
  Raises: UserError.
  """
  for one in list_sets(task):
    name = one.config.eval.split
    if name not in task.dataset.splits:
      parsed = _load_set(one, name)
      for line in (files.describe_parsed(name, parsed)
                   + preview.describe_misjudged(name, parsed.records, one.codec)
                   + task.dataset.describe_shared(name, parsed.records)):
        say(line)


def is_evaluated(task, workdir) -> bool:
  """Whether a complete run has the results that `evaluate_run` would add now.

  Of each set that is asked for: by the same choice of a checkpoint, with answers as long, and of
  the same questions.
  Raises: UserError where the file of a set is damaged, or is not there to compare.
  """
  results = run_folder.RunFolder(workdir).load_written()  # by whichever rule they were judged
  return all((result := results.get(one.config.eval_set)) is not None
             and result.checkpoint == one.config.eval.checkpoint
             and state_lib.is_of_today(result, workdir)
             # Earlier versions told neither how long answers could be nor of which questions it is.
             and result.max_new_tokens in (None, one.config.eval.max_new_tokens)
             and (result.data_fingerprint is None or result.data_fingerprint == fingerprint_set(
                 one, get_records(one, one.config.eval.split, one.config.eval.num_examples)))
             for one in list_sets(task))


def evaluate_run(task, workdir, say=print) -> dict[str, values.EvalResult]:
  """Evaluates a run's checkpoint as `config.eval` says; adds to results.json and predictions/.

  Returns: the whole content of results.json, set -> result.
  """
  check_sets(task, say)
  hosts.lead(lambda: bool(run_folder.RunFolder(workdir).load_written()))  # what is there is sound
  which, results = task.config.eval.checkpoint, {}
  if which == 'splits':
    for one in list_sets(task):
      results = _evaluate_splits(one, workdir, say)
    return results
  if which == 'best':
    _judge_valid_again(task, workdir, say)
  network, step = state_lib.load_network(task, workdir, which, say=say)
  decoder = decode.Decoder(network)
  for one in list_sets(task):
    results = _evaluate_set(one, decoder, step, workdir, say)
  return results


def _load_decoders(task, workdir, steps: list[int]):
  """Yields (step, its decoder); programs and frozen parameters are those of the first."""
  decoder = None
  for step in steps:
    if decoder is None:
      decoder = decode.Decoder(state_lib.load_network(task, workdir, step)[0])
    else:
      decoder = decoder.with_params(state_lib.load_params(decoder.network, workdir, step))
    yield step, decoder


def _evaluate_set(task, decoder: decode.Decoder, step: int, workdir, say
                  ) -> dict[str, values.EvalResult]:
  """`evaluate_run` of eval.split alone, by the decoder of a checkpoint, which all sets share."""
  config, blocks = task.config, task.config.eval_blocks
  records = get_records(task, config.eval.split, config.eval.num_examples)
  say(f'evaluating step {step} ({config.eval.checkpoint} checkpoint) on {len(records):,} '
      f'{config.eval.split} questions, K={blocks}')

  def tick(what, times=1):
    return status.Ticker(what, times * len(records), 'questions', say)
  result, predictions = scores.evaluate(decoder, records, blocks, tick('evaluating'))
  more = _vary_memory(task, decoder, records, tick, say)  # fields of the result
  if config.eval.num_samples:
    sampled, num_right = scores.evaluate_samples(
        decoder, records, blocks, tick('drawing samples', config.eval.num_samples))
    more |= sampled
    predictions = [dataclasses.replace(p, num_right_samples=n)
                   for p, n in zip(predictions, num_right)]
  more |= scores.group_by_steps(predictions, records)
  if config.facts.blocks_are_steps:
    more |= scores.evaluate_steps(decoder, records, status.Ticker(
        'evaluating steps', sum(len(r.steps) > 1 for r in records), 'questions', say))
  if config.eval.split == evaluation_sets.GSM_HARD:
    more |= scores.group_gsm_hard(
        predictions, [r.question for r in get_records(task, 'test', 0)])
  more |= _count_cost(task, decoder.network, records, say)
  result = dataclasses.replace(
      result, **more, data_fingerprint=fingerprint_set(task, records), step=step,
      checkpoint=config.eval.checkpoint, max_new_tokens=config.eval.max_new_tokens,
      method=config.method, format=scores.RESULTS_VERSION)
  return _write(run_folder.RunFolder(workdir), config.eval_set, result, predictions)


def _vary_memory(task, decoder, records, tick, say) -> dict:
  """The same questions with other numbers of blocks, passes and tokens, where asked for."""
  config, more = task.config, {}
  asked = tuple(range(config.eval_budget + 1)) if config.eval_budget else (config.eval_blocks,)
  if config.eval_budget:
    more |= dict(budget_acc=scores.evaluate_budgets(
        decoder, records, asked, tick('each number of blocks')))
  if config.eval.budget_passes:
    more['passes'] = scores.evaluate_passes(decoder, records, asked, tick)
    if config.eval.num_latency_runs:
      more['passes'] = latency.measure_passes(
          decoder.network, records, more['passes'], config.eval.num_latency_runs, say)
  if config.eval.budget_tokens:
    more['tokens'] = scores.evaluate_tokens(decoder, records, asked, tick)
  if config.model.positions == 'learned' and not config.model.init_from:
    more |= _mark_beyond(
        task, records, {config.eval_blocks, *asked}, more.get('tokens', ()), say)
  return more


def _count_cost(task, network, records, say) -> dict:
  """What an answer costs: passes and thoughts before its first token; timed where asked for."""
  config, blocks = task.config, task.config.eval_blocks
  cost = {'num_passes': latency.count_passes(config, blocks),
          'num_thoughts': blocks * config.layout.block_tokens if config.has_thoughts else None}
  if config.eval.num_latency_runs:
    cost |= latency.measure_run(
        network, records, blocks, limits.parse_sizes(config.eval.latency_batch_sizes),
        config.eval.num_latency_runs, say)
  return cost


def ask_valid_as_begun(task, workdir, say=None):
  """The task as valid is asked in this run: as when it began, whatever is asked of other sets now.

  The best checkpoint is chosen among accuracies on valid, so these must be of the same questions.

  Args:
    say: is told what is not taken as asked now.
  """
  own = hosts.lead(lambda: run_folder.RunFolder(workdir).load_card()['config']['eval'])
  now = dataclasses.asdict(task.config.eval)
  changed = [key for key in _OF_VALID if own[key] != now[key]]
  if changed and say:
    say('valid is asked as when this run began, so that its checkpoints can be compared: '
        + ', '.join(f'eval.{key}={own[key]} (not {now[key]})' for key in changed))
  return dataclasses.replace(task, config=dataclasses.replace(
      task.config, eval=dataclasses.replace(
          task.config.eval, **{key: own[key] for key in changed})))


def _judge_valid_again(task, workdir, say) -> None:
  """Evaluates checkpoints on valid again that were judged by another rule than the others were."""
  if not hosts.lead(lambda: checkpoint_lib.is_rated_by_many(workdir)):
    return
  steps = hosts.lead(lambda: sorted(
      step for step, (_, rule) in checkpoint_lib.rate_checkpoints(workdir).items()
      if rule != judge.RULE_VERSION))
  task = ask_valid_as_begun(task, workdir)
  config = task.config
  records = get_records(task, 'valid', config.eval.num_valid_examples)
  for step, decoder in _load_decoders(task, workdir, steps):
    say(f'judging step {step} on valid again, by version {judge.RULE_VERSION} of the rule')
    result, _ = scores.evaluate(decoder, records, config.eval_blocks)
    hosts.lead(lambda step=step, acc=result.final_acc: run_folder.RunFolder(workdir).add_metrics(
        step, {values.VALID_ACC: acc, values.VALID_RULE: judge.RULE_VERSION}))


def _mark_beyond(task, records, asked, tokens, say) -> dict:
  """Which numbers of blocks, of those asked for, are read where no position was ever trained.

  A learned table has rows up to model.max_positions, whether training reached them or not.

  Args:
    tokens: results with other numbers of tokens in a block, each marked for itself.
  """
  if not any(asked):
    return {}
  reached = hosts.lead_first(lambda: source_lib.count_positions(
      task.dataset.splits['train'], task.codec, say))

  def find(block_tokens, where=''):
    config = dataclasses.replace(task.config, layout=dataclasses.replace(
        task.config.layout, block_tokens=block_tokens))
    beyond = scores.find_beyond(records, config, task.codec, sorted(asked), reached)
    if beyond:
      say(f'{where}K={", ".join(map(str, beyond))}: beyond the {reached} positions that were '
          'trained')
    return beyond or None
  marked = {'tokens': [dataclasses.replace(x, beyond_positions=find(
      x.block_tokens, f'M={x.block_tokens}, ')) for x in tokens]} if tokens else {}
  return marked | {'beyond_positions': find(task.config.layout.block_tokens)}


def _evaluate_splits(task, workdir, say) -> dict[str, values.EvalResult]:
  """`evaluate_run` by the paper's protocol: every kept checkpoint, `scores.score_splits`."""
  config, correct = task.config, []
  records = get_records(task, config.eval.split, config.eval.num_examples)
  scores.check_splits(records)
  steps = hosts.lead(lambda: checkpoint_lib.list_counting(workdir))
  if not steps:
    raise UserError(f'{workdir}: has no checkpoint that counts; run its command again to finish it')
  for step, decoder in _load_decoders(task, workdir, steps):
    say(f'evaluating step {step}, one of {len(steps)}, on {len(records):,} {config.eval.split} '
        f'questions, K={config.eval_blocks}')
    _, predictions = scores.evaluate(
        decoder, records, config.eval_blocks,
        status.Ticker(f'step {step}', len(records), 'questions', say))
    correct.append([p.block_correct for p in predictions])
  result = scores.score_splits(np.asarray(correct), config.seed)
  # Also those that no split chose: it is known, then, which there were to choose from.
  chosen = {str(step): (result.chosen or {}).get(str(c), 0) for c, step in enumerate(steps)}
  touched = (f'{config.eval.split} itself: {result.num_choosing} of its {len(records)} '
             f'questions choose among {len(steps)} checkpoints, the others score, '
             f'{result.num_splits} times (arXiv 2605.30343)')
  say(f'the checkpoint was chosen on {touched}')
  return _write(run_folder.RunFolder(workdir), config.eval_set, dataclasses.replace(
      result, n=len(records), num_blocks=config.eval_blocks, chosen=chosen, chosen_on=touched,
      answer_rule=judge.ANSWER_RULE, rule_version=judge.RULE_VERSION,
      data_fingerprint=fingerprint_set(task, records),
      step=int(max(chosen, key=chosen.__getitem__)), checkpoint='splits',
      max_new_tokens=config.eval.max_new_tokens, method=config.method,
      format=scores.RESULTS_VERSION))


def _write(folder, set_name: str, result, predictions=None) -> dict[str, values.EvalResult]:
  """What process 0 writes; each process gets the results of all sets."""
  results = hosts.lead(lambda: reader.to_tree(
      folder.write_result(set_name, result, predictions)))
  return reader.from_tree(dict[str, values.EvalResult], results)
