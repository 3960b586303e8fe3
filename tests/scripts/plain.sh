#!/bin/bash
# Written by `fdllm sweep`; map.json beside it says which run each array task does.
#SBATCH --job-name=fdllm-00_baseline-gsm8k
#SBATCH --array=0-1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=1440
#SBATCH --gres=gpu:1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC2016 # a folder's name is meant as it is spelled
set -euo pipefail

index=$SLURM_ARRAY_TASK_ID
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
life=${SLURM_RESTART_COUNT:-0}
case $index in
0) logs=/lab/logs/k1_first ;;
1) logs=/lab/logs/k2_middle ;;
*) echo "array task $index is not in map.json" >&2 && exit 2 ;;
esac
mkdir -p "$logs"
exec >>"$logs/slurm_$job.log" 2>&1
echo "== job $job on $(hostname), restarts: $life, $(date -u +%FT%TZ)"

cd -- /lab
export FDLLM_ROOT=/lab
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# Warned of the time limit, the step ends its batch and exits with
# 75; it goes on where it stopped in its next life. It is warned by a file:
# a signal would reach every process of the step, and end the one that mounts an image.
ended=/lab/logs/submissions/s/ended
caught=0
# shellcheck disable=SC2317 # called by the traps
catch() {
    caught=1
    echo "== SIG$1, $(date -u +%FT%TZ)"
    [ "$1" != USR1 ] || { mkdir -p "$ended" && : >"$ended/$index.warned-$life"; } || true
}
trap 'catch USR1' USR1
# SLURM tells the step by itself; this script stays to note how that ended.
trap 'catch TERM' TERM
srun --ntasks=1 --cpus-per-task=4 --input=none /venv/bin/python -P -m fdllm.cli job /lab/map.json "$index" &
step=$!
while
    caught=0 status=0
    wait "$step" || status=$?
    [ "$caught" -eq 1 ]
do :; done

echo "== ended with $status, $(date -u +%FT%TZ)"
mkdir -p "$ended" || true
echo "$job $life $status $(date -u +%FT%TZ)" >>"$ended/$index" || true
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    echo "== it could not be requeued; the same sweep goes on where it stopped"
fi
exit "$status"
