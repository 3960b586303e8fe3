#!/usr/bin/env bash
#SBATCH --job-name=fdllm-baseline
#SBATCH --output=slurm_baseline_%j.log
#SBATCH --time=30
# The published evaluation, without reuse: docs/protocol.md. Without --task all benchmarks.
# With sbatch or with bash, from the checkout: what is computed gets jobs of its own, with the
# resources of fdllm.toml; this script only submits them.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ ! -f "$folder/_job.sh" ]; then # sbatch runs a copy, elsewhere
    folder=${SLURM_SUBMIT_DIR:-.}/sbatch
fi
if [ ! -f "$folder/_job.sh" ]; then
    echo "submit it from the checkout: cd CHECKOUT && sbatch sbatch/baseline.sh" >&2
    exit 2
fi
exec bash "$folder/_job.sh" sweep --preset published --config k1_first "$@"
