"""A trained run as a Hugging Face model, served with no code of ours, or as PEFT adapters.

The memory blocks become three added tokens of the tokenizer and three rows of the
embedding, so a plain causal `generate()` on `question + blocks + answer prefix` computes
what `evaluation/decode.py` does. The three ids must never be generated. Untied (the default), their
output rows, and those of padding, are the mean of the vocabulary's rows: their logit is the
mean logit, which never wins. Tied, the engine must honour `suppress_tokens`.

A directory appears whole or not at all.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from rim_jax.config import Config
from rim_jax.data import gguf as gguf_lib
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError
from rim_jax.model import lora
from rim_jax.model.network import Network
from rim_jax.packing import layout as layout_lib
from rim_jax.pretrained import families, lm_eval_task, peft, weights
from rim_jax.pretrained import tensors as tensors_lib
from rim_jax.runtime import hosts

EXPORT_VERSION = 2  # 1 named the block tokens <b>, <m>, </b>, which is HTML
# In the order of the memory rows; names that no text spells by accident.
BLOCK_TOKENS = ('<|rim_begin|>', '<|rim_memory|>', '<|rim_end|>')
_COPIED = ('tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja')


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an exported model comes from, for export.json."""
  base: weights.Base
  run: str  # its WORKDIR
  step: int


def check_exportable(config: Config, base: weights.Base | None, where) -> None:
  """Raises: UserError where a plain causal engine could not run the model."""
  problems = []
  if base is None:
    problems.append('was not made from a Hugging Face directory (model.init_from), whose '
                    'config.json and tokenizer an export needs; train from one')
  if not config.layout.readout_sees_question:
    problems.append('has layout.readout_sees_question=False, which a plain causal engine cannot '
                    'run; train with True')
  if config.layout.bidirectional_blocks:
    problems.append('has layout.bidirectional_blocks=True, which a plain causal engine cannot '
                    'run; train with False')
  if config.feeds_back and config.layout.num_blocks:
    problems.append('feeds hidden states back as inputs, which a plain engine cannot run')
  if config.export.adapters and config.optim.trainable != 'lora':
    problems.append(f"has optim.trainable='{config.optim.trainable}', so there are no adapters to "
                    'write; export merged weights with --config.export.adapters=False')
  if problems:
    raise UserError('\n'.join(f'{where}: {p}' for p in problems))


def check_free(out) -> None:
  """Raises: UserError where a directory of this name cannot be made."""
  out = pathlib.Path(out)
  if os.path.lexists(out):  # also a link that leads nowhere, which nothing can be moved onto
    raise UserError(f'{out}: exists already; remove it, or name another --config.export.dir')
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent):
      pass
  except OSError as e:
    raise UserError(f'{out}: cannot be written ({e.strerror}); name another --config.export.dir'
                    ) from None


def make_prompt(question: str, config: Config) -> str:
  """The text whose tokens are `[x | m_1 .. m_K | answer prefix]`, bos aside."""
  begin, memory, end = BLOCK_TOKENS
  block = begin + memory * config.layout.block_tokens + end
  prefix = '' if config.facts.writes_steps else config.layout.answer_prefix
  layout = config.layout
  return (layout.question_prefix + question + layout.separator + block * config.eval_blocks
          + prefix)


@contextlib.contextmanager
def _appear_whole(out: pathlib.Path):
  """A scratch directory that becomes `out` if all goes well, and vanishes otherwise."""
  check_free(out)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as scratch:
    folder = pathlib.Path(scratch) / 'export'
    folder.mkdir()
    try:
      yield folder
      os.rename(folder, out)
    except OSError as e:
      raise UserError(f'{out}: cannot be written ({e.strerror or e}); nothing was left behind'
                      ) from e


def _write_json(path, tree):
  path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + '\n')


