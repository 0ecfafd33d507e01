"""ProsQA: is Sally a hilpus or a sterpus? Problems of that kind, drawn, written and told apart.

A problem is a directed acyclic graph of names and concepts, written as one sentence an edge in
random order, and a question: which of two concepts does a name lead to? The steps are a
shortest path to it. The published valid and test files (Hao et al., "Training Large Language
Models to Reason in a Continuous Latent Space", arXiv 2412.06769) were measured, and the
defaults of `config.ProsqaConfig` are fitted to what was found (docs/appendix/made_data.md).

One thing is other than there, on purpose: the two alternatives are drawn in the same way, each
at the end of a chain that begins at a name of its own, and only then a coin decides which of the
two names is asked about. So nothing that leaves that name out tells the right one.
"""

import collections
from collections.abc import Iterable
import functools
import hashlib
import itertools
import math
import operator
import re

import numpy as np

from rim_jax.config import ProsqaConfig
from rim_jax.data.records import SPLITS, Record
from rim_jax.errors import UserError

NAMES = ('Alex', 'Bob', 'Carol', 'Davis', 'Eva', 'Fae', 'Gabriel', 'Jack', 'Max', 'Oliver',
         'Polly', 'Rex', 'Sally', 'Sam', 'Stella', 'Tom', 'Wren')
CONCEPTS = tuple(f'{stem}pus' for stem in (
    'bom boom brim chor dum fel fom ger gor grim gwom hil im jel jom ker lem lor num quim rem rom '
    'ror scrom shum ster stor ter tim tum vum wor wum yer yim yum zhor zum').split())
# Everything else that a problem is written in.
FUNCTION_WORDS = ('Every', 'Is', 'is', 'a', 'or', '.', '?')
_FACT = re.compile(r'(?:Every )?(\w+) is an? (\w+)\. ')
_ASKED = re.compile(r'Is (\w+) an? (\w+) or (\w+)\?')
_NUM_ROUNDS = 8  # of refinement behind a key
_MAX_DRAWS = 10_000  # graphs for one problem
_FAULTS = ('in the files given but for names', 'kept for other splits',
           'with facts that were there')
# Of twenty: below the first, parents are not what the second root reaches; below the second, not
# what the first reaches; else any.
_SIDES = (8, 16)


class Words:
  """Draws from raw Philox words: numpy does not promise that its generators' draws stay."""

  def __init__(self, *seed: int):
    bits = np.random.Philox(np.random.SeedSequence(seed))
    self._words = (word for _ in itertools.count() for word in bits.random_raw(256).tolist())

  def draw(self, count: int) -> int:
    """A whole number below `count`."""
    return next(self._words) * count >> 64

  def choose(self, weights: dict):
    """A key, with a probability in proportion to its weight, a whole number."""
    at = self.draw(sum(weights.values()))
    return next(key for key, end in zip(weights, itertools.accumulate(weights.values()))
                if at < end)

  def shuffle(self, values) -> list:
    """All values in random order."""
    values = list(values)
    for i in range(len(values) - 1, 0, -1):
      j = self.draw(i + 1)
      values[i], values[j] = values[j], values[i]
    return values

  def draw_poisson(self, rate: float, least: int = 0) -> int:
    """A number of Poisson's distribution, given that it is at least `least` (0 or 1)."""
    left = self.draw(1 << 53) / (1 << 53) * (1 - math.exp(-rate) * least)
    chance, n = math.exp(-rate), 0
    for n in itertools.count():
      left -= chance if n >= least else 0.0
      if left < 0 or n > 20 * (1 + rate):
        return n
      chance *= rate / (n + 1)


def draw_graph(config: ProsqaConfig, words: Words) -> tuple[list[list[int]], int] | None:
  """(parents of every node, number of names): the names come first and have none.

  None where every node that could be a parent has all the children that it may have.
  """
  size = config.min_nodes + words.draw(config.max_nodes - config.min_nodes + 1)
  most = min(size - 2 * config.min_hops, config.num_names)  # the chains need their concepts
  num_names = min(2 + words.draw_poisson(config.extra_names), most)
  parents = [[] for _ in range(num_names)]
  reached_by = [1, 2] + [0] * (num_names - 2)  # bits: the two roots of the alternatives
  depth = [0] * num_names
  num_children = [0] * size
  for node in range(num_names, size):
    side = words.draw(20)
    without = 2 if side < _SIDES[0] else 1 if side < _SIDES[1] else 0
    # Deep nodes are preferred, or chains would be short; other names are seldom taken.
    weights = {i: 5 * depth[i] + (1 if 2 <= i < num_names else 2)
               for i in range(node) if not reached_by[i] & without
               and num_children[i] < (config.max_children or size)}
    if not weights:
      return None
    mine = []
    for _ in range(min(words.draw_poisson(config.parent_rate, 1), len(weights))):
      mine.append(words.choose(weights))
      num_children[mine[-1]] += 1
      del weights[mine[-1]]
    parents.append(mine)
    reached_by.append(functools.reduce(operator.or_, (reached_by[i] for i in mine)))
    depth.append(1 + min(depth[i] for i in mine))
  return parents, num_names


def measure_distances(parents, root: int) -> list[float]:
  """Edges from `root` to every node, inf where there is no way; parents come before children."""
  distance = []
  for node, mine in enumerate(parents):
    distance.append(
        0 if node == root else 1 + min((distance[i] for i in mine), default=math.inf))
  return distance


