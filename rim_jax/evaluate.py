"""Accuracy of what is decoded: per block, final, any block, majority; and time to first token."""

import decimal
import re
import statistics
import time

import jax
import numpy as np

from rim_jax import decode as decode_lib
from rim_jax import layout as layout_lib
from rim_jax import rules
from rim_jax import sharding
from rim_jax.config import Config

RESULTS_VERSION = 1
TOLERANCE = decimal.Decimal('0.001')
ANSWER_RULE = ('answers are compared as numbers after removing $, %, thousands commas, a final '
               'dot and spaces: whole numbers exactly, others within 0.001; what is not a number, '
               'as text')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)')


def canonicalize(text: str):
  """An answer as Decimal where it is a number, else as text with single spaces."""
  bare = re.sub(r'[\s,$%]', '', text).removesuffix('.')
  if _NUMBER.fullmatch(bare):
    return decimal.Decimal(bare)
  return ' '.join(text.split())


def answers_match(a: str, b: str) -> bool:
  """Whether two answers are the same under ANSWER_RULE."""
  a, b = canonicalize(a), canonicalize(b)
  if isinstance(a, decimal.Decimal) and isinstance(b, decimal.Decimal):
    whole = a == a.to_integral_value() and b == b.to_integral_value()
    return a == b if whole else abs(a - b) <= TOLERANCE
  return type(a) is type(b) and a == b


def parse_answer(text: str, config: Config) -> str:
  """The answer in a decoded readout: what stands between the answer's prefix and suffix.

  An answer readout begins after its forced prefix. What a method that writes steps has written
  holds its answer after the last prefix, or, without one, after the last step.
  """
  layout = config.layout
  if config.method in rules.WRITTEN:
    marker = layout.answer_prefix or layout.step_separator
    text = text.rpartition(marker)[2]
  return text.split(layout.answer_suffix)[0] if layout.answer_suffix else text


def choose_majority(answers) -> str:
  """The answer most blocks give; of equals, the one given by the latest block."""
  groups = []  # [an answer, its votes, its latest block]
  for i, answer in enumerate(answers):
    for group in groups:
      if answers_match(group[0], answer):
        group[1:] = [group[1] + 1, i]
        break
    else:
      groups.append([answer, 1, i])
  return max(groups, key=lambda g: g[1:])[0]


def get_blocks(num_blocks: int) -> tuple:
  """The blocks that are read: 1..K, or the question alone where K = 0."""
  return tuple(range(1, num_blocks + 1)) or (0,)


def get_answer_prefix(config: Config, codec):
  """What is forced before an answer; a written chain of thought starts freely.

  iCoT is judged once its chain is gone, so by direct answering's own program.
  """
  return () if config.writes_steps else codec.template.answer_prefix


def evaluate(decoder: decode_lib.Decoder, params, frozen, records, config: Config, codec,
             num_blocks: int, say=None, prefix=None) -> tuple[dict, list[dict]]:
  """Decodes every record's answer after each of K blocks.

  Args:
    prefix: ids that are forced first; the method's own by default.
  Returns: (results, predictions): accuracies in [0, 1], and one dictionary a record.
  Raises: UserError where a question runs beyond a learned position table.
  """
  blocks = get_blocks(num_blocks)
  prefix = get_answer_prefix(config, codec) if prefix is None else prefix
  questions = [layout_lib.encode_question(r.question, codec.tokenizer, codec.template)
               for r in records]
  for record, question in zip(records, questions):
    decode_lib.check_positions(len(question), num_blocks,
                               len(prefix) + config.eval.max_new_tokens - 1, config,
                               record.origin)
  texts, ended = decoder.decode_texts(params, frozen, questions, num_blocks, prefix, blocks, say)
  predictions = []
  for record, row in zip(records, texts):
    answers = [parse_answer(text, config) for text in row]
    correct = [answers_match(a, record.answer) for a in answers]
    predictions.append({
        'origin': record.origin, 'question': record.question, 'answer': record.answer,
        'prediction': answers[-1], 'correct': correct[-1], 'block_predictions': answers,
        'block_correct': correct, 'text': row[-1],
        'majority_correct': answers_match(choose_majority(answers), record.answer)})
  correct = np.asarray([p['block_correct'] for p in predictions])
  count = len(predictions)
  final = float(correct[:, -1].mean())
  return {
      'n': count, 'num_blocks': num_blocks,
      'final_acc': final,
      'final_acc_stderr': (final * (1 - final) / count) ** 0.5,
      'block_acc': correct.mean(0).tolist(),
      'any_block_acc': float(correct.any(1).mean()),  # an upper bound: it looks at the answer
      'majority_acc': float(np.mean([p['majority_correct'] for p in predictions])),
      'num_unfinished': int((~ended[:, -1]).sum()),  # final readouts cut off at max_new_tokens
      'answer_rule': ANSWER_RULE,
  }, predictions


def evaluate_steps(decoder: decode_lib.Decoder, params, frozen, records, config: Config, codec
                   ) -> dict:
  """Stage 1's own task: readout t against r_{t+1}, with as many blocks as the gold steps.

  The trunk is causal, so block t reads the same whether blocks follow it or not:
  one decode with the largest n serves every record.

  Returns: {'step_acc_gold_count': share of right steps, 'step_acc_by_block': [...]}; exact
    text. Block t counts records with t < n: the last block's readout is the answer.
  """
  questions = [layout_lib.encode_question(r.question, codec.tokenizer, codec.template)
               for r in records]
  most = max(len(r.steps) for r in records)
  if most < 2:
    return {}
  blocks = tuple(range(1, most))
  prefix = codec.template.step_prefix
  for record, question in zip(records, questions):
    decode_lib.check_positions(len(question), most - 1,
                               len(prefix) + config.eval.max_new_tokens - 1, config, record.origin)
  texts, _ = decoder.decode_texts(params, frozen, questions, most - 1, prefix, blocks)
  right, count = np.zeros((2, most - 1))
  for record, row in zip(records, texts):
    for t in range(1, len(record.steps)):
      right[t - 1] += row[t - 1] == record.steps[t]
      count[t - 1] += 1
  return {'step_acc_gold_count': float(right.sum() / count.sum()),
          'step_acc_by_block': (right / np.maximum(count, 1)).tolist()}


def measure_ttft(graphdef, params, frozen, records, config: Config, codec, mesh, num_blocks: int,
                 num_runs: int) -> dict:
  """Time to the first answer token of one question, warm, batch 1: the median over runs.

  One readout, the last block's: prefill, forced prefix, one token.
  Units: milliseconds.
  """
  decoder = decode_lib.Decoder(graphdef, config, codec, mesh, max_new_tokens=1)
  blocks, prefix = get_blocks(num_blocks)[-1:], get_answer_prefix(config, codec)
  question = layout_lib.encode_question(records[0].question, codec.tokenizer, codec.template)
  shards = sharding.count_shards(sharding.BATCH, mesh)
  trunks = decoder.place([question], num_blocks, shards)
  times = []
  for _ in range(num_runs + 2):  # the first compiles, the second warms
    start = time.perf_counter()
    jax.block_until_ready(decoder.run(params, frozen, trunks, prefix, blocks))
    times.append(1000 * (time.perf_counter() - start))
  device = jax.devices()[0]
  return {'ttft_ms': round(statistics.median(times[2:]), 3),
          'ttft_conditions': f'{device.device_kind}, {jax.device_count()} device(s), '
                             f'{config.model.compute_dtype}, batch {shards}, '
                             f'{trunks.tokens.shape[1]} trunk tokens, {len(prefix)} prefix tokens, '
                             f'median of {num_runs} warm runs'}


