"""PCCoT: all thoughts found together, and found anew in a fixed number of passes.

CODI's layout, losses and teacher (methods/codi.py); only how thoughts are found differs. The first
pass reads `<m>` as it is. In each later one an `<m>` is fed the last state of the token before it
(rule `shift` of methods/passes.py), so that after N of them the first N thoughts are those that
would be found one by one. `loop.num_passes` is N + 1; with 1 there are no thoughts, as in `pause`.

Departures from the source, beside CODI's spread of distances, prefix and shared dropout (both read
the chain in the same forward):

- Every pass also reads `<b>` and `</b>`, which costs two tokens a pass and changes nothing.
- The trained projection of states is off, as in its GPT-2 configuration; `loop.projection` has it.
- Rows of `<b>`, `<m>` and `</b>` train; with adapters those of eos and padding do not.
- The last pass reads the question again, under a dropout of its own; there its keys are kept.
- The teacher's steps are joined by `layout.step_separator`; there by nothing.

Source: arXiv 2506.18582; github.com/whyNLP/PCCoT.
"""

import dataclasses

from rim_jax.methods import codi

PCCOT = dataclasses.replace(codi.CODI, inputs=None, prefill=None, make_added=None)
