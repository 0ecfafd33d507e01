"""The paper's figures stand in one place; recipes that repeat some agree with it."""

import re

import pytest

from configs import presets
from rim_jax import config as config_lib
from rim_jax.report import page, paper
from rim_jax.results.values import EvalResult


@pytest.mark.parametrize('preset, model', [
    ('gpt2', 'GPT-2'), ('llama3_2_1b', 'Llama-3.2-1B'), ('llama3_2_3b', 'Llama-3.2-3B')])
def test_recipes_state_the_same_target(preset, model):
  _, told = ' '.join(presets.PRESETS[preset].__doc__.split()).split(f'({paper.SOURCE})')
  direct, coconut, rim, cot = paper.REPORTED['test'][model]
  assert [float(x) for x in re.findall(r'\d+\.\d', told)] == [
      x for x in (rim, direct, coconut, cot) if x is not None]


def test_every_figure_is_a_share_in_percent_and_rim_is_below_cot():
  for models in paper.REPORTED.values():
    for direct, coconut, rim, cot in models.values():
      assert 1 < direct < coconut < rim < (cot or 100)


def test_a_run_that_the_papers_protocol_chose_stands_beside_its_figures():
  config = config_lib.parse_config(presets.make('rim', 'gsm8k'))
  sets = {key: EvalResult(
      method='rim_stage2', final_acc=acc, block_acc=[acc], n=1319) for key, acc in (
      ('test-splits', 0.3125), ('test-n50', 0.75))}
  (found,) = paper.make_target(config, sets)
  shown = page.render_page('', [found])
  assert '31.2' in shown and '75.0' not in shown
  own = {'test': EvalResult(method='rim_stage2', final_acc=0.3125, block_acc=[0.3], n=200)}
  (found,) = paper.make_target(config, own)
  assert '31.2' not in page.render_page('', [found])  # records that only are read in the same way
