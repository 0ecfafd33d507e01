"""Two runs of any recipes are compared from their files; what cannot be is told in one line."""

import dataclasses
import json
import pathlib
import sys

import pytest

from rim_jax import command_line
from rim_jax.config import stages as stages_lib
from rim_jax.results import judge, stats
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts
from tests import support_cli

RIGHT_A = [True] * 20 + [False] * 10
RIGHT_B = [True] * 8 + [False] * 12 + [True] * 2 + [False] * 8


@pytest.fixture(autouse=True)
def _in_place(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  (tmp_path / 'tiny.py').write_text(support_cli.RECIPE)
  monkeypatch.setattr(hosts, 'start', lambda *args: pytest.fail('a process began'))


def write_run(folder, method, right, name='test', fingerprint='f1', questions=None, stage=-1,
              flags=()):
  """What a run of the recipe leaves, of a curriculum one stage's."""
  _, config, _ = command_line.parse(['main.py', f'--config=tiny.py:{method}', *flags])
  below, config = stages_lib.make_stages(config)[stage]
  folder = folder / below if below else folder
  (folder / 'predictions').mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps({
      'format': card_lib.CARD_VERSION, 'config': dataclasses.asdict(config), 'tokenizer': 't',
      'base': None, 'data': {'fingerprint': fingerprint}}))
  (folder / 'results.json').write_text(json.dumps({name: {
      'step': 1234, 'checkpoint': 'best', 'data_fingerprint': fingerprint,
      'rule_version': judge.RULE_VERSION, 'final_acc': sum(right) / len(right), 'block_acc': []}}))
  questions = questions or [f'{i}?' for i in range(len(right))]
  (folder / f'predictions/{name}.jsonl').write_text(''.join(json.dumps(
      {'question': q, 'answer': '1', 'correct': r}) + '\n' for q, r in zip(questions, right)))
  return folder


def ask(method, *flags):
  return [f'--config=tiny.py:{method}', '--mode=compare', '--workdir=mine', *flags]


def test_the_last_of_many_stages_counts(tmp_path):
  write_run(tmp_path / 'mine', 'direct', RIGHT_A)
  for stage, right in ((9, RIGHT_A), (-1, RIGHT_B)):
    write_run(tmp_path / 'theirs', 'coconut', right, stage=stage, flags=(
        '--config.coconut.num_stages=10', '--config.coconut.stage_frac=0.05'))
  code, out = support_cli.run_cli(*ask('direct', '--with=theirs'))
  assert code == 0 and str(pathlib.Path('theirs/stage11')) in out


@pytest.mark.parametrize('mine, theirs, folder', [
    ('pause', 'direct', 'theirs'), ('rim', 'direct', 'theirs'), ('direct', 'rim', 'theirs'),
    ('direct', 'rim', 'theirs/stage2')])
def test_two_runs_are_compared_as_their_answers(tmp_path, mine, theirs, folder):
  a = write_run(tmp_path / 'mine', mine, RIGHT_A)
  b = write_run(tmp_path / 'theirs', theirs, RIGHT_B)
  if theirs == 'rim':  # of a curriculum the last stage counts
    write_run(tmp_path / 'theirs', theirs, RIGHT_A, stage=0)
  code, out = support_cli.run_cli(*ask(mine, f'--with={folder}'))
  assert code == 0
  told = json.loads((tmp_path / 'mine/compare.json').read_text())
  want = stats.compare(RIGHT_A, RIGHT_B)
  assert {k: told[k] for k in dataclasses.asdict(want)} == json.loads(
      json.dumps(dataclasses.asdict(want)))
  for key, path, right in (('a', a, RIGHT_A), ('b', b, RIGHT_B)):
    assert tmp_path / told[key]['run'] == path and told[key]['acc'] == sum(right) / 30
    assert (told[key]['step'], told[key]['checkpoint'], told[key]['set']) == (1234, 'best', 'test')
  text = ' '.join(out.split())
  assert 'Two runs on the same 30 questions' in text and '66.7' in text and '33.3' in text
  assert 'a less b: +33.3 points, 95% interval [' in text
  assert 'right by both 8, by a alone 12, by b alone 2, by neither 8' in text
  assert f"McNemar's p, exact: {want.p_value:.2g}, of these two runs alone" in text


def test_each_run_has_its_own_name_for_the_set(tmp_path):
  """At K = 1 a method without blocks has none to leave out, and a run of one block no fewer."""
  write_run(tmp_path / 'mine', 'pause', RIGHT_A, 'test-k1')
  write_run(tmp_path / 'direct', 'direct', RIGHT_B)
  other = write_run(tmp_path / 'other', 'pause', RIGHT_B)
  card = json.loads((other / 'config.json').read_text())
  card['config']['layout']['num_blocks'] = 1
  (other / 'config.json').write_text(json.dumps(card))
  for folder in ('direct', 'other'):
    code, _ = support_cli.run_cli(*ask('pause', f'--with={folder}', '--config.eval.num_blocks=1'))
    assert code == 0
    told = json.loads((tmp_path / 'mine/compare.json').read_text())
    assert (told['a']['set'], told['b']['set'], told['only_a']) == ('test-k1', 'test', 12)


