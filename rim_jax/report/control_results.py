"""What controls and probes say beside a result, and over the seeds of a sweep.

Reads what `--mode=controls` left (controls.json), never a model. What was asked of another
checkpoint, set or data than a result is of, is never put beside it.
"""

import dataclasses
import itertools
from typing import Any

from rim_jax.errors import UserError
from rim_jax.report.page import load_json
from rim_jax.results import stats

PROBED = 'test'  # the split that probes are reported on, whichever the controls are of
# What a readout that a probe chooses has right; the choice looks at no answer of the set.
SELECTED = 'selected_acc'
SELECTED_BY = 'the block whose probe is most confident; probes fitted on train, C chosen on valid'
SHARES = ('final_acc', 'final_donor_acc')  # of a control: own answers that are right, and donors'
_OF_SELECTION = ('recoverable_acc', 'recoverable_final_acc')  # where some block is right


def load_asked(folder, set_name: str, result: dict) -> tuple[dict, str]:
  """(what controls.json holds beside one of the sets in a run's results.json, or {}; why not).

  The reason is '' where nothing was asked.
  """
  try:
    found = load_json(folder, 'controls.json')
  except UserError as e:  # optional, so that a damaged one takes nothing else with it
    return {}, f'{e}; ask it again with --mode=controls'
  if not found:
    return {}, ''
  if result.get('checkpoint') == 'splits':
    return {}, 'the result is of several checkpoints, and controls are of one'
  asked, told = ((of.get('step'), name) for of, name in (
      (found, found.get('set')), (result, set_name)))
  prints = [of.get('data_fingerprint') for of in (found, result)]
  if asked == told and (None in prints or prints[0] == prints[1]):
    return found, ''
  others = 'other data' if asked == told else f'step {asked[0]} on {asked[1]}'
  return {}, (f'controls.json is of {others}, the result of step {told[0]} on {told[1]}; ask it '
              'again with --mode=controls')


def get_probes(found: dict) -> dict:
  """The probes in controls.json, where they are of the set that its controls are of; or {}."""
  probes = found.get('probes', {})
  of_set = found.get('set', '').partition('-')[0] == PROBED
  return probes if of_set and 'right' in probes else {}


def get_selected(found: dict, result: dict) -> dict:
  """{SELECTED: accuracy of the readout that a probe chooses}, or {}; of one there is no choice."""
  if len(result['block_acc']) == 1:
    return {}
  selection = get_probes(found).get('right', {}).get('selection', {})
  return {SELECTED: selection['acc']} if 'acc' in selection else {}


def summarize(asked: list[dict]) -> dict:
  """What the runs of one setting say together, as its entry in sweep.json has it.

  Args:
    asked: what the controls.json of each run holds, which is of its result.
  Returns: 'controls', name -> what is done, what it should give, and its shares; 'probes': AUROC
    by block, pooled AUROC, shares of what the probe chooses, 'steps' [K][T]. Each number is a
    summary over the runs that have one, or None. Either is absent where no run has any.
  """
  controls = _summarize_controls([found['controls'] for found in asked if 'controls' in found])
  probes = _summarize_probes([probes for found in asked if (probes := get_probes(found))])
  return {name: told for name, told in (('controls', controls), ('probes', probes)) if told}


def _summarize_controls(asked) -> dict:
  """Control -> its entry; one that no run has measured is left out, unless runs say why."""
  summaries = {}
  for name in dict.fromkeys(itertools.chain(*asked)):
    given = [controls[name] for controls in asked if name in controls]
    # A matched run that stands beside several seeds is one run, not several.
    own = list({entry.get('run', i): entry for i, entry in enumerate(given)}.values())
    shares = {key: average([entry.get(key) for entry in own]) for key in SHARES}
    told: dict[str, Any] = {key: share for key, share in shares.items() if share}
    for key in ('none', 'differs'):
      reasons = [entry[key] for entry in own if entry.get(key)]
      if reasons:
        told[key] = sorted(set(itertools.chain(*(
            [r] if isinstance(r, str) else r for r in reasons))))
    if told:
      summaries[name] = {key: given[0].get(key, '') for key in ('what', 'expected')} | told
  return summaries


def _summarize_probes(probed) -> dict:
  if not probed:
    return {}
  right = [probes['right'] for probes in probed]
  steps = [probes['steps'] for probes in probed if 'acc' in probes['steps']]
  return {
      'count': len(probed),
      'auroc': average([[entry.get('auroc') for entry in r['by_block']] for r in right]),
      'pooled_auroc': average([r['pooled'].get('auroc') for r in right]),
      **{key: average([r['selection'].get(key) for r in right]) for key in _OF_SELECTION},
      **({'steps': {key: average([s[key] for s in steps]) for key in ('acc', 'majority')}}
         if steps else {})}


def average(values):
  """A summary over runs of numbers, or of lists of them place by place; None is no number.

  Returns: None where there is no number.
  """
  values = [value for value in values if value is not None]
  if not values:
    return None
  if isinstance(values[0], list):
    return [average(place) for place in itertools.zip_longest(*values)]
  return dataclasses.asdict(stats.summarize(values))
