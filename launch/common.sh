# shellcheck shell=bash disable=SC2034 # the scripts that source this read its variables
# What the launch scripts have in common. Sourced, not run.

# Streams that were closed (`>&-`) go nowhere: the next file that is opened would get their number, and an echo would fail.
{ : <&0; } 2>/dev/null || exec 0</dev/null
{ : >&1; } 2>/dev/null || exec 1>/dev/null
{ : >&2; } 2>/dev/null || exec 2>/dev/null

# Print the comment at the head of the script.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" | grep -v '^SBATCH'; }

# Say what is wrong with how a script was called.
refuse() {
  printf 'error: %s\n' "$1" >&2 || true
  exit 2
}

# Refuse what is no plain number in a range. Has to come before arithmetic, where bash takes 010 for 8, 09 for an error,
# and a[$(command)] for a command to carry out.
require_number() { # WHAT VALUE LEAST MOST
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,17})$ ]] || (($2 < $3 || $2 > $4)); then
    refuse "$1 $2: wanted a number from $3 to $4"
  fi
}

# Quote a word for the shell of another machine, whichever that is: bash's own %q would write $'...', which is bash's alone.
quote() { # WORD
  local apostrophe="'\\''"
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf '%s' "$1"; else printf "'%s'" "${1//\'/$apostrophe}"; fi
}

# The Python of this machine, in $python: $PYTHON, else that of the environment that these scripts belong to, else python3.
# In a checkout that is .venv beside launch/; a wheel lays them into ENVIRONMENT/lib/python3.X/site-packages/bigtrain/launch.
find_python() {
  local above environment
  above=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  environment=$above/.venv
  [[ $above != */site-packages/bigtrain ]] || environment=${above%/lib*/site-packages/bigtrain}
  python=${PYTHON:-$environment/bin/python}
  [[ -n ${PYTHON:-} || -x $python ]] || { python=python3 && export PYTHONPATH="$above${PYTHONPATH:+:$PYTHONPATH}"; }
}

# Print a command as one could type it.
show() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# bash runs a trap only between two commands, so a command that has to hear signals runs beside it and is looked after.
# Not by `wait`: it sleeps through a signal that comes as it begins.
#
#   pass_signals_on        from here on TERM, INT, USR1, HUP and QUIT go to what `attend` runs; $asked is the last of them
#   attend COMMAND ...     run it to its end, leave its status in $status
asked='' unheard='' status=0

pass_signals_on() {
  exec {never}<> <(:) # nothing is ever read from it; made before the traps, since a signal that came meanwhile was lost
  trap 'asked=TERM unheard+=" TERM"' TERM INT # what runs beside a script does not hear INT
  trap 'asked=USR1 unheard+=" USR1"' USR1
  trap 'asked=HUP unheard+=" HUP"' HUP
  trap 'asked=QUIT unheard+=" QUIT"' QUIT
}

attend() {
  local attended names name
  "$@" </dev/null &
  attended=$!
  while kill -0 "$attended" 2>/dev/null; do
    read -rt 0.2 -u "$never" || true
    names=$unheard unheard='' # in one command, so that none is lost
    for name in $names; do kill -s "$name" "$attended" 2>/dev/null || true; done
  done
  wait "$attended" && status=0 || status=$?
}
