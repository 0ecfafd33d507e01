"""What a run will train on, as values to show: sizes of each split, and laid-out examples.

Nothing here is trained on; the same functions lay out the rows of a run.
"""

from collections.abc import Iterable, Sequence
import dataclasses

import numpy as np

from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import source as source_lib
from rim_jax.results import judge

# What a piece of an example is: read, a memory block, given to a readout, predicted by it.
QUESTION, BLOCK, GIVEN, PREDICTED = 'question', 'block', 'given', 'predicted'


@dataclasses.dataclass(frozen=True)
class Piece:
  """Some ids of an example, and the text that they are."""
  kind: str
  text: str
  ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Line:
  """A trunk, or one of its readouts."""
  label: str
  pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How large the examples of a split are, and which of them do not fit."""
  split: str
  files: str  # those of the first record and of the last
  num_records: int
  tokens: tuple[int, ...]  # mean, median, most; of those that can be encoded
  dropped: Sequence[str]  # one line for each record that does not fit


def list_lines(record, codec: source_lib.Codec) -> list[Line]:
  """A record as the method lays it out: its trunk, then each readout."""
  example = codec.lay_out(codec.encode(record))
  tokenizer, config = codec.tokenizer, codec.config.layout

  def piece(kind, ids):
    text = tokenizer.decode(ids) + ('<end>' if list(ids[-1:]) == [tokenizer.eos_id] else '')
    return Piece(kind, text, tuple(ids))
  ids = layout_lib.make_trunk((), 1, config, codec.memory_start)
  block = Piece(BLOCK, '<b>' + '<m>' * config.block_tokens + '</b>', tuple(ids))
  lines = [Line('question' + (' and blocks' if example.num_blocks else ''), (
      piece(QUESTION, example.question), *[block] * example.num_blocks))]
  for readout in example.readouts:
    where = f'after block {readout.block}' if readout.block > 0 else (
        'after the question' if not readout.block else 'on its own')
    parts = [piece(GIVEN, readout.prefix)] if readout.prefix else []
    if readout.num_latents:
      ids = (codec.memory_start + 1,) * readout.num_latents
      parts.insert(0, Piece(BLOCK, '<m>' * readout.num_latents, ids))
    lines.append(Line(where, (*parts, piece(PREDICTED, readout.target))))
  if example.parallel:
    lines.append(Line('at its blocks, all at once', (
        piece(PREDICTED, [target for _, target in example.parallel]),)))
  return lines


def measure_split(split, codec: source_lib.Codec, say=print) -> Sizes:
  """Sizes of a split's examples under the codec's method; nothing is refused here."""
  sizes = source_lib.measure(source_lib.load_encoded(split, codec, say), codec)
  _, dropped = source_lib.find_unfit(sizes, split, codec)
  known = sizes[sizes[:, 0] >= 0, 0]
  mean, median, most = (round(float(fn(known))) if len(known) else 0
                        for fn in (np.mean, np.median, np.max))
  names = {split[i].origin.rpartition(':')[0] for i in (0, -1)}
  return Sizes(split.name, ' to '.join(sorted(names)), len(split),
               (mean, median, most), dropped)


def _count_chain(record, codec: source_lib.Codec) -> int:
  """Tokens of what is written before a record's eos; 0 where its steps cannot be encoded."""
  try:
    readouts = codec.lay_out(codec.encode(record)).readouts
  except UserError:
    return 0
  return next(len(r.target) for r in readouts if r.kind == batch_lib.SLOT_ANSWER) - len(
      codec.template.eos)


def describe_misjudged(name: str, records: Iterable[Record], codec: source_lib.Codec) -> list[str]:
  """A line where gold answers of a split are wrong by the run's own rule; none where all are right.

  Each is written as a run is trained to write it, decoded, and judged against itself. One that the
  answer's suffix cuts, for example, could never be answered rightly; nor could one that the
  tokenizer cannot write.
  """
  wrong, cut, template, most = [], [], codec.template, codec.config.eval.max_new_tokens
  count, writes_steps = 0, codec.config.writes_steps
  for record in records:
    count += 1
    try:
      ids = [*codec.tokenizer.encode(record.answer), *template.answer_suffix]
    except UserError:
      wrong.append(record)
      continue
    length = _count_chain(record, codec) if writes_steps else len(ids)
    if length > most:
      cut.append((record, length))
    written = codec.config.layout.answer_prefix * codec.config.facts.learns_steps
    written += codec.tokenizer.decode(ids)
    if not judge.answers_match(judge.parse_answer(written, codec.config) or '', record.answer):
      wrong.append(record)
  what = 'gold chains with their answers' if writes_steps else 'gold answers'
  lines = [f'{name}: {len(cut)} of {count} {what} are longer than eval.max_new_tokens={most}'
           f'{"" if writes_steps else " and can never be right"}; the longest has '
           f'{max(length for _, length in cut)} tokens, the first is {cut[0][0].answer[:40]!r} '
           f'({cut[0][0].origin})'] if cut else []
  return lines if not wrong else [
      *lines, f'{name}: {len(wrong)} of {count} gold answers can never be right: the '
      'tokenizer cannot write them, or written, decoded and judged they differ from '
      f'themselves; the first is {wrong[0].answer[:40]!r} ({wrong[0].origin}); see '
      'layout.answer_suffix']
