"""The direct answer: no blocks, no steps. RiM's network, data and examples.

  python -m rim_jax.main --config=configs/direct.py
      The chain task. Cost: 3 minutes of 2 CPU cores.
      Score: 11.4 / 8.6 / 8.4 % of test questions (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/direct.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: there for
      chain_harder, in docs/results.md for prosqa_small; else not measured.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('direct', preset)
