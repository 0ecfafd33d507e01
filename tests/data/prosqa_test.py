"""A ProsQA problem has one answer that only a search finds, and no split holds another's problem.

What a problem says is read and searched here by code that shares nothing with what drew it.
"""

import collections
import itertools
import json
import math
import types

import numpy as np
import pytest

from configs import presets
from rim_jax import config as config_lib
from rim_jax.config import DataConfig, ProsqaConfig
from rim_jax.config import stages as stages_lib
from rim_jax.data import datasets, prosqa
from rim_jax.errors import UserError
from rim_jax.methods import icot
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from rim_jax.results import judge
from tests import support

SMALL = {'min_nodes': 8, 'max_nodes': 10, 'min_hops': 2, 'max_hops': 3, 'parent_rate': 0.9,
         'extra_names': 0.0, 'max_facts': 15}
TINY = {'min_nodes': 7, 'max_nodes': 7, 'min_hops': 2, 'max_hops': 2, 'extra_names': 0.0}


def quiet(_):
  pass


def draw(size, name='train', **fields):
  return prosqa.Problems(ProsqaConfig(**fields), ()).draw_split(name, size)


def read(record):
  """(edges, name asked about, right concept, wrong concept, steps as edges) of a record's text."""
  def split(sentence):
    words = sentence.split()
    assert words[-3:-1] == ['is', 'a'], sentence
    assert words[:-3] in ([words[-4]], ['Every', words[-4]]), sentence
    assert (words[0] == 'Every') == words[-4].islower(), sentence
    return words[-4], words[-1]
  *facts, asked = record.question.split('. ')
  words = asked.removesuffix('?').split()
  assert asked.endswith('?') and (words[0], words[2], words[4]) == ('Is', 'a', 'or'), asked
  name, right = split(record.answer.removesuffix('.'))
  assert name == words[1] and right in (words[3], words[5])
  wrong, = {words[3], words[5]} - {right}
  assert all(f'{step} ' in record.question for step in record.steps)
  steps = [split(step.removesuffix('.')) for step in record.steps]
  return [split(fact) for fact in facts], name, right, wrong, steps


def walk(edges, start):
  """Node -> fewest edges from `start`, by following all edges at once."""
  found, front, far = {}, {start}, 0
  while front:
    found |= dict.fromkeys(front, far)
    front = {end for begin, end in edges if begin in front} - found.keys()
    far += 1
  return found


NO_CHOICE = SMALL | {'max_children': 1, 'extra_names': 1.0, 'num_names': 3}
CONFIGS = {'small': SMALL, 'nothing to choose': NO_CHOICE, 'published size': {},
           'distractors': SMALL | {'extra_names': 1.0, 'min_hops': 1, 'num_names': 4,
                                   'num_concepts': 8, 'min_nodes': 6}}


@pytest.mark.parametrize('fields', CONFIGS.values(), ids=CONFIGS)
def test_every_problem_has_one_answer_and_its_steps_lead_there(fields):
  config = ProsqaConfig(**fields)
  records, _ = draw(300, **fields)
  hops, first, extra, begins = collections.Counter(), 0, 0, 0
  for record in records:
    edges, name, right, wrong, steps = read(record)
    nodes = set(itertools.chain(*edges))
    names = {node for node in nodes if node[0].isupper()}
    assert max(collections.Counter(begin for begin, _ in edges).values()) <= (
        config.max_children or len(edges))
    assert len(set(edges)) == len(edges) <= config.max_facts
    assert config.min_nodes <= len(nodes) <= config.max_nodes
    assert names == nodes - {end for _, end in edges}  # the roots, and they alone
    assert names <= set(prosqa.NAMES[:config.num_names])
    assert nodes - names <= set(prosqa.CONCEPTS[:config.num_concepts])
    for node in nodes:  # no cycle: nothing leads back to itself
      assert not any(node in walk(edges, end) for begin, end in edges if begin == node)
    reached = walk(edges, name)
    assert right in reached and wrong not in reached
    assert [name, *(end for _, end in steps)] == [*(begin for begin, _ in steps), right]
    assert config.min_hops <= len(steps) == reached[right] <= config.max_hops
    assert not {right, wrong} & {begin for begin, _ in edges}
    # Of another name the same question has the other answer, just as far away.
    twins = [walk(edges, other) for other in names - {name}]
    assert any(right not in twin and config.min_hops <= twin.get(wrong, 0) <= config.max_hops
               for twin in twins)
    hops[len(steps)] += 1
    first += record.question.rindex(f' {right}') < record.question.rindex(f' {wrong}')
    extra += len(names) > 2
    begins += edges[0][0] in names
  assert set(hops) >= set(range(config.min_hops, min(config.max_hops, 5) + 1))
  assert 115 < first < 185  # alternatives are in either order: 150 +- 4 standard deviations
  assert 0 < begins < 220  # sentences are in any order, too
  assert (extra > 20) == (config.extra_names > 0)


