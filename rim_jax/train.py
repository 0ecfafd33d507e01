"""The only loop: data, model, state, steps, checkpoints, evaluation, in that order.

`train` does one stage in one WORKDIR and continues what it finds there;
`train_curriculum` chains the stages that a config stands for.
"""

import collections
import contextlib
import dataclasses
import time
import typing

from etils import epath
import jax
import numpy as np

from rim_jax.config import Config, rules
from rim_jax.config import stages as stages_lib
from rim_jax.errors import NonFiniteError, ShareDone, Stopped, UserError
from rim_jax.evaluation import decode, scores
from rim_jax.evaluation import run_scores as run_scores_lib
from rim_jax.evaluation import valid_loss as valid_loss_lib
from rim_jax.model import sharding
from rim_jax.model.network import Network
from rim_jax.packing import preview, stream
from rim_jax.packing import source as source_lib
from rim_jax.results import judge, values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts, run_folder, storage
from rim_jax.task import Task, make_task
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import recorder as recorder_lib
from rim_jax.training import state as state_lib
from rim_jax.training import step as step_lib


def train(config: Config, workdir, init_from=None, say=print, console=None,
          began: float | None = None) -> dict[str, values.EvalResult]:
  """Trains one stage in WORKDIR, from where it stopped, and evaluates it.

  Args:
    began: when its wall time begins to count; now by default.
  Returns: set -> its result.
  Raises: UserError; NonFiniteError when an update had to be withheld; Stopped once asked to
    end and saved.
  """
  workdir, began = epath.Path(workdir), time.monotonic() if began is None else began
  # ---- What this run is, and whether it may go on here ----
  task = make_task(config, say)
  hosts.lead(lambda: _check_workdir(task, workdir))
  hosts.check_shared(workdir)
  if hosts.lead(lambda: state_lib.is_complete(workdir) and run_scores_lib.is_evaluated(
      task, workdir)):
    say(f'{workdir}: this run is complete')
    return run_folder.RunFolder(workdir).load_results()
  run_scores_lib.check_sets(task, say)
  for name in ('valid', 'test'):  # what choices and results stand on
    for line in preview.describe_misjudged(name, task.dataset.splits[name], task.codec):
      say(line)
  for line in rules.list_doubts(config):
    say(line)
  with contextlib.ExitStack() as stack:  # WORKDIR is this run's alone: process 0 holds it for all
    hosts.lead(lambda: stack.enter_context(storage.hold(workdir, say)))
    _train_stage(task, workdir, init_from, began, say, console)
    return run_scores_lib.evaluate_run(task, workdir, say)


def _train_stage(task: Task, workdir, init_from, began, say, console) -> None:
  """Takes a stage's steps, those that are left."""
  config = task.config
  # ---- The plan of its rows ----
  # A run that is there goes on with the plan that it began with, whatever is the newest.
  stage = _plan_stage(task, say, hosts.lead(lambda: _load_versions(workdir))['plan'])
  run_scores_lib.check_questions(task)
  say(stage.describe())
  for line in stage.dropped[:3]:
    say(f'dropped: {line}')
  if stage.dropped:
    say(f'dropped {len(stage.dropped)} train records that do not fit')
  source = source_lib.BatchSource(
      stage, task.codec, sharding.find_local_rows(stage.batch_rows, task.mesh))

  # ---- The state: restored, or fresh ----
  program = step_lib.make_program(config, task.vocab_size, stage.num_steps, task.mesh)
  with checkpoint_lib.Checkpointer(workdir, config.checkpoint, say) as checkpointer:
    latest = checkpointer.find_latest()
    if latest:
      state, frozen = state_lib.restore(task, latest, program, workdir, stage)
      say(f'continuing from step {latest.step} of {stage.num_steps}')
      for line in hosts.lead(run_folder.RunFolder(workdir).list_damaged):
        say(line)
    else:
      state, frozen = state_lib.initialize(task, program, init_from, say)
      num_hosts = hosts.count_hosts()  # all must ask
      hosts.lead(lambda: _write_card(task, workdir, init_from, num_hosts))
      if jax.tree.leaves(frozen) and not task.base:
        checkpoint_lib.save_base(workdir, frozen)
    say(state_lib.describe_params(state, frozen))

    # ---- The loop ----
    _run_steps(StageRun(task, workdir, stage, source, program, frozen, checkpointer, began, say,
                        console), state)


