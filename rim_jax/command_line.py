"""What a command line asks for: its flags, and the frozen configuration of a recipe or of a run.

Reads recipes and cards; loads neither JAX nor data, so that a wrong flag is told at once.
"""

import difflib
import pathlib
import re
import sys
from typing import Any, NamedTuple

from absl import flags
import ml_collections
from ml_collections import config_flags

from rim_jax import config as config_lib
from rim_jax import terminal
from rim_jax.config import grid as grid_lib
from rim_jax.config.methods import FACTS
from rim_jax.errors import NoStart, UserError, check, refuse
from rim_jax.pretrained import families
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import storage

MODES = ('train', 'eval', 'generate', 'controls', 'report', 'compare', 'export', 'plan',
         'sweep', 'data')
# They work on a run that is there, and take its configuration from it where --config is not given.
RUN_MODES = ('eval', 'generate', 'controls', 'report', 'compare', 'export')
_OF_FILES = ('report', 'compare')  # these need no model
PATH_FLAGS = ('config', 'workdir', 'with', 'sweep_dir')
# Name -> default and meaning, of all but `config` and `mode`; the default's type is the flag's.
FLAGS = {
    'workdir': ('', 'The directory of the run.'), 'debug': (False, 'Show tracebacks.'),
    'question': ('', 'generate: the question.'),
    'json': (False, 'generate: a JSON object a question, for programs.'),
    'with': ('', 'compare: the WORKDIR of the other run.'),
    'verify': (False, 'export: compare with transformers.'),
    'topology': ('', 'plan: the machine, v5e:4x4, h100:8 or h100:2x8.'),
    'num_slices': (1, 'plan: how many of them.'),
    'fastest': (False, 'plan: look for the fastest setting.'),
    'latency': (False, 'plan: an answer in place of a step.'),
    'point': ('', 'The name of one run of a sweep, which is done alone.'),
    'sweep_dir': ('', '--point: the directory of its sweep.'),
    'identity': ('', '--point: what the run must be; launchers name it.'),
    'coordinator': ('', 'HOST:PORT of process 0, if there are several.'),
    'num_processes': (0, 'Number of processes.'), 'process_id': (-1, 'Number of this one, from 0.'),
    'distributed': (False, 'Find the other processes by what the cloud says (TPU VMs, GKE).'),
    'start_secs': (300, 'Seconds to wait for the other processes.'),
    'help': (False, 'Show this help.')}
SWEEP_FLAGS = {
    'jobs': (1, 'Runs at a time.'), 'retry_failed': (False, 'Run again what failed.'),
    'conclude': (False, 'Run nothing; write the tables of the runs that are there.'),
    'controls': (False, 'Ask each run whether its memory does the work.'),
    'dry_run': (False, 'Only show the runs and what they cost.'),
    'halve_at': ('', 'Drop the worst at these shares of the budget.'),
    'halve_keep': (0.5, 'The part that goes on.'), 'hardware': ('h100', '--dry_run: hours on it.'),
    'utilization': (0.4, '--dry_run: assumed share of its peak.')}
_DEFINE = {str: flags.DEFINE_string, bool: flags.DEFINE_bool, int: flags.DEFINE_integer,
           float: flags.DEFINE_float}
# ml_collections and absl tell what is wrong in words alone: here, and below, theirs are read.
_LOCKED = re.compile(r'Key "(\w+)" does not exist and cannot be added .* present: (.*)')


class Command(NamedTuple):
  """What is asked for."""
  values: flags.FlagValues
  config: Any  # frozen; of a sweep its points, for --help None
  source: str  # the recipe, FILE[:PRESET]

  @property
  def workdir(self) -> str:  # text: pathlib would break 'gs://'
    return self.values.workdir or str(get_workdir(self.source, self.values.point))


