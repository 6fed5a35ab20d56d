#!/usr/bin/env bash
# Sets up .venv with everything the tests need, then runs them, two at a time: many wait for processes, few for a core.
# Then the property tests once more, with examples that are drawn at random; the seed is printed.
# Arguments go to pytest, and leave the second part out: tests/run.sh -k plan
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh dev
pytest=(.venv/bin/python -m pytest -n 2 --dist loadfile)
[[ $# -eq 0 ]] || exec "${pytest[@]}" "$@"
"${pytest[@]}"
seed=$((RANDOM * 32768 + RANDOM))
echo "the property tests with other examples; again with: tests/run.sh -m hypothesis --hypothesis-profile=random --hypothesis-seed=$seed"
exec "${pytest[@]}" -m 'hypothesis and not long' --hypothesis-profile=random --hypothesis-seed="$seed"
