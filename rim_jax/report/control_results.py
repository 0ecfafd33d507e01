"""What controls and probes say beside a result, and over the seeds of a sweep.

Reads what `--mode=controls` left (controls.json), never a model. What was asked of another
checkpoint, set or data than a result is of, is never put beside it.
"""

import dataclasses
import itertools
from typing import Any

from rim_jax.config.methods import FACTS
from rim_jax.errors import UserError
from rim_jax.results import stats
from rim_jax.results.settings import ControlOverSeeds, ProbesOverSeeds, StepsOverSeeds
from rim_jax.results.values import ControlsResult, EvalResult, ProbesResult
from rim_jax.runtime.run_folder import RunFolder

PROBED = 'test'  # the split that probes are reported on, whichever the controls are of


def load_asked(folder: RunFolder, set_name: str, result: EvalResult
               ) -> tuple[ControlsResult | None, str]:
  """(what controls.json holds beside one of the sets in a run's results.json; why nothing).

  The reason is '' where nothing was asked.
  """
  try:
    found = folder.load_controls()
  except UserError as e:  # optional, so that a damaged one takes nothing else with it
    return None, str(e)
  if found is None:
    return None, ''
  if result.checkpoint == 'splits':
    return None, 'the result is of several checkpoints, and controls are of one'
  asked, told = (found.step, found.set), (result.step, set_name)
  prints = (found.data_fingerprint, result.data_fingerprint)
  if asked == told and (None in prints or prints[0] == prints[1]):
    # The first files of version 2 tell it by the rule's words alone.
    rule, told_by = found.rule_version or 1 + (found.answer_rule or '').startswith(
        'a whole gold answer'), result.rule_version or 1
    if rule == told_by:
      return _leave_out_chains(found), ''
    # A control's answers are not kept, so that they cannot be judged again.
    return None, (f'controls.json was judged by version {rule} of the rule, the result by version '
                  f'{told_by}; ask it again with --mode=controls')
  others = 'other data' if asked == told else f'step {asked[0]} on {asked[1]}'
  return None, (f'controls.json is of {others}, the result of step {told[0]} on {told[1]}; ask it '
                'again with --mode=controls')


def _leave_out_chains(found: ControlsResult) -> ControlsResult:
  """Without `no_blocks` of a method that writes a chain, from before a prefix was forced there."""
  facts, entry = FACTS.get(found.method or ''), found.controls.get('no_blocks')
  if entry is None or entry.chain_trained is not None or not (facts and facts.learns_steps):
    return found
  return dataclasses.replace(
      found, controls={k: v for k, v in found.controls.items() if k != 'no_blocks'})


def get_probes(found: ControlsResult | None) -> ProbesResult | None:
  """The probes in controls.json, where they are of the set that its controls are of."""
  if not found or not found.probes or not found.probes.right:
    return None
  return found.probes if (found.set or '').partition('-')[0] == PROBED else None


def get_selected(found: ControlsResult | None, result: EvalResult) -> float | None:
  """The accuracy of the readout that a probe chooses; of one there is no choice."""
  probes = get_probes(found)
  return probes.right.selection.acc if (
      probes and probes.right and len(result.block_acc) > 1) else None


def summarize_controls(asked: list[ControlsResult]) -> dict[str, ControlOverSeeds]:
  """What the runs of one setting say together, control by control.

  Those that no run has measured are left out, unless runs say why.
  """
  summaries = {}
  for name in dict.fromkeys(itertools.chain(*(found.controls for found in asked))):
    given = [found.controls[name] for found in asked if name in found.controls]
    # A matched run that stands beside several seeds is one run, not several.
    own = list({entry.run or i: entry for i, entry in enumerate(given)}.values())
    told = ControlOverSeeds(
        what=given[0].what or '', expected=given[0].expected or '',
        final_acc=average([entry.final_acc for entry in own]),
        final_donor_acc=average([entry.final_donor_acc for entry in own]),
        none=sorted({entry.none for entry in own if entry.none}) or None,
        differs=sorted(set(itertools.chain(*(entry.differs or () for entry in own)))) or None)
    if told.final_acc or told.final_donor_acc or told.none or told.differs:
      summaries[name] = told
  return summaries


def summarize_probes(asked: list[ControlsResult]) -> ProbesOverSeeds | None:
  """What the probes of the runs of one setting say together; None where no run has any."""
  probed = [probes for found in asked if (probes := get_probes(found))]
  if not probed:
    return None
  right = [probes.right for probes in probed if probes.right]
  steps = [probes.steps for probes in probed if probes.steps and probes.steps.acc]
  return ProbesOverSeeds(
      count=len(probed),
      auroc=average([[entry.auroc for entry in r.by_block] for r in right]),
      pooled_auroc=average([r.pooled.auroc for r in right]),
      recoverable_acc=average([r.selection.recoverable_acc for r in right]),
      recoverable_final_acc=average([r.selection.recoverable_final_acc for r in right]),
      steps=StepsOverSeeds(acc=average([s.acc for s in steps]),
                           majority=average([s.majority for s in steps])) if steps else None)


def average(values, keep: bool = False) -> Any:
  """A summary over runs of numbers, or of lists or dicts of them place by place; None is no number.

  Args:
    keep: whether a summary of numbers has the values too; those of places have not.
  Returns: None where there is no number.
  """
  values = [value for value in values if value is not None]
  if not values:
    return None
  if isinstance(values[0], list):
    return [average(place) for place in itertools.zip_longest(*values)]
  if isinstance(values[0], dict):
    return {k: average([value.get(k) for value in values])
            for k in dict.fromkeys(itertools.chain(*values))}
  return stats.summarize(values, keep)
