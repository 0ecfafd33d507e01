"""Which of two settings is better: McNemar's tests on the questions that both answered.

Reads predictions of runs that are done, never a model.
"""

import dataclasses
import itertools

from rim_jax import reader
from rim_jax.errors import UserError
from rim_jax.results import stats
from rim_jax.results.settings import BestSetting, Conclusion, SettingResult
from rim_jax.runtime import run_folder

MOST_PAIRED = 10  # settings of which any two are compared; of more, each with the best alone
PAIRS_MEAN = ("mean difference in points; p of each seed, McNemar's, exact, corrected (Holm) for "
              'all pairs of that seed')


def compare_with_best(entries: list[SettingResult], best: BestSetting | None, states
                      ) -> list[SettingResult]:
  """The entries with McNemar of each against the best, each test alone: nothing is corrected."""
  chosen = next((e for e in entries if best and e.name == best.name), None)
  return [dataclasses.replace(entry, against_best={
      'best': chosen.name, **_compare(entry, chosen, states)})
          if chosen and entry is not chosen and entry.num_done else entry for entry in entries]


def compare_pairs(entries: list[SettingResult], states) -> list[dict]:
  """Any two entries, a the recipe's later: tests as against the best, with Holm's correction.

  `p_value_holm` is corrected for all pairs that have the seed; seeds are not pooled, for the
  questions are the same ones. `difference` is that of accuracies, a less b, over seeds.

  Returns: [] for more than MOST_PAIRED entries.
  """
  done = [e for e in entries if e.num_done]
  if len(done) > MOST_PAIRED:
    return []
  pairs = [{'a': a.name, 'b': b.name, **_compare(a, b, states)}
           for b, a in itertools.combinations(done, 2)]
  for pair in pairs:
    if pair['tests']:
      pair['difference'] = reader.to_tree(
          stats.summarize([t['difference'] for t in pair['tests']]))
  for tests in stats.group((t['seed'], t) for pair in pairs for t in pair['tests']).values():
    for test, value in zip(tests, stats.adjust_holm([t['p_value'] for t in tests])):
      test['p_value_holm'] = value
  return pairs


def _compare(entry: SettingResult, other: SettingResult, states) -> dict:
  """McNemar of two entries on the same questions, for each seed that both have."""
  mine, theirs = ({states[n].point.factors.get('seed'): states[n].predictions
                   for n in e.points if has_predictions(states[n])} for e in (entry, other))
  found = {'tests': [], 'not_compared': {}}
  for seed, path in mine.items():
    try:
      if seed in theirs:
        found['tests'].append(
            {'seed': seed, **dataclasses.asdict(run_folder.compare_files(path, theirs[seed]))})
    except UserError as e:  # other questions, or files that are gone: the rest still stands
      found['not_compared'][f'seed {seed}'] = str(e)
  return found


def has_predictions(state) -> bool:
  """Splits that choose by themselves have no one checkpoint, and so no one answer a question."""
  return state.last[0].eval.checkpoint != 'splits'



def describe_unpaired(conclusion: Conclusion) -> str:
  """Why there is no table of pairs, where more settings are done than it has room for; or ''."""
  count = sum(e.num_done > 0 for e in conclusion.entries)
  if count <= MOST_PAIRED:
    return ''
  told = f'{count} settings are too many for a table of any two'
  return told + '; each is compared with the best alone.' * bool(conclusion.best)


def show_chance(value) -> str:
  return '< 1e-6' if value < 1e-6 else f'{value:.2g}'
