"""A perturbed split is checked, leaks nothing, and is what its config says, or is refused."""

import dataclasses
import json
import re

import pytest

from rim_jax.config import DataConfig, PerturbedConfig
from rim_jax.data import datasets, records
from rim_jax.data.perturbed import executor, variants, variation
from rim_jax.data.records import Record
from rim_jax.errors import UserError


def quiet(_):
  pass


PROBLEMS = [
    ('Ann has 48 pens and gives 19 of them to Tom. How many has she left?', ('48-19=29',), '29'),
    ('A ticket costs $12 and a menu $9. What do 30 people pay for both of them?',
     ('12+9=21', '21*30=630'), '630'),
    ('Tom runs 8 miles a day. How far is it in 5 weeks?', ('8*7=56', '56*5=280'), '280'),
    ('A wire is cut in the ratio of 7:3:2. If the shortest piece is 16 cm, how long was it?',
     ('7+3+2=12', '8*12=96'), '96'),
    ('Tom has 40 apples and eats 5. How many are left?', ('40-5=36',), '36'),
    ('Tom has 40 eggs, 5 cracked and 3 rotten. How many are whole?', ('40-5=35',), '35'),
    ('A tank holds 90 liters. How much do 13 tanks hold?', ('90*13=1170',), '1170'),
]
OTHERS = [('A tank holds 45 liters. How  much do Twenty-five TANKS hold?', ('45*25=1125',), '1125'),
          ('How many are 5 and 6?', ('5+6=11',), '11')]


def make_records(problems, name='train'):
  return [Record(*p, origin=f'{name}.jsonl:{i}') for i, p in enumerate(problems, 1)]


def make(total=0, per_problem=20, seed=0, problems=PROBLEMS, **fields):
  config = PerturbedConfig(seed=seed, variants_per_problem=per_problem, total=total)
  return variation.Perturbed(make_records(problems), make_records(OTHERS, 'test'), config,
                             say=quiet, **fields)


def write(folder, **splits):
  folder.mkdir(exist_ok=True)
  for name, rows in splits.items():
    (folder / f'{name}.jsonl').write_text(''.join(
        json.dumps({'question': q, 'steps': s, 'answer': a}) + '\n' for q, s, a in rows))
  return folder


def load(tmp_path, say=quiet, seed=0, total=0, variants_per_problem=10, **fields):
  folder = write(tmp_path / 'in', train=PROBLEMS, valid=OTHERS[1:], test=OTHERS[:1])
  return datasets.load_dataset(DataConfig(
      source='gsm8k_perturbed', dir=str(folder), cache_dir=str(tmp_path / 'cache'),
      perturbed=PerturbedConfig(seed, variants_per_problem, total), **fields), say)


def test_rows_are_counted_by_reason_and_none_is_kept_in_silence():
  perturbed = make()
  assert perturbed.reasons == {
      'template': 3, 'a ratio or a range': 1, 'a step that does not compute': 1,
      'a number of the question that no step uses': 1,
      'a question of another split, numbers aside': 1}
  note, = perturbed.describe()
  assert note.startswith(
      f'train: {len(perturbed)} variants of 3 templates, from 7 rows; left out: ')
  for reason, count in perturbed.reasons.items():
    assert reason == 'template' or f'{reason}: {count}' in note


def test_every_variant_computes_is_distinct_and_names_its_source():
  perturbed = make()
  found = list(perturbed)
  assert len(found) == len(perturbed) == len({v.question for v in found})
  assert {v.source_row for v in found} == {1, 2, 3}
  for v in found:
    assert executor.find_fault(v.question, v.steps, v.answer) == ''
    assert v.origin == f'train.jsonl:{v.source_row}#{v.variant}'
    original = PROBLEMS[v.source_row - 1]
    assert variation.mask_numbers(v.question) == variation.mask_numbers(original[0])
    assert v.question != original[0]
  for row in (1, 2, 3):
    numbers = [v.variant for v in found if v.source_row == row]
    assert numbers == list(range(1, len(numbers) + 1)) and 1 < len(numbers) <= 20


def test_no_variant_is_a_question_of_another_split():
  masks = {variation.mask_numbers(q) for q, _, _ in OTHERS}
  assert not masks & {variation.mask_numbers(v.question) for v in make()}
  # The tank is in train too, with other numbers, words and spaces: without the test it comes back.
  without = variation.Perturbed(make_records(PROBLEMS), [], PerturbedConfig(), say=quiet)
  assert masks & {variation.mask_numbers(v.question) for v in without}


def test_a_repeated_question_is_one_template():
  problems = [PROBLEMS[0], ('Ann has 50 pens and gives 21 of them to Tom. How many has she left?',
                            ('50-21=29',), '29')]
  assert make(problems=problems).reasons == {
      'template': 1, 'a question of another row, numbers aside': 1}


def test_the_same_config_gives_the_same_and_another_seed_others():
  assert list(make()) == list(make()) != list(make(seed=1))
  few, many = list(make(per_problem=5)), list(make(per_problem=20))
  assert {v.question for v in few} < {v.question for v in many}  # more of the same, not others
  assert list(make(total=7)) == [v for v in many if v.variant <= 3][:3] + [
      v for v in many if v.source_row > 1 and v.variant <= 2]


