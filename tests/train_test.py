"""The loop: bit-exact resume on any mesh, kills, stages, and the files of a run."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from etils import epath
import jax
import numpy as np
import pytest
import safetensors.numpy

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax import train as train_lib
from rim_jax.config import MeshConfig
from rim_jax.config import stages as stages_lib
from rim_jax.errors import NonFiniteError, Stopped, UserError
from rim_jax.evaluation import run_scores as run_scores_lib
from rim_jax.model import sharding
from rim_jax.packing import order as order_lib
from rim_jax.packing import source as source_lib
from rim_jax.packing import stream
from rim_jax.pretrained import families
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts, run_folder
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import state as state_lib
from rim_jax.training import step as step_lib
from tests import support, support_runs

QUIET = lambda line: None
GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


def make_config(cache, method='rim_stage1', mesh=None, **changes):
  """Six steps of eight rows, a save every three; dropout on, so that keys matter too."""
  config = support.make_config(method, **{
      'data__cache_dir': cache, 'train__batch_rows': 8, 'train__num_examples': 48,
      'layout__row_tokens': 32, 'model__dropout': 0.1, 'eval__num_valid_examples': 4, **changes})
  return dataclasses.replace(config, mesh=mesh or MeshConfig())


class Killed(BaseException):
  """Ends a run from inside, as Ctrl-C would."""


def kill_after(monkeypatch, count):
  """The input ends the run when `count` batches have been taken."""
  real = stream.make_batches

  def make_batches(source, start, *how):
    for i, batch in enumerate(real(source, start, *how)):
      if i == count:
        raise Killed
      yield batch
  monkeypatch.setattr(stream, 'make_batches', make_batches)


@pytest.fixture(scope='module')
def whole(cache, tmp_path_factory):
  """Undisturbed runs to compare with, each trained once: (config, devices) -> its folder."""
  folders = {}

  def train(config, use_devices, num_devices=1):
    use_devices(num_devices)
    key = config_lib.flatten(config).__repr__(), num_devices
    if key not in folders:
      folder = tmp_path_factory.mktemp('whole')
      train_lib.train_curriculum(config, folder, QUIET)
      folders[key] = folder
    return folders[key]
  return train


def make_two_stages(cache):
  """Five steps each."""
  return make_config(cache, 'rim', train__num_examples=80, curriculum__stage1_frac=0.5,
                     layout__depth0_readout=True)


@pytest.mark.parametrize('changes, told', [
    ({'layout__num_blocks': 40}, 'stage2, before anything is trained: rim_chain/train:'),
    ({'eval__max_new_tokens': 99}, 'more to decode needs'),
    # What the first stage would say itself has nothing to do with a later one.
    ({'data__source': 'gsm8k', 'data__dir': '/nowhere', 'tokenizer__kind': 'bytes'},
     '^data.dir=./nowhere.')])
def test_what_would_end_a_later_stage_is_told_before_the_first(tmp_path, cache, changes, told):
  config = make_config(cache, 'rim', train__num_examples=80, **changes)
  with pytest.raises(UserError, match=told):
    train_lib.train_curriculum(config, tmp_path, QUIET)
  assert not (tmp_path / 'stage1').exists()


@pytest.mark.parametrize('taken, num_devices, mesh', [
    (3, 1, MeshConfig()), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (5, 1, MeshConfig()), (3, 8, MeshConfig(2, 2, 2)), (5, 8, MeshConfig(2, 2, 2))))])
def test_six_steps_are_three_and_a_restore_and_three(
    tmp_path, cache, whole, use_devices, taken, num_devices, mesh):
  """Parameters, optimizer, data position and losses, bit for bit; also when killed off a save."""
  config = make_config(cache, mesh=mesh)
  undisturbed = whole(config, use_devices, num_devices)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, taken)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'parts', say=QUIET)
  told = []
  train_lib.train(config, tmp_path / 'parts', say=told.append)
  assert 'continuing from step 3 of 6' in told
  support_runs.assert_same_run(undisturbed, tmp_path / 'parts')


@pytest.mark.parametrize('shares', [
    (0.7,), pytest.param((0.2, 0.3, 0.5, 0.7), marks=pytest.mark.slow)])
def test_a_run_that_ends_early_goes_on_bit_for_bit(tmp_path, cache, whole, use_devices, shares):
  """At a share of the whole budget, in either stage or between them; once there it stays."""
  config = make_two_stages(cache)
  undisturbed = whole(config, use_devices)
  told = {0.2: 'stage1: step 3 of 5 is saved', 0.3: 'stage1: step 3 of 5 is saved',
          0.5: 'stage1: is complete', 0.7: 'stage2: step 3 of 5 is saved'}
  for share in shares:
    early = dataclasses.replace(config, checkpoint=dataclasses.replace(
        config.checkpoint, stop_frac=share))
    with pytest.raises(Stopped, match=told[share]):
      train_lib.train_curriculum(early, tmp_path / 'parts', QUIET)
  train_lib.train_curriculum(config, tmp_path / 'parts', QUIET)
  for name in ('stage1', 'stage2'):
    support_runs.assert_same_run(undisturbed / name, tmp_path / 'parts' / name)


def read_choice(workdir):
  """What a run keeps and what it says of each, with what is chosen and how that scores."""
  result = run_folder.RunFolder(workdir).load_results()['test']
  return (checkpoint_lib.list_steps(epath.Path(workdir) / 'checkpoints'),
          checkpoint_lib.rate_checkpoints(workdir), result.step, result.block_acc)


@pytest.mark.slow
def test_what_a_run_ends_with_does_not_depend_on_where_it_was_asked_to_stop(
    tmp_path, cache, whole, use_devices):
  """A save at a stop is there to go on from: not evaluated, never the best, in nobody's place."""
  config = make_config(cache)
  undisturbed = whole(config, use_devices)
  for taken, stop in ((2, 2), (2, 4), (1, 5)):
    asked = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(hosts.StopSignal, 'is_set',
                    lambda self, asked=asked, taken=taken: next(asked) == taken)
      with pytest.raises(Stopped, match=f'step {stop} of 6 is saved'):
        train_lib.train(config, tmp_path / 'parts', say=QUIET)
    assert checkpoint_lib.choose_checkpoint(tmp_path / 'parts', 'last').step == stop
  train_lib.train(config, tmp_path / 'parts', say=QUIET)
  support_runs.assert_same_run(undisturbed, tmp_path / 'parts')
  assert read_choice(tmp_path / 'parts') == read_choice(undisturbed)
  asked = run_folder.RunFolder(tmp_path / 'parts').load_valid()
  assert set(asked) == {3, 6} == set(run_folder.RunFolder(undisturbed).load_valid())


