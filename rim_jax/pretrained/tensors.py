"""Names and forms of published models' stored tensors: parameter path -> tensor, by family."""

import dataclasses
import math
import re

from flax import traverse_util


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a parameter stands in a checkpoint.

  name    '{}' is the layer; module: what precedes '.weight' or '.bias'
  stored  for each dimension of the stored tensor, the parameter's dimensions in it (without
          the layer): ((1, 2), (0,)) is a [d, h, k] kernel stored as a [h * k, d] matrix
  """
  name: str
  stored: tuple[tuple[int, ...], ...]

  @property
  def module(self):
    return self.name.rpartition('.')[0]

  def get_stored_shape(self, shape) -> tuple[int, ...]:
    """Shape on disk of a parameter (of one layer) of this shape."""
    return tuple(math.prod(shape[d] for d in dims) for dims in self.stored)


# Parameter path -> stored tensor. A torch Linear stores [out, in]; GPT-2 stores [in, out].


def _make_linear(name, inputs, outputs, flip=True):
  """The kernel and bias of a projection with `inputs` and `outputs` of its dimensions."""
  ins, outs = tuple(range(inputs)), tuple(range(inputs, inputs + outputs))
  return {'kernel': Tensor(f'{name}.weight', (outs, ins) if flip else (ins, outs)),
          'bias': Tensor(f'{name}.bias', (tuple(range(outputs)),))}


def _make_norm(name):
  return {'scale': Tensor(f'{name}.weight', ((0,),)), 'bias': Tensor(f'{name}.bias', ((0,),))}


_WHOLE = ((0,), (1,))
_LAYER = 'model.layers.{}'
_LLAMA = {
    'embedding': Tensor('model.embed_tokens.weight', _WHOLE),
    'final_norm': _make_norm('model.norm'),
    'head': Tensor('lm_head.weight', ((1,), (0,))),
    'blocks': {
        'attention_norm': _make_norm(f'{_LAYER}.input_layernorm'),
        'query': _make_linear(f'{_LAYER}.self_attn.q_proj', 1, 2),
        'key': _make_linear(f'{_LAYER}.self_attn.k_proj', 1, 2),
        'value': _make_linear(f'{_LAYER}.self_attn.v_proj', 1, 2),
        'query_norm': _make_norm(f'{_LAYER}.self_attn.q_norm'),
        'key_norm': _make_norm(f'{_LAYER}.self_attn.k_norm'),
        'out': _make_linear(f'{_LAYER}.self_attn.o_proj', 2, 1),
        'mlp_norm': _make_norm(f'{_LAYER}.post_attention_layernorm'),
        'gate': _make_linear(f'{_LAYER}.mlp.gate_proj', 1, 1),
        'up': _make_linear(f'{_LAYER}.mlp.up_proj', 1, 1),
        'down': _make_linear(f'{_LAYER}.mlp.down_proj', 1, 1)},
}
_GEMMA3 = _LLAMA | {'blocks': _LLAMA['blocks'] | {
    'attention_post_norm': _make_norm(f'{_LAYER}.post_attention_layernorm'),
    'mlp_norm': _make_norm(f'{_LAYER}.pre_feedforward_layernorm'),
    'mlp_post_norm': _make_norm(f'{_LAYER}.post_feedforward_layernorm')}}
_GPT2 = {
    'embedding': Tensor('transformer.wte.weight', _WHOLE),
    'positions': Tensor('transformer.wpe.weight', _WHOLE),
    'final_norm': _make_norm('transformer.ln_f'),
    'head': Tensor('lm_head.weight', ((1,), (0,))),
    'blocks': {
        'attention_norm': _make_norm('transformer.h.{}.ln_1'),
        'qkv': _make_linear('transformer.h.{}.attn.c_attn', 1, 3, flip=False),
        'out': _make_linear('transformer.h.{}.attn.c_proj', 2, 1, flip=False),
        'mlp_norm': _make_norm('transformer.h.{}.ln_2'),
        'up': _make_linear('transformer.h.{}.mlp.c_fc', 1, 1, flip=False),
        'down': _make_linear('transformer.h.{}.mlp.c_proj', 1, 1, flip=False)},
}
TENSORS = {'gpt2': _GPT2, 'llama': _LLAMA, 'mistral': _LLAMA, 'qwen2': _LLAMA, 'qwen3': _LLAMA,
           'gemma3_text': _GEMMA3}


def list_tensors(family: str) -> dict[tuple[str, ...], Tensor]:
  """Parameter path -> tensor, of all that a family may have."""
  return traverse_util.flatten_dict(TENSORS[family])


# Stored tensors that are no parameters, by name; a tied `lm_head` is one of them too.
BUFFERS = re.compile(r'.*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq')
# A prefix that some checkpoints have and others lack.
OPTIONAL_PREFIX = 'transformer.'
