"""The command line: `python -m rim_jax.main --config=configs/rim.py [--mode=...]`.

  --config=FILE[:PRESET]   a recipe; --config.KEY=VALUE overrides one of its keys
  --workdir=DIR            where the run lives; default runs/<config>[-<preset>]. A run knows its
                           configuration: eval, controls, report, compare, export and generate need
                           no --config, and take --config.KEY=VALUE for keys that only say where
                           and how they work (eval, export, controls, mesh, ...)
  --mode=train             train (or go on), evaluate, and show the result
  --mode=data              show what would be trained on: splits, sizes, laid-out examples as text
                           and ids
  --mode=eval              evaluate a checkpoint; any K with --config.eval.num_blocks=K
  --mode=controls          does the memory do the work? (config.controls); WORKDIR/controls.json
  --mode=report            write WORKDIR/report.html anew, from the files that are there
  --mode=compare           does it differ from the run in --with=DIR, by McNemar's exact test on the
                           questions of the set that config.eval names? WORKDIR/compare.json
  --mode=export            write the run as a Hugging Face model (config.export);
                           --verify compares it with transformers before it appears
  --mode=generate          answer --question=TEXT, or each line of standard input
  --mode=sweep             every run of a recipe of many (configs/compare.py), --jobs at a time, and
                           what they say together; again: what is left, --retry_failed.
                           --controls: when they are done, every run with memory is asked what it
                           does, as by --mode=controls, beside direct and pause runs that match it.
                           --halve_at=0.25,0.5 drops settings (all seeds of one together) that
                           are worse on valid than others after these shares of their budget;
                           --halve_keep=0.5 of them go on.
                           --dry_run shows points, commands and cost, in hours on --hardware=h100
                           (or v5e:2x4, h100:8) at --utilization=0.4 of its peak.
                           --conclude runs nothing, and concludes from what is there.
                           --point=NAME, or its number from 0, is one of them, alone (--mode=train);
                           with --sweep_dir=DIR in place of --workdir it counts among DIR's points
  --mode=plan              what a step takes on --topology=KIND:SIZE (e.g. v5e:4x4) and
                           --num_slices of it, compiled without that TPU; WORKDIR/plan.json
  --debug                  show the traceback of an error

Several processes, one a host, run as one: they find each other on TPU VMs, GKE, SLURM and under
mpirun (--distributed where nothing tells), or are told where the first one is:
  --coordinator=HOST:PORT --num_processes=N --process_id=I
  --start_secs=300         how long they wait for each other

Exit codes: 0 done; 2 a user's mistake, one line a problem; 1 the run had to stop, one line; 75 it
was asked to end (SIGTERM) and has saved; 76 another process is gone, or none gets on. After 1,
75 and 76 the same command goes on from the last checkpoint.
"""

import contextlib
import difflib
import errno
import io
import logging
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
from typing import Any

from absl import flags
from etils import epath
import ml_collections
from ml_collections import config_flags
from rich import console as rich_console

from rim_jax import config as config_lib
from rim_jax import terminal
from rim_jax.config import grid as grid_lib
from rim_jax.errors import RunError, Stopped, UserError
from rim_jax.pretrained import families
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import status, storage

MODES = ('train', 'eval', 'generate', 'controls', 'report', 'compare', 'export', 'plan',
         'sweep', 'data')
# They work on a run that is there, and take its configuration from it where --config is not given.
RUN_MODES = ('eval', 'generate', 'controls', 'report', 'compare', 'export')
PATH_FLAGS = ('config', 'workdir', 'with', 'sweep_dir')
# A plan touches no TPU: neither its lock nor the questions that libtpu asks of a cloud are needed.
PLAN_ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3'}
_SWEEP_FLAGS = ('jobs', 'retry_failed', 'conclude', 'controls', 'dry_run', 'halve_at', 'halve_keep',
                'hardware', 'utilization')
_FULL = (errno.ENOSPC, errno.EDQUOT)
# ml_collections and absl tell what is wrong in words alone: here, and below, theirs are read.
_LOCKED = re.compile(r'Key "(\w+)" does not exist and cannot be added .* present: (.*)')


