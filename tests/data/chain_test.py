"""The chain task's presets: rows have room for what is drawn, and schedules fit its chains."""

import json
import math
import re

import numpy as np
import pytest

from configs import compare, presets, sim_cot
from rim_jax import config as config_lib
from rim_jax.config import stages as stages_lib
from rim_jax.data import datasets
from rim_jax.methods import icot
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from tests import support

CHAINS = ('chain', 'chain_harder')


def draw_examples(config):
  """A few test questions of a run's stage, as it lays them out."""
  codec = support.make_codec(config)
  records = datasets.load_dataset(config.data, say=lambda _: None).splits['test']
  return [codec.lay_out(codec.encode(records[i])) for i in range(20)]


@pytest.mark.parametrize('method', compare.METHODS)
@pytest.mark.parametrize('preset', CHAINS)
def test_a_row_has_room_for_an_example_and_an_answer_for_its_chain(preset, method):
  tree = presets.make(method, preset)
  tree.data.chain.num_train = 100
  filled = set()
  for _, config in stages_lib.make_stages(config_lib.parse_config(tree)):
    for example in draw_examples(config):
      filled.add(layout_lib.count_example(example, config.layout)[0])
      # A paired chain stands in training alone; what else is written must fit an answer.
      written = 0 if config.layout.paired_readout else len(example.readouts[-1].target)
      assert written <= config.eval.max_new_tokens
  assert max(filled) <= tree.layout.row_tokens
  # RiM's rows of stage 1, plain, looped or paired, are one example each, exactly.
  assert method not in ('rim', 'looped', 'rim_paired') or max(filled) == tree.layout.row_tokens


def test_codi_with_sim_cot_has_room_as_its_recipe_says():
  told = dict(re.findall(r'--config\.([\w.]+)=(\w+)', sim_cot.__doc__.partition('With CODI')[2]))
  tree = presets.make('codi', 'chain')
  tree.data.chain.num_train = 100
  tree.aux.update({'decoder': told['aux.decoder'], 'last_step': json.loads(
      told['aux.last_step'].lower())})
  config = config_lib.parse_config(tree)
  filled = {layout_lib.count_example(e, config.layout)[0] for e in draw_examples(config)}
  assert max(filled) == int(told['layout.row_tokens'])


@pytest.mark.parametrize('method', compare.METHODS)
@pytest.mark.parametrize('preset', CHAINS)
def test_no_state_is_asked_for_two_tokens(preset, method):
  """Readouts of one block that begin alike go on alike: what stands before a target tells it."""
  for _, config in stages_lib.make_stages(config_lib.parse_config(presets.make(method, preset))):
    for example in draw_examples(config):
      asked = {}
      for i, readout in enumerate(example.readouts):
        text = (*readout.prefix, *readout.target)
        source = i if readout.num_latents else ('block', readout.block)
        for at in range(len(readout.prefix), len(text)):
          asked.setdefault((source, text[:at]), set()).add(text[at])
      assert asked and all(len(tokens) == 1 for tokens in asked.values())


@pytest.mark.parametrize('preset', CHAINS)
def test_icot_holds_its_chain_for_a_quarter_and_has_none_for_another(preset):
  config = config_lib.parse_config(presets.make('icot', preset))
  chain = 2 * config.data.chain.max_steps  # a digit and a line break for each step
  count = config.data.chain.num_train
  epochs = config.train.num_examples / count
  levels = np.concatenate([icot.compute_levels(epoch, count, chain, config.icot)
                           for epoch in range(math.ceil(epochs))])[:round(epochs * count)]
  assert [0.2 < np.mean(levels == level) < 0.3 for level in (order.HELD, order.ALL)] == [True, True]
  assert set(levels) - {order.HELD, order.ALL} == set(range(chain))


@pytest.mark.parametrize('preset', CHAINS)
def test_coconut_has_a_thought_for_every_step_and_stages_of_equal_length(preset):
  config = config_lib.parse_config(presets.make('coconut', preset))
  steps = config.data.chain.max_steps
  stages = [stage for _, stage in stages_lib.make_stages(config)]
  assert [s.layout.num_blocks * s.layout.block_tokens for s in stages] == [*range(steps + 1), steps]
  budgets = [s.train.num_examples for s in stages]
  assert sum(budgets) == pytest.approx(config.train.num_examples, rel=1e-4)
  assert budgets == pytest.approx([config.train.num_examples / (steps + 2)] * (steps + 2), rel=1e-4)
