#!/bin/sh
# Makes a virtual environment with the first suitable Python, or says in one line what is missing.
# Usage: packaging/make_venv.sh DIR
# An environment that is already there and works is left alone.
set -eu

suitable='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
if [ -x "$1/bin/python" ] && "$1/bin/python" -c "$suitable"; then
    exit 0
fi

found=
for python in python3 python3.12 python3.11; do
    "$python" -c "$suitable" 2>/dev/null || continue
    found=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        exec "$python" -m venv "$1"
    fi
done
if [ -n "$found" ]; then
    echo "error: $found lacks the venv module; install it, on Debian or Ubuntu: apt-get install $found-venv" >&2
else
    echo "error: Python 3.11 or 3.12 is needed and none is on the PATH (python3, python3.12, python3.11)" >&2
fi
exit 1
