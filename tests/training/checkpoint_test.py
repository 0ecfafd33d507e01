"""Checkpoints: sealed, verified, never silently wrong; on real Orbax."""

import contextlib
import errno
import json
import os

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax.config import CheckpointConfig
from rim_jax.errors import NonFiniteError, RunError, Stopped, UserError
from rim_jax.results import values
from rim_jax.runtime import run_folder, storage
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import manifest
from tests import support_runs


def test_a_save_comes_back(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.2])
  found = support_runs.find_latest(tmp_path)
  assert (found.step, found.card['rows'], found.card['format']) == (2, 2, 1)
  np.testing.assert_array_equal(support_runs.restore_w(found)['w'], [2, 2, 2])


def test_the_last_n_and_the_best_are_kept(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.9, 0.3, 0.2, 0.1, 0.0])
  assert checkpoint_lib.list_steps(epath.Path(tmp_path) / 'checkpoints') == [6, 5, 2]
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == 2
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'last').step == 6
  assert checkpoint_lib.list_whole(checkpoint_lib.get_folder(tmp_path))[0] == 6
  for step in checkpoint_lib.list_whole(checkpoint_lib.get_folder(tmp_path)):
    assert checkpoint_lib.choose_checkpoint(tmp_path, step).step == step
  with pytest.raises(UserError, match='has no checkpoint'):
    checkpoint_lib.choose_checkpoint(tmp_path, 7)


def test_restarts_leave_no_other_checkpoints_than_a_run_without_them(tmp_path):
  accuracies = [0.1, 0.9, 0.3, 0.2, 0.1, 0.0, 0.4]
  support_runs.save_checkpoints(tmp_path / 'whole', accuracies)
  for first, last in ((0, 3), (3, 5), (5, 7)):
    support_runs.save_checkpoints(tmp_path / 'parts', accuracies[first:last], done=first)
  kept = [checkpoint_lib.list_steps(epath.Path(tmp_path) / run / 'checkpoints')
          for run in ('whole', 'parts')]
  assert kept == [[7, 6, 2]] * 2


def test_a_run_that_is_killed_before_a_manifest_is_written_goes_on_from_the_save_before(
    tmp_path, monkeypatch):
  """Also where both were unscheduled, and nothing older is kept."""
  seal = manifest.seal

  def seal_but_the_last(folder):
    if folder.name != '4':
      seal(folder)
  monkeypatch.setattr(manifest, 'seal', seal_but_the_last)
  support_runs.save_checkpoints(tmp_path, [None] * 4, unscheduled=range(5))
  assert support_runs.find_latest(tmp_path).step == 3


@pytest.mark.parametrize('error, waits', [
    (None, True), (Stopped('asked'), True), (NonFiniteError('bad'), True),
    (OSError('full'), False)])
def test_a_process_that_fails_alone_waits_for_no_other(tmp_path, monkeypatch, error, waits):
  checkpointer = checkpoint_lib.Checkpointer(tmp_path, CheckpointConfig(), lambda line: None)
  waited = []
  monkeypatch.setattr(checkpointer, 'finish', lambda: waited.append('seals'))
  monkeypatch.setattr(checkpointer._manager, 'close', lambda: waited.append('Orbax'))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with contextlib.suppress(RunError, OSError), checkpointer:
    if error:
      raise error
  assert waited == ['seals', 'Orbax'] * waits


def test_what_is_kept_for_a_while_goes_once_the_save_after_it_is_whole(tmp_path):
  for kept, every in (([6, 4], 0), ([6, 5, 4], 5)):
    support_runs.save_checkpoints(tmp_path / str(every), [0.5] * 6, unscheduled=(3, 5),
                                  keep_every_steps=every)
    steps = checkpoint_lib.list_steps(checkpoint_lib.get_folder(tmp_path / str(every)))
    assert steps == kept


@pytest.mark.parametrize('damage', [OSError(errno.EIO, os.strerror(errno.EIO)), None])
def test_a_manifest_that_cannot_be_read_for_now_is_no_damage(tmp_path, monkeypatch, damage):
  support_runs.save_checkpoints(tmp_path, [0.5, 0.6])
  folder = checkpoint_lib.get_folder(tmp_path)
  read = type(folder).read_bytes

  def fail(self):
    if damage and self.name == manifest.NAME:
      raise damage
    return read(self)
  monkeypatch.setattr(type(folder), 'read_bytes', fail)
  if damage:
    with pytest.raises(OSError, match='Input/output error'):
      support_runs.find_latest(tmp_path)
  else:
    assert support_runs.find_latest(tmp_path).step == 2
  assert checkpoint_lib.list_steps(folder) == [2, 1]