def test_practice_in_reading_writes_every_sentence_again():
  records, _ = draw(200, **SMALL, steps='facts')
  as_asked = as_drawn = 0
  for record in records:
    sentences = [f'{sentence}.' for sentence in record.question.split('. ')[:-1]]
    assert sorted(record.steps) == sorted(sentences)
    as_asked += list(record.steps) == sentences
    edges, name, right, _, steps = read(record)
    assert right in walk(edges, name)
    as_drawn += all(begin != end for i, (_, end) in enumerate(steps) for begin, _ in steps[:i])
  # In an order of its own: 1 of 720 by chance, or fewer; nor from the names to the ends.
  assert as_asked < 5 and as_drawn < 20


def find_parents(concept, way):
  return [begin for begin, end in way.edges if end == concept]


# Rules that do not search from the name asked about; the alternative that has more is chosen.
SHORTCUTS = {
    'occurs more often': lambda c, way: way.text.count(c),
    'occurs later': lambda c, way: max(i for i, word in enumerate(way.text) if word == c),
    'occurs later for the first time': lambda c, way: way.text.index(c),
    'is far from its nearest name': lambda c, way: min(
        way.far[n][c] for n in way.names if c in way.far[n]),
    'has more ancestors': lambda c, way: sum(c in far for far in way.far.values()),
    'has more names above it': lambda c, way: sum(c in way.far[n] for n in way.names),
    'has a parent that occurs more often': lambda c, way: max(
        map(way.text.count, find_parents(c, way))),
    'is late in the alphabet': lambda c, way: prosqa.CONCEPTS.index(c),
    'is asked last': lambda c, way: way.question.rindex(f' {c}')}


def score_shortcuts(records):
  """How often each rule finds the right concept; a tie counts half."""
  scores = collections.Counter()
  for record in records:
    edges, _, right, wrong, _ = read(record)
    nodes = set(itertools.chain(*edges))
    way = types.SimpleNamespace(
        question=record.question, edges=edges, text=list(itertools.chain(*edges)),
        names=[node for node in nodes if node[0].isupper()],
        far={node: walk(edges, node) for node in nodes})
    for rule, measure in SHORTCUTS.items():
      a, b = measure(right, way), measure(wrong, way)
      scores[rule] += 0.5 if a == b else float(a > b)
  return {rule: score / len(records) for rule, score in scores.items()}


@pytest.mark.parametrize('fields', [
    pytest.param(SMALL, id='small'),
    pytest.param({}, id='published size', marks=pytest.mark.slow)])
def test_no_shortcut_finds_the_answer(fields):
  records, _ = draw(1500, **fields)
  scores = score_shortcuts(records)
  assert scores.keys() == SHORTCUTS.keys()
  for rule, score in scores.items():
    assert abs(score - 0.5) < 0.05, (rule, score)  # 3.9 standard deviations


