"""CODI: thoughts in one stage; their answer's state is paired with that of the written chain.

It has as many thoughts as Coconut's last stage, and no curriculum. Method: arXiv 2502.21074;
rim_jax/methods/codi.py lists the differences from its authors' code. All else is as in rim.py.

  python -m rim_jax.main --config=configs/codi.py
      The chain task. Cost: not measured alone. Score: 10.9 / 18.7 / 20.3 %
      (seeds 0 / 1 / 2; chance is 10); 99.9 with seed 3.
  python -m rim_jax.main --config=configs/codi.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      9.7 / 9.8 / 10.3 % (chance); others not measured.
      On GPT-2 and the 1B model the learning rate is that of CODI's authors, on the 3B model that of
      SIM-CoT's. The weight of the distance is their 1, and 20 on Llama. (They take the mean over
      one layer more, the embeddings.) They train for 40 epochs (GPT-2) and 10 (1B), and
      begin with Llama's Instruct form; the presets train all models for 8, and Llama without
      Instruct. Adapters of one input share their dropout (model.lora.shared_dropout).
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('codi', preset)
