"""LOTUS: latents replace the steps, predict the tokens of these steps, and are read several times.

Stage 0 writes the whole chain. Stage k has latents for the first k steps and reads them k + 1
times. Every stage is a run of its own in WORKDIR/stage<k>. Method: arXiv 2606.31779;
rim_jax/methods/lotus.py lists the differences from its authors' code. All else is as in rim.py.

  python -m rim_jax.main --config=configs/lotus.py
      The chain task. Cost: not measured alone. Score: 100.0 / 100.0 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/lotus.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      100.0 / 100.0 / 94.2 %; others not measured.
      On the last three models adapters train at the preset's rate for 8 epochs, with a warm-up in
      every stage. Each stage before the last has a tenth of the examples; the authors' have a 30th.
      LOTUS's authors train all parameters at a constant 1e-4 and 5e-5 for 30 epochs (GPT-2, 3B) to
      100 (1B), from a network that writes chains; --config.train.init_from names such a run.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('lotus', preset)
