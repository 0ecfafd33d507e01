"""Small real things for the tests: records, configs, codecs, batches."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rim_jax import config as config_lib
from rim_jax import methods
from rim_jax.config import schema
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.data.records import Record
from rim_jax.errors import UserError
from rim_jax.evaluation import decode
from rim_jax.model import sharding
from rim_jax.model import transformer as transformer_lib
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import rows as rows_lib
from rim_jax.packing import source
from rim_jax.pretrained import export
from rim_jax.training import step as step_lib

# T = 0 and T = 1 among them, and an answer of several digits.
RECORDS = (
    Record('1+2+3', ('3', '6'), '6', 'r:1'),
    Record('9', (), '9', 'r:2'),
    Record('4+4', ('8',), '8', 'r:3'),
    Record('1+1+1+1', ('2', '3', '4'), '4', 'r:4'),
    Record('20+3', ('23', '46', '92'), '92', 'r:5'),
)


# Of an update: rows of very unequal weight, with one, two and no examples.
TRAIN_ROWS = [RECORDS[:2], RECORDS[4:], RECORDS[3:4], [], RECORDS[:1], [], [], RECORDS[2:4]]
TRAIN_STEPS, TRAIN_BLOCKS = 10, 4


# ---- The config of a version to come, with a key and a section more ----


@dataclasses.dataclass(frozen=True)
class InnerConfig:
  share: float = 1.0


@dataclasses.dataclass(frozen=True)
class EchoConfig:
  num_times: int = 1
  inner: InnerConfig = InnerConfig()


@dataclasses.dataclass(frozen=True)
class LaterModelConfig(config_lib.ModelConfig):
  twist: float = schema.later(0.0)


@dataclasses.dataclass(frozen=True)
class LaterConfig(config_lib.Config):
  model: LaterModelConfig = LaterModelConfig()
  echo: EchoConfig = schema.later(EchoConfig())


def make_config(method='rim_stage1', **changes) -> config_lib.Config:
  """A tiny valid config; changes by dotted key with '__' for the dot."""
  base = {
      'tokenizer.kind': 'chain', 'layout.block_tokens': 1,
      'layout.num_blocks': 3 - 2 * (method in ('coconut_stage', 'codi', 'pccot', 'lotus_stage')),
      'layout.skip_steps': int(method == 'lotus_stage'),
      'layout.separator': '', 'layout.answer_prefix': '', 'layout.answer_suffix': '',
      'layout.row_tokens': 64, 'model.num_layers': 2, 'model.embed_dim': 16, 'model.num_heads': 2,
      'model.mlp_dim': 32, 'model.max_positions': 64, 'train.num_examples': 64,
      'train.batch_examples': 0, 'train.batch_rows': 4, 'eval.max_new_tokens': 4,
      'data.chain.num_train': 40, 'data.chain.num_valid': 8, 'data.chain.num_test': 8,
      'checkpoint.every_steps': 3, 'log.every_steps': 1, 'log.tensorboard': False,
      'eval.num_latency_runs': 0, 'eval.batch_size': 8, 'optim.learning_rate': 1e-2}
  base |= {k.replace('__', '.'): v for k, v in changes.items()}
  return set_keys(config_lib.Config(method=method), base)


def set_keys(config, values: dict):
  """A config with dotted keys replaced."""
  for key, value in values.items():
    config = set_key(config, key, value)
  problems = config_lib.find_problems(config)
  assert not problems, problems
  return config


def set_key(config, key, value):
  """A config with one dotted key replaced, allowed or not."""
  name, _, rest = key.partition('.')
  return dataclasses.replace(config, **{
      name: set_key(getattr(config, name), rest, value) if rest else value})


def make_codec(config) -> source.Codec:
  return methods.make_codec(config, tokenizer_lib.load_tokenizer(config.tokenizer))


def lay_out(config, records=RECORDS):
  codec = make_codec(config)
  return [codec.lay_out(codec.encode(r)) for r in records]


def make_batch(config, rows, row_slots=48) -> batch_lib.Batch:
  """A batch with the examples of `rows`, a list of lists of records."""
  codec = make_codec(config)
  examples = [[codec.lay_out(codec.encode(record)) for record in row] for row in rows]
  return rows_lib.make_rows(examples, config.layout.row_tokens, row_slots, config.layout,
                            codec.memory_start)


def make_model(config, seed=0) -> transformer_lib.Transformer:
  """A random model whose every parameter is off its special value (norm scales are not 1)."""
  model = methods.make_model(config, make_codec(config).memory_start, jax.random.key(seed))
  rng = np.random.default_rng(seed)
  for _, variable in model_params(model):
    variable.set_value(variable.get_value() + 0.1 * rng.standard_normal(
        variable.get_value().shape).astype(np.float32))
  return model


def count_reads(monkeypatch) -> list[int]:
  """How many tokens each forward of any network reads from here on, in a list that grows."""
  counted, real = [], transformer_lib.Transformer.__call__

  def call(self, tokens, positions, *args, **kwargs):
    jax.debug.callback(lambda: counted.append(positions.size))
    return real(self, tokens, positions, *args, **kwargs)
  monkeypatch.setattr(transformer_lib.Transformer, '__call__', call)
  return counted


def make_network(config, model=None, devices=1) -> Network:
  """A network of this model (none: without parameters) on some devices."""
  graphdef, params = nnx.split(model) if model else (None, nnx.State({}))
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:devices])
  params = jax.device_put(nnx.to_pure_dict(params), sharding.get_replicated(mesh))
  return Network(graphdef, params, {}, config, make_codec(config), mesh)


def make_decoder(config, devices=1):
  """(a random model, a Decoder of it) on some devices."""
  model = make_model(config)
  return model, decode.Decoder(make_network(config, model, devices))


def decode_and_record(decoder, questions, num_blocks, prefix, blocks, monkeypatch):
  """(ids [b, r, n], the logits [b, r, v] that each of the n was chosen from)."""
  seen, real = [], transformer_lib.Transformer.compute_logits

  def compute_logits(self, x):
    logits = real(self, x)
    jax.debug.callback(lambda v: seen.append(np.array(v)), logits, ordered=True)
    return logits
  with monkeypatch.context() as patch:
    patch.setattr(transformer_lib.Transformer, 'compute_logits', compute_logits)
    trunks = decoder.place(questions, num_blocks, len(questions))
    ids = np.asarray(decoder.run(trunks, prefix, blocks))
    jax.effects_barrier()
  return ids, seen


def assert_decoded_logits(ids_brn, seen, trained_brnv, eos):
  """What was seen in decoding is what training gives; after its eos a readout is only padded."""
  assert len(seen) > 1
  for j, logits in enumerate(seen):
    alive = (ids_brn[:, :, :j] != eos).all(-1)
    assert j == 0 or alive.any()
    assert_close(logits[alive], trained_brnv[:, :, j][alive])


def assert_logits_alone_as_together(config, questions, num_blocks, blocks, monkeypatch):
  """Decoded in one batch, questions of several lengths have the logits that each has alone."""
  assert len({len(question) for question in questions}) > 1
  eos_id = make_codec(config).tokenizer.eos_id

  def decode_these(questions):  # a new program, whose logits are these questions' alone
    _, decoder = make_decoder(config)
    return decode_and_record(decoder, questions, num_blocks, (), blocks, monkeypatch)
  count, (ids, together) = 0, decode_these(questions)
  for i, question in enumerate(questions):
    mine, alone = decode_these([question])
    np.testing.assert_array_equal(mine[0], ids[i])
    for j, logits in enumerate(alone):
      alive = (ids[i, :, :j] != eos_id).all(-1)
      assert_close(logits[0][alive], together[j][i][alive])
      count += alive.sum()
  assert count > len(questions) * len(blocks)  # not each of them ends at once


def write_decoded_row(codec, config, questions, ids_brn, row_tokens):
  """Questions with one block each, and what was decoded behind it as a target, all in one row."""
  examples = [layout_lib.Example(question, 1, 1, (layout_lib.Readout(
      1, 2, codec.template.answer_prefix, ids_brn[i, 0].tolist()),))
              for i, question in enumerate(questions)]
  batch = rows_lib.make_rows([examples], row_tokens, len(questions) * ids_brn.shape[-1],
                             config.layout, codec.memory_start)
  return jax.tree.map(jnp.asarray, batch)


def assert_one_problem(config, changes, told):
  """A config with some keys changed has one problem, whose line says so."""
  for key, value in changes.items():
    config = set_key(config, key, value)
  problem, = config_lib.find_problems(config)
  assert told in problem


def assert_export_refused(config):
  with pytest.raises(UserError, match='run: feeds hidden states back as inputs'):
    export.check_exportable(config, object(), 'run')


def model_params(model):
  return nnx.to_flat_state(nnx.state(model, nnx.Param))


def assert_close(a, b, relative=1e-5):
  """The equality of two ways to compute the same: max|a - b| <= 1e-5 max|b|, per tensor."""
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= relative * np.abs(b).max(), (
      np.abs(a - b).max(), np.abs(b).max())


@functools.cache  # its programs are compiled once for all tests
def make_step(config, devices, mesh_config):
  """(mesh, program, train step)"""
  mesh = sharding.make_mesh(mesh_config, devices)
  program = step_lib.make_program(config, make_codec(config).memory_start, TRAIN_STEPS, mesh)
  return mesh, program, step_lib.make_train_step(program, config, TRAIN_STEPS, TRAIN_BLOCKS, mesh)


def start_training(config, devices, mesh_config=None):
  """(mesh, train step, its state, what is frozen, a batch of TRAIN_ROWS)"""
  mesh, program, step = make_step(config, tuple(devices), mesh_config or config_lib.MeshConfig())
  state, frozen = program.init(jax.random.key(0))
  batch = sharding.place_batch(make_batch(config, TRAIN_ROWS), mesh)
  return mesh, step, state, frozen, batch


def make_plain_mask(config, num_tokens, num_question, num_readout):
  """One plain sequence's mask: causal, but for the two switches."""
  q, k = np.indices((num_tokens, num_tokens))
  trunk = num_tokens - num_readout
  block = (np.arange(num_tokens) - num_question) // (config.layout.block_tokens + 2) + 1
  block = np.where(np.arange(num_tokens) < num_question, 0, block)
  mask = k <= q
  if config.layout.bidirectional_blocks:
    mask |= (block[q] == block[k]) & (block[q] > 0) & (q < trunk) & (k < trunk)
  if not config.layout.readout_sees_question and trunk > num_question:
    mask &= ~((q >= trunk) & (k < num_question))
  return mask
