"""A point of a sweep as the run that it is: its folder, where it stands, and what it has left."""

import dataclasses
import typing

from etils import epath

from rim_jax import reader
from rim_jax.config import Config
from rim_jax.config import grid as grid_lib
from rim_jax.config import stages as stages_lib
from rim_jax.errors import UserError, refuse
from rim_jax.results import values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import run_folder, storage

SWEEP_VERSION = 1


class Told(typing.TypedDict):
  """What is read of a point.json."""
  identity: str
  status: typing.Literal['waiting', 'running', 'done', 'failed', 'dropped']
  error: str


@dataclasses.dataclass
class PointRun:
  """`status`: waiting | running | done | failed | dropped (by sweep/halving.py)."""
  point: grid_lib.Point
  folder: epath.Path  # of the whole run
  status: str = 'waiting'
  error: str = ''

  @property
  def last(self) -> tuple[Config, run_folder.RunFolder]:
    """(config, folder) of the stage whose answers count."""
    config, folder = stages_lib.get_last(self.point.config, self.folder)
    return config, run_folder.RunFolder(folder)

  @property
  def stages(self) -> dict[str, run_folder.RunFolder]:
    """Name -> folder of every stage, in order; '' for a run that is one."""
    return {name: run_folder.RunFolder(self.folder / name)
            for name, _ in stages_lib.make_stages(self.point.config)}

  @property
  def result(self) -> values.EvalResult | None:
    """What the last stage says of the set that its config names, once done."""
    config, folder = self.last
    return folder.load_results().get(config.eval_set) if self.status == 'done' else None

  @property
  def predictions(self) -> epath.Path:
    config, folder = self.last
    return folder.get_predictions(config.eval_set)

  def read_status(self) -> None:
    """Takes over what the run, or its driver, told last.

    Raises: UserError where the folder holds a point of the same name and another config.
    """
    told = load_told(self.folder)
    if not told:
      return
    if told['identity'] != grid_lib.identify(self.point.config):
      others = card_lib.find_differences(
          card_lib.load_whole(self.folder), self.point.config, self.folder) if (
              self.folder / 'config.json').exists() else []
      refuse(others or [f'{self.folder}: holds a run of another config than {self.point.name} has '
                      'now; use another --workdir, or remove that folder'])
    self.status, self.error = told['status'], told['error']

  def set_status(self, status: str, error: str = '') -> None:
    """Tells it to whoever looks: WORKDIR/points/NAME/point.json."""
    self.status, self.error = status, error
    self.folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(self.folder / 'point.json', {
        'format': SWEEP_VERSION, 'identity': grid_lib.identify(self.point.config),
        'status': status, 'error': error})


def load_told(folder) -> Told | dict:
  """What point.json of a folder holds: identity, status, error; {} where there is none."""
  path = epath.Path(folder) / 'point.json'
  return reader.load_json(path, 'remove it, and the same command looks at the run anew',
                          Told) if path.exists() else {}


def load_point_runs(points, workdir) -> list[PointRun]:
  """What a driver before this one knew of them.

  Raises: UserError where a folder holds a point of the same name and another config.
  """
  runs, problems = [], {}
  folder = epath.Path(workdir) / 'points'
  for point in points:
    runs.append(PointRun(point, folder / point.name))
    try:
      runs[-1].read_status()
    except UserError as e:
      problems[f'{runs[-1].folder}: '] = str(e)
  # What all have alike is told once.
  alike = {text.replace(where, f'{folder}: ') for where, text in problems.items()}
  refuse([line for text in (alike if len(alike) == 1 < len(problems) else problems.values())
          for line in text.split('\n')])
  return runs