def write_export(out, network: Network, origin: Origin, records, references=None, say=print
                 ) -> dict:
  """Writes a run's model below `out` as `config.export` says.

  Every process takes part, since each has a part of every array; process 0 writes.

  Args:
    records: on whose questions the exported tokenizer is held to the layout's ids, and which the
      task of lm-evaluation-harness asks.
    references: `iterate_references`, which transformers is held to before the folder appears.
  Returns: the content of export.json.
  Raises: UserError where tokens or ids do not allow it, or `out` exists.
  """
  config, base = network.config, origin.base
  with contextlib.ExitStack() as stack:
    folder = None

    def begin():
      nonlocal folder
      folder = stack.enter_context(_appear_whole(pathlib.Path(out)))
      ids = _write_tokenizer(folder, config, base)
      check_prompts(folder, config, network.codec, ids, [r.question for r in records])
      return ids
    ids = hosts.lead(begin)
    if config.export.adapters:
      peft.write_adapters(folder, config, base, network.params, ids)
    else:
      _write_model(folder, network, base, ids, say)
    card = {'format': EXPORT_VERSION, 'run': origin.run, 'step': origin.step,
            'checkpoint': config.eval.checkpoint,
            'base': {'path': str(base.folder), 'fingerprint': base.fingerprint},
            'kind': 'adapters' if config.export.adapters else 'merged',
            'tokens': dict(zip(BLOCK_TOKENS, ids)), 'untied': config.export.untie,
            'dtype': config.export.dtype, 'prompt': make_prompt('{question}', config),
            'answer_suffix': config.layout.answer_suffix,
            'num_blocks': config.eval_blocks, 'block_tokens': config.layout.block_tokens,
            'max_new_tokens': config.eval.max_new_tokens}
    if references is not None:
      card['verified'] = _verify(folder, config, network.codec, references, say)
    if folder:
      _write_json(folder / 'export.json', card)
      if not config.export.adapters:
        lm_eval_task.write_task(folder, config, [make_prompt(r.question, config) for r in records],
                                records)
      (folder / 'README.md').write_text(_describe(config, card))
  return card


def _verify(folder, config, codec, references, say):
  """Process 0 compares; every process computes the references."""
  outcome = None
  if folder:
    try:
      outcome = compare_with_transformers(folder, config, codec, references, say)
    except UserError as e:
      outcome = e
  collections.deque(references, 0)  # those that are left: the others compute them too

  def tell():
    if isinstance(outcome, UserError):
      raise outcome
    return outcome
  return hosts.lead(tell)


def _write_tokenizer(folder, config, base) -> list[int]:
  """The tokenizer with the three block tokens at its next free ids, which are returned."""
  path = pathlib.Path(config.tokenizer.path).expanduser()
  tokenizer = tokenizer_lib.read_file(path)
  taken = [t for t in BLOCK_TOKENS if tokenizer.token_to_id(t) is not None]
  if taken:
    raise UserError(f"{path}: has a token '{taken[0]}' already, which would be taken for a memory "
                    'block; rename it in tokenizer.json')
  free = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
  tokenizer.add_special_tokens([
      tokenizers.AddedToken(t, special=True, normalized=False) for t in BLOCK_TOKENS])
  ids = [tokenizer.token_to_id(t) for t in BLOCK_TOKENS]
  if min(ids) < free:  # the library counts tokens, so a vocabulary with holes collides
    raise UserError(f'{path}: its ids have holes, so the added tokens would take ids {ids}, some '
                    'of them in use; renumber tokenizer.json')
  if tokenizer_lib.make_inside(tokenizer) is not tokenizer:
    tokenizer = tokenizer_lib.make_first_only(tokenizer)
  tokenizer.save(str(folder / 'tokenizer.json'))
  if gguf_lib.is_gguf(base.folder):
    _write_json(folder / 'tokenizer_config.json', families.read_tokenizer_config(base.folder))
    return ids
  for name in _COPIED:
    if (base.folder / name).exists():
      shutil.copy(base.folder / name, folder)
  return ids


def check_prompts(folder, config: Config, codec, ids, questions) -> None:
  """Holds the exported tokenizer's ids of prompts to those that `packing/layout.py` builds.

  Raises: UserError naming the first question where they differ.
  """
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  to_export = {codec.memory_start + i: id_ for i, id_ in enumerate(ids)}
  prefix = [] if config.facts.writes_steps else codec.template.answer_prefix
  for question in questions:
    encoded = layout_lib.encode_question(question, codec.tokenizer, codec.template)
    trunk, _ = layout_lib.make_trunk(encoded, config.eval_blocks, config.layout,
                                     codec.memory_start)
    want = [to_export.get(i, i) for i in trunk] + list(prefix)
    # As engines do, with the bos that the tokenizer itself adds.
    found = tokenizer.encode(make_prompt(question, config)).ids
    if found != want and found[1:] == want:
      raise UserError(f'the tokenizer begins texts with {tokenizer.id_to_token(found[0])!r}, which '
                      'the run was trained without; train with --config.tokenizer.bos_token set')
    spelled = [t for t in BLOCK_TOKENS if t in question]
    if spelled:
      raise UserError(f'the question {question[:60]!r} spells the block token {spelled[0]}, which '
                      'engines would take for memory; remove it from the data')
    if found != want:
      raise UserError(
          f'the prompt of {question[:60]!r} has other tokens as one text than as the segments '
          f'it was trained on; with this tokenizer train with another layout.separator than '
          f'{config.layout.separator!r}')


