"""A JobSet for TPU slices on GKE: prints the manifest, or applies it with kubectl.

  python launch/gke.py --name=rim --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 \
      --hosts=4 --chips=4 [--slices=2] [--dry-run] -- \
      python -m rim_jax.main --config=... --workdir=gs://BUCKET/RUN --config.mesh.slice=2
  ... -- python -m rim_jax.main --config=configs/sweeps/... --sweep_dir=gs://BUCKET/SWEEP

With --sweep_dir there are as many JobSets, NAME-0 and on, as the recipe has points, which start,
fail and start again alone; conclude from a copy of the directory with --mode=sweep --conclude
--workdir=COPY. Where the recipe cannot be read here, --points=N says how many; else it must agree.
--hosts are the machines of one slice and --chips the chips of one machine: 4 and 4 for a v5e of
4x4. The cluster needs the JobSet controller (https://jobset.sigs.k8s.io) and node pools of that
accelerator and topology, one a slice. Pods find each other by what GKE sets in them; between slices
by the MEGASCALE variables below. A pod that ends badly ends its job, and JobSet starts all of them
again; exit code 2, a user's mistake, ends the set.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import supervise

from rim_jax import command_line
from rim_jax.errors import UserError

_PORT, _MEGASCALE_PORT = 8471, 8080


def make_manifest(args, command) -> dict:
  """The JobSet as Kubernetes takes it (jobset.x-k8s.io/v1alpha2)."""
  container = {
      'name': 'rim', 'image': args.image, 'workingDir': args.directory,
      # The supervisor would start this pod's process alone; JobSet starts all of them together.
      'command': [*command, '--distributed'],
      'ports': [{'containerPort': _PORT}, {'containerPort': _MEGASCALE_PORT}],
      'resources': {'requests': {'google.com/tpu': args.chips},
                    'limits': {'google.com/tpu': args.chips}},
  }
  if args.slices > 1:  # what libtpu needs to know of the others; the first pod of the first leads
    container['env'] = [
        {'name': 'MEGASCALE_NUM_SLICES', 'value': str(args.slices)},
        {'name': 'MEGASCALE_SLICE_ID', 'valueFrom': {'fieldRef': {
            'fieldPath': "metadata.labels['jobset.sigs.k8s.io/job-index']"}}},
        {'name': 'MEGASCALE_COORDINATOR_ADDRESS', 'value': f'{args.name}-slice-0-0.{args.name}'}]
  pod = {
      'restartPolicy': 'Never',
      # SIGTERM comes first: the run saves within this time.
      'terminationGracePeriodSeconds': 120,
      'nodeSelector': {'cloud.google.com/gke-tpu-accelerator': args.accelerator,
                       'cloud.google.com/gke-tpu-topology': args.topology},
      'containers': [container],
  }
  job = {
      'parallelism': args.hosts, 'completions': args.hosts, 'backoffLimit': 0,
      'completionMode': 'Indexed', 'template': {'spec': pod},
      # A user's mistake is not mended by another start.
      'podFailurePolicy': {'rules': [{
          'action': 'FailJob', 'onExitCodes': {'containerName': 'rim', 'operator': 'In',
                                               'values': [supervise.MISTAKE]}}]}}
  return {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet',
      'metadata': {'name': args.name, 'annotations': {
          # One slice a node pool, whole.
          'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}},
      'spec': {
          'failurePolicy': {'maxRestarts': args.restarts, 'rules': [{
              'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]},
          'replicatedJobs': [{'name': 'slice', 'replicas': args.slices,
                              'template': {'spec': job}}]},
  }


def count_points(command, told: int) -> int:
  """The points of the recipe of a command with --sweep_dir; 0 for one run, also of a point.

  Args:
    told: how many are said to be; 0 for nothing said.
  Raises: UserError where they are not as many, or cannot be counted here.
  """
  flags = {k: v for k, _, v in (a.partition('=') for a in command)}
  if '--sweep_dir' not in flags or '--point' in flags:
    if told:
      raise UserError(f'--points={told}: is for a sweep; name its directory with --sweep_dir=DIR, '
                      'and no --point')
    return 0
  config = flags.get('--config', '')
  if not pathlib.Path(config.partition(':')[0]).is_file():
    if not told:
      raise UserError(f'--config={config}: is not here; say with --points=N how many it has')
    return told
  count = command_line.count_points(command)
  if told not in (0, count):
    raise UserError(f'--points={told}: {config} has {count}; leave --points out, or correct it')
  return count


def make_sweep(args, command) -> dict:
  """A JobSet for each of `args.points` points."""
  sets = [make_manifest(argparse.Namespace(**vars(args) | {'name': f'{args.name}-{i}'}),
                        [*command, f'--point={i}']) for i in range(args.points)]
  return {'apiVersion': 'v1', 'kind': 'List', 'items': sets}


def main(argv):
  own, command = supervise.split_command(argv)
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, default, words in (
      ('name', '', ''), ('image', '', 'with rim_jax[tpu,gcs] installed'), ('accelerator', '', ''),
      ('topology', '', ''), ('hosts', 0, 'of one slice'), ('chips', 4, 'of one host'),
      ('directory', '/rim_jax', 'of the checkout in the image'), ('slices', 1, ''),
      ('points', 0, 'of a sweep; 0: count them'), ('restarts', 20, '')):
    parser.add_argument(f'--{name}', default=default, type=type(default), help=words, required=(
        not default and name != 'points'))
  parser.add_argument('--dry-run', action='store_true')
  args = parser.parse_args(own)
  try:
    args.points = count_points(command, args.points)
  except UserError as e:
    print('\n'.join(f'error: {line}' for line in str(e).split('\n')), file=sys.stderr)
    return supervise.MISTAKE
  make = make_sweep if args.points else make_manifest
  text = json.dumps(make(args, command), indent=2)  # JSON is YAML
  if args.dry_run:
    print(text)
    return 0
  return subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True).returncode


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