def test_problems_are_a_function_of_the_config():
  first, note = draw(30, **SMALL)
  assert (first, note) == draw(30, **SMALL)
  assert draw(20, **SMALL)[0] == first[:20]  # more are more of the same
  for other in (draw(30, seed=1, **SMALL), draw(30, 'valid', **SMALL)):
    assert not {r.question for r in first} & {r.question for r in other[0]}
  # The very words, so that a changed generator cannot pass unnoticed: raise VERSION.
  assert first[0].question == (
      'Eva is a yimpus. Every lorpus is a lempus. Every rempus is a worpus. Every lorpus is a '
      'gwompus. Fae is a rempus. Every rempus is a lorpus. Every yimpus is a gerpus. Is Eva a '
      'lempus or gerpus?')
  assert draw(1)[0][0].steps == (
      'Max is a zhorpus.', 'Every zhorpus is a vumpus.', 'Every vumpus is a timpus.')


def test_no_facts_come_twice():
  fields = TINY | {'num_names': 2, 'num_concepts': 5, 'max_facts': 6}
  records, note = draw(400, **fields)
  assert len({frozenset(read(r)[0]) for r in records}) == 400
  assert int(note.removesuffix(' with facts that were there').rsplit(' ', 1)[1]) > 10


def canonicalize(record):
  """The least of all texts that renaming gives: equal for the same problem, and for it alone."""
  edges, name, right, wrong, _ = read(record)
  nodes = sorted(set(itertools.chain(*edges)) - {name, right, wrong})
  return min(tuple(sorted((table[a], table[b]) for a, b in edges)) for table in (
      {name: -1, right: -2, wrong: -3} | dict(zip(order, range(len(nodes))))
      for order in itertools.permutations(nodes)))


def test_splits_share_no_problem_even_with_other_names(tmp_path):
  """Graphs so small that problems would come again by the dozen."""
  config = ProsqaConfig(**TINY, num_train=60, num_valid=20, num_test=20)
  dataset = datasets.load_dataset(DataConfig(
      source='prosqa', cache_dir=str(tmp_path), prosqa=config), quiet)
  assert dataset.name == 'rim_prosqa'
  forms = {name: [canonicalize(r) for r in split] for name, split in dataset.splits.items()}
  assert [len(f) for f in forms.values()] == [60, 20, 20]
  for a, b in itertools.combinations(forms, 2):
    assert not [f for f in forms[a] if f in forms[b]], (a, b)
  texts = [frozenset(read(r)[0]) for split in dataset.splits.values() for r in split]
  assert len(set(texts)) == len(texts)
  assert all(len(set(f)) < len(f) for f in forms.values())  # though each has some more than once
  note, = (n for n in dataset.notes if n.startswith('test: 20 problems drawn; '))
  assert int(note.split(', ')[2].removesuffix(' kept for other splits')) > 40
  kinds = {prosqa.compute_key(r.question) for r in dataset.splits['test']}
  assert 1 < len(kinds) < 20 and f'; {len(kinds)} kinds of graph; ' in note


def rename(record, number):
  """The same problem with other words, its sentences and alternatives in reverse."""
  *facts, asked = record.question.split('. ')
  start, x, _, y = asked.removesuffix('?').rsplit(' ', 3)
  question = '. '.join([*facts[::-1], f'{start} {y} or {x}?'])

  def change(text):
    for words in (prosqa.NAMES, prosqa.CONCEPTS):
      table = dict(zip(words, words[number:] + words[:number]))
      text = ' '.join(table.get(word.rstrip('.?'), word.rstrip('.?')) + word[
          len(word.rstrip('.?')):] for word in text.split(' '))
    return text
  return {'question': change(question), 'steps': list(map(change, record.steps)),
          'answer': change(record.answer)}