def iterate_tensors(config: Config, base: weights.Base, params, frozen):
  """(stored name, array as it is stored, in f32) of every base parameter, adapters merged."""
  merge = jax.jit(lora.merge, static_argnums=3)
  for path, tensor in tensors_lib.list_tensors(base.family):
    value = tensors_lib.get_leaf(params, path)
    value = tensors_lib.get_leaf(frozen, path) if value is None else value
    if value is None:  # of a setting that this model has not got
      continue
    adapter = path[-1] == 'kernel' and tensors_lib.get_leaf(params, (*path[:-1], 'adapter'))
    for i in range(len(value) if path[0] == 'blocks' else 1):
      # Layer by layer: no host holds a whole stack in f32.
      part = value[i] if path[0] == 'blocks' else value
      if adapter:
        part = merge(part[None], adapter['a'][i:i + 1], adapter['b'][i:i + 1],
                     config.model.lora)[0]
      part = hosts.fetch(part.astype(jnp.float32))
      order = [d for dims in tensor.stored for d in dims]
      yield tensor.name.format(i), part.transpose(order).reshape(
          tensor.get_stored_shape(part.shape))


def _write_model(folder, network, base, ids, say):
  config, params, frozen = network.config, network.params, network.frozen
  memory = hosts.fetch(params['memory'] if 'memory' in params else frozen['memory']).astype(
      np.float32)
  if folder is None:  # takes part in gathering alone
    collections.deque(iterate_tensors(config, base, params, frozen), 0)
    return
  shards = weights.Shards(folder, config.export.dtype, config.export.max_shard_gb * 1e9)
  untie = config.export.untie or not config.model.tie_embeddings
  embedding_name = tensors_lib.TENSORS[base.family]['embedding'].name
  for name, value in iterate_tensors(config, base, params, frozen):
    if name == embedding_name:
      num_rows = max(len(value), max(ids) + 1)
      # Blocks, padding, and tokens that the model had no row for: ids that must never win.
      no_text = range(min(*ids, len(value)), num_rows)
      shards.add(name, place_rows(value, memory, ids))
      if untie and config.model.tie_embeddings:
        shards.add('lm_head.weight', place_rows(value, compute_mean_row(value, ids), no_text))
    elif name == 'lm_head.weight':
      shards.add(name, place_rows(value, compute_mean_row(value, ids), no_text))
    else:
      shards.add(name, value)
  shards.finish()
  tree = families.read_config(base.folder)
  tree.pop('torch_dtype', None)  # the older spelling of dtype
  tree |= {'vocab_size': num_rows, 'tie_word_embeddings': not untie, 'dtype': config.export.dtype}
  _write_json(folder / 'config.json', tree)
  eos = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).token_to_id(
      config.tokenizer.eos_token)
  generation = {'eos_token_id': eos, 'pad_token_id': eos, 'do_sample': False}
  if not untie:
    generation['suppress_tokens'] = list(no_text)
  _write_json(folder / 'generation_config.json', generation)
  say(f'{num_rows} rows in the embedding, {"untied" if untie else "tied"} output')


def compute_mean_row(matrix_vd, ids):
  """The row whose logit is the mean one over all ids that mean text: [1, d]."""
  return matrix_vd[:min(ids)].mean(0, keepdims=True)


def place_rows(matrix_vd, rows, ids):
  """A matrix with `rows` (one, or one an id) at `ids`, grown where it ends before them."""
  grown = np.zeros((max(len(matrix_vd), max(ids) + 1), matrix_vd.shape[1]), matrix_vd.dtype)
  grown[:len(matrix_vd)] = matrix_vd
  grown[list(ids)] = rows
  return grown


