"""What was written is strict and whole, and nothing waits for it."""

import errno
import io
import json
import math
import os
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console

from rim_jax import reader
from rim_jax.errors import RunError, UserError
from rim_jax.runtime import run_folder, status
from rim_jax.training import recorder as recorder_lib


def make_writer(folder, start=0, tensorboard=False):
  return recorder_lib.MetricsWriter(folder, start, tensorboard, clock=lambda: 12.34567)


def write_steps(folder, steps, start=0):
  writer = make_writer(folder, start)
  for step in steps:
    writer.write(step, {'train/loss': float(step)})
  writer.close()


def get_steps(folder):
  return [line['step'] for line in run_folder.RunFolder(folder).load_metrics()]


def refuse(constant):
  raise AssertionError(f'{constant} is not JSON')


# ---- metrics.jsonl ----


def test_a_line_is_strict_json(tmp_path):
  """NaN and Infinity, which Python would write, are no JSON; they become null."""
  writer = make_writer(tmp_path)
  writer.write(3, {'a': 1, 'b': float('nan'), 'c': float('-inf'), 'd': np.float32(0.5),
                   'e': jnp.ones(())})
  writer.close()
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  line, = [json.loads(x, parse_constant=refuse) for x in text.splitlines()]
  assert reader.unseal(line) == {
      'step': 3, 'time': 12.346, 'a': 1, 'b': None, 'c': None, 'd': 0.5, 'e': 1}


def test_a_line_is_on_disk_once_written(tmp_path):
  """A kill loses nothing that was told."""
  writer = make_writer(tmp_path)
  writer.write(1, {'a': 1})
  assert get_steps(tmp_path) == [1]
  writer.close()


def test_resuming_drops_what_will_be_told_again(tmp_path):
  write_steps(tmp_path, [1, 2, 3, 4])
  write_steps(tmp_path, [3, 4, 5], start=2)
  assert get_steps(tmp_path) == [1, 2, 3, 4, 5]


def test_starting_anew_drops_everything(tmp_path):
  write_steps(tmp_path, [1, 2])
  write_steps(tmp_path, [], start=0)
  assert get_steps(tmp_path) == []


@pytest.mark.parametrize('torn', ['{"step": 3, "ti', '3', '{"time": 1.0}', 'null', '\x00\x00'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
  """Whatever is left of it: also a piece that happens to be JSON."""
  write_steps(tmp_path, [1, 2])
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write(torn)
  assert get_steps(tmp_path) == [1, 2]
  write_steps(tmp_path, [3], start=2)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3]


def test_no_metrics_yet(tmp_path):
  assert run_folder.RunFolder(tmp_path).load_metrics() == []


# ---- TensorBoard ----


def test_tensorboard_has_its_events(tmp_path):
  writer = make_writer(tmp_path, tensorboard=True)
  writer.write(1, {'train/loss': 2.0, 'train/bad': float('nan')})
  writer.close()
  path, = (tmp_path / 'tensorboard').iterdir()
  assert b'train/loss' in path.read_bytes()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_writer_of_tensorboard_that_has_died_ends_the_run_and_hangs_nothing(tmp_path):
  writer = make_writer(tmp_path, tensorboard=True)
  events = writer._events._writer.file_writer.event_writer

  def fail(*unused):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  events._ev_writer.write_event = fail
  writer.write(1, {f'train/{i}': 2.0 for i in range(40)})  # all of a line, whenever it dies
  events._worker.join(20)
  with pytest.raises(RunError, match='a write of TensorBoard has failed; make room there, or set'):
    writer.write(2, {'train/loss': 2.0})
  with pytest.raises(RunError, match='a write of TensorBoard has failed'):
    writer.flush()
  writer.close()
  assert [x['step'] for x in run_folder.RunFolder(tmp_path).load_metrics()] == [1, 2]


def test_tensorboard_is_optional(tmp_path):
  write_steps(tmp_path, [1])
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_weights_and_biases_gets_the_same_scalars_and_one_run_a_workdir(tmp_path, monkeypatch):
  """The real package, which writes to a folder where it is told to stay offline."""
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'config.json').write_text('{"format": 2, "config": {"seed": 41}}')
  for start in (0, 1):  # a restart
    writer = recorder_lib.MetricsWriter(folder, start, False, 'a-project')
    writer.write(start + 1, {'train/loss': 0.4321, 'bad': float('nan')})
    writer.close()
  files = sorted((folder / 'wandb').rglob('*.wandb'))
  assert len(files) == 2 and len({path.name for path in files}) == 1  # run-ID.wandb
  for path in files:
    wanted, late = (b'train/loss', b'0.4321', b'a-project', b'seed'), time.monotonic() + 60
    while (missing := [text for text in wanted if text not in path.read_bytes()]) and (
        time.monotonic() < late):  # its service is another process, which may still be writing
      time.sleep(0.1)
    assert not missing
  assert get_steps(folder) == [1, 2]


