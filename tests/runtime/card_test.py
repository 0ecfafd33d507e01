"""What another run had otherwise is told by key, with what to do about it."""

import copy
import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import pytest

from rim_jax import config as config_lib
from rim_jax.config import schema
from rim_jax.errors import UserError
from rim_jax.runtime import card
from tests import support


def test_what_differs_is_told_with_both_values_and_what_only_says_where_is_not():
  config = support.make_config()
  mine = {'config': dataclasses.asdict(config)}
  other = support.set_keys(config, {'optim.learning_rate': 0.5, 'eval.batch_size': 9,
                                    'model.remat': 'dots'})
  other = dataclasses.replace(other, data=dataclasses.replace(  # held by what was read there
      other.data, dir='elsewhere', on_bad_rows='drop'))
  assert card.find_differences(mine, config, 'run') == []
  assert card.find_differences(mine, other, 'run') == [
      f'run: was run with optim.learning_rate={config.optim.learning_rate!r}, now it is 0.5; use '
      f'another --workdir, or --config.optim.learning_rate={config.optim.learning_rate!r}']


def test_what_differs_in_a_run_of_several_stages_is_told_as_it_was_given(tmp_path):
  """A stage's own keys are made of the run's: to set one to the stage's value made another."""
  config = support.make_config('rim', optim__learning_rate=0.25)
  other = support.set_key(config, 'optim.learning_rate', 0.5)
  card.check_whole(other, tmp_path)  # no run there
  card.write_card(tmp_path, card.make_whole(config, ['stage1', 'stage2']))
  card.check_whole(other, tmp_path)  # none has begun: the last command counts
  (tmp_path / 'stage1').mkdir()
  (tmp_path / 'stage1/config.json').write_text('{}')
  card.check_whole(config, tmp_path)
  with pytest.raises(UserError, match=f'^{tmp_path}: was run with optim.learning_rate=0.25, now it '
                     'is 0.5; use another --workdir, or --config.optim.learning_rate=0.25$'):
    card.check_whole(other, tmp_path)


def test_no_run_is_begun_in_the_directory_of_a_sweep(tmp_path):
  """With --point=NAME and the sweep's own --workdir its files would lie among the sweep's."""
  (tmp_path / 'points/a=1').mkdir(parents=True)
  config = support.make_config()
  with pytest.raises(UserError, match=f'of a sweep; one run of it, --point=NAME, is done with '
                     f'--sweep_dir={tmp_path} in place of --workdir'):
    card.check_whole(config, tmp_path)
  card.check_whole(config, tmp_path / 'points/a=1')
  card.write_card(tmp_path, card.make_whole(config, []))
  card.check_whole(config, tmp_path)  # begun there before it was refused: it goes on


def test_a_sweep_is_told_from_a_place_without_a_run(tmp_path):
  with pytest.raises(UserError, match='there is no run here; train it first'):
    card.load_card(tmp_path)
  (tmp_path / 'points/seed=0').mkdir(parents=True)
  with pytest.raises(UserError, match=f'of a sweep; name one .*--workdir={tmp_path}/points/NAME'):
    card.load_card(tmp_path)


def test_a_stage_that_has_not_begun_names_the_one_before(tmp_path):
  card.write_card(tmp_path, card.make_whole(support.make_config('rim'), ['stage1', 'stage2']))
  (tmp_path / 'stage1').mkdir()
  (tmp_path / 'stage1/config.json').write_text('{}')
  with pytest.raises(UserError, match=f'^{tmp_path}/stage2: .*there is stage1; name that, '
                     f'--workdir={tmp_path}/stage1, or go on with the command that trained it$'):
    card.load_card(tmp_path / 'stage2')


@pytest.mark.parametrize('std, free', [('example', True), ('layer', False), ('all', False)])
def test_micro_batches_may_change_where_nothing_is_taken_over_one(std, free):
  config = support.make_config('codi', distill__std=std)
  other = support.set_key(config, 'train.num_micro_batches', 2)
  found = card.find_differences({'config': dataclasses.asdict(config)}, other, 'run')
  assert found == ([] if free else [
      'run: was run with train.num_micro_batches=1, now it is 2; use another --workdir, or '
      '--config.train.num_micro_batches=1'])