def _define_flags(argv, known=None) -> flags.FlagValues:
  """Flags of one invocation, apart from absl's global ones, so that a process can have several.

  Args:
    known: the configuration, where no recipe gives it.
  """
  values = flags.FlagValues()
  if known is None:
    config_flags.DEFINE_config_file('config', None, 'A recipe, FILE[:PRESET].', flag_values=values,
                                    lock_config=True, sys_argv=argv)
  else:
    config_flags.DEFINE_config_dict('config', known, "The run's own.", flag_values=values,
                                    lock_config=True, sys_argv=argv)
  flags.DEFINE_string('workdir', '', 'Where the run lives.', flag_values=values)
  flags.DEFINE_enum('mode', 'train', MODES, 'What to do.', flag_values=values)
  flags.DEFINE_string('question', '', 'generate: the question.', flag_values=values)
  flags.DEFINE_string('with', '', 'compare: the WORKDIR of the other run.', flag_values=values)
  flags.DEFINE_bool('verify', False, 'export: compare with transformers.', flag_values=values)
  flags.DEFINE_string('topology', '', 'plan: the TPU, e.g. v5e:4x4.', flag_values=values)
  flags.DEFINE_integer('num_slices', 1, 'plan: how many of them.', flag_values=values)
  flags.DEFINE_string('point', '', 'One run of a recipe of many.', flag_values=values)
  flags.DEFINE_string('sweep_dir', '', 'The WORKDIR of the sweep of --point.', flag_values=values)
  flags.DEFINE_string('identity', '', 'What the run of --point must be.', flag_values=values)
  flags.DEFINE_bool('conclude', False, 'sweep: run nothing.', flag_values=values)
  flags.DEFINE_bool('controls', False, 'sweep: ask the memory of each.', flag_values=values)
  flags.DEFINE_integer('jobs', 1, 'sweep: runs at a time.', flag_values=values)
  flags.DEFINE_bool('retry_failed', False, 'sweep: failed ones too.', flag_values=values)
  flags.DEFINE_string('halve_at', '', 'sweep: drop the worst at these shares.', flag_values=values)
  flags.DEFINE_float('halve_keep', 0.5, 'sweep: the part that goes on.', flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'sweep: show the runs.', flag_values=values)
  flags.DEFINE_string('hardware', 'h100', 'sweep --dry_run: hours on it.', flag_values=values)
  flags.DEFINE_float('utilization', 0.4, 'sweep --dry_run: assumed share of its peak.',
                     flag_values=values)
  flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0.', flag_values=values)
  flags.DEFINE_integer('num_processes', 0, 'How many there are.', flag_values=values)
  flags.DEFINE_integer('process_id', -1, 'Which one this is.', flag_values=values)
  flags.DEFINE_bool('distributed', False, 'Find the others.', flag_values=values)
  flags.DEFINE_integer('start_secs', 300, 'Wait so long for them.', flag_values=values)
  flags.DEFINE_bool('debug', False, 'Show tracebacks.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  return values


def _expand_flags(argv) -> list[str]:
  """A command line whose paths are whole: `--workdir ~/x` is `--workdir=/home/me/x`.

  Raises: UserError for the home directory of a user who is not there.
  """
  words, rest = [], iter(argv)
  for word in rest:
    name, equals, value = word.partition('=')
    flag = name.lstrip('-')
    if word.startswith('-') and flag in PATH_FLAGS:
      found = value if equals else next(rest, None)
      word = word if found is None else f'--{flag}={storage.expand(found, f"--{flag}")}'
    words.append(word)
  return words


def _find_flag(argv, name: str) -> str | None:
  """The value of `--NAME=VALUE`, the last one as absl has it; None without it."""
  return next((word.partition('=')[2] for word in reversed(argv)
               if word.startswith((f'--{name}=', f'-{name}='))), None)


def _expand_keys(config: config_lib.Config) -> config_lib.Config:
  """A config whose paths are whole. Raises: UserError as `storage.expand` does."""
  flat = config_lib.flatten(config)
  return config_lib.replace_keys(config, {
      key: storage.expand(flat[key], key) for key in config_lib.PATH_KEYS})


def _finish_known(config: config_lib.Config, card: dict, workdir: str) -> config_lib.Config:
  """The config of a run that is there, with what was said of it now; its shape is known.

  Raises: UserError where that would make another run of it.
  """
  problems = card_lib.find_differences(card, config, workdir)
  if problems:
    raise UserError('\n'.join(problems))
  # A model that has moved has its tokenizer with it.
  theirs, path = card['config'], config.tokenizer.path
  inside = path.removeprefix(f'{theirs["model"]["init_from"]}/')
  if config.model.init_from and inside != path and path == theirs['tokenizer']['path']:
    config = config_lib.replace_keys(
        config, {'tokenizer.path': f'{config.model.init_from}/{inside}'})
  return _expand_keys(config)


def _find_recipe(path: str) -> None:
  """Lets a recipe import those beside it, `from configs import presets`, from any directory.

  Raises: UserError where there is no such file.
  """
  recipe = pathlib.Path(path.split(':')[0]).absolute()
  if not recipe.is_file():
    there = sorted(map(str, pathlib.Path('configs').glob('*.py')))
    raise UserError(f'--config={path}: there is no file {path.split(":")[0]}; ' + (
        f'there are {", ".join(there)}' if there else
        'recipes are not installed with the package: clone the repository and give the path of '
        'one, e.g. --config=rim_jax/configs/rim.py'))
  # The recipe's own checkout, then this one: a recipe elsewhere may import ours. Behind all else,
  # so that nothing which is found today is found elsewhere.
  for root in (*recipe.parents, pathlib.Path(__file__).resolve().parents[1]):
    if (root / 'configs' / 'presets.py').is_file() and str(root) not in sys.path:
      sys.path.append(str(root))


def _find_override_problems(argv):
  """What is wrong with each `--config.KEY=VALUE`, all at once; absl would stop at the first."""
  defaults = config_lib.flatten(config_lib.Config())
  problems = []
  for arg in argv:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name.startswith('noconfig.'):
      problems.append(f'{arg}: write --{name.removeprefix("no")}=False')
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    key = name.removeprefix('config.')
    if key not in defaults:
      group = [k for k in defaults if k.startswith(f'{key}.')]
      close = difflib.get_close_matches(key, defaults, 1)
      hint = (f"it is a group of keys, e.g. '{group[0]}'" if group else
              f"did you mean '{close[0]}'?" if close else
              'see rim_jax/config/schema.py for all keys')
      problems.append(f"--config.{key}: there is no key '{key}'; {hint}")
    elif not equals and not isinstance(defaults[key], bool):
      problems.append(f'{arg}: write --config.{key}=VALUE')
    elif equals:
      kind = type(defaults[key])
      try:
        flags.BooleanParser().parse(value) if kind is bool else kind(value)
      except (ValueError, TypeError):
        problems.append(f"--config.{key}={value}: should be {kind.__name__}, e.g. {defaults[key]}")
  return problems


# Long: the order in which a command line can be wrong, each told in a line.
def _parse(argv) -> tuple[flags.FlagValues, Any, str]:
  """Flags, the frozen config (a sweep's points, None for help) and the recipe's path.

  Raises: UserError in one line for whatever is wrong with either.
  """
  argv = [argv[0], *_expand_flags(argv[1:])]
  path, workdir, card = _find_flag(argv, 'config'), _find_flag(argv, 'workdir'), None
  if path is not None:
    _find_recipe(path)
  elif workdir and _find_flag(argv, 'mode') in RUN_MODES:
    card, path = card_lib.load_whole(workdir), f'{workdir}/config.json'
  problems = _find_override_problems(argv)
  if problems:
    raise UserError('\n'.join(problems))
  try:
    values = _define_flags(argv, card and ml_collections.ConfigDict(card['config']))
    rest = values(argv)[1:]
    config = values.config  # the recipe runs here
  except UserError as e:
    raise UserError('\n'.join(f'{path}: {line}' for line in str(e).split('\n'))) from e
  except flags.Error as e:
    if 'Error whilst parsing config file' in str(e):  # and a traceback, which ends in its error
      raise UserError(f'{path}: {str(e).strip().splitlines()[-1]}') from e
    raise UserError(f'command line: {_flatten_message(e)}') from e
  except Exception as e:  # pylint: disable=broad-except  (a recipe is the user's code)
    if '--debug' in argv:
      raise
    raise UserError(f'{path or "command line"}: {_flatten_message(e)}') from e
  if values.help:
    return values, None, path or ''
  if rest:
    raise UserError(f'command line: {rest[0]!r} is no flag; write --flag=value')
  if path is None:
    raise UserError('command line: --config is missing; try --config=configs/rim.py' + (
        f', or name the run with --workdir=DIR: --mode={values.mode} asks it for its configuration'
        if values.mode in RUN_MODES else ''))
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'{path}: get_config returns {type(config).__name__}; return the ConfigDict '
                    'that rim_jax.config.make_config_dict makes')
  alone = [name for name in _SWEEP_FLAGS if values.mode != 'sweep' and values[name].present]
  if alone:
    raise UserError(f'--{alone[0]}: is for --mode=sweep' + (
        '; one run is asked with --mode=controls' if alone[0] == 'controls' else ''))
  if values['with'].value and values.mode != 'compare':
    raise UserError('--with: is for --mode=compare')
  if values.mode == 'compare' and not values['with'].value:
    raise UserError('--mode=compare: with which run? name its WORKDIR with --with=DIR')
  if 'points' in config:
    if values.mode == 'sweep':
      if values.point or values.sweep_dir:
        raise UserError('--mode=sweep runs all points, in --workdir; --point and --sweep_dir are '
                        'for one of them, without --mode=sweep')
      return values, grid_lib.load_points(config, path), path
    (point,) = grid_lib.load_points(config, path, _choose_point(config, values.point, path))
    values.point, config = point.name, point.config
    if values.identity not in ('', grid_lib.identify(config)):
      raise UserError(f'{path}: --point={point.name} is another run now than its sweep began; end '
                      'that sweep and begin it again')
    if values.sweep_dir and values.workdir:
      raise UserError(f'--workdir={values.workdir} and --sweep_dir={values.sweep_dir}: a point '
                      'lives in --workdir, or in its place below --sweep_dir; give one')
    if values.sweep_dir:
      values.workdir = f'{values.sweep_dir.rstrip("/")}/points/{point.name}'
  elif values.mode == 'sweep' or values.point or values.sweep_dir:
    raise UserError(f'{path}: is one run, not many; --mode=sweep, --point and --sweep_dir are for '
                    'recipes such as configs/compare.py')
  else:
    config = config_lib.parse_config(config, path)
  if values.mode == 'plan':  # needs no tokenizer, and no data
    if not values.topology:
      raise UserError('--mode=plan: which TPU? name one with --topology=KIND:SIZE, e.g. '
                      '--topology=v5e:4x4')
    return values, families.resolve_shape(_expand_keys(config)), path
  if card:
    return values, _finish_known(config, card, values.workdir), path
  return values, families.resolve(_expand_keys(config)), path


