#!/usr/bin/env bash
# Trains on this machine: one process a GPU, or NPROC processes (default 2) on a CPU.
#
#   launch/local.sh CONFIG [key=value ...]
#   NPROC=4 launch/local.sh configs/quickstart.yaml train.steps=100
#
# Started again, it goes on from the newest checkpoint. Ctrl-C or `kill -TERM` commits one and leaves with status 75.
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit 2
fi

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x $here/.venv/bin/python ]] && python=$here/.venv/bin/python

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${NPROC:-$((gpus > 0 ? gpus : 2))}

exec "$python" -m bigtrain.cli.torchrun --standalone --nproc-per-node="$processes" -m bigtrain train "$@"