@pytest.mark.slow
def test_a_notice_that_comes_after_a_stage_s_last_step_is_no_stage_late(
    tmp_path, cache, whole, use_devices):
  config = make_two_stages(cache)
  undisturbed, end_saves = whole(config, use_devices), train_lib._end_saves

  def ask(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    end_saves(*args)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_lib, '_end_saves', ask)
    with pytest.raises(Stopped, match='stage1: asked to end; all 5 steps are saved'):
      train_lib.train_curriculum(config, tmp_path / 'parts', QUIET)
  assert not (tmp_path / 'parts/stage2').exists()
  train_lib.train_curriculum(config, tmp_path / 'parts', QUIET)
  for name in ('stage1', 'stage2'):
    support_runs.assert_same_run(undisturbed / name, tmp_path / 'parts' / name)


@pytest.mark.slow
def test_valid_is_asked_as_when_the_run_began(tmp_path, cache, whole, use_devices):
  """Else the best would be chosen among accuracies on different questions."""
  config, told = make_config(cache), []
  undisturbed = whole(config, use_devices)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, 4)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'parts', say=QUIET)
  train_lib.train(make_config(cache, eval__num_valid_examples=2), tmp_path / 'parts',
                  say=told.append)
  assert any('eval.num_valid_examples=4 (not 2)' in line for line in told)
  assert read_choice(tmp_path / 'parts') == read_choice(undisturbed)


@pytest.mark.slow
def test_a_finished_run_whose_last_checkpoint_is_damaged_takes_its_steps_again(
    tmp_path, cache, whole, use_devices):
  config, told = make_config(cache), []
  undisturbed = whole(config, use_devices)
  shutil.copytree(undisturbed, tmp_path / 'run')
  victim = next((tmp_path / 'run/checkpoints/6/params').rglob('d/*'))
  victim.write_bytes(victim.read_bytes()[:-1])
  train_lib.train(config, tmp_path / 'run', say=told.append)
  assert any('using step 3, 3 steps are lost' in line for line in told)
  support_runs.assert_same_run(undisturbed, tmp_path / 'run')
  assert read_choice(tmp_path / 'run') == read_choice(undisturbed)


