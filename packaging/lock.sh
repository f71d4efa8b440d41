#!/usr/bin/env bash
# packaging/lock.sh VENV TOOLS FILE: write FILE, every package that is installed in VENV with its version and the hashes of its files
# in the registry, for `pip install --require-hashes`. Packages of this checkout are left out. TOOLS is an environment with uv.
set -euo pipefail
venv=$1 tools=$2 file=$3
list=$(mktemp)
trap 'rm -f "$list"' EXIT
"$venv/bin/python" -m pip freeze --exclude-editable --all |
    grep --invert-match --extended-regexp ' @ |\+left\.out|^pip==' | sed 's/+cpu$//' >"$list"
"$tools/bin/uv" pip compile --quiet --no-deps --no-header --no-annotate --generate-hashes \
    --python "$venv/bin/python" --output-file "$file" "$list"
