"""Names on the hub, against a local server that speaks the part of its API that is used."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from rim_jax.data import hub
from rim_jax.errors import UserError

SHA = 'a' * 40
WEIGHTS = os.urandom(300_000)
FILES = {'config.json': b'{"model_type": "llama"}', 'tokenizer.json': b'{}',
         'model.safetensors': WEIGHTS, 'pytorch_model.bin': b'pickle', 'onnx/model.onnx': b'x',
         'consolidated.safetensors': b'again'}


class Server(http.server.ThreadingHTTPServer):
  """What a test may spoil: `answer` (a status for all), `tail` (bytes kept back), `flip`, `drip`.
  """

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.files, self.answer, self.tail, self.flip, self.drip = dict(FILES), 200, 0, False, False
    self.asked, self.infos, self.tokens = [], [], set()
    threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    server, path = self.server, self.path.partition('?')[0]
    server.tokens.add(self.headers.get('Authorization'))
    if server.answer != 200:
      gated = {'X-Error-Code': 'GatedRepo'} if server.answer == 403 else {}
      return self.send(b'{"error": "no"}', server.answer, gated)
    if path.startswith('/api/'):
      server.infos.append(path)
      if '/absent' in path:
        return self.send(b'{}', 404, {'X-Error-Code': 'RepoNotFound'})
      if '/revision/gone' in path:
        return self.send(b'{}', 404, {'X-Error-Code': 'RevisionNotFound'})
      return self.send(json.dumps({'id': 'org/name', 'sha': SHA, 'siblings': [
          self.describe(name, data) for name, data in server.files.items()]}).encode())
    name = path.partition(f'/resolve/{SHA}/')[2]
    data = server.files[name]
    print_ = self.describe(name, data)
    headers = {'ETag': f'"{print_.get("lfs", {}).get("sha256", print_["blobId"])}"',
               'X-Repo-Commit': SHA}
    begin = int((self.headers.get('Range') or 'bytes=0-').removeprefix('bytes=').split('-')[0])
    if self.command == 'GET':
      server.asked.append((name, begin))
      if server.flip:
        data = bytes([data[0] ^ 1]) + data[1:]
    self.send(data[begin:], 206 if begin else 200, headers, len(data) - begin)

  def describe(self, name, data):
    git = hashlib.sha1(f'blob {len(data)}\0'.encode() + data).hexdigest()
    found = {'rfilename': name, 'size': len(data), 'blobId': git}
    if name.endswith(('.safetensors', '.gguf', '.parquet')):
      found['lfs'] = {'sha256': hashlib.sha256(data).hexdigest(), 'size': len(data),
                      'pointerSize': 100}
    return found

  def send(self, body, status=200, headers=None, length=None):
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(body) if length is None else length))
    self.end_headers()
    if self.command == 'HEAD':
      return
    tail = self.server.tail if len(body) > 100_000 else 0
    if self.server.drip and len(body) > 100_000:
      for byte in body[:200]:
        self.wfile.write(bytes([byte]))
        self.wfile.flush()
        time.sleep(0.1)
    self.wfile.write(body[:len(body) - tail])
    if tail:
      self.close_connection = True


@pytest.fixture
def server():
  server = Server()
  yield server
  server.shutdown()


@pytest.fixture
def hub_at(server, tmp_path, monkeypatch):
  """The library asks this server, with a cache and a token of its own."""
  from huggingface_hub import constants
  monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{server.server_port}')
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                      constants.ENDPOINT + '/{repo_id}/resolve/{revision}/{filename}')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  monkeypatch.setattr(hub, '_fetched', {})
  return server


def test_a_model_is_fetched_once_with_what_is_read_alone(hub_at):
  lines = []
  found = hub.fetch('hf:org/name@main', 'model', lines.append)
  assert found.origin == f'hf:org/name@{SHA}' and SHA in str(found.path)
  assert {p.name for p in found.path.iterdir()} == {'config.json', 'tokenizer.json',
                                                    'model.safetensors'}
  assert (found.path / 'model.safetensors').read_bytes() == WEIGHTS
  assert 'Bearer hf_secret' in hub_at.tokens and 'hf_secret' not in ''.join(lines)
  count = len(hub_at.asked)
  hub._fetched.clear()  # as another process has it
  assert hub.fetch('hf:org/name@main', 'model', lines.append) == found
  assert len(hub_at.asked) == count == 3


def test_what_describes_a_model_comes_without_its_weights(hub_at):
  found = hub.fetch('hf:org/name', 'description', lambda line: None)
  assert sorted(name for name, _ in hub_at.asked) == ['config.json', 'tokenizer.json']
  whole = hub.fetch('hf:org/name', 'model', lambda line: None)
  assert whole == found and (whole.path / 'model.safetensors').read_bytes() == WEIGHTS
  assert len(hub_at.asked) == 3 and f'/revision/{SHA}' in hub_at.infos[-1]  # as it was described


def test_a_description_in_the_cache_is_no_model(hub_at, monkeypatch):
  found = hub.fetch('hf:org/name', 'description', lambda line: None)
  monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
  hub._fetched.clear()
  assert hub.fetch('hf:org/name', 'description', lambda line: None) == found
  with pytest.raises(UserError, match='only what describes it is in the cache; name a directory'):
    hub.fetch('hf:org/name', 'model', lambda line: None)


def test_a_gguf_file_describes_itself(hub_at):
  hub_at.files = {'config.json': b'{}', 'x.Q8_0.gguf': b'8'}
  for kind in ('description', 'model'):
    assert hub.fetch('hf:org/name', kind, lambda line: None).path.read_bytes() == b'8'


def test_data_are_fetched_from_a_part(hub_at):
  hub_at.files = {'main/train-00000-of-00001.parquet': b'p', 'main/data/test.jsonl': b'j',
                  'main/README.md': b'r', 'socratic/train.parquet': b's'}
  found = hub.fetch('hf:org/name/main', 'dataset', lambda line: None)
  files = {str(p.relative_to(found.path)) for p in found.path.rglob('*') if p.is_file()}
  assert files == {'train-00000-of-00001.parquet', 'data/test.jsonl'}


def test_a_repository_of_gguf_files_gives_one(hub_at, monkeypatch):
  hub_at.files = {'x.Q8_0.gguf': b'8', 'README.md': b''}
  assert hub.fetch('hf:org/name', 'model', lambda line: None).path.read_bytes() == b'8'
  hub_at.files['x.Q4_0.gguf'] = b'4'
  hub._fetched.clear()
  with pytest.raises(UserError, match='has 2 GGUF files; name one, e.g. hf:org/name/x.Q8_0.gguf'):
    hub.fetch('hf:org/name', 'model')
  path = hub.fetch('hf:org/name/x.Q4_0.gguf', 'model', lambda line: None).path
  assert path.read_bytes() == b'4'
  # Nor is one taken of those that are in the cache, where the hub cannot be reached.
  monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
  hub._fetched.clear()
  with pytest.raises(UserError, match='has 2 GGUF files in the cache; name one, e.g. hf:org/name/'):
    hub.fetch('hf:org/name', 'model', lambda line: None)


def test_where_folders_alone_hold_what_is_read_they_are_named(hub_at):
  """As openai/gsm8k has its two data sets."""
  hub_at.files = {'README.md': b'r', 'main/train-0.parquet': b'1', 'main/test-0.parquet': b'1',
                  'socratic/train-0.parquet': b'2'}
  with pytest.raises(UserError, match='has no file that is read here; name one of its folders: '
                                      'hf:org/name/main, hf:org/name/socratic$'):
    hub.fetch('hf:org/name', 'dataset', lambda line: None)


def test_a_part_is_a_folder_and_no_beginning_of_a_name(hub_at):
  hub_at.files = {'small/x.gguf': b'8', 'smaller/y.gguf': b'4'}
  path = hub.fetch('hf:org/name/small', 'model', lambda line: None).path
  assert path.read_bytes() == b'8'
  with pytest.raises(UserError, match='hf:org/name/sma: has no file that is read here$'):
    hub.fetch('hf:org/name/sma', 'model')
  hub_at.files['small/z.gguf'] = b'z'
  hub._fetched.clear()
  with pytest.raises(UserError, match='name one, e.g. hf:org/name/small/x.gguf'):
    hub.fetch('hf:org/name/small', 'model')


@pytest.mark.parametrize('name, answer, culprit', [
    ('hf:org/absent', 200, 'there is no such repository, or it needs a token'),
    ('hf:org/name@gone', 200, 'has no such revision'),
    ('hf:org/name', 403, 'is gated: accept its terms'),
    ('hf:org/name', 401, 'needs a token'),
    ('hf:org', 200, 'is no name on the hub'),
    ('hf:org/name/../x', 200, 'is no name on the hub'),
])
def test_what_cannot_be_had_is_one_line(hub_at, name, answer, culprit):
  hub_at.answer = answer
  with pytest.raises(UserError) as e:
    hub.fetch(name, 'model')
  text = str(e.value)
  assert text.startswith(f'{name}: ') and culprit in text
  assert '\n' not in text and 'hf_secret' not in text


@pytest.mark.slow
def test_what_was_cut_off_goes_on_where_it_stopped(hub_at, monkeypatch):
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT', 1)
  hub_at.tail = 100_000
  with pytest.raises(UserError, match='hf:org/name: .*name a directory'):
    hub.fetch('hf:org/name', 'model', lambda line: None)
  hub_at.tail = 0
  found = hub.fetch('hf:org/name', 'model', lambda line: None)
  assert (found.path / 'model.safetensors').read_bytes() == WEIGHTS


def test_another_checksum_is_refused_and_not_kept(hub_at, tmp_path):
  hub_at.flip = True
  with pytest.raises(UserError, match='has another checksum than the hub says'):
    hub.fetch('hf:org/name', 'model', lambda line: None)
  hub_at.flip = False
  found = hub.fetch('hf:org/name', 'model', lambda line: None)
  assert (found.path / 'model.safetensors').read_bytes() == WEIGHTS


def test_a_download_that_drips_ends(hub_at, monkeypatch):
  monkeypatch.setattr(hub, '_LEAST_SECONDS', 1.0)
  monkeypatch.setattr(hub, '_LEAST_BYTES_PER_SEC', 10 ** 9)
  monkeypatch.setattr(hub, '_TELL_SECONDS', 0.2)
  hub_at.drip, lines = True, []
  with pytest.raises(UserError, match='took more than 1 s; run again'):
    hub.fetch('hf:org/name', 'model', lines.append)
  assert any('downloading model.safetensors (0.3 MB)' in line for line in lines)


def test_without_the_hub_the_cache_is_used(hub_at, monkeypatch):
  found = hub.fetch('hf:org/name', 'model', lambda line: None)
  monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
  hub._fetched.clear()
  lines = []
  assert hub.fetch('hf:org/name', 'model', lines.append) == found
  assert 'the hub cannot be reached' in lines[0]
  with pytest.raises(UserError, match='cannot be reached, and is not in the cache'):
    hub.fetch('hf:org/other', 'model')


def test_processes_of_a_host_download_once(server, tmp_path):
  """By the environment that a user sets."""
  program = ("from rim_jax.data import hub; "
             "print(hub.fetch('hf:org/name', 'model', lambda line: None).path)")
  env = os.environ | {'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}',
                      'HF_HOME': str(tmp_path), 'PYTHONPATH': str(pathlib.Path.cwd())}
  found = [subprocess.Popen([sys.executable, '-c', program], env=env, stdout=subprocess.PIPE)
           for _ in range(2)]
  paths = {p.communicate(timeout=300)[0] for p in found}
  assert len(paths) == 1 and SHA.encode() in paths.pop()
  assert sorted(name for name, _ in server.asked) == ['config.json', 'model.safetensors',
                                                      'tokenizer.json']
