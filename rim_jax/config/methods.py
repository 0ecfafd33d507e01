"""One row of facts a method: what others ask of it, so that nobody asks for its name.

Knows no JAX and no key's limits. A method has two places: its module in `rim_jax/methods/` and its
row here, with its rules and, for a curriculum, its stages: both are needed before JAX is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING

from rim_jax.errors import UserError, list_broken

if TYPE_CHECKING:
  from rim_jax.config.schema import Config, TrainConfig

Stages = list[tuple[str, 'Config']]  # (name, config) of each, in order


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is true of every run of a method."""
  name: str
  label: str  # what it is, in a line of a report
  paper_name: str = ''  # the column of the paper's tables that it belongs to
  # ---- Its layout ----
  has_blocks: bool = True  # something stands between the question and the answer
  feeds_back: bool = False  # hidden states stand in for inputs, which plain engines cannot run
  has_thoughts: bool = False  # in its one block, as many for every record: no blocks to compare
  needs_blocks: bool = False  # layout.num_blocks of them for every record
  blocks_are_steps: bool = False  # one block a step, whose readout says the next one
  learns_steps: bool = False  # written steps are among its targets, at least at first
  writes_steps: bool = False  # and are decoded before the answer, once the run is done
  skips_steps: bool = False  # those alone that layout.skip_steps leaves
  loop_rule: str = ''  # what later passes over its blocks are fed, loop.rule; '': one pass alone
  # ---- Its runs ----
  make_stages: Callable[[Config], Stages] | None = None  # of a curriculum
  stage: str = ''  # its folder's name as a stage of a curriculum
  after: str = ''  # the stage whose run it begins with, beside its own
  # (what is done, what it should give if the memory does the work): its run stands beside the
  # controls of another, at --config.controls.NAME_dir.
  control: tuple[str, str] | tuple[()] = ()
  find_problems: Callable[[Config], list[str]] = lambda config: []  # a line for each

  @property
  def has_memory(self) -> bool:
    """Whether there are memory blocks, more or fewer of which can be read, or others put there."""
    return self.has_blocks and not self.has_thoughts

  def reads_rows(self, num_blocks: int) -> bool:
    """Whether blocks stand in the rows; a curriculum may begin without, and RiM lays its own."""
    return self.has_blocks and (self.blocks_are_steps or num_blocks > 0)


# ---- RiM ----


def _make_rim_stages(config: Config) -> Stages:
  """In stage 2 a lower learning rate and a higher dropout (docs/concepts.md)."""
  curriculum, replace = config.curriculum, dataclasses.replace
  stage1 = replace(config, method=RIM_STAGE1.name,
                   train=_take_share(config, curriculum.stage1_frac, 0))
  stage2 = replace(
      config, method=RIM_STAGE2.name,
      train=_take_share(config, 1 - curriculum.stage1_frac, curriculum.stage1_frac),
      model=replace(config.model, dropout=curriculum.stage2_dropout, lora=replace(
          config.model.lora, dropout=curriculum.stage2_lora_dropout)),
      optim=replace(config.optim, learning_rate=(
          config.optim.learning_rate * curriculum.stage2_learning_rate_scale)))
  return [(RIM_STAGE1.stage, stage1), (RIM_STAGE2.stage, stage2)]


def _take_share(config: Config, share: float, done: float) -> TrainConfig:
  """The budget of a stage after a share `done`; the first begins as the whole run does."""
  train = config.train
  skipped = done if config.curriculum.continue_data else 0.0
  return dataclasses.replace(
      train, num_examples=round(train.num_examples * share), num_epochs=train.num_epochs * share,
      skip_examples=train.skip_examples + round(train.num_examples * skipped),
      skip_epochs=train.skip_epochs + train.num_epochs * skipped,
      init_from='' if done else train.init_from)


def _make_numbered(config: Config, facts: Facts, frac: float, count: int, change) -> Stages:
  """`count` stages of one method, each a share `frac` of the budget, the last all that is left.

  Args:
    change: the number of a stage, from 0 on -> its fields beside method and budget.
  """
  return [(f'stage{k}', dataclasses.replace(
      config, method=facts.name,
      train=_take_share(config, frac if k < count - 1 else 1 - k * frac, k * frac), **change(k)))
          for k in range(count)]


RIM = Facts(
    'rim', 'memory blocks after the question: stage 1, then stage 2', 'RiM', needs_blocks=True,
    loop_rule='gate',
    make_stages=_make_rim_stages)
RIM_STAGE1 = Facts(
    'rim_stage1', 'memory blocks after the question, each trained to predict the next step',
    blocks_are_steps=True, loop_rule='gate', stage='stage1')
RIM_STAGE2 = Facts(
    'rim_stage2', 'memory blocks after the question, each trained to predict the answer', 'RiM',
    needs_blocks=True, loop_rule='gate', stage='stage2', after='stage1')
PAUSE = Facts(
    'pause', 'blocks after the question, trained on the answer only, with no stage 1 (a control)',
    needs_blocks=True, loop_rule='gate', control=(
        'another run: the same blocks, answers alone supervised, no stage 1',
        'chance: blocks alone are not enough; chain: 10'))

# ---- Without blocks ----

DIRECT = Facts(
    'direct', 'the answer right after the question', 'direct', has_blocks=False,
    control=('another run: the answer right after the question, trained on nothing else',
             'chance: the question alone is not enough; chain: 10'))
COT = Facts(
    'cot', 'the steps written out, then the answer (chain of thought)', 'CoT', has_blocks=False,
    learns_steps=True, writes_steps=True)
ICOT = Facts(
    'icot', 'trained on written steps that are taken away token by token; then the answer alone',
    has_blocks=False, learns_steps=True)

