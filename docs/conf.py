"""Sphinx settings of the documentation site; README.md says how it is built."""

import pathlib
import shutil

import rim_jax

project = 'rim_jax'
copyright = '2026, the rim_jax authors'
release = rim_jax.__version__
extensions = ['myst_parser']
myst_heading_anchors = 4  # headings are link targets, named as a forge names them
exclude_patterns = ['_build', 'pictures']
html_theme = 'furo'
html_title = f'rim_jax {release}'
html_copy_source = False


def copy_pictures(app, error):
  """Pages show pictures with <picture>, which a forge shows too and Sphinx does not follow."""
  if error is None and app.builder.format == 'html':
    target = pathlib.Path(app.outdir) / 'pictures'
    shutil.copytree(pathlib.Path(app.srcdir) / 'pictures', target, dirs_exist_ok=True)


def setup(app):
  app.connect('build-finished', copy_pictures)
