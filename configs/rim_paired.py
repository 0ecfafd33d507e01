"""RiM with paired states: the state before the last block's answer is trained to match a chain's.

As rim.py, but in both stages the written chain also stands after the question (docs/concepts.md).
Answering takes one pass, as in RiM.

  python -m rim_jax.main --config=configs/rim_paired.py
      The chain task. Cost: not measured alone. Score: 98.7 / 99.4 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/rim_paired.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py, and
      5 % (prosqa) to a third (pretrained models) more FLOPs, by --dry_run. Score: chain_harder
      49.8 / 8.7 / 22.1 %; else not measured.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('rim_paired', preset)
