"""What an answer attends to: the weights of attention where its first token is chosen.

Rows are laid out and seen as in training (`rows.make_rows`, `batch.visible`), and every layer
is the model's own: a layer's weights are what its attention gives for values that are the identity.
So they are those of decoding, which equals training, and neither computes anything more for it.

A large weight says what is read, not that it matters: `evaluation/interventions.py` asks that.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rim_jax import methods
from rim_jax.config import Config
from rim_jax.evaluation import decode as decode_lib
from rim_jax.evaluation import scores
from rim_jax.model import attention, sharding, transformer
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib

_DECIMALS = 6  # of a weight that is written down


def make_rows(questions, num_blocks: int, num_rows: int, config: Config, codec) -> batch_lib.Batch:
  """A row for each encoded question: its trunk, and after each block what is forced to begin with.

  Slot r is where the answer after block r + 1 is chosen: the last forced token, or, with none,
  the block's closing token. Rows beyond the questions are padding. Numpy.
  """
  prefix = scores.get_answer_prefix(config, codec)
  # The target is never an input: it only says that there is something to choose.
  examples = [layout_lib.Example(question, num_blocks, 1, tuple(
      layout_lib.Readout(k, batch_lib.SLOT_ANSWER, prefix, codec.template.eos)
      for k in scores.get_blocks(num_blocks))) for question in questions]
  width = decode_lib.choose_width(max(
      layout_lib.count_example(e, config.layout)[0] for e in examples))
  rows = [[example] for example in examples] + [[]] * (num_rows - len(examples))
  return rows_lib.make_rows(rows, width, max(num_blocks, 1), config.layout, codec.memory_start)


def compute_weights(model, config: Config, rows: batch_lib.Batch):
  """Weights at every slot of `rows`, means over heads: f32[l, b, s, t]; 0 where nothing is seen."""
  fields = batch_lib.get_fields(rows)
  see = functools.partial(attention.find_visible, key=fields, layout=config.layout)
  visible = see(fields, tile_tokens=config.model.attention_tile_tokens)
  at_slots = see(jax.tree.map(lambda x: jnp.take_along_axis(x, rows.slot_index, 1), fields),
                 tile_tokens=0)
  config = config.at_evaluation
  inputs_btd = methods.get_method(config).feed(model, rows.tokens, fields, config)
  x_btd, _ = model(rows.tokens, rows.positions, visible, num_layers=0, inputs_btd=inputs_btd)
  layer_def, layers = nnx.split(model.blocks)
  get_rotary = transformer.make_rotary(config.model, rows.positions)

  def body(x_btd, xs):
    layer, index = xs
    block, rotary = nnx.merge(layer_def, layer), get_rotary(index)
    q_bthk, k_btnk, _ = block.project(block.attention_norm(x_btd), rotary, None)
    q_bshk = jnp.take_along_axis(q_bthk, rows.slot_index[..., None, None], 1)
    weights_bst = weigh(q_bshk, k_btnk, at_slots)
    return block(x_btd, rotary, visible, None)[0], weights_bst
  return jax.lax.scan(body, x_btd, (layers, jnp.arange(config.model.num_layers)))[1]


def weigh(q_bshk, k_bcnk, visible_bsc):
  """Attention's weights, means over heads: f32[b, s, c]. A query that sees nothing has zeros.

  Values are as wide as keys, so the identity goes through in parts.
  """
  q_bshk, k_bcnk = (x.astype(jnp.float32) for x in (q_bshk, k_bcnk))
  num_keys, width = k_bcnk.shape[1], k_bcnk.shape[3]
  eye_cp = jnp.pad(jnp.eye(num_keys), ((0, 0), (0, -num_keys % width)))
  with jax.default_matmul_precision('highest'):
    parts = [attention.attend(
        q_bshk, k_bcnk, jnp.broadcast_to(part_ck[None, :, None], k_bcnk.shape), visible_bsc).mean(2)
             for part_ck in jnp.split(eye_cp, eye_cp.shape[1] // width, axis=1)]
  return jnp.where(visible_bsc, jnp.concatenate(parts, -1)[..., :num_keys], 0)


def group_weights(weights_lbst, rows: batch_lib.Batch, num_blocks: int):
  """Sums over the question, each block and the readout's own tokens: [l, b, s, K + 2]."""
  trunk_bt = (rows.example > 0) & (rows.readout == 0)
  groups = [trunk_bt & (rows.block == k) for k in range(num_blocks + 1)]
  member_bgt = np.stack([*groups, rows.readout > 0], 1)
  return np.einsum('lbst,bgt->lbsg', weights_lbst, member_bgt.astype(weights_lbst.dtype))


def read_attention(network: Network, records) -> dict:
  """What controls.json holds of some questions' attention; weights are shares of 1.

  Returns: 'groups': names; 'mean': [block read][layer][group], over the questions; 'questions':
    each with 'by_group', the same of it alone, and 'by_token': [block read][token of the question],
    a mean over layers, beside the tokens' texts.
  """
  config, codec, mesh = network.config, network.codec, network.mesh
  num_blocks = config.eval_blocks
  questions = scores.encode_questions(records, config, codec, num_blocks)
  shards = sharding.count_shards(sharding.BATCH, mesh)
  rows = make_rows(questions, num_blocks, -(-len(questions) // shards) * shards, config, codec)
  compute = network.jit(compute_weights, out_shardings=sharding.get_replicated(mesh))
  with jax.set_mesh(mesh):
    weights_lbst = np.asarray(compute(*network.arrays, sharding.place_batch(rows, mesh)))
  by_group = group_weights(weights_lbst, rows, num_blocks)[:, :len(questions)].transpose(1, 2, 0, 3)
  by_token_bst = weights_lbst.mean(0)
  num_prefix = len(scores.get_answer_prefix(config, codec))
  place = f'the last forced token (of {num_prefix})' if num_prefix else "that block's closing token"
  return {
      'what': "attention's weights where the first token of the answer after block k is chosen, "
              f'{place}; a mean over heads',
      'num_questions': len(records),
      'groups': ['question', *(f'block {k}' for k in range(1, num_blocks + 1)), 'readout'],
      'mean': _round(by_group.mean(0)),
      'questions': [{
          'question': record.question, 'answer': record.answer,
          'tokens': [codec.tokenizer.decode([i]) for i in ids],
          'by_group': _round(by_group[b]), 'by_token': _round(by_token_bst[b, :, :len(ids)])}
                    for b, (record, ids) in enumerate(zip(records, questions))]}


def _round(x):
  return np.round(x.astype(np.float64), _DECIMALS).tolist()
