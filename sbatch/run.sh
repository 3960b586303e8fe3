#!/usr/bin/env bash
# The grid of an experiment: only what is missing, through SLURM where sbatch is, else on this
# machine. The same as: fdllm sweep --task gsm8k, or another task or model where one is named.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

task=(--task gsm8k)
[ -z "${FDLLM_MODEL:-}" ] || task=()
for argument in "$@"; do
    case $argument in
    --task | --task=* | --model | --model=*) task=() ;;
    --help | -h)
        cat <<'TEXT'
bash sbatch/run.sh --status                     what is done, queued, running or missing
bash sbatch/run.sh                              submit what is missing (experiment 00_baseline)
bash sbatch/run.sh --task mmlu --limit 10       one task, ten rows of each of its subtasks
bash sbatch/run.sh --dry-run                    show what would be submitted, and the job script
bash sbatch/run.sh --force k2_middle            compute this config again
bash sbatch/run.sh --experiment 01_adaptive_skip

tasks:    gsm8k (the default) mmlu gpqa_main_n_shot minerva_math ifeval humaneval
          humaneval_instruct humaneval_plus mbpp mbpp_instruct mbpp_plus mbpp_plus_instruct
          tiny_arithmetic tiny_choice (the embedded model)
configs:  k1_first k1_middle k1_last k2_first k2_middle k2_last k3_first k3_middle k3_last
site:     fdllm.toml (partition, account, image, ...); fdllm.toml.example explains it

TEXT
        ;;
    esac
done
exec bash "$folder/_job.sh" sweep "${task[@]}" "$@"
