"""Axes of a sweep: what they multiply and pair to, by hand."""

import importlib.util
import math
import pathlib

import pytest
from scipy import stats

from configs import presets
from rim_jax import points
from rim_jax.config import UserError

ROOT = pathlib.Path(__file__).parents[1]
A = [({'a': 1}, {'x.a': 1}), ({'a': 2}, {'x.a': 2})]
B = [({'b': 'u'}, {'b': 'u', 'x.c': 0}), ({'b': 'v'}, {'b': 'v'})]


def test_an_axis_is_named_after_its_key():
  assert points.vary('optim.learning_rate', (0.5,)) == [
      ({'learning_rate': 0.5}, {'optim.learning_rate': 0.5})]
  assert points.vary('optim.learning_rate', (0.5,), 'lr') == [
      ({'lr': 0.5}, {'optim.learning_rate': 0.5})]
  assert points.vary_seeds(2) == [({'seed': 0}, {'seed': 0}), ({'seed': 1}, {'seed': 1})]


def test_axes_are_crossed_and_paired():
  both = [({'a': 1, 'b': 'u'}, {'x.a': 1, 'b': 'u', 'x.c': 0}), ({'a': 1, 'b': 'v'}, {
      'x.a': 1, 'b': 'v'}), ({'a': 2, 'b': 'u'}, {'x.a': 2, 'b': 'u', 'x.c': 0}),
          ({'a': 2, 'b': 'v'}, {'x.a': 2, 'b': 'v'})]
  assert points.cross(A, B) == both
  assert points.pair(A, B) == [both[0], both[3]]
  assert len(points.cross(A, B, points.vary_seeds(3))) == 12
  assert points.cross(A, []) == []


@pytest.mark.parametrize('make, culprit', [
    (lambda: points.pair(A, B[:1]), 'axes of 2, 1 points'),
    (lambda: points.cross(A, A), "'a' is set by two axes"),
    (lambda: points.cross(A, [({'z': 1}, {'x.a': 5})]), "'x.a' is set by two axes"),
    (lambda: points.sample('k', 0.0, 1.0, 3), 'give 1 or more, and 0 < low'),
    (lambda: points.sample('k', 1e-5, 1e-3, 0), 'give 1 or more'),
])
def test_what_cannot_be_meant_is_refused(make, culprit):
  with pytest.raises(UserError, match=culprit):
    make()


def test_samples_are_log_uniform_and_the_same_for_the_same_seed():
  def draw(seed, count=400):
    return [c['k'] for _, c in points.sample('k', 1e-5, 1e-3, count, seed)]
  found = draw(0)
  assert draw(0) == found and draw(0, 3) == found[:3] and draw(1) != found
  logs = [(math.log10(x) + 5) / 2 for x in found]
  assert min(logs) >= -0.01 and max(logs) <= 1.01
  assert stats.kstest(logs, 'uniform').pvalue > 0.01


def test_a_tree_is_changed_by_dotted_keys_and_itself_stays():
  tree = {'a': 1, 'b': {'c': 2, 'd': {'e': 3}}}
  assert points.change(tree, {'b.d.e': 4, 'a': 5, 'b.c': 6}) == {
      'a': 5, 'b': {'c': 6, 'd': {'e': 4}}}
  assert tree == {'a': 1, 'b': {'c': 2, 'd': {'e': 3}}}
  assert points.change(tree, {'z.y': 1})['z.y'] == 1  # to be refused by name


def test_changes_found_and_made_again_are_the_other_config():
  base, other = presets.make('direct', 'chain'), presets.make('cot', 'chain')
  changes = points.find_changes(base, other)
  assert points.change(base.to_dict(), changes) == other.to_dict()
  assert changes['method'] == 'cot' and 'seed' not in changes


@pytest.mark.parametrize('name, preset, count', [
    ('blocks', 'chain', 21), ('fading', 'chain', 27), ('stages', 'chain', 18),
    ('learning_rate', 'chain', 12), ('targets', 'chain', 6), ('reading', 'chain', 12),
    ('details', 'chain', 21),
    ('lora', 'chain', 15), ('learning_rate', 'chain,cot', 12), ('blocks', 'gpt2', 21),
    ('fading', 'gpt2', 27), ('stages', 'gpt2', 18),
    ('learning_rate', 'gpt2', 12), ('details', 'gpt2', 24), ('lora', 'gpt2', 15)])
def test_the_recipes_of_sweeps_are_points_that_differ(name, preset, count):
  path = ROOT / 'configs' / 'sweeps' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = points.load_points(module.get_config(preset), str(path))
  assert len(found) == count == len({points.identify(p.config) for p in found})
