#!/usr/bin/env bash
# Makes .venv with bigtrain in it, or brings it up to date; does nothing when nothing has changed.
#
#   launch/setup.sh [EXTRAS]      for example: launch/setup.sh hf        launch/setup.sh dev
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-hf}
wanted=$(cksum pyproject.toml)
for stamp in .venv/installed-dev ".venv/installed-$extras"; do # dev includes all others
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0
done

"${PYTHON:-python3}" -m venv .venv # harmless where it stands already, and mends one whose making was interrupted
echo "installing bigtrain[$extras] into .venv ..." >&2
# torch first: DeepSpeed is built from its source and asks for it.
.venv/bin/python -m pip install --quiet "setuptools>=77" "torch>=2.11,<2.14"
DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet --editable ".[$extras]"
echo "$wanted" >"$stamp"
