"""Chain of thought: the steps are written out, then the answer. All else is as in rim.py.

  python -m rim_jax.main --config=configs/cot.py
      The chain task. Cost: 3 minutes of 2 CPU cores.
      Score: 100.0 / 100.0 / 100.0 % of test questions (seeds 0 / 1 / 2).
  python -m rim_jax.main --config=configs/cot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: there for
      chain_harder, in docs/results.md for prosqa_small; else not measured.
  python -m rim_jax.main --config=configs/cot.py:prosqa_reading (then :prosqa_walk)
      Practice from which prosqa_small begins (configs/presets.py).
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('cot', preset)