def _load_versions(workdir) -> dict:
  """What the rows of the run in WORKDIR are made by; of a new run, today's."""
  has_card = (workdir / 'config.json').exists()
  return source_lib.VERSIONS | (card_lib.load_card(workdir)['versions'] if has_card else {})


def _plan_stage(task: Task, say, version: int = source_lib.VERSIONS['plan']
                ) -> source_lib.StagePlan:
  """The stage's plan, which every process makes for itself; process 0 encodes the split first."""
  train = task.dataset.splits['train']
  hosts.lead_first(lambda: source_lib.load_encoded(train, task.codec, say) and None)
  return source_lib.make_stage_plan(
      train, task.codec, sharding.count_shards(sharding.BATCH, task.mesh), say, version)


def _check_workdir(task: Task, workdir):
  """Checks that a WORKDIR can be written, and the card of one that has one."""
  if (workdir / 'config.json').exists():
    card_lib.check_card(card_lib.load_card(workdir), task, workdir)
    return
  if checkpoint_lib.list_steps(workdir / 'checkpoints'):
    raise UserError(f'{workdir}: has checkpoints but no config.json that says what they are; '
                    'restore that file, or use another --workdir')
  storage.check_writable(workdir)


def _write_card(task: Task, workdir, start, num_hosts):
  """Only once a run has its plan and its state: a refused one must not bind its WORKDIR.

  Raises: UserError where a run that was cut off before its first checkpoint began with another.
  """
  card = card_lib.make_card(task, source_lib.VERSIONS, start, num_hosts)
  if (workdir / 'config.json').exists():
    card_lib.check_start(card_lib.load_card(workdir), card['start'], workdir)
  else:
    card_lib.write_card(workdir, card)


@dataclasses.dataclass(frozen=True)
class StageRun:
  """One stage under way: all that its loop works with and does not change."""
  task: Task
  workdir: epath.Path
  stage: source_lib.StagePlan
  source: source_lib.BatchSource
  program: step_lib.Program
  frozen: dict
  checkpointer: checkpoint_lib.Checkpointer
  began: float  # when its wall time began to count
  say: typing.Callable[[str], None]
  console: typing.Any  # of rich; None shows no progress

  def place_batch(self, batch):
    return sharding.place_batch(batch, self.task.mesh, self.source.rows, self.stage.batch_rows)


@dataclasses.dataclass(frozen=True)
class Instruments:
  """What watches a loop and tells of it."""
  writer: recorder_lib.MetricsWriter | recorder_lib.NoWriter
  progress: recorder_lib.Progress
  watchdog: hosts.Watchdog
  stop: hosts.StopSignal
  profiler: recorder_lib.Profiler
  machine: recorder_lib.Machine
  meter: recorder_lib.Meter
  goodput: recorder_lib.Goodput

  def write(self, done) -> str:
    """Writes (step, scalars), if there is one; returns what a progress line says of it."""
    if not done:
      return ''
    step, scalars = done
    self.writer.write(step, scalars)
    return f'loss {scalars["train/loss"]:.4f}  {scalars["perf/examples_per_sec"]:.0f} examples/s'


def _open_instruments(run: StageRun, start: int, stack: contextlib.ExitStack) -> Instruments:
  """They close, the last one first, with the stack."""
  log, workdir, opened = run.task.config.log, run.workdir, []
  # What keeps process 0 from writing ends the others, too.
  hosts.lead(lambda: opened.append(
      recorder_lib.MetricsWriter(workdir, start, log.tensorboard, log.wandb)))
  return Instruments(
      writer=stack.enter_context(contextlib.closing(
          opened[0] if opened else recorder_lib.NoWriter())),
      progress=stack.enter_context(contextlib.closing(
          recorder_lib.Progress(workdir.name, run.stage.num_steps, start, run.console))),
      watchdog=stack.enter_context(hosts.Watchdog(log.stall_secs)),
      stop=stack.enter_context(hosts.StopSignal()),
      profiler=stack.enter_context(recorder_lib.Profiler(
          workdir, log.profile_at_step, log.profile_num_steps, run.say)),
      machine=stack.enter_context(contextlib.closing(recorder_lib.Machine())),
      meter=recorder_lib.Meter(start), goodput=recorder_lib.Goodput(run.began))


