"""File systems without locks, or with another host's, for the tests."""

import fcntl
import os


def refuse_locks(monkeypatch, number: int) -> None:
  """Every lock fails with this error, as on a file system that has none or where it is taken."""
  def refuse(file, operation):
    raise OSError(number, os.strerror(number))
  monkeypatch.setattr(fcntl, 'flock', refuse)
