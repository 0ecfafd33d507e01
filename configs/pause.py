"""Pause: RiM's blocks with answers as the only targets: stage 2's layout without a stage 1.

  python -m rim_jax.main --config=configs/pause.py
      The chain task. Cost: 4 minutes of 2 CPU cores.
      Score: 9.3 / 9.1 / 9.4 % of test questions (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/pause.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      10.5 / 11.0 / 10.5 % (chance), prosqa_small in docs/results.md; else not measured.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('pause', preset)
