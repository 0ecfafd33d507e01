"""The layout: a table written by hand, targets, positions, counts."""

import numpy as np
import pytest

from rim_jax import methods
from rim_jax.methods import direct, icot
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib
from tests import support

Q, B, M, E = [70, 71, 72], 90, 91, 92  # question ids; memory ids from 90 on
EOS, P = 80, 81


def write(encoded, config, prefix=(P,), method='rim_stage1', tokens=13, slots=5):
  template = layout_lib.Template(bos=[], question_prefix=[], separator=[], step_prefix=[],
                                 step_separator=[85], answer_prefix=list(prefix),
                                 answer_suffix=[], eos=[EOS])
  example = methods.METHODS[method].layout(encoded, template, config.layout)
  rows = rows_lib.make_rows([[example]], tokens, slots, config.layout, B)
  assert (tokens, slots) == layout_lib.count_example(example, config.layout)[:2]
  return rows, example


def test_the_table_of_the_method():
  config = support.make_config(layout__block_tokens=1)
  rows, _ = write(layout_lib.Encoded(Q, ([60], [61, 62]), [63]), config)
  assert rows.tokens[0].tolist() == [*Q, B, M, E, B, M, E, 61, 62, P, 63]
  assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 9, 10]
  assert rows.block[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 2, 2]
  assert rows.readout[0].tolist() == [0] * 9 + [1, 1, 2, 2]
  assert rows.example[0].tolist() == [1] * 13
  assert rows.slot_index[0].tolist() == [5, 9, 10, 11, 12]
  assert rows.slot_target[0].tolist() == [61, 62, EOS, 63, EOS]
  assert rows.slot_block[0].tolist() == [1, 1, 1, 2, 2]
  assert rows.slot_steps[0].tolist() == [2] * 5
  step, answer = batch_lib.SLOT_STEP, batch_lib.SLOT_ANSWER
  assert rows.slot_kind[0].tolist() == [step, step, step, answer, answer]
  assert rows.slot_tokens[0].tolist() == [3, 3, 3, 2, 2]


def test_no_steps_is_one_block_that_predicts_the_answer():
  config = support.make_config()
  rows, example = write(layout_lib.Encoded(Q, (), [63]), config, prefix=(), tokens=7, slots=2)
  assert (example.num_blocks, example.num_steps) == (1, 1)
  assert rows.slot_index[0].tolist() == [5, 6]  # block 1's </b>, then y itself
  assert rows.slot_target[0].tolist() == [63, EOS]


def test_depth0_reads_the_question_for_the_first_step():
  config = support.make_config(layout__depth0_readout=True)
  rows, _ = write(layout_lib.Encoded(Q, ([60], [61]), [63]), config, prefix=(), tokens=12, slots=6)
  assert rows.slot_target[0].tolist() == [60, EOS, 61, EOS, 63, EOS]
  assert rows.slot_block[0].tolist() == [0, 0, 1, 1, 2, 2]
  assert rows.slot_index[0, 0] == 2  # the question's last token
  assert rows.positions[0, rows.slot_index[0, 1]] == 3  # right after the question


def test_stage2_reads_the_answer_after_every_block():
  config = support.make_config('rim_stage2', layout__num_blocks=2)
  rows, _ = write(layout_lib.Encoded(Q, ([60], [61]), [63]), config, method='rim_stage2', slots=4)
  assert rows.tokens[0].tolist() == [*Q, B, M, E, B, M, E, P, 63, P, 63]
  assert rows.positions[0].tolist() == [*range(9), 6, 7, 9, 10]
  assert rows.slot_block[0, :4].tolist() == [1, 1, 2, 2]


