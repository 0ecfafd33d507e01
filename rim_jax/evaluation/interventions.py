"""Does the memory do the work? Every control, asked of one checkpoint.

A control changes the keys and values that the prefill left in the cache, and the readouts are
then decoded from it as ever. What each should give if the memory does the work is written down
in `CONTROLS`, before anything is measured, and stands beside the finding.

Where nothing is forced before an answer (an empty prefix), the answer's first token is read at
block k's closing token, whose state the prefill made from the blocks as they were. So that
token is run again, on the changed cache, in place of its copy there; with nothing changed it
comes to the same state. What a readout writes after it sees the changed cache, that copy included.

Donors and means are of questions of equal length, so that every position agrees. Thoughts and
latents, which a method finds for each question, are a block, too: the only one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rim_jax.config import Config, methods
from rim_jax.errors import check
from rim_jax.evaluation import decode as decode_lib
from rim_jax.evaluation import scores
from rim_jax.model import sharding, transformer
from rim_jax.model.lora import fold_in_name
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import order
from rim_jax.results import judge, stats, values

CONTROLS_VERSION = 2  # 1: donor_model shares were of all pairs

# name -> (what is done, what it should give if the memory does the work). `chain` is what that
# means on the chain task modulo 10, in %: no network answers it without its steps, so that chance
# is 10; pairs with equal answers are not counted, so that following the donor leaves the own at 0.
CONTROLS = {
    'as_trained': (
        'nothing is changed', "the run's accuracy; chain: 100"),
    'no_blocks': (
        'K = 0: the answer is read right after the question',
        'chance; with a readout trained there, what direct gives; chain: 10'),
    'swapped': (
        "every block's keys and values come from another question of equal length",
        "the donor's answer, not the own; chain: own 0, donor 100"),
    'averaged': (
        "every block's keys and values are their mean over the other questions of equal length",
        'chance; chain: 10'),
    'permuted': (
        "the values of block k stand under the keys of block k + 1, those of the last under block "
        "1's",
        'chance if each block holds its own result; chain: 10 after stage 1; no change if all '
        'hold the answer, as stage 2 asks'),
    'untrained_rows': (
        'fresh rows of <b>, <m>, </b>, as they are before training; all else as trained',
        'chance if the work depends on these rows; no change: it does not, and the memory may '
        'still do it'),
    'question_hidden': (
        'readouts see the blocks, not the question',
        'no change: the blocks hold what is needed; chain: 100'),
    **{facts.name: facts.control for facts in methods.CONTROLS},
}
SWEEPS = {
    'swapped_block': (
        'block k alone comes from the donor',
        "before block k the own answer; from k on the donor's if it decides, else the own"),
    'swapped_from_block': (
        'block k and all later ones come from the donor',
        "before block k the own answer; after the last the donor's; from k = 1: swapped"),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
  """What the rows of a batch give each other."""
  donor: np.ndarray  # i32[b], the row of another question of equal length; itself without one
  others: np.ndarray  # f32[b, b], row i: 1 / count at the other questions of equal length
  swapped: np.ndarray  # bool[K + 1], blocks that come from the donor


# ---- The controls, on (keys, values) [l, b, t, n, k] ----


def swap(kv, fields: batch_lib.Fields, pairs: Pairs, *unused):
  """The blocks in `pairs.swapped` come from each row's donor."""
  changed = pairs.swapped[fields.block][None, :, :, None, None]
  return jax.tree.map(lambda x: jnp.where(changed, x[:, pairs.donor], x), kv)


def average(kv, fields: batch_lib.Fields, pairs: Pairs, *unused):
  """Every block is its mean over the other rows of equal length, position by position.

  Without the own row: in a mean of few, its own part would still answer.
  """
  changed = (fields.block > 0)[None, :, :, None, None]

  def mix(x):
    mean = jnp.einsum('ij,ljtnk->litnk', pairs.others, x.astype(jnp.float32),
                      precision=jax.lax.Precision.HIGHEST)
    return jnp.where(changed, mean.astype(x.dtype), x)
  return jax.tree.map(mix, kv)


