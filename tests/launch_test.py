"""Launchers: when a run is started again, and what would run."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

from etils import epath
import local_hosts
import pytest
import supervise

from rim_jax import command_line
from tests import support_runs
from tests.support_gpu import needs_plugin

ROOT = pathlib.Path(__file__).parent.parent


def run_again(codes, progress=None, **kwargs):
  """(last code, pauses, number of attempts) of a run that ends with these codes."""
  codes, pauses = iter(codes), []
  steps = iter(progress or range(1000))
  attempts = []
  code = supervise.run_again(lambda: attempts.append(1) or next(codes), lambda: next(steps),
                             sleep=pauses.append, say=lambda line: None, **kwargs)
  return code, pauses, len(attempts)


def test_what_is_done_or_mistaken_is_not_run_again():
  assert run_again([0]) == (0, [], 1)
  assert run_again([2]) == (2, [], 1)
  assert run_again([75]) == (75, [], 1)


def test_a_failure_is_run_again_after_a_pause():
  assert run_again([1, 76, -9, 134, 0]) == (0, [2, 2, 2, 2], 5)


def test_the_same_step_three_times_is_given_up():
  assert run_again([1] * 9, progress=[5] * 9) == (1, [2, 4], 3)
  # Failing at another step begins the count anew.
  assert run_again([1] * 9, progress=[5, 5, 7, 7, 7]) == (1, [2, 2, 4], 4)


def test_a_supervisor_that_is_asked_to_end_passes_it_on_and_ends(tmp_path):
  """A real one, over a process that takes its time to save."""
  child = ('import pathlib, signal, sys, time\n'
           f'def save(*_): pathlib.Path({str(tmp_path / "saved")!r}).touch(); sys.exit(75)\n'
           'signal.signal(signal.SIGTERM, save)\n'
           f'pathlib.Path({str(tmp_path / "up")!r}).touch()\n'
           'time.sleep(60)')
  run = subprocess.Popen([sys.executable, ROOT / 'launch/supervise.py', '--', sys.executable, '-c',
                          child, f'--workdir={tmp_path}'])
  deadline = time.monotonic() + 60
  while not (tmp_path / 'up').exists():
    assert run.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  run.terminate()
  assert run.wait(300) == supervise.STOPPED and (tmp_path / 'saved').exists()


def test_a_run_that_does_not_hear_that_it_is_to_end_is_killed_in_time_and_goes_on_later(tmp_path):
  """As in its last evaluation: else the job's time is over, after which nobody starts it again."""
  child = ('import pathlib, signal, time\n'
           'signal.signal(signal.SIGTERM, lambda *_: None)\n'
           f'pathlib.Path({str(tmp_path / "up")!r}).touch()\n'
           'time.sleep(40)')
  run = subprocess.Popen(
      [sys.executable, ROOT / 'launch/supervise.py', '--', sys.executable, '-c', child,
       f'--workdir={tmp_path}'], stderr=subprocess.PIPE, text=True,
      env=dict(os.environ, RIM_JAX_GRACE_SECS='0.5'))
  support_runs.wait_for(tmp_path / 'up', run)
  began = time.monotonic()
  run.terminate()
  _, err = run.communicate(timeout=300)
  assert run.returncode == supervise.STOPPED and time.monotonic() - began < 30
  assert 'has not ended 0.5 s after it was asked to' in err


def test_a_grace_that_is_no_number_is_a_mistake():
  done = subprocess.run([sys.executable, ROOT / 'launch/supervise.py', '--', 'true'], text=True,
                        capture_output=True, timeout=300,
                        env=dict(os.environ, RIM_JAX_GRACE_SECS='long'))
  assert done.returncode == 2 and "'long'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize('launcher', [['supervise.py'], ['local_hosts.py', '--processes=1']])
