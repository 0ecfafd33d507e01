"""Files of a model that somebody else made: only regular ones, and text within a limit."""

import os
import pathlib
import stat

from rim_jax.errors import UserError

# A tokenizer.json with a large vocabulary has 30 MB.
_MOST_BYTES = 512 << 20


def check_regular(path, fix) -> os.stat_result:
  """Raises: UserError where there is no regular file; a pipe would be waited for without end."""
  try:
    status = os.stat(path)
  except (OSError, ValueError) as e:
    raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or e}); {fix}'
                    ) from None
  if stat.S_ISDIR(status.st_mode):
    raise UserError(f'{path}: cannot be read (Is a directory); {fix}')
  if not stat.S_ISREG(status.st_mode):
    raise UserError(f'{path}: is no regular file; {fix}')
  return status


def read_bytes(path, fix) -> bytes:
  """The content of a file of text. Raises: UserError, with `fix`."""
  size = check_regular(path, fix).st_size
  if size > _MOST_BYTES:
    raise UserError(f'{path}: has {size:,} bytes, more than {_MOST_BYTES:,}; {fix}')
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror}); {fix}') from None


def read_text(path, fix) -> str:
  """The same as UTF-8."""
  try:
    return read_bytes(path, fix).decode()
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: is no UTF-8 ({e.reason} at byte {e.start}); {fix}') from None