def test_restoring_onto_other_meshes(tmp_path, cache, use_devices):
  """8 devices, then 1: the same parameters arrive, and training goes on."""
  config = make_config(cache, mesh=MeshConfig(2, 2, 2))
  workdir = tmp_path / 'run'
  for num_devices, mesh in ((8, MeshConfig(2, 2, 2)), (1, MeshConfig())):
    before = support_runs.read_checkpoint(workdir)[0] if workdir.exists() else None
    use_devices(num_devices)
    config = dataclasses.replace(config, mesh=mesh)
    if before:
      task = train_lib.make_task(config, QUIET)
      params = state_lib.load_network(task, workdir, 'last')[0].params
      assert len(params['blocks']['up']['kernel'].sharding.device_set) == num_devices
      for path, x in jax.tree_util.tree_leaves_with_path({'params': params}):
        np.testing.assert_array_equal(x, before[jax.tree_util.keystr(path)])
    with pytest.MonkeyPatch.context() as patch:
      if num_devices > 1:
        kill_after(patch, 3)
        with pytest.raises(Killed):
          train_lib.train(config, workdir, say=QUIET)
      else:
        train_lib.train(config, workdir, say=QUIET)
  assert [step for step, _ in support_runs.read_losses(workdir)] == list(range(1, 7))


def test_killed_between_the_stages(tmp_path, cache, whole, use_devices):
  """After stage 1's last save and before stage 2's first step: nothing is done twice or lost."""
  config = make_two_stages(cache)
  undisturbed = whole(config, use_devices)
  real = run_scores_lib.evaluate_run
  with pytest.MonkeyPatch.context() as patch:
    def stop(task, workdir, say):
      raise Killed
    patch.setattr(run_scores_lib, 'evaluate_run', stop)
    with pytest.raises(Killed):
      train_lib.train_curriculum(config, tmp_path / 'parts', say=QUIET)
  assert run_scores_lib.evaluate_run is real
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(state_lib, 'initialize', lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):  # stage 1 is whole now; stage 2 dies before it has a state
      train_lib.train_curriculum(config, tmp_path / 'parts', say=QUIET)
  train_lib.train_curriculum(config, tmp_path / 'parts', say=QUIET)
  for stage in ('stage1', 'stage2'):
    support_runs.assert_same_run(undisturbed / stage, tmp_path / 'parts' / stage)


def make_icot(cache):
  """Six updates; the chain is gone in the last three of them."""
  return make_config(cache, 'icot', train__num_examples=100, icot__remove_per_epoch=10.0,
                     icot__smoothing=1.0, layout__answer_prefix='+', checkpoint__every_steps=2)


@pytest.mark.slow
def test_icot_goes_on_bit_for_bit_in_the_midst_of_the_removal(tmp_path, cache, use_devices):
  use_devices(1)
  config = make_icot(cache)
  train_lib.train(config, tmp_path / 'whole', say=QUIET)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, 3)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'parts', say=QUIET)
  task = train_lib.make_task(config, QUIET)
  with pytest.raises(UserError, match='a part of the chain is still written'):
    run_scores_lib.evaluate_run(task, tmp_path / 'parts', QUIET)
  train_lib.train(config, tmp_path / 'parts', say=QUIET)
  support_runs.assert_same_run(tmp_path / 'whole', tmp_path / 'parts')


def test_icot_s_best_checkpoint_is_one_without_a_chain(tmp_path, cache, use_devices):
  """However right the answers were while steps were written; and then the prefix is not forced."""
  use_devices(1)
  config, seen = make_icot(cache), []
  real = train_lib.scores.evaluate

  def evaluate(*args):
    seen.append(args[4:])
    result, predictions = real(*args)
    return dataclasses.replace(result, final_acc=1.0 / len(seen)), predictions
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_lib.scores, 'evaluate', evaluate)
    results = train_lib.train(config, tmp_path / 'run', say=QUIET)
  found = {s: checkpoint_lib.load_checkpoint(tmp_path / 'run/checkpoints', s).card
           for s in checkpoint_lib.list_steps(tmp_path / 'run/checkpoints')}
  best = max((s for s in found if found[s]['counts']), key=lambda s: found[s]['valid_final_acc'])
  assert results['test'].step == best and not found.get(2, {'counts': False})['counts']
  free = [rest == ((),) for rest in seen]
  assert all(free[:2]) and not free[-1] and free == sorted(free, reverse=True)
  assert found.keys() >= {best} and max(found) == checkpoint_lib.choose_checkpoint(
      tmp_path / 'run', 'last').step