def test_a_request_for_a_profile_ends_no_launcher_and_no_run_that_begins(launcher, tmp_path):
  """`scancel -s USR1` sends it to all processes of a job."""
  child = ('import os, pathlib, signal, sys, time\n'
           'os.kill(os.getpid(), signal.SIGUSR1)\n'
           f'pathlib.Path({str(tmp_path / "up")!r}).touch()\n'
           f'while not pathlib.Path({str(tmp_path / "go")!r}).exists(): time.sleep(0.05)')
  run = subprocess.Popen([sys.executable, ROOT / 'launch' / launcher[0], *launcher[1:], '--',
                          sys.executable, '-c', child, f'--workdir={tmp_path}'])
  support_runs.wait_for(tmp_path / 'up', run)
  run.send_signal(signal.SIGUSR1)
  time.sleep(0.5)
  (tmp_path / 'go').touch()
  assert run.wait(300) == 0


def test_a_request_for_a_profile_does_not_end_the_slurm_script(tmp_path):
  (tmp_path / 'srun').write_text('#!/bin/sh\nkill -USR1 $PPID\nexit 3\n')
  (tmp_path / 'srun').chmod(0o755)
  assert run_script('slurm.sh', 'python', PATH=f'{tmp_path}:{os.environ["PATH"]}').returncode == 3


def test_progress_is_read_over_the_stages(tmp_path):
  assert supervise.find_step(tmp_path / 'nothing') == -1
  (tmp_path / 'stage1').mkdir()
  (tmp_path / 'stage1/metrics.jsonl').write_text('{"step": 3}\n{"step": 40}\n{"ste')
  assert supervise.find_step(tmp_path) == 40
  (tmp_path / 'stage2').mkdir()
  (tmp_path / 'stage2/metrics.jsonl').write_text('{"step": 5}\n')
  assert supervise.find_step(tmp_path) > 40
  (tmp_path / 'stage2/metrics.jsonl').write_bytes(b'\xff\n{"step": 9}\nnull\n[]\n')
  assert supervise.find_step(tmp_path) == 10**9 + 9
  (tmp_path / 'stage3/metrics.jsonl').mkdir(parents=True)  # the run itself tells
  assert supervise.find_step(tmp_path) == 10**9 + 9


def test_a_bucket_that_does_not_answer_ends_no_supervisor(monkeypatch):
  def fail(path):
    raise ConnectionError
  place = epath.Path('gs://lab/run')
  monkeypatch.setattr(type(place), 'is_dir', fail)
  assert supervise.find_step(place) == -1


