#!/usr/bin/env bash
# Trains on this machine: one process for each GPU, or NPROC processes (default 2) on a CPU.
#
#   launch/local.sh [OPTION ...] CONFIG [key=value ...]
#   NPROC=4 launch/local.sh configs/quickstart.yaml train.steps=100
#
#   --dry-run            print what would be started, and do nothing
#   --doctor             run all of `bigtrain doctor` first, on all ranks; otherwise only its fast checks are run
#   --no-doctor          run none of them
#   --max-restarts N     how often ranks that died are started again (default: launch/environment.sh)
#
# Started again, it goes on from the newest checkpoint. Ctrl-C or `kill -TERM` commits one and ends with status 75.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

options=() doctor=--fast-doctor
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help) help && exit ;;
    --dry-run) options+=("$1") ;;
    --doctor | --no-doctor) doctor=$1 ;;
    --max-restarts)
      [[ $# -ge 2 ]] || refuse "$1 needs a number"
      options+=("$1" "$2") && shift
      ;;
    *) refuse "unknown option $1; launch/local.sh --help lists them" ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { help >&2 && exit 2; }

exec "$here/node.sh" "${options[@]}" "$doctor" train "$@"
