"""SIM-CoT: Coconut, and in training each step must also be written from its thoughts.

As coconut.py, and it answers in the same way. In training the network also reads the thoughts of
each step alone and writes the step. Method: arXiv 2509.20317; rim_jax/methods/sim_cot.py lists the
differences from its authors' code. The largest: here the network itself writes the steps, and
--config.aux.decoder=copy adds a second network for this, as the authors have. With CODI in place of
Coconut: --config=configs/codi.py --config.aux.decoder=shared --config.aux.last_step=False
--config.layout.row_tokens=29 (on the chain task; chain_harder needs 36).

  python -m rim_jax.main --config=configs/sim_cot.py
      The chain task. Cost: not measured alone. Score: 100.0 / 100.0 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/sim_cot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      100.0 / 100.0 / 100.0 %; others not measured.
      The last three models have five groups of two thoughts, as SIM-CoT's authors have. The authors
      start from a network that writes chains, train all of it at 1e-4, and add the decoder to a
      trained Coconut. The presets train adapters at their own rate for 8 epochs, with the decoder
      in every stage.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('sim_cot', preset)