def _choose_point(recipe, name, path) -> str:
  """The name of the point of a name, or of a number from 0."""
  names = grid_lib.list_names(recipe, path)
  if name.isdecimal() and name not in names:
    if int(name) >= len(names):
      raise UserError(f'{path}: --point={name}: there are {len(names)} points, numbered from 0')
    return names[int(name)]
  if name not in names:
    close = difflib.get_close_matches(name, names, 1) or names[:1]
    raise UserError(f'{path}: is a recipe of {len(names)} runs; run them with --mode=sweep, or one '
                    f'with --point=NAME, e.g. --point={close[0]}')
  return name


def _flatten_message(error):
  """An exception in one line, with its kind where the message alone says little."""
  # str() of a KeyError or AttributeError of a ConfigDict is the repr of its message.
  message = ' '.join(str(error.args[0] if len(error.args) == 1 else error).split())
  locked = _LOCKED.search(message)
  if locked:  # the library goes on to list every value of the group
    keys = re.findall(r"(\w+)\\?': ", locked[2])
    close = difflib.get_close_matches(locked[1], keys, 1)
    return f"there is no key '{locked[1]}'; " + (
        f"did you mean '{close[0]}'?" if close else f'keys here: {", ".join(keys)}')
  if isinstance(error, AttributeError) and message.endswith("'get_config'"):
    return 'has no get_config; define it, returning what rim_jax.config.make_config_dict makes'
  if isinstance(error, (flags.Error, SyntaxError)):
    return message
  return f'{type(error).__name__}: {message}' if message else type(error).__name__


