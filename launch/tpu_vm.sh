#!/usr/bin/env bash
# A TPU pod slice of TPU VMs, by queued resources; every worker runs the same command.
#
#   launch/tpu_vm.sh create NAME ZONE v5litepod-16 v2-alpha-tpuv5-lite [--spot]
#   launch/tpu_vm.sh setup  NAME ZONE GIT_URL
#   launch/tpu_vm.sh run    NAME ZONE -- python -m rim_jax.main --config=... --workdir=gs://BUCKET/RUN
#   launch/tpu_vm.sh keep   NAME ZONE v5litepod-16 v2-alpha-tpuv5-lite GIT_URL -- COMMAND...
#   launch/tpu_vm.sh delete NAME ZONE
#
# `keep` makes the slice, sets it up and runs the command; whenever the slice is taken back it does all of
# that again, until the command is done. With DRY_RUN=1 every gcloud command is printed, none is run.
# The WORKDIR must be a bucket or a shared disk: a slice that is taken back loses its own disks.
set -euo pipefail

usage() { sed -n '4,8s/^# *//p' "$0" >&2; exit 2; }

call() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}

everywhere() {  # NAME ZONE COMMAND: on all workers at once; fails if one of them does
  call tpu-vm ssh "$1" --zone="$2" --worker=all --command="$3"
}

create() {  # NAME ZONE TYPE RUNTIME [FLAGS]
  call queued-resources create "$1" --node-id="$1" --zone="$2" --accelerator-type="$3" \
    --runtime-version="$4" "${@:5}"
}

setup() {  # NAME ZONE GIT_URL
  everywhere "$1" "$2" "{ test -d rim_jax || git clone $(printf %q "$3") rim_jax; } && \
cd rim_jax && python3 -m venv env && env/bin/pip install -q -e '.[tpu]'"
}

run() {  # NAME ZONE -- COMMAND
  local name=$1 zone=$2
  [ "${3:-}" = -- ] || usage
  shift 3
  # --distributed: TPU VMs tell JAX where the other workers are.
  everywhere "$name" "$zone" "cd rim_jax && . env/bin/activate && \
python launch/supervise.py -- $(printf '%q ' "$@")--distributed"
}

state() { call queued-resources describe "$1" --zone="$2" --format='value(state.state)'; }

delete() { call queued-resources delete "$1" --zone="$2" --force --quiet; }

keep() {  # NAME ZONE TYPE RUNTIME GIT_URL -- COMMAND
  local name=$1 zone=$2 type=$3 runtime=$4 url=$5
  shift 5
  while true; do
    create "$name" "$zone" "$type" "$runtime" --spot
    until [ "$(state "$name" "$zone")" = ACTIVE ] || [ -n "${DRY_RUN:-}" ]; do sleep 30; done
    setup "$name" "$zone" "$url"
    if run "$name" "$zone" "$@"; then
      return 0
    fi
    # Still there: the command itself failed, and another slice would not help.
    [ "$(state "$name" "$zone")" != ACTIVE ] || return 1
    delete "$name" "$zone"
  done
}

[ $# -ge 3 ] || usage
what=$1
shift
case $what in
  create) [ $# -ge 4 ] || usage; create "$@" ;;
  setup) [ $# -eq 3 ] || usage; setup "$@" ;;
  run) [ $# -ge 4 ] || usage; run "$@" ;;
  keep) [ $# -ge 7 ] || usage; keep "$@" ;;
  delete) delete "$@" ;;
  *) usage ;;
esac
