"""The text of a compiled program: its computations and instructions, and how often each runs."""

import collections
import dataclasses
import functools
import math
import re

_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2,
          'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?')
_COMPUTATION = re.compile(
    r'(?ms)^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}(?:$|, execution_thread=)')
_BEGIN = re.compile(r'(?m)^  (ROOT )?%?([\w.\-]+) = ')
_NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
  dtype: str
  shape: tuple[int, ...]
  in_hbm: bool

  @property
  def num_bytes(self):
    return math.prod(self.shape) * _BYTES.get(self.dtype, 0)  # 0: a token, an opaque handle


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  op: str
  type: str
  operands: tuple[str, ...]
  inside: str  # of the parentheses: operands, a constant's value, a parameter's number
  attributes: str
  is_root: bool
  cached_bytes: float = 0.0  # a result that is no larger is taken to stay in a cache

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    found = [Array(dtype, tuple(map(int, filter(None, dims.split(',')))),
                   re.search(r'S\([1-9]', layout or '') is None)
             for dtype, dims, layout in _ARRAY.findall(self.type)]
    return tuple(dataclasses.replace(a, in_hbm=a.in_hbm and a.num_bytes > self.cached_bytes)
                 for a in found)

  def find(self, pattern: str) -> str | None:
    """What the one group of a pattern matches in the attributes, or None."""
    found = re.search(pattern, self.attributes)
    return found and found[1]

  def get(self, key: str) -> str | None:
    """The computation that an attribute names, or None."""
    return self.find(rf'\b{key}=%([\w.\-]+)')


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """A module's text -> (its computations by name, each by instruction; the entry's name)."""
  computations, entry = {}, ''
  for is_entry, name, body in _COMPUTATION.findall(text):
    starts = [head.start() for head in _BEGIN.finditer(body)]
    # An attribute may hold a line break.
    found = [_parse_instruction(body[start:end].replace('\n', ''))
             for start, end in zip(starts, [*starts[1:], None])]
    computations[name] = {i.name: i for i in found}
    entry = name if is_entry else entry
  return computations, entry


def _find_close(text, start):
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[i], 0)
    if not depth:
      return i
  raise ValueError(f'unbalanced: {text[start:start + 80]}')


def _parse_instruction(line):
  head = _BEGIN.match(line)
  assert head is not None  # `parse` has asked
  at = head.end()
  end = _find_close(line, at) + 1 if line[at] == '(' else line.index(' ', at)
  opening = line.index('(', end)
  close = _find_close(line, opening)
  inside = line[opening + 1:close]
  return Instruction(head[2], line[end:opening].strip(), line[at:end],
                     tuple(_NAME.findall(inside)), inside, line[close + 1:], bool(head[1]))


def get_root(computation):
  return next((i for i in computation.values() if i.is_root), list(computation.values())[-1])


# ---- How often each computation runs ----


def count_trips(loop: Instruction, caller, computations) -> int | None:
  """Trip count of a `while`, as the compiler states it or by its counter; None if neither tells."""
  stated = loop.find(r'"known_trip_count":\{"n":"(\d+)"')
  if stated:
    return int(stated)
  condition, body = computations[loop.get('condition')], computations[loop.get('body')]
  start = caller.get(loop.operands[0])
  compare, args = _unfold(get_root(condition), condition, computations)
  if compare is None or compare.op != 'compare' or 'direction=LT' not in compare.attributes:
    return None

  def evaluate(instruction):  # a constant, or one that is carried into the loop and never changed
    if instruction is not None and instruction.op == 'constant':
      return int(instruction.inside) if instruction.inside.isdigit() else None
    index = _get_index(instruction)
    if index is None or start is None or start.op != 'tuple':
      return None
    source = caller.get(start.operands[index])
    while source is not None and source.op in ('copy', 'bitcast'):
      source = caller.get(source.operands[0])
    return evaluate(source) if source is not None and source.op == 'constant' else None
  counter, limit = args
  first, last = evaluate(counter), evaluate(limit)
  index = _get_index(counter)
  if index is None or first is None or last is None:
    return None
  update, args = _unfold(body.get(get_root(body).operands[index]), body, computations)
  if update is None or update.op != 'add':
    return None
  steps = [int(a.inside) for a in args if a is not None and a.op == 'constant']
  return max(0, -(-(last - first) // steps[0])) if len(steps) == 1 and steps[0] > 0 else None


def _get_index(instruction):
  """Which element of a loop's state this is, or None."""
  if instruction is None or instruction.op != 'get-tuple-element':
    return None
  return int(instruction.find(r'index=(\d+)'))  # every such instruction has one


def _unfold(instruction, computation, computations):
  """(an instruction, its operands), looking into a fusion that holds nothing else."""
  while instruction is not None and instruction.op in ('copy', 'bitcast'):
    instruction = computation.get(instruction.operands[0])
  if instruction is None:
    return None, []
  operands = [computation.get(name) for name in instruction.operands]
  if instruction.op != 'fusion':
    return instruction, operands
  inner = computations[instruction.get('calls')]
  root = get_root(inner)
  return root, [operands[int(i.inside)] if i is not None and i.op == 'parameter' else i
                for i in map(inner.get, root.operands)]


def count_runs(computations, entry, unknown_trips: float = 1
               ) -> tuple[dict[str, float], dict[str, str], list[float]]:
  """(runs of every computation, of those inside fusions the one around, the turns of each loop of
  unknown length)."""
  runs: dict[str, float] = collections.defaultdict(float)
  fused, unknown = {}, []

  def visit(name, times, around=''):
    runs[name] += times
    if around:
      fused[name] = around
    for i in computations[name].values():
      if i.op == 'while':
        trips = count_trips(i, computations[name], computations)
        if trips is None:
          trips = unknown_trips
          unknown.append(times * trips)
        visit(i.get('body'), times * trips, around)
      elif i.op in ('fusion', 'call', 'async-start'):
        called = i.get('calls') or i.get('to_apply')
        visit(called, times, around or ('' if i.op == 'call' else name))
      elif i.op == 'conditional':  # every branch: an upper bound
        listed = i.find(r'branch_computations=\{([^}]*)\}')
        for branch in _NAME.findall(listed) if listed else filter(None, (
            i.get('true_computation'), i.get('false_computation'))):
          visit(branch, times, around)
  visit(entry, 1)
  return runs, fused, unknown