def get_workdir(config_path: str, point: str = '') -> pathlib.Path:
  """runs/<config>[-<preset>] for FILE[:PRESET]; a run of a sweep is below it."""
  path, _, preset = config_path.partition(':')
  folder = pathlib.Path('runs') / (pathlib.Path(path).stem + (f'-{preset}' if preset else ''))
  return folder / 'points' / point if point else folder


def get_point_workdir(command) -> str:
  """Where a command with --point and --sweep_dir has its run, by name, also from a number.

  Raises: UserError as the command itself would.
  """
  flags = [a for a in _expand_flags(command) if a.startswith('--')]
  return _parse(['main', *flags])[0].workdir


def find_workdir(command) -> str:
  """Where the run of a command lives, or would; the command may begin with `python -m ...`.

  Raises: UserError as the command itself would.
  """
  flags = [a for a in _expand_flags(command) if a.startswith('--')]
  if _find_flag(flags, 'sweep_dir'):
    return get_point_workdir(flags)
  return _find_flag(flags, 'workdir') or str(get_workdir(_find_flag(flags, 'config') or ''))


def count_points(command) -> int:
  """How many points the recipe of a command with --sweep_dir has, all of them validated.

  Raises: UserError as --mode=sweep would.
  """
  flags = [a for a in _expand_flags(command) if a.startswith('--')
           and not a.startswith('--sweep_dir=')]
  return len(_parse(['main', *flags, '--mode=sweep'])[1])


