"""Pretrained weights from safetensors or a GGUF file, straight onto the mesh.

Every process reads the byte ranges that its own devices hold and no others, one
parameter at a time: no host ever holds the model. Nothing else is read: no
pickle, no code from a model directory.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import types
from typing import Any

from flax import traverse_util
import jax
import ml_dtypes  # noqa: F401  (makes bfloat16 a numpy dtype, which safetensors asks for)
import numpy as np
import safetensors
import safetensors.numpy

from rim_jax import reader
from rim_jax.data import gguf as gguf_lib
from rim_jax.errors import UserError, refuse
from rim_jax.pretrained import families, gguf
from rim_jax.pretrained import tensors as tensors_lib
from rim_jax.runtime import status

_DTYPES = ('F32', 'F16', 'BF16')
# A fingerprint reads this much of a file at this many places: seconds for any model, and two
# models of one shape differ in every block. It is no proof against a flipped bit.
_BLOCK, _NUM_BLOCKS = 1 << 16, 64


@dataclasses.dataclass(frozen=True)
class Base:
  """A model whose headers have been read and found whole."""
  folder: pathlib.Path  # or the GGUF file
  family: str
  files: dict[str, pathlib.Path]  # stored tensor -> file
  shapes: dict[str, tuple[int, ...]]
  fingerprint: str  # 16 hex digits
  origin: str = ''  # its name and revision on the hub
  stale: pathlib.Path | None = None  # an index that names other files than the one that is read

  def find(self, name: str) -> str | None:
    """The stored name of a tensor, with or without the optional prefix."""
    names = (name, name.removeprefix(tensors_lib.OPTIONAL_PREFIX))
    return next((n for n in names if n in self.files), None)


@contextlib.contextmanager
def open_file(path) -> Iterator[Any]:
  """A file of tensors; UserError where it cannot be read or is damaged."""
  if gguf_lib.is_gguf(path):
    yield types.SimpleNamespace(get_slice=gguf.list_tensors(path).__getitem__)
    return
  reader.check_regular(path, 'fetch it again')
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      yield f
  except (OSError, safetensors.SafetensorError) as e:
    raise UserError(f'{path}: is no whole safetensors file ({e}); fetch it again') from None


def _find_files(folder):
  """(the directory's safetensors files, the index that goes for nothing or None).

  They are one file, or those that the index names. An index beside a whole model that it does not
  name is of an earlier save: transformers reads the one file.
  """
  index, single = folder / 'model.safetensors.index.json', folder / 'model.safetensors'
  if index.exists():
    names = families.load_json(index).get('weight_map')
    if not isinstance(names, dict) or not names or not all(
        isinstance(name, str) for name in names.values()):
      raise UserError(f'{index}: has no weight_map from tensors to files; fetch it again')
    if single.exists() and single.name not in names.values():
      return [single], index
    outside = sorted(name for name in set(names.values())
                     if len(name) > 255 or pathlib.PurePath(name).name != name)
    if outside:
      raise UserError(f'{index}: names {outside[0][:60]!r}, which is no file of this directory; '
                      'fetch it again')
    paths = [folder / name for name in sorted(set(names.values()))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
      raise UserError(f"{folder}: lacks {', '.join(missing)}, which {index.name} names; fetch them")
    return paths, None
  paths = sorted(folder.glob('*.safetensors'))
  if len(paths) != 1:
    raise UserError(f'{folder}: has {len(paths)} *.safetensors files and no {index.name}; only '
                    'safetensors are read, one file or several with their index')
  return paths, None


def open_base(folder) -> Base:
  """Reads the headers of a model directory, or of a GGUF file.

  Raises: UserError for files that are missing, damaged or of another kind.
  """
  folder = pathlib.Path(folder).expanduser()
  if gguf_lib.is_gguf(folder):
    return _open_gguf(folder)
  family = families.load_json(folder / 'config.json').get('model_type')
  files, shapes = {}, {}
  digest = hashlib.sha256(reader.read_bytes(folder / 'config.json', 'fetch it again'))
  paths, stale = _find_files(folder)
  for path in paths:
    with open_file(path) as f:
      for name in f.keys():
        part = f.get_slice(name)
        if part.get_dtype() not in _DTYPES and not tensors_lib.BUFFERS.fullmatch(name):
          raise UserError(f'{path}: {name} is {part.get_dtype()}; supported: {", ".join(_DTYPES)}')
        files[name], shapes[name] = path, tuple(part.get_shape())
    _update_digest(digest, path)
  return Base(folder, family, files, shapes, digest.hexdigest()[:16], stale=stale)


def _open_gguf(path):
  tensors = gguf.list_tensors(path)
  digest = hashlib.sha256()
  _update_digest(digest, path)
  return Base(path, families.read_config(path)['model_type'], dict.fromkeys(tensors, path),
              {name: tensor.shape for name, tensor in tensors.items()}, digest.hexdigest()[:16])


def _update_digest(digest, path):
  size = path.stat().st_size
  digest.update(str(size).encode())
  places = sorted({size * i // _NUM_BLOCKS for i in range(_NUM_BLOCKS)} | {max(size - _BLOCK, 0)})
  with path.open('rb') as f:
    for place in places:
      f.seek(place)
      digest.update(f.read(_BLOCK))


def _list_names(path, tensor, shape):
  """Stored names of a parameter, one a layer where it is stacked, and its shape in one."""
  if path[0] == 'blocks':
    return [tensor.name.format(i) for i in range(shape[0])], shape[1:]
  return [tensor.name], shape


def check_tensors(base: Base, abstract) -> None:
  """Holds a directory's tensors against a model's parameters.

  Raises: UserError listing every tensor that is missing, extra or of another shape, and for an
    output matrix that differs from the embedding that config.json ties it to.
  """
  expected, tensors = {}, tensors_lib.list_tensors(base.family)
  for path, leaf in sorted(traverse_util.flatten_dict(abstract).items()):
    names, shape = _list_names(path, tensors[path], leaf.shape)
    expected |= dict.fromkeys(names, tensors[path].get_stored_shape(shape))
  problems, used = [], set()
  for name, shape in expected.items():
    found = base.find(name)
    used.add(found)
    if found is None:
      problems.append(f'{name} is missing; the model needs {list(shape)}')
    elif base.shapes[found] != shape:
      problems.append(f'{name} is {list(base.shapes[found])}; the model needs {list(shape)}')
  for name in sorted(base.files.keys() - used):
    tied = name == 'lm_head.weight' and 'head' not in abstract
    if tied and not _is_copy(base, name, base.find(tensors['embedding',].name)):
      problems.append(f'{name} differs from the embedding, to which tie_word_embeddings in '
                      'config.json ties it; set that to false')
    if not tied and not tensors_lib.BUFFERS.fullmatch(name):
      problems.append(f'{name} {list(base.shapes[name])} is no tensor of this model')
  refuse([f'{base.folder}: {p}' for p in problems])


def _is_copy(base, a, b):
  """Whether two matrices agree in shape and in 64 of their rows, spread evenly."""
  if b is None or base.shapes[a] != base.shapes[b]:
    return False
  count = base.shapes[a][0]
  rows = [count * i // 64 for i in range(64)]
  with open_file(base.files[a]) as f, open_file(base.files[b]) as g:
    one, other = f.get_slice(a), g.get_slice(b)
    return all(np.array_equal(one[i:i + 1], other[i:i + 1]) for i in rows)


def load_params(base: Base, abstract, say=None):
  """A tree of parameters, read as its shapes, dtypes and shardings say.

  Args:
    say: is told how far it is, where that takes long.
  Raises: UserError, as `check_tensors` does and for a file that is damaged.
  """
  check_tensors(base, abstract)
  tensors = tensors_lib.list_tensors(base.family)
  tick, done = status.Ticker(
      f'loading {base.folder}', sum(leaf.size for leaf in jax.tree.leaves(abstract)), 'parameters',
      say), 0

  def load(path, leaf):
    nonlocal done
    path = tuple(k.key for k in path)
    tensor = tensors[path]
    names, shape = _list_names(path, tensor, leaf.shape)

    @functools.cache  # devices that hold the same block share one reading of it
    def assemble(*ranges):
      if len(shape) == len(leaf.shape):
        return _read(base, names[0], tensor, shape, ranges).astype(leaf.dtype)
      part = np.empty([len(r) for r in ranges], leaf.dtype)
      for at, layer in enumerate(ranges[0]):
        part[at] = _read(base, names[layer], tensor, shape, ranges[1:])
      return part
    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: assemble(
        *(range(*s.indices(n)) for s, n in zip(index, leaf.shape))))
    done += leaf.size
    tick(done)
    return array
  return jax.tree_util.tree_map_with_path(load, abstract)


def _read(base, name, tensor, shape, ranges):
  """A block of one parameter of one layer, `ranges` in each of its dimensions.

  The file is opened anew each time, so that what the kernel mapped of it is given back.
  """
  stored = base.find(name)
  with open_file(base.files[stored]) as f:
    block = f.get_slice(stored)
    rows, *columns = ([slice(*run) for run in _find_runs(
        [shape[d] for d in dims], [ranges[d] for d in dims])] for dims in tensor.stored)
    parts = [np.concatenate([block[(row, *rest)] for row in rows])
             for rest in itertools.product(*columns)]
  block = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
  order = [d for dims in tensor.stored for d in dims]
  block = block.reshape([len(ranges[d]) for d in order])
  return block.transpose(np.argsort(order))


def _find_runs(sizes, ranges):
  """Contiguous runs (start, stop) of a flattened group of dimensions that `ranges` take.

  E.g. the second of two heads of 4 in (3, 2, 4) is (4, 8), (12, 16), (20, 24).
  """
  runs, stride = [(0, 1)], 1
  for size, taken in zip(reversed(sizes), reversed(ranges)):
    if runs == [(0, stride)]:  # all of what is below: one run
      runs = [(taken.start * stride, taken.stop * stride)]
    else:
      runs = [(i * stride + a, i * stride + b) for i in taken for a, b in runs]
    stride *= size
  return runs


def describe(base: Base) -> str:
  names = sorted({path.name for path in base.files.values()})
  note = f' ({names[0]}; not those that {base.stale.name} names)' if base.stale else ''
  return f'{base.folder}: {base.family}, {len(base.files)} tensors in {len(names)} file(s){note}'


def save_tensors(tensors: dict, path) -> None:
  """A file of tensors that may be read as any new file may: safetensors leaves it to its owner."""
  path.touch()
  mode = path.stat().st_mode
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  path.chmod(mode)


class Shards:
  """Writes tensors to numbered safetensors files of at most `limit` bytes each."""

  def __init__(self, folder, dtype, limit):
    self._folder, self._dtype, self._limit = folder, jax.numpy.dtype(dtype), limit
    self._pending, self._files, self._total = {}, [], 0

  def add(self, name, value):
    value = np.ascontiguousarray(value.astype(self._dtype))
    if self._pending and sum(v.nbytes for v in self._pending.values()) + value.nbytes > self._limit:
      self._flush()
    self._pending[name] = value

  def _flush(self):
    path = self._folder / f'part{len(self._files)}'
    save_tensors(self._pending, path)
    self._files.append((path, list(self._pending)))
    self._total += sum(v.nbytes for v in self._pending.values())
    self._pending = {}

  def finish(self):
    """Names the files as transformers looks for them; several get an index."""
    self._flush()
    count, where = len(self._files), {}
    for i, (path, names) in enumerate(self._files, 1):
      file = ('model.safetensors' if count == 1 else
              f'model-{i:05d}-of-{count:05d}.safetensors')
      path.rename(self._folder / file)
      where |= dict.fromkeys(names, file)
    if count > 1:
      (self._folder / 'model.safetensors.index.json').write_text(json.dumps(
          {'metadata': {'total_size': self._total}, 'weight_map': where}, indent=2) + '\n')
