"""Coconut: stage by stage, hidden states fed back as inputs take the place of written steps.

Stage 0 writes the whole chain; the last stage keeps all the thoughts and writes the answer alone
(arXiv 2412.06769; every stage is a run of its own in WORKDIR/stage<k>). Else as rim.py.

  python -m rim_jax.main --config=configs/coconut.py
      The chain task: 100.0 % after four thoughts (seed 0).
  python -m rim_jax.main --config=configs/coconut.py:gsm8k --config.data.dir=DIR
      Or gsm8k_perturbed, and the presets of a pretrained model.
"""

from configs import presets


def get_config(preset: str = 'chain'):
  return presets.make('coconut', preset)
