# shellcheck shell=bash disable=SC2034 # the scripts that source this read its variables
# What the launch scripts have in common. Sourced, not run.

# Print the comment at the head of the script.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" | grep -v '^SBATCH'; }

# Say what is wrong with how a script was called.
refuse() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# The Python of this machine, in $python: $PYTHON, else the one in .venv beside launch/, else python3.
find_python() {
  python=${PYTHON:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python}
  [[ -n ${PYTHON:-} || -x $python ]] || python=python3
}

# Print a command as one could type it.
show() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# bash runs a trap only between two commands, so a command that has to hear signals runs beside it and is waited for.
#
#   pass_signals_on        from here on TERM, INT, USR1, HUP and QUIT go to what `attend` runs; $asked is the last of them
#   attend COMMAND ...     run it to its end, leave its status in $status
attended='' asked='' interrupted='' status=0

pass_signals_on() {
  trap 'pass_on TERM' TERM INT # what runs beside a script does not hear INT
  trap 'pass_on USR1' USR1
  trap 'pass_on HUP' HUP
  trap 'pass_on QUIT' QUIT
}

pass_on() {
  asked=$1 interrupted=yes
  [[ -z $attended ]] || kill -s "$1" "$attended" 2>/dev/null || true
}

attend() {
  local now
  "$@" </dev/null &
  attended=$! status=127
  while :; do
    interrupted=''
    wait "$attended" && now=0 || now=$?
    [[ $now -eq 127 ]] || status=$now # 127: an earlier round has had the answer
    [[ -n $interrupted ]] || break
  done
  attended=''
}
