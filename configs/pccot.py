"""PCCoT: thoughts found together in three iterations, held to the written chain as CODI's are.

As many thoughts as Coconut ends with; 24 on SmolLM2 and GPT-2, and on Llama 6 in six iterations,
as its authors have them; no curriculum (arXiv 2506.18582; what differs from its code stands in
rim_jax/methods/pccot.py). Else as rim.py.

  python -m rim_jax.main --config=configs/pccot.py
      The chain task. Cost: not measured alone. Score: 13.0 / 49.2 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/pccot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: not measured.
      On GPT-2 and the 1B model the optimizer is that of its authors, who train for 40 epochs
      (GPT-2) and 10 (Llama); the 3B one has 1B's with its own rate. The presets train all for 8.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('pccot', preset)
