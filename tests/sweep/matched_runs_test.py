"""What a matched run has otherwise is named: all that the two methods share, and nothing else."""

import dataclasses
import json

import pytest

from configs import presets
from rim_jax import config as config_lib
from rim_jax.errors import UserError
from rim_jax.results import judge
from rim_jax.sweep import matched_runs
from tests import support

SETS = {'direct': 'test', 'pause': 'test-k2'}
PRINTS = {'data': 'f', 'tokenizer': 't', 'base': None}


def write_run(folder, method, fingerprint='f', sets=('test',), tokenizer='t', base=None,
              begun=False, **changes):
  """`begun`: the fingerprint of what it began with, or None; False: its card is too old to say."""
  folder.mkdir()
  config = support.make_config(method, **changes)
  (folder / 'config.json').write_text(json.dumps({
      'format': 2, 'config': dataclasses.asdict(config), 'data': {'fingerprint': fingerprint},
      'tokenizer': tokenizer, 'base': base, **({} if begun is False else {
          'start': begun and {'path': 'theirs', 'fingerprint': begun}})}))
  (folder / 'results.json').write_text(json.dumps({name: {
      'n': 8, 'rule_version': judge.RULE_VERSION, 'final_acc': 0.25, 'final_acc_stderr': 0.1,
      'block_acc': [0.25]} for name in sets}))
  return str(folder)


def test_matched_runs_stand_beside_the_controls(tmp_path):
  config = support.make_config('rim', controls__direct_dir=write_run(
      tmp_path / 'direct', 'direct', seed=3, model__num_layers=1, model__remat='full'))
  entries = matched_runs.load_matched(config, PRINTS, SETS)
  assert entries['direct']['differs'] == ['seed', 'model.num_layers']
  assert entries['direct']['final_acc'] == 0.25 and entries['direct']['seed'] == 3
  assert entries['direct']['given'] and not entries['pause']['given']
  assert 'final_acc' not in entries['pause']
  config = support.make_config('rim', controls__pause_dir=write_run(
      tmp_path / 'pause', 'pause', sets=('test-k2',)))
  found = matched_runs.load_matched(config, PRINTS, SETS)['pause']
  assert found['final_acc'] == 0.25 and found['differs'] == []


@pytest.mark.parametrize('preset', ['chain', 'gsm8k', 'gpt2', 'llama3_2_1b'])
def test_direct_and_pause_of_a_preset_are_its_matched_runs(preset):
  rim, *others = (config_lib.parse_config(presets.make(method, preset))
                  for method in ('rim', 'direct', 'pause'))
  assert matched_runs.find_matched(rim, {o.method: o for o in others}) == {
      'direct': 'direct', 'pause': 'pause'}


def test_of_other_runs_the_first_that_differs_in_its_method_alone_is_found():
  def make(method, **changes):
    return support.make_config(method, **changes)
  others = {'seed': make('direct', seed=1), 'size': make('pause', model__num_layers=1),
            'own': make('rim'), 'direct': make('direct', layout__num_blocks=1),
            'same': make('direct'), 'pause': make('pause', curriculum__hold_frac=0.5)}
  for method in ('rim', 'rim_stage2', 'rim_stage1'):
    assert matched_runs.find_matched(make(method), others) == {'direct': 'direct', 'pause': 'pause'}
  assert matched_runs.find_matched(make('pause'), others) == {'direct': 'direct'}
  looped = make('rim', loop__num_passes=2)  # `pause` has blocks, which it reads once
  assert matched_runs.find_matched(looped, others) == {'direct': 'direct'}
  file = {'tokenizer__kind': 'file', 'tokenizer__path': 'a', 'tokenizer__eos_token': 'e'}
  for change in ({'data__chain__num_train': 7}, {'model__init_from': 'a'}, file,
                 {'eval__num_examples': 3}, {'eval__split': 'valid'}):
    mine, same = make('rim', **change), {'same': make('direct', **change)}
    assert matched_runs.find_matched(mine, others) == {}  # load_matched would refuse those
    assert matched_runs.find_matched(mine, others | same) == {'direct': 'same'}
  assert matched_runs.find_matched(
      make('rim', **file), {'b': make('direct', **file | {'tokenizer__path': 'b'})}) == {}
  assert matched_runs.find_matched(make('rim', eval__num_blocks=1), others) == {'direct': 'direct'}
  begun = make('rim', train__init_from='a')
  assert matched_runs.find_matched(begun, others) == {}
  assert matched_runs.find_matched(begun, {'begun': make('direct', train__init_from='a')}) == {
      'direct': 'begun'}


def test_blocks_are_compared_with_those_of_the_stage_that_answers():
  """Coconut's stages set one block of thoughts, whatever the whole run's config has."""
  coconut = support.make_config('coconut', coconut__num_stages=2, coconut__thoughts_per_step=1)
  blocks = {'layout__num_blocks': coconut.layout.num_blocks,
            'layout__block_tokens': coconut.layout.block_tokens}
  assert blocks != {'layout__num_blocks': 1, 'layout__block_tokens': 2}
  own = support.make_config('pause', layout__num_blocks=1, layout__block_tokens=2)
  others = {'direct': support.make_config('direct'),
            'pause': support.make_config('pause', **blocks)}
  assert matched_runs.find_matched(coconut, others) == {'direct': 'direct'}
  assert matched_runs.find_matched(coconut, others | {'own': own})['pause'] == 'own'


