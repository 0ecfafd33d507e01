"""RiM stage 1 alone: block t predicts the step after it, the last block the answer.

  python -m rim_jax.main --config=configs/stage1.py
      The chain task. Cost: 3 minutes of 2 CPU cores; the same run as the first stage of rim.py.
      Score: 98.8 / 100.0 / 100.0 % of test questions after block 4 (seeds 0 / 1 / 2), in
      earlier code.
  python -m rim_jax.main --config=configs/stage1.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py.
      Score: 2.4 % with gsm8k (seed 0); not measured alone with the others, of which rim.py has
      chain_harder and prosqa_small.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage1', preset)
