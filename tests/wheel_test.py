"""The wheel holds all of the package and nothing else, and runs where there is no checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel, built from a copy without what an earlier build may have left in a checkout."""
  folder = tmp_path_factory.mktemp('wheel')
  for name in ('rim_jax', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    source = ROOT / name
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, folder / name)
  subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', 'dist', '.'],
                 cwd=folder, check=True, timeout=300)
  (wheel,) = (folder / 'dist').glob('*.whl')
  return wheel


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_template(wheel):
  held = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
  ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'rim_jax').rglob('*')
          if p.is_file() and '__pycache__' not in p.parts}
  assert held == ours


@pytest.mark.slow
def test_an_installed_wheel_trains_and_reports_in_an_empty_directory(wheel, tmp_path):
  """With recipes that lie elsewhere, as a checkout's do; the dependencies are those of here."""
  site, empty = tmp_path / 'site', tmp_path / 'empty'
  empty.mkdir()
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', site,
                  wheel], check=True, timeout=300)
  recipes = shutil.copytree(ROOT / 'configs', tmp_path / 'recipes' / 'configs')

  def run(*argv):
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=empty, text=True,
                          env=os.environ | {'PYTHONPATH': str(site)}, capture_output=True,
                          timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout
  assert run('-c', 'import rim_jax; print(rim_jax.__file__)').startswith(str(site))
  smoke = ('-m', 'rim_jax.main', f'--config={recipes}/smoke.py',
           f'--config.data.cache_dir={tmp_path}/cache', '--config.train.num_examples=640',
           '--config.eval.num_latency_runs=0')
  assert 'final accuracy' in run(*smoke)
  page = empty / 'runs/smoke/report.html'
  before = page.read_bytes()
  page.unlink()
  assert 'report: runs/smoke/report.html' in run(*smoke, '--mode=report')
  assert page.read_bytes() == before