def define_flags(argv, known=None) -> flags.FlagValues:
  """Flags of one invocation, apart from absl's global ones, so that a process can have several.

  Args:
    known: the configuration, where no recipe gives it.
  """
  values = flags.FlagValues()
  define: Any = (config_flags.DEFINE_config_file if known is None else
                 config_flags.DEFINE_config_dict)
  define('config', known, 'A recipe, FILE[:PRESET], or the run\'s own.', flag_values=values,
         lock_config=True, sys_argv=argv)
  flags.DEFINE_enum('mode', 'train', MODES, 'What to do.', flag_values=values)
  for name, (default, words) in (FLAGS | SWEEP_FLAGS).items():
    _DEFINE[type(default)](name, default, words, flag_values=values)
  return values


def _expand_flags(argv, opens: bool = True) -> list[str]:
  """A command line whose paths are whole: `--workdir ~/x` is `--workdir=/home/me/x`.

  Args:
    opens: whether this process will read and write there.
  Raises: UserError for the home directory of a user who is not there, and for a bucket whose
    package is not.
  """
  words, rest = [], iter(argv)
  for word in rest:
    name, equals, value = word.partition('=')
    flag = name.lstrip('-')
    if word.startswith('-') and flag in PATH_FLAGS:
      found = value if equals else next(rest, None)
      word = word if found is None else f'--{flag}={storage.expand(found, f"--{flag}")}'
      if opens:
        storage.check_package(found or '', f'--{flag}')
    words.append(word)
  return words


def find_flag(argv, name: str) -> str | None:
  """The value of `--NAME=VALUE` or `--NAME VALUE`, the last one as absl has it; None without it."""
  found = None
  for word, after in zip(argv, [*argv[1:], None]):
    flag, equals, value = word.partition('=')
    if flag in (f'--{name}', f'-{name}'):
      found = value if equals else after
  return found


def _expand_keys(config: config_lib.Config, known=None) -> config_lib.Config:
  """A config whose paths are whole.

  Args:
    known: the config of a run that is there, whose other paths need not be read any more.
  Raises: UserError as `_expand_flags` does.
  """
  flat, before = config_lib.flatten(config), config_lib.flatten(known or {})
  for key in config_lib.PATH_KEYS:
    if flat[key] != before.get(key):
      storage.check_package(flat[key], key)
  return config_lib.replace_keys(config, {
      key: storage.expand(flat[key], key) for key in config_lib.PATH_KEYS})


def _finish_known(config: config_lib.Config, card: dict, workdir: str, mode: str
                  ) -> config_lib.Config:
  """The config of a run that is there, with what was said of it now; its shape is known.

  Raises: UserError where that would make another run of it.
  """
  refuse(card_lib.find_differences(card, config, workdir))
  theirs, path = card['config'], config.tokenizer.path
  if config.model.init_from and path == theirs['tokenizer']['path'] and mode not in _OF_FILES:
    config = config_lib.replace_keys(config, {'tokenizer.path': families.find_moved_tokenizer(
        path, theirs['model']['init_from'], config.model)})
  return _expand_keys(config, theirs)