@pytest.mark.parametrize('fields', [SMALL, {}], ids=['small', 'published size'])
def test_a_key_sees_through_names_and_order_and_not_through_facts(fields):
  for record in draw(20, **fields)[0]:
    key = prosqa.compute_key(record.question)
    assert prosqa.compute_key(rename(record, 5)['question']) == key
    *facts, asked = record.question.split('. ')
    others = {'. '.join([*facts[:i], *facts[i + 1:], asked]) for i in range(len(facts))}
    assert key not in {prosqa.compute_key(question) for question in others}


def test_a_key_sees_where_ways_part():
  """Every node has the same ancestors in both: who shares a child's parent is the difference."""
  asked = ' Is Tom a vumpus or wumpus?'
  start = 'Tom is a lempus. Tom is a numpus. Every lempus is a vumpus. '
  a, b = (prosqa.compute_key(start + f'Every {concept} is a yumpus.' + asked)
          for concept in ('lempus', 'numpus'))
  assert a != b


def test_keys_part_problems_as_renaming_does():
  records = draw(150, **TINY)[0]
  pairs = {(prosqa.compute_key(r.question), canonicalize(r)) for r in records}
  assert len({key for key, _ in pairs}) == len({form for _, form in pairs}) == len(pairs) < 120


def write(folder, **splits):
  folder.mkdir()
  for name, rows in splits.items():
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder)


def test_problems_of_given_files_are_never_drawn(tmp_path):
  """Files that hold what would be drawn, under other names: it is drawn again, the rest is not."""
  alone, _ = draw(25, **SMALL)
  rows = [rename(record, 3) for record in alone[:6]]
  folder = write(tmp_path / 'in', valid=rows[:2], test=rows[2:])
  config = DataConfig(source='prosqa', dir=folder, cache_dir=str(tmp_path / 'cache'),
                      prosqa=ProsqaConfig(**SMALL, num_train=25))
  dataset = datasets.load_dataset(config, quiet)
  for name, some in (('valid', rows[:2]), ('test', rows[2:])):
    assert [(r.question, list(r.steps), r.answer) for r in dataset.splits[name]] == [
        tuple(row.values()) for row in some]
    assert dataset.splits[name][0].origin == f'{name}.jsonl:1'
  train = list(dataset.splits['train'])
  assert train[6:] == alone[6:]
  keys = {prosqa.compute_key(row['question']) for row in rows}
  assert not keys & {prosqa.compute_key(r.question) for r in train}
  assert not {r.question for r in train[:6]} & {r.question for r in alone[:6]}
  note, = (n for n in dataset.notes if n.startswith('train: 25 problems drawn; '))
  assert ', 6 in the files given but for names, ' in note
  # Another file is another dataset, and all files are read where all are there.
  folder = write(tmp_path / 'all', train=rows[:3], valid=rows[3:4], test=rows[4:])
  whole = datasets.load_dataset(DataConfig(
      source='prosqa', dir=folder, cache_dir=str(tmp_path / 'cache'), prosqa=config.prosqa), quiet)
  assert [len(s) for s in whole.splits.values()] == [3, 1, 2]
  assert whole.fingerprint != dataset.fingerprint


def test_what_cannot_be_drawn_is_told_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(prosqa, '_MAX_DRAWS', 200)
  with pytest.raises(UserError, match='no problem .* for train in 200 graphs; widen') as error:
    draw(300, **TINY, num_names=2, num_concepts=4, max_facts=4)
  assert '\n' not in str(error.value)
  for rows, what in (
      ([{'question': 'What is 1+1?', 'steps': [], 'answer': '2'}],
       "test.jsonl:1: 'What is 1.1.' is neither 'Every X is a Y.' nor"),
      ([{'question': 'Tom is a lempus. Is Tom a lempus?', 'steps': [], 'answer': '2'}],
       "test.jsonl:1: 'Is Tom a lempus.' is neither"),
      (None, 'no train, valid or test file there'), ('folder', 'no such directory')):
    folder = tmp_path / what[:20].replace('/', '')
    if rows != 'folder':
      write(folder, **({'test': rows} if rows else {'other': []}))
    with pytest.raises(UserError, match=what) as error:
      datasets.load_dataset(DataConfig(
          source='prosqa', dir=str(folder), cache_dir=str(tmp_path / 'cache'),
          prosqa=ProsqaConfig(**SMALL)), quiet)
    assert '\n' not in str(error.value) and '; ' in str(error.value)


