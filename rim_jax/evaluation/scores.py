"""Accuracy of what is decoded: per block, final, any block, majority."""

import dataclasses
import math

import numpy as np

from rim_jax.config import Config, replace_keys
from rim_jax.errors import UserError
from rim_jax.evaluation import decode as decode_lib
from rim_jax.model.network import Network
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order as order_lib
from rim_jax.results import judge, stats, values

RESULTS_VERSION = 1
NUM_SPLITS, SPLIT_SHARE = 16, 0.2  # of the paper's protocol: 264 of GSM8K's 1,319 choose


def get_blocks(num_blocks: int) -> tuple:
  """The blocks that are read: 1..K, or the question alone where K = 0."""
  return tuple(range(1, num_blocks + 1)) or (0,)


def get_answer_prefix(config: Config, codec):
  """What is forced before an answer; a written chain of thought starts freely.

  iCoT is judged once its chain is gone, so by direct answering's own program.
  """
  return () if config.writes_steps else codec.template.answer_prefix


def evaluate(decoder: decode_lib.Decoder, records, num_blocks: int, say=None, prefix=None
             ) -> tuple[values.EvalResult, list[values.Prediction]]:
  """Decodes every record's answer after each of K blocks.

  Args:
    prefix: ids that are forced first; the method's own by default.
  Returns: (what they score, one prediction a record).
  Raises: UserError where a question runs beyond a learned position table.
  """
  config, codec = decoder.network.config, decoder.network.codec
  prefix = get_answer_prefix(config, codec) if prefix is None else prefix
  texts, ended = decoder.decode_texts(encode_questions(records, config, codec, num_blocks),
                                      num_blocks, prefix, get_blocks(num_blocks), say)
  predictions = [judge.make_prediction(record, row, config) for record, row in zip(records, texts)]
  return values.EvalResult(
      num_blocks=num_blocks, **judge.summarize(predictions),
      num_unfinished=int((~ended[:, -1]).sum())), predictions  # cut off at max_new_tokens


def encode_questions(records, config: Config, codec, num_blocks: int, prefix=None,
                     longest: int = 0) -> list[list[int]]:
  """Ids of every question, each known to leave room for its blocks and its answer.

  Args:
    prefix: ids that are forced first; the method's own by default.
    longest: tokens of what is written, where that is more than eval.max_new_tokens.
  Raises: UserError where one runs beyond a learned position table.
  """
  prefix = get_answer_prefix(config, codec) if prefix is None else prefix
  questions = [_encode_question(record, codec) for record in records]
  num_more = len(prefix) + max(config.eval.max_new_tokens, longest) - 1
  for record, question in zip(records, questions):
    decode_lib.check_positions(len(question), num_blocks, num_more, config, record.origin)
  return questions


def evaluate_budgets(decoder: decode_lib.Decoder, records, blocks: tuple, say=None
                     ) -> dict[str, float]:
  """The final answer's accuracy with each number of blocks K of `blocks`.

  The trunk is causal, so readout k of one decode is the final one with K = k.

  Returns: K -> accuracy.
  Raises: UserError where a question runs beyond a learned position table.
  """
  config, codec, most = decoder.network.config, decoder.network.codec, max(blocks)
  texts, _ = decoder.decode_texts(encode_questions(records, config, codec, most), most,
                                  get_answer_prefix(config, codec), blocks, say)
  correct = [[judge.is_right(judge.parse_answer(text, config), record.answer) for text in row]
             for record, row in zip(records, texts)]
  return dict(zip(map(str, blocks), np.mean(correct, axis=0).tolist()))


def evaluate_passes(decoder: decode_lib.Decoder, records, blocks: tuple, make_say=None
                    ) -> list[values.PassesResult]:
  """The final answer's accuracy with R = 1 to eval.budget_passes passes and each K of `blocks`."""
  return [values.PassesResult(num_passes=r, acc=acc) for r, acc in _score_variants(
      decoder, records, blocks, ('R', 'eval.num_passes', 'budget_passes'), make_say)]


def _encode_question(record, codec) -> list[int]:
  try:
    return codec.encode_question(record.question)
  except UserError as e:
    raise UserError(f'{record.origin}: {e}') from None


def check_splits(records) -> None:
  """Raises: UserError for fewer questions than `score_splits` can divide."""
  if len(records) < NUM_SPLITS:
    raise UserError(f"eval.checkpoint='splits': {len(records)} questions are too few to choose by; "
                    'take eval.num_examples=0, or best')


