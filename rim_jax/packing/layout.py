"""Which tokens stand in the sequence: what layouts are made of, and how large they are.

A method's layout turns an encoded record into an `Example`: a trunk (question and
blocks) and its readouts. rows.py writes examples into rows.

Source: arXiv 2605.30343; docs/concepts.md, "What one training example holds".
"""

from collections.abc import Sequence
import dataclasses

from rim_jax.config import LayoutConfig
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib

LAYOUT_VERSION = 1
NUM_MEMORY_ROWS = 3  # <b>, <m>, </b>, in this order


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A record as ids. `question` has its bos and separator."""
  question: Sequence[int]
  steps: tuple[Sequence[int], ...]
  answer: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Template:
  """The ids around steps and answers."""
  bos: Sequence[int]
  question_prefix: Sequence[int]
  separator: Sequence[int]
  step_prefix: Sequence[int]
  step_separator: Sequence[int]
  answer_prefix: Sequence[int]
  answer_suffix: Sequence[int]
  eos: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Readout:
  """`[prefix | target]` after block `block`; the target, eos included, is supervised.

  After block -1 it sees nothing but itself: it begins at position 0, and needs a prefix or latents.
  The states that predict target `mark` can be held to those that predict another readout's mark.
  """
  block: int
  kind: int
  prefix: Sequence[int]
  target: Sequence[int]
  mark: int = 0  # of an answer its first token
  pair: int = 0  # the ordinal of that other readout, from 1 on; 0 for none
  num_latents: int = 0  # `<m>` tokens before the prefix, whose inputs its method makes

  @property
  def num_tokens(self):  # the last target is never an input
    return self.num_latents + len(self.prefix) + len(self.target) - 1


@dataclasses.dataclass(frozen=True)
class Example:
  """One record under a method's layout."""
  question: Sequence[int]
  num_blocks: int
  num_steps: int  # n = max(T, 1)
  readouts: tuple[Readout, ...]
  # What tokens of the trunk predict beside: (index in the trunk, id).
  parallel: tuple[tuple[int, int], ...] = ()


def make_template(tokenizer, config: LayoutConfig) -> Template:
  """Raises: UserError naming the key whose text the tokenizer does not know."""
  def encode(key):
    try:
      return tokenizer.encode(
          getattr(config, key), allow_special=True, is_first=key == 'question_prefix')
    except UserError as e:
      raise UserError(f'layout.{key}: {e}') from None
  return Template(
      bos=[] if tokenizer.bos_id is None else [tokenizer.bos_id], eos=[tokenizer.eos_id],
      **{key: encode(key) for key in (
          'question_prefix', 'separator', 'step_prefix', 'step_separator', 'answer_prefix',
          'answer_suffix')})


def wrap_question(ids: Sequence[int], template: Template) -> list[int]:
  """A question's ids with all that stands around them in every trunk."""
  return [*template.bos, *template.question_prefix, *ids, *template.separator]


def count_steps(encoded: Encoded) -> int:
  """n of an example: T, and 1 where there is no step."""
  return max(len(encoded.steps), 1)


def read_step(encoded: Encoded, template: Template, block: int, i: int) -> Readout:
  """Step i, from 0 on, read after a block."""
  return Readout(block, batch_lib.SLOT_STEP, template.step_prefix,
                 [*encoded.steps[i], *template.eos])


def read_answer(encoded: Encoded, template: Template, block: int) -> Readout:
  """The answer, read after a block."""
  return Readout(block, batch_lib.SLOT_ANSWER, template.answer_prefix,
                 [*encoded.answer, *template.answer_suffix, *template.eos])


def read_chain(encoded: Encoded, template: Template, block: int, skipped: int = 0,
               removed: int = 0) -> Readout:
  """Steps and the answer as one readout, nothing of it given.

  Args:
    skipped: steps that are left out, the first ones.
    removed: tokens of the others, and of what separates them, that are left out.
  """
  chain = [i for step in encoded.steps[skipped:]
           for i in (*step, *template.step_separator)][removed:]
  before = [*chain, *template.answer_prefix]
  return Readout(block, batch_lib.SLOT_ANSWER, (), [
      *before, *encoded.answer, *template.answer_suffix, *template.eos], mark=len(before))


def get_block_size(config: LayoutConfig) -> int:
  """Tokens of one block: <b>, M times <m>, </b>."""
  return config.block_tokens + 2


def make_trunk(question, num_blocks: int, config: LayoutConfig, memory_start: int) -> list[int]:
  """The ids of `[x | m_1 | ... | m_K]`; those of memory begin at `memory_start`."""
  begin, memory, end = range(memory_start, memory_start + NUM_MEMORY_ROWS)
  return [*question, *[begin, *[memory] * config.block_tokens, end] * num_blocks]


def _find_start(num_question: int, block: int, config: LayoutConfig) -> int:
  """The position at which a readout of a block begins: right after that block."""
  return num_question + get_block_size(config) * block if block >= 0 else 0


def count_example(example: Example, config: LayoutConfig) -> tuple[int, int, int]:
  """(tokens, slots, positions) that an example takes; positions = the largest plus 1."""
  num_question = len(example.question)
  trunk = _find_start(num_question, example.num_blocks, config)
  tokens = trunk + sum(r.num_tokens for r in example.readouts)
  slots = sum(len(r.target) for r in example.readouts) + len(example.parallel)
  last = max((_find_start(num_question, r.block, config) + r.num_tokens
              for r in example.readouts), default=0)
  return tokens, slots, max(trunk, last)
