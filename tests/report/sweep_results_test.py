"""What runs say together: valid alone chooses, effects are paired, by hand and by SciPy."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rim_jax import reader
from rim_jax.config import grid as grid_lib
from rim_jax.report import sweep_results
from rim_jax.results import judge, stats
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import point_run, run_folder
from tests import support, support_report, support_sweep
from tests.support_sweep import make_states


def test_the_best_is_chosen_by_valid_and_test_has_no_say(tmp_path):
  states = make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, 0.50, 0.90), ({'a': 1, 'seed': 1}, 0.52, 0.92),
      ({'a': 2, 'seed': 0}, 0.70, 0.60), ({'a': 2, 'seed': 1}, 0.72, 0.62),
      ({'a': 3, 'seed': 0}, 0.80, 0.95), ({'a': 3, 'seed': 1}, 0.62, 0.95)])
  told = support_sweep.conclude(states, tmp_path)
  best = told['best']
  assert best['name'] == 'a=2' and best['equal'] == ['a=3'] and best['doubtful'] == ['a=3']
  assert best['final_acc']['mean'] == pytest.approx(0.61)
  assert best['valid_acc']['stderr'] == pytest.approx(0.01)
  against = {e['name']: e['against_best']['best'] for e in told['entries'] if 'against_best' in e}
  assert against == {'a=1': 'a=2', 'a=3': 'a=2'}
  text = (tmp_path / 'sweep.md').read_text()
  assert 'Best by valid: a=2 (71.0 ± 1.0% of valid, mean of 2 seed(s); 61.0 ± 1.0% final)' in text
  assert 'Equal on valid: a=3' in text


@pytest.mark.parametrize('best, told', [
    ((1.0, 1.0), 'All its seeds are equal, so no test can tell these from it: a=1.'),
    ((1.0, 0.99), 'On other seeds these may be as good: a=1.'), ((0.9,), 'these may be as good')])
def test_seeds_that_are_all_equal_are_said_to_be(best, told, tmp_path):
  support_sweep.conclude(make_states(tmp_path, [
      ({'a': 1, 'seed': seed}, acc, 0.5) for seed, acc in enumerate((0.1, 0.98))] + [
          ({'a': 2, 'seed': seed}, acc, 0.5) for seed, acc in enumerate(best)]), tmp_path)
  assert told in (tmp_path / 'sweep.md').read_text()


def test_a_setting_that_has_a_done_seed_is_compared_though_others_were_dropped(tmp_path):
  states = make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, 0.5, 0.9), ({'a': 2, 'seed': 0}, 0.4, 0.9),
      ({'a': 2, 'seed': 1}, 0.4, 0.9), ({'a': 3, 'seed': 0}, 0.3, 0.9)])
  for state in states[2:]:
    state.status, state.error = 'dropped', 'after 25% of its budget'
  told = support_sweep.conclude(states, tmp_path)
  assert told['best']['dropped'] == {'a=2': 1, 'a=3': 1}
  assert [e['num_done'] for e in told['entries']] == [1, 1, 0]
  text = (tmp_path / 'sweep.md').read_text()
  assert 'Runs dropped early' in text and 'failed or are missing' not in text  # told once


@pytest.mark.parametrize('accs, told', [
    ((0.5, 0.4, 0.3), 'Its a=1 is the lowest of 3 that were tried: a better one may lie beyond.'),
    ((0.3, 0.4, 0.5), 'Its a=4 is the highest of 3 that were tried: a better one may lie beyond.'),
    ((0.4, 0.5, 0.3), ''), ((0.5, 0.4), '')])
def test_a_best_at_an_end_of_what_was_tried_is_told(accs, told, tmp_path):
  support_sweep.conclude(make_states(tmp_path, [
      ({'a': 2**i, 'b': 'x'}, acc, 0.9) for i, acc in enumerate(accs)]), tmp_path)
  text = (tmp_path / 'sweep.md').read_text()
  assert told in text and text.count('may lie beyond') == bool(told)


def test_an_end_is_one_of_what_the_best_s_own_method_was_tried_with(tmp_path):
  def tell(name, *rows):
    support_sweep.conclude(make_states(tmp_path / name, [
        ({'method': method, 'lr': lr, **more}, acc, 0.9) for method, lr, acc, more in rows]),
                           tmp_path / name)
    return (tmp_path / name / 'sweep.md').read_text()
  rim = [('rim', lr, 0.1 * lr, {}) for lr in (1, 2, 3)]
  others = [('codi', lr, 0.01, {'weight': 20}) for lr in (4, 5, 6)]
  assert 'Its lr=3 is the highest of 3 that were tried' in tell('end', *rim, *others)
  two = [('codi', 4, 0.9, {'weight': 20}), ('codi', 4, 0.8, {'weight': 1})]
  assert 'may lie beyond' not in tell('none', *rim, *two)  # two weights are no row of values


def test_a_run_that_was_evaluated_otherwise_than_asked_is_told(tmp_path):
  states = make_states(tmp_path, [({'a': 1}, 0.5, 0.9), ({'a': 2}, 0.4, 0.9), ({'a': 3}, 0.4, 0.9)])
  for state, changes in zip(states, ({'max_new_tokens': 3}, {'checkpoint': 'last'},
                                     {'max_new_tokens': None, 'checkpoint': 'best'})):
    folder = state.last[1]
    tree = json.loads(folder.results.read_text())
    tree[state.last[0].eval_set] |= changes
    folder.results.write_text(json.dumps(tree))
  asked = states[0].point.config.eval
  assert asked.checkpoint == 'best' and asked.max_new_tokens != 3
  assert support_sweep.conclude(states, tmp_path)['warnings'] == [
      f'a=1 was evaluated with eval.max_new_tokens=3, and this sweep asks for '
      f'{asked.max_new_tokens}; evaluate it so with --workdir={states[0].folder} --mode=eval '
      f'--config.eval.max_new_tokens={asked.max_new_tokens}',
      'a=2 was evaluated with eval.checkpoint=last, and this sweep asks for best; evaluate it so '
      f'with --workdir={states[1].folder} --mode=eval --config.eval.checkpoint=best']


def test_runs_that_are_missing_are_named_beside_the_best(tmp_path):
  states = make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, 0.5, 0.9), ({'a': 1, 'seed': 1}, 0.5, 0.9),
      ({'a': 2, 'seed': 0}, 0.6, 0.9), ({'a': 2, 'seed': 1}, 0.1, 0.9)])
  states[3].status = 'failed'
  support_sweep.conclude(states, tmp_path)
  text = (tmp_path / 'sweep.md').read_text()
  assert 'With the runs that failed or are missing another may be best: a=2 (1 of 2 done).' in text


def test_the_markdown_has_each_control_beside_what_it_should_give(tmp_path):
  states = make_states(tmp_path, [
      ({'a': 1, 'seed': 0}, 0.5, 0.9), ({'a': 1, 'seed': 1}, 0.5, 0.9), ({'a': 2}, 0.4, 0.9)])
  shares = iter([(0.1, 0.5), (0.2, 0.7)])
  for state in states[:2]:
    own, donor = next(shares)
    support_report.write_controls(state.folder, step=5, controls={
        'swap': {'what': 'w', 'expected': "the donor's", 'final_acc': own,
                 'final_donor_acc': donor},
        'pause': {'what': 'w', 'expected': '', 'final_acc': 0.1, 'differs': ['seed']},
        'direct': {'what': 'w', 'expected': 'less', 'none': 'not a|run'}})
  support_sweep.conclude(states, tmp_path)
  text = (tmp_path / 'sweep.md').read_text()
  assert ("\n\n|  | if the memory does the work | a=1 |\n|---|---|---|\n"
          "| swap (w) | the donor's | 15.0 ± 5.0%, donor's 60.0 ± 10.0% |\n"
          '| pause (w) |  | 10.0 ± 0.0% (DIFFERS in seed) |\n'
          '| direct (w) | less | not a/run |\n') in text
  for state in states[:2]:
    (state.folder / 'controls.json').unlink()
  support_sweep.conclude(states, tmp_path)
  assert '| control |' not in (tmp_path / 'sweep.md').read_text()


def write_card(folder, **changes):
  (folder / 'config.json').write_text(json.dumps({
      'format': card_lib.CARD_VERSION, 'config': dataclasses.asdict(support.make_config('direct')),
      'data': {}, 'base': None, 'tokenizer': 't'} | changes))


def test_runs_on_other_weights_under_the_same_path_are_told(tmp_path):
  states = make_states(tmp_path, [({'a': 1}, 0.5, 0.9), ({'a': 2}, 0.4, 0.9), ({'a': 3}, 0.4, 0.9)])
  for state, base, tokenizer in zip(states, ('x', 'x', 'y'), ('t', 't', 't')):
    write_card(state.folder, base={'fingerprint': base}, tokenizer=tokenizer)
  (told,) = support_sweep.conclude(states, tmp_path)['warnings']
  assert told == ('runs of different bases: a=1, a=2 on x; a=3 on y; run them again in another '
                  '--workdir')
  assert told in (tmp_path / 'sweep.md').read_text()
  write_card(states[2].folder)
  assert 'a=3 on None' in sweep_results.find_mixtures(states)[0]
  assert sweep_results.find_mixtures(states[:2]) == []


def test_runs_that_began_with_another_run_under_the_same_path_are_told(tmp_path):
  """Of a curriculum its first stage's card says it: the later ones begin with those before."""
  states = make_states(tmp_path, [({'a': i}, 0.5, 0.9) for i in (1, 2)])
  states = [dataclasses.replace(state, point=dataclasses.replace(
      state.point, config=support.make_config('rim', train__init_from='mine'))) for state in states]
  for state, start in zip(states, ('x', 'y')):
    for stage in ('stage1', 'stage2'):
      (state.folder / stage).mkdir()
    shutil.copy(state.folder / 'results.json', state.folder / 'stage2')
    write_card(state.folder / 'stage1', start={'path': 'mine', 'fingerprint': start})
  assert sweep_results.find_mixtures(states) == [
      'runs of different starts: a=1 on x; a=2 on y; run them again in another --workdir']


