"""All that `rim.py` does, in about a minute, to check the installation. It learns nothing.

  python -m rim_jax.main --config=configs/smoke.py
      Cost: 1 minute of 2 CPU cores. Score: chance, as it should be.
"""

from configs import presets


def get_config():
  config = presets.make('rim', 'chain')
  config.update(
      data={'chain': {'num_train': 2000, 'num_valid': 100, 'num_test': 100}},
      train={'num_examples': 6_400}, checkpoint={'every_steps': 25}, log={'every_steps': 5},
      eval={'batch_size': 100})
  return config
