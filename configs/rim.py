"""RiM whole: stage 1 grounds each block in a step, stage 2 answers after every block.

  python -m rim_jax.main --config=configs/rim.py
      The built-in chain task: 3 to 5 minutes of 2 CPU cores; 99.5 to 100 % of held-out questions
      right after the last block (seeds 0 to 2).
  python -m rim_jax.main --config=configs/rim.py:gsm8k --config.data.dir=DIR
      Real GSM8K, the whole way; far too small to learn it (docs/results.md).
  python -m rim_jax.main --config=configs/rim.py:gsm8k_perturbed --config.data.dir=DIR
      386 K problems made from GSM8K's, a GPT-2-sized network from scratch (docs/data.md).
  python -m rim_jax.main --config=configs/rim.py:prosqa_small
      ProsQA on graphs of 8 to 10 nodes; :prosqa is its published size (docs/data.md).
  python -m rim_jax.main --config=configs/rim.py:llama3_2_1b --config.model.init_from=DIR ...
      A pretrained model with LoRA (docs/pretrained.md); also gpt2 and llama3_2_3b.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim', preset)