def test_points_are_counted_where_the_bucket_of_their_sweep_is_out_of_reach(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  assert command_line.count_points(
      [f'--config={ROOT}/configs/sweeps/targets.py', '--sweep_dir', 'az://b/sweep']) == 12


def test_the_workdir_is_the_one_that_the_run_takes():
  find = command_line.find_workdir
  assert find(['python', '-m', 'rim_jax.main', '--workdir=gs://b/x']) == 'gs://b/x'
  assert find(['--config=configs/rim.py:gsm8k']) == 'runs/rim-gsm8k'
  assert find(['--config', 'configs/rim.py', '--workdir', '/a b/x']) == '/a b/x'
  assert find(['--config=configs/rim.py', '--workdir=~/x']) == str(pathlib.Path('~/x').expanduser())


@pytest.mark.parametrize('argv, told', [
    (['supervise.py', '--', '/nonexistent'], '/nonexistent: there is no such program'),
    (['supervise.py', '--', 'true', '--workdir=~nosuch/x'], "no user 'nosuch'"),
    pytest.param(['supervise.py', '--', 'true', '--workdir=az://b/r'], 'needs the package adlfs',
                 marks=pytest.mark.skipif(
                     any(map(importlib.util.find_spec, ('adlfs', 'tensorflow'))), reason='has it')),
    (['local_hosts.py', '--processes=0', '--', 'true'], 'is not 1 or more'), *(
        pytest.param(*case, marks=pytest.mark.slow) for case in (
            (['supervise.py', '--'], 'there is no command'),
            (['supervise.py'], 'there is no command'),
            (['local_hosts.py', '--', '/nonexistent'], '/nonexistent: there is no such program'),
            (['local_hosts.py', '--processes=-3', '--dry-run', '--', 'true'], 'is not 1 or more'),
            (['local_hosts.py', '--devices=0', '--', 'true'], 'is not 1 or more')))])
def test_a_mistake_of_a_launcher_s_user_is_one_line_and_2(argv, told):
  done = subprocess.run([sys.executable, ROOT / 'launch' / argv[0], *argv[1:]], text=True,
                        capture_output=True, timeout=300)
  assert done.returncode == 2, done.stderr
  assert told in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr


def test_what_a_launcher_prints_runs_as_printed():
  command = ['python', '-c', 'print("$HOME; it\'s")', '--workdir=a b\n\x1b']
  for script, more in (('supervise.py', []), ('local_hosts.py', ['--processes=1'])):
    done = subprocess.run([sys.executable, ROOT / 'launch' / script, *more, '--dry-run', '--',
                           *command], text=True, capture_output=True, timeout=300)
    (line,) = done.stdout.splitlines()
    words = subprocess.run(['bash', '-c', f'printf "%s\\0" {line}'], capture_output=True, text=True,
                           timeout=300).stdout.split('\0')
    at = words.index('python')
    assert words[at:at + 4] == command and line.isprintable()


@pytest.mark.parametrize('codes, code', [
    ([0, 0], 0), ([75, 75], 75), ([75, 0], 75), ([2, 134], 2), ([0, 134], 134), ([-9, 76], -9)])
def test_one_code_for_all_processes(codes, code):
  assert local_hosts.choose_code(codes) == code


def test_local_processes_have_a_secret_in_common_that_no_command_line_shows():
  show = [sys.executable, '-c', 'import os, sys; print(os.environ["RIM_JAX_TOKEN"], *sys.argv[1:])']
  done = subprocess.run([sys.executable, ROOT / 'launch/local_hosts.py', '--', *show], text=True,
                        capture_output=True, timeout=300)
  assert done.returncode == 0, done.stderr
  tokens = {line.split()[1] for line in done.stdout.splitlines()}
  assert len(done.stdout.splitlines()) == 2 and len(tokens) == 1
  assert len(token := tokens.pop()) == 32 and done.stdout.count(token) == 2  # the environment's


def test_slurm_s_tasks_have_a_secret_in_their_environment_alone(tmp_path):
  (tmp_path / 'srun').write_text('#!/bin/sh\necho "$RIM_JAX_TOKEN" "$@"\n')
  (tmp_path / 'srun').chmod(0o755)
  told = [run_script('slurm.sh', 'python', PATH=f'{tmp_path}:{os.environ["PATH"]}').stdout.split()
          for _ in range(2)]
  assert all(len(words[0]) == 32 and words[0] not in words[1:] for words in told)
  assert told[0][0] != told[1][0] and '--kill-on-bad-exit=0' in told[0]  # one of its own each time


def test_scripts_that_the_docs_run_can_be_run():
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  assert scripts and all(os.access(path, os.X_OK) for path in scripts)


def test_a_hanging_process_is_ended_after_the_grace():
  sleeper = [sys.executable, '-c', 'import time; time.sleep(600)']
  failing = [sys.executable, '-c', 'raise SystemExit(76)']
  assert local_hosts.run_all([sleeper, failing], None, 0.5, [], threading.Event()) in (-9, 76)
  ending = threading.Event()
  ending.set()  # asked to end: what does not would outlive its supervisor
  assert local_hosts.run_all([sleeper, sleeper], None, 0.5, [], ending) == -9


def dry_run(script, *args):
  done = subprocess.run([sys.executable, ROOT / 'launch' / script, *args, '--dry-run', '--',
                         'python', '-m', 'rim_jax.main', '--config=configs/smoke.py'],
                        capture_output=True, text=True, cwd=ROOT, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_a_dry_run_prints_what_would_run():
  lines = dry_run('local_hosts.py', '--processes=3', '--devices=2')
  assert len(lines) == 3
  assert all('device_count=2' in line and '--num_processes=3' in line for line in lines)
  assert lines[2].endswith('--config=configs/smoke.py --coordinator=127.0.0.1:9876 '
                           '--num_processes=3 --process_id=2')
  assert dry_run('supervise.py') == ['python -m rim_jax.main --config=configs/smoke.py']


def run_script(name, *args, **environ):
  return subprocess.run(['bash', ROOT / 'launch' / name, *args], capture_output=True, text=True,
                        timeout=300, env=dict(os.environ, **environ))


def test_the_slurm_script_starts_one_supervised_process_a_task():
  done = run_script('slurm.sh', 'python', '-m', 'rim_jax.main', '--config=a b', DRY_RUN='1',
                    SLURM_NTASKS='4', SLURM_JOB_ID='20007', SLURM_SUBMIT_DIR=str(ROOT))
  line = shlex.split(done.stdout)
  assert line[:2] == ['srun', '--kill-on-bad-exit=0'] and '--config=a b' in line, done.stderr
  assert line[-2:] == ['--coordinator=localhost:15007', '--num_processes=4']
  assert 'launch/supervise.py -- "$@" --process_id="$SLURM_PROCID"' in line[line.index('-c') + 1]
  assert run_script('slurm.sh').returncode == 2


def test_a_container_sees_what_a_command_names_or_the_job_is_refused(tmp_path):
  def run(*args, mounts=''):
    return run_script('slurm.sh', 'python', *args, DRY_RUN='1', CONTAINER='image', SLURM_JOB_ID='1',
                      SLURM_SUBMIT_DIR=str(tmp_path), CONTAINER_MOUNTS=mounts, HOME='/home/me')
  cache = '/home/me/.cache/rim_jax'
  kept = f',{cache}:{cache},{cache}:/root/.cache/rim_jax'  # whichever home the image has
  line = shlex.split(run(f'--workdir={tmp_path}/run', '--config.data.dir=data').stdout)
  assert {'--container-image=image', f'--container-mounts={tmp_path}:{tmp_path}{kept}',
          f'--container-workdir={tmp_path}'} <= set(line)
  for words in (['--workdir', '/shared/run'], ['-workdir=/shared/run'], ['--workdir=~/run'],
                ['--workdir=../run']):
    refused = run(*words)
    assert refused.returncode == 2 and 'the container does not see it' in refused.stderr, words
  assert run('--workdir=runs/a', '--workdir=./a', f'--workdir={tmp_path}').returncode == 0
  for mounts in ('', '/scratch', '/shared/runs', '/shar'):
    refused = run('--workdir=/shared/run', mounts=mounts)
    assert refused.returncode == 2 and not refused.stdout
    assert refused.stderr == ('error: --workdir=/shared/run: the container does not see it; name a '
                              'directory above it in CONTAINER_MOUNTS\n')
  line = shlex.split(run('--workdir=/shared/run', '--config.data.dir=/scratch/d',
                         mounts='/shared,/scratch/').stdout)
  assert (f'--container-mounts={tmp_path}:{tmp_path},/shared:/shared,/scratch/:/scratch/{kept}'
          in line)


def test_what_a_container_keeps_in_its_cache_is_there_at_its_next_start(tmp_path):
  (tmp_path / 'srun').write_text(  # one task a node, and then the run, which mounts from there
      '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\n[ "$1" != mkdir ] || exec "$@"\n'
      'ls -d "$HOME/.cache/rim_jax"\n')
  (tmp_path / 'srun').chmod(0o755)
  done = run_script('slurm.sh', 'python', CONTAINER='image', HOME=str(tmp_path / 'home'),
                    PATH=f'{tmp_path}:{os.environ["PATH"]}')
  assert done.returncode == 0 and 'home/.cache/rim_jax' in done.stdout, done.stderr


def list_flags():
  """The XLA flags that launchers set and docs/hardware.md tells to set, each with its value."""
  texts = [p.read_text() for p in (*(ROOT / 'launch').iterdir(), ROOT / 'docs/hardware.md')
           if p.suffix in ('.sh', '.py', '.md')]
  return sorted({flag for text in texts for flag in re.findall(r'--xla_gpu_\w+=\w+', text)})


def start_jax(flags, code='import jax; jax.devices()'):
  """JAX, in a process of its own: XLA aborts one that sets a flag that it does not know."""
  return subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300,
      env=os.environ | {'XLA_FLAGS': ' '.join(flags), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH':
                        os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])})