def permute(kv, fields: batch_lib.Fields, pairs: Pairs, config: Config):
  """Block k's values stand under block k + 1's keys, the last block's under block 1's.

  Keys stay: a readout attends to a set, so that moving both would change nothing for it.
  """
  keys, values = kv
  size = layout_lib.get_block_size(config.layout)
  index = jnp.arange(values.shape[2])[None]
  begin = ((fields.example > 0) & (fields.block == 0)).sum(1, keepdims=True)  # after the question
  source = begin + (index - begin - size) % (size * (pairs.swapped.shape[0] - 1))
  source = jnp.where(fields.block > 0, source, index)
  return keys, jnp.take_along_axis(values, source[None, :, :, None, None], axis=2)


# name -> (change, whether readouts see the question)
_CHANGES = {'swapped': (swap, True), 'averaged': (average, True), 'permuted': (permute, True),
            'question_hidden': (lambda kv, *unused: kv, False)}


# 7 parameters: the trunks, and what their cache holds after a change.
def close_again(model, config: Config, blocks: tuple, trunks, kv, fields: batch_lib.Fields,
                sees_question=True):
  """The states [b, r, d] of the closing tokens of `blocks` as the cache kv of `fields` has them.

  Each sees what it saw in the trunk, but for its own copy there, in whose place it stands.
  """
  position_br = decode_lib.get_starts(blocks, trunks, config) - 1
  num_rows, width = fields.positions.shape

  def spread(x):
    return jnp.broadcast_to(x, position_br.shape)
  query = batch_lib.Fields(position_br, spread(trunks.fields.example[:, :1]),
                           spread(jnp.asarray(blocks, jnp.int32)[None]), spread(0))
  visible = batch_lib.visible(query, fields, True, config.layout.bidirectional_blocks)
  visible &= position_br[:, :, None] != fields.positions[:, None, :]
  if not sees_question:
    visible &= (fields.block > 0)[:, None, :]
  itself = jnp.broadcast_to(jnp.eye(len(blocks), dtype=bool)[None],
                            (num_rows, len(blocks), len(blocks)))
  cache = jax.tree.map(
      lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, len(blocks)), (0, 0), (0, 0))), kv)
  tokens_br = jnp.take_along_axis(trunks.tokens, position_br, axis=1)
  inputs_btd = decode_lib.find_inputs(model, config, trunks)  # of several passes the last one's
  if inputs_btd is not None:
    inputs_btd = jnp.take_along_axis(inputs_btd, position_br[..., None], axis=1)
  return model(tokens_br, position_br, jnp.concatenate([visible, itself], -1),
               cache=transformer.Cache(cache, width), inputs_btd=inputs_btd)[0]


# 7 parameters: jit takes what is static and what is traced apart.
def decode_changed(model, config: Config, change, sees_question: bool,
                   readouts: decode_lib.Readouts, trunks, pairs: Pairs):
  """`decode.decode` with a control between prefill and reading, the prefix included.

  Shapes: -> i32[b, r, max_new_tokens], as there.
  """
  x_brd, kv, fields = decode_lib.prefill(model, config, trunks, readouts.blocks)
  kv = change(kv, fields, pairs, config)
  if not readouts.prefix:
    x_brd = close_again(model, config, readouts.blocks, trunks, kv, fields, sees_question)
  layout = dataclasses.replace(config.layout, readout_sees_question=(
      config.layout.readout_sees_question and sees_question))
  config = dataclasses.replace(config, layout=layout)
  filled = decode_lib.read_prefix(model, config, readouts, trunks, (x_brd, kv, fields))
  return decode_lib.read(model, config, readouts, trunks, filled)


# ---- Who is whose donor ----


