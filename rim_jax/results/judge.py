"""When an answer is right: what was decoded, cut, judged by the one rule, and counted.

Answers that were judged under another version of the rule are judged again from what was decoded
(`judge_again`), so that numbers which stand together were made alike.
"""

import dataclasses

from rim_jax.config import Config
from rim_jax.results import stats, values
from rim_jax.results.rule import (
  ANSWER_RULE,
  RULE_VERSION,
  answers_match,
  canonicalize,
  cut_answer,
  is_right,
)

__all__ = ['ANSWER_RULE', 'RULE_VERSION', 'answers_match', 'canonicalize', 'choose_majority',
           'get_marker', 'is_right', 'judge_again', 'make_prediction', 'parse_answer', 'summarize']


def get_marker(config: Config) -> str:
  """What an answer stands behind: nothing where its prefix was forced; else that, or a step."""
  layout = config.layout
  return (layout.answer_prefix or layout.step_separator) if config.facts.learns_steps else ''


def parse_answer(text: str, config: Config) -> str:
  """The answer in a decoded readout; '' where it is empty or lacks the suffix that closes it.

  An answer readout begins after its forced prefix. What a method that writes steps has written
  holds its answer after the last prefix, or, without one, after the last step.
  """
  return cut_answer(text, get_marker(config), config.layout.answer_suffix)


def choose_majority(answers) -> str:
  """The answer most blocks give; of equals, the one given by the latest block.

  What is unparsed has no vote while anything else is there.
  """
  groups = []  # [an answer, its votes, its latest block]
  for i, answer in enumerate(answers):
    for group in groups:
      if group[0] == answer or (answer and group[0] and answers_match(group[0], answer)):
        group[1:] = [group[1] + 1, i]
        break
    else:
      groups.append([answer, 1, i])
  return max(groups, key=lambda g: (bool(g[0]), *g[1:]))[0]


def make_prediction(record, texts, config: Config, answers=None) -> values.Prediction:
  """What was decoded for a record after each block, judged.

  Args:
    record: what has `origin`, `question` and `answer`.
    answers: already parsed, where the texts are not known; then `texts` is of the last alone.
  """
  parsed = answers or [parse_answer(text, config) for text in texts]
  right = [is_right(answer, record.answer) for answer in parsed]
  return values.Prediction(
      origin=record.origin, question=record.question, answer=record.answer,
      prediction=parsed[-1], correct=right[-1], block_predictions=parsed, block_correct=right,
      block_texts=None if answers else list(texts), text=texts[-1],
      majority_correct=is_right(choose_majority(parsed), record.answer))


def summarize(predictions) -> dict:
  """The fields of a result that follow from what was judged."""
  count, width = len(predictions), len(predictions[0].block_correct)
  block_acc = [sum(p.block_correct[k] for p in predictions) / count for k in range(width)]
  final = block_acc[-1]
  return dict(
      n=count, final_acc=final, final_acc_stderr=stats.compute_stderr(final, count),
      block_acc=block_acc,
      any_block_acc=sum(any(p.block_correct) for p in predictions) / count,  # looks at the answer
      majority_acc=sum(p.majority_correct for p in predictions) / count,
      num_unparsed=sum(not p.prediction for p in predictions),  # final answers
      answer_rule=ANSWER_RULE, rule_version=RULE_VERSION)


def judge_again(prediction: values.Prediction, config: Config) -> values.Prediction | None:
  """A prediction that was judged under another version of the rule; None where it cannot be.

  Version 1 kept what was decoded for the last block alone, and of the blocks before it what was
  cut at the first suffix: those answers are taken as they are.
  """
  if prediction.text is None:
    return None
  if prediction.block_texts:
    again = make_prediction(prediction, prediction.block_texts, config)
  else:
    before = (prediction.block_predictions or [''])[:-1]
    again = make_prediction(prediction, [prediction.text], config,
                            [*before, parse_answer(prediction.text, config)])
  return dataclasses.replace(again, num_right_samples=prediction.num_right_samples,
                             more=prediction.more)