@pytest.mark.slow
def test_coconut_s_stages_go_on_from_one_another_and_when_killed(tmp_path, cache, use_devices):
  """In the midst of stage 1, where steps give way to thoughts: the end is an undisturbed one's."""
  use_devices(1)
  config = make_config(cache, 'coconut', coconut__num_stages=1, coconut__stage_frac=0.3,
                       train__num_examples=120, model__num_layers=1, checkpoint__every_steps=2)
  train_lib.train_curriculum(config, tmp_path / 'whole', say=QUIET)
  (_, first), (_, second), _ = stages_lib.make_stages(config)
  train_lib.train(first, tmp_path / 'parts/stage0', say=QUIET)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, 3)
    with pytest.raises(Killed):
      train_lib.train(second, tmp_path / 'parts/stage1', tmp_path / 'parts/stage0', say=QUIET)
  told = []
  train_lib.train_curriculum(config, tmp_path / 'parts', say=told.append)
  assert 'continuing from step 2 of 5' in told
  step = checkpoint_lib.choose_checkpoint(tmp_path / 'parts/stage1', 'last').step
  assert f'parameters from step {step} of {tmp_path}/parts/stage1' in told
  for stage in ('stage0', 'stage1', 'stage2'):
    support_runs.assert_same_run(tmp_path / 'whole' / stage, tmp_path / 'parts' / stage)


def test_a_coconut_stage_alone_starts_from_the_run_that_is_named(tmp_path, cache):
  config = make_config(cache, 'coconut_stage', layout__num_blocks=1)
  assert state_lib.find_init(config, tmp_path / 'run') is None
  named = dataclasses.replace(config, train=dataclasses.replace(
      config.train, init_from=str(tmp_path / 'cot')))
  with pytest.raises(UserError, match='cot: there is no run here to start from'):
    state_lib.find_init(named, tmp_path / 'run')
  (tmp_path / 'cot').mkdir()
  (tmp_path / 'cot/config.json').write_text('{}')
  assert state_lib.find_init(named, tmp_path / 'run') == tmp_path / 'cot'


@pytest.mark.slow
def test_any_method_begins_with_the_run_that_is_named_and_its_card_says_which(
    tmp_path, cache, use_devices):
  use_devices(1)
  mine, places = tmp_path / 'mine', ('rim/stage1', 'rim/stage2', 'direct')
  train_lib.train(make_config(cache, 'cot'), mine, say=QUIET)
  told = []
  for method in ('rim', 'direct'):
    train_lib.train_curriculum(make_config(cache, method, train__init_from=str(mine)),
                               tmp_path / method, say=told.append)
  step = checkpoint_lib.choose_checkpoint(mine, 'last').step
  assert [line.rpartition(' of ')[2] for line in told if line.startswith('parameters from')] == [
      str(mine), f'{tmp_path}/rim/stage1', str(mine)]
  assert f'parameters from step {step} of {mine}' in told
  cards = {place: card_lib.load_card(tmp_path / place) for place in ('mine', *places)}
  starts = [cards[place]['start'] for place in places]
  assert [start['path'] for start in starts] == [
      str(mine), f'{tmp_path}/rim/stage1', str(mine)]
  prints = [start['fingerprint'] for start in starts]
  assert prints[0] == prints[2] == card_lib.fingerprint_run(cards['mine']) != prints[1]
  assert cards['mine']['start'] is None
  other = make_config(cache, 'direct', train__init_from=str(mine), optim__trainable='memory')
  with pytest.raises(UserError, match="mine: has optim.trainable='all', this run has 'memory'"):
    train_lib.train_curriculum(other, tmp_path / 'memory', say=QUIET)
  # Begun and cut off before its first checkpoint: not with what has come to lie there since.
  (tmp_path / 'direct/config.json').rename(tmp_path / 'card')
  (tmp_path / 'again').mkdir()
  (tmp_path / 'card').rename(tmp_path / 'again/config.json')
  changed = cards['mine'] | {'config': cards['mine']['config'] | {'seed': 5}}
  (mine / 'config.json').write_text(json.dumps(changed))
  config = make_config(cache, 'direct', train__init_from=str(mine))
  with pytest.raises(UserError, match='again: began with another run than what .*mine now is'):
    train_lib.train_curriculum(config, tmp_path / 'again', say=QUIET)
  # One that has taken its steps needs no start any more.
  shutil.rmtree(mine)
  assert train_lib.train_curriculum(
      make_config(cache, 'rim', train__init_from=str(mine)), tmp_path / 'rim', say=QUIET)


