"""Orbax checkpoints of a run: what is saved and kept, and which one is taken.

A checkpoint is WORKDIR/checkpoints/STEP/: the items `params` (the trainable
set), `optim` (everything else an update changes) and `card` (JSON: data
position, shapes, metrics), and the manifest by which damage is seen
(`manifest.py`). One without a manifest was never finished.
"""

import concurrent.futures
import dataclasses
import typing

from etils import epath
import jax
import orbax.checkpoint as ocp

from rim_jax import reader
from rim_jax.config import CheckpointConfig
from rim_jax.errors import NonFiniteError, Stopped, UserError, refuse
from rim_jax.runtime import hosts, run_folder, storage
from rim_jax.training import manifest

_SLOW_BYTES_PER_SEC = 20e6
_POLICIES = ocp.checkpoint_managers


class Card(typing.TypedDict):
  """What is read of a checkpoint's own card."""
  valid_final_acc: float | None
  params: dict[str, list]
  optim: dict[str, list]
  num_steps: typing.NotRequired[int]
  counts: typing.NotRequired[bool]
  scheduled: typing.NotRequired[bool]
  rule_version: typing.NotRequired[int]


# ---- Which files of a checkpoint are verified, by name ----


def is_told(name: str) -> bool:
  """What a choice among checkpoints is made from: a small file."""
  return name.startswith('card/')


def is_of_network(name: str) -> bool:
  """All that is read for a network: no optimizer, which is two thirds of a checkpoint."""
  return not name.startswith('optim/')


# ---- What is saved ----


def estimate_save_secs(*trees) -> float:
  """Seconds that writing arrays and reading them back takes where storage is slow."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trees)) / _SLOW_BYTES_PER_SEC


def describe_tree(tree) -> dict:
  """Path -> [shape, dtype] of every array."""
  return {jax.tree_util.keystr(path, simple=True, separator='.'): [list(x.shape), str(x.dtype)]
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def check_tree(saved: dict, wanted: dict, where: str) -> None:
  """Raises: UserError listing every array that differs, with both shapes (Orbax casts silently)."""
  refuse([f'{where}: {name} is {_show(saved.get(name))} in the checkpoint, '
          f'{_show(wanted.get(name))} in the config; use the config that trained it'
          for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)])


def _get_acc(metrics: dict) -> float:
  return metrics['valid_final_acc']


@dataclasses.dataclass
class _KeepLatest(_POLICIES.PreservationPolicy):
  """Keeps the newest two checkpoints, and the newest `num` of those that were scheduled.

  Two, because Orbax asks before the newest has its manifest: a run that is killed then goes on from
  the one before. One that was saved because the run was asked to stop takes no other's place: what
  is kept in the end is what an undisturbed run keeps (`Checkpointer.finish`).
  """
  num: int

  def should_preserve(self, checkpoints, *, context):
    scheduled = [i for i, c in enumerate(checkpoints) if (c.metrics or {}).get('scheduled', True)]
    kept = {len(checkpoints) - 1, len(checkpoints) - 2, *scheduled[-self.num:]}
    return [i in kept for i in range(len(checkpoints))]


class _Manager(ocp.CheckpointManager):
  """Orbax's, which leaves the question of a preemption to `hosts.StopSignal`.

  JAX agrees on one number a process at which all stop. Orbax asks by the step, `StopSignal` by a
  count of its own: a notice that was agreed on by the one would not be heard by the other.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