# Long: a mode after the other, each in a few lines.
def _run(argv, console) -> None:
  values, config, source = _parse(argv)
  if values.help:
    console.print(__doc__, markup=False)
    return
  # text: pathlib would break 'gs://'
  workdir = values.workdir or str(get_workdir(source, values.point))

  def say(line):
    console.print(terminal.show(line), soft_wrap=True, markup=False, highlight=False)

  if values.mode == 'sweep':  # starts commands and computes nothing
    if values.dry_run:  # shapes alone: no accelerator is touched
      os.environ['JAX_PLATFORMS'] = 'cpu'
    from rim_jax.sweep import driver, halving  # late: they load JAX
    if values['halve_keep'].present and not values.halve_at:
      raise UserError('--halve_keep: goes with --halve_at')
    if values.conclude and values.halve_at:
      raise UserError('--conclude runs nothing, so it drops nothing: leave out --halve_at')
    if values.conclude and values.controls:
      raise UserError('--conclude runs nothing, so it asks nothing: leave out --controls')
    halves = halving.parse_halving(values.halve_at, values.halve_keep)
    overrides = [a for a in argv[1:] if a.lstrip('-').startswith('config.')]
    sweep = driver.Sweep(
        config, epath.Path(workdir), source, overrides, values.jobs, values.retry_failed, halves,
        values.controls, values.conclude)
    if values.dry_run:
      driver.show_dry(sweep, values.hardware, values.utilization, say)
      if values.controls:
        say('--controls: then the command of every run with memory again, with --mode=controls')
      return
    driver.drive(sweep, say, console)
    return
  if values.mode == 'compare':  # of files alone: no accelerator is touched
    from rim_jax.report import comparisons
    comparisons.compare(config, workdir, values['with'].value, say, console)
    return
  if values.mode == 'plan':  # before JAX is loaded, which reads them once
    os.environ.update(PLAN_ENVIRONMENT)
  from rim_jax.runtime import hosts  # late: a wrong flag is told before JAX is loaded
  hosts.start(values.coordinator, values.num_processes, values.process_id, values.distributed,
              values.start_secs)
  if not hosts.is_leader():
    console.quiet = True  # one process speaks for all
  from rim_jax import modes
  modes.keep_compiled(config)
  if values.mode == 'train':
    say(hosts.describe_machine())
  if values.mode == 'plan':
    modes.plan(config, workdir, values.topology, values.num_slices, say, console)
  elif values.mode == 'train':
    with _keep_point(values, source, say):
      modes.train(config, workdir, say, console)
  elif values.mode == 'data':
    modes.show_data(config, say, console)
  elif values.mode == 'eval':
    modes.evaluate(config, workdir, say, console)
  elif values.mode == 'controls':
    modes.controls(config, workdir, say, console)
  elif values.mode == 'report':
    modes.write_report(config, workdir, say)
  elif values.mode == 'export':
    modes.export(config, workdir, values.verify, say)
  else:
    modes.generate(config, workdir, values.question, say, console)


