"""Locks on files: one process at a time, also of several hosts that share a file system.

The kernel gives a lock back with the process that had it. NFS forwards the locks of regular files
that are open for writing, and of nothing else. Some file systems have none (Lustre, mounted without
`-o flock`): there nobody is kept out, and who locks is told so.
"""

import contextlib
import errno
import fcntl

_TAKEN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


class Taken(OSError):
  """Another process has the lock."""


def take(file, waits: bool) -> str:
  """Locks an open file until it is closed.

  Args:
    waits: until another process gives it back.
  Returns: '' once it is had, or why there are no locks here.
  Raises: Taken, where it is not to wait.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
  except OSError as e:
    if e.errno in _TAKEN:
      raise Taken(*e.args) from None
    return f'{errno.errorcode.get(e.errno or 0, e.errno)}, {e.strerror}'
  return ''


@contextlib.contextmanager
def hold(path, waits: bool, say=print):
  """Makes a file and has its lock inside the context; gives whether there are locks here.

  Args:
    say: told where it waits.
  Raises: Taken, where it is not to wait.
  """
  try:
    file = open(path, 'a')
  except PermissionError:
    file = open(path)  # another user's: local file systems lock it all the same
  with file:
    try:
      problem = take(file, waits=False)
    except Taken:
      if not waits:
        raise
      say(f'{path}: waiting for the process that has this lock')
      problem = take(file, waits)
    yield not problem
