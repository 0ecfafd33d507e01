"""What runs leave, as pages and tables read it, and a reader of pages, for the tests."""

import csv
import dataclasses
import html.parser
import json

from rim_jax import config as config_lib
from rim_jax import reader
from rim_jax.report import run_page
from rim_jax.results import judge, settings, timings, values

NASTY = '[bold]5[/bold] + <img src=x onerror=alert(1)>&amp; [/] \x1b[31m\x00\ud800'
RULE = 'numbers are compared as numbers'


# ---- A run ----


def make_result(method, num_blocks, **fields):
  readings = max(num_blocks, 1)
  return {'n': 1319, 'rule_version': judge.RULE_VERSION, 'num_blocks': num_blocks,
          'final_acc': 0.4321455648218347, 'final_acc_stderr': 0.013640,
          'block_acc': [(k + 1.23456) / 41 for k in range(readings)],
          'any_block_acc': 0.765432, 'majority_acc': 0.45678, 'num_unfinished': 17,
          'num_unparsed': 11, 'answer_rule': RULE, 'ttft_ms': 12.379, 'ttft_ratio': 1.2376,
          'ttft_conditions': 'a device <of> [b]mine[/b]',
          'step': 1234, 'checkpoint': 'best', 'method': method, 'format': 1, **fields}


def make_prediction(i, num_blocks, correct, **fields):
  readings = max(num_blocks, 1)
  return {'origin': f'made:{i}', 'question': f'question-{i} is?', 'answer': '42',
          'prediction': '42', 'correct': correct,
          'block_predictions': [str(100 + k) for k in range(readings)],
          'block_correct': [False] * (readings - 1) + [correct], 'text': '2*21=42\nso 42',
          'majority_correct': correct, **fields}


def make_metrics(blocks, num_lines=8):
  lines = []
  for i in range(1, num_lines + 1):
    lines.append({'step': 10 * i, 'time': 1.0, 'train/loss': 1 / i,
                  **{f'train/{name}_block_{k}': 1 / i for k in blocks
                     for name in ('nll', 'weight')}})
    lines.append({'step': 10 * i, 'time': 1.0, 'valid/final_acc': 0.5,
                  **{f'valid/acc_block_{k}': 0.5 for k in blocks}})
  return lines


def write_run(folder, method, num_blocks, predictions=None, metrics=None, **results):
  """A run's files as training and evaluation leave them."""
  (folder / 'predictions').mkdir(parents=True)
  results = results or {'test': make_result(method, num_blocks)}
  asked = {}
  for name, result in results.items():
    right = round(1319 * result['final_acc'])
    asked[name] = predictions or [
        make_prediction(i, num_blocks, i * right % 1319 < right) for i in range(1319)]
  results = {name: result | {'n': len(asked[name]), 'final_acc': sum(
      p['correct'] for p in asked[name]) / len(asked[name])} for name, result in results.items()}
  blocks = range(1, num_blocks + 1) or (0,)
  metrics = make_metrics(blocks) if metrics is None else metrics
  card = {'format': 2, 'config': dataclasses.asdict(config_lib.Config(method=method)),
          'data': {'name': 'rim_chain', 'fingerprint': '4c732d53bf67afe4'}, 'commit': 'c0ffee+',
          'command': ['main.py', '--config=a b.py']}
  (folder / 'config.json').write_text(json.dumps(card))
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(m) + '\n' for m in metrics))
  for name in results:
    (folder / 'predictions' / f'{name}.jsonl').write_text(
        ''.join(json.dumps(p) + '\n' for p in asked[name]))
  return results


class Page(html.parser.HTMLParser):
  """Tables as rows of (text, exact values), all elements, and the text of a page."""

  def __init__(self, path):
    super().__init__()
    self.tables, self.elements, self.text, self.in_cell = [], [], '', False
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('td', 'th'):
      self.tables[-1][-1].append(('', ()))
      self.in_cell = True
    elif tag == 'data' and self.in_cell:
      text, values = self.tables[-1][-1][-1]
      self.tables[-1][-1][-1] = (text, (*values, json.loads(dict(attrs)['value'])))

  def handle_endtag(self, tag):
    self.in_cell &= tag not in ('td', 'th')

  def handle_data(self, data):
    self.text += data
    if self.in_cell:
      text, values = self.tables[-1][-1][-1]
      self.tables[-1][-1][-1] = (text + data, values)


def write_page(folder, method):
  return Page(run_page.write_report(folder, config_lib.Config(method=method)))


# ---- What was asked of its memory ----

BLOCKS = (1, 2, 3)


def spread(start, shape):
  """Distinct numbers below 1 in nested lists of a shape."""
  if not shape:
    return start
  step = 1 / shape[0] / 3
  return [spread(start / shape[0] + i * step, shape[1:]) for i in range(shape[0])]


def make_sweep(start):
  return {'what': f'what {start}', 'expected': f'expect {start}', 'by_block': [
      {'block': k, 'n': 7, 'block_acc': spread(start + k / 50, (3,)),
       'block_donor_acc': spread(start + k / 70, (3,))} for k in BLOCKS]}


def make_controls():
  return {
      'as_trained': {'what': 'nothing', 'expected': 'all', 'n': 1234,
                     'block_acc': [0.1, 0.2, 0.31]},
      'swapped': {'what': 'donors', 'expected': 'theirs', 'n': 904, 'block_acc': [0.41, 0.42, 0.43],
                  'block_donor_acc': [0.51, 0.52, 0.53]},
      'averaged': {'what': 'means', 'expected': 'chance', 'n': 0, 'none': 'no two are alike'},
      'direct': {'what': 'a run', 'expected': 'chance', 'given': True, 'n': 12,
                 'run': 'runs/direct', 'block_acc': [0.0625],
                 'differs': ['model.num_layers', 'model.mlp_dim']},
      'pause': {'what': 'a run', 'expected': 'chance', 'given': False}}


