"""Who goes on follows from what runs have left, and from nothing else."""

import json

import pytest

from rim_jax.config import grid as grid_lib
from rim_jax.errors import UserError
from rim_jax.results import judge
from rim_jax.runtime import point_run
from rim_jax.sweep import halving
from rim_jax.training import manifest
from tests import support


def make_state(folder, method='rim', **changes):
  config = support.make_config(method, train__num_examples=1000, curriculum__stage1_frac=0.75,
                               checkpoint__every_steps=10, **changes)
  return point_run.PointRun(grid_lib.Point('a=1', {'a': 1}, config), folder)


def leave(folder, num_steps, saved, valid, **rule):
  """What a run leaves after a save: a sealed checkpoint with its card, and its metrics."""
  found = folder / 'checkpoints' / str(saved)
  (found / 'card').mkdir(parents=True)
  (found / 'card/metadata').write_text(json.dumps({
      'valid_final_acc': 0.5, 'params': {}, 'optim': {}, 'num_steps': num_steps}))
  manifest.seal(found)
  (folder / 'metrics.jsonl').write_text(''.join(
      json.dumps({'step': step, 'valid/final_acc': acc, **rule}) + '\n'
      for step, acc in valid.items()))


def test_a_score_is_that_of_the_step_where_a_run_ends_for_a_share(tmp_path):
  """Half of the budget is two thirds of stage 1: step 200 of 300; what came later is not seen."""
  state = make_state(tmp_path)
  assert halving.read_score(state, 0.5) is None
  leave(tmp_path / 'stage1', 300, 210, {190: 0.9, 200: 0.25, 205: 0.8, 210: 0.7})
  assert halving.read_score(state, 0.5) == (0.25, 1)
  assert halving.read_score(state, 0.51) == (0.7, 1)  # step 204, to the next of 10
  assert halving.read_score(state, 0.6) is None
  assert halving.read_score(state, 0.9) is None  # in stage 2
  leave(tmp_path / 'stage2', 100, 60, {60: 0.5}, **{'valid/rule_version': 2})
  assert halving.read_score(state, 0.9) == (0.5, 2)
  (tmp_path / 'stage2/checkpoints/60/card/metadata').unlink()  # its run will say so
  assert halving.read_score(state, 0.9) is None


def test_what_is_told_but_not_saved_is_not_there_yet(tmp_path):
  """A run killed between the two goes on from the save before, and tells it again."""
  leave(tmp_path / 'stage1', 300, 190, {190: 0.9, 200: 0.25})
  assert halving.read_score(make_state(tmp_path), 0.5) is None


def make_settings(scores, monkeypatch):
  """States of settings with the scores of their seeds."""
  config = support.make_config('direct')
  states = [point_run.PointRun(
      grid_lib.Point(f'a={a},seed={s}', {'a': a, 'seed': s}, config), score)
            for a, found in scores.items() for s, score in enumerate(found)]
  monkeypatch.setattr(halving, 'read_score', lambda state, share: None if (
      state.folder is None) else halving.Score(state.folder, 2))
  return states


def test_scores_of_different_rules_are_refused_before_more_are_trained(tmp_path):
  config = make_state(tmp_path).point.config
  runs = [point_run.PointRun(grid_lib.Point(f'seed={s}', {'seed': s}, config), tmp_path / str(s))
          for s in (0, 1)]
  leave(tmp_path / '0/stage1', 300, 210, {200: 0.25})  # without a word: version 1
  with pytest.raises(UserError, match=(
      rf'\(seed=0 by version 1; seed=1 by version {judge.RULE_VERSION}\)')):
    halving.check_rules(runs, 0.5)  # the other would be judged by today's
  runs[1].status = 'failed'  # it is not started
  halving.check_rules(runs, 0.5)
  assert halving.judge(runs, 0.5, 0.5)['rule_version'] == 1
  leave(tmp_path / '1/stage1', 300, 210, {200: 0.25}, **{'valid/rule_version': 2})
  with pytest.raises(UserError, match=r'\(seed=0 by version 1; seed=1 by version 2\)'):
    halving.check_rules(runs, 0.5)


@pytest.mark.parametrize('scores, keep, kept', [
    ({1: (0.2, 0.4), 2: (0.5, 0.3), 3: (0.1,), 4: (0.0, 0.9)}, 0.5, ['a=4', 'a=2']),
    ({1: (0.2, 0.4), 2: (0.5, 0.3), 3: (0.1,), 4: (0.0, 0.9)}, 0.2, ['a=4']),
    ({1: (0.2,), 2: (0.3,), 3: (0.3,), 4: (0.3,)}, 0.5, ['a=2', 'a=3', 'a=4']),  # equals stay
    ({1: (0.2, None), 2: (None,), 3: (0.1,)}, 0.5, ['a=1']),  # of the two that have a score
    ({1: (None,)}, 0.5, []), ({1: (0.0,)}, 0.01, ['a=1'])])
def test_the_best_by_the_mean_of_their_seeds_go_on(scores, keep, kept, monkeypatch):
  rung = halving.judge(make_settings(scores, monkeypatch), 0.25, keep)
  assert rung['rule_version'] == (2 if kept else None)
  assert [s['name'] for s in rung['settings'] if s['goes_on']] == kept
  assert [(s['seeds'], s['of_seeds']) for s in rung['settings']] == [
      (sum(x is not None for x in scores[int(s['name'][2:])]), len(scores[int(s['name'][2:])]))
      for s in rung['settings']]
  assert len(rung['settings']) == sum(any(x is not None for x in s) for s in scores.values())


def test_how_many_go_on_is_rounded_up():
  assert [halving._count_kept(*found) for found in (
      (0.5, 8), (1e-9, 3), (0.4, 3), (0.07, 100))] == [4, 1, 2, 7]  # 7.000000000000001


@pytest.mark.parametrize('at, keep, told', [
    ('half', 0.5, '--halve_at=half'), ('0.5,0.5', 0.5, 'ascending'), ('0,0.5', 0.5, 'above 0'),
    ('0.5,1', 0.5, 'below 1'), ('nan', 0.5, '--halve_at=nan'), ('0.5', 1.0, '--halve_keep=1.0'),
    ('0.5', 0.0, '--halve_keep=0.0')])
def test_flags_that_make_no_halving(at, keep, told):
  with pytest.raises(UserError, match=told):
    halving.parse_halving(at, keep)
  assert halving.parse_halving('', keep) is None
