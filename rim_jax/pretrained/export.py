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
import os
import pathlib
import tempfile
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from rim_jax.config import Config
from rim_jax.data import gguf
from rim_jax.errors import UserError, list_broken, refuse
from rim_jax.model import lora
from rim_jax.model.network import Network
from rim_jax.pretrained import families, lm_eval_task, peft, prompts, verification, weights
from rim_jax.pretrained import tensors as tensors_lib
from rim_jax.runtime import hosts

EXPORT_VERSION = 2  # 1 named the block tokens <b>, <m>, </b>, which is HTML


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an exported model comes from, for export.json."""
  base: weights.Base
  run: str  # its WORKDIR
  step: int


def check_exportable(config: Config, base: weights.Base | None, where) -> None:
  """Raises: UserError where a plain causal engine could not run the model."""
  problems = list_broken(
      (base is None,
       'was not made from a Hugging Face directory (model.init_from), whose config.json and '
       'tokenizer an export needs; train from one'),
      (not config.layout.readout_sees_question,
       'has layout.readout_sees_question=False, which a plain causal engine cannot run; train with '
       'True'),
      (config.layout.bidirectional_blocks,
       'has layout.bidirectional_blocks=True, which a plain causal engine cannot run; train with '
       'False'),
      (config.feeds_back and config.layout.num_blocks,
       'feeds hidden states back as inputs, which a plain engine cannot run'),
      (config.export.adapters and config.optim.trainable != 'lora',
       f"has optim.trainable='{config.optim.trainable}', so there are no adapters to write; export "
       'merged weights with --config.export.adapters=False'))
  refuse([f'{where}: {p}' for p in problems])


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


def write_export(out, network: Network, origin: Origin, records, references=None, say=print
                 ) -> dict:
  """Writes a run's model below `out` as `config.export` says.

  Every process takes part, since each has a part of every array; process 0 writes.

  Args:
    records: on whose questions the exported tokenizer is held to the layout's ids, and which the
      task of lm-evaluation-harness asks.
    references: `verification.iterate_references`, which transformers is held to before the folder
      appears.
  Returns: the content of export.json.
  Raises: UserError where tokens or ids do not allow it, or `out` exists.
  """
  config, base = network.config, origin.base
  with contextlib.ExitStack() as stack:
    folder = None

    def begin():
      nonlocal folder
      folder = stack.enter_context(_appear_whole(pathlib.Path(out)))
      ids = prompts.write_tokenizer(folder, config, base)
      prompts.check_prompts(folder, config, network.codec, ids, [r.question for r in records])
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
            'tokens': dict(zip(prompts.BLOCK_TOKENS, ids)), 'untied': config.export.untie,
            'dtype': config.export.dtype, 'prompt': prompts.make_prompt('{question}', config),
            'answer_suffix': config.layout.answer_suffix,
            'num_blocks': config.eval_blocks, 'block_tokens': config.layout.block_tokens,
            'max_new_tokens': config.eval.max_new_tokens}
    if references is not None:
      card['verified'] = _verify(folder, config, network.codec, references, say)
    if folder:
      prompts.write_json(folder / 'export.json', card)
      if not config.export.adapters:
        texts = [prompts.make_prompt(r.question, config) for r in records]
        lm_eval_task.write_task(folder, config, texts, records)
      model = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).model
      # What marks spaces as SentencePiece does is not byte-level.
      (folder / 'README.md').write_text(_describe(config, card, (
          network.codec.tokenizer.marks_start or getattr(model, 'byte_fallback', False))))
  return card


def _verify(folder, config, codec, references, say):
  """Process 0 compares; every process computes the references."""
  def compare():
    try:
      return verification.compare_with_transformers(folder, config, codec, references, say)
    except UserError:
      collections.deque(references, 0)  # those that are left: the others compute them too
      raise
  if folder is None:
    collections.deque(references, 0)
  return hosts.lead(compare)


def iterate_tensors(config: Config, base: weights.Base, params, frozen):
  """(stored name, array as it is stored, in f32) of every base parameter, adapters merged."""
  merge = jax.jit(lora.merge, static_argnums=3)
  flat: dict[tuple, Any] = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(params)
  for path, tensor in tensors_lib.list_tensors(base.family).items():
    if path not in flat:  # of a setting that this model has not got
      continue
    value, adapter = flat[path], (*path[:-1], 'adapter')
    for i in range(len(value) if path[0] == 'blocks' else 1):
      # Layer by layer: no host holds a whole stack in f32.
      part = value[i] if path[0] == 'blocks' else value
      if path[-1] == 'kernel' and (*adapter, 'a') in flat:
        part = merge(part[None], *(flat[*adapter, k][i:i + 1] for k in 'ab'), config.model.lora)[0]
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
  get_id = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).token_to_id
  eos = get_id(config.tokenizer.eos_token)
  tree |= {'vocab_size': num_rows, 'tie_word_embeddings': not untie, 'dtype': config.export.dtype,
           'eos_token_id': eos}
  if config.tokenizer.bos_token:
    tree['bos_token_id'] = get_id(config.tokenizer.bos_token)
  prompts.write_json(folder / 'config.json', tree)
  generation = {'eos_token_id': eos, 'pad_token_id': eos, 'do_sample': False}
  if not untie:
    generation['suppress_tokens'] = list(no_text)
  prompts.write_json(folder / 'generation_config.json', generation)
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


def _describe(config, card, is_sentencepiece):
  prompt = prompts.make_prompt('QUESTION', config).replace('\n', '\\n')
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
    lines += ['', lm_eval_task.README]
    if is_sentencepiece:
      lines += ['', 'llama.cpp may make other tokens of the prompt: with a tokenizer in '
                "SentencePiece's manner it can put a space behind every special token, block "
                'tokens among them, and its converter finds no scores without tokenizer.model. '
                'Give it ids and no text: '
                '`"prompt": [ids]` with `tokenizers.Tokenizer.from_file("tokenizer.json")'
                '.encode(prompt).ids`.']
  if card['kind'] == 'adapters':
    path = pathlib.Path(card['base']['path']).absolute()
    num_rows = max(card['tokens'].values()) + 1
    lines += ['', f'These are PEFT adapters for the model in `{path}`. Resize its embedding to at '
              f'least {num_rows} rows before loading them, and suppress the three ids when '
              'generating.']
    if gguf.is_gguf(path):
      lines += ['', 'That is a GGUF file, which `AutoPeftModel` does not find. Load it first, and '
                'then the adapters:', '', '```python', 'import peft', 'import transformers', '',
                f'model = transformers.AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, '
                f'gguf_file={path.name!r})',
                f'model.resize_token_embeddings(max({num_rows}, model.config.vocab_size))',
                "model = peft.PeftModel.from_pretrained(model, '.')  # this directory", '```']
  elif not card['untied'] and config.model.tie_embeddings:
    lines += ['', 'The output matrix is tied to the embedding, so the three ids are kept out by '
              '`suppress_tokens` in generation_config.json. `transformers` honours it; engines '
              'that ignore it (vLLM among them) may generate block tokens: export untied for '
              'those.']
  return '\n'.join(lines) + '\n'