def test_stage2_depth0_reads_the_answer_after_the_question_too():
  config = support.make_config('rim_stage2', layout__num_blocks=2,
                               layout__stage2_depth0_readout=True)
  for method in ('rim_stage2', 'pause'):
    rows, _ = write(layout_lib.Encoded(Q, ([60], [61]), [63]), config, method=method, tokens=15,
                    slots=6)
    assert rows.tokens[0].tolist() == [*Q, B, M, E, B, M, E, P, 63, P, 63, P, 63]
    assert rows.positions[0].tolist() == [*range(9), 3, 4, 6, 7, 9, 10]
    assert rows.slot_block[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_cot_writes_every_step_then_the_answer():
  config = support.make_config('cot')
  rows, _ = write(layout_lib.Encoded(Q, ([60], [61, 62]), [63]), config, method='cot', tokens=10,
                  slots=8)
  chain = [60, 85, 61, 62, 85, P, 63]
  assert rows.tokens[0].tolist() == [*Q, *chain]
  assert rows.slot_target[0].tolist() == [*chain, EOS]
  assert rows.slot_index[0].tolist() == list(range(2, 10))


def test_icot_writes_what_is_left_of_the_chain_and_positions_close_up():
  encoded = layout_lib.Encoded(Q, ([60], [61, 62]), [63])
  template = layout_lib.Template(bos=[], question_prefix=[], separator=[], step_prefix=[],
                                 step_separator=[85], answer_prefix=[], answer_suffix=[],
                                 eos=[EOS])
  config = support.make_config('icot').layout
  lay_out = icot.ICOT.layout
  for removed, left in ((0, [60, 85, 61, 62, 85]), (1, [85, 61, 62, 85]), (4, [85]), (5, [])):
    example = lay_out(encoded, template, config, removed)
    rows = rows_lib.make_rows([[example]], 13, 8, config, B)
    token, slot, _ = layout_lib.count_example(example, config)
    assert rows.tokens[0, :token].tolist() == [*Q, *left, 63]
    assert rows.slot_target[0, :slot].tolist() == [*left, 63, EOS]
    assert rows.positions[0, :token].tolist() == list(range(token))
  bare = lay_out(encoded, template, config, 1 << 30)
  bare_by_direct = direct.lay_out(encoded, template, config)
  assert (bare.question, bare.num_blocks) == (
      bare_by_direct.question, bare_by_direct.num_blocks)
  assert bare.readouts[0].target == bare_by_direct.readouts[0].target


@pytest.mark.parametrize('method', sorted(methods.METHODS))
@pytest.mark.parametrize('prefix', ['', '+', '-*'])
@pytest.mark.parametrize('depth0', [False, True])
def test_every_slot_predicts_the_token_after_it(method, prefix, depth0):
  """Independent of rows.py: the id at the position after a slot, in its own readout."""
  config = support.make_config(method, layout__answer_prefix=prefix, layout__step_prefix=prefix,
                               layout__answer_suffix='*', layout__depth0_readout=depth0,
                               layout__stage2_depth0_readout=depth0)
  rows = support.make_batch(config, [support.RECORDS[:2], support.RECORDS[2:4]])
  eos = support.make_codec(config).tokenizer.eos_id
  for r in range(2):
    supervised = np.flatnonzero(rows.slot_kind[r])
    assert len(supervised)
    for s in supervised:
      if rows.slot_kind[r, s] == batch_lib.SLOT_PARALLEL:  # lotus_test has these, by hand
        continue
      i = rows.slot_index[r, s]
      own = rows.readout[r, i]
      same = ((rows.example[r] == rows.example[r, i])
              & (rows.positions[r] == rows.positions[r, i] + 1)
              & (rows.block[r] == rows.slot_block[r, s])
              & (rows.readout[r] == own if own else rows.readout[r] > 0))
      # At a token of the trunk several readouts may begin, each with a slot of its own.
      targets = rows.slot_target[r][(rows.slot_index[r] == i) & (rows.slot_kind[r] > 0)
                                    & (rows.slot_kind[r] != batch_lib.SLOT_PARALLEL)
                                    & (rows.slot_block[r] == rows.slot_block[r, s])]
      assert sorted(rows.tokens[r][same]) == sorted(targets[targets != eos])


def test_memory_is_never_a_target():
  for method in methods.METHODS:
    config = support.make_config(method)
    rows = support.make_batch(config, [support.RECORDS[:2]])
    assert rows.slot_target.max() < support.make_codec(config).memory_start
