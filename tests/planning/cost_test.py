"""A run's cost: FLOPs by hand for a tiny network, and what is not here is said."""

import pytest

from rim_jax.planning import compile as compile_lib
from rim_jax.planning import cost, machines
from tests import support


def test_flops_are_six_a_weight_and_token_by_hand():
  """direct, a row an example: 64 tokens meet the layers, its slots the vocabulary."""
  config = support.make_config('direct', layout__row_tokens=10, layout__row_slots=2)
  layer = 16 * 16 * 4 + 2 * 16 * 32  # query, key, value, out; up and down
  vocab = compile_lib.get_vocab_size(config)
  want = 64 * 6 * (10 * 2 * layer + 2 * vocab * 16)
  found = cost.estimate(config)
  assert (found.num_examples, found.why) == (64, '')
  assert found.flops == pytest.approx(want, rel=1e-12)


def test_tokens_of_every_pass_meet_the_layers():
  """pause, a row an example: 9 tokens of the question, 9 of blocks, 3 of readouts; three passes."""
  config = support.make_config('pause', layout__row_tokens=21, layout__row_slots=6,
                               loop__num_passes=3)
  layer = 16 * 16 * 4 + 2 * 16 * 32
  vocab = compile_lib.get_vocab_size(config)
  want = 64 * 6 * ((2 * 9 + 3 * 9 + 3) * 2 * layer + 6 * vocab * 16)
  assert cost.estimate(config).flops == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize('decoder, row, read', [
    ('none', 24, 0), ('shared', 36, 0), ('copy', 36, 36)])
def test_tokens_of_thoughts_and_of_a_second_decoder_meet_layers(decoder, row, read):
  """A row an example: read before its thoughts, two of three thoughts, read with them."""
  config = support.make_config('coconut_stage', layout__row_tokens=row, layout__row_slots=20,
                               layout__block_tokens=3, layout__skip_steps=-1, aux__decoder=decoder)
  layer = 16 * 16 * 4 + 2 * 16 * 32
  vocab = compile_lib.get_vocab_size(config)
  want = 64 * 6 * ((row + 2 + row + read) * 2 * layer + (20 + 20 * (read > 0)) * vocab * 16)
  assert cost.estimate(config).flops == pytest.approx(want, rel=1e-12)


def test_a_curriculum_is_the_sum_of_its_stages_and_epochs_are_counted_where_data_are_drawn():
  config = support.make_config('rim', train__num_examples=0, train__num_epochs=2.0)
  assert cost.estimate(config).num_examples == pytest.approx(80)  # of 40 records


@pytest.mark.parametrize('changes, why', [
    ({'data__source': 'gsm8k', 'tokenizer__kind': 'bytes', 'layout__row_tokens': 1024,
      'layout__answer_prefix': '#', 'train__num_examples': 0, 'train__num_epochs': 1.0},
     'epochs of data that are not here'),
    ({'model__init_from': '/nowhere'}, '/nowhere')])
def test_what_is_not_here_is_said(changes, why):
  found = cost.estimate(support.make_config('direct', **changes))
  assert found.flops is None and why in found.why
  assert why in cost.describe(found, machines.parse_hardware('h100'), 0.4)


def test_a_share_of_an_hour_that_nobody_counts_is_no_number():
  told = cost.describe(cost.Estimate(64, 1e9), machines.parse_hardware('h100'), 0.4)
  assert told == '64 examples, 1.00e+09 FLOPs, < 0.001 h'


def test_hardware_is_counted_in_chips():
  assert machines.parse_hardware('v5e:2x4') == machines.Peak('v5e:2x4', 8, 8 * 197e12)
  assert machines.parse_hardware('h100').flops_per_sec == 989e12
  found = cost.Estimate(64, 989e12 * 0.4 * 7200)
  assert cost.describe(found, machines.parse_hardware('h100'), 0.4).endswith(' FLOPs, 2 h')
