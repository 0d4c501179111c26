#!/usr/bin/env bash
# Run every example, in order, in a folder of its own; PYTHON names the interpreter.
set -euo pipefail
HERE=$(realpath "$(dirname "$0")")
PYTHON=$(realpath -s "${PYTHON:-python3}")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
for script in "$HERE"/*.py; do
  echo "== $(basename "$script")"
  "$PYTHON" "$script"
done
