"""Published model families: what their config.json means here.

A key of config.json that could change the arithmetic and is not understood is an error, never
ignored. Reads small text files only; `pretrained/tensors.py` has the names of tensors, and
`pretrained/weights.py` their values.
"""

import dataclasses
import functools
import pathlib
import re

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax.config import Config, ModelConfig, TokenizerConfig, rules
from rim_jax.data import gguf as gguf_lib
from rim_jax.data import hub
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import UserError, refuse
from rim_jax.pretrained import chat, gguf

# Keys that change no arithmetic of a forward pass without dropout.
_HARMLESS = re.compile(
    r'architectures|model_type|(torch_)?dtype|transformers_version|use_cache|(_model)?_name_or_path|name'
    r'|(bos|eos|pad|unk|decoder_start|sep)_token_id|initializer_range|attention_dropout|\w+_pdrop'
    r'|summary_\w+|task_specific_params|id2label|label2id|n_ctx|gradient_checkpointing'
    r'|output_past|_attn_implementation|reorder_and_upcast_attn|is_llama_config'
    r'|max_window_layers|transformers\.js_config|resid_dropout'
    r'|keys_to_ignore_at_inference|problem_type|return_dict|tokenizer_class|unsloth_\w+'
    r'|cache_implementation|n_special|predict_special_tokens|_num_labels'
    # What old files say of generating.
    r'|(max|min)_length|top_[kp]|temperature|num_beams|do_sample|repetition_penalty|length_penalty'
    r'|chunk_size_feed_forward')


class _Reader:
  """The keys of a config.json, each taken at most once; what is left over is a problem."""

  def __init__(self, tree, where=''):
    self._tree, self._where, self.problems = dict(tree), where, []

  def complain(self, text):
    self.problems.append(f'{self._where}{text}')

  def take(self, key, kind, default=None):
    """A value of exactly this type (a whole number may stand for a float); absent: the default."""
    value = self._tree.pop(key, None)
    if value is None and default is not None:
      return default
    if value is None:
      self.complain(f"lacks '{key}'")
    elif kind is float and type(value) is int and abs(value) < 1e300:
      return float(value)
    elif type(value) is not kind:
      self.complain(f'has {key}={value!r}, which should be {kind.__name__}')
    else:
      return value
    return kind()  # of no use: there is a problem

  def expect(self, key, *allowed):
    """The first of `allowed` is the meaning of an absent key."""
    value = self._tree.pop(key, None)
    value = allowed[0] if value is None else value
    if not any(type(value) is type(a) and value == a for a in allowed):
      self.complain(f'has {key}={value!r}, which is not supported; '
                    f"supported: {', '.join(map(repr, allowed))}")
    return value

  def take_rope(self):
    """Rotary settings, in the spelling of transformers 5 (`rope_parameters`) or before."""
    theta = self.take('rope_theta', float, 10_000.0)
    found = {key: value for key in ('rope_parameters', 'rope_scaling')
             if (value := self._tree.pop(key, None)) is not None}
    rope = next(iter(found.values()), {})
    if not isinstance(rope, dict) or any(value != rope for value in found.values()):
      self.complain(f'has {found}; one group of rotary settings is supported')
      rope = {}
    inner = _Reader(rope, 'rotary settings: ')
    theta = inner.take('rope_theta', float, theta)
    kinds = {inner.expect(key, 'default', 'linear', 'llama3')
             for key in ('rope_type', 'type') if key in rope}
    inner.expect('partial_rotary_factor', 1.0, 1)
    if len(kinds) > 1:
      inner.complain(f'have both of {sorted(kinds)}')
    fields = {'positions': 'rope', 'rope_theta': theta, 'rope_scaling': 'none'}
    if kinds == {'linear'}:
      fields |= {'rope_scaling': 'linear', 'rope_factor': inner.take('factor', float)}
    if kinds == {'llama3'}:
      fields |= {
          'rope_scaling': 'llama3', 'rope_factor': inner.take('factor', float),
          'rope_low_freq_factor': inner.take('low_freq_factor', float),
          'rope_high_freq_factor': inner.take('high_freq_factor', float),
          'rope_original_positions': inner.take('original_max_position_embeddings', int)}
    inner.refuse_unknown()
    self.problems += inner.problems
    return fields

  def refuse_unknown(self):
    """Complains about keys that nobody took, unless they are harmless or switched off."""
    for key, value in self._tree.items():
      off = value is None or value is False or value in ([], {})
      if not off and not _HARMLESS.fullmatch(key):
        self.complain(f'has {key}={value!r}, which rim_jax does not know; if it changes no '
                      'arithmetic, remove the key')