def _show(entry):
  return 'missing' if entry is None else f'{entry[1]}{entry[0]}'


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One verified checkpoint on disk."""
  step: int
  folder: epath.Path
  card: dict


class Checkpointer:
  """Saves and finds the checkpoints of one WORKDIR.

  `say` takes one line for a person. Use as a context manager: leaving it waits
  for saves under way. Process 0 alone looks at what is there and changes it: damaged checkpoints
  are named and put aside.

  Raises: UserError when there are checkpoints and all are damaged.
  """

  def __init__(self, workdir, config: CheckpointConfig, say=print):
    self._folder = storage.get_absolute(workdir) / 'checkpoints'
    self._say = say
    self._pending = None  # step whose commit is awaited
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._seals = []
    hosts.lead(self._clear_unfinished)
    # Before Orbax looks at them: it reads some of their files, and would fail with a traceback.
    self._latest = hosts.lead(self._put_damaged_aside)
    self._keep_every = config.keep_every_steps
    self._manager = _Manager(self._folder, options=ocp.CheckpointManagerOptions(
        # Without it Orbax keeps metrics in memory alone, and BestN, after a restart, every step
        # whose metrics it does not know.
        best_fn=_get_acc,
        preservation_policy=_POLICIES.AnyPreservationPolicy([
            _KeepLatest(config.keep_last),
            _POLICIES.BestN(get_metric_fn=_get_acc, n=1),
            *([_POLICIES.EveryNSteps(config.keep_every_steps)] if config.keep_every_steps
              else [])])))

  def __enter__(self):
    return self

  def __exit__(self, kind, *unused):
    # One process that fails alone must not wait for the others, who take steps and would wait, too.
    if kind is None or issubclass(kind, (Stopped, NonFiniteError)) or jax.process_count() == 1:
      self.finish()
      self._manager.close()
    self._sealer.shutdown()

  def _clear_unfinished(self):
    """Removes saves and removals that were cut off.

    Orbax would refuse to save the steps of the former again, and does not see the latter.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    whole = list_whole(self._folder)
    for path in self._folder.iterdir() if self._folder.exists() else ():  # not in an empty bucket
      sealed = manifest.is_sealed(path)
      if path.is_dir() and not (sealed and (not _is_step(path.name) or int(path.name) in whole)):
        self._say(f'{path}: removing a {"checkpoint whose removal" if sealed else "save that"} was '
                  'cut off')
        storage.remove(path)

  def save(self, step: int, params, optim, card: dict, metric: float | None) -> None:
    """Starts a save; returns once the arrays may be donated.

    What `card` says of it, True by default: `counts`, whether this is a result of the method;
    `scheduled`, whether an undisturbed run saves here too. What is not both is never the best.
    `metric` is None where valid was not asked.
    """
    self.poll(wait=True)
    self._wait_for_seals()  # this save may remove a checkpoint, and none that is being read
    card = dict(card, format=manifest.CHECKPOINT_VERSION, step=step, valid_final_acc=metric,
                params=describe_tree(params), optim=describe_tree(optim))
    scheduled = card.get('scheduled', True)
    rank = metric if card.get('counts', True) and scheduled else (metric or 0.0) - 2.0
    metrics = {'valid_final_acc': rank, 'scheduled': scheduled}
    done = self._manager.save(step, metrics=metrics, args=ocp.args.Composite(
        params=ocp.args.StandardSave(params), optim=ocp.args.StandardSave(optim),
        card=ocp.args.JsonSave(card)))
    if not done:
      raise RuntimeError(f'Orbax skipped the save of step {step} in {self._folder}')
    self._pending = step

  def poll(self, wait: bool = False) -> None:
    """Seals the pending save, off this thread, once Orbax has committed it."""
    if self._pending is None or (self._manager.is_saving_in_progress() and not wait):
      return
    step, self._pending = self._pending, None  # a save that fails below is not sealed later
    self._manager.wait_until_finished()
    if hosts.is_leader():
      self._seals.append(self._sealer.submit(manifest.seal, self._folder / str(step)))

  def finish(self) -> None:
    """Waits until every save is committed and sealed; raises what went wrong."""
    self.poll(wait=True)
    self._wait_for_seals()
    for step in hosts.lead(self._list_replaced):  # where all have come
      self._manager.delete(step)

  def _list_replaced(self) -> list[int]:
    """An unscheduled checkpoint that was kept until the scheduled one after it was sealed."""
    steps = list_whole(self._folder)[:2]
    is_scheduled = [load_checkpoint(self._folder, s).card.get('scheduled', True) for s in steps]
    is_kept = self._keep_every and steps[-1:] and steps[-1] % self._keep_every == 0
    return steps[1:] if is_scheduled == [True, False] and not is_kept else []

  def _wait_for_seals(self):
    while self._seals:
      self._seals.pop().result()

  def find_latest(self) -> Checkpoint | None:
    """The newest checkpoint whose manifest agreed when this was opened."""
    latest = self._latest
    return None if latest is None else _lead_to(
        self._folder, lambda: load_checkpoint(self._folder, latest))

  def _put_damaged_aside(self) -> int | None:
    """The newest good step; what is newer and damaged goes to WORKDIR/damaged.

    So does an older one that says of itself what it did not say when it was saved: it would take
    part in the choice of the best.
    """
    damaged, found = [], None
    for step in list_steps(self._folder):
      problem = manifest.find_damage(
          self._folder / str(step), is_told if found else manifest.is_any)
      if problem is None:
        found = found or step
      else:
        damaged.append((step, problem))
    for step, problem in damaged:
      lost = (f'; using step {found}, {step - found} steps are lost'
              if found and step > found else '')
      self._say(f'{self._folder / str(step)}: damaged ({problem}){lost}')
    if damaged and not found:
      raise UserError(f'{self._folder}: every checkpoint is damaged ({damaged[0][1]}); delete '
                      f'{self._folder.parent} to start anew')
    for step, _ in damaged:
      storage.move(self._folder / str(step), self._folder.parent / 'damaged' / str(step))
    return found


