"""A bucket on localhost: as much of Google Cloud Storage's JSON API as a run needs.

gcsfs, tensorstore and google-cloud-storage talk to it over HTTP as they do to the real one. What an
object store has not got, it refuses and keeps in `refused`: renaming (clients copy and delete) and
appending (clients compose). An object appears whole, when its upload ends.

Source: cloud.google.com/storage/docs/json_api, reference of v1.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import google_crc32c


class Bucket:
  """The objects of one bucket, by name, and what was refused."""

  def __init__(self, name):
    self.name = name
    self.objects, self.generations = {}, {}
    self.refused, self.num_puts = [], 0
    self._uploads, self._lock = {}, threading.Lock()

  def put(self, name, data, generation_match=None):
    """Metadata of the new object; None where another generation is there than was expected."""
    with self._lock:
      if generation_match not in (None, str(self.generations.get(name, 0))):
        return None
      self.num_puts += 1
      self.objects[name], self.generations[name] = data, self.num_puts
    return self.describe(name)

  def delete(self, name):
    with self._lock:
      self.objects.pop(name, None)
      self.generations.pop(name, None)

  def describe(self, name):
    data, generation = self.objects[name], self.generations[name]
    crc = google_crc32c.value(data).to_bytes(4, 'big')
    return {'kind': 'storage#object', 'name': name, 'bucket': self.name, 'size': str(len(data)),
            'generation': str(generation), 'metageneration': '1', 'storageClass': 'STANDARD',
            'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
            'crc32c': base64.b64encode(crc).decode(), 'timeCreated': '2026-01-01T00:00:00.000Z',
            'updated': '2026-01-01T00:00:00.000Z', 'contentType': 'application/octet-stream'}

  def list(self, prefix, delimiter):
    items, prefixes = [], set()
    for name in sorted(self.objects):
      if name.startswith(prefix):
        rest = name[len(prefix):]
        if delimiter and delimiter in rest:
          prefixes.add(prefix + rest[:rest.index(delimiter) + 1])
        else:
          items.append(self.describe(name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}

  def begin_upload(self, name, generation_match):
    with self._lock:
      key = str(len(self._uploads))
      self._uploads[key] = [name, generation_match, b'']
    return key

  def extend_upload(self, key, data, content_range):
    """Metadata once the last byte is there, else how many are."""
    upload = self._uploads[key]
    upload[2] += data
    total = content_range.rpartition('/')[2]
    if total in ('', '*') or int(total) > len(upload[2]):
      return len(upload[2])
    return self.put(upload[0], upload[2], upload[1])


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True

  def log_message(self, *unused):
    pass

  def _answer(self, status, body=b'', **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    headers.setdefault('Content_Type', 'application/json')
    for name, value in {**headers, 'Content_Length': len(data)}.items():
      self.send_header(name.replace('_', '-'), str(value))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def _fail(self, status, message):
    self._answer(status, {'error': {'code': status, 'message': message,
                                    'errors': [{'message': message, 'reason': 'refused'}]}})

  def _handle(self):
    bucket, url = self.server.bucket, urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    if self.headers.get('Transfer-Encoding') == 'chunked':
      body = b''
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    else:
      body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    root = f'/storage/v1/b/{bucket.name}'
    if url.path.startswith('/upload'):
      self._upload(bucket, url, query, body)
    elif re.search(r'/(copyTo|rewriteTo|moveTo|compose)\b', url.path):
      bucket.refused.append(urllib.parse.unquote(url.path))
      self._fail(405, 'an object store neither renames nor appends')
    elif url.path == root:
      self._answer(200, {'kind': 'storage#bucket', 'name': bucket.name, 'id': bucket.name})
    elif url.path == f'{root}/storageLayout':
      self._answer(200, {'locationType': 'region', 'hierarchicalNamespace': {'enabled': False}})
    elif url.path == f'{root}/o':
      self._answer(200, bucket.list(query.get('prefix', ''), query.get('delimiter', '')))
    else:
      name = urllib.parse.unquote(url.path.partition('/o/')[2])
      if name not in bucket.objects:
        self._fail(404, f'No such object: {bucket.name}/{name}')
      elif self.command == 'DELETE':
        bucket.delete(name)
        self._answer(204)
      elif query.get('alt') == 'media':
        self._send_media(bucket.objects[name], bucket.generations[name])
      else:
        self._answer(200, bucket.describe(name))

  def _send_media(self, data, generation):
    headers = {'X_Goog_Generation': generation, 'Content_Type': 'application/octet-stream'}
    found = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
    if not found:
      self._answer(200, data, **headers)
      return
    first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    if first >= len(data):
      self._fail(416, 'range not satisfiable')
      return
    self._answer(206, data[first:last + 1], Content_Range=f'bytes {first}-{last}/{len(data)}',
                 **headers)

  def _upload(self, bucket, url, query, body):
    match = query.get('ifGenerationMatch')
    if 'upload_id' in query:
      found = bucket.extend_upload(query['upload_id'], body, self.headers.get('Content-Range', ''))
      if isinstance(found, int):
        self._answer(308, Range=f'bytes=0-{found - 1}')
        return
    elif query['uploadType'] == 'resumable':
      name = query.get('name') or json.loads(body)['name']
      where = f'http://{self.headers["Host"]}{url.path}?upload_id='
      self._answer(200, {}, Location=where + bucket.begin_upload(name, match))
      return
    elif query['uploadType'] == 'multipart':
      boundary = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1]
      _, meta, media, _ = body.split(b'--' + boundary.strip("'").encode())
      meta = json.loads(meta.partition(b'\n{')[1][1:] + meta.partition(b'\n{')[2])
      media = re.split(rb'\r?\n\r?\n', media, maxsplit=1)[1]
      found = bucket.put(meta['name'], media[:-2] if media.endswith(b'\r\n') else media[:-1], match)
    else:
      found = bucket.put(query['name'], body, match)
    if found is None:
      self._fail(412, 'another generation is there')
    else:
      self._answer(200, found)

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    pass  # a client that hangs up before it has read its answer


@contextlib.contextmanager
def serve(name: str):
  """A bucket of this name, and the environment in which processes find it as gs://name."""
  server = _Server(('localhost', 0), _Handler)
  server.bucket = Bucket(name)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f'http://localhost:{server.server_port}'
  try:
    yield server.bucket, {
        'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none', 'GOOGLE_CLOUD_PROJECT': 'test',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks for the bucket's kind by gRPC
        'FSSPEC_GCS': '{"token": "anon"}', 'FSSPEC_GCS_TOKEN': 'anon'}
  finally:
    server.shutdown()
    server.server_close()
