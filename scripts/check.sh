#!/usr/bin/env bash
# Format, lint and the fast tests, as pre-commit and CI run them.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
python -m pytest -q "$@"
