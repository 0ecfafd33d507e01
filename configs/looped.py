"""Looped RiM: blocks are read R times; a gate feeds the states of one pass to the next pass.

The gate begins at 0. So training can begin with a network of rim.py:
--config.train.init_from=WORKDIR/stage2. All else is as in rim.py. --config.loop.num_passes=R is 2
here; with 1 it is rim.py itself.

  python -m rim_jax.main --config=configs/looped.py
      The chain task. Cost: not measured alone. Score: 99.9 / 100.0 / 99.9 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/looped.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py, and up to
      twice that of RiM. Score: chain_harder 100.0 / 100.0 / 100.0 %; prosqa_small with
      more examples in docs/appendix/prosqa.md; others not measured.
  python -m rim_jax.main --config=configs/looped.py --mode=eval --config.eval.budget_passes=4 \\
      --config.eval.budget_blocks=-1
      Then also measures accuracy and time to the first token for each number of passes and blocks.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('looped', preset)
