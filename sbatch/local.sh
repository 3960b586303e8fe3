#!/usr/bin/env bash
# The same as run.sh, on this machine and without SLURM.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$folder/run.sh" --executor local "$@"
