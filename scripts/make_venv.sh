#!/usr/bin/env bash
# Creates .venv with the first Python of at least 3.11 that it finds, or says what is missing.
# Usage: scripts/make_venv.sh [PYTHON]
set -euo pipefail

candidates=("${1:-}" python3 python3.13 python3.12 python3.11 python3.14)
chosen=
for python in "${candidates[@]}"; do
  [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 || continue
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    chosen=$python
    break
  fi
done

if [ -z "$chosen" ]; then
  echo "[setup] dhc needs Python 3.11 or newer; found: $(python3 --version 2>/dev/null || echo 'no python3')." >&2
  echo "[setup] Install one and run make again, or name it: make PYTHON=/path/to/python3.12 ..." >&2
  exit 1
fi

if ! "$chosen" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "[setup] $chosen has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2
  exit 1
fi

echo "[setup] creating .venv with $("$chosen" --version)"
rm -rf .venv
"$chosen" -m venv .venv
