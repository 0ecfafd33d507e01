"""The wheel holds all of the package, and nothing else."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_template(tmp_path):
  for name in ('rim_jax', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    source = ROOT / name
    copy = shutil.copytree if source.is_dir() else shutil.copy  # build/ of a checkout may be old
    copy(source, tmp_path / name)
  subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', 'dist', '.'],
                 cwd=tmp_path, check=True, timeout=300)
  (wheel,) = (tmp_path / 'dist').glob('*.whl')
  held = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
  ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'rim_jax').rglob('*')
          if p.is_file() and '__pycache__' not in p.parts}
  assert held == ours
