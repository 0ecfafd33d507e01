#!/usr/bin/env bash
# A SLURM job: one process a node, or one a GPU, joined as one run.
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=32 launch/slurm.sh python -m rim_jax.main --config=... --workdir=DIR
#   DRY_RUN=1 launch/slurm.sh python -m rim_jax.main ...      (prints what srun would get)
#   sbatch --array=0-11 launch/slurm.sh python -m rim_jax.main --config=configs/sweeps/... --sweep_dir=DIR
#
# In an array each task is the point of its number; launch/sweep_slurm.sh submits one for all points.
#
# One process a node drives all of the node's GPUs. For one a GPU, add
#   --ntasks-per-node=8 --gpus-per-task=1
# Say with --cpus-per-task how many cores each process gets: by itself SLURM may give it one.
# DIR must be on a file system that all nodes see. With CONTAINER=IMAGE the processes run in it (needs
# pyxis); they see the directory of submission, ~/.cache/rim_jax, and what CONTAINER_MOUNTS=/shared,/scratch
# names. Two minutes before the job's time is over SLURM sends SIGTERM: the run saves and ends with
# 75, and the job goes back into the queue, to go on from there; so it does when its nodes are taken.
# A run that has not ended after 90 s is killed, for the same end. Where a save takes longer:
#   RIM_JAX_GRACE_SECS=570 sbatch --signal=TERM@600 ...
#
#SBATCH --job-name=rim_jax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch [flags] launch/slurm.sh COMMAND..." >&2; exit 2; }
here=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}

if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
else
  first=localhost
fi
# A port of its own for every job, so that two on one node do not meet.
port=$((15000 + ${SLURM_JOB_ID:-0} % 20000))
# What the processes know each other by, in their environment: srun passes it on. On a command line
# every user of the node could read it.
RIM_JAX_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export RIM_JAX_TOKEN
# On an A100 nothing else makes products and the network overlap; on later cards XLA does so anyway.
# What stands in XLA_FLAGS already wins. docs/hardware.md has other settings.
[ -z "${SLURM_GPUS_ON_NODE:-}" ] ||
  export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# Since SLURM 22.05 srun does not take this from the job: without it, each process may get one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}"
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "$@" "--point=$SLURM_ARRAY_TASK_ID"

# Hosts of a pod are found by name, GPUs of a node by CUDA_VISIBLE_DEVICES, which srun sets.
# --kill-on-bad-exit=0: each supervisor starts its own process again, and they meet anew.
run=(srun --kill-on-bad-exit=0 --label)
if [ -n "${CONTAINER:-}" ]; then
  mounts=()
  cache=$HOME/.cache/rim_jax  # prepared data and compiled programs, for the next start too
  IFS=, read -ra seen <<< "$here${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS},$cache"
  for mount in "${seen[@]}"; do mounts+=("$mount:$mount"); done
  mounts+=("$cache:/root/.cache/rim_jax")  # there the container looks where its home is root's
  # What is written elsewhere would be gone with the container, without a word.
  for word in "${@:2}"; do  # the program itself may be the image's
    path=${word#-*=}
    case $path in
      '~'*) path=$HOME${path#'~'} ;;
      ..*) path=$(realpath -m "$here/$path") ;;
      /*) ;;
      *) continue ;;
    esac
    for mount in "${seen[@]}"; do [[ $path/ == "${mount%/}"/* ]] && continue 2; done
    echo "error: $word: the container does not see it; name a directory above it in CONTAINER_MOUNTS" >&2
    exit 2
  done
  run+=("--container-image=$CONTAINER" "--container-mounts=$(IFS=,; echo "${mounts[*]}")"
        "--container-workdir=$here")
fi
# shellcheck disable=SC2016  # the task's own SLURM_PROCID, not this script's
run+=(bash -c 'exec python launch/supervise.py -- "$@" --process_id="$SLURM_PROCID"' task
      "$@" "--coordinator=$first:$port" "--num_processes=${SLURM_NTASKS:-1}")

if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${run[@]}"
  echo
  exit 0
fi
cd "$here"
[ -z "${CONTAINER:-}" ] || srun "--ntasks=${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 mkdir -p "$cache"
trap : USR1  # scancel -s USR1 asks the run for a profile, and may be sent to this script too
code=0
"${run[@]}" || code=$?
# Asked to end, and saved: back into the queue, to go on from there.
[ "$code" -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