@pytest.mark.slow
def test_memory_rows_that_no_run_has_trained_begin_as_this_run_asks(cache, whole, use_devices):
  asked = {'model__memory_init': 'token', 'model__memory_token': 3, 'model__memory_noise': 0.0}
  config = make_config(cache, 'pause', **asked)
  task = train_lib.make_task(config, QUIET)
  program = step_lib.make_program(config, task.vocab_size, 5, task.mesh)
  written = whole(make_config(cache, 'cot', train__num_examples=8), use_devices)
  params = state_lib.initialize(task, program, written, QUIET)[0].params
  arrays, _ = support_runs.read_checkpoint(written)
  embedding = arrays["['params']['embedding']"]
  np.testing.assert_array_equal(params['embedding'], embedding)
  np.testing.assert_array_equal(params['memory'], np.tile(embedding[3], (3, 1)))
  # Trained ones are kept, so nothing else can be asked for.
  with pytest.raises(UserError, match="has model.memory_init='mean', this run has 'token'"):
    state_lib.initialize(task, program, whole(make_config(cache), use_devices), QUIET)


def test_stage_two_begins_with_stage_ones_parameters_and_a_fresh_optimizer(
    cache, whole, use_devices):
  config = make_two_stages(cache)
  stage1 = whole(config, use_devices) / 'stage1'
  (_, first), (_, second) = stages_lib.make_stages(config)
  task = train_lib.make_task(second, QUIET)
  program = step_lib.make_program(second, task.vocab_size, 5, task.mesh)
  state, _ = state_lib.initialize(task, program, stage1, QUIET)
  arrays, _ = support_runs.read_checkpoint(stage1)
  for path, x in jax.tree_util.tree_leaves_with_path({'params': state.params}):
    np.testing.assert_array_equal(x, arrays[jax.tree_util.keystr(path)])
  assert int(state.step) == 0
  assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(state.opt_state))
  assert second.optim.learning_rate == pytest.approx(first.optim.learning_rate / 5)
  assert second.model.dropout == 0.2
  # Or with its moments: all of its optimizer but the place in the schedule, which begins anew.
  kept = support.set_keys(second, {'curriculum.reset_optimizer': False})
  state, _ = state_lib.initialize(dataclasses.replace(task, config=kept), program, stage1, QUIET)
  theirs = checkpoint_lib.restore(
      checkpoint_lib.choose_checkpoint(stage1, 'last'), 'optim',
      state_lib.get_optim(program.abstract[0]))['opt_state']
  pairs = list(zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(theirs), strict=True))
  changed = [(int(mine), int(old)) for mine, old in pairs if not np.array_equal(mine, old)]
  assert changed == [(0, 5)] and len(pairs) > 20 and int(state.step) == 0


def test_what_is_frozen_is_bit_identical_after_training(tmp_path, cache, use_devices):
  use_devices(1)
  config = make_config(cache, optim__trainable='memory')
  task = train_lib.make_task(config, QUIET)
  program = step_lib.make_program(config, task.vocab_size, 6, task.mesh)
  state, frozen = program.init(jax.random.key(config.seed))
  train_lib.train(config, tmp_path / 'run', say=QUIET)
  network, _ = state_lib.load_network(task, tmp_path / 'run', 'last')
  params, base = network.arrays
  assert list(params) == ['memory'] and (params['memory'] != state.params['memory']).any()
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(base), jax.device_get(frozen))


