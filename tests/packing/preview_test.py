"""What is shown of the data is what a run trains on."""

import dataclasses

from rim_jax import train as train_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import preview
from tests import support


def test_the_pieces_of_an_example_are_its_ids_in_their_order():
  config = support.make_config('rim_stage2', layout__num_blocks=2)
  codec = support.make_codec(config)
  record = support.RECORDS[0]
  lines = preview.list_lines(record, codec)
  example = codec.lay_out(codec.encode(record))
  trunk = layout_lib.make_trunk(example.question, 2, config.layout, codec.memory_start)
  assert [i for piece in lines[0].pieces for i in piece.ids] == trunk
  assert [piece.kind for piece in lines[0].pieces] == ['question', 'block', 'block']
  assert lines[0].pieces[0].text.startswith(record.question)
  assert len(lines) == 1 + len(example.readouts)
  for line, readout in zip(lines[1:], example.readouts):
    assert line.label == f'after block {readout.block}'
    assert [i for piece in line.pieces for i in piece.ids] == [*readout.prefix, *readout.target]
    assert line.pieces[-1].text.startswith(record.answer)
    assert line.pieces[-1].text.endswith('<end>')


def test_thoughts_that_spell_a_step_are_shown_before_it():
  config = support.make_config('codi', aux__decoder='shared', layout__block_tokens=2)
  codec = support.make_codec(config)
  *_, line = preview.list_lines(support.RECORDS[0], codec)
  assert [(piece.kind, piece.text) for piece in line.pieces] == [
      ('block', '<m>'), ('predicted', '6<end>')] and line.label == 'on its own'
  assert line.pieces[0].ids == (codec.memory_start + 1,)


def test_what_does_not_fit_is_told_with_its_reason_and_not_refused(tmp_path):
  config = support.make_config('rim_stage2', data__cache_dir=str(tmp_path),
                               data__chain__min_steps=2, data__chain__max_steps=4)
  task = train_lib.make_task(config, lambda line: None)
  split = task.dataset.splits['test']
  fits = preview.measure_split(split, task.codec, lambda line: None)
  assert fits.num_records == len(split) and not fits.dropped
  assert fits.files == 'rim_chain/test' and 0 < fits.tokens[0] <= fits.tokens[2]
  most = fits.tokens[2]
  narrow = dataclasses.replace(task.codec, config=dataclasses.replace(
      config, layout=dataclasses.replace(config.layout, row_tokens=most - 1)))
  dropped = preview.measure_split(split, narrow, lambda line: None).dropped
  assert dropped and f'needs layout.row_tokens={most}, has {most - 1}' in dropped[0]
  # Also where nothing fits.
  none = dataclasses.replace(task.codec, config=dataclasses.replace(
      config, layout=dataclasses.replace(config.layout, row_tokens=1)))
  found = preview.measure_split(split, none, lambda line: None)
  assert len(found.dropped) == len(split) and found.tokens == fits.tokens


class Split(list):
  name = fingerprint = 'test'

  def __getitems__(self, indices):
    return [self[i] for i in indices]


def test_files_of_a_split_are_shown_in_their_order_whatever_the_order_of_its_records():
  codec = support.make_codec(support.make_config('rim_stage2'))
  split = Split(dataclasses.replace(support.RECORDS[0], origin=f'train-0000{i}-of-00002.parquet:1')
                for i in (1, 0))  # as valid questions that are held out
  assert preview.measure_split(split, codec, lambda line: None).files == (
      'train-00000-of-00002.parquet to train-00001-of-00002.parquet')


def describe_misjudged(records, codec):
  return preview.describe_misjudged('test', records, codec)


def test_what_the_tokenizer_cannot_write_is_told_and_not_refused(tmp_path):
  config = support.make_config('rim_stage2', data__cache_dir=str(tmp_path))
  codec = support.make_codec(config)
  bad = dataclasses.replace(support.RECORDS[0], answer='?')
  [line] = describe_misjudged([*support.RECORDS, bad], codec)
  assert 'test: 1 of' in line and "the first is '?'" in line
  found = preview.measure_split(Split([bad]), codec, lambda line: None)
  assert found.tokens == (0, 0, 0) and "'?'" in found.dropped[0]


def test_gold_answers_that_can_never_be_right_are_counted():
  config = support.make_config(
      'rim_stage2', tokenizer__kind='bytes', data__source='gsm8k', layout__answer_suffix='0')
  codec, split = support.make_codec(config), list(support.RECORDS)
  good = [dataclasses.replace(r, answer='7') for r in split]
  assert describe_misjudged(good, codec) == []
  bad = [*good, dataclasses.replace(split[0], answer='507')]
  [line] = describe_misjudged(bad, codec)
  assert line.startswith(f'test: 1 of {len(bad)} gold answers can never be right: ')
  assert "the first is '507'" in line


def test_gold_answers_longer_than_what_is_written_are_told():
  config = support.make_config('rim_stage2', eval__max_new_tokens=2)
  records = [dataclasses.replace(support.RECORDS[0], answer=answer)
             for answer in ('12', '1234', '5')]
  [line] = describe_misjudged(records, support.make_codec(config))
  assert line.startswith('test: 1 of 3 gold answers are longer than eval.max_new_tokens=2')
  assert "has 4 tokens, the first is '1234'" in line


def test_gold_chains_longer_than_what_is_written_are_told():
  records = [dataclasses.replace(support.RECORDS[0], steps=steps, answer='7')
             for steps in (('1', '2'), ('1', '23456789'))]  # 4 and 11 tokens, with line breaks

  def describe(most):
    return describe_misjudged(records, support.make_codec(
        support.make_config('cot', eval__max_new_tokens=most)))
  [line] = describe(11)
  assert line.startswith('test: 1 of 2 gold chains with their answers are longer than eval.max')
  assert 'has 12 tokens' in line and 'never' not in line
  assert describe(12) == []