# ---- Coconut ----


def _make_coconut_stages(config: Config) -> Stages:
  """Stage 0, the numbered ones, and the last, which keeps the thoughts and writes no step.

  Source: arXiv 2412.06769; thoughts are as many for every record (its `pad_latent_to_max`).
  """
  coconut = config.coconut

  def change(k):
    thoughts = min(k, coconut.num_stages) * coconut.thoughts_per_step
    return {'layout': dataclasses.replace(
        config.layout, num_blocks=int(thoughts > 0), skip_steps=-1 if k > coconut.num_stages else k,
        block_tokens=thoughts or config.layout.block_tokens)}
  return _make_numbered(config, COCONUT_STAGE, coconut.stage_frac, coconut.num_stages + 2, change)


def _find_coconut_problems(config: Config) -> list[str]:
  method, num_blocks = config.method, config.eval.num_blocks
  return list_broken(
      (config.layout.bidirectional_blocks,
       f'layout.bidirectional_blocks=True: the thoughts of {method} come one after the other; set '
       'it to False'),
      (num_blocks > 0,
       f'eval.num_blocks={num_blocks}: {method} has the block that it was trained with, or with 0 '
       'none; use -1 or 0'))


def _find_thought_problems(config: Config) -> list[str]:
  num_blocks = config.layout.num_blocks
  return _find_coconut_problems(config) + list_broken((
      num_blocks > 1, f'layout.num_blocks={num_blocks}: {config.method} has one block, '
      'of layout.block_tokens thoughts, or none'))


COCONUT = Facts(
    'coconut', 'hidden states fed back as inputs in place of more and more written steps',
    'Coconut', feeds_back=True, has_thoughts=True, learns_steps=True,
    make_stages=_make_coconut_stages, find_problems=_find_coconut_problems)
COCONUT_STAGE = Facts(
    'coconut_stage', 'hidden states fed back as inputs, one by one, in place of written steps',
    feeds_back=True, has_thoughts=True, learns_steps=True, skips_steps=True,
    find_problems=_find_thought_problems)

CODI = Facts(
    'codi', 'hidden states fed back as inputs, one by one, and held to those after a written chain',
    feeds_back=True, has_thoughts=True, learns_steps=True, find_problems=_find_thought_problems)

# ---- Latents that are read together, several times ----

PCCOT = Facts(
    'pccot', 'thoughts found together in a few passes, and held to those after a written chain',
    has_thoughts=True, learns_steps=True, loop_rule='shift', find_problems=_find_thought_problems)


def _make_lotus_stages(config: Config) -> Stages:
  """Stage 0 writes the chain; stage k has latents for k steps, which it reads k + 1 times, or once.

  Source: arXiv 2606.31779, whose code ties the loops to the steps that are removed.
  """
  lotus, replace = config.lotus, dataclasses.replace

  def change(k):
    return {'loop': replace(config.loop, num_passes=1 if lotus.one_pass else k + 1),
            'layout': replace(
                config.layout, num_blocks=int(k > 0), skip_steps=k,
                block_tokens=k * lotus.latents_per_step or config.layout.block_tokens)}
  return _make_numbered(config, LOTUS_STAGE, lotus.stage_frac, lotus.num_stages + 1, change)


def _find_lotus_problems(config: Config) -> list[str]:
  frac, num_stages, passes = (
      config.lotus.stage_frac, config.lotus.num_stages, config.loop.num_passes)
  return _find_coconut_problems(config) + list_broken(
      (not 0 < frac * num_stages < 1,
       f'lotus.stage_frac={frac:g}: {num_stages} stages leave the last one nothing, or have none '
       f'themselves; set it between 0 and {1 / num_stages:.3g}'),
      (passes > 1, f'loop.num_passes={passes}: stage k of lotus takes k + 1 passes; use 1'))


def _find_lotus_stage_problems(config: Config) -> list[str]:
  layout = config.layout
  skipped, latents = layout.skip_steps, layout.block_tokens
  return _find_thought_problems(config) + list_broken(
      (skipped < 0, f'layout.skip_steps={skipped}: lotus_stage knows of each step that it skips; '
       'use 0 or more'),
      (layout.num_blocks and skipped >= 0 and (not skipped or latents % skipped),
       f'layout.block_tokens={latents} latents are not as many for each of layout.skip_steps='
       f'{skipped} steps; use a multiple, or layout.num_blocks=0'))


LOTUS = Facts(
    'lotus', 'latents read together several times, each predicting a token of a replaced step',
    has_thoughts=True, learns_steps=True, make_stages=_make_lotus_stages, skips_steps=True,
    loop_rule='add', find_problems=_find_lotus_problems)
LOTUS_STAGE = Facts(
    'lotus_stage', 'latents read together several times, each predicting a token of a replaced '
    'step', has_thoughts=True, learns_steps=True, skips_steps=True, loop_rule='add',
    find_problems=_find_lotus_stage_problems)

FACTS = {facts.name: facts for facts in (
    RIM, RIM_STAGE1, RIM_STAGE2, DIRECT, COT, PAUSE, ICOT, COCONUT, COCONUT_STAGE,
    CODI, PCCOT, LOTUS, LOTUS_STAGE)}
# Those whose runs stand beside another's controls, in their order there.
CONTROLS = tuple(facts for facts in FACTS.values() if facts.control)


def get_facts(name: str) -> Facts:
  """Raises: UserError for a method that this version does not have."""
  if name not in FACTS:
    raise UserError(f"method '{name}' is not one of {', '.join(FACTS)}; another version of rim_jax "
                    'has it')
  return FACTS[name]