def list_steps(folder) -> list[int]:
  """Steps that have a folder, newest first."""
  if not folder.exists():
    return []
  return sorted((int(p.name) for p in folder.iterdir() if _is_step(p.name)), reverse=True)


def _is_step(name: str) -> bool:
  return name.isascii() and name.isdigit()  # '²' is a digit, too


def list_whole(folder) -> list[int]:
  """Steps that were sealed and are not half removed, newest first.

  Only what a newer checkpoint has replaced is ever removed, so files that the newest one lacks are
  damage, which whoever wants it will name.
  """
  sealed = [s for s in list_steps(folder) if manifest.is_sealed(folder / str(s))]
  return sealed[:1] + [s for s in sealed[1:] if not manifest.lacks_files(folder / str(s))]


def get_folder(workdir):
  """Where a run's checkpoints are."""
  return storage.get_absolute(workdir) / 'checkpoints'


def load_checkpoint(folder, step: int) -> Checkpoint:
  """A checkpoint by what it says of itself, which is verified; its arrays are not yet.

  Raises: UserError where that is damaged.
  """
  damage = manifest.find_damage(folder / str(step), is_told)
  if damage:
    raise UserError(f'{folder / str(step)}: damaged ({damage}), so it cannot be told which '
                    f'checkpoint is best; train on, or move it out of {folder}')
  card = reader.load_json(folder / str(step) / 'card' / 'metadata', 'train on, or move it away',
                          Card)
  return Checkpoint(step, folder / str(step), card)


def list_counting(workdir) -> list[int]:
  """Steps of the whole checkpoints that may be chosen, oldest first."""
  folder = get_folder(workdir)
  return [step for step in list_whole(folder)[::-1]
          if _may_be_best(load_checkpoint(folder, step))]


def _may_be_best(checkpoint: Checkpoint) -> bool:
  """Whether it is a result of the method, and one that an undisturbed run has too."""
  return checkpoint.card.get('counts', True) and checkpoint.card.get('scheduled', True)


def rate_checkpoints(workdir) -> dict[int, tuple[float, int]]:
  """Step -> (accuracy on valid, version of the rule it was judged by), of those that may be best.

  Where there is none, of all. Where one was judged again, metrics.jsonl tells it.
  """
  folder, again = get_folder(workdir), run_folder.RunFolder(workdir).load_valid()
  found = [load_checkpoint(folder, s) for s in list_whole(folder)]
  rated = {}
  for c in [c for c in found if _may_be_best(c)] or found:
    own = c.card['valid_final_acc'] or 0.0, c.card.get('rule_version', 1)
    rated[c.step] = max(own, again.get(c.step, own), key=lambda told: told[1])  # else its own
  return rated