def test_a_run_leaves_its_files(tmp_path, cache, use_devices):
  use_devices(1)
  config = make_config(cache, log__tensorboard=True)
  results = train_lib.train(config, tmp_path / 'run', say=QUIET)
  workdir = tmp_path / 'run'

  def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  card = strict((workdir / 'config.json').read_text())
  assert config_lib.parse_config(card['config']) == config
  assert card['data']['fingerprint'] and card['hardware']['num_devices'] == 1
  lines = [strict(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert all(type(x['step']) is int and x['time'] > 0 for x in lines)
  assert {'train/loss', 'perf/tokens_per_sec', 'train/nll_block_4', 'compile/secs',
          'memory/host_peak_mib'} <= lines[0].keys()
  assert list((workdir / 'tensorboard').iterdir())
  assert strict((workdir / 'results.json').read_text()) == {
      name: reader.seal(reader.to_tree(result), name) for name, result in results.items()}
  test = results['test']
  predictions = [strict(x) for x in (workdir / 'predictions/test.jsonl').open()]
  assert len(predictions) == test.n == 8
  assert np.mean([p['correct'] for p in predictions]) == test.final_acc
  told = []
  assert train_lib.train(config, workdir, say=told.append) == results
  assert f'{workdir}: this run is complete' in told


def test_valid_that_cannot_be_asked_ends_a_run_before_its_first_update(
    tmp_path, cache, use_devices, monkeypatch):
  use_devices(1)

  def fail(*args):
    raise MemoryError('no room to decode')
  monkeypatch.setattr(train_lib.scores, 'evaluate', fail)
  monkeypatch.setattr(train_lib, '_make_step', lambda run: pytest.fail('an update was begun'))
  with pytest.raises(MemoryError, match='no room to decode'):
    train_lib.train(make_config(cache), tmp_path / 'run', say=QUIET)


def test_a_step_that_is_not_finite_stops_the_run_and_says_which_rows(
    tmp_path, cache, use_devices, monkeypatch):
  use_devices(1)
  config = make_config(cache)
  real = source_lib.BatchSource.__getitem__

  def poison(self, i):
    batch = real(self, i)
    if i == 4:  # a target outside the vocabulary has no likelihood
      batch.slot_target[:] = 10_000
    return batch
  monkeypatch.setattr(source_lib.BatchSource, '__getitem__', poison)
  with pytest.raises(NonFiniteError, match='step 5 has loss nan'):
    train_lib.train(config, tmp_path / 'run', say=QUIET)
  report = json.loads((tmp_path / 'run/nonfinite.json').read_text())
  assert report['step'] == 5 and len(report['rows']) == 8
  assert 'nan' in report['block_nll'] and report['loss'] == 'nan'
  _, card = support_runs.read_checkpoint(tmp_path / 'run')
  assert card['step'] == 3  # no state after the culprit was ever saved
  # Another run can begin there, with what may help.
  told = []
  config = support.set_keys(config, {'train.init_from': str(tmp_path / 'run'),
                                     'optim.learning_rate': 1e-4})
  with pytest.raises(NonFiniteError):  # these rows are poisoned for every run
    train_lib.train_curriculum(config, tmp_path / 'other', say=told.append)
  assert f'parameters from step 3 of {tmp_path / "run"}' in told
  (tmp_path / 'run/nonfinite.json').unlink()
  with pytest.raises(UserError, match='run: is not complete'):
    train_lib.train_curriculum(config, tmp_path / 'third', say=QUIET)


def test_changed_data_is_noticed(tmp_path, cache, use_devices):
  use_devices(1)
  config = make_config(cache)
  task = train_lib.make_task(config, QUIET)
  card = card_lib.make_card(task, source_lib.VERSIONS)
  card_lib.check_card(card, task, 'run')
  card['data']['fingerprint'] = 'other'
  alike = dataclasses.replace(task, data=dataclasses.replace(task.data, alike='other'))
  card_lib.check_card(card, alike, 'run')
  alike = dataclasses.replace(task, data=dataclasses.replace(
      alike.data, num_dropped={'train': 1, 'valid': 0, 'test': 0}))
  with pytest.raises(UserError, match='run: the data changed since this run began'):
    card_lib.check_card(card, alike, 'run')
  with pytest.raises(UserError, match='run: the data changed since this run began'):
    card_lib.check_card(card, task, 'run')


def test_a_run_goes_on_with_the_plan_that_it_began_with(tmp_path, cache):
  folder = epath.Path(tmp_path)
  assert train_lib._load_versions(folder)['plan'] == order_lib.PLAN_VERSION
  card = card_lib.make_card(train_lib.make_task(make_config(cache), QUIET),
                            source_lib.VERSIONS | {'plan': 1})
  card_lib.write_card(folder, card)
  assert train_lib._load_versions(folder)['plan'] == 1


DIES = '''
import os, signal, sys
from rim_jax import main
from rim_jax.training import manifest
real = manifest.seal
def seal(folder, *rest):
  real(folder, *rest)
  os.kill(os.getpid(), signal.SIGKILL)
manifest.seal = seal
main.cli(sys.argv)
'''


def test_kill_minus_nine_and_the_same_command_again(tmp_path, cache, whole, use_devices):
  """A real process, a real SIGKILL right after a save: the end is that of an undisturbed run."""
  recipe = tmp_path / 'recipe.py'
  config = make_config(cache)
  recipe.write_text(
      'import ml_collections\n'
      'def get_config():\n'
      f'  return ml_collections.ConfigDict({dataclasses.asdict(config)!r})\n')
  flags = [f'--config={recipe}', f'--workdir={tmp_path}/parts']
  killed, done = (subprocess.run(
      [sys.executable, *program, *flags], env=support_runs.ENVIRONMENT, text=True,
      capture_output=True, timeout=500) for program in (('-c', DIES), ('-m', 'rim_jax.main')))
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert done.returncode == 0 and 'continuing from step 3 of 6' in done.stdout, done.stderr
  support_runs.assert_same_run(whole(config, use_devices), tmp_path / 'parts')


@pytest.mark.slow
def test_memory_of_a_device_is_told():
  """2x2x2: what is split counts an eighth or a quarter, what is not counts whole."""
  config = support.make_config(model__embed_dim=256, model__mlp_dim=512)
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  program = step_lib.make_program(config, 16, 10, mesh)
  text = state_lib.describe_params(*program.abstract)
  state, _ = program.init(jax.random.key(0))
  held = [sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)) / 2**20
          for tree in (state.params, state.opt_state)]
  total = sum(x.size for x in jax.tree.leaves(state.params))
  assert text.startswith(f'{total:,} trainable parameters, 0 frozen, {total:,} in all')
  assert f'holds {2 * held[0] + held[1]:,.1f} MiB: parameters {held[0]:,.1f}' in text


