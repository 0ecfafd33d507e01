"""The modes of the command line, and what they show a person."""

import dataclasses
import json
import os
import pathlib
import platform
import sys
import zlib

from etils import epath
import jax
from rich.text import Text

from rim_jax import ask, reader, terminal
from rim_jax import config as config_lib
from rim_jax import train as train_lib
from rim_jax.config import methods
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError, refuse
from rim_jax.evaluation import decode
from rim_jax.evaluation import run_scores as run_scores_lib
from rim_jax.packing import preview
from rim_jax.report import control_sections, page, plans, run_page, tables
from rim_jax.results import judge, values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts, run_folder, storage
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import state as state_lib


def keep_compiled(config) -> None:
  """Keeps compiled programs below data.cache_dir: a restart is at its first step sooner.

  JAX_COMPILATION_CACHE_DIR names another place. A program for a CPU runs on others of its kind
  alone, so it is kept by kind. Several processes must run the same program, and one that is kept on
  one host may order its collectives otherwise than one that another host compiles: they keep none,
  and use none that the variable names.
  """
  if jax.process_count() > 1:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  # JAX adds its options to this object as it is imported, which its stubs do not tell.
  kept = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  if os.environ.get('JAX_COMPILATION_CACHE_DIR') or kept:
    return
  kind = jax.devices()[0].device_kind.replace(' ', '-')
  if jax.devices()[0].platform == 'cpu':
    info = pathlib.Path('/proc/cpuinfo')
    flags = [line for line in info.read_bytes().split(b'\n') if line.startswith(
        (b'flags', b'Features'))][:1] if info.exists() else [platform.processor().encode()]
    kind += f'-{zlib.crc32(b" ".join(flags)):08x}'
  folder = pathlib.Path(config.data.cache_dir).expanduser() / 'compiled' / kind
  jax.config.update('jax_compilation_cache_dir', str(folder))


def train(config, workdir, say, console) -> None:
  """Trains every stage (or goes on), then shows and writes the report."""
  train_lib.train_curriculum(config, workdir, say, console)
  # The others wait for what process 0 writes: JAX would end it soon after they have ended.
  hosts.lead(lambda: _show_run(config, workdir, say, console))


def _show_run(config, workdir, say, console) -> None:
  stage, folder = stages_lib.get_last(config, epath.Path(workdir))
  path, name = _write_summary(config, workdir), stage.eval_set
  asked = run_page.load_predictions(folder, name)
  run_page.show_results(console, folder, config.eval.num_shown, name)
  say(f'files: {folder}/ (config.json, metrics.jsonl, checkpoints/, results.json, predictions/)')
  say(f'report: {path}')
  say('next: ask it something, ' + _make_command(
      config, workdir, 'generate', f'--question={asked[0].question if asked else "..."}'))


def _make_command(config, workdir, mode: str, *more) -> str:
  """The command of another mode on a run, as it can be typed where this one was.

  It says what the run's own configuration does not: keys that were given later, of where and how.
  """
  kept = config_lib.flatten(card_lib.load_whole(workdir)['config'])
  given = [f'--config.{key}={value}' for key, value in config_lib.flatten(config).items()
           if kept.get(key) != value and not key.startswith(('checkpoint.', 'log.'))]
  return terminal.join(['python', '-m', 'rim_jax.main', f'--workdir={workdir}', f'--mode={mode}',
                        *given, *more])


def write_report(config, workdir, say) -> None:
  """Writes the report anew, from a run's files alone.

  Raises: UserError where there is no run, or another one.
  """
  stages = [(stage, epath.Path(workdir) / name if name else epath.Path(workdir))
            for name, stage in stages_lib.make_stages(config)]
  there = [(stage, folder) for stage, folder in stages if (folder / 'config.json').exists()]
  if not there:
    raise UserError(f'{workdir}: there is no run here; train it first with --mode=train, or name '
                    'another --workdir')
  card_lib.check_whole(config, workdir)
  refuse([line for stage, folder in there for line in card_lib.find_differences(
      card_lib.load_card(folder), stage, folder)])
  say(f'report: {hosts.lead(lambda: str(_write_summary(config, workdir)))}')
  for _, folder in there:
    run = run_folder.RunFolder(folder)
    for line in run.list_damaged() + run.list_unsealed():
      say(line)


def _write_summary(config, workdir):
  """The report, and for a curriculum its stages' results in one results.json."""
  workdir = epath.Path(workdir)
  if stages := [name for name, _ in stages_lib.make_stages(config) if name]:
    storage.write_json(workdir / 'results.json', {
        name: reader.load_json(path, 'evaluate again with --mode=eval')
        for name in stages if (path := workdir / name / 'results.json').exists()})
  return run_page.write_report(workdir, config)