def test_jax_knows_every_flag_that_is_set_for_gpus():
  flags = list_flags()
  assert any('latency_hiding' in flag for flag in flags)
  done = start_jax(flags)
  assert done.returncode == 0, done.stderr
  done = start_jax([*flags, '--xla_gpu_no_such_flag=true'])
  assert done.returncode and 'Unknown flag' in done.stderr and 'no_such_flag' in done.stderr


@pytest.mark.gpu_plan
@needs_plugin
def test_its_cuda_plugin_knows_every_flag_that_is_set_for_gpus():
  """It reads XLA_FLAGS itself, when it first compiles."""
  code = """if True:
      import jax
      from rim_jax.planning import gpus
      at = jax.sharding.SingleDeviceSharding(gpus.make_devices('h100')[0])
      x = jax.ShapeDtypeStruct((8, 8), 'float32', sharding=at)
      jax.jit(lambda x: x @ x).trace(x).lower(lowering_platforms=('cuda',)).compile()"""
  done = start_jax(list_flags(), code)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('given', [{}, {'SLURM_GPUS_ON_NODE': '8'},
                                   {'SLURM_GPUS_ON_NODE': '8', 'XLA_FLAGS': 'mine'}])
def test_the_slurm_script_sets_flags_where_there_are_gpus(given, tmp_path):
  (tmp_path / 'srun').write_text('#!/bin/sh\necho "[$XLA_FLAGS]"\n')
  (tmp_path / 'srun').chmod(0o755)
  flags = {'XLA_FLAGS': ''} | given
  done = run_script('slurm.sh', 'python', PATH=f"{tmp_path}:{os.environ['PATH']}", **flags)
  flag = '--xla_gpu_enable_latency_hiding_scheduler=true'
  assert done.stdout.strip() == (
      f"[{flag} {flags['XLA_FLAGS']}]" if 'SLURM_GPUS_ON_NODE' in given else '[]'), done.stderr


