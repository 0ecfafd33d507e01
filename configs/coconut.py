"""Coconut: stage by stage, thoughts (states that are fed back) replace the written steps.

Stage 0 writes the whole chain. The last stage has all thoughts and writes only the answer. Every
stage is a run of its own in WORKDIR/stage<k>. Method: arXiv 2412.06769. All else is as in rim.py.

  python -m rim_jax.main --config=configs/coconut.py
      The chain task. Cost: not measured alone; about 5 minutes of 1 CPU core in a sweep.
      Score: 100.0 / 59.0 / 9.2 % of test questions (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/coconut.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      11.2 / 10.6 / 11.5 % (chance), prosqa_small in docs/results.md; else not measured.
      On pretrained models adapters train at the preset's rate for 8 epochs. Coconut's authors train
      all of GPT-2 at 1e-4, from a network that writes chains. Here each stage has its own warm-up,
      and its rate falls to 0 if the preset's rate does; the authors' rate is constant.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('coconut', preset)