def evaluate(config, workdir, say, console) -> None:
  """Evaluates a run's checkpoint as config.eval says, and adds to its results.json."""
  task, folder = ask.open_run(config, workdir, say)
  hosts.lead(lambda: storage.check_writable(folder))
  run_scores_lib.check_questions(task, with_valid=False)
  results = run_scores_lib.evaluate_run(task, folder, say)
  asked = {name: results[name] for name in (
      one.config.eval_set for one in run_scores_lib.list_sets(task))}
  hosts.lead(lambda: _show_evaluated(config, workdir, asked, say, console))


def _show_evaluated(config, workdir, results, say, console) -> None:
  _write_summary(config, workdir)
  folder = stages_lib.get_last(config, epath.Path(workdir))[1]
  for name in results:
    run_page.show_results(console, folder, config.eval.num_shown, name)
  if len(results) > 1:
    page.show(console, [tables.table(
        ['set', 'n', '% right', '+- one standard error', '% unparsed'],
        [[name, f'{r.n:,}', tables.share(r.final_acc), tables.share(r.final_acc_stderr or None),
          '' if r.unparsed_frac is None else tables.share(r.unparsed_frac)]
         for name, r in results.items()], 'Sets')])
  answers = [folder / 'predictions' / f'{name}.jsonl' for name in results]
  say(f'files: {folder}/results.json' + ''.join(  # the paper's protocol has no answers
      f', {path}' for path in answers if path.exists()))


def controls(config, workdir, say, console) -> None:
  """Asks a run's checkpoint whether its memory does the work; writes controls.json."""
  from rim_jax.evaluation import attention_weights  # late: only this mode needs them
  from rim_jax.evaluation import interventions as interventions_lib
  from rim_jax.evaluation import probes as probes_lib
  from rim_jax.sweep import matched_runs as matched_runs_lib
  whole = config
  interventions_lib.check_method(stages_lib.get_last(config, epath.Path(workdir))[0])
  if config.controls.probes:
    probes_lib.check_installed()
  task, folder = ask.open_run(config, workdir, say)
  hosts.lead(lambda: storage.check_writable(folder))
  config = task.config
  records = run_scores_lib.get_records(task, config.eval.split, config.eval.num_examples)
  prints = {'data': task.dataset.fingerprint, 'tokenizer': task.codec.tokenizer.fingerprint,
            'base': task.base and task.base.fingerprint, **_find_start(whole, workdir)}
  matched = matched_runs_lib.load_matched(whole, prints, {
      facts.name: dataclasses.replace(config, method=facts.name).eval_set
      for facts in methods.CONTROLS})
  network, step = state_lib.load_network(task, folder, config.eval.checkpoint, say=say)
  say(f'{folder}, step {step} ({config.eval.checkpoint} checkpoint): controls on {len(records):,} '
      f'{config.eval.split} questions, K={config.eval_blocks}')
  found = interventions_lib.run_controls(network, records, say)
  found['controls'] |= matched
  if config.controls.num_attention:
    found['attention'] = attention_weights.read_attention(
        network, records[:config.controls.num_attention])
  points = None
  if config.controls.probes:
    found['probes'], points = _run_probes(task, folder, network, say)
  found = reader.from_tree(values.ControlsResult, {
      'format': interventions_lib.CONTROLS_VERSION, 'method': config.method, 'set': config.eval_set,
      'n': len(records), 'num_blocks': config.eval_blocks, 'step': step,
      'checkpoint': config.eval.checkpoint, 'answer_rule': judge.ANSWER_RULE,
      'rule_version': judge.RULE_VERSION,
      'data_fingerprint': run_scores_lib.fingerprint_set(task, records), **found})
  states = probes_lib.format_points(*points) if points else ''
  hosts.lead(lambda: _write_controls(found, states, whole, workdir, say, console))


def _write_controls(found, states, config, workdir, say, console) -> None:
  folder = stages_lib.get_last(config, epath.Path(workdir))[1]
  run, top = run_folder.RunFolder(folder), run_folder.RunFolder(workdir)
  run.write_controls(found)
  if run != top:
    storage.write_json(top.controls, {folder.name: reader.to_tree(found)})
  page.show(console, control_sections.make_summary(found))
  if states:
    run.points.write_text(states)
    say(f'points of block states: {run.points}')
  say(f'files: {top.controls}')
  say(f'report: {_write_summary(config, workdir)}')


