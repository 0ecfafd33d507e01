"""What block states hold: linear probes on held-out questions, and their principal components.

A block's state is that of its closing token before the last layer. Probes are logistic regressions
on standardised states: fitted on train, their C chosen on valid, reported on test. Where there is
nothing to fit, an entry is {'none': why}.

Source: arXiv 2605.30343; docs/controls.md.
"""

import warnings

import numpy as np

from rim_jax.errors import UserError
from rim_jax.evaluation import decode as decode_lib
from rim_jax.evaluation import scores as scores_lib
from rim_jax.runtime import storage

CHOICES_OF_C = (0.01, 0.1, 1.0, 10.0)
NUM_POINTS = 200  # questions whose states are kept as points, for a plot
# A step's text -> its result, a class of the probes for r_t; of the tasks whose results are few.
_NAME_RESULT = {'chain': str, 'prosqa': lambda step: step.rstrip('.').split()[-1]}


def check_installed() -> None:
  """Raises: UserError where scikit-learn is missing."""
  try:
    import sklearn  # noqa: F401  pylint: disable=unused-import
  except ImportError:
    raise UserError("controls.probes=True needs scikit-learn; pip install -e '.[analysis]', or "
                    'leave it False') from None


def hold_out(records, count: int) -> dict:
  """What probes are fitted on ('train') and tuned on ('valid'), of records never trained on.

  Args:
    count: how many are fitted on; 0: half of them.
  Raises: UserError where none is left to tune on.
  """
  count = count or len(records) // 2
  if count >= len(records):
    raise UserError(f'controls.num_probe_examples={count}: with controls.probe_split=valid the '
                    f'{len(records)} questions of valid leave none to tune on; use fewer')
  return {'train': records[:count], 'valid': records[count:]}


def run_probes(decoder: decode_lib.Decoder, records: dict, kept: dict, say=print):
  """All probes of one checkpoint.

  Args:
    records: by split, 'train', 'valid' and 'test'.
    kept: training step -> a function that loads its parameters; the components are the last's.
  Returns: (what controls.json holds; points and answers for `format_points`, or None).
  """
  config, codec = decoder.network.config, decoder.network.codec
  if config.model.num_layers == 1:
    return {'none': "with one layer, a block's state before it is the same for all questions"}, None
  num_blocks = config.eval_blocks
  states, right = {}, {}
  questions = {s: [codec.encode_question(r.question) for r in rows] for s, rows in records.items()}
  for split, rows in records.items():
    say(f'probes: {len(rows):,} {split} questions')
    _, predictions = scores_lib.evaluate(decoder, rows, num_blocks)
    right[split] = np.asarray([p.block_correct for p in predictions])
    states[split] = decoder.compute_states(questions[split], num_blocks)
  few = questions['test'][:NUM_POINTS]
  pca, points = project({step: decoder.with_params(load()).compute_states(few, num_blocks)
                         for step, load in kept.items()}, max(kept))
  name_result = _NAME_RESULT.get(config.data.source)
  steps = probe_steps(states, {s: [tuple(map(name_result, r.steps)) for r in rows]
                               for s, rows in records.items()}) if name_result else {
      'none': "this task's results are not few classes"}
  return {'state': "a block's closing token, before the last layer",
          'num_questions': {s: len(rows) for s, rows in records.items()},
          **({'fitted_on': 'valid'} if config.controls.probe_split == 'valid' else {}),
          'right': probe_right(states, right), 'steps': steps, 'pca': pca}, (
              points, [r.answer for r in records['test']])


def _fit(states_nd, labels_n, c: float):
  from sklearn import exceptions, linear_model, pipeline, preprocessing
  model = pipeline.make_pipeline(
      preprocessing.StandardScaler(), linear_model.LogisticRegression(C=c, max_iter=300))
  with warnings.catch_warnings():  # one that is not quite done is still a probe
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    return model.fit(states_nd, labels_n)