@pytest.mark.slow
def test_evaluating_a_half_finished_run_does_not_finish_it(tmp_path, cache, use_devices):
  use_devices(1)
  config = make_config(cache)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, 3)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'run', say=QUIET)
  run_scores_lib.evaluate_run(train_lib.make_task(config, QUIET), tmp_path / 'run', QUIET)
  assert not state_lib.is_complete(tmp_path / 'run')
  task = train_lib.make_task(config, QUIET)

  def is_done(asked):
    return state_lib.is_complete(tmp_path / 'run') and run_scores_lib.is_evaluated(
        dataclasses.replace(task, config=asked), tmp_path / 'run')
  told, results = [], run_folder.RunFolder(tmp_path / 'run')
  evaluate_run, stale = run_scores_lib.evaluate_run, results.load_results()
  with pytest.MonkeyPatch.context() as patch:  # killed in the evaluation at its end
    patch.setattr(run_scores_lib, 'evaluate_run', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      train_lib.train(config, tmp_path / 'run', say=told.append)
  assert 'continuing from step 3 of 6' in told and results.load_results() == stale
  assert stale['test'].step == 3
  last = dataclasses.replace(config, eval=dataclasses.replace(config.eval, checkpoint='last'))
  results.write_result('test', dataclasses.replace(stale['test'], checkpoint='last'), None)
  for asked in (config, last):  # whichever is best: 3 is not the last
    assert not is_done(asked)
  told.clear()
  train_lib.train(last, tmp_path / 'run', say=told.append)
  assert 'evaluating step 6 (last checkpoint)' in ''.join(told) and not any(
      'complete' in line for line in told)
  assert results.load_results()['test'].step == 6
  assert is_done(last)
  # Of this set, and by this choice: others are evaluated, too.
  assert not is_done(config)
  for more in ({'num_examples': 2}, {'sets': 'svamp=x.jsonl'}, {'checkpoint': 'splits'}):
    assert not is_done(dataclasses.replace(last, eval=dataclasses.replace(last.eval, **more)))
  assert evaluate_run is run_scores_lib.evaluate_run


def test_gold_answers_that_can_never_be_right_are_told_before_training(tmp_path, monkeypatch):
  for name in ('train', 'test', 'valid'):
    (tmp_path / f'{name}.jsonl').write_text(
        json.dumps({'question': 'q?', 'steps': [], 'answer': '507'}) + '\n')
  config = make_config(str(tmp_path / 'cache'), 'direct', data__source='gsm8k',
                       data__dir=str(tmp_path), tokenizer__kind='bytes', layout__answer_suffix='0')
  told = []

  def stop(*args):
    raise Killed
  monkeypatch.setattr(train_lib, '_train_stage', stop)
  with pytest.raises(Killed):
    train_lib.train(config, tmp_path / 'run', say=told.append)
  for name in ('valid', 'test'):
    assert any(line.startswith(f'{name}: 1 of 1 gold answers can never be right') for line in told)


@pytest.mark.slow
def test_another_file_under_the_name_of_a_set_is_evaluated_anew(tmp_path, cache, use_devices):
  use_devices(1)
  paths = [tmp_path / f'{name}.jsonl' for name in ('a', 'b')]
  for path, answer in zip(paths, (1, 2)):
    path.write_text(json.dumps({'question': '1+0+0', 'answer': str(answer)}) + '\n')
  config, told = make_config(cache), []

  def run(path):
    told.clear()
    train_lib.train(dataclasses.replace(config, eval=dataclasses.replace(
        config.eval, sets=f'more={path}')), tmp_path / 'run', say=told.append)
    return any('this run is complete' in line for line in told)
  assert not run(paths[0]) and run(paths[0])
  assert not run(paths[1]) and run(paths[1])
  (row,) = run_folder.RunFolder(tmp_path / 'run').load_predictions('more')
  assert row.answer == '2'
  paths[1].unlink()
  with pytest.raises(UserError, match='b.jsonl'):
    run(paths[1])


# ---- Pretrained models ----


def make_pretrained(cache, folder, method='rim_stage1', **changes):
  return families.resolve(make_config(cache, method, **{
      'tokenizer__kind': 'bytes', 'model__init_from': str(folder), 'model__num_heads': 4,
      'model__mlp_dim': 40, 'model__max_positions': 128, 'model__lora__rank': 2,
      'model__lora__dropout': 0.1, 'optim__trainable': 'lora',
      **changes}))


@pytest.fixture
def llama(tmp_path):
  return pathlib.Path(shutil.copytree(GOLDEN / 'llama', tmp_path / 'llama'))


@pytest.mark.slow
@pytest.mark.parametrize('num_devices, mesh', [
    (1, MeshConfig()), (8, MeshConfig(2, 2, 2))])
def test_adapters_on_a_pretrained_base_resume_bit_for_bit(
    tmp_path, cache, llama, use_devices, num_devices, mesh):
  use_devices(num_devices)
  config = make_pretrained(cache, llama, mesh=mesh)
  train_lib.train(config, tmp_path / 'whole', say=QUIET)
  with pytest.MonkeyPatch.context() as patch:
    kill_after(patch, 3)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'parts', say=QUIET)
  train_lib.train(config, tmp_path / 'parts', say=QUIET)
  support_runs.assert_same_run(tmp_path / 'whole', tmp_path / 'parts')
  # The base stays where it is; a checkpoint holds what trains.
  assert not (tmp_path / 'whole' / 'base').exists()
  arrays, _ = support_runs.read_checkpoint(tmp_path / 'whole')
  assert not [name for name in arrays if 'kernel' in name]