def _read_gpt2(reader: _Reader) -> dict:
  for key, value in (('scale_attn_weights', True), ('scale_attn_by_inverse_layer_idx', False),
                     ('add_cross_attention', False)):
    reader.expect(key, value)
  activation = reader.expect('activation_function', 'gelu_new', 'gelu_pytorch_tanh', 'gelu')
  width = reader.take('n_embd', int)
  return {
      'num_layers': reader.take('n_layer', int), 'embed_dim': width,
      'num_heads': reader.take('n_head', int), 'mlp_dim': reader.take('n_inner', int, 4 * width),
      'vocab_size': reader.take('vocab_size', int), 'norm': 'layernorm',
      'norm_eps': reader.take('layer_norm_epsilon', float, 1e-5),
      'activation': 'gelu' if activation == 'gelu' else 'gelu_tanh', 'positions': 'learned',
      'max_positions': reader.take('n_positions', int), 'bias': 'all', 'fused_qkv': True,
      'tie_embeddings': reader.take('tie_word_embeddings', bool, True)}


def _read_llama(reader: _Reader, *, required=(), bias='none', qk_norm=False) -> dict:
  """Also of families like it; the absence of a key may mean something else there: `required`."""
  for key, value in (('hidden_act', 'silu'), ('attention_bias', False), ('mlp_bias', False),
                     ('pretraining_tp', 1), ('rope_interleaved', False), ('is_causal', True)):
    reader.expect(key, value)
  kinds = reader.take('layer_types', list, ['full_attention'])
  if any(kind != 'full_attention' for kind in kinds):
    reader.complain(f'has layer_types={kinds}; only full_attention is supported')
  heads, width = reader.take('num_attention_heads', int), reader.take('hidden_size', int)
  usual = {'num_key_value_heads': heads, 'head_dim': width // max(heads, 1)}
  kv_heads, head_dim = (reader.take(key, int, None if key in required else value)
                        for key, value in usual.items())
  return {
      'num_layers': reader.take('num_hidden_layers', int), 'embed_dim': width, 'num_heads': heads,
      'num_kv_heads': kv_heads, 'head_dim': head_dim,
      'mlp_dim': reader.take('intermediate_size', int),
      'vocab_size': reader.take('vocab_size', int), 'norm': 'rmsnorm',
      'norm_eps': reader.take('rms_norm_eps', float, 1e-6), 'activation': 'swiglu',
      'max_positions': reader.take('max_position_embeddings', int), 'bias': bias,
      'qk_norm': qk_norm, 'tie_embeddings': reader.take('tie_word_embeddings', bool, False),
      **reader.take_rope()}


def _read_mistral(reader: _Reader) -> dict:
  """Llama, but for a window in every layer."""
  window = reader.take('sliding_window', int, 0)
  return _read_llama(reader, required=('num_key_value_heads',)) | {'sliding_window': window}


def _read_qwen(reader: _Reader, **settings) -> dict:
  """Qwen says whether it uses its window, and what its defaults leave open is asked for."""
  reader.expect('use_sliding_window', False)
  reader.take('sliding_window', int, 0)  # unread unless it is used
  return _read_llama(reader, **settings)


def _read_gemma3(reader: _Reader) -> dict:
  """The text model of Gemma 3: `gemma3_text`, of Gemma3ForCausalLM."""
  reader.expect('hidden_activation', 'gelu_pytorch_tanh')
  reader.expect('attention_bias', False)
  head_dim, layers = reader.take('head_dim', int), reader.take('num_hidden_layers', int)
  scale_dim = reader.take('query_pre_attn_scalar', int, 256)
  # More layers are refused below, and a list of them would take all memory.
  every = _take_layer_kinds(reader, min(layers, rules.MOST_LAYERS))
  window = reader.take('sliding_window', int, 0)
  return {
      'num_layers': layers, 'embed_dim': reader.take('hidden_size', int),
      'num_heads': reader.take('num_attention_heads', int),
      'num_kv_heads': reader.take('num_key_value_heads', int), 'head_dim': head_dim,
      'mlp_dim': reader.take('intermediate_size', int),
      'vocab_size': reader.take('vocab_size', int), 'norm': 'rmsnorm_1p', 'post_norms': True,
      'norm_eps': reader.take('rms_norm_eps', float, 1e-6), 'activation': 'geglu',
      'max_positions': reader.take('max_position_embeddings', int), 'bias': 'none',
      'qk_norm': True, 'query_scale_dim': 0 if scale_dim == head_dim else scale_dim,
      'tie_embeddings': reader.take('tie_word_embeddings', bool, True), 'scale_embeddings': True,
      'global_every': every, 'sliding_window': window if every else 0, **_take_two_ropes(reader)}


def _take_layer_kinds(reader, num_layers):
  """Every how manyth layer is global; 0 where all of them are."""
  def make(every):
    return ['sliding_attention' if i % every else 'full_attention'
            for i in range(1, num_layers + 1)]
  said = [reader.take(key, int, 0) for key in ('sliding_window_pattern', '_sliding_window_pattern')]
  kinds = reader.take('layer_types', list, make(max(*said, 0) or 6))
  every = kinds.index('full_attention') + 1 if 'full_attention' in kinds else num_layers + 1
  if kinds != make(every):
    reader.complain(f'has layer_types={kinds}; sliding_attention with full_attention at regular '
                    'places is supported')
  return 0 if every == 1 else every


def _take_two_ropes(reader):
  """Rotary settings of global and of local layers, in either spelling."""
  groups = dict(reader.take('rope_parameters', dict, {}))
  whole = reader.take('rope_scaling', dict, {}) or None
  both = []
  for kind, key, theta, scaling in (('full_attention', 'rope_theta', 1e6, whole),
                                    ('sliding_attention', 'rope_local_base_freq', 1e4, None)):
    inner = _Reader({'rope_theta': reader.take(key, float, theta), 'rope_scaling': scaling,
                     'rope_parameters': groups.pop(kind, None)})
    both.append(inner.take_rope())
    reader.problems += [f'{kind}: {problem}' for problem in inner.problems]
  if groups:
    reader.complain(f'has rope_parameters for {sorted(groups)}, which are no kinds of layers here')
  whole, local = both
  if local['rope_scaling'] != 'none':
    reader.complain('has scaled rotary positions in sliding layers, which are not supported')
  return whole | {'local_rope_theta': local['rope_theta']}


_READERS = {'gpt2': _read_gpt2, 'llama': _read_llama, 'mistral': _read_mistral,
            'qwen2': functools.partial(
                _read_qwen, required=('num_key_value_heads',), bias='qkv'),
            'qwen3': functools.partial(
                _read_qwen, required=('num_key_value_heads', 'head_dim'), qk_norm=True),
            'gemma3_text': _read_gemma3}


_KINDS = ('model.init_from is a GGUF file or a directory with config.json, *.safetensors and '
          'tokenizer.json')


def load_json(path, hint=_KINDS):
  """Raises: UserError naming the file, with the hint where it is missing."""
  return reader.load_json(path, 'fetch it again', absent=hint)


def parse_model(tree: dict, where) -> dict:
  """config.json -> the fields of ModelConfig that it decides.

  Raises: UserError for another family, and for every key that is missing, unsupported or unknown.
  """
  family = tree.get('model_type')
  if not isinstance(family, str) or family not in _READERS:
    raise UserError(f"{where}: model_type={family!r} is not supported; there are "
                    f"{', '.join(_READERS)}")
  reader = _Reader(tree)
  if tree.get('quantization_config'):
    reader.complain('is of a quantized model; use the unquantized one')
    reader.take('quantization_config', type(tree['quantization_config']))
  fields = _READERS[family](reader)
  reader.refuse_unknown()
  refuse([f'{where}: {p}' for p in reader.problems])
  return fields


def get_folder(config: ModelConfig, kind: str = 'model') -> pathlib.Path:
  """The directory, or the GGUF file, that `init_from` names, fetched where it is on the hub.

  Args:
    kind: 'description' for a directory that may lack its weights.
  Raises: UserError where '~user' is nobody's, and as `hub.fetch` does.
  """
  if hub.is_name(config.init_from):
    return hub.fetch(config.init_from, kind).path
  try:
    return pathlib.Path(config.init_from).expanduser()
  except RuntimeError as e:
    raise UserError(f"model.init_from='{config.init_from}': {e}") from None


def read_config(path: pathlib.Path) -> dict:
  """The config.json of a model directory, or what a GGUF file says in its place."""
  return gguf.read_config(path) if gguf_lib.is_gguf(path) else load_json(path / 'config.json')


def read_tokenizer_config(path: pathlib.Path) -> dict:
  """The tokenizer_config.json of a model, {} without one; 'chat_template' from where it stands."""
  if gguf_lib.is_gguf(path):
    header = gguf_lib.read_header(path)
    tree = {f'{name}_token': gguf_lib.get_token(header, name) for name in ('bos', 'eos')} | {
        'chat_template': header.metadata.get('tokenizer.chat_template')}
    return {key: value for key, value in tree.items() if value is not None}
  file, template = path / 'tokenizer_config.json', path / 'chat_template.jinja'
  tree = load_json(file) if file.exists() else {}
  if not template.exists():
    return tree
  return tree | {'chat_template': reader.read_text(template, 'fetch it again')}


def get_origin(config: ModelConfig) -> str:
  """The name and revision of a model from the hub, '' for any other."""
  name = config.init_from
  return hub.fetch(name, 'model').origin if hub.is_name(name) else ''


def find_tokenizer(folder: pathlib.Path) -> TokenizerConfig:
  """The model's own tokenizer, with its eos, and its bos if it begins texts with one.

  Raises: UserError where its eos cannot be told, or it adds other tokens to a text than one before.
  """
  path = folder if gguf_lib.is_gguf(folder) else folder / 'tokenizer.json'
  eos = read_tokenizer_config(folder).get('eos_token')
  tokenizer = tokenizer_lib.read_file(path, _KINDS)
  eos = eos.get('content') if isinstance(eos, dict) else eos
  if not isinstance(eos, str | None):
    raise UserError(f'{folder}: eos_token is {str(eos)[:40]!r}, which is no text; fetch it again')
  if not eos:
    ids = read_config(folder).get('eos_token_id')
    ids = ids[0] if isinstance(ids, list) and ids else ids
    eos = tokenizer.id_to_token(ids) if type(ids) is int and 0 <= ids < 1 << 32 else None
  if not eos:
    raise UserError(f'{folder}: does not name an eos token; '
                    f'set --config.tokenizer.kind=file --config.tokenizer.path={path} '
                    '--config.tokenizer.eos_token=...')
  # What its tokenizer_config.json names goes for nothing: texts begin as the tokenizer has them.
  before, behind = tokenizer_lib.list_added(tokenizer)
  if len(before) > 1 or behind:
    raise UserError(f'{path}: puts {before} before a text and {behind} behind it, where one token '
                    'before it, a bos, is supported; set --config.tokenizer.kind=file '
                    f'--config.tokenizer.path={path} --config.tokenizer.eos_token={eos} and, where '
                    'rows should begin with one, --config.tokenizer.bos_token')
  return TokenizerConfig(kind='file', path=str(path), eos_token=eos, bos_token=''.join(before))


def find_moved_tokenizer(path: str, before: str, model: ModelConfig) -> str:
  """Where a model's own tokenizer is now, by where both were; any other tokenizer stays.

  Args:
    before: the model's `init_from` then.
  """
  inside = '' if path == before else path.removeprefix(f'{before}/')
  # Of a model from the hub it was in the cache, maybe of another machine.
  has_moved = not pathlib.Path(path).exists() if hub.is_name(before) else (
      inside != path and model.init_from != before)
  if not has_moved:
    return path
  folder = get_folder(model, 'description')
  if gguf_lib.is_gguf(folder):
    return str(folder)
  is_usual = not inside or hub.is_name(before)
  return str(folder / ('tokenizer.json' if is_usual else inside))


def render_chat(folder: pathlib.Path, tokenizer: TokenizerConfig) -> tuple[str, str]:
  """What a directory's chat template puts before a user's question and between it and the answer.

  Rendered once, in a sandbox, and without a date; the bos is the tokenizer's.
  Raises: UserError where there is no template, or it does not hold the question once.
  """
  text = read_tokenizer_config(folder).get('chat_template')
  if isinstance(text, list):  # of several, each with its name
    named = {one.get('name'): one.get('template') for one in text if isinstance(one, dict)}
    text = named.get('default')
    if named and not isinstance(text, str):
      raise UserError(
          f"{folder}: has chat templates {', '.join(map(str, named))}, and none that is named "
          'default; write the one to use into its chat_template.jinja, or use '
          '--config.layout.chat_template=False')
  if not isinstance(text, str):
    raise UserError(f'{folder}: has no chat template; use --config.layout.chat_template=False')
  question = '\0question\0'
  text = chat.render(folder, text, question, tokenizer.bos_token, tokenizer.eos_token)
  before, found, after = text.partition(question)
  if not found or question in after:
    raise UserError(f'{folder}: the chat template does not hold the question once; use '
                    '--config.layout.chat_template=False')
  return before.removeprefix(tokenizer.bos_token), after


def resolve(config: Config) -> Config:
  """The config with its model's shape, its tokenizer and its chat template read from
  `model.init_from`.

  Raises: UserError as `resolve_shape` does, and where a tokenizer or template cannot be told.
  """
  if not config.model.init_from:
    return config
  config = resolve_shape(config)
  folder = get_folder(config.model, 'description')
  tokenizer, unset = config.tokenizer, TokenizerConfig()
  if tokenizer.add_bos:
    raise UserError('tokenizer.add_bos=True is not for the tokenizer of a pretrained model; give '
                    'the text of its token as tokenizer.bos_token')
  if (tokenizer.kind, tokenizer.path) == (unset.kind, unset.path):
    said = {key: text for key in ('bos_token', 'eos_token') if (text := getattr(tokenizer, key))}
    tokenizer = dataclasses.replace(find_tokenizer(folder), **said)
  layout = config.layout
  if layout.chat_template:
    before, after = render_chat(folder, tokenizer)
    if layout.question_prefix not in ('', before) or layout.separator not in ('', '\n', after):
      raise UserError('layout.chat_template=True sets layout.question_prefix and '
                      'layout.separator; leave them unset')
    layout = dataclasses.replace(layout, question_prefix=before, separator=after)
  return _check(dataclasses.replace(config, tokenizer=tokenizer, layout=layout), folder)


def resolve_shape(config: Config) -> Config:
  """The config with its model's shape read from the config.json in `model.init_from`, and no more.

  A shape key that is set beside init_from, to another value than its default, must agree.
  Raises: UserError naming every key that disagrees, and what `parse_model` raises.
  """
  if not config.model.init_from:
    return config
  folder = get_folder(config.model, 'description')
  where = folder if gguf_lib.is_gguf(folder) else folder / 'config.json'
  fields = parse_model(read_config(folder), where)
  unset = dataclasses.asdict(ModelConfig())
  refuse([
      f'model.{key}={getattr(config.model, key)!r}, but {where} has {value!r}; '
      'another model, or the wrong preset?' for key, value in fields.items()
      if getattr(config.model, key) not in (value, unset[key])])
  return _check(dataclasses.replace(
      config, model=dataclasses.replace(config.model, **fields)), folder)


def _check(config, folder):
  refuse([f'{folder}: {p}' for p in config_lib.find_problems(config)])
  return config