def _choose(train, valid, score):
  """The probe whose C does best on valid, and that C; of equals, the smaller."""
  fitted = [(c, _fit(*train, c)) for c in CHOICES_OF_C]
  return max(fitted, key=lambda f: (score(f[1], *valid), -f[0]))[::-1]


def _find_single_class(name, labels_n):
  """Why these labels cannot be told apart, or None."""
  found = np.unique(labels_n)
  if len(found) > 1:
    return None
  return f'{name} has one class alone: {found[0] if len(found) else "no question"}'


def probe_right(states: dict, right: dict) -> dict:
  """Whether a block's state says that its readout is right; and choosing a block by it.

  Args:
    states: f32[n, K, d] by split, 'train', 'valid' and 'test'.
    right: bool[n, K] by split, whether each block's readout gives the answer.
  Returns: {'by_block': [entry], 'pooled': over all blocks' states, each scored by its block's
    probe, 'selection': the readout whose probe is most confident}; a block whose probe cannot be
    fitted is scored by how often it is right on train.
  """
  num_blocks = states['test'].shape[1]
  entries, scores = [], np.zeros(right['test'].shape)
  for k in range(num_blocks):
    entry, scores[:, k] = _probe_block({s: x[:, k] for s, x in states.items()},
                                       {s: x[:, k] for s, x in right.items()})
    entries.append({'block': k + 1, **entry})
  fitted = sum('none' not in entry for entry in entries)
  return {'by_block': entries, 'num_fitted': fitted,
          'pooled': _score_ranking(right['test'].ravel(), scores.ravel()),
          'selection': select(scores, right['test']) if fitted else {
              'none': 'no block has a probe: ' + entries[0]['none']}}


def _probe_block(states, right):
  """(entry of a block, its readout's probability of being right on test)."""
  from sklearn import metrics
  prior = float(right['train'].mean())
  none = _find_single_class('train', right['train'])
  if none:
    return {'none': none, 'train_right': prior}, prior
  if _find_single_class('valid', right['valid']):
    probe, c, tuned = _fit(states['train'], right['train'], 1.0), 1.0, False
  else:
    tuned = True
    probe, c = _choose((states['train'], right['train']), (states['valid'], right['valid']),
                       lambda probe, x, y: metrics.roc_auc_score(y, probe.predict_proba(x)[:, 1]))
  scores = probe.predict_proba(states['test'])[:, 1]
  return {**_score_ranking(right['test'], scores), 'c': c, 'c_tuned': tuned, 'train_right': prior,
          'acc': float(((scores > 0.5) == right['test']).mean())}, scores


def _score_ranking(right_n, scores_n) -> dict:
  """AUROC and AUPRC, and the share of right ones, which is the AUPRC of chance."""
  from sklearn import metrics
  none = _find_single_class('test', right_n)
  if none:
    return {'n': len(right_n), 'right': float(right_n.mean()), 'none': none}
  return {'n': len(right_n), 'right': float(right_n.mean()),
          'auroc': float(metrics.roc_auc_score(right_n, scores_n)),
          'auprc': float(metrics.average_precision_score(right_n, scores_n))}


def select(scores_nk, right_nk) -> dict:
  """Accuracy of the most confident block's readout (of equals, the latest), beside the last's.

  `recoverable` are the questions that some block's readout gets right: the rest cannot be chosen.
  """
  num_blocks = right_nk.shape[1]
  chosen_n = num_blocks - 1 - scores_nk[:, ::-1].argmax(1)
  picked_n = right_nk[np.arange(len(right_nk)), chosen_n]
  recoverable_n = right_nk.any(1)
  return dict(acc=float(picked_n.mean()), final_acc=float(right_nk[:, -1].mean()),
              any_block_acc=float(recoverable_n.mean()),  # an upper bound: it looks at the answer
              num_recoverable=int(recoverable_n.sum()),
              recoverable_acc=float(picked_n[recoverable_n].mean()) if (
                  recoverable_n.any()) else None,
              recoverable_final_acc=float(right_nk[recoverable_n, -1].mean()) if (
                  recoverable_n.any()) else None,
              chosen_blocks=np.bincount(chosen_n, minlength=num_blocks).tolist())


