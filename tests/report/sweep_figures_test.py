"""Figures over factors hold the means that they should."""

import csv

import pytest

from rim_jax.report import sweep_figures

pytestmark = pytest.mark.usefixtures('drawn_figures')

ROWS = [({'a': a, 'b': b, 'seed': s}, acc) for a, b, s, acc in (
    (10, 'u', 0, 0.25), (10, 'u', 1, 0.75), (10, 'v', 0, 1.0), (9, 'u', 0, 0.125))]
LEVELS = {'a': [10, 9], 'b': ['u', 'v']}


def keep(folder, figure):
  (folder / 'figures').mkdir()
  figure.write(folder / 'figures')
  return figure.svg


def read(folder, name):
  assert (folder / f'figures/{name}.png').stat().st_size > 1000
  with open(folder / f'figures/{name}.csv') as f:
    return list(csv.reader(f))


def test_a_heat_map_is_the_mean_over_all_else(tmp_path):
  svg = keep(tmp_path, *sweep_figures.draw_heat_maps(ROWS, LEVELS))
  assert read(tmp_path, 'accuracy-by-a-and-b') == [
      ['row', 'column', 'value'], ['9', 'u', '0.125'], ['10', 'u', '0.5'], ['10', 'v', '1.0']]
  assert all(f'>{text}</text>' in svg for text in ('12.5', '50.0', '100.0', '9', '10', 'u'))
  assert 'currentColor' in svg and ' id="' not in svg.split('<defs>')[0]


def test_numbers_stand_by_size_and_names_as_given():
  assert sweep_figures.order_levels([10, 9, 30]) == [9, 10, 30]
  assert sweep_figures.order_levels(['v', 'u']) == ['v', 'u']
  assert sweep_figures.order_levels([True, False]) == [True, False]


@pytest.mark.parametrize('rows, found', [
    (ROWS, ['accuracy-by-a-and-b']),  # three of four combinations
    (ROWS[:3], []), (ROWS[2:], [])])  # on one line; each level once
def test_a_grid_is_more_than_a_line(rows, found):
  assert [figure.name for figure in sweep_figures.draw_heat_maps(rows, LEVELS)] == found
