"""Every error that ends the program in one line, each with its exit code."""


class RunError(Exception):
  """The run had to stop; its message is one line, where, what and the fix."""
  exit_code = 1


class UserError(RunError):
  """A user's mistake, told in one line a problem: where, what, the fix."""
  exit_code = 2


class NoStart(UserError):
  """There is no run of the stage before, `after`, to start from in `folder`."""

  def __init__(self, message: str, after: str = '', folder: str = ''):
    super().__init__(message)
    self.after, self.folder = after, folder


class FolderTaken(UserError):
  """Another process is at work in a folder."""


class NonFiniteError(RunError):
  """A loss or gradient stopped being finite; the update was withheld."""


class HostError(RunError):
  """Another process is missing, or this one cannot be reached."""


class Stopped(RunError):
  """The run was asked to end, and has saved; the same command goes on."""
  exit_code = 75


class ShareDone(Stopped):
  """The run has done as much of its budget as checkpoint.stop_frac asks for."""
  exit_code = 0  # it did as it was told: a queue must not start it again


def list_broken(*rules: tuple[object, str]) -> list[str]:
  """The words of each rule that is broken; a rule is (whether it is broken, its words)."""
  return [words for broken, words in rules if broken]


def check(*rules: tuple[object, str]) -> None:
  """Raises: UserError for the first rule that is broken; rules as in `list_broken`."""
  refuse(list_broken(*rules)[:1])


def refuse(problems) -> None:
  """Raises: UserError with a line for each of `problems`, where there are any."""
  if problems:
    raise UserError('\n'.join(problems))