# The presets.


@pytest.mark.parametrize('method', ['rim', 'direct', 'pause', 'cot', 'icot', 'coconut'])
@pytest.mark.parametrize('preset', ['prosqa_small', 'prosqa'])
def test_a_preset_has_room_for_what_it_draws(preset, method):
  """Question, answer and row, in every stage; a small question has at most 100 tokens."""
  whole = config_lib.parse_config(presets.make(method, preset))
  records, _ = prosqa.Problems(whole.data.prosqa, ()).draw_split('train', 60)
  for _, config in stages_lib.make_stages(whole):
    codec = support.make_codec(config)
    for record in records:
      encoded = codec.encode(record)
      assert len(encoded.question) == len(record.question.replace('.', ' .').replace(
          '?', ' ?').split())
      example = codec.lay_out(encoded)
      assert layout_lib.count_example(example, config.layout)[0] <= config.layout.row_tokens
      assert preset == 'prosqa' or len(encoded.question) <= 100
      answer = example.readouts[-1]
      assert len(answer.target) <= config.eval.max_new_tokens
      assert judge.parse_answer(codec.tokenizer.decode(answer.target), config) == record.answer


@pytest.mark.parametrize('preset', ['prosqa_small', 'prosqa_walk', 'prosqa'])
def test_icot_has_a_good_part_of_its_budget_without_a_chain(preset):
  config = config_lib.parse_config(presets.make('icot', preset))
  codec = support.make_codec(config)
  records, _ = prosqa.Problems(config.data.prosqa, ()).draw_split('train', 60)
  for record in records:  # the arithmetic of the preset's comment
    chain = len(codec.lay_out(codec.encode(record)).readouts[0].target) - len(
        codec.tokenizer.encode(record.answer)) - 1
    assert chain == 7 * len(record.steps) - 1
  longest = 7 * config.data.prosqa.max_hops - 1
  count = config.data.prosqa.num_train
  epochs = config.train.num_epochs or config.train.num_examples / count
  levels = np.concatenate([icot.compute_levels(epoch, count, min(
      longest, config.icot.remove_all_beyond_tokens), config.icot) for epoch in range(
          math.ceil(epochs))])[:round(epochs * count)]
  held, bare = (np.mean(levels == level) for level in (order.HELD, order.ALL))
  assert 0.2 < held < 0.3 and 0.2 < bare < 0.3
  written = levels[(levels != order.HELD) & (levels != order.ALL)]
  assert set(written) == set(range(longest))  # one after the other, to the longest chain's last


@pytest.mark.parametrize('preset, thoughts', [('prosqa_small', 3), ('prosqa', 6)])
def test_coconut_has_a_thought_for_every_hop(preset, thoughts):
  config = config_lib.parse_config(presets.make('coconut', preset))
  assert thoughts == config.data.prosqa.max_hops
  stages = [stage for _, stage in stages_lib.make_stages(config)]
  assert [s.layout.skip_steps for s in stages] == [*range(thoughts + 1), -1]
  assert [s.layout.num_blocks * s.layout.block_tokens for s in stages] == [
      *range(thoughts + 1), thoughts]
  budgets = [s.train.num_examples or s.train.num_epochs for s in stages]
  assert sum(budgets) == pytest.approx(config.train.num_examples or config.train.num_epochs)
  assert budgets[-1] == pytest.approx(0.3 * sum(budgets))
  assert preset == 'prosqa_small' or budgets == pytest.approx([5.0] * 7 + [15.0])