@pytest.mark.parametrize('given, cores', [
    ({'SLURM_CPUS_PER_TASK': '32'}, '32'), ({}, ''),
    ({'SLURM_CPUS_PER_TASK': '32', 'SRUN_CPUS_PER_TASK': '4'}, '4')])
def test_srun_is_told_how_many_cores_the_job_asked_for_a_task(given, cores, tmp_path):
  """It does not read the job's own variable since SLURM 22.05."""
  (tmp_path / 'srun').write_text('#!/bin/sh\necho "[$SRUN_CPUS_PER_TASK]"\n')
  (tmp_path / 'srun').chmod(0o755)
  done = run_script('slurm.sh', 'python', PATH=f"{tmp_path}:{os.environ['PATH']}", **given)
  assert done.stdout.strip() == f'[{cores}]', done.stderr


def test_every_sbatch_line_that_is_shown_says_how_many_cores_a_task_gets():
  texts = [p for p in (*(ROOT / 'launch').iterdir(), *ROOT.glob('docs/**/*.md'), ROOT / 'README.md')
           if p.suffix in ('.sh', '.md')]
  shown = [line for p in texts for line in p.read_text().splitlines() if re.search(
      r'(sbatch|sweep_slurm\.sh) --(nodes|gpus)', line)]
  assert len(shown) > 5 and all('--cpus-per-task=' in line for line in shown), shown


def test_a_task_of_a_slurm_array_is_the_point_of_its_number():
  done = run_script('slurm.sh', 'python', '--sweep_dir=d', DRY_RUN='1', SLURM_ARRAY_TASK_ID='7')
  line = shlex.split(done.stdout)
  assert line[line.index('task') + 1:][:3] == ['python', '--sweep_dir=d', '--point=7']


