"""GSM8K: OpenAI's files, downloaded once and checked, and a valid split held out of train."""

import hashlib
import http.client
import os
import pathlib
import urllib.request

from rim_jax import reader
from rim_jax.config import DataConfig
from rim_jax.data import hub
from rim_jax.data.records import make_scratch, report, report_unwritable
from rim_jax.errors import UserError, check

# OpenAI's files at DataConfig.url: name -> (bytes, sha256).
GSM8K_FILES = {
    'train.jsonl': (
        4166206, '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465'),
    'test.jsonl': (
        749738, '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14'),
}


def hold_out(records, num_valid, path):
  """(train, valid): whole questions, those whose hash is lowest, in the order of the hash."""
  hashes = {r.question: hashlib.sha256(r.question.encode()).digest() for r in records}
  if len(hashes) <= num_valid:
    raise UserError(f'{path}: {len(hashes)} questions, of which data.num_valid={num_valid} should '
                    'be held out; lower num_valid, or add a valid file')
  held_out = set(sorted(hashes, key=hashes.get)[:num_valid])
  train = [r for r in records if r.question not in held_out]
  valid = [r for r in records if r.question in held_out]
  return train, sorted(valid, key=lambda r: (hashes[r.question], r.steps, r.answer))


def download_gsm8k(config: DataConfig, say=print) -> pathlib.Path:
  """The folder with OpenAI's files, each fetched where it is not there with the right sha256.

  Not TFDS's download manager, which keeps retrying a refused connection for minutes, and
  leaves what it refuses in the cache.
  Raises: UserError; nothing unchecked is ever in the folder.
  """
  folder = pathlib.Path(config.cache_dir).expanduser() / 'downloads' / 'gsm8k'
  for name, (size, sha256) in GSM8K_FILES.items():
    path, url = folder / name, f"{config.url.rstrip('/')}/{name}"
    if path.exists() and sha256 == hashlib.sha256(
        reader.read_bytes(path, 'remove it')).hexdigest():
      continue
    say(f'rim_gsm8k: downloading {url} ({size / 1e6:.1f} MB)')
    fix = 'download it yourself and pass --config.data.dir=DIR'
    with report(url, fix, (OSError, ValueError, http.client.HTTPException)):
      content = hub.run_with_deadline(url, size, lambda tell, url=url, size=size: (
          urllib.request.urlopen(url, timeout=60).read(size + 1)), say, fix)
    check((len(content) < size, f'{url}: cut off after {len(content)} of {size} bytes; {fix}'),
          (hashlib.sha256(content).hexdigest() != sha256,
           f'{url}: not the file expected (its sha256 should be {sha256}); {fix}'))
    with report_unwritable(config):
      folder.mkdir(parents=True, exist_ok=True)
      with make_scratch(folder) as temporary:
        (pathlib.Path(temporary) / name).write_bytes(content)
        os.replace(pathlib.Path(temporary) / name, path)
  return folder
