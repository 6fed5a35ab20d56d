#!/usr/bin/env bash
# Starts the part of a job on one machine: the ranks of a bigtrain command, under bigtrain's torchrun. The other scripts
# call it on every machine; alone it starts a job of this machine.
#
#   launch/node.sh [OPTION ...] COMMAND [ARGUMENT ...]      for example: launch/node.sh train CONFIG train.steps=20
#
#   --processes P            ranks on this machine; default: $NPROC, else one for each GPU, else 2
#   --nodes N | MIN:MAX      the number of machines of the job, or its limits; default: 1
#   --rendezvous HOST[:PORT] where they meet: a name or address of the first machine
#   --node-rank R            the number of this machine; 0 holds the store. Default: found by comparing addresses
#   --job ID                 a name that all machines of the job have in common
#   --max-restarts N         how often ranks that died are started again (default: launch/environment.sh)
#   --doctor                 run `bigtrain doctor` on all machines first; the job starts when nothing failed
#   --fast-doctor            run `bigtrain doctor --fast` on this machine first: two seconds, silent where all is well
#   --orders-on-stdin        read names of signals from stdin and forward them; its end means TERM (for launch/ssh.sh)
#   --dry-run                print what would be started, and do nothing
#
# TERM, INT and USR1 commit a checkpoint and end with status 75: start it again to go on. QUIT ends what still runs then.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
before=$(export -p)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"
find_python

# The operators of Kubeflow set a machine's rank in variables that torchrun would read itself.
nodes=${PET_NNODES:-} node_rank=${PET_NODE_RANK:-${SLURM_NODEID:-}} rendezvous=${PET_MASTER_ADDR:+$PET_MASTER_ADDR:${PET_MASTER_PORT:-}}
processes=${NPROC:-${PET_NPROC_PER_NODE:-}}
unset "${!PET_@}"
job=bigtrain restarts=$BIGTRAIN_MAX_RESTARTS doctor='' orders='' dry=''
while [[ ${1:-} == -* ]]; do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) help && exit ;;
    --doctor) doctor=yes ;;
    --fast-doctor) doctor=fast ;;
    --no-doctor) doctor='' ;;
    --orders-on-stdin) orders=yes ;;
    --dry-run) dry=yes ;;
    --processes | --nodes | --node-rank | --rendezvous | --job | --max-restarts)
      [[ $# -ge 2 ]] || refuse "$1 needs a value"
      case $1 in
        --processes) processes=$2 ;;
        --nodes) nodes=$2 ;;
        --node-rank) node_rank=$2 ;;
        --rendezvous) rendezvous=$2 ;;
        --job) job=$2 ;;
        --max-restarts) restarts=$2 ;;
      esac
      shift
      ;;
    *) refuse "unknown option $1; launch/node.sh --help lists them" ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { help >&2 && exit 2; }
if [[ -z $nodes ]]; then # another launcher may have started one of these on each machine
  nodes=1
  for variable in WORLD_SIZE SLURM_STEP_NUM_TASKS OMPI_COMM_WORLD_SIZE PMI_SIZE; do
    [[ ${!variable:-1} == 1 ]] || refuse "$variable is ${!variable}, so this is one of several launchers, and each would train alone; \
wanted --nodes, --node-rank and --rendezvous for several machines, or unset $variable for this machine alone"
  done