def _find_start(config, workdir) -> dict:
  """{'start': fingerprint of what a whole run began with, or None}; {} where no card tells it."""
  path = epath.Path(workdir) / stages_lib.make_stages(config)[0][0]
  card = card_lib.load_card(path) if (path / 'config.json').exists() else {}
  return {'start': (card['start'] or {}).get('fingerprint')} if 'start' in card else {}


def _run_probes(task, folder, network, say):
  """Probes of a checkpoint, and where its block states stood at each that is kept."""
  from rim_jax.evaluation import probes as probes_lib
  config = task.config
  limits = {'train': config.controls.num_probe_examples, 'test': config.eval.num_examples,
            'valid': config.controls.num_probe_examples}
  records = {s: run_scores_lib.get_records(task, s, limit) for s, limit in limits.items()}
  if config.controls.probe_split == 'valid':
    records |= probes_lib.hold_out(run_scores_lib.get_records(task, 'valid', 0),
                                   config.controls.num_probe_examples)
  kept = {step: lambda step=step: state_lib.load_params(network, folder, step)
          for step in hosts.lead(lambda: checkpoint_lib.list_whole(
              checkpoint_lib.get_folder(folder)))}
  return probes_lib.run_probes(decode.Decoder(network), records, kept, say)


_STYLES = {preview.QUESTION: '', preview.BLOCK: 'bold magenta', preview.GIVEN: 'cyan',
           preview.PREDICTED: 'bold green'}


def show_data(config, say, console) -> None:
  """Shows what would be trained on, and trains nothing: splits, sizes, laid-out examples."""
  for nth, (name, stage) in enumerate(stages_lib.make_stages(config)):
    task = train_lib.make_task(  # on no accelerator, so whatever mesh the run would have
        dataclasses.replace(stage, mesh=config_lib.MeshConfig()),
        say if not nth else lambda line: None)
    splits = task.dataset.splits
    found = [preview.measure_split(split, task.codec, say) for split in splits.values()]
    page.show(console, [tables.table(
        ['split', 'read from', 'rows', 'tokens: mean', 'median', 'most', 'do not fit'],
        [[s.split, s.files, f'{s.num_records:,}', *(f'{n:,}' for n in s.tokens),
          f'{len(s.dropped):,}'] for s in found],
        f'{name or stage.method}: examples, in rows of {stage.layout.row_tokens:,} tokens')])
    for sizes in found:
      for line in sizes.dropped[:3]:
        say(f'does not fit: {line}')
    for split in splits.values():
      for line in preview.describe_misjudged(split.name, split, task.codec):
        say(line)
    for record in splits['train'].__getitems__(range(min(2, len(splits['train'])))):
      try:
        lines = preview.list_lines(record, task.codec)
      except UserError as e:  # it is among those that do not fit
        say(f'{record.origin}: {e}')
        continue
      say(f'{record.origin}, as {name or stage.method} lays it out:')
      for line in lines:
        _show_pieces(console, line)
  console.print(Text.assemble(
      'kinds: ', *(part for kind in _STYLES.items() for part in (kind, ' '))))


def _show_pieces(console, line: preview.Line) -> None:
  """One trunk or readout as text, then as ids; marks say the same as colours."""
  marks = {preview.BLOCK: ('', ''), preview.GIVEN: ('[', ']'), preview.PREDICTED: ('{', '}')}
  text, ids = Text(f'  {line.label}: '), Text('    ')
  for piece in line.pieces:
    begin, end = marks.get(piece.kind, ('', ''))
    # As Python writes it, so that line breaks and control characters are seen.
    text.append(f'{begin}{repr(piece.text)[1:-1]}{end}', _STYLES[piece.kind])
    ids.append(f'{begin}{" ".join(map(str, piece.ids))}{end} ', _STYLES[piece.kind])
  console.print(text)
  console.print(ids)


def _read_questions(question: str) -> list[str]:
  """The question that was given, or the lines of standard input. Raises: UserError."""
  where = '--question' if question else 'standard input'
  try:
    # A byte of a command line that is no UTF-8 stands in it as half of a pair.
    text = reader.decode(question.encode('utf-8', 'surrogateescape') if question
                         else sys.stdin.buffer.read())
  except ValueError as e:
    raise UserError(f'{where}: is {e}; write it in UTF-8') from None
  return [text] if question else [
      _read_line(i, line.rstrip('\r')) for i, line in enumerate(text.split('\n'), 1)]


