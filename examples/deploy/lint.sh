#!/usr/bin/env bash
# Checks the files in this folder with the tools that are made for them: hadolint, the schema of compose files, systemd,
# Helm's own engine and the schemas of Kubernetes. Python packages go into the folder $1 (a virtual environment).
set -euo pipefail
mkdir -p "${1:?the folder of a virtual environment}"
env=$(realpath "$1")
cd "$(dirname "$0")"

[ -x "$env/bin/pip" ] || python3 -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt

"$env/bin/hadolint" Dockerfile
sh -n rootfs.sh
"$env/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
"$env/bin/python" lint_chart.py helm/forethought
if command -v systemd-analyze >/dev/null; then
    # That the program is not installed here says nothing of the unit.
    said=$(systemd-analyze verify ./forethought.service 2>&1 | grep -v 'is not executable' || true)
    [ -z "$said" ] || { echo "$said"; exit 1; }
    systemd-analyze security --offline=true --threshold=20 ./forethought.service | tail -1
else
    echo "skipped: systemd-analyze is not installed"
fi