def test_runs_that_different_rules_rated_on_valid_have_no_best(tmp_path):
  states = make_states(tmp_path, [({'a': 1}, 0.5, 0.9), ({'a': 2}, 0.4, 0.8)])
  told = support_sweep.conclude(states, tmp_path)
  assert told['best']['name'] == 'a=1' and told['effects'][0]['valid_acc']['count'] == 1
  states[1].last[1].add_metrics(5, {'valid/final_acc': 0.4, 'valid/rule_version': 2})
  told = support_sweep.conclude(states, tmp_path)
  assert told['best'] == {} and len(told['warnings']) == 1
  assert 'valid_acc' not in told['effects'][0] and told['effects'][0]['final_acc']['count'] == 1
  shown = (tmp_path / 'sweep.md').read_text()
  assert re.search('a=1 by version 1; a=2 by version 2; run the older', shown)
  assert 'No best point: accuracies on valid were judged by different' in shown


def test_unparsed_answers_are_a_column_of_the_headline(tmp_path):
  states = make_states(tmp_path, [({'a': 1, 'seed': 0}, 0.5, 0.5), ({'a': 1, 'seed': 1}, 0.5, 0.5)])
  for state, count in zip(states, (3, 5)):
    path = state.folder / 'results.json'
    result = json.loads(path.read_text())['test'] | {'num_unparsed': count}
    path.write_text(json.dumps({'test': result}))
  (entry,) = support_sweep.conclude(states, tmp_path)['entries']
  assert entry['unparsed_frac']['mean'] == pytest.approx(0.04)  # of 100 questions each
  head, _, row = [line for line in (tmp_path / 'sweep.md').read_text().splitlines()
                  if line.startswith('|')][:3]
  at = next(i for i, text in enumerate(head.split('|')) if text.startswith(' unparsed'))
  assert row.split('|')[at] == ' 4.0 ± 1.0% '