def _run_steps(run: StageRun, state) -> None:
  """Takes the remaining steps of a stage.

  Raises: Stopped once asked to end, after a save.
  """
  config, stage, start = run.task.config, run.stage, int(state.step)
  end = stages_lib.find_stop(stage.num_steps, config.checkpoint)
  with contextlib.ExitStack() as stack:
    tools = _open_instruments(run, start, stack)
    stack.enter_context(jax.set_mesh(run.task.mesh))
    save = _make_save(run, state, tools)
    own_secs, told_at, saved_at = 0.0, start, time.monotonic()
    note, compiled, ahead = '', None, collections.deque()
    if start < end:
      tools.progress.update(start, 'compiling')
    batches = stack.enter_context(contextlib.closing(stream.make_batches(
        run.source, start, config.log.prefetch_batches, config.log.input_workers, run.say)))
    for step in range(start + 1, end + 1):
      with tools.goodput.measure('data'):
        ready, batch = time.monotonic(), run.place_batch(next(batches))
      if compiled is None:
        # Ahead of the first call: another shape later on is an error, not a recompile.
        with tools.goodput.measure('compile'):
          compiled = _make_step(run).lower(state, run.frozen, batch).compile()
        tools.progress.restart()
        ready = time.monotonic()
      state, metrics = compiled(state, run.frozen, batch)
      own_secs += time.monotonic() - ready
      hosts.settle((state, metrics))
      # A few steps wait on the device, no more: else it would be long silent, and late to stop.
      ahead.append(metrics['loss'])
      if len(ahead) > 2:
        jax.block_until_ready(ahead.popleft())
      run.checkpointer.poll()
      tools.watchdog.beat(step)
      tools.profiler.step(step, metrics)
      stopped, is_told = tools.stop.is_set(), step % config.log.every_steps == 0
      is_saved = (step == end or stopped or step % config.checkpoint.every_steps == 0
                  or (is_told and _is_save_due(config.checkpoint, saved_at)))
      is_told |= is_saved
      if is_told and not metrics['healthy']:
        _stop_unhealthy(run, compiled, state)
      if is_told:
        more = tools.machine.read() | tools.watchdog.compare(own_secs / (step - told_at))
        own_secs, told_at = 0.0, step
        note = tools.write(tools.meter.push(step, metrics, more)) or _describe_loss(metrics)
      if is_saved:
        # Now, not one step behind: a stop right after the save must not cost its line.
        note = tools.write(tools.meter.flush()) or note
        save(step, state)
        saved_at = time.monotonic()
      if is_told or tools.progress.is_due(step):
        tools.progress.update(step, note if is_told else _describe_loss(metrics))
      if stopped and step < end:
        _end_saves(run, tools, state)
        raise Stopped(f'{run.workdir}: asked to end; step {step} of {stage.num_steps} is saved, '
                      'the same command goes on')
    _finish(run, tools, state, start, end)


def _describe_loss(metrics) -> str:
  return f'loss {float(metrics["loss"]):.4f}'


def _make_step(run: StageRun):
  stage = run.stage
  return step_lib.make_train_step(
      run.program, run.task.config, stage.num_steps, stage.max_blocks, run.task.mesh,
      stage.reset_steps, stage.limits)


def _end_saves(run: StageRun, tools: Instruments, state) -> None:
  """Waits until the last save is whole; it is no standstill where storage is slow."""
  with tools.goodput.measure('save'):
    tools.watchdog.beat(int(state.step), checkpoint_lib.estimate_save_secs(
        state.params, state.opt_state))
    run.checkpointer.finish()


