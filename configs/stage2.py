"""RiM stage 2 alone, from a run of stage 1: every block predicts the answer.

  python -m rim_jax.main --config=configs/stage2.py            (after configs/stage1.py)
  python -m rim_jax.main --config=configs/stage2.py --config.train.init_from=DIR
      The chain task. Cost: 1 minute of 2 CPU cores; the same run as the second stage of rim.py.
      Score: as rim.py, 99.8 / 99.9 / 100.0 % of test questions (seeds 0 / 1 / 2).
  python -m rim_jax.main --config=configs/stage2.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py.
      Score: 2.7 % with gsm8k (seed 0); not measured alone with the others, of which rim.py has
      chain_harder and prosqa_small.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_stage2', preset)