def test_without_valid_nothing_is_chosen(tmp_path):
  told = support_sweep.conclude(
      make_states(tmp_path, [({'a': 1}, None, 0.5), ({'a': 2}, None, 0.6)]), tmp_path)
  assert told['best'] == {} and not any('against_best' in e for e in told['entries'])
  assert 'No best point' in (tmp_path / 'sweep.md').read_text()


@pytest.mark.parametrize('kind', ['deleted', 'of another run', 'cut short'])
def test_metrics_that_are_missing_leave_no_best(tmp_path, kind):
  """Of one seed: its setting's mean would be of the other alone."""
  states = make_states(tmp_path, [({'a': 1, 'seed': 0}, 0.5, 0.9), ({'a': 1, 'seed': 1}, 0.9, 0.9),
                                  ({'a': 2, 'seed': 0}, 0.8, 0.9), ({'a': 2, 'seed': 1}, 0.8, 0.9)])
  assert support_sweep.conclude(states, tmp_path)['best']['name'] == 'a=2'
  path = states[0].folder / 'metrics.jsonl'
  if kind == 'deleted':
    path.unlink()
  else:
    path.write_text(run_folder.format_line(5 if kind == 'of another run' else 3, 0,
                                           {'valid/final_acc': 0.9}, 'another') + '\n')
  told = support_sweep.conclude(states, tmp_path)
  assert told['best'] == {}
  assert re.search(f'no best is chosen, for metrics are missing: {path}', told['warnings'][0])