def test_a_run_s_fingerprint_is_what_it_computed_and_not_where():
  def make(start=None, data='d', **changes):
    return {'config': dataclasses.asdict(support.make_config(**changes)), 'tokenizer': 't',
            'data': {'fingerprint': data}, 'base': None, 'start': start}
  mine = card.fingerprint_run(make())
  assert mine == card.fingerprint_run(make(eval__batch_size=9, train__init_from='elsewhere'))
  others = [make(seed=9), make(data='e'), make({'path': 'p', 'fingerprint': 's'}),
            make() | {'tokenizer': 'u'}, make() | {'base': {'fingerprint': 'b'}}]
  prints = {mine, *map(card.fingerprint_run, others)}
  assert len(prints) == 6
  assert card.fingerprint_run(make({'path': 'q', 'fingerprint': 's'})) in prints


def test_a_run_goes_on_with_its_tokenizer_alone():
  config = support.make_config()
  codec = support.make_codec(config)
  task = types.SimpleNamespace(config=config, codec=codec, base=None)

  def check(fingerprint):
    card.check_card({'config': dataclasses.asdict(config), 'tokenizer': fingerprint, 'base': None},
                    task, 'run', with_data=False)
  check(codec.tokenizer.fingerprint)
  with pytest.raises(UserError, match='the tokenizer changed since this run began'):
    check('as it was')


def test_a_run_that_begins_anew_begins_with_what_it_did():
  x, y = ({'path': 'p', 'fingerprint': f} for f in 'xy')
  card.check_start({'start': x}, x | {'path': 'moved'}, 'run')
  card.check_start({'start': None}, None, 'run')
  for theirs, mine in ((x, y), (x, None), (None, y)):
    with pytest.raises(UserError, match='run: began with another run than what p now is'):
      card.check_start({'start': theirs}, mine, 'run')


def test_a_key_of_another_version_is_no_value_to_set():
  config = support.make_config()
  mine = {'config': copy.deepcopy(dataclasses.asdict(config))}
  del mine['config']['curriculum']['alpha']
  mine['config']['curriculum']['beta'] = 2
  assert card.find_differences(mine, config, 'run') == [
      "run: was run by a version of rim_jax that has no curriculum.alpha, which now is 'linear'; "
      'go on with that version, or use another --workdir',
      'run: was run by a version of rim_jax that has curriculum.beta=2; go on with that version, '
      'or use another --workdir']


def test_a_card_that_lacks_a_later_key_is_of_a_run_with_its_neutral_value(tmp_path, monkeypatch):
  earlier = {'format': card.CARD_VERSION, 'config': dataclasses.asdict(config_lib.Config()),
             'data': {}, 'tokenizer': 't', 'base': None}
  (tmp_path / 'config.json').write_text(json.dumps(earlier))
  assert card.load_card(tmp_path) == earlier
  monkeypatch.setattr(schema, 'Config', support.LaterConfig)
  found, config = card.load_card(tmp_path), support.LaterConfig()
  assert found['config'] == dataclasses.asdict(config)
  assert card.find_differences(found, config, 'run') == []
  for key, neutral, value in (('model.twist', 0.0, 0.5), ('echo.inner.share', 1.0, 0.5)):
    assert card.find_differences(found, support.set_key(config, key, value), 'run') == [
        f'run: was run with {key}={neutral}, now it is {value}; use another --workdir, or '
        f'--config.{key}={neutral}']
  # and the other way round: what a version to come wrote, this one refuses, naming its keys
  monkeypatch.undo()
  assert [line.partition(';')[0] for line in card.find_differences(
      found, config_lib.Config(), 'run')] == [
          f'run: was run by a version of rim_jax that has {told}' for told in (
              'echo.inner.share=1.0', 'echo.num_times=1', 'model.twist=0.0')]


def test_a_card_is_read_and_compared_without_jax(tmp_path):
  code = f"""
import dataclasses, json, pathlib, sys
from rim_jax.config import Config
from rim_jax.runtime import card
pathlib.Path({str(tmp_path)!r}, 'config.json').write_text(json.dumps({{
    'format': card.CARD_VERSION, 'config': dataclasses.asdict(Config()),
    'data': {{'fingerprint': 'd'}}, 'tokenizer': 't', 'base': None}}))
found = card.load_card({str(tmp_path)!r})
assert card.find_differences(found, Config(), '') == [] and card.fingerprint_run(found)
sys.exit(str(sorted(sys.modules.keys() & {{'jax', 'grain', 'flax', 'orbax'}})))
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300,
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.stderr.strip() == '[]'
