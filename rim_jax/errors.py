"""Every error that ends the program in one line, each with its exit code."""


class RunError(Exception):
  """The run had to stop; its message is one line, where, what and the fix."""
  exit_code = 1


class UserError(RunError):
  """A user's mistake, told in one line a problem: where, what, the fix."""
  exit_code = 2


class FolderTaken(UserError):
  """Another process is at work in a folder."""


class NonFiniteError(RunError):
  """A loss or gradient stopped being finite; the update was withheld."""


class HostError(RunError):
  """Another process is missing, or this one cannot be reached."""


class Stopped(RunError):
  """The run was asked to end, or has done its share, and has saved; the same command goes on."""
  exit_code = 75


class ShareDone(Stopped):
  """The run has done as much of its budget as checkpoint.stop_frac asks for."""


def refuse(problems) -> None:
  """Raises: UserError with a line for each of `problems`, where there are any."""
  if problems:
    raise UserError('\n'.join(problems))
