"""iCoT: the written steps are taken away token by token, until the answer alone is left.

Stepwise internalization (arXiv 2405.14838). All else is as in rim.py. While steps are still
written, accuracy on valid is measured with written steps. Results are of the end, when no step is
left and the network answers directly.

  python -m rim_jax.main --config=configs/icot.py
      The chain task. Cost: not measured alone; about 5 minutes of 1 CPU core in a sweep.
      Score: 20.4 / 9.8 / 19.3 % of test questions (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/icot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      69.3 / 10.5 / 98.7 %, prosqa_small in docs/results.md; else not measured.
      On pretrained models adapters train at the preset's rate; iCoT's authors train all parameters.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('icot', preset)