def _finish(run: StageRun, tools: Instruments, state, start: int, end: int) -> None:
  """Waits for the last save, and tells where the time went.

  Raises: ShareDone where the run was to end before its last step, Stopped once asked to end.
  """
  num_steps = run.stage.num_steps
  _end_saves(run, tools, state)
  if end < num_steps:
    raise ShareDone(
        f'{run.workdir}: step {max(start, end)} of {num_steps} is saved, and '
        'checkpoint.stop_frac asks for no more; with more the same command goes on')
  spent = tools.goodput.summarize()
  if num_steps > start:
    tools.writer.write(num_steps, spent)
  run.say(f'{run.workdir.name}: {num_steps} steps done; {_describe_time(spent)}')
  if tools.stop.was_set:  # at the last step, or while that was evaluated or saved
    raise Stopped(f'{run.workdir}: asked to end; all {num_steps} steps are saved, the same command '
                  'goes on')


def _describe_time(spent) -> str:
  """Where the wall time of this process went, the largest part first."""
  parts = {k.removeprefix('goodput/').removesuffix('_secs'): v for k, v in spent.items()
           if k.endswith('_secs')}
  return 'seconds by part: ' + ', '.join(
      f'{name} {secs:.1f}' for name, secs in sorted(parts.items(), key=lambda p: -p[1]))


def _make_save(run: StageRun, state, tools: Instruments):
  """(step, state) -> None: evaluates on valid, writes that, and starts a save.

  A save because the run was asked to stop, or by the clock, is there to go on from: it takes no
  time to evaluate, and is never the best, so that an interrupted run ends as an undisturbed one.
  Before the first update one batch of valid is asked, the longest.
  """
  task, stage = run_scores_lib.ask_valid_as_begun(run.task, run.workdir, run.say), run.stage
  config, blocks = task.config, task.config.eval_blocks
  decoder = decode.Decoder(Network(
      run.program.graphdef, state.params, run.frozen, config, task.codec, task.mesh))
  records = run_scores_lib.get_records(task, 'valid', config.eval.num_valid_examples)
  valid_loss = valid_loss_lib.ValidLoss(
      task, stage, run.program, run.frozen, records, run.say) if config.eval.valid_loss else None

  def ask(state, records, counts, tell=None) -> values.EvalResult:
    with tools.goodput.measure('evaluate'):
      # What is left of a chain is written freely.
      return scores.evaluate(decoder.with_params(state.params), records, blocks, tell,
                             None if counts else ())[0]

  def evaluate(step, state, counts) -> float:
    result = ask(state, records, counts, lambda count: tools.watchdog.beat(step))
    tools.writer.write(step, {values.VALID_ACC: result.final_acc,
                              values.VALID_RULE: judge.RULE_VERSION, **{
        f'valid/acc_block_{k}': acc for k, acc in zip(
            scores.get_blocks(blocks), result.block_acc)}, **measure_loss(state, counts)})
    return result.final_acc

  def measure_loss(state, counts) -> dict:
    with tools.goodput.measure('evaluate'):
      return valid_loss.compute(state) if valid_loss and counts else {}

  save_secs = checkpoint_lib.estimate_save_secs(state.params, state.opt_state)

  def save(step, state):
    counts = step >= stage.counted_from
    scheduled = step == stage.num_steps or step % config.checkpoint.every_steps == 0
    acc = evaluate(step, state, counts) if scheduled else None
    with tools.goodput.measure('save'):
      tools.watchdog.beat(step, save_secs)  # it waits for the save before it
      tools.writer.flush()  # a checkpoint never stands without what was told up to it
      run.checkpointer.save(
          step, state.params, state_lib.get_optim(state),
          {'rows': step * stage.batch_rows, 'num_steps': stage.num_steps,
           'batch_rows': stage.batch_rows, 'method': config.method, 'counts': counts,
           'scheduled': scheduled, 'rule_version': judge.RULE_VERSION}, acc)
    tools.watchdog.beat(step)

  if int(state.step) == 0:
    # What has no room, or does not compile, ends the run now, and not in place of its first save.
    tools.progress.update(0, 'answering questions of valid, to see that it can')
    longest = sorted(records, key=lambda record: len(task.codec.encode_question(record.question)))
    ask(state, longest[-decoder.choose_batch_size(len(records)):], stage.counted_from <= 0)
    measure_loss(state, True)
  return save


def _is_save_due(config, saved) -> bool:
  """Whether checkpoint.every_minutes have passed, by process 0's clock."""
  return config.every_minutes > 0 and hosts.lead(
      lambda: time.monotonic() - saved >= 60 * config.every_minutes)