@pytest.mark.parametrize('sizes, total, quotas', [
    ([5, 5, 5], 9, [3, 3, 3]), ([1, 5, 5], 9, [1, 4, 4]), ([1, 2, 9], 12, [1, 2, 9]),
    ([5, 5, 5], 10, [4, 3, 3]), ([0, 3], 2, [0, 2]), ([4, 1, 4], 4, [2, 1, 1]), ([3], 0, [0])],
    ids=str)
def test_shares_are_as_equal_as_can_be(sizes, total, quotas):
  assert variation.share_out(sizes, total) == quotas


@pytest.mark.parametrize('problems, total', [
    (PROBLEMS, 61), (PROBLEMS[3:6], 1), (PROBLEMS[3:6], 0)])
def test_a_total_that_the_templates_cannot_give_is_told(problems, total):
  with pytest.raises(UserError) as error:
    make(total=total, problems=problems)
  message = str(error.value)
  assert message.startswith(f'data.perturbed.total={total}: the ') and '\n' not in message
  assert 'lower total, or raise variants_per_problem' in message


def test_a_wrong_variant_stops_the_build(monkeypatch):
  monkeypatch.setattr(variants, '_write_number', lambda value, like, pad: str(int(value) + 1))
  with pytest.raises(RuntimeError, match=r'^train.jsonl:1#1: step 1, .*: '):
    list(make())


def test_a_variant_in_another_split_stops_the_build(monkeypatch):
  perturbed = make()
  monkeypatch.setattr(variation, 'mask_numbers', lambda question: next(iter(perturbed._others)))
  with pytest.raises(RuntimeError, match='a question of another split'):
    list(perturbed)


# The TFDS builder.


def test_builder_serves_variants_and_the_other_splits_as_they_are(tmp_path):
  said = []
  dataset = load(tmp_path, said.append)
  again = load(tmp_path, said.append)
  assert len(said) == 1 and said[0].startswith('rim_gsm8k_perturbed: preparing ')
  assert (dataset.name, dataset.fingerprint) == ('rim_gsm8k_perturbed', again.fingerprint)
  expected = list(make(per_problem=10))
  assert list(dataset.splits['train']) == expected == list(again.splits['train'])
  for name, rows in (('valid', OTHERS[1:]), ('test', OTHERS[:1])):
    assert [dataclasses.asdict(r) for r in dataset.splits[name]] == [
        {'question': q, 'steps': s, 'answer': a, 'origin': f'{name}.jsonl:{i}', 'source_row': i,
         'variant': 0} for i, (q, s, a) in enumerate(rows, 1)]
  assert set(make(per_problem=10).describe()) < set(dataset.notes)
  assert f'train: {len(expected)} rows, 0 without steps (rows by number of steps 1: 10, 2: 20)' in (
      dataset.notes)


def test_held_out_rows_give_no_variant(tmp_path):
  """Without a valid file, valid is taken out of train before anything is perturbed."""
  folder = write(tmp_path / 'in', train=PROBLEMS[:3], test=OTHERS)
  dataset = datasets.load_dataset(DataConfig(
      source='gsm8k_perturbed', dir=str(folder), cache_dir=str(tmp_path / 'cache'), num_valid=1),
      quiet)
  rows = {name: {r.source_row for r in dataset.splits[name]} for name in ('train', 'valid')}
  assert len(rows['train']) == 2 and rows['train'] | rows['valid'] == {1, 2, 3}
  assert not rows['train'] & rows['valid']


@pytest.mark.parametrize('fields', [
    {'seed': 1}, {'total': 12}, {'variants_per_problem': 9}, {'step_marks': True}], ids=str)
def test_what_changes_the_data_changes_the_fingerprint(tmp_path, fields):
  first, other = load(tmp_path), load(tmp_path, **fields)
  assert first.fingerprint != other.fingerprint
  assert list(first.splits['train']) != list(other.splits['train'])
  if 'step_marks' in fields:
    for a, b in zip(first.splits['train'], other.splits['train']):
      assert b.steps == tuple(f'<<{s}>>' for s in a.steps)
    assert all(re.fullmatch('<<.*>>', s) for r in other.splits['test'] for s in r.steps)


def test_the_files_alone_are_another_dataset(tmp_path):
  perturbed = load(tmp_path)
  plain = datasets.load_dataset(DataConfig(
      source='gsm8k', dir=str(tmp_path / 'in'), cache_dir=str(tmp_path / 'cache')), quiet)
  assert plain.fingerprint != perturbed.fingerprint
  assert type(plain.splits['train'][0]) is Record
  assert type(perturbed.splits['train'][0]) is records.Variant


def test_progress_is_told_while_a_split_is_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(variation, '_REPORT_SECS', -1.0)
  load(tmp_path, print)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('rim_gsm8k_perturbed: preparing ')
  assert 'rim_gsm8k_perturbed: looking for templates, row 6 of 7' in lines
  assert 'rim_gsm8k_perturbed: writing variant 29 of 30' in lines
