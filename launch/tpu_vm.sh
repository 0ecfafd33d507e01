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
# that again, until the command is done (0) or mistaken (2). Where the slice stays, the command is run
# again, three times in a row at most. However it ends, it says how to delete the slice, which costs
# money until then. With DRY_RUN=1 every gcloud command is printed, none is run.
# The WORKDIR must be a bucket or a shared disk: a slice that is taken back loses its own disks.
set -euo pipefail

poll_secs=${POLL_SECS:-30}  # between two questions for the slice's state
polls=10  # after a run has ended: a slice that is taken back says ACTIVE for a while
taken_back=3  # what the functions of `keep` return then

say() { echo "tpu_vm: $*" >&2; }

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

# On a worker, in the checkout: an environment of a Python that is new enough. Some images have 3.10,
# or no venv.
# shellcheck disable=SC2016  # the worker's variables, not this script's
make_env='is_new() { "$1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; }; '\
'{ test -x env/bin/pip && is_new env/bin/python; } || '\
'{ is_new python3 && python3 -m venv --clear env; } || '\
'{ python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --seed --python=3.11 env; } || '\
'{ echo "error: $(hostname): there is $(python3 --version), rim_jax needs 3.11 or newer, and uv could '\
'not install it: choose another image, or install it as python3" >&2; exit 1; }; '

setup() {  # NAME ZONE GIT_URL
  everywhere "$1" "$2" "{ test -d rim_jax || git clone $(printf %q "$3") rim_jax; } && \
cd rim_jax && { $make_env} && env/bin/pip install -q -e '.[tpu,gcs]'"
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

try() {  # TIMES COMMAND...
  local i
  for ((i = 1; i <= $1; i++)); do
    if "${@:2}"; then return 0; fi
    [ "$i" -eq "$1" ] || sleep "$poll_secs"
  done
  return 1
}

wait_active() {  # NAME ZONE: until it can be used
  local now unknown=0
  [ -z "${DRY_RUN:-}" ] || return 0
  while true; do
    now=$(state "$1" "$2") || now=
    case $now in
      ACTIVE) return 0 ;;
      SUSPENDING | SUSPENDED | DELETING) return "$taken_back" ;;
      FAILED) say "$1 is FAILED: gcloud compute tpus queued-resources describe $1 --zone=$2 says why"; return 1 ;;
      '')
        unknown=$((unknown + 1))
        [ "$unknown" -lt "$polls" ] || { say "$1: gcloud has not told its state $polls times in a row"; return 1; }
        ;;
      *) unknown=0 ;;
    esac
    sleep "$poll_secs"
  done
}

is_taken_back() {  # NAME ZONE: whether it is not ACTIVE now, or some minutes later
  local i now
  for ((i = 0; i < polls; i++)); do
    now=$(state "$1" "$2") || now=
    [ -z "$now" ] || [ "$now" = ACTIVE ] || return 0
    sleep "$poll_secs"
  done
  return 1
}

use() {  # NAME ZONE GIT_URL -- COMMAND: until the command or the slice is at its end
  local name=$1 zone=$2 url=$3 code began failures=0
  shift 3
  while true; do
    began=$SECONDS code=0
    if setup "$name" "$zone" "$url"; then
      run "$name" "$zone" "$@" || code=$?
      case $code in 0 | 2) return "$code" ;; esac
      say "$name: the command ended with $code; waiting to see whether the slice is taken back"
    else
      say "$name: it could not be set up; waiting to see whether the slice is taken back"
    fi
    if is_taken_back "$name" "$zone"; then return "$taken_back"; fi
    [ $((SECONDS - began)) -lt $((3600 + polls * poll_secs)) ] || failures=0  # it ran for an hour
    failures=$((failures + 1))
    [ "$failures" -lt 3 ] || { say "$name: gave up: three times in a row it failed on a slice that stays"; return 1; }
  done
}

keep() {  # NAME ZONE TYPE RUNTIME GIT_URL -- COMMAND
  local name=$1 zone=$2 type=$3 runtime=$4 url=$5 code times=1
  shift 5
  [ "${1:-}" = -- ] || usage
  # However it ends, Ctrl-C too.
  # shellcheck disable=SC2064  # by then these names are gone
  [ -n "${DRY_RUN:-}" ] ||
    trap "say 'a slice costs money as long as it is there: launch/tpu_vm.sh delete $name $zone'" EXIT
  while true; do
    try "$times" create "$name" "$zone" "$type" "$runtime" --spot || { say "$name: could not be made"; return 1; }
    code=0
    wait_active "$name" "$zone" || code=$?
    [ "$code" -ne 0 ] || use "$name" "$zone" "$url" "$@" || code=$?
    [ "$code" -eq "$taken_back" ] || return "$code"
    say "$name was taken back; it is made again"
    try 5 delete "$name" "$zone" || { say "$name: could not be deleted"; return 1; }
    times=5  # the name may not be free at once
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
