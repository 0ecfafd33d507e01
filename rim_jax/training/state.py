"""Where a run's state comes from: fresh, pretrained, another run's, or its own checkpoint.

`task` is a `task.Task`: config, codec, mesh and base.
"""

import dataclasses
import typing

from etils import epath
import jax

from rim_jax import config as config_lib
from rim_jax import methods, reader
from rim_jax.config import Config
from rim_jax.config.methods import get_facts
from rim_jax.errors import NoStart, UserError, check, list_broken, refuse
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.pretrained import peft as peft_lib
from rim_jax.pretrained import weights
from rim_jax.results import values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts, run_folder
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import optim as optim_lib
from rim_jax.training import step as step_lib

# A loaded model must agree on all of `model` but these, which may change between stages.
_MODEL_RUNTIME_KEYS = ('dropout', 'remat', 'scan_layers', 'attention_tile_tokens',
                       'compute_dtype', 'frozen_dtype', 'init_from', 'lora.dropout',
                       'lora.shared_dropout', 'lora.init_from')
_ROW_KEYS = ('memory_init', 'memory_token', 'memory_noise')


class _Nonfinite(typing.TypedDict):
  """What is read of a nonfinite.json."""
  step: int


def is_complete(workdir) -> bool:
  """Whether a run has taken all of its steps, and the checkpoint that counts has a result.

  A result alone would not tell: --mode=eval writes one of any checkpoint, also half-way. Whether
  it is of the questions that are asked for now, `evaluation.run_scores.is_evaluated` tells.
  """
  workdir = epath.Path(workdir)
  steps = checkpoint_lib.list_steps(workdir / 'checkpoints')
  if not steps or not (workdir / 'results.json').exists():
    return False
  try:
    last = checkpoint_lib.choose_checkpoint(workdir, 'last')
  except UserError:  # damaged: training puts it aside, and takes its steps again
    return False
  if last.step != last.card['num_steps']:
    return False
  results = run_folder.RunFolder(workdir).load_written()  # by whichever rule they were judged
  return any(is_of_today(result, workdir) for result in results.values())


def _had_to_end(workdir) -> bool:
  """Whether a run met a loss that is not finite after its last checkpoint, and would meet it again.

  Others, that name it, may begin with that checkpoint.
  """
  path = epath.Path(workdir) / run_folder.NONFINITE
  return path.exists() and checkpoint_lib.choose_checkpoint(workdir, 'last').step < (
      reader.load_json(path, 'remove it', _Nonfinite)['step'])


def is_of_today(result: values.EvalResult, workdir) -> bool:
  """Whether a result is of the checkpoint, or of those, that its rule chooses now."""
  if result.checkpoint == 'splits':
    return set(result.chosen or ()) == {*map(str, checkpoint_lib.list_counting(workdir))}
  if result.checkpoint == 'best' and checkpoint_lib.is_rated_by_many(workdir):
    return False
  return result.checkpoint in ('best', 'last') and result.step == checkpoint_lib.choose_checkpoint(
      workdir, result.checkpoint, checkpoint_lib.is_told).step


def load_network(task, workdir, which: str | int, is_start: bool = False, say=None
                 ) -> tuple[Network, int]:
  """The network of a run's checkpoint, on the task's mesh, and the step that it is of.

  Args:
    is_start: a run of another method may begin with it: what its method adds is fresh where the
      checkpoint has nothing of the kind.
    say: is told how far loading is, where that takes long.
  """
  program = step_lib.make_program(task.config, task.vocab_size, 1, task.mesh)
  state, frozen = program.abstract
  found = checkpoint_lib.lead_choice(workdir, which, checkpoint_lib.is_of_network)
  if not found.card.get('counts', True):
    raise UserError(f'{found.folder}: at this step a part of the chain is still written, and iCoT '
                    'is judged without; run its command again to finish it')
  wanted, fresh = dict(state.params), {}
  if is_start and 'added' in wanted and not any(
      name.startswith('added.') for name in found.card['params']):
    make = jax.jit(lambda key: program.make_params(key, {})[0]['added'],  # and nothing else of it
                   out_shardings=program.shardings[0].params['added'])
    fresh = {'added': make(jax.random.key(task.config.seed))}
    del wanted['added']
  params = checkpoint_lib.restore(found, 'params', wanted) | fresh
  frozen = _load_frozen(task, workdir, frozen, say)
  if fresh:
    params = jax.jit(methods.begin_decoder, out_shardings=program.shardings[0].params)(
        params, frozen)
  return Network(program.graphdef, params, frozen, task.config, task.codec, task.mesh), found.step


def load_params(network: Network, workdir, step: int) -> dict:
  """The trainable parameters of another checkpoint of the run that a network is of."""
  found = checkpoint_lib.lead_choice(workdir, step, checkpoint_lib.is_of_network)
  return checkpoint_lib.restore(found, 'params', jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), network.params))


def _load_frozen(task, workdir, abstract, say=None):
  """The frozen parameters of a run: a pretrained model's own files, or what the run saved."""
  if task.base and jax.tree.leaves(abstract):
    return weights.load_params(task.base, abstract, say)
  return checkpoint_lib.load_base(workdir, abstract)


