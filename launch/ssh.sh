#!/usr/bin/env bash
# Trains on machines that ssh reaches, with one launcher on each, where there is no cluster manager.
#
#   launch/ssh.sh [OPTION ...] HOSTS CONFIG [key=value ...]
#   launch/ssh.sh node1,node2 configs/llama-1b.yaml train.steps=100
#
# HOSTS are names with commas between them, or a file with one name on each line. They meet at the first one: the others
# must reach it by this name. bigtrain, the configuration and this directory have the same paths on all of them.
#
#   --processes P        ranks on each machine; default: $NPROC, else one for each GPU, else 2
#   --min-hosts K        go on with K machines or more when some are lost
#   --max-restarts N     how often ranks that died are started again (default: launch/environment.sh)
#   --no-doctor          no preflight
#   --dry-run            print what would be started on each machine, and do nothing
#
# $BIGTRAIN_SSH is the command that reaches a machine (default: ssh -o BatchMode=yes). Ctrl-C or `kill -TERM` commits a
# checkpoint and ends with status 75, on all machines. The same happens when this machine or the connection is lost.
# Started again, it goes on from the newest checkpoint.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$here/environment.sh"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

options=() minimum='' doctor=--doctor dry=''
while [[ ${1:-} == -* ]]; do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) help && exit ;;
    --no-doctor) doctor=--no-doctor ;;
    --doctor) ;;
    --dry-run) dry=yes ;;
    --processes | --max-restarts | --min-hosts)
      [[ $# -ge 2 ]] || refuse "$1 needs a value"
      if [[ $1 == --min-hosts ]]; then minimum=$2; else options+=("$1" "$2"); fi
      shift
      ;;
    *) refuse "unknown option $1; launch/ssh.sh --help lists them" ;;
  esac
  shift
done
[[ $# -ge 2 ]] || { help >&2 && exit 2; }
if [[ -f $1 ]]; then
  names=$(sed 's/#.*//; s/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d' "$1") # not `< <(...)`, whose failure would be lost
  [[ -n $names ]] || refuse "no hosts in $1"
else
  names=${1//,/$'\n'}
fi
mapfile -t hosts <<<"$names"
shift
for host in "${hosts[@]}"; do
  [[ $host =~ ^([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[][A-Za-z0-9_:.%][][A-Za-z0-9_:.%-]*$ ]] ||
    refuse "host '$host': wanted a name or an address, such as node1, user@node1 or 10.0.0.1"
done
[[ -z $minimum ]] || require_number --min-hosts "$minimum" 1 "${#hosts[@]}"
[[ $1 != -* ]] || set -- "./$1" "${@:2}" # a file's name, not an option
[[ -z ${NPROC:-} ]] || options=(--processes "$NPROC" "${options[@]}")
read -ra ssh <<<"${BIGTRAIN_SSH:-ssh -o BatchMode=yes}"

# Variables of this environment that concern the job go to every machine; all others are the machine's own.
settings=()
names=$(
  compgen -e | grep -E '^(BIGTRAIN_|NCCL_|TORCH_|GLOO_|OMP_|WANDB_|CUDA_VISIBLE_DEVICES$|PYTHON$|PYTHONPATH$)' |
    grep -vE '^BIGTRAIN_SSH$|_API_KEY$' # every user of a machine can read its command lines
)
while IFS= read -r name; do settings+=("$name=${!name}"); done <<<"$names"
job=ssh-$(date +%s)-$$
remote() { # INDEX: the command for that machine
  local command=("$here/node.sh" --nodes "${minimum:+$minimum:}${#hosts[@]}" --node-rank "$1" --rendezvous "${hosts[0]#*@}"
    --job "$job" "${options[@]}" "$doctor" --orders-on-stdin train)
  printf 'cd -- %s && exec env' "$(quote "$PWD")"
  local word
  for word in "${settings[@]}" "${command[@]}" "${arguments[@]}"; do printf ' ' && quote "$word"; done
}
arguments=("$@") commands=()
for i in "${!hosts[@]}"; do commands+=("$(remote "$i")"); done

if [[ -n $dry ]]; then
  for i in "${!hosts[@]}"; do show "${ssh[@]}" "${hosts[i]}" "${commands[i]}"; done
  exit
fi

# This shell holds an open file for each machine, and the usual soft limit is 1,024.
files=$((${#hosts[@]} + 64)) hard=$(ulimit -Hn) soft=$(ulimit -Sn)
[[ $hard == unlimited ]] || ((hard >= files)) ||
  refuse "${#hosts[@]} machines need $files open files here, and the hard limit is $hard; wanted more by ulimit -Hn $files as \
root or nofile in /etc/security/limits.conf, or Slurm for so many machines"
[[ $soft == unlimited ]] || ((soft >= files)) || ulimit -Sn "$files"

# Does every machine have the same files at the same paths? All are asked at once, and all that do not are named.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
question="cd -- $(quote "$PWD") && cksum -- $(quote "$here/node.sh") $(quote "$1")"
wanted=$(cksum -- "$here/node.sh" "$1")
for host in "${hosts[@]}"; do
  {
    found=$("${ssh[@]}" "$host" "$question" 2>&1 </dev/null) && status=0 || status=$?
    [[ $status -eq 0 && $found == "$wanted" ]] || printf 'error: %s: %s\n' "$host" "${found:-ssh: status $status}" >>"$folder/wrong"
  } &
done
wait
if [[ -s $folder/wrong ]]; then
  cat "$folder/wrong" >&2
  printf '  wanted: bigtrain, this directory and %s at the same paths on all machines, reached by %s; that is\n%s\n' \
    "$1" "${ssh[*]}" "$wanted" >&2
  exit 1
fi

# Put the name of a machine before each of its lines. It reads on when nobody reads what it writes.
label() { # HOST
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line" || true; done 2>/dev/null
}

# One ssh for each machine. Names of signals are written to it, for launch/node.sh --orders-on-stdin. ssh forwards no
# signals, and a remote command survives the loss of its connection, but it ends at the end of its stdin.
trap '' PIPE # a machine that has ended reads no more
for i in "${!hosts[@]}"; do
  mkfifo "$folder/orders-$i"
  {
    "${ssh[@]}" "${hosts[i]}" "${commands[i]}" <"$folder/orders-$i" && status=0 || status=$?
    echo "$status" >"$folder/ended-$i"
  } 2>&1 | label "${hosts[i]}" &
done
orders=()
for i in "${!hosts[@]}"; do exec {order}>"$folder/orders-$i" && orders+=("$order"); done

order() { for order in "${orders[@]}"; do echo "$1" >&"$order" || true; done 2>/dev/null; }
trap 'order TERM' TERM INT HUP
trap 'order USR1' USR1

# The first status that is neither 0 nor 75 is this script's; with --min-hosts the last one is.
running=${#hosts[@]} failed='' stopped='' last=0 deadline=''
while ((running > 0)); do
  sleep 0.3 || true
  for i in "${!hosts[@]}"; do
    [[ -s $folder/ended-$i ]] || continue
    read -r last <"$folder/ended-$i"
    rm "$folder/ended-$i"
    running=$((running - 1))
    case $last in
      0) ;;
      75) stopped=75 ;;
      255) failed=${failed:-255} && echo "error: ${hosts[i]}: not reached, or the connection was lost" >&2 ;;
      *) failed=${failed:-$last} && echo "error: ${hosts[i]}: ended with status $last" >&2 ;;
    esac
  done
  # When too few machines are left, the others end by themselves; those that do not get QUIT.
  ((running >= ${minimum:-${#hosts[@]}})) || deadline=${deadline:-$((SECONDS + 120))}
  [[ -z $deadline ]] || ((SECONDS < deadline)) || { order QUIT && deadline=$((SECONDS + 120)); }
done
[[ -z $minimum ]] || exit "$last"
exit "${failed:-${stopped:-0}}"
