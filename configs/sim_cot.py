"""SIM-CoT: Coconut, each of whose thoughts must spell its step while it trains.

As coconut.py, and answering is the same; the thoughts of a step are also read alone, to say it
(arXiv 2509.20317; what differs from its code stands in rim_jax/methods/sim_cot.py). On CODI:
--config=configs/codi.py --config.aux.decoder=shared --config.aux.last_step=False.

  python -m rim_jax.main --config=configs/sim_cot.py
      The chain task. Cost: not measured alone. Score: 100.0 / 100.0 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/sim_cot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      100.0 % (seed 0); others not measured.
      The last three have its authors' five groups of two thoughts. These start from a network that
      writes chains, train all of it at 1e-4, and add the decoder to a trained Coconut; the presets
      train adapters at their own rate for 8 epochs, with the decoder in every stage.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('sim_cot', preset)