def probe_steps(states: dict, steps: dict) -> dict:
  """Which intermediate result each block holds: a probe for every (block k, step t).

  Args:
    states: f32[n, K, d] by split.
    steps: by split, a list of each question's results as text; those with fewer than t have no
      part in column t.
  Returns: {'acc': K rows of accuracies over t on test (None: not fitted), 'majority': over t, of
    the class most frequent in train, 'n': over t, questions of test, 'none': t -> why}.
  """
  num_blocks = states['test'].shape[1]
  num_steps = max((len(s) for split in steps.values() for s in split), default=0)
  acc = [[None] * num_steps for _ in range(num_blocks)]
  majority, counts, none = [None] * num_steps, [0] * num_steps, {}
  for t in range(num_steps):
    has = {s: np.asarray([len(r) > t for r in rows], bool) for s, rows in steps.items()}
    labels = {s: np.asarray([r[t] for r in rows if len(r) > t]) for s, rows in steps.items()}
    counts[t] = len(labels['test'])
    why = next(filter(None, (_find_single_class(s, labels[s]) for s in ('train', 'test'))), None)
    if why or not len(labels['valid']):
      none[str(t + 1)] = why or 'valid has no question of so many steps'
      continue
    names, sizes = np.unique(labels['train'], return_counts=True)
    majority[t] = float((labels['test'] == names[sizes.argmax()]).mean())
    for k in range(num_blocks):
      at = {s: x[has[s], k] for s, x in states.items()}
      probe, _ = _choose((at['train'], labels['train']), (at['valid'], labels['valid']),
                         lambda probe, x, y: probe.score(x, y))
      acc[k][t] = float(probe.score(at['test'], labels['test']))
  return {'acc': acc, 'majority': majority, 'n': counts, 'none': none}


def project(states_by_step: dict, fitted_on: int):
  """Principal components of block states: 2 of one checkpoint, and all checkpoints on them.

  Args:
    states_by_step: training step -> f32[n, K, d], the same questions each.
    fitted_on: the step whose states give the components.
  Returns: ({'explained': shares of variance, 'fitted_on': step, 'centers': step -> [[x, y] of each
    block], 'spread': step -> [mean distance of each block's states to its center]},
    step -> f[n, K, 2]).
  """
  from sklearn import decomposition
  base = states_by_step[fitted_on]
  flat = base.reshape(-1, base.shape[-1])
  if min(flat.shape) < 2 or np.ptp(flat, axis=0).max() == 0:
    return {'none': 'the states do not differ', 'fitted_on': fitted_on}, {}
  pca = decomposition.PCA(2, svd_solver='full').fit(flat)
  points = {step: pca.transform(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], 2)
            for step, x in states_by_step.items()}
  centers = {step: p.mean(0) for step, p in points.items()}
  return {
      'explained': pca.explained_variance_ratio_.tolist(), 'fitted_on': fitted_on,
      'centers': {str(step): c.tolist() for step, c in centers.items()},
      'spread': {str(step): np.linalg.norm(points[step] - c, axis=-1).mean(0).tolist()
                 for step, c in centers.items()}}, points


def format_points(points: dict, answers) -> str:
  """Points of `project` as CSV: step, question (1-based), block, x, y, the gold answer."""
  rows = [(step, i, k, f'{x:.6g}', f'{y:.6g}', answers[i - 1])
          for step, points_nk2 in sorted(points.items())
          for i, row in enumerate(points_nk2, 1) for k, (x, y) in enumerate(row, 1)]
  return storage.format_csv([('step', 'question', 'block', 'x', 'y', 'answer'), *rows])
