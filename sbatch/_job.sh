#!/usr/bin/env bash
# Not meant to be typed: runs one fdllm command in this checkout, for the other scripts here.
# It takes the fdllm on the PATH, else the one of nox, else that of venv/ as README.md makes it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export FDLLM_ROOT="${FDLLM_ROOT:-$root}"
for command in "$(type -P fdllm || true)" "$root/.nox/fdllm/bin/fdllm" "$root/venv/bin/fdllm"; do
    if [ -x "$command" ]; then
        exec "$command" "$@"
    fi
done
echo "there is no fdllm here yet; 'pip install nox && nox -s validate' in $root makes one" >&2
exit 2
