#!/usr/bin/env bash
# Installs packages into .venv with one line of progress, three tries, and pip's own output only when it fails.
# Usage: scripts/install.sh "what is installed, for the reader" PIP-ARGUMENTS...
set -euo pipefail

what=$1
shift
log=.venv/pip.log
start=$SECONDS

show() { # one line that is rewritten on a terminal; silent in a log file
  if [ -t 1 ]; then printf '\r\033[K  %.110s' "$1"; fi
}

for try in 1 2 3; do
  echo "[setup] installing $what (try $try of 3, details in $log)"
  if .venv/bin/python -m pip install --disable-pip-version-check --no-input --retries 5 --timeout 60 --progress-bar off "$@" 2>&1 |
    tee "$log" | while IFS= read -r line; do
      case $line in
        Collecting* | Building* | "Installing collected"*) show "$line" ;;
      esac
    done; then
    show ""
    [ -t 1 ] && printf '\r'
    echo "[setup] done in $((SECONDS - start)) s"
    exit 0
  fi
  show ""
  sleep $((try * 3))
done

echo "[setup] pip failed three times. Its last lines:" >&2
tail -n 25 "$log" >&2
echo "[setup] Check the network or the package index (pip config list) and run make again." >&2
exit 1
