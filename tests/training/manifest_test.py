"""The manifest of a saved folder; its damages are in checkpoint_test.py and damage_test.py."""

import contextlib
import types

from rim_jax.training import manifest
from tests import support_runs


def test_files_are_digested_where_they_can_only_be_read(tmp_path, monkeypatch):
  """As TensorFlow's are, by which epath reads buckets where it finds TensorFlow."""
  support_runs.save_checkpoints(tmp_path, [0.5])

  class OnlyRead:
    def __init__(self, file):
      self.read = file.read

  class Path:
    def __init__(self, path):
      self._path = path

    @contextlib.contextmanager
    def open(self, mode):
      with open(self._path, mode) as file:
        yield OnlyRead(file)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'epath', types.SimpleNamespace(Path=Path))
    folder = tmp_path / 'checkpoints' / '1'
    assert manifest.find_damage(folder) is None
    manifest.seal(folder)
    assert manifest.find_damage(folder) is None
