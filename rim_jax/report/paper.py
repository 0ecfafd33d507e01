"""What the paper reports on GSM8K: the target beside which the accuracy of own runs stands.

Source: L. Aichberger, S. Hochreiter, arXiv 2605.30343: greedy decoding, models fine-tuned on
GSM8K-Aug. Nothing here was measured by this project.
"""

from rim_jax.config import Config
from rim_jax.report.page import Section, paragraph, section
from rim_jax.report.tables import MISSING, cell, clean, number, share, table
from rim_jax.results.values import EvalResult

SOURCE = 'arXiv 2605.30343'
METHODS = ('direct', 'Coconut', 'RiM', 'CoT')
# Set, as results.json calls it -> model -> % right with each of METHODS; None: not reported.
REPORTED = {
    'test': {
        'GPT-2': (15.4, 31.1, 33.6, 42.9),
        'Llama-3.2-1B': (23.9, 36.9, 42.1, 49.1),
        'Llama-3.2-3B': (36.2, 41.3, 48.8, None)},
    'gsm_hard': {
        'GPT-2': (3.5, 7.1, 7.8, None),
        'Llama-3.2-1B': (5.3, 8.5, 10.5, 11.2),
        'Llama-3.2-3B': (8.5, 10.2, 12.0, None)}}
NAMES = {'test': 'GSM8K', 'gsm_hard': 'GSM-Hard'}
NUM_QUESTIONS = 1319  # of either; people's own records are read as data.source='gsm8k' too
NOTE = ("GPT-2's CoT on GSM8K is that of Coconut's paper, arXiv 2412.06769; RiM's 48.8 of "
        'Llama-3.2-3B is derived from figures given there')


def make_target(config: Config, sets: dict[str, EvalResult]) -> list[Section]:
  """The figures as a part of a page, below a run's own on the same sets; of other data nothing.

  Args:
    sets: what results.json holds.
  """
  if not _has_target(config):
    return []
  own = [paragraph(f'This run ({clean(r.method)}) on {known}: ',
                   share(r.final_acc, 'strong'), '% of ', number(r.n), ' questions.')
         for key, r in sets.items() if (known := _name_set(key, r.n))]
  return [_make_section(own, [], "This run's own model and data stand below.")]


def make_targets(found) -> list[Section]:
  """The same for settings of many runs: each a row, its mean below the paper's of its method.

  Args:
    found: (name, config, set, its questions, summary of its accuracy over seeds) of each; one of
      other data, on another set or of a method that the paper has not is left out.
  """
  rows = []
  for name, config, key, count, summary in found:
    known = _name_set(key, count)
    if known and _has_target(config) and config.facts.paper_name:
      told = cell(share(summary.mean, 'strong'))
      if summary.stderr is not None:
        told += cell(' ± ', share(summary.stderr))
      cells = dict.fromkeys(METHODS, '') | {config.facts.paper_name: told}
      rows.append([cell(f'{clean(name)}, {known}', long=True).note(
          f'found here on {key}, seeds: ', number(summary.count)), *cells.values()])
  return [_make_section([], rows, 'What was found here is a mean over seeds, ± its standard error; '
                        'its own model and data stand below.')] if rows else []


def _name_set(key, count):
  """The paper's name for a set, also where checkpoints were chosen by its own protocol; or None."""
  return NAMES.get(key.removesuffix('-splits')) if count == NUM_QUESTIONS else None


def _has_target(config):
  return config.data.source.startswith('gsm8k')


def _make_section(own, rows, note) -> Section:
  """The paper's figures, `rows` of own ones below them in the same columns."""
  reported = [[f'{model}, {NAMES[key]}', *(MISSING if x is None else number(x) for x in values)]
              for key, models in REPORTED.items() for model, values in models.items()]
  return section('What the paper reports', [*own, table(
      ['% right', *METHODS], reported + rows,
      notes=[f'{SOURCE}: models fine-tuned on GSM8K-Aug, greedy. {NOTE}. {note}'])])