def test_a_missing_package_is_told(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UserError, match="log.wandb='x' needs a package: pip install"):
    recorder_lib.MetricsWriter(tmp_path, 0, False, 'x')


def test_a_missing_login_is_told(tmp_path, monkeypatch):
  class UsageError(Exception):
    pass

  def refuse(**kwargs):
    raise UsageError('No API key configured.\nUse `wandb login`.')
  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(
      errors=types.SimpleNamespace(UsageError=UsageError), init=refuse))
  (tmp_path / 'config.json').write_text('{"config": {}}')
  with pytest.raises(UserError, match="^log.wandb='x': W&B says: No API key .* run wandb login, "):
    recorder_lib.start_wandb(tmp_path, 'x')


def test_compilations_and_memory_are_told():
  machine = recorder_lib.Machine()
  before = machine.read()
  assert before['compile/num_programs'] == 0 and before['memory/host_peak_mib'] > 50
  jax.jit(lambda x: x * 3 + 1)(np.float32(2))
  after = machine.read()
  assert after['compile/num_programs'] == 1 and after['compile/secs'] > 0
  machine.close()
  jax.jit(lambda x: x * 5 + 1)(np.float32(2))
  assert machine.read()['compile/num_programs'] == 1  # closed


# ---- Meter ----


class Clock:
  """Seconds that pass when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def make_step_metrics(loss):
  return {'loss': jnp.float32(loss), 'grad_norm': jnp.float32(2), 'learning_rate': jnp.float32(3),
          'norm': jnp.float32(4), 'healthy': jnp.bool_(True),
          'block_nll': jnp.float32([0, 6, 0]), 'block_weight': jnp.float32([0, 1.5, 0]),
          'block_count': jnp.float32([0, 3, 0]),
          'num_examples': jnp.int32(5), 'num_tokens': jnp.int32(100),
          'added': {'distance': jnp.float32(0.5)}}


def test_a_push_returns_the_one_before():
  meter = recorder_lib.Meter(0, Clock())
  assert meter.flush() is None
  assert meter.push(1, make_step_metrics(1.0), {}) is None
  step, scalars = meter.push(2, make_step_metrics(2.0), {'host': 7})
  assert (step, scalars['train/loss']) == (1, 1.0) and 'host' not in scalars
  step, scalars = meter.flush()
  assert (step, scalars['train/loss'], scalars['host']) == (2, 2.0, 7)
  assert scalars['train/added_distance'] == 0.5
  assert meter.flush() is None


def test_a_push_downloads_nothing_of_its_own(monkeypatch):
  """The device is still at work on the step that is pushed: only the one before is read."""
  read = []
  get = jax.device_get
  monkeypatch.setattr(jax, 'device_get', lambda tree: read.append(float(tree['loss'])) or get(tree))
  meter = recorder_lib.Meter(0, Clock())
  meter.push(1, make_step_metrics(1.0), {})
  assert read == []
  meter.push(2, make_step_metrics(2.0), {})
  assert read == [1.0]


def test_rates_are_of_the_steps_between_two_pushes():
  """Also after a resume: steps that another process took do not count."""
  clock = Clock()
  meter = recorder_lib.Meter(40, clock)
  clock.now += 5
  meter.push(50, make_step_metrics(1.0), {})
  clock.now += 100
  _, scalars = meter.push(60, make_step_metrics(1.0), {})
  assert scalars['perf/steps_per_sec'] == pytest.approx(2)
  assert scalars['perf/examples_per_sec'] == pytest.approx(10)
  assert scalars['perf/tokens_per_sec'] == pytest.approx(200)
  assert meter.flush()[1]['perf/steps_per_sec'] == pytest.approx(0.1)


def test_blocks_that_nothing_read_have_no_loss():
  meter = recorder_lib.Meter(0, Clock())
  meter.push(1, make_step_metrics(1.0), {})
  scalars = meter.flush()[1]
  assert {k: v for k, v in scalars.items() if 'block' in k} == {
      'train/nll_block_1': 2.0, 'train/weight_block_1': 0.5}
  assert all(math.isfinite(v) for v in scalars.values())


def test_no_time_at_all_is_no_crash():
  meter = recorder_lib.Meter(0, Clock())
  meter.push(1, make_step_metrics(1.0), {})
  assert math.isfinite(meter.flush()[1]['perf/steps_per_sec'])


# ---- Progress ----


def make_progress(start=0, total=100, terminal=False, title='stage1'):
  out, clock = io.StringIO(), Clock()
  console = rich_console.Console(file=out, force_terminal=terminal, width=60)
  return recorder_lib.Progress(title, total, start, console, 10.0, clock), clock, out


def test_without_a_terminal_a_plain_line_every_few_seconds():
  progress, clock, out = make_progress()
  for done in range(1, 100):
    clock.now += 1
    progress.update(done, 'loss 1.5')
  lines = out.getvalue().splitlines()
  assert len(lines) == 10
  assert lines[:2] == ['stage1 1/100  loss 1.5  1:39 left', 'stage1 11/100  loss 1.5  1:29 left']
  assert all(line.isprintable() for line in lines)  # no control sequences in a log file


def test_a_slow_loop_tells_its_first_step_and_is_never_silent_for_long():
  """Steps of 7 s, none of which is written down; compiling took 500 s."""
  progress, clock, out = make_progress()
  progress.update(0, 'compiling')
  clock.now += 500
  progress.restart()
  told = []
  for done in range(1, 100):
    clock.now += 7
    if progress.is_due(done):
      told.append(done)
      progress.update(done, f'loss {done}')
  assert told == [1, *range(6, 100, 5)]
  lines = out.getvalue().splitlines()
  assert lines[:3] == ['stage1 0/100  compiling', 'stage1 1/100  loss 1  11:33 left',
                       'stage1 6/100  loss 6  10:58 left']
  assert 'compiling' not in ''.join(lines[1:])


def test_the_end_is_always_told():
  progress, clock, out = make_progress()
  clock.now += 1
  progress.update(100, 'done')
  progress.close()
  assert out.getvalue() == 'stage1 100/100  done  0:00 left\n'


def test_after_a_resume_the_rest_is_estimated_from_this_process():
  progress, clock, out = make_progress(start=80)
  clock.now += 10
  progress.update(90, '')
  assert out.getvalue().endswith(' 0:10 left\n')


@pytest.mark.parametrize('terminal', [False, True])
def test_titles_and_notes_are_no_markup(terminal):
  """A title is the name of a directory, which may hold brackets."""
  progress, clock, out = make_progress(terminal=terminal, title='[a] [/]')
  clock.now += 10
  progress.update(1, '[b]')
  progress.close()
  assert '[a] [/]' in out.getvalue() and '[b]' in out.getvalue()


def test_on_a_terminal_a_bar():
  progress, _, out = make_progress(terminal=True)
  progress.update(50, 'loss 1.5')
  progress.close()
  assert '50/100' in out.getvalue()


@pytest.mark.parametrize('secs, text', [(0, '0:00'), (59.6, '1:00'), (61, '1:01'),
                                        (3599.7, '1:00:00'), (3661, '1:01:01')])
def test_seconds(secs, text):
  assert status.format_secs(secs) == text


def test_wall_time_is_divided_among_its_parts():
  now = [100.0]
  goodput = recorder_lib.Goodput(90.0, clock=lambda: now[0])

  def spend(secs):
    now[0] += secs
  spend(5)  # steps: what is in no part
  with goodput.measure('compile'):
    spend(20)
  with goodput.measure('data'):
    spend(0.5)
  with goodput.measure('save'):
    spend(1)
    with goodput.measure('evaluate'):
      spend(4)
    spend(2)
  spend(8)
  found = goodput.summarize()
  assert found == {'goodput/start_secs': 10.0, 'goodput/compile_secs': 20.0,
                   'goodput/evaluate_secs': 4.0, 'goodput/save_secs': 3.0,
                   'goodput/data_secs': 0.5, 'goodput/step_secs': 13.0,
                   'goodput/step_frac': 13 / 50.5, 'goodput/data_frac': 0.5 / 13.5}


def test_a_profile_spans_its_steps_and_comes_on_a_signal(tmp_path):
  told = []
  with recorder_lib.Profiler(tmp_path, at_step=2, num_steps=1, say=told.append) as profiler:
    for step in range(1, 9):
      profiler.step(step, jnp.ones(3) * step)
      if step == 4:
        os.kill(os.getpid(), signal.SIGUSR1)
  assert [line.rpartition(' ')[2] for line in told] == ['3', '6']
  assert len(list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))) >= 1


def test_a_profile_is_ended_with_the_loop(tmp_path):
  before = signal.getsignal(signal.SIGUSR1)
  with recorder_lib.Profiler(tmp_path, at_step=1, num_steps=100) as profiler:
    profiler.step(1, None)
    assert not list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
  assert len(list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))) == 1
  assert signal.getsignal(signal.SIGUSR1) is before
