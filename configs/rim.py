"""RiM, both stages: in stage 1 each block stands for a step, in stage 2 each block has the answer.

  python -m rim_jax.main --config=configs/rim.py
      The chain task. Cost: 3 to 5 minutes of 2 CPU cores.
      Score: 99.8 / 99.9 / 100.0 % of test questions (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/rim.py:gsm8k --config.data.dir=DIR
      GSM8K, all parts of the program, with a network far too small to learn it. Cost: 15 minutes of
      1 CPU core. Score: 2.7 % (seed 0).
  python -m rim_jax.main --config=configs/rim.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k_perturbed, prosqa_small, prosqa, smollm2,
      gpt2, llama3_2_1b, llama3_2_3b.
      Cost: in configs/presets.py. Score: there for chain_harder and smollm2, in docs/results.md
      for prosqa_small; else not measured.

gpt2 and llama3_2_* look for their model in models/, or in the DIR of --config.model.init_from=DIR
(docs/tutorials/llama_on_slurm.md).
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim', preset)
