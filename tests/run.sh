#!/usr/bin/env bash
# Sets up .venv with everything the tests need, then runs them. Arguments go to pytest: tests/run.sh -k plan
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh dev
exec .venv/bin/python -m pytest "$@"