def initialize(task, program, init_from, say):
  """A fresh state: random, pretrained, or an earlier stage's parameters."""
  if init_from is None:
    base = None
    if task.base:
      say(f'loading {weights.describe(task.base)}')
      base = weights.load_params(task.base, program.base, say)
    state, frozen = program.init(jax.random.key(task.config.seed), base)
    peft = task.config.model.lora.init_from
    if peft:
      say(f'adapters from {peft}')
      state = program.make_state(
          peft_lib.load_adapters(peft, task.config, task.base.family, state.params, say))
    return state, frozen
  card = card_lib.load_card(init_from)
  if not hosts.lead(lambda: is_complete(init_from) or (
      task.config.train.init_from and _had_to_end(init_from))):
    raise UserError(f'{init_from}: is not complete; run its command again to finish it')
  model, theirs = (config_lib.flatten(c) for c in (
      dataclasses.asdict(task.config.model), card['config']['model']))
  # Rows that stood in no row yet are drawn, as this run asks and from the embedding as it is now.
  has_rows = get_facts(card['config']['method']).reads_rows(card['config']['layout']['num_blocks'])
  free = _MODEL_RUNTIME_KEYS + (
      () if has_rows and task.config.facts.has_blocks else _ROW_KEYS)
  trainable, trained = task.config.optim.trainable, card['config']['optim']['trainable']
  problems = [f'has model.{k}={theirs.get(k)!r}, this run has {v!r}; set --config.model.{k} to '
              'agree' for k, v in model.items()
              if k not in free and theirs.get(k) != v] + list_broken(
      (trainable != trained, f'has optim.trainable={trained!r}, this run has {trainable!r}; set '
       '--config.optim.trainable to agree'),
      (task.base and (card['base'] or {}).get('fingerprint') != task.base.fingerprint,
       f'was trained on another base than {task.base and task.base.folder}; set '
       '--config.model.init_from to the same model'),
      (card['tokenizer'] != task.codec.tokenizer.fingerprint,
       f'was trained with another tokenizer ({card["tokenizer"]}); use the same '
       '--config.tokenizer'))
  refuse([f'{init_from}: {problem}' for problem in problems])
  network, step = load_network(task, init_from, 'last', is_start=True)
  state = program.make_state(network.params if has_rows else network.draw_rows(
      jax.random.key(task.config.seed)))
  if not task.config.curriculum.reset_optimizer:
    theirs = checkpoint_lib.restore(checkpoint_lib.lead_choice(init_from, 'last'), 'optim',
                                    get_optim(program.abstract[0]))
    state = dataclasses.replace(
        state, opt_state=optim_lib.swap_moments(state.opt_state, theirs['opt_state']))
  say(f'parameters{"" if task.config.curriculum.reset_optimizer else " and moments"} from step '
      f'{step} of {init_from}')
  return state, network.frozen


def find_init(config: Config, workdir) -> epath.Path | None:
  """The run that a stage starts from: named, or for rim's stage 2 beside its own WORKDIR.

  One that has begun need not find a named one any more.
  Raises: UserError with what to do; a NoStart, where a command can make what is missing.
  """
  workdir, named = epath.Path(workdir), config.train.init_from
  facts = config.facts
  if not facts.after:
    if named and not any((epath.Path(folder) / 'config.json').exists()
                         for folder in (named, workdir)):
      raise UserError(f'{named}: there is no run here to start from; name another one, or a stage '
                      'of one that has several, with --config.train.init_from=DIR')
    return epath.Path(named) if named else None
  path = (epath.Path(named) if named else
          workdir.parent / workdir.name.replace(facts.stage, facts.after))
  if path == workdir or not (path / 'config.json').exists():
    raise NoStart(f'{path}: no {facts.after} run to start from; name one with '
                  '--config.train.init_from=DIR', facts.after, '' if path == workdir else str(path))
  return path


def describe_params(state, frozen) -> str:
  """How many parameters train and do not, and the memory that one device holds of them."""
  (trainable, _), (base, _) = map(sharding.count_params, (state.params, frozen))
  # Gradients have the shape and dtype of what trains.
  parts = [sharding.count_bytes(tree) / 2**20
           for tree in (state.params, state.opt_state, state.params, frozen)]
  return (f'{trainable:,} trainable parameters, {base:,} frozen, {trainable + base:,} in all; a '
          f'device holds {sum(parts):,.1f} MiB: parameters {parts[0]:,.1f}, optimizer '
          f'{parts[1]:,.1f}, gradients {parts[2]:,.1f}, frozen {parts[3]:,.1f}; activations come '
          'on top')


def restore(task, latest, program, workdir, stage):
  """State and frozen parameters of a checkpoint, on this run's mesh."""
  check(*((latest.card[key] != getattr(stage, key),
           f'{latest.folder}: was saved by a plan with {key}={latest.card[key]}, now it is '
           f'{getattr(stage, key)}; use another --workdir') for key in ('num_steps', 'batch_rows')))
  abstract, frozen = program.abstract
  optim = checkpoint_lib.restore(latest, 'optim', get_optim(abstract))
  params = checkpoint_lib.restore(latest, 'params', abstract.params)
  return step_lib.TrainState(params=params, **optim), _load_frozen(task, workdir, frozen)


def get_optim(state):
  """Everything of a state but its parameters, as the checkpoint item `optim`."""
  return {'step': state.step, 'healthy': state.healthy, 'opt_state': state.opt_state}
