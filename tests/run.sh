#!/usr/bin/env bash
# Sets up .venv with everything the tests need, then runs them, two at a time: many wait for processes, few for a core.
# Arguments go to pytest: tests/run.sh -k plan
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh dev
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