def evaluate_tokens(decoder: decode_lib.Decoder, records, blocks: tuple, make_say=None
                    ) -> list[values.TokensResult]:
  """The final answer's accuracy with M = 1 to eval.budget_tokens and each K of `blocks`.

  Raises: UserError where a question runs beyond a learned position table.
  """
  return [values.TokensResult(block_tokens=m, acc=acc) for m, acc in _score_variants(
      decoder, records, blocks, ('M', 'layout.block_tokens', 'budget_tokens'), make_say)]


def _score_variants(decoder, records, blocks, varied, make_say):
  """(value of a key, accuracy by K) for each value from 1 on, of the same network.

  Args:
    varied: the letter that is told, the key, and the key of `eval` with the largest value.
  """
  name, key, most = varied
  for value in range(1, getattr(decoder.network.config.eval, most) + 1):
    other = decode_lib.Decoder(set_key(decoder.network, key, value))
    yield value, evaluate_budgets(other, records, blocks,
                                  make_say and make_say(f'with {name} = {value}'))


def set_key(network: Network, key: str, value) -> Network:
  """The same network, which answers with another value of a key, e.g. eval.num_passes."""
  return dataclasses.replace(network, config=replace_keys(network.config, {key: value}))


def find_beyond(records, config: Config, codec, blocks, num_positions: int) -> list[int]:
  """Those of `blocks` after which some question is read at a position that training did not reach.

  Args:
    num_positions: those that it reached.
  """
  longest = max(len(codec.encode_question(r.question)) for r in records) + len(
      get_answer_prefix(config, codec))
  size = layout_lib.get_block_size(config.layout)
  return [k for k in blocks if longest + size * k > num_positions]


def evaluate_samples(decoder: decode_lib.Decoder, records, num_blocks: int, say=None
                     ) -> tuple[dict, list[int]]:
  """pass@k of the final block: is any of k answers right that are drawn at eval.temperature?

  Returns: (fields of a result, right answers of each question, of eval.num_samples).
  """
  config, codec = decoder.network.config, decoder.network.codec
  count, prefix = config.eval.num_samples, get_answer_prefix(config, codec)
  questions = encode_questions(records, config, codec, num_blocks)
  num_right = [0] * len(records)
  for sample in range(count):
    before = sample * len(records)
    texts, _ = decoder.decode_texts(
        questions, num_blocks, prefix, get_blocks(num_blocks)[-1:],
        say and (lambda done, before=before: say(before + done)), sample)
    for i, (record, row) in enumerate(zip(records, texts)):
      num_right[i] += judge.is_right(judge.parse_answer(row[0], config), record.answer)
  ks = [2**i for i in range(count.bit_length())]
  return dict(pass_at={str(k): float(np.mean([compute_pass_at(c, count, k) for c in num_right]))
                       for k in ks},
              num_samples=count, temperature=config.eval.temperature), num_right


def compute_pass_at(num_right: int, count: int, k: int) -> float:
  """The chance that k of `count` samples, of which so many are right, hold a right one.

  The unbiased estimate of Chen et al., arXiv 2107.03374, equation 1.
  """
  return 1 - math.comb(count - num_right, k) / math.comb(count, k)


def group_gsm_hard(predictions, test_questions) -> dict:
  """GSM-Hard's accuracy by kind of answer, and without what was not made harder.

  Numbers were replaced there without regard to sense, so that answers can be negative or
  fractional, which no GSM8K answer teaches; and some questions are GSM8K's word for word.

  Args:
    test_questions: GSM8K's own.
  Returns: num_<kind>, and <kind>_acc where there is one, for integer (0 or more),
    negative (whole or not), non_integer (above 0) and changed (of any kind).
  """
  known = {' '.join(q.split()) for q in test_questions}
  groups = {'integer': [], 'negative': [], 'non_integer': [], 'changed': []}
  for p in predictions:
    answer = judge.canonicalize(p.answer)
    kind = ('negative' if answer < 0 else
            'integer' if answer == answer.to_integral_value() else 'non_integer')
    groups[kind].append(p.correct)
    if ' '.join(p.question.split()) not in known:
      groups['changed'].append(p.correct)
  return {f'num_{kind}': len(correct) for kind, correct in groups.items()} | {
      f'{kind}_acc': sum(correct) / len(correct) for kind, correct in groups.items() if correct}


def group_by_steps(predictions, records) -> dict:
  """Accuracy by how many steps lead to the answer: a mean hides that some were never learned.

  Returns: fields of a result, by T: accuracy and questions; {} where all have as many.
  """
  groups = stats.group(sorted((len(record.steps), p.correct) for p, record in zip(
      predictions, records, strict=True)))
  if len(groups) < 2:
    return {}
  return dict(steps_acc={str(t): sum(correct) / len(correct) for t, correct in groups.items()},
              num_by_steps={str(t): len(correct) for t, correct in groups.items()})