def draw_problem(config: ProsqaConfig, words: Words) -> tuple[str, tuple[str, ...], str] | None:
  """(question, steps, answer), or None where the graph drawn holds no such problem."""
  graph = draw_graph(config, words)
  if not graph:
    return None
  parents, num_names = graph
  num_facts = sum(map(len, parents))
  inner = {i for mine in parents for i in mine}
  if num_facts > config.max_facts or not inner.issuperset(range(num_names)):
    return None
  distances = [measure_distances(parents, root) for root in (0, 1)]
  ends = [[node for node in range(num_names, len(parents)) if node not in inner
           and config.min_hops <= mine[node] <= config.max_hops and math.isinf(other[node])]
          for mine, other in (distances, distances[::-1])]
  if not all(ends):
    return None
  alternatives = []
  for some, mine in zip(ends, distances):
    farthest = [node for node in some if mine[node] == max(mine[i] for i in some)]
    alternatives.append(farthest[words.draw(len(farthest))])
  root = words.draw(2)  # the coin: all that was drawn so far treats both alike
  path = [alternatives[root]]
  while path[-1] != root:
    before = distances[root][path[-1]] - 1
    steps_back = [i for i in parents[path[-1]] if distances[root][i] == before]
    path.append(steps_back[words.draw(len(steps_back))])
  text = (words.shuffle(NAMES[:config.num_names])[:num_names]
          + words.shuffle(CONCEPTS[:config.num_concepts])[:len(parents) - num_names])

  def write(start, end):
    return f'{"" if start < num_names else "Every "}{text[start]} is a {text[end]}.'
  facts = [write(i, node) for node, mine in enumerate(parents) for i in mine]
  first, second = (text[node] for node in words.shuffle(alternatives))
  asked = f'Is {text[root]} a {first} or {second}?'
  question = ' '.join([*words.shuffle(facts), asked])
  steps = ([write(*edge) for edge in itertools.pairwise(reversed(path))]
           if config.steps == 'path' else words.shuffle(facts))
  return question, tuple(steps), write(root, alternatives[root])


def parse_question(question: str):
  """(facts as pairs, the name asked about, the two alternatives).

  Raises: ValueError where it is not of ProsQA's form.
  """
  facts, end = [], 0
  while found := _FACT.match(question, end):
    facts.append(found.groups())
    end = found.end()
  asked = _ASKED.fullmatch(question, end)
  if not facts or not asked:
    raise ValueError(f"'{question[end:][:40]}' is neither 'Every X is a Y.' nor 'Is N a X or Y?'")
  return facts, asked[1], asked.groups()[1:]


def compute_key(question: str) -> int:
  """The same for any two problems that differ in names and the order of sentences alone.

  Colours of the nodes, refined by those of their neighbours (Weisfeiler and Leman). Problems that
  are not the same may share a key too, which costs a draw and nothing else.
  """
  facts, name, alternatives = parse_question(question)
  before, after = collections.defaultdict(list), collections.defaultdict(list)
  for start, end in set(facts):
    after[start].append(end)
    before[end].append(start)
  nodes = sorted(before.keys() | after.keys() | {name, *alternatives})
  colours = {node: (node == name) + 2 * (node in alternatives) for node in nodes}
  for _ in range(_NUM_ROUNDS):
    colours = {node: _mix([colours[node], sorted(colours[i] for i in before[node]),
                           sorted(colours[i] for i in after[node])]) for node in nodes}
  return _mix(sorted(colours.values()))


def _mix(numbers):
  return int.from_bytes(hashlib.blake2b(str(numbers).encode(), digest_size=8).digest())


class Problems:
  """Generated splits, none of which holds a problem of another split or of the files given.

  What a problem is, names aside, decides which split it may be in, so that all splits are drawn
  from the same graphs. A pure function of the config and of the files' questions.
  """

  def __init__(self, config: ProsqaConfig, given: Iterable[Record]):
    self._config = config
    self._given = set()  # keys of the files' problems
    self._facts = set()  # sets of facts that are taken
    for record in given:
      try:
        self._given.add(compute_key(record.question))
      except ValueError as error:
        raise UserError(f'{record.origin}: {error}; ProsQA files alone can stand beside generated '
                        "problems, or use data.source='gsm8k'") from None

  def draw_split(self, name: str, size: int) -> tuple[list[Record], str]:
    """The records of a split, and one line on how they were drawn.

    Raises: UserError where graphs of the config's kind hold no further problem.
    """
    number, found, again, kinds = SPLITS.index(name), [], collections.Counter(), set()
    for i in range(size):
      words = Words(self._config.seed, number, i)
      for _ in range(_MAX_DRAWS):
        problem = draw_problem(self._config, words)
        key = problem and compute_key(problem[0])
        if problem and not (reason := self._find_fault(problem[0], key, number)):
          break
        again[reason if problem else 'without two such chains'] += 1
      else:
        raise UserError(
            f'data.prosqa: no problem {i + 1} of {size} for {name} in {_MAX_DRAWS:,} graphs; '
            'widen min_nodes..max_nodes or min_hops..max_hops, raise max_facts, '
            'max_children, num_names or extra_names, or lower '
            f'num_{name}')
      self._facts.add(_get_facts(problem[0]))
      kinds.add(key)
      found.append(Record(*problem, origin=f'rim_prosqa/{name}:{i + 1}'))
    # Few kinds: another split, which has none of them, may be easier or harder by chance.
    return found, (f'{name}: {size} problems drawn; {len(kinds)} kinds of graph; graphs drawn '
                   'again: ') + ', '.join(
        f'{again[reason]} {reason}' for reason in ('without two such chains', *_FAULTS))

  def _find_fault(self, question, key, number):
    """Why a problem cannot be in a split; '' if it can."""
    home = max(0, key % 8 - 5)  # the split that may hold it: one in eight is valid's, one test's
    faults = (key in self._given, home != number, _get_facts(question) in self._facts)
    return next(itertools.compress(_FAULTS, faults), '')


def _get_facts(question):
  return frozenset(parse_question(question)[0])