def _keep_point(values, source, say):
  """Around the run of a point that lives in its sweep's directory."""
  if not values.sweep_dir:
    return contextlib.nullcontext()
  from rim_jax.sweep import driver
  (point,) = grid_lib.load_points(values.config, source, values.point)
  return driver.keep_point(point, grid_lib.list_names(values.config, source), values.sweep_dir,
                           say)


def cli(argv, console=None) -> int:
  """Runs a command line; returns its exit code. Errors are one line each on standard error."""
  console = console or rich_console.Console()
  console.push_render_hook(terminal.Visible())
  debug = any(a in ('--debug', '--debug=true', '--debug=True', '--debug=1') for a in argv)
  try:
    _run(list(argv), console)
  except RunError as e:
    status.tell(ended=type(e).__name__, error=str(e))
    if debug:
      raise
    name, text = 'stopped' if isinstance(e, Stopped) else 'error', str(e)
    for word in argv:  # a path of several lines is one all the same
      text = text.replace(word.partition('=')[2], terminal.show(word.partition('=')[2])) if (
          '\n' in word) else text
    for line in text.split('\n'):
      print(f'{name}: {terminal.show(line)}', file=sys.stderr)
    return e.exit_code
  except KeyboardInterrupt:
    print('stopped; run the same command again to go on from the last checkpoint',
          file=sys.stderr)
    return 130
  except Exception as e:  # pylint: disable=broad-except
    if _is_disk_full(e) and not debug:
      where = ', '.join(map(terminal.show, _find_full(e, argv))) or 'none that is known'
      print(f'error: the disk is full ({where}); the checkpoints that were finished are whole: '
            'make room, and the same command goes on from the last one', file=sys.stderr)
      return 1
    raise
  return 0


def _is_disk_full(error) -> bool:
  """Whether a full disk, or a quota, is what an error comes from; Orbax tells it in words."""
  while error is not None:
    if getattr(error, 'errno', None) in _FULL or (
        'No space left on device' in str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


def _keep_interrupt(unraisable) -> None:
  """Ctrl-C that met a callback, e.g. of garbage collection, is not lost there: it comes again.

  Python only prints what is raised there. By another thread and a moment later: here, in a callback
  still, it would meet the same end.
  """
  if unraisable.exc_type is KeyboardInterrupt:
    again = threading.Timer(1.0, signal.pthread_kill, (
        threading.main_thread().ident, signal.SIGINT))
    again.daemon = True
    again.start()
  else:
    sys.__unraisablehook__(unraisable)


def _find_full(error, argv) -> list[str]:
  """What could not be written, as an error tells it; else the places that have no room left."""
  while error is not None:
    named = getattr(error, 'filename', None) or next(
        iter(re.findall(r'"(/[^"]+)"', str(error))), None)
    if named and (getattr(error, 'errno', None) in _FULL or 'No space left' in str(error)):
      return [str(named)]
    error = error.__cause__ or error.__context__
  cache = _find_flag(argv, 'config.data.cache_dir') or config_lib.DataConfig().cache_dir
  full = []
  for place in (_find_flag(argv, 'workdir') or '.', cache, tempfile.gettempdir()):
    path = pathlib.Path(place).expanduser().absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    free = os.statvfs(there)
    if free.f_bavail * free.f_frsize < 2**20 and place not in full:
      full.append(place)
  return full


def main() -> None:
  terminal.open_streams()
  sys.unraisablehook = _keep_interrupt
  # Orbax logs a traceback from each of its threads; what they tell is told once, in a line.
  logging.getLogger('absl').addFilter(
      lambda record: not (record.exc_info and _is_disk_full(record.exc_info[1])))
  if isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(encoding='utf-8')
  code = cli(sys.argv)
  sys.stdout.flush()
  sys.stderr.flush()
  if code == 1:
    # At once: half-done saves would complain, and other processes wait for a farewell that the
    # failed one cannot give.
    os._exit(code)
  sys.exit(code)


if __name__ == '__main__':
  main()