def score_splits(correct_cnr, seed: int) -> values.EvalResult:
  """The paper's choice of a checkpoint (arXiv 2605.30343): by the questions it is judged on.

  In each of 16 splits a random fifth of the questions chooses the checkpoint whose final answer is
  right most often (of equals the latest), and the others score it.

  Args:
    correct_cnr: bool[c, n, r], whether checkpoint c answers question n right after each block.
  Returns: means over splits, `final_acc_stderr` as over all questions once, `splits_stderr` with
    the n - 1 of a sample (small, for the splits share questions), and `chosen`, c -> how many
    chose it.
  """
  count = correct_cnr.shape[1]
  num_choosing = round(SPLIT_SHARE * count)
  scored_ir, chosen = [], []
  for split in range(NUM_SPLITS):
    order = order_lib.permute(count, seed, split)
    choosing, scoring = order[:num_choosing], order[num_choosing:]
    right_c = correct_cnr[:, choosing, -1].sum(1)
    chosen.append(len(right_c) - 1 - int(right_c[::-1].argmax()))
    scored_ir.append(correct_cnr[chosen[-1], scoring].mean(0))
  scored_ir = np.asarray(scored_ir)
  final = float(scored_ir[:, -1].mean())
  return values.EvalResult(
      final_acc=final, final_acc_stderr=stats.compute_stderr(final, count),
      splits_stderr=float(scored_ir[:, -1].std(ddof=1) / NUM_SPLITS**0.5),
      block_acc=scored_ir.mean(0).tolist(), num_choosing=num_choosing, num_splits=NUM_SPLITS,
      chosen={str(c): chosen.count(c) for c in sorted(set(chosen))})


def check_steps(records, config: Config, codec) -> None:
  """Asks whether the steps of every record can be asked for, as `evaluate_steps` does.

  Raises: UserError where one runs beyond a learned position table.
  """
  for record in records:
    if num_blocks := max(len(record.steps) - 1, 0):
      encode_questions([record], config, codec, num_blocks, codec.template.step_prefix,
                       _count_longest(record, codec))


def _count_longest(record, codec) -> int:
  """Tokens of a record's longest step, and its eos."""
  return 1 + max(map(len, codec.encode(record).steps))


def evaluate_steps(decoder: decode_lib.Decoder, records, say=None) -> dict:
  """Stage 1's own task: readout t against r_{t+1}, with as many blocks as the gold steps.

  The trunk is causal, so block t reads the same whether blocks follow it or not: one decode serves
  records of several n. Those of many more steps, or longer ones, are decoded apart: room for them
  in every row would be more than a device has.

  Returns: fields of a result: shares of right steps, of all and by block; exact text. Block t
    counts records with t < n: the last block's readout is the answer.
  Raises: UserError where a record's steps run beyond a learned position table.
  """
  config, codec = decoder.network.config, decoder.network.codec
  check_steps(records, config, codec)
  # Steps have no limit of their own; those of answers and of K would cut them.
  asked, usual, done = config.eval.max_new_tokens, config.layout.num_blocks, 0
  measured = [(len(record.steps) - 1, max(asked, _count_longest(record, codec)), record)
              for record in records if len(record.steps) > 1]
  groups = stats.group((
      (num_blocks.bit_length() * (num_blocks > usual), longest.bit_length() * (longest > asked)),
      (longest, record)) for num_blocks, longest, record in measured)
  if not groups:
    return {}
  right, count = np.zeros((2, max(len(record.steps) for record in records) - 1))
  for _, group in sorted(groups.items()):
    longest, num_blocks = max(n for n, _ in group), max(len(r.steps) for _, r in group) - 1
    one = decode_lib.Decoder(decoder.network, longest) if longest > asked else decoder
    texts, _ = one.decode_texts(
        [codec.encode_question(r.question) for _, r in group], num_blocks,
        codec.template.step_prefix, tuple(range(1, num_blocks + 1)),
        say and (lambda count, before=done: say(before + count)))
    done += len(group)
    for (_, record), row in zip(group, texts):
      for t in range(1, len(record.steps)):
        right[t - 1] += row[t - 1] == record.steps[t]
        count[t - 1] += 1
  return dict(step_acc_gold_count=float(right.sum() / count.sum()),
              step_acc_by_block=(right / np.maximum(count, 1)).tolist())
