"""A real language model on stories with other numbers: direct, pause, chain of thought and RiM.

  PYTHONPATH=. python bench/stories.py --data=GSM8K --out=STORIES --max_steps=4 --drawn=260000 \\
      --train=128000
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/stories.py --jobs=4 --controls \\
      --config.model.init_from=MODEL --config.data.dir=STORIES

MODEL is a Hugging Face directory of SmolLM2-135M-Instruct. All its weights train, in fp32 with
products in bf16. Every method sees the same problems once, with the same learning rate, which was
not tuned. RiM has the chain task's curriculum: a readout before block 1, and no fading before three
quarters of stage 1. With --jobs=4 on one GPU each run gets 0.22 of its memory.

Cost: 12 runs; 0.2 hours of one H100 by --dry_run at an assumed 15 % of its peak, more in truth.
Score: not measured.

  PYTHONPATH=. python bench/stories.py --data=GSM8K --out=SHORT --drawn=260000 --min_steps=2 \\
      --max_steps=3 --max_words=35 --max_number=99 --min_problems=100 --train=4000 --valid=250 \\
      --test=500
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/stories.py:cpu --controls \\
      --config.data.dir=SHORT \\
      --config.eval.sets=new_stories=SHORT/new_stories.jsonl,gsm8k_test=SHORT/gsm8k_test.jsonl

The second pair of commands is for two CPU cores. It has 88 short stories of two or three steps with
numbers up to 99. A run trains on 1,600 problems made from them, with the preset smollm2 (LoRA of
rank 16, fp32) in place of all weights.

Cost: 12 runs of about 15 minutes of 1 CPU core. Score: docs/results.md.
"""

from configs import presets
from rim_jax.config import grid as grid_lib
from rim_jax.errors import UserError

METHODS = ('direct', 'pause', 'cot', 'rim')


def _make(method: str):
  config = presets.make(method, 'gpt2')
  config.update(
      layout={'row_tokens': 512, 'num_blocks': 4},
      model={'init_from': 'models/SmolLM2-135M-Instruct', 'remat': 'none',
             'attention_tile_tokens': 0, 'lora': {'rank': 0}},
      optim={'trainable': 'all', 'learning_rate': 3e-4, 'decay': 'cosine', 'b2': 0.98},
      curriculum={'stage2_lora_dropout': 0.0, 'stage2_learning_rate_scale': 0.5},
      train={'num_epochs': 1.0, 'batch_examples': 64},
      eval={'max_new_tokens': 96 if method == 'cot' else 12})
  return config


def _make_for_cpu(method: str):
  config = presets.make(method, 'smollm2')
  config.update(
      layout={'num_blocks': 3}, train={'num_examples': 1600, 'batch_examples': 8},
      eval={'max_new_tokens': 48 if method == 'cot' else 6, 'batch_size': 25,
            'num_examples': 250, 'num_valid_examples': 50})
  return config


def get_config(machine: str = 'gpu'):
  makers = {'gpu': _make, 'cpu': _make_for_cpu}
  if machine not in makers:
    raise UserError(f"there are no stories for '{machine}'; there are gpu and cpu")

  def make(method):
    config = makers[machine](method)
    config.update(layout={'depth0_readout': method == 'rim'}, curriculum={'hold_frac': 0.75})
    return config
  base = make(METHODS[0])
  methods = [({'method': method}, grid_lib.find_changes(base, make(method)))
             for method in METHODS]
  return grid_lib.make_sweep_dict(base, grid_lib.repeat(methods, 3))
