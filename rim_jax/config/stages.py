"""The runs that a config stands for: a curriculum is several, one after the other.

A stage is a run of its own: fresh optimizer, on the parameters of the one before. Which stages a
method has stands with its facts. Knows the config's form and nothing else.
"""

import dataclasses
import math

from rim_jax.config.schema import CheckpointConfig, Config, TrainConfig


def make_stages(config: Config) -> list[tuple[str, Config]]:
  """(name, config) of each, in order: ('', itself), or the stages of a curriculum."""
  make = config.facts.make_stages
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
