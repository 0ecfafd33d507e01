"""Models and data by their name on the Hugging Face hub: `hf:ORG/NAME[/PART][@REVISION]`.

Through `huggingface_hub`: its cache, its token, its `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE`.
Only files that are read here are fetched, each is held to the hub's checksum once, and the name is
resolved to one revision first, so that a repository which changes meanwhile is not mixed.
"""

from concurrent import futures
import dataclasses
import hashlib
import os
import pathlib
import re
import threading
import time

from rim_jax.errors import UserError

_NAME = re.compile(r'hf:([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?')
# What describes a model: a plan, or the cost of a sweep, needs no more.
_DESCRIPTION = (r'(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json'
                r'|chat_template\.jinja')
_WANTED = {
    'description': re.compile(_DESCRIPTION),
    # `consolidated` are the same weights once more, under other names.
    'model': re.compile(
        _DESCRIPTION + r'|(?!consolidated)[\w.-]+\.safetensors(\.index\.json)?'),
    'dataset': re.compile(r'(data/)?[\w.-]+\.(parquet|jsonl?)')}
_TYPES = {'description': 'model', 'model': 'model', 'dataset': 'dataset'}  # as the hub has them
# A download may take a minute, and as long as this rate takes: one that drips ends all the same.
_LEAST_SECONDS, _LEAST_BYTES_PER_SEC = 60.0, 100_000
_TELL_SECONDS = 10.0
_FIX = 'name a directory that you have fetched yourself'


@dataclasses.dataclass(frozen=True)
class Fetched:
  path: pathlib.Path  # a directory, or a GGUF file
  origin: str  # hf:ORG/NAME[/PART]@<40 hex digits>


def is_name(text: str) -> bool:
  return text.startswith('hf:')


def get_deadline(num_bytes: int) -> float:
  """Seconds within which a download of this size has to end."""
  return _LEAST_SECONDS + num_bytes / _LEAST_BYTES_PER_SEC


_fetched: dict[tuple[str, str], Fetched] = {}  # a run asks for a name at several places


def fetch(name: str, kind: str, say=print) -> Fetched:
  """The local copy of a model ('model'), of what describes one ('description'), or of data
  ('dataset'); a GGUF file describes itself.

  A model is of the revision that it was described by. Of several processes of a host one downloads
  a file, the others wait for it.
  Raises: UserError in one line: no such name, no access, cut off, too slow, another checksum.
  """
  if (name, kind) in _fetched:
    return _fetched[name, kind]
  match = _NAME.fullmatch(name)
  if not match or '..' in match[2].split('/'):
    raise UserError(f'{name}: is no name on the hub; write hf:ORG/NAME, hf:ORG/NAME/PART or '
                    'hf:ORG/NAME@REVISION')
  repo, part, revision = match[1], match[2].strip('/'), match[3]
  if kind == 'model' and (name, 'description') in _fetched:
    revision = _fetched[name, 'description'].origin.rpartition('@')[2]
  try:
    found = _fetched[name, kind] = _fetch(name, repo, part, revision, kind, say)
    return found
  except UserError:
    raise
  except Exception as e:  # pylint: disable=broad-except  (of httpx, of the hub, of the system)
    raise UserError(f'{name}: {_describe(e)}') from None


def _describe(error) -> str:
  from huggingface_hub import errors, get_token
  kinds = (
      (errors.GatedRepoError, 'is gated: accept its terms on its page and log in (hf auth login, '
       'or HF_TOKEN)'),
      (errors.RevisionNotFoundError, 'has no such revision'),
      (errors.RepositoryNotFoundError, 'there is no such repository, or it needs a token (hf auth '
       'login, or HF_TOKEN)'),
      (errors.LocalEntryNotFoundError, f'cannot be reached, and is not in the cache; {_FIX}'))
  for kind, text in kinds:
    if isinstance(error, kind):
      return text
  if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
    return 'needs a token, or refuses the one that is set (hf auth login, or HF_TOKEN)'
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  token = get_token()
  return f"{(text.replace(token, '***') if token else text)[:300]}; {_FIX}"


def _fetch(name, repo, part, revision, kind, say):
  import huggingface_hub
  from huggingface_hub import errors
  api = huggingface_hub.HfApi()
  try:
    info = api.repo_info(repo, repo_type=_TYPES[kind], revision=revision, files_metadata=True,
                         timeout=30)
  except Exception as e:  # pylint: disable=broad-except  (the HTTP library is the hub's choice)
    if isinstance(e, errors.HfHubHTTPError) and e.response.status_code < 500:
      raise
    return _find_cached(name, repo, part, revision, kind, say)
  there = getattr(info, 'siblings', None) or []
  files = [f for f in there if _is_wanted(f.rfilename, part, kind)]
  if kind != 'dataset' and not any(f.rfilename.endswith('.safetensors') and _is_wanted(
      f.rfilename, part, 'model') for f in there):
    files += _find_gguf(name, there, part)
  if not files:
    folders = sorted({str(pathlib.PurePath(f.rfilename).parent) for f in there if _WANTED[
        kind].fullmatch(pathlib.PurePath(f.rfilename).name)} - {'.'})
    raise UserError(f'{name}: has no file that is read here' + (
        f"; name one of its folders: {', '.join(f'hf:{repo}/{x}' for x in folders[:5])}"
        if folders else ''))
  origin = f"hf:{repo}{f'/{part}' if part else ''}@{info.sha}"
  num_bytes = sum(f.size or 0 for f in files)
  paths = run_with_deadline(name, num_bytes, lambda tell: [
      _fetch_file(name, repo, file, info.sha, kind, tell) for file in files], say,
                             f'run again, which goes on where it stopped, or {_FIX}')
  snapshot = paths[0].parents[len(pathlib.PurePath(files[0].rfilename).parts) - 1]
  _write_ref(snapshot, revision or 'main', info.sha)
  say(f'{origin}: {len(files)} files, {num_bytes / 1e6:,.1f} MB')
  gguf = next((path for path in paths if path.suffix == '.gguf'), None)
  return Fetched(gguf or snapshot / part, origin)


