"""The matched direct and pause runs that stand beside the controls, and what they have otherwise.

Reads what those runs have left (card, results), never a model.
"""

import dataclasses

from rim_jax.config import Config, flatten, is_runtime, methods, stages
from rim_jax.errors import UserError, list_broken, refuse
from rim_jax.evaluation import interventions
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import run_folder

# Keys that a matched run may have otherwise, each as a whole or as how some begin: of steps and of
# stages, which it has not; of other methods; which examples share a row, not what they are; and
# data, whose fingerprint must agree.
_OF_OTHERS = (
    'method', 'data.', 'layout.depth0_readout', 'layout.skip_steps', 'layout.step_',
    'curriculum.schedule', 'curriculum.hold_frac', 'curriculum.absolute_steps', 'curriculum.stage',
    'curriculum.reset_optimizer', 'curriculum.continue_data', 'curriculum.inside_weight', 'icot.',
    'coconut.', 'codi.', 'lotus.', 'distill.', 'aux.',
    'layout.paired_readout', 'layout.teacher_last_step', 'layout.supervise_prefix', 'layout.row_',
    'layout.pack_window_rows')
# Of blocks, which `direct` has not.
_OF_BLOCKS = ('layout.num_blocks', 'layout.block_tokens', 'layout.readout_sees_question',
              'layout.bidirectional_blocks', 'layout.stage2_depth0_readout', 'curriculum.alpha',
              'model.memory_', 'loop.')
# A stage that is a run by itself has its own budget, rate and dropout; the whole's are not in it.
_OF_A_STAGE = ('train.num_', 'train.skip_', 'optim.learning_rate', 'model.dropout',
               'model.lora.dropout')


def load_matched(config: Config, prints: dict, set_names: dict) -> dict:
  """Entries of the matched direct and pause runs; `given` False for one that no key names.

  An entry's `differs` lists what that run has otherwise than this, of all that could make its
  accuracy another one and that the two methods share.

  Args:
    config: of the whole run, a curriculum's own and not its last stage's.
    prints: fingerprints of this run: data, tokenizer, base and start (None without one). Where its
      card is too old to tell the start, there is none, and its path is compared.
    set_names: what results.json calls this set, by method.
  Raises: UserError for a directory without such a run, on other data, or without this set.
  """
  entries, problems = {}, []
  for facts in methods.CONTROLS:
    name = facts.name
    folder = getattr(config.controls, f'{name}_dir')
    entries[name] = interventions.describe(name, given=bool(folder))
    if not folder:
      continue
    key = f'--config.controls.{name}_dir={folder}'
    try:
      card = card_lib.load_card(folder)
      results = run_folder.RunFolder(folder).load_results()
    except UserError as e:
      problems.append(f'{key}: {e}')
      continue
    theirs, method, wanted = card['data']['fingerprint'], card['config']['method'], set_names[name]
    wrong = list_broken(
        (methods.get_facts(method) is not facts,
         f"was run with method '{method}'; name a {name} run, or leave the key out"),
        (theirs != prints['data'],
         f'its data are not this run\'s (fingerprint {theirs}, here {prints["data"]}); train it on '
         'the same data, or leave the key out'),
        (wanted not in results,
         f"has no results on '{wanted}', only on {', '.join(results) or 'nothing'}; evaluate it "
         'there with --mode=eval'))
    problems += [f'{key}: {why}' for why in wrong[:1]]
    if not wrong:
      entries[name] |= {
          'run': folder, 'seed': card['config']['seed'], **interventions.pick(results[wanted]),
          'differs': _find_differences(card, config, prints)}
  refuse(problems)
  return entries


def find_matched(config: Config, others: dict) -> dict:
  """The runs that belong beside this one's controls: method -> the first name of such a run.

  It has the same data, base and evaluation, without which `load_matched` would refuse it, and
  differs in nothing that the two methods share.

  Args:
    config: of the whole run, and `others` those of others, by name.
  """
  def fits(other):
    return (other.facts.control and other.facts is not config.facts
            and other.data == config.data and other.tokenizer == config.tokenizer
            and other.model.init_from == config.model.init_from
            and other.eval_set == dataclasses.replace(config, method=other.method).eval_set
            and not _list_changed(flatten(other), config))
  return {other.method: name for name, other in reversed(others.items()) if fits(other)}


def _find_differences(card, config: Config, prints) -> list[str]:
  """Keys in which a matched run's card is not as this run, and fingerprints that are others."""
  found = {'tokenizer': card['tokenizer'], 'base': (card['base'] or {}).get('fingerprint')}
  # A second stage begins with its stage 1, whatever that began with. A path is no identity.
  told = 'start' in prints and 'start' in card
  if told and not config.facts.after:
    found['start'] = (card['start'] or {}).get('fingerprint')
  return _list_changed(flatten(card['config']), config, ('train.init_from',) * told) + [
      k for k, v in found.items() if v != prints[k]]


def _list_changed(theirs: dict, config: Config, left_out=()) -> list[str]:
  """Keys that both methods have and that change what is computed, where another run's differ."""
  left_out += _OF_OTHERS
  # Stages may set blocks of their own: those that answer are compared.
  config = dataclasses.replace(config, layout=stages.make_stages(config)[-1][1].layout)
  if not methods.get_facts(theirs['method']).has_blocks:
    left_out += _OF_BLOCKS
    # Right behind a question a prefix may begin with a space, which it needs not behind a block.
    if theirs['layout.answer_prefix'].lstrip(' ') == config.layout.answer_prefix.lstrip(' '):
      left_out += ('layout.answer_prefix',)
  if config.facts.stage:
    left_out += _OF_A_STAGE
  if config.facts.after:
    left_out += ('train.init_from',)
  return [k for k, v in flatten(config).items()
          if theirs.get(k) != v and not is_runtime(k) and not k.startswith(left_out)]