def test_levels_of_a_factor_may_be_lists(tmp_path):
  points = [s.point for s in make_states(tmp_path, [
      ({'a': a, 'b': [1, 2], 'seed': s}, 0.1, 0.2) for s, a in enumerate(([1], [2], [1]))])]
  assert sweep_results.list_levels(points) == {'a': [[1], [2]]}


def test_effects_are_of_pairs_that_agree_in_all_else_and_in_the_seed(tmp_path):
  """By hand: b's effect has three pairs, one of which lacks valid; a's second level has one."""
  states = make_states(tmp_path, [
      ({'a': 1, 'b': 'x', 'seed': 0}, 0.10, 0.25), ({'a': 1, 'b': 'y', 'seed': 0}, 0.30, 0.50),
      ({'a': 1, 'b': 'x', 'seed': 1}, 0.20, 0.25), ({'a': 1, 'b': 'y', 'seed': 1}, 0.50, 0.75),
      ({'a': 2, 'b': 'x', 'seed': 0}, 0.40, 0.50), ({'a': 2, 'b': 'y', 'seed': 0}, None, 1.00),
      ({'a': 3, 'b': 'y', 'seed': 7}, 0.90, 0.90)])
  effects = {(e['factor'], e['level']): e for e in map(
      reader.to_tree, sweep_results.find_effects(states))}
  assert set(effects) == {('a', 2), ('a', 3), ('b', 'y')}
  final, valid = (effects['b', 'y'][m] for m in ('final_acc', 'valid_acc'))
  assert effects['b', 'y']['reference'] == 'x'
  assert [(e['count'], e['num_seeds']) for e in (final, valid)] == [(3, 2), (2, 2)]
  # Of seed 0 two pairs, which count as one
  assert final['mean'] == pytest.approx(((0.25 + 0.5) / 2 + 0.5) / 2)
  assert valid['mean'] == pytest.approx(0.25)
  # t with one degree of freedom is Cauchy: its 97.5 % point is 12.706; a standard error of 0.05
  assert valid['interval'] == pytest.approx([0.25 - 0.63531, 0.25 + 0.63531], abs=1e-4)
  assert final['interval'] == pytest.approx(list(scipy_stats.ttest_1samp(
      [0.375, 0.5], 0).confidence_interval(0.95)))
  a = effects['a', 2]['final_acc']
  assert a['mean'] == pytest.approx((0.25 + 0.5) / 2) and (a['count'], a['num_seeds']) == (2, 1)
  assert effects['a', 2]['valid_acc'] == {
      'mean': pytest.approx(0.3), 'interval': None, 'count': 1, 'num_seeds': 1,
      'confidence': 0.95, 'no_interval': 'one seed'}
  assert 'final_acc' not in effects['a', 3]  # no other point has its seed


def test_pairs_of_a_sweep_without_seeds_count_as_the_one_seed_that_they_have(tmp_path):
  states = make_states(tmp_path, [({'a': a, 'b': b}, 0.1, 0.1 * a + 0.05 * b)
                                  for a in (1, 2) for b in (1, 2, 3)])
  effect = sweep_results.find_effects(states)[0]
  assert (effect.factor, effect.level) == ('a', 2) and effect.final_acc.mean == pytest.approx(0.1)
  assert (effect.final_acc.count, effect.final_acc.num_seeds) == (3, 1)
  assert effect.final_acc.interval is None


def test_seeds_without_a_spread_have_no_interval():
  assert stats.summarize_pairs([(s, 0.0) for s in range(3)]).interval is None
  told = stats.summarize_pairs([(0, 0.2 - 0.1), (1, 0.3 - 0.2), (2, 0.4 - 0.3)])
  assert told.interval is None and 'the same' in told.no_interval  # but for rounding
  with pytest.raises(ValueError):
    stats.summarize_pairs([])


@pytest.mark.slow
def test_an_interval_holds_as_often_as_it_says_where_pairs_share_their_seed():
  """Differences of three settings on each of three seeds, which shift all three alike."""
  rng = np.random.default_rng(0)
  held = 0
  for _ in range(2000):
    shift = 2 * rng.standard_normal(3)
    low, high = stats.summarize_pairs([
        (seed, shift[seed] + rng.standard_normal()) for seed in range(3) for _ in range(3)
    ]).interval
    held += low <= 0 <= high
  assert 0.935 < held / 2000 < 0.965  # over pairs it would be 0.71