def make_attention(own):
  """Two questions, three blocks, two layers; groups are the question, the blocks and the own."""
  def weights(start):
    found = spread(start, (3, 2, 5))
    return found if own else [[[*layer[:-1], 0.0] for layer in block] for block in found]
  return {'what': 'weights', 'num_questions': 2, 'mean': weights(0.1),
          'groups': ['question', 'block 1', 'block 2', 'block 3', 'readout'], 'questions': [
              {'question': 'a b', 'answer': '5', 'tokens': ['a', ' ', 'b'],
               'by_group': weights(0.2 + i / 10), 'by_token': spread(0.3 + i / 10, (3, 3))}
              for i in range(2)]}


def make_probes():
  ranking = {'n': 9, 'right': 0.25, 'auroc': 0.875, 'auprc': 0.75}
  return {
      'state': 'a token', 'num_questions': {'train': 2000, 'valid': 500, 'test': 1000},
      'right': {
          'by_block': [{'block': 1, **ranking, 'c': 0.01, 'c_tuned': True},
                       {'block': 2, **ranking, 'auroc': 0.625, 'c': 1.0, 'c_tuned': False},
                       {'block': 3, 'none': 'one class', 'train_right': 0.96875}],
          'pooled': {**ranking, 'auprc': 0.4375}, 'num_fitted': 2,
          'selection': {'acc': 0.5, 'final_acc': 0.375, 'any_block_acc': 0.8125,
                        'num_recoverable': 812, 'recoverable_acc': 0.6875,
                        'recoverable_final_acc': None, 'chosen_blocks': [1, 2, 1006]}},
      'steps': {'acc': [[0.5, None], [0.25, None], [0.125, None]], 'majority': [0.0625, None],
                'n': [9, 3], 'none': {'2': 'train has one class alone'}},
      'pca': {'explained': [0.5, 0.25], 'fitted_on': 1000,
              'centers': {str(s): spread(s / 2000, (3, 2)) for s in (1000, 500, 90)},
              'spread': {str(s): [s + 1.5, s + 2.5, s + 3.5] for s in (1000, 500, 90)}}}


def write_controls(folder, **found):
  """What --mode=controls leaves, of which some matters."""
  (folder / 'controls.json').write_text(json.dumps({
      'set': 'test', 'rule_version': judge.RULE_VERSION, 'num_blocks': 1, 'controls': {},
      'sweeps': {}, 'pairing': {
          'num_pairs': 0, 'num_equal_answers': 0, 'num_without_partner': 0}, **found}))


def write_findings(folder, own=True, **changes):
  """What --mode=controls leaves, with every number another; (its content, points of pca.csv)."""
  folder.mkdir(parents=True, exist_ok=True)
  found = {'format': 1, 'method': 'rim_stage2', 'set': 'test', 'n': 1234, 'num_blocks': 3,
           'step': 1000, 'checkpoint': 'best', 'rule_version': judge.RULE_VERSION,
           'controls': make_controls(),
           'pairing': {'num_pairs': 904, 'num_equal_answers': 96, 'num_without_partner': 5},
           'sweeps': {'swapped_block': make_sweep(0.02), 'swapped_from_block': make_sweep(0.04)},
           'attention': make_attention(own), 'probes': make_probes(), **changes}
  points = [(step, i, k, step / 1e4 + i, k / 8, '7') for step in (500, 1000) for i in (1, 2)
            for k in BLOCKS]
  with open(folder / 'pca.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('step', 'question', 'block', 'x', 'y', 'answer'), *points])
  (folder / 'controls.json').write_text(json.dumps(found))
  return found, points


# ---- Times ----

FACTS = {'method': 'rim_stage2', 'device': 'a |chip|', 'num_devices': 1, 'dtype': 'float32',
         'batch': 1, 'prompt_tokens': 9, 'trunk_tokens': 32, 'num_blocks': 3, 'num_readouts': 1,
         'num_thoughts': 0, 'prefix_tokens': 2, 'generated_to_first': 1, 'generated_in_full': 4}
WORDS = 'in words'
PARTS = tuple(part for part, _ in timings.PARTS)


def make_latency(ms, ratio=None, **facts):
  """An entry of results.json: parts take ms, ms + 1, ...; ratios are ratio, ratio + 0.5, ..."""
  def summarize(median):
    return {'median': median, 'q1': median - 0.25, 'q3': median + 0.25, 'runs': 5}
  entry = FACTS | facts | {f'{part}_ms': summarize(ms + i) for i, part in enumerate(PARTS)}
  return entry | ({} if ratio is None else {
      f'{part}_ratio': summarize(ratio + 0.5 * i) for i, part in enumerate(PARTS)})


def make_timed(*entries):
  return {'ttft_ms': entries[0]['first_token_ms']['median'], 'ttft_conditions': WORDS,
          'latency': list(entries)}


def read_result(tree) -> values.EvalResult:
  """A result of which a tree has the part that matters."""
  return reader.from_tree(values.EvalResult, {'final_acc': 0.5, 'block_acc': [0.5]} | tree)


def read_setting(**tree) -> settings.SettingResult:
  return reader.from_tree(settings.SettingResult, {
      'name': 'any', 'factors': {}, 'num_points': 1, 'num_done': 1, 'failed': {}, 'dropped': {},
      **tree})


def make_entry(*results, **factors) -> settings.SettingResult:
  return dataclasses.replace(
      read_setting(name='method=' + factors['method'], factors=factors),
      **timings.summarize([read_result(r) for r in results]))
