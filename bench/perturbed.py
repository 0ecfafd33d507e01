"""GSM8K's problems with other numbers: what they are made of, and a draw of them to read.

  PYTHONPATH=. python bench/perturbed.py --data=DIR                      (DIR as for data.dir)
      Builds the data set that configs/*.py:gsm8k_perturbed asks for, checks every variant once
      more, and prints the tables of docs/appendix/made_data.md beside those of the rows it was
      made from.
  PYTHONPATH=. python bench/perturbed.py --data=DIR --audit=200 --seed=SEED
      Prints a draw of variants, each under its original, for a person to read.
"""

import argparse
import collections
import random
import re
import tempfile
import time

import numpy as np

from configs import presets
from rim_jax import config as config_lib
from rim_jax.data import datasets
from rim_jax.data.perturbed import executor, variation


def load(directory, cache, source):
  config = presets.make('direct', source)
  config.data.dir, config.data.cache_dir = directory, cache
  return datasets.load_dataset(config_lib.parse_config(config).data)


def print_draw(perturbed, original, count, seed):
  """Variants drawn evenly from all, in a form to be read one by one."""
  split = perturbed.splits['train']
  rows = {variation.get_source_row(r): r for r in original.splits['train']}
  picked = sorted(random.Random(seed).sample(range(len(split)), count))
  for number, variant in enumerate(split.__getitems__(picked), 1):
    row = rows[variant.source_row]
    print(f'\n[{number}] {variant.origin}\n  was: {row.question}\n       {" ".join(row.steps)}\n'
          f'  now: {variant.question}\n       {" ".join(variant.steps)} -> {variant.answer}')


def iterate(split, at_once=2000):
  for first in range(0, len(split), at_once):
    yield from split.__getitems__(range(first, min(first + at_once, len(split))))


def measure(split):
  """What a split is like: rows of (name, value)."""
  steps, lengths, answers, numbers = [], [], [], []
  operators, shapes, questions = collections.Counter(), collections.Counter(), set()
  for record in iterate(split):
    steps.append(len(record.steps))
    lengths.append(len(record.question))
    questions.add(record.question)
    left = [s.partition('=')[0] for s in record.steps]
    operators.update(re.findall(r'(?<=[\d)])[-+*/]', ' '.join(left)))
    shapes[re.sub(r'[\d.]+', 'n', ' '.join(left))] += 1
    answers.append(abs(float(record.answer.replace(',', ''))))
    numbers += [float(n) for n in re.findall(r'\d+\.\d+|\.\d+|\d+', ' '.join(record.steps))]
  total = operators.total()
  counts = collections.Counter(steps)
  digits = collections.Counter(len(str(int(a))) for a in answers)
  share = lambda counter, of: ', '.join(
      f'{k}: {100 * counter[k] / of:.1f}' for k in sorted(counter))
  quantiles = lambda values: ' / '.join(
      f'{q:g}' for q in np.quantile(values, (.05, .25, .5, .75, .95)).round(2))
  top = collections.Counter(answers).most_common(1)[0]
  return {
      'rows': f'{len(steps):,}', 'distinct questions': f'{len(questions):,}',
      'steps, mean': f'{np.mean(steps):.2f}', 'steps, % of rows': share(counts, len(steps)),
      'question, characters': quantiles(lengths), 'numbers in steps': quantiles(numbers),
      'numbers with a decimal point, %': f'{100 * np.mean([n % 1 > 0 for n in numbers]):.1f}',
      'operators, %': share(operators, total), 'distinct step shapes': f'{len(shapes):,}',
      'answers': quantiles(answers), 'answers, digits, % of rows': share(digits, len(answers)),
      'distinct answers': f'{len(set(answers)):,}',
      'most frequent answer': f'{top[0]:g}, {100 * top[1] / len(answers):.1f} %'}


class _Rows:
  """Some rows of a split."""

  def __init__(self, split, keep):
    self._records = [r for r in iterate(split) if variation.get_source_row(r) in keep]

  def __len__(self):
    return len(self._records)

  def __getitems__(self, indices):
    return [self._records[i] for i in indices]


def print_reasons(notes):
  """The rows left out, as the note on them counts them."""
  note, = (n for n in notes if 'left out: ' in n)
  head, _, reasons = note.partition('; left out: ')
  print(f'{head}\n\n| left out | rows |\n|---|---|')
  for reason in reasons.split('; '):
    what, _, count = reason.rpartition(': ')
    print(f'| {what} | {count} |')


def print_tables(perturbed, original):
  print_reasons(perturbed.notes)
  split, faults = perturbed.splits['train'], 0
  per_row = collections.Counter()
  for variant in iterate(split):
    faults += bool(executor.find_fault(variant.question, variant.steps, variant.answer))
    per_row[variant.source_row] += 1
  others = {variation.mask_numbers(r.question) for name in ('valid', 'test')
            for r in iterate(perturbed.splits[name])}
  leaks = sum(variation.mask_numbers(v.question) in others for v in iterate(split))
  print(f'\n{len(split)} variants recomputed: {faults} faults; {leaks} in another split')
  print(f'variants of a template, quantiles 5 25 50 75 95: '
        f'{np.quantile(list(per_row.values()), (.05, .25, .5, .75, .95))}')
  columns = [measure(original.splits['train']), measure(_Rows(original.splits['train'], per_row)),
             measure(split)]
  print('| | GSM8K train | its templates | variants |\n|---|---|---|---|')
  for name in columns[0]:
    print(f"| {name} | {' | '.join(c[name] for c in columns)} |")


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', required=True)
  parser.add_argument('--cache', default='')
  parser.add_argument('--audit', type=int, default=0)
  parser.add_argument('--seed', type=int, default=0)
  values = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    cache, start = values.cache or temporary, time.perf_counter()
    perturbed = load(values.data, cache, 'gsm8k_perturbed')
    print(f'loaded in {time.perf_counter() - start:.0f} s')
    original = load(values.data, cache, 'gsm8k')
    if values.audit:
      print_draw(perturbed, original, values.audit, values.seed)
    else:
      print_tables(perturbed, original)


if __name__ == '__main__':
  main()