def test_the_papers_choice_has_no_answers_to_compare(tmp_path):
  """`eval.checkpoint='splits'` leaves accuracies alone, in a set of its own."""
  points = support_sweep.load([
      ({'a': a}, {'seed': a, 'eval.checkpoint': 'splits'}) for a in (1, 2)])
  for point in points:
    folder = tmp_path / 'points' / point.name
    folder.mkdir(parents=True)
    (folder / 'point.json').write_text(json.dumps({
        'identity': grid_lib.identify(point.config), 'status': 'done', 'error': ''}))
    (folder / 'results.json').write_text(json.dumps({'test-splits': {
        'n': 100, 'step': 5, 'final_acc': 0.5, 'block_acc': [0.25, 0.5],
        'rule_version': judge.RULE_VERSION,
        'chosen_on': 'test itself, 264 of it'}}))
    (folder / 'metrics.jsonl').write_text(json.dumps({'step': 5, 'valid/final_acc': 0.5}))
  told = support_sweep.conclude(point_run.load_point_runs(points, tmp_path), tmp_path)
  assert [e['final_acc']['mean'] for e in told['entries']] == [0.5, 0.5]
  assert told['entries'][1]['against_best']['tests'] == [] and told['pairs'][0]['tests'] == []
  assert told['warnings'] == ['checkpoints of a=1, a=2 were chosen on test itself, 264 of it']
  assert told['warnings'][0] in (tmp_path / 'sweep.md').read_text()
  assert '| a=2 | 25.0% | 50.0% |' in (tmp_path / 'sweep.md').read_text()


def test_what_a_probe_selects_is_a_column_of_the_results(tmp_path):
  """A setting none of whose runs was asked has a dash; with no other run there is no column."""
  def conclude(*selected):
    states = make_states(tmp_path, [({'a': a, 'seed': seed}, 0.5, 0.5)
                                    for a, seed in ((1, 0), (1, 1), (2, 0))])
    for state, acc in zip(states, selected):
      support_report.write_controls(state.folder, step=5, probes={
          'right': {'by_block': [], 'pooled': {}, 'selection': {'acc': acc}},
          'steps': {'none': ''}})
    for state in states:
      path = state.folder / 'results.json'
      result = json.loads(path.read_text())['test'] | {'block_acc': [0.25, 0.5]}
      path.write_text(json.dumps({'test': result}))
    support_sweep.conclude(states, tmp_path)
    return (tmp_path / 'sweep.md').read_text()
  text = conclude()
  assert '|  | block 1 | block 2 |\n' in text and 'probe' not in text
  shutil.rmtree(tmp_path / 'points')
  text = conclude(0.75)
  assert '| majority of blocks | selected by a probe (' in text
  one, two = (line for line in text.splitlines() if re.match(r'\| a=\d \|.* of \d \|', line))
  assert '| 75.0% (1 of 2 seeds) | 2 of 2 |' in one and '| – | 1 of 1 |' in two
  assert '| a=1 | 25.0 ± 0.0% | 50.0 ± 0.0% |\n| a=2 | 25.0% | 50.0% |\n' in text
  assert 'probes fitted and tuned on other questions' in text
  shutil.rmtree(tmp_path / 'points')
  assert '| 62.5 ± 12.5% | 2 of 2 |' in conclude(0.75, 0.5)


def test_where_there_is_one_answer_a_probe_selects_nothing(tmp_path):
  states = make_states(tmp_path, [({'a': 1, 'seed': 0}, 0.5, 0.5)])
  support_report.write_controls(states[0].folder, step=5, probes={
      'right': {'by_block': [], 'pooled': {}, 'selection': {'acc': 0.5}},
      'steps': {'none': ''}})
  (entry,) = support_sweep.conclude(states, tmp_path)['entries']
  assert 'selected_acc' not in entry and 'probes' in entry and not entry['not_carried']


def test_an_answer_after_no_block_is_none_of_a_block_in_the_table():
  """The one reading of a method without blocks is its final answer, and no `block_acc 1`."""
  told = {'mean': 0.25, 'stderr': None, 'count': 1}
  entries = [support_report.read_setting(
      factors={'method': name}, block_acc=[told] * count, final_acc=told)
             for name, count in (('direct', 1), ('rim', 2))]
  rows = sweep_results._make_csv(entries).splitlines()[1:]
  assert rows == ['direct,final_acc,1,0.25,', 'rim,final_acc,1,0.25,', 'rim,block_acc 1,1,0.25,',
                  'rim,block_acc 2,1,0.25,']
