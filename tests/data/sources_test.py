"""A source's fingerprint is of all that its records depend on, and of nothing else."""

import dataclasses

import pytest

from rim_jax.config import ChainConfig, DataConfig
from rim_jax.config.schema import later
from rim_jax.data import sources
from tests.support_data import make_rows, write_rows


def test_fingerprints_are_what_they_were_before_keys_were_added(tmp_path):
  """One that changes orphans every run on those data."""
  write_rows(tmp_path, train=b'train\n', valid=b'valid\n', test=b'test\n')
  config = DataConfig()
  assert sources.make_chain_source(config).fingerprint == '85cf8b5a4d9415be'
  assert sources.make_prosqa_source(config).fingerprint == 'fccec716fbd4ed2a'
  config = dataclasses.replace(config, dir=str(tmp_path))
  assert sources.make_gsm8k_source(config).fingerprint == '0ae4c8c8e2122a10'
  config = dataclasses.replace(config, source='gsm8k_perturbed')
  assert sources.make_gsm8k_source(config).fingerprint == 'f9f31e4675ca1054'


def test_a_later_key_is_in_the_fingerprint_where_it_is_not_neutral():
  @dataclasses.dataclass(frozen=True)
  class LaterChain(ChainConfig):
    twist: int = later(0)
  first, same, other = (
      sources.make_chain_source(DataConfig(chain=chain)).fingerprint
      for chain in (ChainConfig(), LaterChain(), LaterChain(twist=1)))
  assert first == same != other


@pytest.mark.parametrize('source', ['gsm8k', 'prosqa'])
def test_whether_bad_rows_are_dropped_may_change_where_there_are_none(tmp_path, source):
  files = dict(train=make_rows(5), test=make_rows(2))
  prints = [[(s.fingerprint, s.alike) for s in (
      sources.SOURCES[source](DataConfig(source=source, dir=str(folder), num_valid=2,
                                         on_bad_rows=rule), None) for rule in ('stop', 'drop'))]
            for folder in (write_rows(tmp_path / 'a', **files),
                           write_rows(tmp_path / 'b', **{**files, 'test': make_rows(3)}))]
  for (mine, alike), other in prints:
    assert other == (alike, mine) and mine != alike
  assert not set(prints[0][0]) & set(prints[1][0])


def test_data_may_move_as_long_as_its_files_keep_their_names_and_content(tmp_path):
  files = dict(train=make_rows(5), test=make_rows(2))
  folders = [write_rows(tmp_path / 'a', **files), write_rows(tmp_path / 'b', **files),
             write_rows(tmp_path / 'c', **files)]
  (folders[2] / 'train.jsonl').rename(folders[2] / 'train.json')
  here, moved, renamed = (sources.make_gsm8k_source(
      DataConfig(source='gsm8k', dir=str(folder), num_valid=2)).fingerprint for folder in folders)
  assert here == moved != renamed
