"""LOTUS: one block of latents read several times, whose every token also predicts a written one.

Stage s has s c latents in place of the first s steps, and s + 1 passes over them: `[x | <b> <m>*sc
</b>]`, then the other steps and the answer. From the second pass on an `<m>` is fed its row plus
its own last state (rule `add` of methods/passes.py). After the last pass token j of step k is also
predicted at the token before latent (k-1) c + j + 1, all steps at once. The loss is the mean over
the tokens that are written, plus `lotus.step_weight` times the mean over those.

Departures from the source:

- A step longer than c is cut there; in the source it spills into the next step's latents.
- Stage 0 has no markers, so that it is `cot`; every stage begins with a fresh optimizer.
- Means are over tokens with `curriculum.reduction='token'`, as in the source and in the presets;
  with 'readout' each record counts alike.
- Every pass also reads `<b>` and `</b>`, which costs two tokens a pass and changes nothing.
- `lotus.one_pass` reads latents once in every stage; with no weight on what they predict, this is
  "pause as thought" of arXiv 2412.06769.
- The new rows begin as `model.memory_init` says, not as copies of `<<`.
- What latents predict is asked after the last pass alone, of every step; the authors' recipe for 1B
  models asks each step after a pass of its own. Their rule `replace` is not here.

Source: arXiv 2606.31779; github.com/yingfan-bot/lotus.
"""

from rim_jax.config import Config, LayoutConfig
from rim_jax.methods.method import Method, count_examples
from rim_jax.packing import batch as batch_lib
from rim_jax.packing.layout import Encoded, Example, Template, count_steps, read_chain


def lay_out(encoded: Encoded, template: Template, config: LayoutConfig) -> Example:
  """`[x | latents]`, the other steps and the answer; beside them tokens of the first steps."""
  skipped = config.skip_steps
  readout = read_chain(encoded, template, config.num_blocks, skipped)
  parallel = []
  if config.num_blocks:
    room = config.block_tokens // skipped
    for k, step in enumerate(encoded.steps[:skipped]):
      first = len(encoded.question) + k * room  # <b>, or the last latent of the step before
      parallel += enumerate([*step, *template.step_separator][:room], first)
  return Example(encoded.question, config.num_blocks, count_steps(encoded), (readout,),
                 tuple(parallel))


def share_means(config: Config) -> dict[int, float]:
  """What is written, and what latents predict."""
  return {batch_lib.SLOT_ANSWER: 1.0, batch_lib.SLOT_PARALLEL: config.lotus.step_weight}


LOTUS_STAGE = Method(lay_out, norm=count_examples, means=share_means)