def _describe(config, card):
  prompt = make_prompt('QUESTION', config).replace('\n', '\\n')
  suffix = config.layout.answer_suffix
  lines = [
      '# A RiM model', '',
      'Reasoning in Memory (arXiv 2605.30343), trained with rim_jax. The model reasons in the '
      f'{config.eval_blocks} memory blocks that follow a question, in one forward pass.', '',
      'Prompt, exactly (no space added anywhere):', '', '```', prompt, '```', '',
      'Generate greedily until the end-of-text token; the answer is what comes before '
      + (f'`{suffix}`.' if suffix else 'it.'), '',
      'Block tokens: ' + ', '.join(f'`{t}` = {i}' for t, i in card['tokens'].items())
      + '. They are part of prompts and are never generated.', '',
      'A server must see to it that no question spells a special token: the tokenizer would take '
      'it for one. Refuse such questions, or break the name, for example by replacing `<|` with '
      '`< |` in a question before it is put into the prompt.']
  if card['kind'] == 'merged':
    lines += ['', lm_eval_task.describe_task()]
  if card['kind'] == 'adapters':
    lines += ['', f"These are PEFT adapters for the model in `{card['base']['path']}`. Resize its "
              f"embedding to at least {max(card['tokens'].values()) + 1} rows before loading them, "
              'and suppress the three ids when generating.']
  elif not card['untied'] and config.model.tie_embeddings:
    lines += ['', 'The output matrix is tied to the embedding, so the three ids are kept out by '
              '`suppress_tokens` in generation_config.json. `transformers` honours it; engines '
              'that ignore it (vLLM among them) may generate block tokens: export untied for '
              'those.']
  return '\n'.join(lines) + '\n'


def check_verifiable(config: Config) -> None:
  """Raises: UserError where `compare_with_transformers` could not run."""
  if config.export.adapters:
    raise UserError('--verify compares merged weights; use it with --config.export.adapters=False')
  for package in ('torch', 'transformers'):
    if importlib.util.find_spec(package) is None:
      raise UserError(f"--verify needs {package}; install it with pip install -e '.[hf]'")


@dataclasses.dataclass(frozen=True)
class Reference:
  """What a run computes for one question, which an export is held to."""
  question: str
  ids: list[int]  # of the prompt
  logits_tv: np.ndarray  # of the prompt, computed in float32
  rounded_tv: np.ndarray | None  # the same computed in bfloat16, where the export is in that
  text: str  # the answer


def iterate_references(decoder, questions):
  """A `Reference` of each question; every process takes part.

  `decoder` is an `evaluation.decode.Decoder` of the run's network.
  """
  network, config, codec = decoder.network, decoder.network.config, decoder.network.codec
  encoded = [layout_lib.encode_question(q, codec.tokenizer, codec.template) for q in questions]
  prefix = [] if config.facts.writes_steps else codec.template.answer_prefix
  texts, _ = decoder.decode_texts(encoded, config.eval_blocks, prefix, (config.eval_blocks,))
  compute = network.jit(_compute_logits, 1)

  def get_logits(dtype, prompt):
    with jax.default_matmul_precision('float32'):
      return hosts.fetch(compute(*network.arrays, dtype, np.asarray([prompt])))[0].astype(
          np.float32)[:, :codec.tokenizer.vocab_size]
  for question, ids, (text,) in zip(questions, encoded, texts):
    trunk, _ = layout_lib.make_trunk(ids, config.eval_blocks, config.layout, codec.memory_start)
    prompt = [*trunk, *prefix]
    rounded = get_logits('bfloat16', prompt) if config.export.dtype == 'bfloat16' else None
    yield Reference(question, prompt, get_logits('float32', prompt), rounded, text)


def _compute_logits(model, config, dtype, ids_bt):
  """Logits of plain ids under a plain causal mask, computed in `dtype`."""
  del config
  model.config = dataclasses.replace(model.config, compute_dtype=dtype)
  t = ids_bt.shape[1]
  x_btd, _ = model(ids_bt, jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)))
  return model.compute_logits(x_btd)


FP32_TOLERANCE = 1e-4  # of the rms of a token's logits
BF16_FACTOR = 2.0  # of the distance that rounding to bfloat16 alone makes