@pytest.mark.parametrize('part, is_read', [
    ('params', True), ('card', True), ('metrics', True), ('optim', False)])
def test_a_network_is_verified_without_its_optimizer(part, is_read, tmp_path):
  """An optimizer is two thirds of a checkpoint, and nobody asks it."""
  support_runs.save_checkpoints(tmp_path, [0.5])
  folder = epath.Path(tmp_path) / 'checkpoints' / '1'
  files = {name: path for name, path in storage.list_files(folder).items()
           if name.startswith(f'{part}/')}
  victim = files[max(files, key=lambda name: len(files[name].read_bytes()))]
  victim.write_bytes(victim.read_bytes()[:-1] + b'!')
  def choose(*is_read):
    return checkpoint_lib.choose_checkpoint(tmp_path, 'last', *is_read)
  if is_read:
    with pytest.raises(UserError, match='damaged'):
      choose(checkpoint_lib.is_of_network)
  else:
    assert choose(checkpoint_lib.is_of_network).step == 1
  with pytest.raises(UserError, match='damaged'):
    choose()


def test_a_save_of_many_bytes_may_take_long():
  tree = {'w': jax.ShapeDtypeStruct((8_030_000_000,), jnp.float32)}
  found = checkpoint_lib.estimate_save_secs(tree, [tree, tree])
  assert 3600 < found < 7200  # 96 GB at 20 MB/s


def test_of_equally_good_checkpoints_the_later_is_best(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.5, 0.5])
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == 2


@pytest.mark.parametrize('accuracies, kept, best', [
    ([0.9, 0.5, 0.4, 0.3], [4, 3, 2], 2), ([0.8, 0.0], [2, 1], 2), ([0.9, 0.1, 0.2], [3, 2], 3)])
def test_what_does_not_count_is_neither_kept_nor_chosen_as_the_best(
    tmp_path, accuracies, kept, best):
  support_runs.save_checkpoints(tmp_path, accuracies, counted_from=2)
  assert checkpoint_lib.list_steps(epath.Path(tmp_path) / 'checkpoints') == kept
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == best


def test_checkpoints_that_different_rules_rated_are_not_compared(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.9, 0.3], rules=[1, 2])
  with pytest.raises(UserError, match='judged by versions 1, 2 of the rule; --mode=eval judges '):
    checkpoint_lib.choose_checkpoint(tmp_path, 'best')
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'last').step == 2
  run_folder.RunFolder(tmp_path).add_metrics(1, {values.VALID_ACC: 0.2, values.VALID_RULE: 2})
  assert checkpoint_lib.rate_checkpoints(tmp_path) == {1: (0.2, 2), 2: (0.3, 2)}
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == 2


def files_of(folder, step):
  return sorted(p for p in (folder / 'checkpoints' / str(step)).rglob('*')
                if p.is_file() and p.name != 'manifest.json')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete'])
def test_any_damaged_file_is_named_and_the_one_before_is_used(tmp_path, damage):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.2])
  victim = max(files_of(tmp_path, 2), key=lambda p: p.stat().st_size)
  content = victim.read_bytes()
  if damage == 'flip':
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  elif damage == 'truncate':
    victim.write_bytes(content[:-1])
  else:
    victim.unlink()
  told = []
  found = support_runs.find_latest(tmp_path, told.append)
  assert found.step == 1
  assert len(told) == 1 and victim.name in told[0] and 'using step 1, 1 steps are lost' in told[0]
  assert (tmp_path / 'damaged' / '2').is_dir()  # put aside, not lost
  save_all_again = support_runs.find_latest(tmp_path, told.append)
  assert save_all_again.step == 1 and len(told) == 1