def is_rated_by_many(workdir) -> bool:
  """Whether accuracies on valid were judged by different versions of the rule."""
  return len({rule for _, rule in rate_checkpoints(workdir).values()}) > 1


def _lead_to(folder, find) -> Checkpoint:
  """The checkpoint that process 0 finds, for all: another may still be told an older list of files.

  Raises: UserError where one does not see it in time.
  """
  def lead():
    found = find()
    return [found.step, found.card]
  step, card = hosts.lead(lead)
  found = Checkpoint(step, folder / str(step), card)
  if blind := hosts.find_blind(found.folder / manifest.NAME, 3 * hosts.SEEN_SECS):
    raise UserError(f'{found.folder}: process {", ".join(map(str, blind))} does not see it, and '
                    'process 0 does; look at the file system that they share, then start all again')
  return found


def lead_choice(workdir, which: str | int, is_read=manifest.is_any) -> Checkpoint:
  """`choose_checkpoint` by process 0 for all."""
  return _lead_to(get_folder(workdir), lambda: choose_checkpoint(workdir, which, is_read))


def choose_checkpoint(workdir, which: str | int, is_read=manifest.is_any) -> Checkpoint:
  """The 'last' checkpoint of a run, a step's, or the 'best' on valid (the later of equals).

  One that counts and was scheduled goes before one that is not both.

  Args:
    is_read: which of its files are verified; what it says of itself always is.
  Raises: UserError when there is none, the chosen one is damaged, many are asked for, or they were
    judged by different rules.
  """
  if which == 'splits':
    raise UserError("eval.checkpoint='splits' scores many checkpoints together, which --mode=eval "
                    "and the end of a run do; this needs one: 'best' or 'last'")
  folder = get_folder(workdir)
  whole = list_whole(folder)
  asked = whole[:1] if which == 'last' else [s for s in whole if which in ('best', s)]
  found = [load_checkpoint(folder, step) for step in asked]
  if not found:
    raise UserError(f'{workdir}: has no checkpoint; train it first, or name another --workdir')
  if which == 'best':
    rated = rate_checkpoints(workdir)
    rules = sorted({rule for _, rule in rated.values()})
    if len(rules) > 1:
      raise UserError(f'{workdir}: the accuracies on valid of its checkpoints were judged by '
                      f'versions {", ".join(map(str, rules))} of the rule; --mode=eval judges them '
                      'again, or take one with --config.eval.checkpoint=last')
    best = max(rated, key=lambda step: (rated[step][0], step))
    found = [c for c in found if c.step == best]
  damage = manifest.find_damage(found[0].folder, is_read)
  if damage:
    other = 'last' if which == 'best' else 'best'
    raise UserError(f'{found[0].folder}: damaged ({damage}); take another with '
                    f'--config.eval.checkpoint={other}, or train on to replace it')
  return found[0]


def restore(checkpoint: Checkpoint, name: str, abstract):
  """Item `params` or `optim` of a checkpoint, placed as `abstract` says, on any mesh.

  Raises: UserError listing every array that does not fit.
  """
  check_tree(checkpoint.card[name], describe_tree(abstract), str(checkpoint.folder))
  with ocp.CheckpointManager(checkpoint.folder.parent) as manager:
    args = ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)})
    return manager.restore(checkpoint.step, args=args)[name]


def save_base(workdir, frozen) -> None:
  """Saves the frozen parameters of a run once, sealed like a checkpoint."""
  folder = storage.get_absolute(workdir) / 'base'

  if hosts.lead(lambda: manifest.is_sealed(folder)):
    return
  hosts.lead(lambda: storage.remove(folder))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, frozen)
  hosts.lead(lambda: manifest.seal(folder))


def load_base(workdir, abstract):
  """The frozen parameters of a run; an empty tree has no files."""
  if not jax.tree.leaves(abstract):
    return abstract
  folder = storage.get_absolute(workdir) / 'base'
  damage = hosts.lead(lambda: manifest.find_damage(folder) if folder.exists() else 'it is missing')
  if damage:
    raise UserError(f'{folder}: the frozen parameters cannot be used ({damage}); restore the '
                    'directory from a copy, or train anew')
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(folder, abstract)