class Distances:
  """How far an export's logits are from the run's in float32, over all questions so far."""

  def __init__(self):
    self.worst = self.worst_of_rms = 0.0
    self._squares = {'export': 0.0, 'own': 0.0, 'logits': 0.0}

  def add(self, found_tv, reference: Reference) -> None:
    """Takes the logits of one prompt; a nan is kept in all."""
    want_tv = reference.logits_tv
    apart_t = np.abs(found_tv - want_tv).max(-1)
    self.worst = float(np.maximum(self.worst, apart_t.max()))
    self.worst_of_rms = float(np.maximum(
        self.worst_of_rms, (apart_t / np.sqrt((want_tv**2).mean(-1))).max()))
    for name, x in (('export', found_tv - want_tv), ('logits', want_tv),
                    ('own', 0 if reference.rounded_tv is None else reference.rounded_tv - want_tv)):
      self._squares[name] += float(np.square(x, dtype=np.float64).sum())

  def get_rms(self, name: str) -> float:
    """Of what lies between an 'export', or the run's 'own' bfloat16, and its float32, in rms."""
    return (self._squares[name] / self._squares['logits'])**0.5


def compare_with_transformers(folder, config: Config, codec, references, say=print) -> dict:
  """Loads an export in transformers on the CPU and holds it to the run, question by question.

  Compares the logits of the whole prompt over the base vocabulary, and the text that plain
  `generate()` gives on the prompt string with the run's own greedy answer.
  Returns: what was compared, with the distances of logits and the answers that agree.
  Raises: UserError where an fp32 export is more than FP32_TOLERANCE away from the run's logits in
    float32, or one of an fp32 run answers otherwise; where a bf16 export is further away from them
    than BF16_FACTOR times the run's own in bfloat16; and where any logit is not finite.
  """
  import torch
  import transformers
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='auto').eval()
  distances, num_equal, num_questions = Distances(), 0, 0
  first = codec.tokenizer.vocab_size  # id of a block
  to_export = {codec.memory_start + i: first + i for i in range(len(BLOCK_TOKENS))}
  for reference in references:
    num_questions += 1
    prompt = tokenizer(make_prompt(reference.question, config), return_tensors='pt').input_ids
    if prompt.tolist() != [[to_export.get(i, i) for i in reference.ids]]:
      raise UserError(f'{folder.name}: transformers ({type(tokenizer).__name__}) makes other '
                      f'tokens of the prompt of {reference.question[:60]!r} than tokenizer.json; '
                      'use the tokenizer.json that belongs to this model; nothing was written')
    with torch.no_grad():
      found = model(prompt).logits[0, :, :reference.logits_tv.shape[1]].float().numpy()
      out = model.generate(prompt, attention_mask=torch.ones_like(prompt),
                           max_new_tokens=config.eval.max_new_tokens)
    distances.add(found, reference)
    new = out[0, prompt.shape[1]:].tolist()
    new = new[:new.index(codec.tokenizer.eos_id)] if codec.tokenizer.eos_id in new else new
    num_equal += codec.tokenizer.decode(new) == reference.text
  told, is_same = _judge_distances(distances, config)
  answers = f'{num_equal} of {num_questions} answers equal'
  say(f'transformers {transformers.__version__}: {told}; {answers}')
  must_agree = config.export.dtype == config.model.compute_dtype == 'float32'
  if not is_same or (must_agree and num_equal < num_questions):
    raise UserError(f'{folder.name}: transformers computes other logits or answers from it than '
                    f'the run does ({told}; {answers}); nothing was written')
  return {'transformers': transformers.__version__, 'num_questions': num_questions,
          'max_logit_difference': distances.worst,
          'max_difference_of_rms': distances.worst_of_rms,
          'distance_of_rms': distances.get_rms('export'),
          'own_distance_of_rms': distances.get_rms('own'), 'num_answers_equal': num_equal,
          'dtype': config.export.dtype, 'compute_dtype': config.model.compute_dtype}


def _judge_distances(distances: Distances, config: Config) -> tuple[str, bool]:
  """(what the logits of an export are, whether they are those of the run)."""
  if config.export.dtype == 'float32':
    return (f'logits at most {distances.worst:.2g} apart, {distances.worst_of_rms:.2g} of a '
            f"token's rms (float32, limit {FP32_TOLERANCE:g})",
            distances.worst_of_rms <= FP32_TOLERANCE)
  mine, own = distances.get_rms('export'), distances.get_rms('own')
  return (f"logits {mine:.2g} of their rms from the run's in float32, the run's own in bfloat16 "
          f'{own:.2g} (limit {BF16_FACTOR:g} times that)',
          np.isfinite(distances.worst) and mine <= BF16_FACTOR * own)