def _is_wanted(file, part, kind):
  if part.endswith('.gguf'):
    return file == part
  folder = f'{part}/' if part else ''
  return file.startswith(folder) and bool(_WANTED[kind].fullmatch(file.removeprefix(folder)))


def _find_gguf(name, there, part):
  """The one GGUF file of a repository without safetensors."""
  found = [f for f in there if f.rfilename.endswith('.gguf')
           and f.rfilename.startswith(f'{part}/' if part else '')]
  if len(found) > 1:
    repo = name.partition('@')[0].removesuffix(f'/{part}')
    raise UserError(f'{name}: has {len(found)} GGUF files; name one, e.g. {repo}/'
                    f'{found[0].rfilename}')
  return found


def _write_ref(snapshot, revision, sha):
  """Notes what a name stands for, where the library looks for it when the hub cannot be reached."""
  ref = snapshot.parents[1] / 'refs' / revision
  if revision != sha and snapshot.name == sha:
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(sha)


def run_with_deadline(name, num_bytes, work, say, fix):
  """What `work` returns; it runs in a thread, whose reads alone have a time limit of their own."""
  outcome, told, begun = futures.Future(), {'done': f'{num_bytes / 1e6:,.1f} MB'}, time.monotonic()

  def run():
    try:
      outcome.set_result(work(lambda text: told.update(done=text)))
    except BaseException as e:  # pylint: disable=broad-except  (raised below)
      outcome.set_exception(e)
  threading.Thread(target=run, daemon=True).start()  # an abandoned one ends with the process
  limit = get_deadline(num_bytes)
  while not outcome.done():
    left = limit - (time.monotonic() - begun)
    if left <= 0:
      raise UserError(f'{name}: {num_bytes / 1e6:,.1f} MB took more than {limit:.0f} s; {fix}')
    futures.wait([outcome], min(left, _TELL_SECONDS))
    if not outcome.done():
      say(f"{name}: downloading {told['done']}, {time.monotonic() - begun:.0f} s")
  return outcome.result()


def _fetch_file(name, repo, file, revision, kind, tell):
  """One file in the cache, held to its checksum where it was not there before."""
  import huggingface_hub
  from huggingface_hub.utils import disable_progress_bars
  asked = {'repo_id': repo, 'filename': file.rfilename, 'repo_type': _TYPES[kind],
           'revision': revision}
  known = huggingface_hub.try_to_load_from_cache(**asked)
  if isinstance(known, str):
    return pathlib.Path(known)
  tell(f'{file.rfilename} ({(file.size or 0) / 1e6:,.1f} MB)')
  disable_progress_bars()
  path = pathlib.Path(huggingface_hub.hf_hub_download(**asked))
  if not _is_whole(path, file):
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    raise UserError(f'{name}: {file.rfilename} has another checksum than the hub says; run again')
  return path


def _is_whole(path, file):
  """Whether a file has the checksum of a listing: sha256 of a large file, git's of a small one."""
  large = file.lfs and file.lfs.sha256
  if not large and not file.blob_id:
    return True
  digest = hashlib.sha256() if large else hashlib.sha1(f'blob {os.path.getsize(path)}\0'.encode())
  with path.open('rb') as f:
    return hashlib.file_digest(f, lambda: digest).hexdigest() == (large or file.blob_id)


def _find_cached(name, repo, part, revision, kind, say):
  """What an earlier run left in the cache, where the hub cannot be reached."""
  import huggingface_hub
  folder = pathlib.Path(huggingface_hub.snapshot_download(
      repo, repo_type=_TYPES[kind], revision=revision, local_files_only=True))
  say(f'{name}: the hub cannot be reached; using revision {folder.name} from the cache')
  path = folder / part
  if kind != 'dataset' and path.is_dir() and not list(path.glob('*.safetensors')):
    there = sorted(path.glob('*.gguf'))
    if len(there) > 1:
      raise UserError(f'{name}: cannot be reached, and has {len(there)} GGUF files in the cache; '
                      f"name one, e.g. {name.partition('@')[0]}/{there[0].name}")
    path = there[0] if there else path
    if kind == 'model' and not there:
      raise UserError(f'{name}: cannot be reached, and only what describes it is in the cache; '
                      f'{_FIX}')
  if not path.exists():
    raise UserError(f'{name}: cannot be reached, and is not in the cache; {_FIX}')
  return Fetched(path, f"hf:{repo}{f'/{part}' if part else ''}@{folder.name}")