@pytest.mark.slow
def test_a_sweep_is_an_array_and_a_conclusion_after_it(tmp_path):
  command = [sys.executable, '-m', 'rim_jax.main', '--config=configs/sweeps/targets.py',
             f'--workdir={tmp_path}/a b']
  done = run_script('sweep_slurm.sh', '--nodes=2', '--', *command, DRY_RUN='1', AT_ONCE='3',
                    PYTHONPATH=str(ROOT))
  points, conclude = map(shlex.split, done.stdout.splitlines())
  assert points == ['sbatch', '--parsable', '--array=0-11%3',
                    f'--output={tmp_path}/a b/slurm-%A_%a.out', '--nodes=2',
                    'launch/slurm.sh', *command[:-1],
                    f'--sweep_dir={tmp_path}/a b'], done.stderr
  assert conclude[1] == '--dependency=afterany:ARRAY'
  assert shlex.split(conclude[-1].removeprefix('--wrap=')) == [
      *command, '--mode=sweep', '--conclude']
  assert run_script('sweep_slurm.sh', '--', 'python').returncode == 2  # no --workdir
  broken = [*command, '--config.train.batch_examples=-1']  # refused before anything is submitted
  assert run_script('sweep_slurm.sh', '--', *broken, PYTHONPATH=str(ROOT)).returncode == 2


def test_the_workdir_of_a_point_is_known_by_its_number():
  command = ['python', '-m', 'rim_jax.main', '--config=configs/sweeps/targets.py', '--point=1']
  assert command_line.find_workdir([*command, '--sweep_dir=d', '--process_id=0']) == (
      'd/points/depth0=False,hold=0.75,seed=0')


def test_the_tpu_script_prints_every_command():
  place = ('name', 'zone', 'v5litepod-16', 'v2-alpha-tpuv5-lite')
  command = ('--', 'python', '-m', 'rim_jax.main', '--config=a b')
  lines = run_script('tpu_vm.sh', 'keep', *place, 'https://host/rim.git', *command,
                     DRY_RUN='1').stdout.splitlines()
  calls = [shlex.split(line) for line in lines]
  assert [c[3:5] for c in calls] == [
      ['queued-resources', 'create'], ['tpu-vm', 'ssh'], ['tpu-vm', 'ssh']]
  assert '--accelerator-type=v5litepod-16' in calls[0] and '--spot' in calls[0]
  assert all('--worker=all' in c for c in calls[1:])
  assert calls[1][-1].endswith("pip install -q -e '.[tpu,gcs]'")  # a WORKDIR there is a bucket
  inner = shlex.split(calls[2][-1].removeprefix('--command='))
  assert inner[-4:] == ['-m', 'rim_jax.main', '--config=a b', '--distributed']
  assert run_script('tpu_vm.sh', 'run', 'name').returncode == 2


GCLOUD = """#!/bin/bash
cd "$(dirname "$0")"
next() {  # the first line of a file; the last one stays
  head -n 1 "$1"
  [ "$(wc -l < "$1")" -le 1 ] || sed -i 1d "$1"
}
case "$*" in
  *queued-resources\\ describe*) what=describe ;;
  *queued-resources\\ create*) what=create ;;
  *queued-resources\\ delete*) what=delete ;;
  *supervise.py*) what=run ;;
  *) what=setup ;;
esac
[ "$what" = describe ] || echo "$what" >> calls
told=$(next "$what")
case $told in [0-9]*) exit "$told" ;; error) exit 1 ;; *) echo "$told" ;; esac
"""


def keep(folder, **told):
  """(exit code, calls but describe, stderr) of `keep` where gcloud says so, one after the other."""
  (folder / 'gcloud').write_text(GCLOUD)
  (folder / 'gcloud').chmod(0o755)
  good = {'create': ['0'], 'setup': ['0'], 'run': ['0'], 'delete': ['0'], 'describe': ['ACTIVE']}
  for name, lines in (good | told).items():
    (folder / name).write_text(''.join(f'{line}\n' for line in lines))
  done = run_script('tpu_vm.sh', 'keep', 'rim', 'zone', 'v5litepod-16', 'image', 'https://host/rim',
                    '--', 'python', '-m', 'rim_jax.main', POLL_SECS='0',
                    PATH=f'{folder}:{os.environ["PATH"]}')
  return done.returncode, (folder / 'calls').read_text().split(), done.stderr


ONCE = ['create', 'setup', 'run']


