"""The pages of docs/reference say what the code does."""

from docs import make_reference
from rim_jax import config as config_lib


def test_the_page_of_keys_is_what_the_schema_makes():
  """After a change of rim_jax/config/schema.py: python -m docs.make_reference."""
  assert make_reference.PAGE.read_text() == make_reference.make_page()


def test_every_key_is_on_the_page_with_a_meaning():
  rows = [line.split(' | ') for line in make_reference.make_page().splitlines()
          if line.startswith('| `')]
  assert [row[0].strip('| `') for row in rows] == list(config_lib.list_types())
  for row in rows:
    assert len(row[-1].strip(' |').split()) >= 2, f'{row[0]}: its comment in the schema is missing'
