"""A figure shows what it is given, keeps it as data, and holds nothing of another page."""

import re

import pytest

from rim_jax.report import figures, page

pytestmark = pytest.mark.usefixtures('drawn_figures')


def read_csv(folder, name):
  return [line.split(',') for line in (folder / 'figures' / f'{name}.csv').read_text().split('\n')
          if line]


def keep(folder, figure):
  """Writes a figure where a page does; returns its SVG."""
  (folder / 'figures').mkdir(exist_ok=True)
  figure.write(folder / 'figures')
  return figure.svg


def test_a_map_has_a_cell_for_each_value_and_none_for_none(tmp_path):
  figure = keep(tmp_path, figures.draw_map(
      'a map; of two', 'down', 'across', [1, 2, 3],
      {'r1': [0.125, None, 1.0], 'r2': [0.0, 0.5, None]}))
  texts = re.findall(r'>\s*([^<>\s][^<>]*?)\s*</text>', figure)
  assert sorted(t for t in texts if t not in ('r1', 'r2', '1', '2', '3')) == sorted(
      ['12', '100', '0', '50', 'down', 'across'])
  assert read_csv(tmp_path, 'a-map') == [
      ['row', 'column', 'value'], ['r1', '1', '0.125'], ['r1', '3', '1.0'], ['r2', '1', '0.0'],
      ['r2', '2', '0.5']]
  assert (tmp_path / 'figures/a-map.png').read_bytes().startswith(b'\x89PNG')
  # As strong as the value, and see-through: legible on light and on dark.
  found = [float(x) for x in re.findall(r'fill: #2f81f7; (?:fill-)?opacity: ([\d.]+)', figure)]
  assert found == pytest.approx([0.115, 0.64, 0.04, 0.34])


def test_bars_are_drawn_where_an_error_is_known(tmp_path):
  def count_upright(errors):
    figure = keep(tmp_path, figures.draw('bars', 'y', 'x', {'a': ([1, 2], [0.25, 4], errors)}))
    return len(re.findall(r'd="M ([\d.]+) [\d.]+\s+L \1 [\d.]+', figure))
  none, one, both = map(count_upright, ([None, None], [0.5, None], [0.5, 1.0]))
  assert (one - none, both - none) == (1, 2)
  assert read_csv(tmp_path, 'bars')[1:] == [['a', '1.0', '0.25', '0.5'], ['a', '2.0', '4.0', '1.0']]


@pytest.mark.parametrize('marks', ['line', 'points', 'path'])
def test_lines_are_kept_as_they_are_drawn(tmp_path, marks):
  lines = {'a': ([1, 2], [0.25, 4]), 'b': ([3], [5])}
  figure = keep(tmp_path, figures.draw('some lines', 'y', 'x', lines, marks=marks))
  assert read_csv(tmp_path, 'some-lines') == [
      ['line', 'x', 'y'], ['a', '1.0', '0.25'], ['a', '2.0', '4.0'], ['b', '3.0', '5.0']]
  # A path ends in a ring of its own, which points and lines lack; points have no strokes between.
  dashes = len(re.findall('stroke-dasharray', figure))
  assert (dashes > 0) == (marks != 'points')
  assert len(re.findall('<use ', figure)) > 0


def test_a_ring_stands_at_the_end_of_a_path_alone():
  lines = {'a': ([1, 2], [3, 4])}
  path, line = (figures.draw('some lines', 'y', 'x', lines, marks=m).svg for m in ('path', 'line'))
  assert path.count('<use ') == line.count('<use ') + 1


@pytest.mark.parametrize('draw', [
    lambda: figures.draw('with <b>', 'y', 'x', {'<i>&': ([1], [2]), 'b': ([1], [3])}),
    lambda: figures.draw_map('with <b>', '<i>&', 'x', ['&'], {'<i>': [0.5]})])
def test_a_figure_holds_no_markup_of_its_text(draw):
  figure = page.render_page('', [page.Figures((draw(),))]).partition('<figure>')[2]
  assert '<b>' not in figure and '<i>' not in figure and '&lt;b&gt;' in figure
  assert figures._INK not in figure and 'currentColor' in figure
  assert 'xmlns' not in figure and '://' not in figure