def _read_line(number: int, line: str) -> str:
  """The question of one line of standard input: the line, or what a JSON object calls so."""
  try:
    row = reader.parse_json(line) if line.startswith('{') else {'question': line}
  except ValueError:
    return line
  if not isinstance(row.get('question'), str):
    raise UserError(f"standard input:{number}: a JSON object without a 'question' that is text; "
                    'give it one, or write the question alone')
  return row['question']


def generate(config, workdir, question, as_json, say, console) -> None:
  """Answers one question, or each line of standard input, showing each block's answer.

  Args:
    as_json: an object a question takes the place of all that is shown.
  """
  say = (lambda line: None) if as_json else say
  questions = [q for q in hosts.lead(lambda: _read_questions(question)) if q.strip()]
  if not questions:
    raise UserError('--mode=generate: there is no question; give --question="...", or lines on '
                    'standard input')
  task, folder = ask.open_run(config, workdir, lambda line: None, with_data=False)
  ask.encode(questions, task.config, task.codec)  # what is wrong is told before a long load
  run = ask.load_task(task, folder, say)
  say(f'{folder}, step {run.step}, K={task.config.eval_blocks}')
  for answer in run.answer(questions):
    if as_json:
      console.print(json.dumps(dataclasses.asdict(answer)), soft_wrap=True, markup=False,
                    highlight=False)
    else:
      run_page.show_answers(
          console, answer.question, run.blocks, answer.block_texts, task.config)


def plan(config, workdir, flags, say, console) -> None:
  """Plans every stage's step for a machine that is not there; shows it, and writes plan.json.

  Args:
    flags: topology, num_slices, and whether the fastest setting is searched, or an answer planned.
  """
  from rim_jax.planning import compile as compile_lib  # late: only this mode needs what it imports
  from rim_jax.planning import fastest as fastest_lib
  from rim_jax.planning import latency as latency_lib
  # A program for a machine that is not here would be kept, and could never be read again.
  jax.config.update('jax_enable_compilation_cache', False)
  made, found, folder = [], {}, epath.Path(workdir)
  if flags.latency:
    found['latency'] = latency_lib.plan_latency(config, flags.topology, say)
  elif flags.fastest:
    made, found['fastest'] = fastest_lib.make_fastest_plans(
        config, flags.topology, flags.num_slices, say)
  else:
    made = compile_lib.make_plans(config, flags.topology, flags.num_slices, say)
  tabled = {name: make(found[name]) for name, make in (
      ('fastest', plans.make_fastest), ('latency', plans.make_latency)) if name in found}
  for table in tabled.values():
    console.print(tables.to_rich(table, console, most=140))
  for one in made:
    plans.show(console, one)
    if 'nearest' in one:
      nearest = one['nearest']
      say(f"it fits with {nearest['change']}:" if nearest else
          'no setting of remat, micro-batches and mesh fits; take more chips or another kind')
      if nearest:
        plans.show(console, nearest)
  folder.mkdir(parents=True, exist_ok=True)
  for name, table in tabled.items():
    (folder / f'{name}.md').write_text('\n'.join(tables.to_markdown(table)[1:]) + '\n')
  storage.write_json(folder / 'plan.json', {
      'version': compile_lib.PLAN_VERSION, 'plans': made, **found})
  say(f"{folder / 'plan.json'}: the same as JSON")


def export(config, workdir, verify, say) -> None:
  """Writes a finished run as a Hugging Face model, or its adapters."""
  from rim_jax.pretrained import export as export_lib  # late: few runs need what they import
  from rim_jax.pretrained import verification
  if verify:
    verification.check_verifiable(config)
  task, folder = ask.open_run(config, workdir, say)
  config = task.config
  if not hosts.lead(lambda: state_lib.is_complete(folder)):
    raise UserError(f'{folder}: is not complete; run its command again to finish it')
  export_lib.check_exportable(config, task.base, folder)
  assert task.base is not None  # or that has raised
  out = epath.Path(config.export.dir) if config.export.dir else folder / 'export'
  if storage.is_bucket(out):
    raise UserError(f'{out}: an export is written to a local directory; name one with '
                    '--config.export.dir=DIR')
  hosts.lead(lambda: export_lib.check_free(out))
  network, step = state_lib.load_network(task, folder, config.eval.checkpoint, say=say)
  records = run_scores_lib.get_records(task, config.eval.split, config.eval.num_examples)
  asked = [r.question for r in records[:config.export.num_verified]]
  references = verification.iterate_references(decode.Decoder(network), asked) if verify else None
  export_lib.write_export(out, network, export_lib.Origin(task.base, str(folder), step), records,
                          references, say)
  say(f'{out}: step {step}; the prompts of {len(records)} {config.eval.split} questions have the '
      'ids that the run was trained on')
