"""The chain task: chains of arithmetic modulo a number, whose every step is one digit or a few."""

import dataclasses
import random

from rim_jax.config import ChainConfig
from rim_jax.data.records import Record


def draw_questions(chain: ChainConfig, num_questions: int) -> list[tuple[int, int]]:
  """Distinct questions (T, number) in random order, number < how many there are of T steps.

  Each length gets an equal share: drawn from the whole space, nearly all questions would
  have max_steps. But no length gives more than 80 % of its questions, because a model
  could look up the answers of a length that it has seen whole; longer ones make up for it.
  """
  space = chain.num_existing
  # Python's generator: its integers have no upper limit, and numpy does not promise to
  # keep the sequence of its own from version to version.
  rng = random.Random(chain.seed)
  questions = []
  for num_lengths_left, t in zip(range(len(space), 0, -1), space):
    share = min((num_questions - len(questions)) // num_lengths_left, space[t] * 4 // 5)
    drawn = {}  # a dictionary, for its order
    while len(drawn) < share:
      drawn[t, rng.randrange(space[t])] = None
    questions += drawn
  rng.shuffle(questions)
  return questions


def spoil(records: list[Record], chain: ChainConfig) -> list[Record]:
  """The records, of which a share `chain.wrong_frac` has other digits as steps than are right.

  The last step is the answer, and stays. Which records, and which digits, the seed decides.
  """
  rng = random.Random(f'{chain.seed} wrong')
  wrong = set(rng.sample(range(len(records)), round(chain.wrong_frac * len(records))))

  def draw(step):
    return str((int(step) + rng.randrange(1, chain.modulus)) % chain.modulus)
  return [dataclasses.replace(record, steps=(*map(draw, record.steps[:-1]), record.steps[-1]))
          if i in wrong else record for i, record in enumerate(records)]


def make_record(chain, num_steps, number, origin):
  """The question with this number: its operands and operators are the number's digits."""
  number, result = divmod(number, chain.modulus)
  question, steps = str(result), []
  for _ in range(num_steps):
    number, operator = divmod(number, len(chain.operators))
    number, operand = divmod(number, chain.modulus)
    operator = chain.operators[operator]
    result = {'+': result + operand, '-': result - operand, '*': result * operand}[operator]
    result %= chain.modulus
    question += f'{operator}{operand}'
    steps.append(str(result))
  return Record(question, tuple(steps), steps[-1], origin)
