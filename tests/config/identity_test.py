"""What a run is called by does not change when keys are added to the config.

The numbers were computed before the first key was added; one that changes orphans every run that
people have.
"""

import dataclasses

import pytest

from rim_jax import config as config_lib
from rim_jax.config import grid, parse, schema
from rim_jax.runtime import card
from tests import support

IDENTITIES = {
    'direct': '7cdc3583f0c15b14', 'cot': '97c0757f5376325a', 'pause': '35b8529409a07621',
    'icot': '1a703f7d1bfa2246', 'coconut': 'b4c4645ab5d7ca5d', 'coconut_stage': '10d937310c46d283',
    'rim': '5505cf655482d4e7', 'rim_stage1': '31831fc35bc53ae3', 'rim_stage2': '7c9d9771d4ca4cfa'}


def change_first_keys(config):
  """A config with another value at every key that is not a later one, allowed or not."""
  later = parse.list_neutral(type(config))

  def change(node, where):
    values = {}
    for field in dataclasses.fields(node):
      value, key = getattr(node, field.name), f'{where}{field.name}'
      if dataclasses.is_dataclass(value):
        values[field.name] = change(value, f'{key}.')
      elif key not in later:
        values[field.name] = not value if isinstance(value, bool) else value + (
            'x' if isinstance(value, str) else type(value)(1) / 2 if isinstance(value, float)
            else 1)
    return dataclasses.replace(node, **values)
  return change(config, '')


def make_card(config):
  return {'config': dataclasses.asdict(config), 'tokenizer': 't', 'data': {'fingerprint': 'd'},
          'base': {'fingerprint': 'b'}, 'start': {'path': 'p', 'fingerprint': 's'}}


@pytest.mark.parametrize('make', [config_lib.Config, support.LaterConfig])
def test_identities_are_what_they_were(make):
  assert {name: grid.identify(make(method=name)) for name in IDENTITIES} == IDENTITIES
  assert grid.identify(change_first_keys(make())) == '35a3562e8f63ca88'


@pytest.mark.parametrize('make', [config_lib.Config, support.LaterConfig])
def test_fingerprints_of_runs_are_what_they_were(make, monkeypatch):
  monkeypatch.setattr(schema, 'Config', make)
  assert card.fingerprint_run(make_card(make())) == '632be15dd3e582d1'
  assert card.fingerprint_run(make_card(change_first_keys(make()))) == 'bbf42faa8a811dce'


def test_a_later_key_counts_where_it_is_not_neutral(monkeypatch):
  monkeypatch.setattr(schema, 'Config', support.LaterConfig)
  config = support.LaterConfig()
  others = [support.set_key(config, key, value) for key, value in (
      ('model.twist', 0.5), ('echo.num_times', 2), ('echo.inner.share', 0.5))]
  for identify in (grid.identify, lambda c: card.fingerprint_run(make_card(c))):
    assert len({identify(c) for c in (config, *others)}) == 4


def test_a_section_is_told_without_its_neutral_keys():
  assert config_lib.list_identity(config_lib.MeshConfig()) == dataclasses.asdict(
      config_lib.MeshConfig())
  section = support.LaterModelConfig()
  assert 'twist' in config_lib.flatten(section)
  assert config_lib.list_identity(section) == config_lib.list_identity(config_lib.ModelConfig())
  told = config_lib.list_identity(dataclasses.replace(section, twist=0.5))
  assert told['twist'] == 0.5


def test_an_earlier_config_is_completed_and_itself_stays(monkeypatch):
  monkeypatch.setattr(schema, 'Config', support.LaterConfig)
  earlier = dataclasses.asdict(config_lib.Config())
  assert config_lib.complete(earlier) == dataclasses.asdict(support.LaterConfig())
  assert earlier == dataclasses.asdict(config_lib.Config())
  other = dataclasses.asdict(support.set_key(support.LaterConfig(), 'model.twist', 0.5))
  assert config_lib.complete(other) == other