def make_batches(lengths, size: int, seed: int) -> list[list[list[int]]]:
  """Batches of groups of question numbers; those of a group are equally long, in random order.

  A length with more than `size` questions gives several groups, as even as can be, so that a
  question is alone only where no other is as long.
  """
  groups = []
  for length in sorted(set(lengths)):
    members = np.flatnonzero(np.asarray(lengths) == length)
    members = members[order.permute(len(members), seed, length)]
    groups += [g.tolist() for g in np.array_split(members, -(-len(members) // size))]
  rows = order.pack(np.arange(len(groups)), np.array([[len(g)] for g in groups]), (size,), 1)
  return [[groups[i] for i in row] for row in rows]


def make_pairs(groups, size: int, num_blocks: int) -> Pairs:
  """Each row's donor is the next of its group; rows beyond the groups are padding."""
  counts = [*map(len, groups), *[1] * (size - sum(map(len, groups)))]
  rows = np.split(np.arange(size, dtype=np.int32), np.cumsum(counts)[:-1])
  others = scipy.linalg.block_diag(*(
      (1 - np.eye(count)) / (count - 1) if count > 1 else np.eye(1) for count in counts))
  return Pairs(np.concatenate([np.roll(r, -1) for r in rows]), others.astype(np.float32),
               np.arange(num_blocks + 1) > 0)


class Reader:
  """Decodes questions under a control; compiled once for each control and width."""

  def __init__(self, decoder: decode_lib.Decoder, records):
    self._decoder, network = decoder, decoder.network
    self._questions = [network.codec.encode_question(r.question) for r in records]
    self._decode = network.jit(decode_changed, 3, sharding.get_replicated(network.mesh))
    # Whole batches, however few the questions are: who is whose donor depends on their size.
    self._size = decoder.choose_batch_size(network.config.eval.batch_size)
    self._batches = make_batches([len(q) for q in self._questions], self._size,
                                 network.config.seed)
    # Question -> the one whose blocks it gets; itself where no other is as long.
    self.donors = np.arange(len(records))
    for group in (g for groups in self._batches for g in groups):
      self.donors[group] = np.roll(group, -1)

  def read(self, change, sees_question: bool = True, swapped=None) -> list[list[str]]:
    """The answer of every question after each block; `swapped`: the blocks that a donor gives."""
    network, size = self._decoder.network, self._size
    config, num_blocks = network.config, network.config.eval_blocks
    readouts = self._decoder.make_readouts(
        scores.get_answer_prefix(config, network.codec), scores.get_blocks(num_blocks))
    answers = [None] * len(self._questions)
    for groups in self._batches:
      members = [i for group in groups for i in group]
      pairs = make_pairs(groups, size, num_blocks)
      if swapped is not None:
        pairs = dataclasses.replace(pairs, swapped=np.isin(np.arange(num_blocks + 1), swapped))
      trunks = self._decoder.place([self._questions[i] for i in members], num_blocks, size)
      with jax.set_mesh(network.mesh):
        ids = np.asarray(self._decode(
            *network.arrays, change, sees_question, readouts, trunks, pairs))
      for i, row in zip(members, ids):
        answers[i] = [judge.parse_answer(t, config) for t in self._decoder.get_texts(row)]
    return answers


# ---- What comes of it ----


def _summarize(right_nr, whose: str = '') -> dict:
  """Shares of right answers after each block: bool[n, r] -> a part of a control's entry."""
  count = len(right_nr)
  final = float(right_nr[:, -1].mean())
  return {f'final_{whose}acc': final,
          f'final_{whose}acc_stderr': stats.compute_stderr(final, count),
          f'block_{whose}acc': right_nr.mean(0).tolist()}


def _match(answers, wanted):
  """bool[n, r]: whether each answer is the wanted one of its question (or of its block)."""
  return np.asarray([[judge.is_right(a, w) for a, w in zip(
      row, [want] * len(row) if isinstance(want, str) else want)]
                     for row, want in zip(answers, wanted)])


def describe(name, **found) -> dict:
  """An entry: what was done and what it should give, beside what was found."""
  what, expected = (CONTROLS | SWEEPS)[name]
  return {'what': what, 'expected': expected, **found}


class Scorer:
  """Turns the answers under a control into its entry."""

  def __init__(self, records, donors, unchanged):
    self._golds, self._donors, self._unchanged = [r.answer for r in records], donors, unchanged
    self.paired = np.flatnonzero(donors != np.arange(len(donors)))
    # Where both answers are equal, nothing tells whose it is.
    self.telling = np.asarray([i for i in self.paired if not judge.answers_match(
        self._golds[i], self._golds[donors[i]])], int)

  def score(self, answers, members=None) -> dict:
    """Accuracy over some questions, beside the unchanged one over the same."""
    members = range(len(self._golds)) if members is None else members
    if not len(members):
      return {'n': 0, 'none': 'no two questions are equally long'}
    golds = [self._golds[i] for i in members]
    unchanged = _match([self._unchanged[i] for i in members], golds)
    return dict(n=len(members), **_summarize(_match([answers[i] for i in members], golds)),
                unchanged_acc=float(unchanged[:, -1].mean()))

  def score_swap(self, answers) -> dict:
    """Over pairs whose answers differ: the own answer, the donor's, the model's for the donor.

    The last is of pairs that the unchanged model answers differently: else it follows the donor
    where it ignores the blocks.
    """
    if not len(self.telling):
      return {'n': 0, 'none': 'no two questions are equally long and differ in their answers'}
    theirs = self._donors[self.telling]
    answers_of = [answers[i] for i in self.telling]
    apart = [(answers[i], self._unchanged[donor]) for i, donor in zip(self.telling, theirs)
             if not judge.answers_match(self._unchanged[i][-1], self._unchanged[donor][-1])]
    return {**self.score(answers, self.telling),
            **_summarize(_match(answers_of, [self._golds[i] for i in theirs]), 'donor_'),
            **({'n_donor_model': len(apart), **_summarize(_match(*zip(*apart)), 'donor_model_')}
               if apart else {})}


def check_method(config: Config) -> None:
  """Raises: UserError where there is no memory to ask about."""
  check((not config.facts.has_blocks,
         f"--mode=controls: method '{config.method}' has no blocks or thoughts; give the config of "
         'a run that has, e.g. configs/rim.py or configs/coconut.py'),
        (config.eval_blocks == 0,
         '--mode=controls: eval.num_blocks=0 leaves no block to change; K = 0 is one of the '
         'controls'))


def pick(result: values.EvalResult) -> dict:
  """What an entry has of an evaluation's result."""
  return dict(n=result.n, final_acc=result.final_acc, final_acc_stderr=result.final_acc_stderr,
              block_acc=result.block_acc)


def run_controls(network: Network, records, say=print) -> dict:
  """Every control that this checkpoint alone can answer, in the order of `CONTROLS`.

  Returns: 'pairing', 'controls' and 'sweeps' of a values.ControlsResult, as its tree has them.
  Raises: UserError where a question runs beyond a learned position table.
  """
  config, num_blocks = network.config, network.config.eval_blocks
  decoder = decode_lib.Decoder(network)
  base, predictions = scores.evaluate(decoder, records, num_blocks)
  say(f"as trained: {base.final_acc:.1%}")
  reader = Reader(decoder, records)
  scorer = Scorer(records, reader.donors, [p.block_predictions for p in predictions])
  prefix = decoder.network.codec.template.answer_prefix  # also where a chain is written else
  trained = {'readout_trained': (not config.facts.blocks_are_steps
                                 and config.layout.stage2_depth0_readout),
             'chain_trained': not prefix and (config.facts.learns_steps
                                              or config.layout.paired_readout)}
  entries = {
      'as_trained': pick(base),
      'no_blocks': pick(scores.evaluate(decoder, records, 0, prefix=prefix)[0]) | trained,
      'untrained_rows': pick(scores.evaluate(
          decoder.with_params(network.draw_rows(fold_in_name(
              jax.random.key(config.seed), 'controls'))), records, num_blocks)[0]),
  }
  for name, (change, sees_question) in _CHANGES.items():
    if name == 'permuted' and num_blocks == 1:
      entries[name] = {'n': 0, 'none': 'one block has one order'}
      continue
    answers = reader.read(change, sees_question)
    entries[name] = (scorer.score_swap(answers) if name == 'swapped' else scorer.score(
        answers, scorer.paired if name == 'averaged' else None))
    say(f'{name}: done')
  blocks = range(1, num_blocks + 1)
  sweeps = {} if num_blocks == 1 else {  # that is what `swapped` has said
      'swapped_block': {k: [k] for k in blocks},
      'swapped_from_block': {k: list(range(k, num_blocks + 1)) for k in blocks}}
  return {
      'pairing': {'num_pairs': len(scorer.telling),
                  'num_equal_answers': len(scorer.paired) - len(scorer.telling),
                  'num_without_partner': len(records) - len(scorer.paired)},
      'controls': {name: describe(name, **entries[name]) for name in CONTROLS if name in entries},
      'sweeps': {name: describe(name, by_block=[
          {'block': k, **scorer.score_swap(reader.read(swap, swapped=swapped))}
          for k, swapped in wanted.items()]) for name, wanted in sweeps.items()},
  }
