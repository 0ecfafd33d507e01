"""What an export is asked with: the tokenizer with the block tokens, and the prompt as one text."""

import json
import pathlib
import shutil

import tokenizers

from rim_jax.config import Config
from rim_jax.data import gguf as gguf_lib
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError, check
from rim_jax.packing import layout as layout_lib
from rim_jax.pretrained import families

# In the order of the memory rows; names that no text spells by accident.
BLOCK_TOKENS = ('<|rim_begin|>', '<|rim_memory|>', '<|rim_end|>')
_SETTINGS = 'tokenizer_config.json'
_TOKENS, _TEMPLATE = 'special_tokens_map.json', 'chat_template.jinja'


def make_prompt(question: str, config: Config) -> str:
  """The text whose tokens are `[x | m_1 .. m_K | answer prefix]`, bos aside."""
  begin, memory, end = BLOCK_TOKENS
  block = begin + memory * config.layout.block_tokens + end
  prefix = '' if config.facts.writes_steps else config.layout.answer_prefix
  layout = config.layout
  return (layout.question_prefix + question + layout.separator + block * config.eval_blocks
          + prefix)


def write_tokenizer(folder, config, base) -> list[int]:
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
  bos = config.tokenizer.bos_token
  # Where the run has no bos and the tokenizer adds some, it stays: `check_prompts` tells it.
  if bos and tokenizer_lib.list_added(tokenizer) != ([bos], []):
    tokenizer = tokenizer_lib.make_begin(tokenizer, bos)
  if tokenizer_lib.make_inside(tokenizer) is not tokenizer:
    tokenizer = tokenizer_lib.make_first_only(tokenizer)
  tokenizer.save(str(folder / 'tokenizer.json'))
  _write_settings(folder, config, base, tokenizer)
  return ids


def _write_settings(folder, config, base, tokenizer) -> None:
  """The files that engines read beside tokenizer.json, with the run's bos and eos."""
  added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

  def put_ends(tree):
    for key in ('bos_token', 'eos_token'):
      text, old = getattr(config.tokenizer, key), tree.get(key)
      if text and text not in added:
        tree.pop(key, None)  # transformers would split every word at a plain token that it names
      elif text and text != (old.get('content') if isinstance(old, dict) else old):
        tree[key] = text

  def read(name):
    there = base.folder / name
    return families.load_json(there) if there.exists() else {}
  is_gguf = gguf_lib.is_gguf(base.folder)
  settings = families.read_tokenizer_config(base.folder) if is_gguf else read(_SETTINGS)
  put_ends(settings)
  # tokenizer.json has all. The class of some models makes parts of it anew, e.g. what puts a space
  # or bos before a text; and a list of added tokens here, which knows no block tokens, would count
  # for more than that of tokenizer.json.
  settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
  settings.pop('added_tokens_decoder', None)
  # Left open, llama.cpp has its own mind.
  settings |= {'add_bos_token': bool(config.tokenizer.bos_token), 'add_eos_token': False}
  write_json(folder / _SETTINGS, settings)
  if not is_gguf and (base.folder / _TOKENS).exists():
    tokens = read(_TOKENS)
    put_ends(tokens)
    write_json(folder / _TOKENS, tokens)
  if not is_gguf and (base.folder / _TEMPLATE).exists():
    shutil.copy(base.folder / _TEMPLATE, folder)


def write_json(path, tree):
  path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + '\n')


def check_prompts(folder, config: Config, codec, ids, questions) -> None:
  """Holds the exported tokenizer's ids of prompts to those that `packing/layout.py` builds.

  Raises: UserError naming the first question where they differ, and for tokens that the tokenizer
    adds to a text where the run has no bos.
  """
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  to_export = {codec.memory_start + i: id_ for i, id_ in enumerate(ids)}
  prefix = [] if config.facts.writes_steps else codec.template.answer_prefix
  before, behind = tokenizer_lib.list_added(tokenizer)
  if not config.tokenizer.bos_token and before + behind:
    raise UserError(
        f'the tokenizer {f"begins texts with {before}" if before else f"ends texts with {behind}"}'
        ', which the run was trained without; train with --config.tokenizer.bos_token set')
  for question in questions:
    trunk = layout_lib.make_trunk(codec.encode_question(question), config.eval_blocks,
                                    config.layout, codec.memory_start)
    want = [to_export.get(i, i) for i in trunk] + list(prefix)
    # As engines do, with the bos that the tokenizer itself adds.
    found = tokenizer.encode(make_prompt(question, config)).ids
    spelled = next((t for t in BLOCK_TOKENS if t in question), '')
    check((spelled, f'the question {question[:60]!r} spells the block token {spelled}, which '
           'engines would take for memory; remove it from the data'),
          (found != want,
           f'the prompt of {question[:60]!r} has other tokens as one text than as the segments '
           f'it was trained on; with this tokenizer train with another layout.separator than '
           f'{config.layout.separator!r}'))
