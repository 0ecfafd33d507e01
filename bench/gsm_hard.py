"""A finished run on GSM-Hard: GSM8K's test problems with large numbers in their place.

  PYTHONPATH=. python bench/gsm_hard.py --run=RUN --data=FILE

RUN is the folder with the run's config.json (a curriculum's: WORKDIR/stage2), FILE has one
{"question": str, "answer": str} a line. Questions that GSM8K's own test set has word for word
were not made harder, so that the figure is given with and without them. One JSON object.
"""

import argparse
import json
import pathlib

from rim_jax import card as card_lib
from rim_jax import config as config_lib
from rim_jax import decode
from rim_jax import evaluate
from rim_jax import train
from rim_jax.records import Record


def load_records(path):
  rows = [json.loads(line) for line in path.read_text().split('\n') if line.strip()]
  return [Record(row['question'], (), str(row['answer']), f'{path.name}:{i}')
          for i, row in enumerate(rows, 1)]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--run', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--num_examples', type=int, default=0, help='0: all')
  values = parser.parse_args()
  config = config_lib.parse_config(card_lib.load_card(values.run)['config'])
  task = train.make_task(config, lambda line: None)
  config, blocks = task.config, task.config.eval_blocks
  graphdef, params, frozen, step = train.load_params(task, values.run, config.eval.checkpoint)
  records = load_records(pathlib.Path(values.data))
  records = records[:values.num_examples or None]
  decoder = decode.Decoder(graphdef, config, task.codec, task.mesh)
  result, predictions = evaluate.evaluate(
      decoder, params, frozen, records, config, task.codec, blocks)
  test = task.dataset.splits['test']
  easy = {' '.join(r.question.split()) for r in test.__getitems__(range(len(test)))}
  hard = [p for p in predictions if ' '.join(p['question'].split()) not in easy]
  print(json.dumps({**result, 'step': step, 'n_changed': len(hard), 'final_acc_changed':
                    sum(p['correct'] for p in hard) / max(1, len(hard))}))


if __name__ == '__main__':
  main()
