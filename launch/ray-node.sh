#!/usr/bin/env bash
# Runs on each node of a job: the first one is the head of a Ray cluster and runs a command on it; the others join.
#
#   launch/ray-node.sh --node-rank R --head ADDRESS:PORT [--job NAME] COMMAND [ARGUMENT ...]
#
#   --node-rank R          0: start the head, run the command, end the head; else: join until the head is gone
#   --head ADDRESS:PORT    where the head is; the next port is Ray's as well. All nodes have to reach it
#   --job NAME             names the folder of Ray's own files, /tmp/bigtrain-ray-UID-NAME, which is removed at the end
#
# COMMAND is one of bigtrain, such as `data build CONFIG --on ray`; it finds the cluster by RAY_ADDRESS. A node may join late,
# leave, or come back: Ray gives its work to others. The status is that of the command on the head, and 0 elsewhere. Who
# reaches the ports of a Ray cluster controls it, so it asks for RAY_AUTH_TOKEN where that is set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

rank=${SLURM_PROCID:-} head='' job=$$
while [[ ${1:-} == -* ]]; do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) help && exit ;;
    --node-rank | --head | --job)
      [[ $# -ge 2 ]] || refuse "$1 needs a value"
      case $1 in
        --node-rank) rank=$2 ;;
        --head) head=$2 ;;
        --job) job=$2 ;;
      esac
      shift
      ;;
    *) refuse "unknown option $1; launch/ray-node.sh --help lists them" ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { help >&2 && exit 2; }
require_number --node-rank "$rank" 0 999999
[[ $head =~ ^(.+):([0-9]+)$ ]] || refuse "--head $head: wanted ADDRESS:PORT"
address=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
require_number --head "$port" 1024 65534
[[ $job =~ ^[A-Za-z0-9_-]{1,40}$ ]] || refuse "--job $job: wanted letters, digits, dashes, at most 40"
find_python
"$python" -c 'import ray' 2>/dev/null || refuse "there is no Ray in the environment of $python: pip install 'bigtrain[ray]'"

# Sockets lie there, whose names may have 107 characters.
folder=/tmp/bigtrain-ray-$(id -u)-$job
cores=${SLURM_CPUS_PER_TASK:-$(nproc)}
[[ -z ${RAY_AUTH_TOKEN:-} ]] || export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS=$head RAY_DISABLE_IMPORT_WARNING=1
# Ports that nobody else has: Ray's own choice for workers, from 10002 on, would hold the port at which a job meets.
ray=("$python" -m ray.scripts.scripts start --block --num-cpus "$cores" --disable-usage-stats)
ray+=(--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0)
head_answers() { { : <>"/dev/tcp/$address/$port"; } 2>/dev/null; }

pass_signals_on
raylet=''
stop_raylet() {
  [[ -n $raylet ]] || return 0
  kill -TERM "$raylet" 2>/dev/null || true
  wait "$raylet" 2>/dev/null || true
  raylet=''
}
trap 'stop_raylet; [[ $rank != 0 ]] || rm -rf -- "$folder"' EXIT

if [[ $rank == 0 ]]; then
  "${ray[@]}" --head --node-ip-address "$address" --port "$port" --temp-dir "$folder" --include-dashboard false \
    --ray-client-server-port $((port + 1)) \
    </dev/null >"$folder.log" 2>&1 &
  raylet=$!
  until head_answers; do
    kill -0 "$raylet" 2>/dev/null || {
      cat "$folder.log" >&2
      refuse "the head of the Ray cluster does not start at $head, see above"
    }
    [[ -z $asked ]] || exit 75
    sleep 0.2
  done
  rm -f -- "$folder.log"
  attend "$python" -m bigtrain "$@"
  exit "$status"
fi

# The others stay while the head does; one whose Ray has died joins again.
seen='' away=0
while [[ -z $asked ]]; do
  if head_answers; then
    seen=yes away=0
    if [[ -z $raylet ]] || ! kill -0 "$raylet" 2>/dev/null; then
      "${ray[@]}" --address "$head" </dev/null >/dev/null 2>&1 &
      raylet=$!
    fi
  else
    away=$((away + 1))
    [[ -z $seen ]] || ((away < 5)) || break
    ((away < 900)) || refuse "the head of the Ray cluster does not answer at $head"
  fi
  read -rt 1 -u "$never" || true
done
