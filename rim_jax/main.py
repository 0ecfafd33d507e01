"""The command line: `python -m rim_jax.main --config=configs/rim.py [--mode=...]`.

  --config=FILE[:PRESET]   a recipe; --config.KEY=VALUE overrides one of its keys
  --workdir=DIR            where the run lives; default runs/<config>[-<preset>]
  --mode=train             train (or go on), evaluate, and show the result
  --mode=eval              evaluate a checkpoint; any K with --config.eval.num_blocks=K
  --mode=generate          answer --question=TEXT, or each line of standard input
  --debug                  show the traceback of an error

A user's mistake ends in one line a problem and exit code 2; a run that had to
stop, in one line and exit code 1.
"""

import io
import pathlib
import sys

from absl import flags
from ml_collections import config_flags
from rich import console as rich_console

from rim_jax import config as config_lib
from rim_jax.config import UserError

MODES = ('train', 'eval', 'generate')


def _define_flags() -> flags.FlagValues:
  """Flags of one invocation, apart from absl's global ones, so that a process can have several."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'A recipe, FILE[:PRESET].', flag_values=values,
                                  lock_config=True)
  flags.DEFINE_string('workdir', '', 'Where the run lives.', flag_values=values)
  flags.DEFINE_enum('mode', 'train', MODES, 'What to do.', flag_values=values)
  flags.DEFINE_string('question', '', 'generate: the question.', flag_values=values)
  flags.DEFINE_bool('debug', False, 'Show tracebacks.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  return values


def _parse(argv):
  """Flags and the frozen config of a command line.

  Raises: UserError in one line for whatever is wrong with either.
  """
  values = _define_flags()
  path = next((a.split('=', 1)[1] for a in argv if a.startswith('--config=')), None)
  if path is not None and not pathlib.Path(path.split(':')[0]).is_file():
    there = sorted(map(str, pathlib.Path('configs').glob('*.py')))
    raise UserError(f'--config={path}: there is no file {path.split(":")[0]}'
                    + (f'; there are {", ".join(there)}' if there else
                       '; give the path of a recipe'))
  try:
    rest = values(argv)[1:]
    config = values.config  # the recipe runs here
  except UserError:
    raise
  except Exception as e:  # pylint: disable=broad-except  (a recipe is the user's code)
    if values.is_parsed() and values.debug:
      raise
    message = str(e).strip() or type(e).__name__
    raise UserError(f'{path or "command line"}: ' + ' '.join(message.split())) from e
  if values.help:
    return values, None
  if rest:
    raise UserError(f'command line: {rest[0]!r} is no flag; write --flag=value')
  if config is None:
    raise UserError('command line: --config is missing; try --config=configs/rim.py')
  return values, config_lib.parse_config(config, path)


def get_workdir(config_path: str) -> pathlib.Path:
  """runs/<config>[-<preset>] for FILE[:PRESET]."""
  path, _, preset = config_path.partition(':')
  return pathlib.Path('runs') / (pathlib.Path(path).stem + (f'-{preset}' if preset else ''))


def _run(argv, console) -> None:
  values, config = _parse(argv)
  if values.help:
    console.print(__doc__, markup=False)
    return
  source = next(a.split('=', 1)[1] for a in argv if a.startswith('--config='))
  workdir = pathlib.Path(values.workdir or get_workdir(source))

  def say(line):
    console.print(line, soft_wrap=True, markup=False, highlight=False)

  command = f'python -m rim_jax.main --config={source}' + (
      f' --workdir={values.workdir}' if values.workdir else '')
  from rim_jax import run  # late: a wrong flag is told before JAX is loaded
  if values.mode == 'train':
    run.train(config, workdir, command, say, console)
  elif values.mode == 'eval':
    run.evaluate(config, workdir, say, console)
  else:
    run.generate(config, workdir, values.question, say, console)


def cli(argv, console=None) -> int:
  """Runs a command line; returns its exit code. Errors are one line each on standard error."""
  console = console or rich_console.Console()
  debug = '--debug' in argv
  try:
    _run(list(argv), console)
  except UserError as e:
    if debug:
      raise
    for line in str(e).split('\n'):
      print(f'error: {line}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; run the same command again to go on from the last checkpoint',
          file=sys.stderr)
    return 130
  except Exception as e:  # pylint: disable=broad-except
    if debug or type(e).__name__ != 'NonFiniteError':
      raise
    print(f'error: {e}', file=sys.stderr)
    return 1
  return 0


def main() -> None:
  if isinstance(sys.stdin, io.TextIOBase) and hasattr(sys.stdin, 'reconfigure'):
    sys.stdin.reconfigure(encoding='utf-8')
  sys.exit(cli(sys.argv))


if __name__ == '__main__':
  main()
