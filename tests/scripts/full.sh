#!/bin/bash
# Written by `fdllm sweep`; map.json beside it says which run each array task does.
#SBATCH --job-name=fdllm-00---x-
#SBATCH --array=3%4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=90
#SBATCH --partition=gpu,long
#SBATCH --account=lab@uni
#SBATCH --qos=high
#SBATCH --gres=gpu:a100:1
#SBATCH --constraint=a100&ib
#SBATCH --mem=64G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --exclude=node[7-9]
#SBATCH --mail-type=END
# shellcheck disable=SC2016 # a folder's name is meant as it is spelled
set -euo pipefail

index=$SLURM_ARRAY_TASK_ID
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
life=${SLURM_RESTART_COUNT:-0}
case $index in
3) logs='/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*/k1_first' ;;
*) echo "array task $index is not in map.json" >&2 && exit 2 ;;
esac
mkdir -p "$logs"
exec >>"$logs/slurm_$job.log" 2>&1
echo "== job $job on $(hostname), restarts: $life, $(date -u +%FT%TZ)"

# setup of fdllm.toml
set +u
module load apptainer
set -u

cd -- '/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*'
export FDLLM_ROOT='/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*'
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
# What is handed into the image, the token too: by environment, never by argument.
for name in HF_TOKEN HF_TOKEN_PATH FDLLM_ROOT FDLLM_IMAGE_SHA256 HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_DATASETS_CACHE NLTK_DATA HF_HUB_OFFLINE HF_DATASETS_OFFLINE TRANSFORMERS_OFFLINE HF_ENDPOINT OMP_NUM_THREADS CUDA_VISIBLE_DEVICES SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT; do
    [ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}"
done

# Warned of the time limit, the step ends its batch and exits with
# 75; it goes on where it stopped in its next life. It is warned by a file:
# a signal would reach every process of the step, and end the one that mounts an image.
ended='/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*/ended'
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
srun --ntasks=1 --cpus-per-task=8 --input=none apptainer exec --bind '/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*' '/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*/f.sif' fdllm job '/data/a b'"'"'c"d/$(touch x)/`id`/%A;é*' "$index" &
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