def test_runs_are_compared_on_the_set_that_eval_names(tmp_path):
  """GSM-Hard's answers, not test's, which say the opposite."""
  gsm8k = ['--config.data.source=gsm8k', '--config.tokenizer.kind=bytes']
  for name, method, test, hard in (('mine', 'pause', RIGHT_B, RIGHT_A),
                                   ('theirs', 'direct', RIGHT_A, RIGHT_B)):
    write_run(tmp_path / name, method, hard, 'gsm_hard')
    folder = write_run(tmp_path / name, method, test, flags=gsm8k)
    (folder / 'results.json').write_text(json.dumps({key: {
        'step': 7, 'checkpoint': 'best', 'data_fingerprint': key,
        'rule_version': judge.RULE_VERSION, 'final_acc': sum(right) / len(right), 'block_acc': []}
                                                     for key, right in (
                                                         ('test', test), ('gsm_hard', hard))}))
  hard = ['--config.eval.split=gsm_hard', '--config.eval.path=hard.jsonl']
  for flags, name, only_mine in ((hard, 'gsm_hard', 12), ([], 'test', 2)):
    assert support_cli.run_cli(*ask('pause', '--with=theirs', *gsm8k, *flags))[0] == 0
    told = json.loads((tmp_path / 'mine/compare.json').read_text())
    assert (told['a']['set'], told['b']['set'], told['only_a']) == (name, name, only_mine)


def test_a_run_of_a_sweep_is_compared_as_any(tmp_path):
  write_run(tmp_path / 'mine', 'pause', RIGHT_A)
  write_run(tmp_path / 'sweep/points/method=direct,seed=0', 'direct', RIGHT_B)
  assert support_cli.run_cli(*ask('pause', '--with=sweep/points/method=direct,seed=0'))[0] == 0


WITH = '--with=theirs'
REFUSED = {
    'no other': ([], ('--mode=compare: with which run?', '--with=DIR')),
    'another mode': ([WITH, '--mode=report'], ('--with: is for --mode=compare',)),
    'no such folder': (['--with=none'], ('--with=none: there is no run here', 'name the WORKDIR')),
    'no run': (['--with=empty'], ('--with=empty: there is no run here',)),
    'a file': (['--with=tiny.py'], ('--with=tiny.py: there is no run here',)),
    'a sweep': (['--with=sweep'], ('--with=sweep: is a sweep', '--with=sweep/points/NAME')),
    'itself': (['--with=mine'], ('--with=mine: is the run itself',)),
    'no run here': ([WITH, '--workdir=none'], ('none: there is no run here', '--mode=train')),
    'another run here': ([WITH, '--config.seed=7'],
                         ('mine: was run with seed=0, now it is 7', '--workdir')),
    'not evaluated': ([WITH, '--config.eval.split=valid'],
                      ('mine/predictions/valid.jsonl: no predictions', '--mode=eval')),
    'not evaluated there': (['--with=unread'],
                            ('unread/predictions/test.jsonl: no predictions', '--mode=eval')),
    'other data': (['--with=data'], ('data/predictions/test.jsonl: of another data set than',
                                     'fingerprints f2 and f1', 'on the same data')),
    'other questions': (['--with=asked'], ('asked/predictions/test.jsonl: other questions than',
                                           '30 and 30, of which 29', 'line 30')),
    'fewer questions': (['--with=fewer'], ('other questions than', '29 and 30', 'num_examples')),
    'splits': ([WITH, '--config.eval.checkpoint=splits'],
               ("eval.checkpoint='splits'", 'no one answer', 'take best, or last')),
    'only splits there': (['--with=splits'],
                          ('splits/predictions/test.jsonl: no predictions', '--mode=eval')),
    'a damaged card': (['--with=damaged'], ('damaged/config.json', 'damaged')),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_compared_is_told_in_one_line(tmp_path, capsys, case):
  write_run(tmp_path / 'mine', 'pause', RIGHT_A)
  write_run(tmp_path / 'theirs', 'direct', RIGHT_B)
  write_run(tmp_path / 'data', 'direct', RIGHT_B, fingerprint='f2')
  write_run(tmp_path / 'asked', 'direct', RIGHT_B, questions=[*map('{}?'.format, range(29)), 'x?'])
  write_run(tmp_path / 'fewer', 'direct', RIGHT_B[:29])
  write_run(tmp_path / 'splits', 'direct', RIGHT_B, 'test-splits')
  (tmp_path / 'splits/predictions/test-splits.jsonl').unlink()
  (write_run(tmp_path / 'unread', 'direct', RIGHT_B) / 'predictions/test.jsonl').unlink()
  (write_run(tmp_path / 'damaged', 'direct', RIGHT_B) / 'config.json').write_text('{')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'sweep/points').mkdir(parents=True)
  flags, *lines = REFUSED[case]
  support_cli.check_refused(capsys, ask('pause', *flags), *lines)
  assert not list(tmp_path.glob('*/compare.json'))
