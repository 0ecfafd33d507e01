"""Makes `tests/golden/`: small random models as transformers saves them, and what they compute.

  python tests/make_golden.py            (needs the extra: pip install -e '.[hf]')

Each folder is a model directory as a user has one (config.json, model.safetensors,
tokenizer.json) plus golden.npz: ids of two texts, transformers' fp32 logits of each text
alone and under left and right padding, and 32 greedy tokens. `pretrained_test.py` holds
rim_jax to them; where the extra is installed, a test marked `hf` makes them again.
"""

import argparse
import pathlib

import numpy as np
import tokenizers
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'golden'
LENGTHS, NUM_GREEDY, PAD_TO = (24, 13), 32, 24
TEXT = 'Tom has 3 boxes of 12 pens; he gives 7 of the pens away. How many pens are left? '

_LLAMA = {'hidden_size': 16, 'intermediate_size': 40, 'num_hidden_layers': 2,
          'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 128,
          'rms_norm_eps': 1e-5}
# Rotary tables scaled past an original length that the texts exceed.
_LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 10_000.0, 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}


def make_models(vocab_size, eos_id):
  """Name -> a model of that family, every parameter off its initial value."""
  ids = {'vocab_size': vocab_size, 'bos_token_id': eos_id, 'eos_token_id': eos_id}
  llama = transformers.LlamaForCausalLM
  models = {
      'gpt2': transformers.GPT2LMHeadModel(transformers.GPT2Config(
          n_embd=16, n_layer=2, n_head=4, n_positions=128, **ids)),
      'llama': llama(transformers.LlamaConfig(
          **_LLAMA, **ids, tie_word_embeddings=True, rope_parameters={
              'rope_type': 'default', 'rope_theta': 10_000.0})),
      'llama3': llama(transformers.LlamaConfig(
          **_LLAMA, **ids, tie_word_embeddings=False, rope_parameters=_LLAMA3)),
      'qwen2': transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
          **_LLAMA, **ids, tie_word_embeddings=True)),
      'qwen3': transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
          **_LLAMA, **ids, head_dim=8, tie_word_embeddings=False)),
      # A local, a global and a local layer; the window is longer than any text.
      'gemma3': transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
          **_LLAMA | {'num_hidden_layers': 3}, **ids, head_dim=8, query_pre_attn_scalar=5,
          sliding_window=64, sliding_window_pattern=2, rope_parameters={
              'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
              'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 10_000.0}})),
  }
  generator = torch.Generator().manual_seed(0)
  for model in models.values():
    model.eval()
    with torch.no_grad():
      for name, p in model.named_parameters():
        # Norms around 1 and everything else wide, so that an error anywhere reaches the logits.
        base = 1.0 if 'norm' in name or ('ln_' in name and name.endswith('weight')) else 0.0
        p.copy_(base + 0.3 * torch.randn(p.shape, generator=generator))
  return models


def make_tokenizer(add_bos):
  """A byte-level BPE of 272 ids; the families differ in whether a text begins with bos."""
  bpe = tokenizers.ByteLevelBPETokenizer()
  bpe.train_from_iterator([TEXT] * 4, 272, show_progress=False, special_tokens=['<|end|>'])
  fast = transformers.PreTrainedTokenizerFast(
      tokenizer_object=bpe._tokenizer, bos_token='<|end|>', eos_token='<|end|>',
      pad_token='<|end|>')
  if add_bos:
    fast.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='<|end|> $A', special_tokens=[('<|end|>', fast.eos_token_id)])
  return fast


def compute_golden(model, ids, pad_id):
  """What golden.npz holds, from fp32 forwards on the CPU."""
  golden = {}
  # Nothing ends a text, nor is suppressed: a model may choose the id of eos as any other.
  model.generation_config.eos_token_id = None
  for side in ('right', 'left'):
    tokens = torch.full((len(ids), PAD_TO), pad_id)
    mask = torch.zeros_like(tokens)
    for row, text in enumerate(ids):
      at = slice(0, len(text)) if side == 'right' else slice(PAD_TO - len(text), PAD_TO)
      tokens[row, at], mask[row, at] = torch.tensor(text), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(tokens, attention_mask=mask, position_ids=positions).logits
    golden[f'logits_{side}_padded'] = logits[1][mask[1].bool()].numpy()
  for row, text in enumerate(ids):
    golden[f'ids_{row}'] = np.asarray(text)
    golden[f'logits_{row}'] = model(torch.tensor([text])).logits[0].numpy()
    out = model.generate(torch.tensor([text]), attention_mask=torch.ones(1, len(text)),
                         max_new_tokens=NUM_GREEDY, do_sample=False,
                         pad_token_id=pad_id)
    golden[f'greedy_{row}'] = out[0, len(text):].numpy()
  return golden


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, default=FOLDER)
  out = parser.parse_args().out
  torch.set_grad_enabled(False)
  plain = make_tokenizer(add_bos=False)
  for name, model in make_models(len(plain), plain.eos_token_id).items():
    tokenizer = make_tokenizer(add_bos=name.startswith(('llama', 'gemma')))
    whole = tokenizer(TEXT).input_ids
    folder = out / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = [(whole * 2)[:n] for n in LENGTHS]
    np.savez_compressed(folder / 'golden.npz', **compute_golden(model, ids, plain.eos_token_id))


if __name__ == '__main__':
  main()
