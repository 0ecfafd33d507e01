"""CODI: thoughts in one stage, held to the written chain by the states where the answer begins.

As many thoughts as Coconut ends with, and no curriculum (arXiv 2502.21074; what differs from its
code stands in rim_jax/methods/codi.py). Else as rim.py.

  python -m rim_jax.main --config=configs/codi.py
      The chain task. Cost: not measured alone. Score: 10.9 / 18.7 / 20.3 %
      (seeds 0 / 1 / 2; chance is 10); 99.9 with seed 3.
  python -m rim_jax.main --config=configs/codi.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      9.7 % (seed 0, chance); others not measured.
      On GPT-2 and the 1B model learning rates are its authors', on the 3B one SIM-CoT's; the
      weight of distances is as theirs, 1 and on Llama 20, which they divide over one layer more.
      They train for 40 epochs (GPT-2) and 10 (1B); the presets train all for 8.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('codi', preset)