def _find_recipe(path: str) -> None:
  """Lets a recipe import those beside it, `from configs import presets`, from any directory.

  Raises: UserError where there is no such file.
  """
  recipe = pathlib.Path(path.split(':')[0]).absolute()
  if not recipe.is_file():
    beside, ours = ([str(file) for pattern in ('*.py', 'sweeps/*.py') for file in sorted(
        folder.glob(pattern)) if file.name != 'presets.py'] for folder in (
            pathlib.Path(path.split(':')[0]).parent, pathlib.Path('configs')))
    there = beside or ours
    raise UserError(f'--config={path}: there is no file {path.split(":")[0]}; ' + (
        f'there are the recipes {", ".join(there)}' if there else
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


def parse(argv) -> Command:
  """Raises: UserError in one line for whatever is wrong with flags or configuration."""
  argv = [argv[0], *_expand_flags(argv[1:])]
  path, workdir, card = find_flag(argv, 'config'), find_flag(argv, 'workdir'), None
  if path is not None:
    _find_recipe(path)
  elif workdir and find_flag(argv, 'mode') in RUN_MODES:
    card, path = card_lib.load_whole(workdir), f'{workdir}/config.json'
  elif any(arg.lstrip('-').startswith('config.') for arg in argv):  # keys of no configuration
    raise UserError(_describe_no_config(find_flag(argv, 'mode') or 'train'))
  refuse(_find_override_problems(argv))
  values, rest = _read_flags(argv, path, card)
  if values.help:
    return Command(values, None, path or '')
  config, path = values.config, _check_flags(values, rest, path)
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'{path}: get_config returns {type(config).__name__}; return the ConfigDict '
                    'that rim_jax.config.make_config_dict makes')
  if 'points' in config and values.mode == 'sweep':
    _check_heard(argv, config, path)
    return Command(values, grid_lib.load_points(config, path), path)
  if 'points' in config:
    tree, config = config, _take_point(values, path)
    # In a sweep a key is for those of its points that do not set it; alone, for this one.
    in_sweep = values.identity or values.sweep_dir
    _check_heard(argv, tree, path, '' if in_sweep else values.point)
  elif values.mode == 'sweep' or values.point or values.sweep_dir:
    raise UserError(f'{path}: is one run, not many; --mode=sweep, --point and --sweep_dir are for '
                    'recipes such as configs/compare.py')
  else:
    # A value that is wrong may stand in either.
    given = any(arg.lstrip('-').startswith('config.') for arg in argv)
    config = config_lib.parse_config(
        config, f'{path} and command line' if given else path, begins=card is None)
  if card and values.mode != 'plan':
    return Command(values, _finish_known(config, card, values.workdir, values.mode), path)
  # A plan needs no tokenizer, no data.
  resolve = families.resolve_shape if values.mode == 'plan' else families.resolve
  return Command(values, resolve(_expand_keys(config)), path)


def _read_flags(argv, path, card) -> tuple[flags.FlagValues, list[str]]:
  """Flags and the words that are none; the recipe has run."""
  try:
    values = define_flags(argv, card and ml_collections.ConfigDict(card['config']))
    rest = values(argv)[1:]
    _ = values.config  # the recipe runs here
    return values, rest
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


def _describe_no_config(mode: str) -> str:
  return 'command line: --config is missing; try --config=configs/rim.py' + (
      f', or name the run with --workdir=DIR: --mode={mode} asks it for its configuration'
      if mode in RUN_MODES else '')


def _check_flags(values, rest, path: str | None) -> str:
  """The path, which is known, then.

  Raises: UserError for the first thing that is wrong with flags, whatever the configuration.
  """
  mode, other = values.mode, values['with'].value
  alone = [name for name in SWEEP_FLAGS if mode != 'sweep' and values[name].present]
  check(
      (rest, f'command line: {"".join(map(repr, rest[:1]))} is no flag; write --flag=value'),
      (path is None, _describe_no_config(mode)),
      (alone, f'--{"".join(alone[:1])}: is for --mode=sweep' + (
          '; one run is asked with --mode=controls' if alone[:1] == ['controls'] else '')),
      (other and mode != 'compare', '--with: is for --mode=compare'),
      (mode == 'compare' and not other,
       '--mode=compare: with which run? name its WORKDIR with --with=DIR'),
      (mode == 'plan' and not values.topology,
       '--mode=plan: which machine? name one with --topology=KIND:SIZE, e.g. --topology=v5e:4x4 or '
       '--topology=h100:8'),
      ((values.fastest or values.latency) and mode != 'plan',
       '--fastest, --latency: are for --mode=plan'),
      (values.fastest and values.latency, '--fastest, --latency: ask for one of them'),
      (mode == 'sweep' and (values.point or values.sweep_dir),
       '--mode=sweep runs all points, in --workdir; --point and --sweep_dir are for one of them, '
       'without --mode=sweep'),
      ((values['hardware'].present or values['utilization'].present) and not values.dry_run,
       '--hardware, --utilization: are for --dry_run, which starts nothing; add it'),
      (values['halve_keep'].present and not values.halve_at, '--halve_keep: goes with --halve_at'),
      (values.conclude and values.halve_at,
       '--conclude runs nothing, so it drops nothing: leave out --halve_at'),
      (values.conclude and values.controls,
       '--conclude runs nothing, so it asks nothing: leave out --controls'))
  return path or ''


def _check_heard(argv, recipe, path, only: str = '') -> None:
  """Refuses --config.KEY=VALUE where each run of a recipe, or the one named, sets KEY itself."""
  tree = recipe.to_dict()
  runs = [(name, entry['set']) for name, entry in zip(grid_lib.list_names(recipe, path), tree.pop(
      'points')) if only in ('', name)]
  given = config_lib.flatten(tree)
  for key in (arg.lstrip('-').partition('=')[0].removeprefix('config.') for arg in argv
              if arg.lstrip('-').startswith('config.')):
    if all(own.get(key, given[key]) != given[key] for _, own in runs):
      name, own = runs[0]
      raise UserError(f'--config.{key}={given[key]}: {path} sets this key itself ({own[key]} in '
                      f'{name}), so that nothing would change; leave it out, or change the recipe')


def _take_point(values, path) -> config_lib.Config:
  """The config of the point that flags name; they have its name and folder, then."""
  (point,) = grid_lib.load_points(
      values.config, path, _choose_point(values.config, values.point, path))
  values.point = point.name
  check(
      (values.identity not in ('', grid_lib.identify(point.config)),
       f'{path}: --point={point.name} is another run now than its sweep began; end that sweep and '
       'begin it again'),
      (values.sweep_dir and values.workdir,
       f'--workdir={values.workdir} and --sweep_dir={values.sweep_dir}: a point lives in '
       '--workdir, or in its place below --sweep_dir; give one'))
  if values.sweep_dir:
    values.workdir = f'{values.sweep_dir.rstrip("/")}/points/{point.name}'
  return point.config


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


def describe_start(command: Command, argv, missing: NoStart) -> str:
  """What is missing, and the command that makes it, with all that was typed for this run.

  By the recipe of the stage before, if it stands beside this one's, else by this one's own. Of a
  recipe of many runs no command makes the stage before alone.
  """
  if command.values.point:
    return str(missing)
  path, colon, preset = command.source.partition(':')
  recipe, method = pathlib.Path(path), next(
      name for name, facts in FACTS.items() if facts.stage == missing.after)
  sibling = recipe.with_name(f'{missing.after}.py')
  is_sibling = recipe.stem == command.config.facts.stage and sibling.exists()
  source = f'{sibling if is_sibling else recipe}{colon}{preset}'
  typed = [word for word in argv if word.startswith('-') and word.lstrip('-').startswith('config.')]
  left_out = ('config.method', 'config.train.init_from', 'config.checkpoint.stop_frac')
  kept = [word for word in typed if word.lstrip('-').partition('=')[0] not in left_out]
  folder = missing.folder or f'{command.workdir}-{missing.after}'
  words = terminal.join([
      'python', '-m', 'rim_jax.main', f'--config={source}',
      *([] if is_sibling else [f'--config.method={method}']), *kept,
      *([f'--workdir={folder}'] if folder != str(get_workdir(source)) else [])])
  return f'{missing}, or make it with {words}' if missing.folder else (
      f'{missing}, e.g. {terminal.quote(folder)} after {words}')


def find_workdir(command) -> str:
  """Where the run of a command lives, or would; the command may begin with `python -m ...`.

  A point of a sweep has its place by name, also where its number is given.
  Raises: UserError as the command itself would.
  """
  words = [a for a in _expand_flags(command) if a.startswith('--')]
  if find_flag(words, 'sweep_dir'):
    return parse(['main', *words]).workdir
  return find_flag(words, 'workdir') or str(get_workdir(find_flag(words, 'config') or ''))


def count_points(command) -> int:
  """How many points the recipe of a command with --sweep_dir has, all of them validated.

  Raises: UserError as --mode=sweep would.
  """
  words = [a for a in _expand_flags(command, opens=False)
           if a.startswith('--') and not a.startswith('--sweep_dir=')]
  return len(parse(['main', *words, '--mode=sweep']).config)