@pytest.mark.parametrize('told, code, calls', [
    ({}, 0, ONCE),
    ({'run': ['2']}, 2, ONCE),  # a user's mistake
    # It is saved within seconds; that the slice goes, its resource says later.
    ({'run': ['75', '0'], 'describe': ['ACTIVE'] * 3 + ['SUSPENDING', 'ACTIVE']}, 0,
     [*ONCE, 'delete', *ONCE]),
    ({'run': ['255', '0'], 'describe': ['ACTIVE', 'SUSPENDED', 'WAITING_FOR_RESOURCES', 'ACTIVE']},
     0, [*ONCE, 'delete', *ONCE]),
    ({'setup': ['1', '0'], 'describe': ['ACTIVE', 'SUSPENDED', 'ACTIVE']}, 0,
     ['create', 'setup', 'delete', *ONCE]),
    ({'describe': ['PROVISIONING', 'SUSPENDED', 'ACTIVE']}, 0, ['create', 'delete', *ONCE]),
    ({'run': ['76', '1', '0']}, 0, [*ONCE, 'setup', 'run', 'setup', 'run']),  # the slice stays
    ({'create': ['0', '1', '0'], 'delete': ['1', '0'],
      'describe': ['SUSPENDED', 'ACTIVE']}, 0,
     ['create', 'delete', 'delete', 'create', *ONCE])])
def test_a_slice_is_kept_until_the_command_is_done_or_mistaken(told, code, calls, tmp_path):
  found = keep(tmp_path, **told)
  assert found[:2] == (code, calls), found
  assert 'launch/tpu_vm.sh delete rim zone' in found[2].splitlines()[-1]  # it is still there


@pytest.mark.parametrize('told, calls, why', [
    ({'run': ['1']}, [*ONCE, 'setup', 'run', 'setup', 'run'], 'gave up: three times in a row'),
    ({'setup': ['1']}, ['create', 'setup', 'setup', 'setup'], 'could not be set up'),
    ({'describe': ['CREATING', 'FAILED']}, ['create'], 'is FAILED'),
    ({'describe': ['CREATING', 'error']}, ['create'], 'has not told its state'),
    ({'create': ['1']}, ['create'], 'could not be made'),
    ({'describe': ['SUSPENDED'], 'delete': ['1']}, ['create'] + 5 * ['delete'],
     'could not be deleted')])
def test_where_a_slice_cannot_be_kept_it_says_why_and_what_still_costs(told, calls, why, tmp_path):
  code, found, err = keep(tmp_path, **told)
  assert code == 1 and found == calls and why in err, (code, found, err)
  assert 'launch/tpu_vm.sh delete rim zone' in err.splitlines()[-1]


def test_a_wrong_command_makes_no_slice(tmp_path):
  (tmp_path / 'gcloud').write_text('#!/bin/sh\ntouch "$0.called"; echo ACTIVE\n')
  (tmp_path / 'gcloud').chmod(0o755)
  done = run_script('tpu_vm.sh', 'keep', 'rim', 'zone', 'type', 'image', 'https://host/rim',
                    'python', 'run.py', PATH=f'{tmp_path}:{os.environ["PATH"]}')
  assert done.returncode == 2 and 'COMMAND' in done.stderr and os.listdir(tmp_path) == ['gcloud']


PYTHON = """#!/bin/bash
echo "$*" >> "$HOME/calls"
case "$*" in
  --version) echo 'Python 3.10.12' ;;
  -c*) exit "$OLD" ;;
  *uv\\ venv*) [ -n "$UV" ] || exit 1 ;;&
  *venv*)
    mkdir -p env/bin
    cp "$0" env/bin/python
    printf '#!/bin/sh\\n' > env/bin/pip
    chmod +x env/bin/pip
    ;;
esac
"""


@pytest.mark.parametrize('old, uv, code, made', [
    ('0', '', 0, '-m venv --clear env'),
    ('1', '1', 0, '-m uv venv -q --clear --seed --python=3.11 env'), ('1', '', 1, '')])