def _stop_unhealthy(run: StageRun, compiled, state):
  """Saves what the withheld update saw, and raises NonFiniteError.

  The state stopped before the first bad update, so that update's batch and
  losses can be had again.
  """
  bad = int(state.step)  # completed updates; the next one is the culprit
  state, metrics = compiled(state, run.frozen, run.place_batch(run.source[bad]))
  metrics = jax.device_get(metrics)

  def show(x):  # strict JSON has no nan
    return float(x) if np.isfinite(x) else str(x)
  me = jax.process_index()
  path = run.workdir / (run_folder.NONFINITE if me == 0 else f'nonfinite-{me}.json')
  storage.write_json(path, {
      'step': bad + 1, 'loss': show(metrics['loss']), 'grad_norm': show(metrics['grad_norm']),
      'block_nll': [show(x) for x in metrics['block_nll'] / np.maximum(metrics['block_count'], 1)],
      'rows': [row.tolist() for row in run.source.get_records(bad)]})
  raise NonFiniteError(
      f'{run.workdir}: step {bad + 1} has loss {metrics["loss"]} and gradient norm '
      f'{metrics["grad_norm"]}; the update was withheld, its rows and losses per block are in '
      f'{path}, and the same command would meet it again; look at those records, or lower '
      'optim.learning_rate in another --workdir' + (
          f', which can begin with the last checkpoint here: --config.train.init_from={run.workdir}'
          if checkpoint_lib.list_steps(run.workdir / 'checkpoints') else ''))


def _keep_whole(config: Config, workdir) -> None:
  """Writes down what a run of several stages was asked for, so that it can be asked of the run.

  Until the first stage has its card nothing is bound, and the last command counts.
  """
  stages = [(workdir / name, stage) for name, stage in stages_lib.make_stages(config) if name]
  there = [(folder, stage) for folder, stage in stages if (folder / 'config.json').exists()]
  if not stages or (there and (workdir / 'config.json').exists()) or any(
      card_lib.find_differences(card_lib.load_card(f), stage, f) for f, stage in there):
    return
  with contextlib.suppress(OSError):  # the first stage tells that nothing can be written here
    workdir.mkdir(parents=True, exist_ok=True)
    card_lib.write_card(workdir, card_lib.make_whole(config, [f.name for f, _ in stages]))


def _check_later_stages(config: Config, workdir):
  """Before the first stage begins: what would end a later one, hours on, at its own beginning.

  Raises: UserError, as the stage would.
  """
  (first, first_stage), *later = stages_lib.make_stages(config)
  if hosts.lead(lambda: (workdir / first / 'config.json').exists()):
    return

  def find_fault(stage):
    try:
      task = make_task(stage, lambda line: None)
      _plan_stage(task, lambda line: None)
      run_scores_lib.check_questions(task)
    except UserError as e:
      return str(e)
  for name, stage in later:
    if fault := find_fault(stage):
      # Of several processes one may be gone by now, and the others would wait for it.
      alone = jax.process_count() == 1
      raise UserError(fault if alone and find_fault(first_stage) == fault else
                      f'{name}, before anything is trained: {fault}')


def train_curriculum(config: Config, workdir, say=print, console=None) -> dict:
  """Runs every stage that a config stands for, each in a WORKDIR of its own.

  Returns: stage name ('' for a single run) -> its results.
  """
  workdir = epath.Path(workdir)
  results, before = {}, None
  hosts.lead(lambda: card_lib.check_whole(config, workdir))
  hosts.lead(lambda: _keep_whole(config, workdir))
  _check_later_stages(config, workdir)
  for name, stage_config in stages_lib.make_stages(config):
    folder = workdir / name if name else workdir
    if not stage_config.checkpoint.stop_frac:
      raise ShareDone(f'{before}: is complete, and checkpoint.stop_frac asks for no more; with '
                      'more the same command goes on')
    init_from = before or state_lib.find_init(stage_config, folder)
    if name:
      say(f'== {name}: {folder}')
    results[name] = train(stage_config, folder, init_from, say, console,
                          None if results else recorder_lib.BEGAN)
    before = folder
  return results
