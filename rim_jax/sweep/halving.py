"""Successive halving: the settings of a sweep that go on after some of their budget.

After each of some shares of the budget the worst settings end; a setting is all its seeds together.
Nothing is drawn: who goes on follows from what the runs have left (accuracy on valid at that
share), so the same command again decides the same, and a setting that is new is judged with the
others. Source: K. Jamieson, A. Talwalkar, arXiv 1502.07943, in the form where a budget is divided
by shares of a run.
"""

import collections
import dataclasses
import math
import statistics
from typing import NamedTuple

from rim_jax.config import grid as grid_lib
from rim_jax.config import replace_keys
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError, check
from rim_jax.results import judge as judge_lib
from rim_jax.results import stats
from rim_jax.runtime import run_folder
from rim_jax.runtime.point_run import PointRun
from rim_jax.training import checkpoint as checkpoint_lib


@dataclasses.dataclass(frozen=True)
class Halving:
  """When settings are judged, and how many of them go on."""
  shares: tuple[float, ...]  # of a run's whole budget, ascending
  keep: float  # part of the settings that goes on after each, rounded up


def parse_halving(at: str, keep: float) -> Halving | None:
  """From the flags: '0.25,0.5' and 0.5; None for ''.

  Raises: UserError for shares that are none, or do not ascend.
  """
  if not at:
    return None
  try:
    shares = tuple(float(part) for part in at.split(','))
  except ValueError:
    shares = ()
  ascend = shares and list(shares) == sorted({*shares}) and 0 < shares[0] <= shares[-1] < 1
  check((not ascend,
         f"--halve_at={at}: should be shares of a run's budget, ascending, each above 0 and below "
         '1, e.g. 0.25,0.5'),
        (not 0 < keep < 1,
         f'--halve_keep={keep}: is the part of the settings that goes on, above 0 and below 1'))
  return Halving(shares, keep)


class Score(NamedTuple):
  valid_acc: float
  rule_version: int  # of the rule of judging


def read_score(run: PointRun, share: float) -> Score | None:
  """A point's accuracy on valid after a share of its budget; None where it is not there yet.

  Of the very step at which the run ends for it: one that has gone further is judged as it was.
  """
  whole = replace_keys(run.point.config, {'checkpoint.stop_frac': share})
  name, config = [(name, config) for name, config in stages_lib.make_stages(whole)
                  if config.checkpoint.stop_frac][-1]
  folder = checkpoint_lib.get_folder(run.folder / name)
  saved = checkpoint_lib.list_whole(folder)
  try:
    num_steps = checkpoint_lib.load_checkpoint(folder, saved[0]).card['num_steps'] if saved else 0
  except UserError:  # damaged: its run, started again, says so
    num_steps = 0
  if not num_steps:
    return None
  stop = stages_lib.find_stop(num_steps, config.checkpoint)
  told = run_folder.RunFolder(run.folder / name).load_valid().get(stop)
  return Score(*told) if told and saved[0] >= stop else None


def check_rules(runs: list[PointRun], share: float) -> None:
  """Before the runs that are not there yet are started, which is by today's rule of judging.

  What was decoded at a share is not kept, so that it cannot be judged again.
  Raises: UserError where scores would be of different versions of the rule.
  """
  versions = {}
  for run in runs:
    score = read_score(run, share)
    if score or run.status != 'failed':
      versions.setdefault(score.rule_version if score else judge_lib.RULE_VERSION, run.point.name)
  if len(versions) > 1:
    told = '; '.join(f'{name} by version {version}' for version, name in sorted(versions.items()))
    raise UserError(f'--halve_at={share:g}: accuracies on valid are judged by different versions '
                    f'of the rule ({told}) and cannot be compared; run this sweep without '
                    '--halve_at, or in another --workdir')


def judge(runs: list[PointRun], share: float, keep: float) -> dict:
  """What one share says of the points that reached it: scores, and which settings go on.

  A setting's score is the mean over its seeds; one as good as the last that goes on goes on too.
  Settings without a score (every seed failed) are not judged. All scores are of one version of
  the rule, as `check_rules` has seen.
  """
  sizes = collections.Counter(grid_lib.name_setting(run.point) for run in runs)
  found = [(run, score) for run in runs if (score := read_score(run, share))]
  scores = stats.group((grid_lib.name_setting(run.point), score.valid_acc) for run, score in found)
  means = {name: statistics.fmean(accs) for name, accs in scores.items()}
  ranked = sorted(means, key=lambda name: -means[name])  # equals stay in the recipe's order
  limit = means[ranked[_count_kept(keep, len(ranked)) - 1]] if ranked else 0.0
  version = max((score.rule_version for _, score in found), default=None)
  return {'share': share, 'rule_version': version, 'settings': [
      {'name': name, 'valid_acc': means[name], 'seeds': len(scores[name]), 'of_seeds': sizes[name],
       'rank': rank, 'goes_on': means[name] >= limit} for rank, name in enumerate(ranked, 1)]}


def describe(setting: dict, rung: dict) -> str:
  """Why a setting went on or not."""
  kept = sum(s['goes_on'] for s in rung['settings'])
  return (f"after {rung['share']:.0%} of its budget: {setting['valid_acc']:.1%} of valid over "
          f"{setting['seeds']} of {setting['of_seeds']} seed(s), place {setting['rank']} of "
          f"{len(rung['settings'])}, of which {kept} go on")


def _count_kept(keep: float, count: int) -> int:
  return max(1, math.ceil(round(keep * count, 6)))
