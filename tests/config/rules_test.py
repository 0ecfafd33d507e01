"""What a configuration may say and is hardly meant to say is told, and nothing else."""

import dataclasses

import pytest

from rim_jax import config as config_lib
from rim_jax.config import rules, stages
from tests import support


@pytest.mark.parametrize('trainable, rank, dropout, told, more', [
    ('lora', 8, 0.0, (), {}), ('all', 0, 0.1, (), {}),
    ('all', 8, 0.1, ('adapters of rank 8',), {}),
    ('lora', 8, 0.1, ("frozen model's own states",), {}),
    ('all', 0, 0.0, ('nothing is dropped',), {'model__lora__dropout': 0.1}),
    ('all', 0, 0.1, (), {'model__lora__dropout': 0.1}),
    ('lora', 8, 0.0, (), {'model__lora__dropout': 0.1}),
    ('all', 0, 0.1, ('stage 2 will have',), {'method': 'rim_stage1',
                                             'curriculum__stage2_dropout': 0.0}),
    ('all', 0, 0.1, (), {'method': 'rim_stage1', 'curriculum__stage2_dropout': 0.1})])
def test_doubts_about_a_pretrained_model(trainable, rank, dropout, told, more):
  changes = {'optim__trainable': trainable, 'model__lora__rank': rank, 'model__dropout': dropout}
  config = support.make_config(**changes, **more)
  found = rules.list_doubts(dataclasses.replace(config, model=dataclasses.replace(
      config.model, init_from='model')))
  assert len(found) == len(told) and all(part in line for part, line in zip(told, found))
  assert rules.list_doubts(config) == []


@pytest.mark.parametrize('method, changes', [
    ('coconut', {'aux__decoder': 'shared'}),
    ('coconut_stage', {'aux__decoder': 'shared', 'layout__num_blocks': 1, 'layout__skip_steps': 2}),
    ('pccot', {'layout__num_blocks': 0}),
    ('rim_stage2', {'layout__paired_readout': True, 'layout__answer_prefix': '',
                    'layout__step_separator': ''}),
    ('lotus', {'loop__rule': 'gate', 'curriculum__reset_optimizer': False}),
    ('lotus', {'loop__projection': True, 'loop__rule': 'shift',
               'curriculum__reset_optimizer': False})])
def test_what_no_run_begins_with_any_more_is_no_fault_of_one_that_is_there(method, changes):
  config = support.make_config(method)
  for key, value in changes.items():
    config = support.set_key(config, key.replace('__', '.'), value)
  assert len(config_lib.find_problems(config)) == 1
  assert not config_lib.find_problems(config, begins=False)
  tree = dataclasses.asdict(config)
  assert config_lib.parse_config(tree, begins=False) == config


def test_a_first_stage_without_thoughts_has_none_that_a_group_must_divide():
  config = support.make_config('coconut', aux__decoder='shared', aux__group_tokens=2,
                               coconut__thoughts_per_step=2, layout__block_tokens=1)
  for _, stage in stages.make_stages(config):
    assert config_lib.find_problems(stage) == []


@pytest.mark.parametrize('fields, told', [
    ({'num_train': 62}, ''), ({'num_train': 63}, 'of the 100 there are at most 80 % (80)'),
    ({'num_train': 62, 'operators': '++'}, "operators='++' repeats a character; use '+'")])
def test_a_chain_of_more_questions_than_may_be_drawn_is_refused(fields, told):
  config = support.make_config()
  for key, value in dict(min_steps=1, max_steps=1, num_valid=8, num_test=10, **fields).items():
    config = support.set_key(config, f'data.chain.{key}', value)
  found = config_lib.find_problems(config)
  assert all(told in line and '; ' in line for line in found) and len(found) == bool(told)


def test_a_hidden_question_is_seen_by_an_answer_that_begins_at_the_blocks():
  config = support.make_config('rim_stage2', layout__readout_sees_question=False)
  assert rules.list_doubts(support.set_key(config, 'layout.answer_prefix', '#')) == []
  [line] = rules.list_doubts(support.set_key(config, 'layout.answer_prefix', ''))
  assert 'which sees the question' in line
