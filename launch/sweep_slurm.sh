#!/usr/bin/env bash
# A sweep as a SLURM array, one task a point, and a job after it that concludes.
#
#   launch/sweep_slurm.sh [sbatch flags] -- python -m rim_jax.main --config=configs/sweeps/... --workdir=DIR
#   DRY_RUN=1 launch/sweep_slurm.sh ...      (prints what sbatch would get)
#
# Flags are each point's, e.g. --nodes=2 --gpus-per-node=8 --cpus-per-task=32 --time=4:00:00 (without
# --cpus-per-task a process may get one core). AT_ONCE=N limits how many points run at a time. All
# points are validated before any is submitted. Again: points that are done end at once, others go
# on. DIR must be on a file system that all nodes see.
set -euo pipefail

flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1"); shift; done
[ $# -gt 1 ] || { echo "usage: launch/sweep_slurm.sh [sbatch flags] -- COMMAND..." >&2; exit 2; }
shift
dir='' command=()
for arg in "$@"; do
  case $arg in
    --workdir=*) dir=${arg#*=} ;;
    --halve_at=*) echo "error: $arg: an array runs all points to their end; --mode=sweep drops the worst" >&2; exit 2 ;;
    *) command+=("$arg") ;;
  esac
done
[ -n "$dir" ] || { echo "error: name the sweep's directory with --workdir=DIR" >&2; exit 2; }

# It ends with 2 where a file is not there; a node that runs a point may have it.
count=$({ "$@" --mode=sweep --dry_run || [ $? = 2 ]; } | sed -n 's/^total: \([0-9]*\) points.*/\1/p')
[ -n "$count" ] || { echo "error: there are no points to run" >&2; exit 2; }
cd "$(dirname "$0")/.."
array="0-$((count - 1))${AT_ONCE:+%$AT_ONCE}"
points=(sbatch --parsable "--array=$array" "--output=$dir/slurm-%A_%a.out" "${flags[@]}" launch/slurm.sh "${command[@]}"
        "--sweep_dir=$dir")
conclude=(sbatch --job-name=rim_jax_conclusion "--output=$dir/slurm-%j.out"
          "--wrap=$(printf '%q ' "$@" --mode=sweep --conclude)")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${points[@]}"; echo
  printf '%q ' "${conclude[@]:0:1}" --dependency=afterany:ARRAY "${conclude[@]:1}"; echo
  exit 0
fi
mkdir -p "$dir"
job=$("${points[@]}")
"${conclude[@]:0:1}" "--dependency=afterany:${job%%;*}" "${conclude[@]:1}"
