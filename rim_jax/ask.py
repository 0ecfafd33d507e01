"""A trained run in Python: loaded once, asked as often as you like.

  from rim_jax import ask
  run = ask.load_run('runs/rim')
  print(run.answer(['7+3+5+1+8'])[0].answer)
"""

from collections.abc import Sequence
import dataclasses
import functools

from etils import epath

from rim_jax import command_line
from rim_jax.config import Config
from rim_jax.config import stages as stages_lib
from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.evaluation import decode, scores
from rim_jax.model.network import Network
from rim_jax.results import judge
from rim_jax.runtime import card as card_lib
from rim_jax.task import Task, make_task
from rim_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a network says of one question."""
  question: str
  answer: str  # after the last block; '' where it gave none that ends
  block_answers: list[str]  # after each block that was asked, the last of them last
  block_texts: list[str]  # as decoded


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's network at the step of one checkpoint; it needs no data."""
  folder: epath.Path
  step: int
  network: Network

  @functools.cached_property
  def _decoder(self) -> decode.Decoder:  # it keeps what was compiled
    return decode.Decoder(self.network)

  @property
  def blocks(self) -> Sequence[int]:
    """After which blocks the answer is read."""
    return scores.get_blocks(self.network.config.eval_blocks)

  def answer(self, questions: Sequence[str]) -> list[Answer]:
    """Answers questions, greedily, as many at a time as `eval.batch_size` says.

    Raises: UserError for what is no text or blank, and for a question that cannot be encoded, or
      leaves no room for its answer.
    """
    if isinstance(questions, str):  # or each of its characters would be a question
      raise UserError('answer: takes a list of questions, not one text; write answer([question])')
    for i, question in enumerate(questions, 1):
      if not isinstance(question, str) or not question.strip():
        raise UserError(f'answer: question {i} is {question!r:.80}; give a text that is not blank')
    config, codec = self.network.config, self.network.codec
    texts, _ = self._decoder.decode_texts(
        encode(questions, config, codec), config.eval_blocks,
        scores.get_answer_prefix(config, codec), self.blocks)
    found = []
    for question, row in zip(questions, texts, strict=True):
      answers = [judge.parse_answer(text, config) for text in row]
      found.append(Answer(question, answers[-1], answers, list(row)))
    return found


def encode(questions: Sequence[str], config: Config, codec) -> list:
  """The ids of questions. Raises: UserError as `Run.answer` does."""
  return scores.encode_questions(
      [Record(q, (), '', f'question {i}') for i, q in enumerate(questions, 1)], config, codec,
      config.eval_blocks)


def open_run(config: Config, workdir, say, with_data: bool = True) -> tuple[Task, epath.Path]:
  """The task of a finished or half-finished run, checked against its card, and its directory."""
  card_lib.check_whole(config, workdir)
  config, folder = stages_lib.get_last(config, epath.Path(workdir))
  card = card_lib.load_card(folder)
  task = make_task(config, say, with_data)
  card_lib.check_card(card, task, folder, with_data)
  return task, folder


def load_task(task: Task, folder: epath.Path, say=lambda line: None) -> Run:
  """A run whose task is there, at the checkpoint of `eval.checkpoint`."""
  network, step = state_lib.load_network(task, folder, task.config.eval.checkpoint, say=say)
  return Run(folder, step, network)


def load_run(workdir, **keys) -> Run:
  """A run by its directory alone; of a curriculum its last stage.

  Args:
    keys: of `eval`, as the command line has them, with `__` for a point:
      `load_run('runs/rim', eval__checkpoint='last', eval__num_blocks=2)`.
  Raises: UserError where there is no such run, or a key would make another one of it.
  """
  config = command_line.parse([
      'ask', f'--workdir={workdir}', '--mode=generate',
      *(f'--config.{key.replace("__", ".")}={value}' for key, value in keys.items())]).config
  return load_task(*open_run(config, workdir, lambda line: None, with_data=False))