def test_no_checkpoint_is_chosen_by_what_it_did_not_say_when_it_was_saved(tmp_path):
  """One flipped bit in the accuracy of the best: 0.9 becomes 0.1."""
  support_runs.save_checkpoints(tmp_path, [0.9, 0.2, 0.3])
  victim = tmp_path / 'checkpoints/1/card/metadata'
  assert b'0.9' in victim.read_bytes()
  victim.write_bytes(victim.read_bytes().replace(b'0.9', b'0.1'))
  for which in ('best', 1):
    with pytest.raises(UserError, match=r'checkpoints/1: damaged \(card/metadata differs'):
      checkpoint_lib.choose_checkpoint(tmp_path, which)
  with pytest.raises(UserError, match='damaged'):
    checkpoint_lib.list_counting(tmp_path)
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'last').step == 3
  told = []
  assert support_runs.find_latest(tmp_path, told.append).step == 3  # going on names it
  assert len(told) == 1 and 'checkpoints/1: damaged' in told[0] and 'lost' not in told[0]
  assert (tmp_path / 'damaged/1').is_dir()
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == 3


def test_a_step_put_aside_can_be_saved_again(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.2])
  files_of(tmp_path, 2)[0].unlink()
  with checkpoint_lib.Checkpointer(tmp_path, CheckpointConfig(), lambda line: None) as checkpointer:
    assert checkpointer.find_latest().step == 1
    checkpointer.save(2, {'w': jnp.full(3, 7.0)}, {'step': jnp.int32(2)}, {'rows': 2}, 0.3)
  found = support_runs.find_latest(tmp_path)
  np.testing.assert_array_equal(support_runs.restore_w(found)['w'], [7, 7, 7])


def test_a_save_that_was_cut_off_does_not_count(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.2])
  (tmp_path / 'checkpoints/2/manifest.json').unlink()
  told = []
  assert support_runs.find_latest(tmp_path, told.append).step == 1
  assert 'cut off' in told[0]


@pytest.mark.parametrize('gone', ['card/metadata', '_CHECKPOINT_METADATA'])
def test_a_removal_that_was_cut_off_is_ended_and_its_checkpoint_never_chosen(tmp_path, gone):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.9, 0.3])
  (tmp_path / 'checkpoints/2' / gone).unlink()
  assert checkpoint_lib.choose_checkpoint(tmp_path, 'best').step == 3
  told = []
  assert support_runs.find_latest(tmp_path, told.append).step == 3
  assert len(told) == 1 and '2: removing a checkpoint whose removal was cut off' in told[0]
  assert checkpoint_lib.list_steps(epath.Path(tmp_path) / 'checkpoints') == [3]


def test_all_damaged_is_an_error(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1, 0.2])
  for step in (1, 2):
    files_of(tmp_path, step)[0].write_bytes(b'')
  with pytest.raises(UserError, match='every checkpoint is damaged'):
    support_runs.find_latest(tmp_path)


def test_another_format_is_refused(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1])
  path = tmp_path / 'checkpoints/1/manifest.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 99}))
  with pytest.raises(UserError, match='format 99'):
    support_runs.find_latest(tmp_path)


def test_what_does_not_fit_is_listed_with_both_shapes(tmp_path):
  support_runs.save_checkpoints(tmp_path, [0.1])
  found = support_runs.find_latest(tmp_path)
  with pytest.raises(UserError, match=r'w is float32\[3\] in the checkpoint, float32\[4\]'):
    support_runs.restore_w(found, shape=(4,))
  with pytest.raises(UserError, match=r'w is float32\[3\] in the checkpoint, bfloat16\[3\]'):
    support_runs.restore_w(found, dtype=jnp.bfloat16)  # Orbax alone would cast
  with pytest.raises(UserError, match='other is missing in the checkpoint'):
    checkpoint_lib.check_tree({}, {'other': [[1], 'float32']}, 'here')


def test_the_base_is_saved_once_and_checked(tmp_path):
  frozen = {'w': jnp.arange(4, dtype=jnp.bfloat16)}
  checkpoint_lib.save_base(tmp_path, frozen)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          frozen)
  np.testing.assert_array_equal(checkpoint_lib.load_base(tmp_path, abstract)['w'], frozen['w'])
  victim = max((p for p in (tmp_path / 'base').rglob('*') if p.is_file()
                and p.name != 'manifest.json'), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:-1])
  with pytest.raises(UserError, match='the frozen parameters cannot be used'):
    checkpoint_lib.load_base(tmp_path, abstract)