def test_a_worker_whose_python_is_too_old_gets_another_or_says_so(old, uv, code, made, tmp_path):
  """The command itself, as gcloud would run it on each worker."""
  place, home = tmp_path / 'bin', tmp_path / 'home'
  place.mkdir()
  (home / 'rim_jax').mkdir(parents=True)
  gcloud = '#!/bin/bash\ncd; last=${!#}; exec bash -c "${last#--command=}"\n'
  for name, text in (('python3', PYTHON), ('gcloud', gcloud)):
    (place / name).write_text(text)
    (place / name).chmod(0o755)
  done = run_script('tpu_vm.sh', 'setup', 'rim', 'zone', 'https://host/rim', OLD=old, UV=uv,
                    HOME=str(home), PATH=f'{place}:{os.environ["PATH"]}')
  assert done.returncode == code, done.stderr
  calls = (home / 'calls').read_text().splitlines()
  assert made in calls or not made
  if code:
    line = done.stderr.splitlines()[-1]
    assert 'there is Python 3.10.12, rim_jax needs 3.11' in line and 'choose another image' in line


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='shellcheck is not installed')
def test_shell_scripts_are_clean():
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  assert len(scripts) == 3
  done = subprocess.run(['shellcheck', *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def run_gke(*flags, command=('python', '--config=x')):
  return subprocess.run(
      [sys.executable, ROOT / 'launch/gke.py', '--name=rim', '--image=i', '--topology=4x4',
       '--accelerator=tpu-v5-lite-podslice', '--hosts=4', *flags, '--dry-run', '--', *command],
      capture_output=True, text=True, timeout=300, cwd=ROOT,
      env=dict(os.environ, PYTHONPATH=str(ROOT)))


def make_gke_manifest(*flags, **kwargs):
  done = run_gke(*flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('slices', [1, 2])
def test_the_jobset_has_a_job_a_slice_and_a_pod_a_host(slices):
  job_set = make_gke_manifest(f'--slices={slices}')
  (group,) = job_set['spec']['replicatedJobs']
  job = group['template']['spec']
  assert group['replicas'] == slices and job['parallelism'] == job['completions'] == 4
  assert job['backoffLimit'] == 0
  pod = job['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
  (container,) = pod['containers']
  assert container['command'] == ['python', '--config=x', '--distributed']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  names = [e['name'] for e in container.get('env', [])]
  assert ('MEGASCALE_SLICE_ID' in names) == (slices > 1)
  # Exit code 2, a user's mistake, ends the whole set at once.
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2]
  assert job_set['spec']['failurePolicy']['rules'][0]['action'] == 'FailJobSet'


def test_a_sweep_on_gke_is_a_jobset_a_point():
  command = ('python', '--config=x', '--sweep_dir=d')
  sets = make_gke_manifest('--points=3', command=command)
  assert sets['kind'] == 'List' and [s['metadata']['name'] for s in sets['items']] == [
      'rim-0', 'rim-1', 'rim-2']
  for i, job_set in enumerate(sets['items']):
    (group,) = job_set['spec']['replicatedJobs']
    (container,) = group['template']['spec']['template']['spec']['containers']
    assert container['command'] == [*command, f'--point={i}', '--distributed']
  leader = make_gke_manifest('--points=2', '--slices=2', command=command)['items'][1]
  (group,) = leader['spec']['replicatedJobs']
  env = group['template']['spec']['template']['spec']['containers'][0]['env']
  assert env[-1]['value'] == 'rim-1-slice-0-0.rim-1'  # its own set's, not another point's


@pytest.mark.slow
def test_the_points_of_a_sweep_on_gke_are_those_of_its_recipe():
  """Counted where it is here; a point that is no run is told before anything is submitted."""
  command = ('python', '-m', 'rim_jax.main', '--config=configs/sweeps/targets.py', '--sweep_dir=d')
  for flags in ((), ('--points=12',)):
    assert len(make_gke_manifest(*flags, command=command)['items']) == 12
  assert make_gke_manifest(command=(*command, '--point=3'))['kind'] == 'JobSet'
  for flags, asked, told in (
      (['--points=13'], command,
       '--points=13: configs/sweeps/targets.py has 12; leave --points out'),
      ([], ('--config=x.py', '--sweep_dir=d'), '--config=x.py: is not here; say with --points=N'),
      (['--points=2'], command[:-1], 'name its directory with --sweep_dir=DIR'),
      ([], (*command, '--config.train.batch_examples=-1'), 'batch_examples=-1')):
    done = run_gke(*flags, command=asked)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith('error: ') and told in done.stderr
