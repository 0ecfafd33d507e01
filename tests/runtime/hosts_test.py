"""Processes as one: who is missing, who is silent, and that their number changes nothing."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
import pytest

from rim_jax import main as main_lib
from rim_jax.errors import HostError, ShareDone, Stopped, UserError
from rim_jax.runtime import hosts, roll_call, run_folder, storage
from rim_jax.training import checkpoint as checkpoint_lib
from tests import support, support_runs

ROOT = pathlib.Path(__file__).parents[2]


# ---- Start ----


@pytest.mark.parametrize('environ, found', [
    ({}, ('', 1)),
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '0'}, ('SLURM_NTASKS', 4)),
    ({'SLURM_NTASKS': '4'}, ('', 1)),  # the batch script itself
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '4294967290', 'SLURM_STEP_NUM_TASKS': '1'},
     ('', 1)),  # the shell of salloc
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '4'},
     ('SLURM_STEP_NUM_TASKS', 4)),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, ('OMPI_COMM_WORLD_SIZE', 2)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c'}, ('TPU_WORKER_HOSTNAMES', 3)),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, ('', 1)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c', 'MEGASCALE_NUM_SLICES': '2'}, ('TPU_WORKER_HOSTNAMES', 6)),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, ('TPU_WORKER_HOSTNAMES', 2)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': ''}, ('TPU_WORKER_HOSTNAMES', 2)),
])
def test_what_a_launcher_says_is_read(environ, found):
  assert hosts.count_launched(environ) == found


def test_as_many_are_counted_as_jax_waits_for(monkeypatch):
  """On a pod of GKE with several slices; each pod knows the hosts of its own slice alone."""
  from jax._src.clusters import cloud_tpu_cluster
  for workers, slices in (('a,b,c,d', '2'), ('a,b', '1'), ('a', '3')):
    for name, value in (('TPU_WORKER_HOSTNAMES', workers), ('MEGASCALE_NUM_SLICES', slices)):
      monkeypatch.setenv(name, value)
    assert hosts.count_launched(os.environ)[1] == (
        cloud_tpu_cluster.GkeTpuCluster.get_process_count())


def test_alone_nothing_is_started(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: pytest.fail('started'))
  hosts.start('', 0, -1, False, 1, environ={})


@pytest.mark.parametrize('flags, environ, error', [
    (('', 2, -1), {}, 'need --coordinator'),
    (('', 0, 1), {}, 'need --coordinator'),
    (('host:80', 2, 2), {}, 'give HOST:PORT, a number of processes and an id below it'),
    (('host', 2, 0), {}, 'give HOST:PORT'),
    (('host:80', 2, 0), {'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '0'},
     'SLURM_NTASKS says that 4 were started'),
])
def test_flags_that_do_not_go_together(flags, environ, error):
  with pytest.raises(UserError, match=error):
    hosts.start(*flags, False, 1, environ=environ)


def test_jax_is_told_which_gpus_to_take(monkeypatch):
  """Or it would take one, by the process's number on its node."""
  asked = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: asked.append(kwargs))
  monkeypatch.setattr(roll_call, 'call_roll', lambda *unused, **more: None)
  slurm = {'SLURM_STEP_ID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'SLURM_LOCALID': '0'}
  for environ in (slurm | {'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, slurm | {'CUDA_VISIBLE_DEVICES': ''},
                  slurm | {'CUDA_VISIBLE_DEVICES': '0,1', 'JAX_LOCAL_DEVICE_IDS': '1'}):
    hosts.start('host:80', 2, 0, False, 1, environ=environ)
  assert [a.get('local_device_ids') for a in asked] == [[0, 1, 2, 3], None, None]
  assert [a.get('cluster_detection_method') for a in asked] == [None, 'deactivate', 'deactivate']


@pytest.mark.parametrize('coordinator, token, bound', [
    ('127.0.0.1:80', 'secret', '127.0.0.1:80'), ('[::1]:80', '', '[::1]:80'),
    ('192.0.2.7:80', '', '192.0.2.7:80'), ('192.0.2.7:80', 'secret', None)])
def test_jax_s_coordinator_listens_where_the_roll_call_did(coordinator, token, bound, monkeypatch):
  asked, told = [], []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: asked.append(kwargs))
  monkeypatch.setattr(roll_call, 'call_roll', lambda *args: told.append(args))
  hosts.start(coordinator, 2, 0, False, 1, environ={'RIM_JAX_TOKEN': token})
  assert asked[0].get('coordinator_bind_address') == bound and told[0][-1] == token


def test_a_run_says_on_what_it_runs_and_stops_where_gpus_are_missing(monkeypatch):
  assert hosts.describe_machine({}) == '8 devices (cpu) on 1 host'
  with pytest.raises(UserError, match='sees 0 GPUs, and SLURM_GPUS_ON_NODE=4 gives it 4'):
    hosts.describe_machine({'SLURM_GPUS_ON_NODE': '4'})
  monkeypatch.setattr(hosts, '_gather', lambda value: [value, 1])  # of another process
  with pytest.raises(UserError, match='another process sees fewer GPUs'):
    hosts.describe_machine({})
  assert hosts.count_hosts() == 2


def test_never_several_trainings_by_accident(monkeypatch):
  """A launcher started four, but JAX met one: each would train alone, into the same WORKDIR."""
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: None)
  with pytest.raises(HostError, match='says that 4 processes were started, and 1 have met'):
    hosts.start('', 0, -1, False, 1, environ={'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '0'})


def test_exit_codes_are_the_documented_ones(monkeypatch, capsys):
  def raises(error):
    def fail(*args):
      raise error
    monkeypatch.setattr(main_lib, '_run', fail)
    return main_lib.cli(['main.py'])
  assert raises(HostError('who')) == 1
  assert raises(Stopped('saved')) == 75
  assert raises(ShareDone('half')) == 0  # or a queue would start it again for ever
  assert capsys.readouterr().err == 'error: who\nstopped: saved\nstopped: half\n'
  assert str(hosts.EXIT_STALLED) in main_lib.__doc__


# ---- Agreement and end, alone ----


def test_one_process_leads_itself():
  assert hosts.lead(lambda: {'a': 1}) == {'a': 1} and hosts.is_leader()
  assert hosts.lead_first(lambda: 3) == 3


def test_what_the_system_refuses_process_0_ends_the_others(monkeypatch):
  sent = []

  def fail():
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(hosts, '_broadcast', lambda data: sent.append(data) or data)
  with pytest.raises(OSError, match='No space'):
    hosts.lead(fail)
  monkeypatch.setattr(hosts, 'is_leader', lambda: False)
  monkeypatch.setattr(hosts, '_broadcast', lambda data: sent[0])
  with pytest.raises(HostError, match='process 0 cannot go on: .*No space'):
    hosts.lead(fail)


def test_what_is_wrong_with_one_process_ends_all(monkeypatch):
  def fail():
    raise UserError('mine')
  monkeypatch.setattr(hosts, '_gather', lambda value: [value, 0, 0])
  assert hosts.together(lambda: 3) == 3
  with pytest.raises(UserError, match='mine'):
    hosts.together(fail)
  monkeypatch.setattr(hosts, '_gather', lambda value: [value, 1, 1])
  with pytest.raises(UserError, match='process 1, 2 could not begin; its log says why'):
    hosts.together(lambda: 3)


@pytest.mark.parametrize('theirs, fragment', [
    ({'rate': '1', 'data': 'a'}, ''),
    ({'rate': '2', 'data': 'b'}, 'process 1 has another rate, data than process 0'),
    ({'rate': '1', 'data': 'a', 'later': ''}, 'process 1 has another rim_jax than process 0')])
def test_processes_that_differ_are_refused(theirs, fragment, monkeypatch):
  asked = iter([[' '.join(theirs)], list(theirs.values())])

  def gather(mine):
    return np.stack([mine, np.array([zlib.crc32(x.encode()) for x in next(asked)], np.uint32)])
  monkeypatch.setattr(hosts.multihost_utils, 'process_allgather', gather)
  with pytest.raises(UserError, match=fragment) if fragment else contextlib.nullcontext():
    hosts.check_alike({'rate': '1', 'data': 'a'})


def test_sigterm_is_noticed_and_the_handler_given_back():
  before = signal.getsignal(signal.SIGTERM)
  with hosts.StopSignal() as stop:
    assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_set()
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_launched_run_knows_that_its_last_step_was_the_one_agreed_on(monkeypatch):
  """JAX says so once: asked again, at the next stage's steps, it does not."""
  answers = iter([False, True])
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda _: next(answers))
  with hosts.StopSignal() as stop:
    assert not stop.is_set() and not stop.was_set
    assert stop.is_set() and stop.was_set


def watch(stall_secs, beats, wait):
  ended = []
  with hosts.Watchdog(stall_secs, end=ended.append) as dog:
    for step in beats:
      dog.beat(step)
    time.sleep(wait)
  return ended


def test_a_stall_ends_the_process_and_shows_where(capfd):
  assert watch(0.2, [41], 1.5) == [hosts.EXIT_STALLED]
  shown = capfd.readouterr().err
  assert 'no step for 0.2 s after step 41' in shown and 'hosts_test.py' in shown


def test_no_thread_outlives_the_watch():
  """One that asks JAX while the interpreter ends aborts a process that has done its work."""
  before = set(threading.enumerate())
  with hosts.Watchdog(30.0) as dog:
    dog.beat(1)
    assert set(threading.enumerate()) > before
  assert set(threading.enumerate()) == before


SUSPENDED = """
import os, signal, sys, threading, time
from rim_jax.runtime import hosts
with hosts.Watchdog(3.0) as dog:
  dog.beat(1)
  print('ready', flush=True)
  sys.stdin.readline()
  time.sleep(float(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('hangs, code', [(0.5, 0), (30, hosts.EXIT_STALLED)])
def test_a_process_that_was_suspended_has_not_stalled(hangs, code):
  """It still ends one that hangs, counted from when it went on."""
  process = subprocess.Popen(
      [sys.executable, '-c', SUSPENDED, str(hangs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, env=support_runs.ENVIRONMENT)
  assert process.stdout and process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGSTOP)
  time.sleep(4.5)
  process.send_signal(signal.SIGCONT)
  _, err = process.communicate('go on\n', timeout=300)
  assert process.returncode == code, err


@pytest.mark.parametrize('stall_secs, beats', [(0.2, []), (0.0, [1]), (30.0, [1])])
def test_no_stall_before_the_first_beat_or_where_it_is_off(stall_secs, beats):
  assert watch(stall_secs, beats, 1.2) == []


@pytest.mark.slow
def test_a_beat_may_ask_for_more_time():
  """A save of many GB takes longer than a step, and is no standstill."""
  ended = []
  with hosts.Watchdog(0.2, end=ended.append) as dog:
    dog.beat(1, more_secs=30.0)
    time.sleep(1.2)
    assert not ended
    dog.beat(2)
    time.sleep(1.2)
  assert ended == [hosts.EXIT_STALLED]


def test_the_silent_and_the_last_are_named():
  dog = hosts.Watchdog(10.0)
  now = time.monotonic()
  dog._exchanged = now
  dog._heard = {0: ('7 12 0', now - 1), 1: ('7 12 0', now - 50), 2: ('9 11 0', now - 2)}
  assert dog._find_silent(now, 40.0).startswith(
      'process 1 has not been heard of for 50 s (it was at step 12)')
  assert 'process 2 is behind all, at step 11' in dog._describe_stall()
  dog._exchanged = now - 60
  assert dog._find_silent(now, 40.0).startswith('process 0 has not answered for 60 s')


def test_the_process_whose_own_part_of_a_step_takes_longest_is_told():
  dog = hosts.Watchdog(10.0)
  assert dog.compare(0.1) == {}  # alone, or nobody heard of yet
  dog._heard = {p: (f'7 12 {secs}', 0.0) for p, secs in ((0, 0.25), (1, 0.5), (2, 0.125))}
  assert dog.compare(0.1) == {'hosts/own_secs_min': 0.125, 'hosts/own_secs_max': 0.5,
                              'hosts/slowest': 1}


# ---- Real processes ----

# Steps take long enough for a notice to come between them, and process 1 may be killed, once.
SLOWLY = """
import os, signal, sys, time
from rim_jax import main
from rim_jax.report import figures
from rim_jax.runtime import hosts
figures.finish = lambda figure, caption, head, rows: figures.Figure(caption, '', b'', head, rows)
real, asked, died = hosts.StopSignal.is_set, [], os.environ.get('DIES_ONCE')
def is_set(self):
  asked.append(1)
  time.sleep(float(os.environ.get('STEP_SECS', '0')))
  if died and '--process_id=1' in sys.argv and len(asked) == 12 and not os.path.exists(died):
    open(died, 'w').close()
    os.kill(os.getpid(), signal.SIGKILL)
  return real(self)
hosts.StopSignal.is_set = is_set
if '--process_id=1' in sys.argv:
  time.sleep(float(os.environ.get('LATE_SECS', '0')))
sys.exit(main.cli(sys.argv))
"""


def launch(recipe, workdir, processes, *flags, before=(), more=(), program=SLOWLY, **environment):
  return subprocess.Popen(
      [*before, sys.executable, ROOT / 'launch/local_hosts.py', f'--processes={processes}', *flags,
       '--', sys.executable, '-c', program, f'--config={recipe}', f'--workdir={workdir}', *more],
      env=support_runs.ENVIRONMENT | environment, cwd=ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope='module')
def by_two(tmp_path_factory):
  """(recipe, WORKDIR of its undisturbed run by two processes)"""
  folder = tmp_path_factory.mktemp('by_two')
  recipe = support_runs.write_recipe(folder, checkpoint__keep_last=8)  # all of them
  code, out = support_runs.finish(launch(recipe, folder / 'run', 2))
  assert code == 0, out
  return recipe, folder / 'run'


def run_here(recipe, workdir, capsys, *flags):
  """By this process alone: what it says."""
  code = main_lib.cli(['main', f'--config={recipe}', f'--workdir={workdir}', *flags])
  told = capsys.readouterr()
  assert code == 0, told
  return told.out


def check_same(folder, one):
  """The run of other numbers of processes is that of one: data, losses, parameters."""
  losses, params, card = support_runs.read_run(one)
  others, other_params, other_card = support_runs.read_run(folder)
  assert len(losses) == 20 and losses.keys() == others.keys()
  assert card['rows'] == other_card['rows']
  for step in losses:
    assert others[step] == pytest.approx(losses[step], rel=1e-5)
  jax.tree.map(lambda a, b: support.assert_close(a, b, relative=1e-4), other_params, params)
  rows = (folder / 'predictions/test.jsonl').read_text().splitlines()
  assert len(rows) == len({json.loads(r)['origin'] for r in rows}) == 8


def find_ports(workdir):
  """The ports on which processes listen whose command names a WORKDIR."""
  inodes = set()
  for process in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      if str(workdir).encode() in (process / 'cmdline').read_bytes():
        inodes.update(os.readlink(fd)[8:-1] for fd in (process / 'fd').iterdir()
                      if os.readlink(fd).startswith('socket:'))
  rows = [line.split() for name in ('tcp', 'tcp6')
          for line in pathlib.Path('/proc/net', name).read_text().splitlines()[1:]]
  listens = '0A'
  return {int(row[1].rpartition(':')[2], 16) for row in rows
          if row[3] == listens and row[9] in inodes}


@pytest.mark.slow
def test_a_port_scanner_beside_a_run_changes_nothing(tmp_path, by_two):
  """Every second it connects to every port of the run, says nothing, and stays a while.

  The second process comes when the first has given up a connection that says nothing.
  """
  recipe, two = by_two
  run = launch(recipe, tmp_path / 'scanned', 2, STEP_SECS='0.1', LATE_SECS='8')
  done, scanned, open_ = threading.Event(), set(), []

  def scan():
    while not done.wait(1):
      for port in find_ports(tmp_path / 'scanned'):
        with contextlib.suppress(OSError):
          open_.append(socket.create_connection(('127.0.0.1', port), timeout=1))
          scanned.add(port)
      while len(open_) > 20:
        open_.pop(0).close()
  thread = threading.Thread(target=scan)
  thread.start()
  try:
    code, out = support_runs.finish(run)
  finally:
    done.set()
    thread.join()
  assert code == 0 and scanned, out
  assert 'no process of this run' in out  # the roll call met the scanner
  losses, params, _ = support_runs.read_run(two)
  others, other_params, _ = support_runs.read_run(tmp_path / 'scanned')
  assert losses == others
  jax.tree.map(np.testing.assert_array_equal, params, other_params)


def test_the_number_of_processes_changes_nothing(tmp_path, by_two, use_devices, capsys):
  """Two processes; one; and one that goes on with what two had saved at step 5."""
  use_devices(1)
  recipe, two = by_two
  many = tmp_path / 'many'
  shutil.copytree(two, many)
  (many / 'results.json').unlink()
  for folder in (many / 'checkpoints').iterdir():
    if folder.name != '5':
      shutil.rmtree(folder)
  assert 'continuing from step 5 of 20' in run_here(recipe, many, capsys)
  told = [line for line in run_folder.RunFolder(two).load_metrics() if 'hosts/slowest' in line]
  assert told and all(line['hosts/slowest'] in range(2) for line in told)
  run_here(recipe, tmp_path / 'one', capsys)
  for folder in (two, many):
    check_same(folder, tmp_path / 'one')


@pytest.mark.slow
def test_two_processes_that_are_asked_to_end_go_on_as_four(tmp_path, by_two, use_devices, capsys):
  use_devices(1)
  recipe, _ = by_two
  run = launch(recipe, tmp_path / 'many', 2, STEP_SECS='0.25')
  support_runs.wait_for(tmp_path / 'many/checkpoints/5/manifest.json', run)
  run.send_signal(signal.SIGTERM)
  code, out = support_runs.finish(run)
  assert code == Stopped.exit_code and 'asked to end' in out, out
  at = checkpoint_lib.list_steps(storage.get_absolute(tmp_path / 'many/checkpoints'))[0]
  code, out = support_runs.finish(launch(recipe, tmp_path / 'many', 4))
  assert code == 0, out
  assert all(line.startswith('[0]') for line in out.splitlines() if 'steps done' in line)
  assert f'continuing from step {at} of' in out, out
  run_here(recipe, tmp_path / 'one', capsys)
  check_same(tmp_path / 'many', tmp_path / 'one')


def test_a_killed_process_ends_the_others_and_the_launcher_goes_on(tmp_path, by_two):
  recipe, whole = by_two
  supervise = (sys.executable, ROOT / 'launch/supervise.py', '--')
  code, out = support_runs.finish(launch(recipe, tmp_path / 'run', 2, '--grace_secs=5',
                                         before=supervise, DIES_ONCE=str(tmp_path / 'died')))
  assert (tmp_path / 'died').exists()
  assert code == 0 and 'supervise: it ended with' in out and 'continuing from step' in out, out
  losses, params, _ = support_runs.read_run(tmp_path / 'run')
  others, other_params, _ = support_runs.read_run(whole)
  assert losses == others
  jax.tree.map(np.testing.assert_array_equal, params, other_params)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['model', 'adapters'])
def test_several_processes_export_the_files_of_one(tmp_path, use_devices, capsys, kind):
  """Parameters split over two processes, part of a model on each."""
  recipe = support_runs.write_recipe(
      tmp_path, method='pause', model__init_from=str(ROOT / 'tests/golden/llama'),
      model__frozen_dtype='float32', model__lora__rank=2, model__num_heads=4, model__mlp_dim=40,
      model__max_positions=128, optim__trainable='lora', tokenizer__kind='bytes', mesh__fsdp=2,
      mesh__data=1, train__num_examples=32, layout__row_tokens=64, export__dtype='float32')
  use_devices(2)
  run_here(recipe, tmp_path / 'run', capsys)
  flags = [f'--config.export.adapters={kind == "adapters"}', '--mode=export']
  use_devices(1)
  out = run_here(recipe, tmp_path / 'run', capsys, *flags, '--config.mesh.fsdp=1',
                 f'--config.export.dir={tmp_path / "one"}')
  code, told = support_runs.finish(launch(recipe, tmp_path / 'run', 2, more=(
      *flags, f'--config.export.dir={tmp_path / "two"}')))
  assert code == 0, told
  for text in (out, told):
    assert text.count('have the ids that the run was trained on') == 1, text
  one, two = ({str(p.relative_to(tmp_path / name)): p.read_bytes()
                for p in (tmp_path / name).rglob('*') if p.is_file()}
              for name in ('one', 'two'))
  assert one == two
  assert ('adapter_model.safetensors' if kind == 'adapters' else 'model.safetensors') in two


SEE = '''
import sys
import jax
from etils import epath
from rim_jax.errors import UserError
from rim_jax.runtime import hosts

shared, own, address, count, me = (flag.rpartition('=')[2] for flag in sys.argv[1:])
jax.distributed.initialize(address, int(count), int(me))
hosts.check_shared(epath.Path(shared))
print('all see', list(epath.Path(shared).iterdir()), flush=True)
mine = epath.Path(own) / me
mine.mkdir(parents=True)
try:
  hosts.check_shared(mine)
except UserError as e:
  print('refused', e, flush=True)
'''


@pytest.mark.slow
def test_a_directory_that_not_all_processes_see_is_refused_by_all(tmp_path):
  (tmp_path / 'see.py').write_text(SEE.replace('hosts\n\n', 'hosts\nhosts.SEEN_SECS = 1\n\n', 1))
  (tmp_path / 'shared').mkdir()
  code, out = support_runs.finish(subprocess.Popen(
      [sys.executable, ROOT / 'launch/local_hosts.py', '--processes=2', '--', sys.executable,
       tmp_path / 'see.py', tmp_path / 'shared', tmp_path / 'own'], stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT))))
  assert code == 0, out
  assert out.count('all see []') == 2 and out.count('refused') == 2, out
  assert out.count('process 1 of 2 does not see what process 0 writes there') == 2


# Process 1 is given a flag more.
ONE_DIFFERS = '''
import os, sys
from rim_jax import main
if '--process_id=1' in sys.argv:
  sys.argv.append(os.environ['MORE'])
main.main()
'''


@pytest.mark.slow
@pytest.mark.parametrize('flag, fragment', [
    ('--config.optim.learning_rate=0.03', 'process 1 has another optim.learning_rate than'),
    ('--config.data.cache_dir=/proc/nowhere', 'process 1 could not begin; its log says why')])
def test_a_process_that_is_not_as_the_others_ends_all_of_them(tmp_path, flag, fragment):
  """With the exit code of a user's mistake, and before anything is trained."""
  recipe = support_runs.write_recipe(tmp_path)
  code, out = support_runs.finish(launch(recipe, tmp_path / 'run', 2, program=ONE_DIFFERS,
                                         MORE=flag))
  assert code == 2 and f'[0] error: {fragment}' in out, out
  assert not (tmp_path / 'run/config.json').exists()


# A file system that tells process 1 an older list of files; a report that takes longer than JAX
# waits for the others at its end.
LATE = '''
import sys, time
from rim_jax import main
from rim_jax.report import run_page
from rim_jax.runtime import hosts
from rim_jax.training import checkpoint
hosts._SHUTDOWN_SECS = 2
write, steps = run_page.write_report, checkpoint.list_steps
def write_late(*args):
  time.sleep(8)
  return write(*args)
run_page.write_report = write_late
me = sys.argv[-1].partition('=')[2]
if me == '1':
  checkpoint.list_steps = lambda folder: steps(folder)[1:]
restore = checkpoint.restore
def tell(found, *args):
  print('opens', found.step, flush=True)
  return restore(found, *args)
checkpoint.restore = tell
sys.exit(main.cli(sys.argv))
'''


@pytest.mark.slow
def test_processes_use_one_checkpoint_and_wait_for_the_report(tmp_path, by_two):
  """Process 1 does not see the last one yet. They would have loaded two, and asked a mixture."""
  recipe, done = by_two
  shutil.copytree(done, tmp_path / 'run')
  code, out = support_runs.finish(launch(recipe, tmp_path / 'run', 2, program=LATE, more=(
      '--mode=eval', '--config.eval.checkpoint=last')))
  assert code == 0, out
  newest = checkpoint_lib.list_steps(tmp_path / 'run/checkpoints')[0]
  opened = [line for line in out.splitlines() if 'opens' in line]
  assert sorted(opened) == [f'[{me}] opens {newest}' for me in (0, 1)], out


ASK_TWICE = '''
import os, signal, sys, time
import jax
from jax.experimental import multihost_utils
from rim_jax.runtime import hosts

address, count, me = (flag.partition('=')[2] for flag in sys.argv[1:])
jax.distributed.initialize(address, int(count), int(me))
with hosts.StopSignal() as stop:
  first = [stop.is_set() for _ in range(20)]
if me == '1':
  os.kill(os.getpid(), signal.SIGTERM)  # outside of any loop
time.sleep(3)  # JAX looks once a second, and then they agree
multihost_utils.sync_global_devices('between')
second = []
with hosts.StopSignal() as stop:
  while not any(second) and len(second) < 19:  # fewer calls than in the first
    time.sleep(0.1)
    second.append(stop.is_set())
print(f'first {any(first)}, second {any(second)} at {len(second)}', flush=True)
'''


ASK_ALONE = '''
import os, signal, sys, time
import jax
from rim_jax.config import CheckpointConfig
from rim_jax.runtime import hosts
from rim_jax.training import checkpoint

jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 1, 0)
if sys.argv[2]:  # a save of a later step than the loop comes to
  with checkpoint.Checkpointer(sys.argv[2], CheckpointConfig()) as checkpointer:
    checkpointer.save(1000, {'w': jax.numpy.ones(3)}, {'step': jax.numpy.int32(1)}, {}, None)
os.kill(os.getpid(), signal.SIGTERM)  # before the loop
time.sleep(2 * bool(sys.argv[2]))  # JAX looks once a second
with hosts.StopSignal() as stop:
  deadline = time.monotonic() + 15
  while not stop.is_set():
    assert time.monotonic() < deadline, 'the notice is lost'
    time.sleep(0.1)
'''


@pytest.mark.parametrize('saves', [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_notice_before_the_loop_of_one_launched_process_is_kept(saves, tmp_path):
  """As of every job of one node: JAX takes the signal from its start on, also for one process.

  Orbax asks JAX, too, at a save: by the step, which is beyond what the loop counts.
  """
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  done = subprocess.run([sys.executable, '-c', ASK_ALONE, str(port), str(tmp_path) * saves],
                        capture_output=True, text=True, timeout=300,
                        env=support_runs.ENVIRONMENT)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_notice_between_two_loops_ends_the_second_at_one_step_everywhere(tmp_path):
  (tmp_path / 'ask.py').write_text(ASK_TWICE)
  code, out = support_runs.finish(subprocess.Popen(
      [sys.executable, ROOT / 'launch/local_hosts.py', '--processes=2', '--', sys.executable,
       tmp_path / 'ask.py'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT))))
  assert code == 0, out
  told = [line.partition('] ')[2] for line in out.splitlines() if 'first' in line]
  assert len(told) == 2 and len(set(told)) == 1 and 'first False, second True' in told[0], out
