"""Axes of a sweep: what they multiply and pair to, by hand and for random grids."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re

import hypothesis
from hypothesis import strategies as st
import ml_collections
import pytest
from scipy import stats

from configs import compare, presets
from configs.sweeps import hidden, passes, spelling, tuning
from rim_jax.config import grid
from rim_jax.errors import UserError
from tests import support

ROOT = pathlib.Path(__file__).parents[2]
A = [({'a': 1}, {'x.a': 1}), ({'a': 2}, {'x.a': 2})]
B = [({'b': 'u'}, {'b': 'u', 'x.c': 0}), ({'b': 'v'}, {'b': 'v'})]


def test_an_axis_is_named_after_its_key():
  assert grid.vary('optim.learning_rate', (0.5,)) == [
      ({'learning_rate': 0.5}, {'optim.learning_rate': 0.5})]
  assert grid.vary('optim.learning_rate', (0.5,), 'lr') == [
      ({'lr': 0.5}, {'optim.learning_rate': 0.5})]
  assert grid.vary_seeds(2) == [({'seed': 0}, {'seed': 0}), ({'seed': 1}, {'seed': 1})]


def test_points_are_repeated_a_whole_seed_after_the_other():
  found = grid.repeat(A, 2)
  assert [factors for factors, _ in found] == [
      {'a': 1, 'seed': 0}, {'a': 2, 'seed': 0}, {'a': 1, 'seed': 1}, {'a': 2, 'seed': 1}]
  assert sorted(found, key=str) == sorted(grid.cross(A, grid.vary_seeds(2)), key=str)


def test_axes_are_crossed_and_paired():
  both = [({'a': 1, 'b': 'u'}, {'x.a': 1, 'b': 'u', 'x.c': 0}), ({'a': 1, 'b': 'v'}, {
      'x.a': 1, 'b': 'v'}), ({'a': 2, 'b': 'u'}, {'x.a': 2, 'b': 'u', 'x.c': 0}),
          ({'a': 2, 'b': 'v'}, {'x.a': 2, 'b': 'v'})]
  assert grid.cross(A, B) == both
  assert grid.pair(A, B) == [both[0], both[3]]
  assert len(grid.cross(A, B, grid.vary_seeds(3))) == 12
  assert grid.cross(A, []) == []


@pytest.mark.parametrize('make, culprit', [
    (lambda: grid.pair(A, B[:1]), 'axes of 2, 1 points'),
    (lambda: grid.cross(A, A), "'a' is set by two axes"),
    (lambda: grid.cross(A, [({'z': 1}, {'x.a': 5})]), "'x.a' is set by two axes"),
    (lambda: grid.sample('k', 0.0, 1.0, 3), 'give 1 or more, and 0 < low'),
    (lambda: grid.sample('k', 1e-5, 1e-3, 0), 'give 1 or more'),
])
def test_what_cannot_be_meant_is_refused(make, culprit):
  with pytest.raises(UserError, match=culprit):
    make()


def test_samples_are_log_uniform_and_the_same_for_the_same_seed():
  def draw(seed, count=400):
    return [c['k'] for _, c in grid.sample('k', 1e-5, 1e-3, count, seed)]
  found = draw(0)
  assert draw(0) == found and draw(0, 3) == found[:3] and draw(1) != found
  logs = [(math.log10(x) + 5) / 2 for x in found]
  assert min(logs) >= -0.01 and max(logs) <= 1.01
  assert stats.kstest(logs, 'uniform').pvalue > 0.01


def test_a_tree_is_changed_by_dotted_keys_and_itself_stays():
  tree = {'a': 1, 'b': {'c': 2, 'd': {'e': 3}}}
  assert grid.change(tree, {'b.d.e': 4, 'a': 5, 'b.c': 6}) == {
      'a': 5, 'b': {'c': 6, 'd': {'e': 4}}}
  assert tree == {'a': 1, 'b': {'c': 2, 'd': {'e': 3}}}
  assert grid.change(tree, {'z.y': 1})['z.y'] == 1  # to be refused by name


def test_changes_found_and_made_again_are_the_other_config():
  base, other = presets.make('direct', 'chain'), presets.make('cot', 'chain')
  changes = grid.find_changes(base, other)
  assert grid.change(base.to_dict(), changes) == other.to_dict()
  assert changes['method'] == 'cot' and 'seed' not in changes


@pytest.mark.parametrize('name, preset, count', [
    ('blocks', 'chain', 21), ('fading', 'chain', 27), ('stages', 'chain', 18),
    ('learning_rate', 'chain', 12), ('targets', 'chain', 12), ('reading', 'chain', 12),
    ('latents', 'chain', 9), ('spelling', 'chain', 9), ('inside', 'chain', 6),
    ('details', 'chain', 21),
    ('absolute', 'chain', 9), ('absolute', 'gpt2', 9), ('passes', 'chain_harder', 36),
    ('passes', 'prosqa_small', 12),
    ('tuning', 'chain', 72), ('tuning', 'chain,codi,1', 6),
    ('hidden', 'chain', 27), ('aligned', 'chain', 12),
    ('lora', 'chain', 15), ('learning_rate', 'chain,cot', 12), ('blocks', 'gpt2', 21),
    ('fading', 'gpt2', 27), ('stages', 'gpt2', 18),
    ('learning_rate', 'gpt2', 12), ('details', 'gpt2', 24), ('lora', 'gpt2', 15)])
def test_the_recipes_of_sweeps_are_points_that_differ(name, preset, count):
  path = ROOT / 'configs' / 'sweeps' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found = grid.load_points(module.get_config(preset), str(path))
  assert len(found) == count == len({grid.identify(p.config) for p in found})


@pytest.mark.parametrize('recipe, own', [
    (hidden, ['chain']), (passes, ['chain_harder', 'prosqa_small']), (spelling, ['chain'])])
def test_a_sweep_whose_sizes_are_some_presets_own_refuses_others(recipe, own):
  for preset in presets.PRESETS.keys() - own:
    with pytest.raises(UserError, match=f"preset '{preset}': .* {' and '.join(own)}"):
      recipe.get_config(preset)


@pytest.mark.parametrize('asked, count', [('chain,codi', 64_000), ('chain,codi,1', 256_000)])
def test_tuning_takes_a_quarter_of_a_budget_or_the_share_that_is_asked(asked, count):
  found = grid.load_points(tuning.get_config(asked), 'tuning')
  assert {point.config.train.num_examples for point in found} == {count}


def test_tuning_goes_beyond_an_end_of_its_rates_and_keeps_the_settings_it_had():
  def name(asked):
    return [point.name for point in grid.load_points(tuning.get_config(asked), asked)]
  assert name('chain,codi,1,4') == [*name('chain,codi,1'), 'method=codi,lr=0.004,weight=1.0',
                                    'method=codi,lr=0.004,weight=0.3']


@pytest.mark.parametrize('asked', ['chain,foo', 'chain,codi,x', 'chain,codi,0', 'chain,codi,1,2',
                                   'chain,codi,1,0', 'chain,codi,1,x', 'chain,codi,1,4,8'])
def test_a_search_that_is_none_is_told(asked):
  with pytest.raises(UserError, match=f"there is no search '{asked}'; ask for PRESET"):
    tuning.get_config(asked)


def write_search(path, asked, valid_accs):
  """sweep.json of a search whose settings have these accuracies, the first ones first."""
  points = grid.load_points(tuning.get_config(asked), asked)
  entries = [{'factors': point.factors} | ({} if acc is None else {'valid_acc': {'mean': acc}})
             for point, acc in zip(points, [*valid_accs, *[None] * len(points)])]
  path.mkdir(parents=True, exist_ok=True)
  (path / 'sweep.json').write_text(json.dumps({'entries': entries}))
  return points


@pytest.mark.parametrize('asked', ['chain,icot', 'chain,icot,1', 'chain,pause', 'gpt2,pause,1'])
def test_methods_are_compared_at_the_best_of_their_search_with_the_whole_budget(asked, tmp_path):
  preset, method = asked.split(',')[:2]
  write_search(tmp_path, asked, [0.1, 0.1, 0.1, 0.3, 0.3, 0.1])  # half the rate, the other key
  found = grid.load_points(compare.get_config(f'{preset},{tmp_path}'), 'compare')
  assert [point.name for point in found] == [f'method={method},seed={seed}' for seed in range(3)]
  usual = presets.make(method, preset)
  changes = grid.find_changes(usual, ml_collections.ConfigDict(
      dataclasses.asdict(found[0].config)))
  key, (_, factor) = tuning.KNOBS[method]
  rows = {'layout.row_tokens': usual.layout.row_tokens + usual.layout.num_blocks * (
      usual.layout.block_tokens)} if method == 'pause' else {}
  section, name = key.split('.')
  assert changes == {'optim.learning_rate': usual.optim.learning_rate / 2,
                     key: usual[section][name] * factor} | rows


def test_of_settings_that_are_equal_on_valid_the_usual_one_is_compared(tmp_path):
  for method in ('codi', 'pccot'):  # two searches in one folder
    write_search(tmp_path / method, f'chain,{method},1', [0.5] * 6)
  found = grid.load_points(compare.get_config(f'chain,{tmp_path}'), 'compare')
  usual = {p.name: p for p in grid.load_points(compare.get_config('chain'), 'compare')}
  assert [(p.name, p.config) for p in found] == [
      (name, usual[name].config) for seed in range(3) for name in (
          f'method=codi,seed={seed}', f'method=pccot,seed={seed}')]


def test_a_search_that_cannot_choose_is_told(tmp_path):
  for write, told in (
      (lambda: None, f'{tmp_path}: has no sweep.json'),
      (lambda: write_search(tmp_path, 'chain,codi,1', [0.5] * 5),
       'method=codi,lr=0.002,weight=0.3 is not done; finish the search first'),
      (lambda: (tmp_path / 'sweep.json').write_text(json.dumps({'entries': [
          {'factors': {'K': 1}}]})),
       'K=1 is no setting of configs/sweeps/tuning.py'),
      (lambda: [write_search(tmp_path / name, 'chain,codi,1', [0.5] * 6) for name in 'ab']
       + [(tmp_path / 'sweep.json').unlink()], f'b/sweep.json: codi was searched in {tmp_path}/a'),
      (lambda: (tmp_path / 'sweep.json').write_text('{'), 'is damaged')):
    write()
    with pytest.raises(UserError, match=re.escape(told)):
      compare.get_config(f'chain,{tmp_path}')


def test_methods_that_a_search_has_not_begun_are_not_compared(tmp_path):
  points = write_search(tmp_path, 'chain,,1', [0.5] * 6)
  assert len(points) == 72
  found = grid.load_points(compare.get_config(f'chain,{tmp_path}'), 'compare')
  assert {p.config.method for p in found} == {'direct'}


# ---- Random grids ----

VALUES = {  # few of each, so that equals are drawn too; the base has the first of each
    'optim.learning_rate': (1e-2, 3e-4, 1, 1.0),
    'seed': (0, 1, 2),
    'layout.num_blocks': (3, 1),
    'layout.depth0_readout': (False, True),
    'data.chain.modulus': (10, 7),
    'method': ('rim_stage1', 'pause'),
}
RUNTIME = {'log.every_steps': (1, 5), 'eval.batch_size': (8, 4), 'checkpoint.every_steps': (3, 2)}


@st.composite
def draw_axes(draw, unique_by=repr):
  """Axes of distinct keys, each of distinct values."""
  keys = draw(st.lists(st.sampled_from(['a', 'b.c', 'b.d', 'e']), min_size=1, unique=True))
  value = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(),
                    st.text('xyz', max_size=3))
  return [grid.vary(key, draw(st.lists(value, max_size=4, unique_by=unique_by))) for key in keys]


@hypothesis.given(draw_axes())
def test_a_cross_has_every_combination_once_the_first_axis_slowest(axes):
  found = grid.cross(*axes)
  assert len(found) == math.prod(map(len, axes))
  for number, (factors, changes) in enumerate(found):
    for axis in reversed(axes):  # digits of its number, the last axis least
      number, at = divmod(number, len(axis))
      (name, value), = axis[at][0].items()
      assert factors[name] is value and changes[next(iter(axis[at][1]))] is value
    assert len(factors) == len(changes) == len(axes)
  assert grid.cross(*axes) == found  # and expanding leaves the axes as they are


@hypothesis.given(draw_axes(), st.data())
def test_a_pair_is_as_long_as_its_axes_and_unequal_ones_are_refused(axes, data):
  if len({len(axis) for axis in axes}) > 1:
    with pytest.raises(UserError, match='points; give as many of each'):
      grid.pair(*axes)
  count = min(map(len, axes))
  found = grid.pair(*(axis[:count] for axis in axes))
  crossed = grid.cross(*axes)
  assert len(found) == count and all(point in crossed for point in found)
  assert [list(f.values()) for f, _ in found] == [
      [next(iter(axis[i][0].values())) for axis in axes] for i in range(count)]


@hypothesis.given(draw_axes(unique_by=None))
def test_names_are_as_many_as_settings_and_say_them(axes):
  found = [factors for factors, _ in grid.cross(*axes)]
  names = [grid.name_point(factors) for factors in found]
  assert len(set(names)) == len(set(map(repr, found)))
  for name, factors in zip(names, found):
    assert [tuple(part.split('=')) for part in name.split(',')] == [
        (key, str(value)) for key, value in factors.items()]


def draw_overrides(values=VALUES):
  return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in values.items()})


BASE = dataclasses.asdict(support.make_config('rim_stage1'))


def identify(base, point=None):
  """The identity of a point that a recipe makes of overrides of its base and of its own."""
  recipe = grid.make_sweep_dict(grid.ml_collections.ConfigDict(grid.change(BASE, base)),
                                [({'a': 1}, point or {})])
  [found] = grid.load_points(recipe, 'recipe.py')
  return grid.identify(found.config)


@hypothesis.given(draw_overrides(), draw_overrides())
def test_an_identity_differs_exactly_where_a_value_does(mine, yours):
  """A value that is the default, said or not, is the same; so is 1 where 1.0 is meant."""
  base = {key: values[0] for key, values in VALUES.items()}
  assert (identify(mine) == identify(yours)) == (base | mine == base | yours)


@hypothesis.given(draw_overrides(), draw_overrides(RUNTIME), st.randoms())
def test_an_identity_is_the_same_wherever_and_in_whatever_order_values_are_given(
    overrides, runtime, random):
  items = [*overrides.items(), *runtime.items()]
  random.shuffle(items)
  cut = random.randint(0, len(items))
  assert identify(dict(items[:cut]), dict(items[cut:])) == identify(overrides)


@hypothesis.given(st.floats(1e-6, 1), st.floats(1, 1e4), st.integers(1, 9), st.integers(0, 2**32))
def test_samples_stay_in_their_range_and_their_places_in_it_do_not_depend_on_it(
    low, ratio, count, seed):
  found = [c['k'] for _, c in grid.sample('k', low, low * ratio, count, seed)]
  assert found == [c['k'] for _, c in grid.sample('k', low, low * ratio, count, seed)]
  assert all(low <= value <= low * ratio for value in found)
  places = [math.log10(c['k']) for _, c in grid.sample('k', 1, 10, count, seed)]
  for value, place in zip(found, places, strict=True):
    # Half of the last of three digits, in each.
    assert abs(math.log(value / low) - place * math.log(ratio)) <= 0.006 * (1 + math.log(ratio))