fi
[[ $nodes =~ ^[1-9][0-9]{0,5}(:[1-9][0-9]{0,5})?$ ]] || refuse "--nodes $nodes: wanted N or MIN:MAX"
((${nodes%:*} <= ${nodes#*:})) || refuse "--nodes $nodes: wanted MIN:MAX, the smaller number first"
require_number --max-restarts "$restarts" 0 999999
case $processes in '' | auto | gpu | cpu) ;; *) require_number --processes "$processes" 1 99999 ;; esac
[[ $BIGTRAIN_RENDEZVOUS =~ ^((join_timeout|last_call_timeout|close_timeout|heartbeat_timeout|read_timeout|keep_alive_interval|keep_alive_max_attempt)=[0-9]{1,9}(,|$))+$ ]] ||
  refuse "BIGTRAIN_RENDEZVOUS $BIGTRAIN_RENDEZVOUS: wanted NAME=SECONDS,... as in launch/environment.sh"
[[ -z $rendezvous || $rendezvous =~ ^[][A-Za-z0-9_.:%-]+$ && $rendezvous != -* ]] ||
  refuse "--rendezvous $rendezvous: wanted HOST or HOST:PORT"
[[ -z $node_rank ]] || require_number --node-rank "$node_rank" 0 999999
[[ $nodes =~ ^1(:1)?$ || -n $rendezvous ]] || refuse "$nodes machines need --rendezvous, a name of the first one"
if [[ -z $processes || $processes == auto || $processes == gpu ]]; then
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
  processes=$((gpus > 0 ? gpus : 2))
fi

host=$rendezvous port=$BIGTRAIN_PORT conf=$BIGTRAIN_RENDEZVOUS
if [[ $rendezvous =~ ^(.*[^:]):([0-9]*)$ ]]; then
  host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]:-$BIGTRAIN_PORT}
fi
if [[ -n $rendezvous ]]; then # the preflight meets at the port after this one
  [[ $host != *:* || $host == *:*:* ]] || refuse "--rendezvous $rendezvous: wanted HOST or HOST:PORT"
  require_number "--rendezvous $rendezvous: port" "$port" 1 65534
fi
[[ -z $node_rank ]] || conf=rank=$node_rank,$conf

meet_at() { # PORT: torchrun's options for meeting there, in $meeting
  meeting=(--standalone)
  [[ -z $rendezvous ]] || meeting=("--nnodes=$nodes" --rdzv-backend=bigtrain "--rdzv-endpoint=$host:$1" "--rdzv-id=$job"
    "--rdzv-conf=$conf")
}
meet_at "$port"
command=("$python" -m bigtrain.cli.torchrun "${meeting[@]}" "--nproc-per-node=$processes" "--max-restarts=$restarts"
  -m bigtrain "$@")
[[ -z $rendezvous ]] || meet_at $((port + 1))
preflight=("$python" -m bigtrain.cli.torchrun "${meeting[@]}" "--nproc-per-node=$processes" -m bigtrain doctor "${@:2}")
if [[ $doctor == fast ]]; then
  preflight=("$python" -m bigtrain doctor --fast --quiet)
  [[ $nodes != 1 || $processes == cpu ]] || preflight+=(--ranks "$processes")
  preflight+=("${@:2}")
fi

if [[ -n $dry ]]; then
  show cd "$PWD"
  before=$(sort <<<"$before") after=$(export -p | sort)
  comm -13 /dev/fd/3 /dev/fd/4 3<<<"$before" 4<<<"$after" | sed 's/^declare -x /export /'
  [[ -z $doctor ]] || show "${preflight[@]}"
  show "${command[@]}"
  exit
fi

[[ -z $doctor && -z $orders ]] || pass_signals_on
if [[ -n $orders ]]; then
  exec {stdin}<&0
  {
    given=''
    while read -r name; do kill -s "$name" $$ && given=yes; done
    [[ -n $given ]] || kill -s TERM $$ # a second signal would end the ranks without a checkpoint
  } <&"$stdin" 2>/dev/null &
  reader=$!
  trap 'kill "$reader" 2>/dev/null || true' EXIT
fi
if [[ -n $doctor ]]; then
  attend "${preflight[@]}"
  [[ -z $asked ]] || exit 75 # nothing had started, so nothing is lost
  [[ $status -eq 0 ]] || {
    echo "error: the preflight failed, see above; --no-doctor leaves it out" >&2
    exit "$status"
  }
fi
if [[ -n $orders ]]; then
  attend "${command[@]}"
  exit "$status"
fi
exec "${command[@]}"
