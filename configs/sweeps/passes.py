"""More passes over the blocks, and more layers: which helps where RiM stops?

  python -m rim_jax.main --mode=sweep --config=configs/sweeps/passes.py --jobs=2 --controls
      The harder chain: R = 1, 2 and 3 with two layers and with four, at equal examples; one pass
      with as many FLOPs as two and as three passes; and one pass through R times as many layers.
      Cost: 36 runs of 10 to 40 minutes of 1 CPU core, and by their FLOPs up to 120. Score: some of
      the runs, docs/results.md.
  python -m rim_jax.main --mode=sweep --config=configs/sweeps/passes.py:prosqa_small --jobs=2 \
      --controls --config.train.init_from=runs/walk
      The small ProsQA: R = 1, 2 and 3 at equal examples, and one pass with as many FLOPs as three
      passes, all from one start, runs/walk (docs/appendix/prosqa.md). Its layers are the start's,
      so there are no deeper networks. Cost: 12 runs of about 1 to 2 hours of 1 CPU core.
      Score: not measured.
"""

from configs import presets
from rim_jax.config import grid
from rim_jax.errors import UserError

# Preset -> (layers, passes, examples). On the harder chain an example of two passes computes 1.81
# times as much as of one, and of three 2.28 times, as --dry_run counts. On ProsQA it is 1.91 and
# 2.06 times by the compiled step (--mode=plan --topology=v5e:2x2), which computes parts again.
FORMS = {
    'chain_harder': (
        (4, 1, 768_000), (2, 1, 768_000), (2, 2, 768_000), (2, 3, 768_000), (4, 2, 768_000),
        (4, 3, 768_000), (2, 1, 1_392_000), (4, 1, 1_392_000), (4, 1, 1_749_504),
        (6, 1, 768_000), (8, 1, 768_000), (12, 1, 768_000)),
    'prosqa_small': ((8, 1, 164_000), (8, 2, 164_000), (8, 3, 164_000), (8, 1, 338_000))}
# Six times the examples of the preset, of more problems, half of them in stage 1, whose weights do
# not fade: with fewer RiM does not learn three look-ups.
LONGER = {'data.prosqa.num_train': 100_000, 'curriculum.schedule': 'constant',
          'curriculum.hold_frac': 0.0, 'curriculum.stage1_frac': 84 / 164}


def get_config(preset: str = 'chain_harder'):
  if preset not in FORMS:
    raise UserError(f"preset '{preset}': there are layers and examples for {' and '.join(FORMS)}")
  longer = LONGER if preset == 'prosqa_small' else {}
  forms = [({'layers': layers, 'passes': passes, 'examples': examples},
            {'model.num_layers': layers, 'loop.num_passes': passes,
             'train.num_examples': examples, **longer})
           for layers, passes, examples in FORMS[preset]]
  return grid.make_sweep_dict(presets.make('rim', preset), grid.repeat(forms, 3))
