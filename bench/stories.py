"""GSM8K's stories with other numbers, some stories held out: data for a real model.

  PYTHONPATH=. python bench/stories.py --data=DIR --out=OUT      (DIR as for data.dir)

Each story of GSM8K's training rows that can take other numbers (docs/data.md) is told many times
over. One story in ten is held out whole, by a hash of its text. OUT gets

  train.jsonl            problems of the stories that are not held out
  valid.jsonl            the same stories with numbers that are not in train
  test.jsonl             the same, other problems than valid's
  new_stories.jsonl      problems of the held-out stories
  gsm8k_test.jsonl       GSM8K's own test questions
  card.json              how many stories and problems each has, and the options they were made with

A story has at most 400 problems, spread evenly, and at most --max_steps steps. --max_words and
--max_number keep short problems and small whole numbers, for what a CPU can train. The same options
give the same files, byte for byte.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import re

from rim_jax.config import DataConfig, PerturbedConfig
from rim_jax.data import datasets
from rim_jax.data.perturbed.variation import mask_numbers

HELD_OUT_SHARE = 0.1
NUMBER = re.compile(r'[\d.]*\d')


def is_held_out(question):
  digest = hashlib.sha256(mask_numbers(question).encode()).digest()
  return int.from_bytes(digest[:4]) < HELD_OUT_SHARE * 2**32


def read_stories(args):
  """The drawn problems by story, and GSM8K's own test rows."""
  data = datasets.load_dataset(DataConfig(
      source='gsm8k_perturbed', dir=args.data, cache_dir=args.cache,
      perturbed=PerturbedConfig(seed=args.seed, variants_per_problem=400, total=args.drawn)))
  stories, train = collections.defaultdict(list), data.splits['train']
  for first in range(0, len(train), 2000):
    for record in train.__getitems__(range(first, min(first + 2000, len(train)))):
      if is_wanted(record, args):
        stories[record.source_row].append(record)
  test = data.splits['test']
  return ({row: records for row, records in stories.items() if len(records) >= args.min_problems},
          list(test.__getitems__(range(len(test)))))


def is_wanted(record, args):
  numbers = NUMBER.findall(' '.join(record.steps))
  return (args.min_steps <= len(record.steps) <= args.max_steps
          and (not args.max_words or len(record.question.split()) <= args.max_words)
          and (not args.max_number or all(
              n.isdigit() and int(n) <= args.max_number for n in numbers)))


def divide(stories, args):
  """The files' records, each in an order drawn with the seed.

  Raises: SystemExit where --drawn leaves too few problems for --train and --test.
  """
  rng = random.Random(args.seed)
  known, new = [], []
  for records in stories.values():
    (new if is_held_out(records[0].question) else known).extend(records)
  rng.shuffle(known)
  rng.shuffle(new)
  wanted = args.valid + args.test + args.train
  if len(known) < wanted or len(new) < args.test:
    raise SystemExit(f'{len(known):,} problems of known stories and {len(new):,} of new ones: too '
                     f'few for {wanted:,} and {args.test:,}; raise --drawn or lower --train')
  cuts = {'valid': args.valid, 'test': args.test, 'train': args.train}
  files, at = {'new_stories': new[:args.test]}, 0
  for name, count in cuts.items():
    files[name], at = known[at:at + count], at + count
  return files


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', default='', help="GSM8K's files; downloaded when empty")
  parser.add_argument('--out', required=True)
  parser.add_argument('--cache', default='~/.cache/rim_jax')
  parser.add_argument('--drawn', type=int, default=200_000, help='problems drawn before dividing')
  parser.add_argument('--min_steps', type=int, default=0)
  parser.add_argument('--max_steps', type=int, default=8)
  parser.add_argument('--max_words', type=int, default=0, help='of a question; 0: any')
  parser.add_argument('--max_number', type=int, default=0,
                      help='of a step, and whole numbers alone; 0: any')
  parser.add_argument('--min_problems', type=int, default=1, help='else a story is left out')
  parser.add_argument('--train', type=int, default=64_000)
  parser.add_argument('--valid', type=int, default=500)
  parser.add_argument('--test', type=int, default=1_000)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  stories, gsm8k_test = read_stories(args)
  files = divide(stories, args) | {'gsm8k_test': gsm8k_test}
  out = pathlib.Path(args.out).expanduser()
  out.mkdir(parents=True, exist_ok=True)
  card = {'options': {k: v for k, v in vars(args).items() if k not in ('data', 'out', 'cache')}}
  for name, records in files.items():
    rows = [json.dumps({'question': r.question, 'steps': list(r.steps), 'answer': r.answer})
            for r in records]
    (out / f'{name}.jsonl').write_text('\n'.join(rows) + '\n')
    card[name] = {'problems': len(records), 'stories': len({r.source_row for r in records})}
    print(f'{name}: {len(records):,} problems of {card[name]["stories"]:,} stories')
  (out / 'card.json').write_text(json.dumps(card, indent=1) + '\n')


if __name__ == '__main__':
  main()
