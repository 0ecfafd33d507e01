"""PCCoT: thoughts found together in three iterations, and paired with the written chain as in CODI.

It has no curriculum. On the chain and ProsQA it has as many thoughts as Coconut's last stage. GPT-2
and SmolLM2 have 24, as PCCoT's authors gave GPT-2, and Llama has 6 thoughts in six iterations, as
in a run of one of them. Method: arXiv 2506.18582; rim_jax/methods/pccot.py lists the differences
from its authors' code. All else is as in rim.py.

  python -m rim_jax.main --config=configs/pccot.py
      The chain task. Cost: not measured alone. Score: 13.0 / 49.2 / 100.0 %
      (seeds 0 / 1 / 2; chance is 10).
  python -m rim_jax.main --config=configs/pccot.py:PRESET --config.data.dir=DIR
      Another task or model: chain_harder, gsm8k, gsm8k_perturbed, prosqa_small, prosqa,
      smollm2, gpt2, llama3_2_1b, llama3_2_3b. Cost: in configs/presets.py. Score: chain_harder
      9.3 / 8.5 / 19.6 %; others not measured. On GPT-2 and the 1B model the optimizer is that
      of PCCoT's authors, who train for 40 epochs (GPT-2) and 10 (Llama). The 3B model has 1B's
      optimizer with its own rate. The presets train all models for 8 epochs. Adapters of one
      input share their dropout (model.lora.shared_dropout).
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('pccot', preset)