@pytest.mark.parametrize('changes, told', [
    ({'model__dropout': 0.2}, True), ({'model__dropout': 0.0}, False),
    ({'model__dropout': 0.2, 'optim__trainable': 'all'}, False)])
def test_dropout_of_a_frozen_model_is_told(tmp_path, cache, llama, monkeypatch, changes, told):
  lines = []

  def stop(*args):
    raise Killed
  monkeypatch.setattr(train_lib, '_train_stage', stop)
  with pytest.raises(Killed):
    train_lib.train(make_pretrained(cache, llama, **changes), tmp_path / 'run', say=lines.append)
  assert any("parts of the frozen model's own states" in line for line in lines) == told


@pytest.mark.slow
def test_stage_2_goes_on_from_stage_1_s_adapters_on_the_same_base(
    tmp_path, cache, llama, use_devices):
  use_devices(1)
  train_lib.train(make_pretrained(cache, llama), tmp_path / 'stage1', say=QUIET)
  # The base may move; it is known by its content.
  moved = llama.rename(tmp_path / 'elsewhere')
  config = make_pretrained(cache, moved, 'rim_stage2', model__lora__dropout=0.3)
  seen = []

  def stop(run, state):
    seen.append((state.params, run.frozen, int(state.step)))
    raise Killed
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_lib, '_run_steps', stop)
    with pytest.raises(Killed):
      train_lib.train(config, tmp_path / 'stage2', tmp_path / 'stage1', say=QUIET)
  (params, frozen, step), before = seen[0], support_runs.read_checkpoint(tmp_path / 'stage1')[0]
  assert step == 0
  for path, x in jax.tree_util.tree_leaves_with_path({'params': params}):
    np.testing.assert_array_equal(x, before[jax.tree_util.keystr(path)])
  stored = safetensors.numpy.load_file(moved / 'model.safetensors')['model.embed_tokens.weight']
  np.testing.assert_array_equal(frozen['embedding'], stored.astype(frozen['embedding'].dtype))


@pytest.mark.slow
def test_another_base_is_refused(tmp_path, cache, llama, use_devices):
  use_devices(1)
  config = make_pretrained(cache, llama)
  train_lib.train(config, tmp_path / 'stage1', say=QUIET)
  path = llama / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  tensors['model.norm.weight'] += 1
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError, match='the base changed since this run began'):
    train_lib.train(config, tmp_path / 'stage1', say=QUIET)
  with pytest.raises(UserError, match='was trained on another base'):
    train_lib.train(make_pretrained(cache, llama, 'rim_stage2'), tmp_path / 'stage2',
                    tmp_path / 'stage1', say=QUIET)
