"""The runs that a config stands for: a curriculum is several, one after the other.

A stage is a run of its own: fresh optimizer, on the parameters of the one before. Knows the
config's form and nothing else.
"""

import dataclasses
import math

from rim_jax.config.schema import CheckpointConfig, Config, TrainConfig

# How a run says that it ended where it was to; a sweep's driver reads it.
NO_MORE = 'checkpoint.stop_frac asks for no more'


def make_stages(config: Config) -> list[tuple[str, Config]]:
  """(name, config) of each, in order: ('', itself), or the stages of rim or coconut."""
  make = {'rim': _make_rim_stages, 'coconut': _make_coconut_stages}.get(config.method)
  return _divide_stop(config, make(config)) if make else [('', config)]


def get_last(config: Config, folder):
  """(config, folder) of the stage whose answers count; `folder`: the path of the whole run."""
  name, stage = make_stages(config)[-1]
  return stage, folder / name if name else folder


def find_stop(num_steps: int, config: CheckpointConfig) -> int:
  """The step at which a run of `num_steps` ends for now: its last, or one that is evaluated anyway.

  0 where it does not begin.
  """
  if not config.stop_frac:
    return 0
  saves = math.ceil(round(config.stop_frac * num_steps / config.every_steps, 6))  # 3.0000001 are 3
  return min(max(saves, 1) * config.every_steps, num_steps)


def _divide_stop(whole, stages):
  """`checkpoint.stop_frac` of the whole as each stage's own: 1, a share, or 0 beyond it."""
  if whole.checkpoint.stop_frac == 1:  # also where shares were rounded to whole examples
    return stages
  left, divided = whole.checkpoint.stop_frac * _get_budget(whole.train), []
  for name, stage in stages:
    budget = _get_budget(stage.train)
    share = min(max(round(left / budget, 9), 0.0), 1.0)
    divided.append((name, dataclasses.replace(stage, checkpoint=dataclasses.replace(
        stage.checkpoint, stop_frac=share))))
    left -= budget
  return divided


def _get_budget(train: TrainConfig) -> float:
  return train.num_examples or train.num_epochs


def _take_share(train: TrainConfig, share: float, first: bool) -> TrainConfig:
  """A stage's budget; only the first begins with the run that is named."""
  return dataclasses.replace(train, num_examples=round(train.num_examples * share),
                             num_epochs=train.num_epochs * share,
                             init_from=train.init_from if first else '')


def _make_coconut_stages(config):
  """Stage 0, the numbered ones, and the last, which keeps the thoughts and writes no step.

  Source: arXiv 2412.06769; thoughts are as many for every record (its `pad_latent_to_max`).
  """
  coconut, replace, stages = config.coconut, dataclasses.replace, []
  for k in range(coconut.num_stages + 2):
    last = k > coconut.num_stages
    share = 1 - k * coconut.stage_frac if last else coconut.stage_frac
    thoughts = min(k, coconut.num_stages) * coconut.thoughts_per_step
    layout = replace(config.layout, num_blocks=int(thoughts > 0), skip_steps=-1 if last else k,
                     block_tokens=thoughts or config.layout.block_tokens)
    stages.append((f'stage{k}', replace(config, method='coconut_stage', layout=layout,
                                        train=_take_share(config.train, share, k == 0))))
  return stages


def _make_rim_stages(config):
  """In stage 2 a lower learning rate and a higher dropout (docs/concepts.md)."""
  curriculum, replace = config.curriculum, dataclasses.replace
  stage1 = replace(config, method='rim_stage1',
                   train=_take_share(config.train, curriculum.stage1_frac, True))
  stage2 = replace(
      config, method='rim_stage2',
      train=_take_share(config.train, 1 - curriculum.stage1_frac, False),
      model=replace(config.model, dropout=curriculum.stage2_dropout, lora=replace(
          config.model.lora, dropout=curriculum.stage2_lora_dropout)),
      optim=replace(config.optim, learning_rate=(
          config.optim.learning_rate * curriculum.stage2_learning_rate_scale)))
  return [('stage1', stage1), ('stage2', stage2)]
