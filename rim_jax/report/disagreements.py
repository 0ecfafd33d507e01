"""Questions on which runs differ, with the answers that each gave: a part of a sweep's page.

Reads predictions of runs that are done, never a model.
"""

from rim_jax.errors import UserError
from rim_jax.report import page, pairwise
from rim_jax.report.tables import clean, name, number, table
from rim_jax.results import stats

_NUM_SHOWN = 6


def make_examples(runs) -> page.Blocks:
  """Answers of runs to the same few questions, one run below another; [] where none has answers.

  Args:
    runs: a run's name -> its sweep.State; those on other questions than most of them
      are left out, with a note.
  """
  groups, left_out = {}, []
  for label, state in runs.items():
    try:
      if not pairwise.has_predictions(state):
        raise UserError('several of its checkpoints were scored, so it has no one answer')
      predictions = state.last[1].load_predictions(state.last[0].eval_set)
    except UserError as e:
      left_out.append(f'{state.point.name}: {e}')
      continue
    asked = tuple((p.question, p.answer) for p in predictions)
    groups.setdefault(asked, []).append((label, state, predictions))
  asked, group = max(groups.items(), key=lambda item: len(item[1]), default=((), []))
  left_out += [f'{state.point.name}: was asked other questions' for others in groups.values()
               if others is not group for _, state, _ in others]
  right = [[p.correct for p in predictions] for _, _, predictions in group]
  shown = [table([(f'gold: {clean(asked[i][1])}', ''), clean(asked[i][0])],
                 [[name(label), page.mark_answers(predictions[i], state.result)]
                  for label, state, predictions in group])
           for i in choose_questions(right, _NUM_SHOWN)]
  return [*([_describe(right)] if shown else []), *shown, *(
      page.paragraph(f'Left out: {clean(why)}.', small=True) for why in left_out)]


def choose_questions(right, count: int) -> list[int]:
  """Numbers of the questions that tell most of how runs differ, best first.

  Those on which the runs that are right and those that are not are most evenly many, one for each
  way to divide the runs before a second for any; what all or none have right comes last.

  Args:
    right: for each run whether it has each question right, in one order.
  """
  ranked = []
  for way, places in stats.group((way, i) for i, way in enumerate(zip(*right))).items():
    smaller = min(sum(way), len(way) - sum(way))
    ranked += [(smaller == 0, turn, -smaller, -len(places), i) for turn, i in enumerate(places)]
  return [i for *_, i in sorted(ranked)[:count]]


def _describe(right):
  """How the questions were chosen, and of how many."""
  ways = list(zip(*right))
  apart = sum(0 < sum(way) < len(way) for way in ways)
  return page.paragraph(
      'Answers read (✓ right, ✗ wrong), after each block where there are some; one seed of each '
      'setting. ', number(apart), ' of ', number(len(ways)), ' questions are right with one of '
      'these runs and wrong with another. Shown are such, as far as there are any, one for each '
      'way to divide the runs first: they are no sample.', small=True)