# changes of the matched run -> what it differs in from rim, from rim's second stage alone; direct
# and pause
STEPS = {'layout__depth0_readout': True, 'layout__step_separator': '*', 'layout__step_prefix': '+',
         'curriculum__schedule': 'uniform', 'curriculum__hold_frac': 0.5,
         'curriculum__stage1_frac': 0.5, 'curriculum__stage2_dropout': 0.5,
         'icot__smoothing': 1.0, 'coconut__num_stages': 2, 'distill__weight': 2.0,
         'layout__row_tokens': 63}
BLOCKS = {'layout__num_blocks': 2, 'layout__block_tokens': 2, 'curriculum__alpha': 'final',
          'layout__stage2_depth0_readout': True, 'model__memory_init': 'normal'}
RATE = {'train__num_examples': 32, 'optim__learning_rate': 0.5, 'model__dropout': 0.1}


@pytest.mark.parametrize('changes, rim, stage2', [
    ({'optim__weight_decay': 0.5}, 'both', 'both'),
    ({'layout__answer_prefix': '+'}, 'both', 'both'),
    ({'train__batch_rows': 8}, 'both', 'both'), ({'tokenizer__add_bos': True}, 'both', 'both'),
    ({'model__compute_dtype': 'bfloat16'}, 'both', 'both'),
    ({'curriculum__normalize': 'readouts'}, 'both', 'both'), (RATE, 'both', 'none'),
    (BLOCKS, 'pause', 'pause'), (STEPS, 'none', 'none'),
    ({'eval__batch_size': 9, 'train__num_micro_batches': 2}, 'none', 'none')])
def test_a_matched_run_differs_in_what_it_shares_and_not_in_what_it_must(
    tmp_path, changes, rim, stage2):
  keys = {f'controls__{method}_dir': write_run(tmp_path / method, method, sets=(
      SETS[method],), **changes) for method in ('direct', 'pause')}
  for whole, told in (('rim', rim), ('rim_stage2', stage2)):
    entries = matched_runs.load_matched(support.make_config(whole, **keys), PRINTS, SETS)
    for method, entry in entries.items():
      assert set(entry['differs']) == ({k.replace('__', '.') for k in changes} if told in (
          'both', method) else set()), (whole, method)


@pytest.mark.parametrize('method, told', [
    ('rim', ['train.init_from']), ('rim_stage1', ['train.init_from']), ('rim_stage2', [])])
def test_a_matched_run_begins_as_the_whole_does(tmp_path, method, told):
  """A second stage begins with its first, whatever that began with."""
  config = support.make_config(method, train__init_from='mine', controls__direct_dir=write_run(
      tmp_path / 'direct', 'direct'))
  assert matched_runs.load_matched(config, PRINTS, SETS)['direct']['differs'] == told


# this run's path and start, the other's -> what differs; False is a card too old to tell
STARTS = [('mine', 's', 'theirs', 's', []), ('mine', 's', 'mine', 'r', ['start']),
          ('mine', 's', '', None, ['start']), ('', None, '', None, []),
          ('mine', 's', 'theirs', False, ['train.init_from']), ('mine', 's', 'mine', False, []),
          ('mine', False, 'theirs', 's', ['train.init_from']), ('mine', False, 'mine', 's', [])]


@pytest.mark.parametrize('path, start, other, begun, told', STARTS)
def test_starts_are_compared_by_what_they_computed_and_by_path_on_old_cards_alone(
    tmp_path, path, start, other, begun, told):
  folder = write_run(tmp_path / 'direct', 'direct', begun=begun, train__init_from=other)
  prints = PRINTS | ({} if start is False else {'start': start})
  for method in ('rim', 'rim_stage2'):
    config = support.make_config(method, train__init_from=path, controls__direct_dir=folder)
    assert matched_runs.load_matched(config, prints, SETS)['direct']['differs'] == (
        told if method == 'rim' else [])  # a second stage begins with its first


def test_a_matched_run_of_another_tokenizer_or_base_says_so(tmp_path):
  config = support.make_config('rim', controls__direct_dir=write_run(
      tmp_path / 'direct', 'direct', tokenizer='u', base={'fingerprint': 'b'}))
  found = matched_runs.load_matched(config, PRINTS, SETS)
  assert found['direct']['differs'] == ['tokenizer', 'base']
  found = matched_runs.load_matched(config, PRINTS | {'tokenizer': 'u', 'base': 'b'}, SETS)
  assert found['direct']['differs'] == []


def test_a_run_that_does_not_match_is_refused(tmp_path):
  def refuse(fragments, **keys):
    config = support.make_config('rim_stage2', **{
        f'controls__{k}_dir': v for k, v in keys.items()})
    with pytest.raises(UserError) as error:
      matched_runs.load_matched(config, PRINTS, SETS)
    lines = str(error.value).split('\n')
    assert len(lines) == len(fragments)
    for line, fragment in zip(lines, fragments):
      assert fragment in line
  other = write_run(tmp_path / 'other', 'direct', fingerprint='g')
  refuse(['its data are not this run\'s (fingerprint g, here f)', 'there is no run here'],
         direct=other, pause=str(tmp_path / 'nowhere'))
  refuse(["was run with method 'direct'; name a pause run"], pause=other)
  refuse(["has no results on 'test-k2', only on test"], pause=write_run(
      tmp_path / 'other_k', 'pause'))
