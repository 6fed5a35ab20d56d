#!/usr/bin/env bash
# Puts the environment of bigtrain into one file, and unpacks it on a node: thousands of ranks that import from a shared
# file system ask it for some 37,000 files each. launch/slurm.sbatch --stage-env does it for a job; by hand:
#
#   launch/stage-env.sh pack FILE             make the file, once, of the environment that $PYTHON belongs to
#   launch/stage-env.sh unpack FILE FOLDER    on each node: unpack it into a new folder on a disk of the node, or /dev/shm
#
# Then start the job with PYTHON=FOLDER/bin/python and PYTHONPATH=FOLDER/checkout. The Python that a virtual environment
# was made with is not packed: it has to be at the same path on all nodes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

case ${1:-} in
  -h | --help) help && exit ;;
  pack)
    [[ $# -eq 2 ]] || refuse "wanted: stage-env.sh pack FILE"
    find_python
    facts=$("$python" -c 'import bigtrain, os, sys; print(sys.prefix, os.path.dirname(os.path.dirname(bigtrain.__file__)), sep="\n")')
    prefix=${facts%%$'\n'*} checkout=${facts#*$'\n'}
    trap 'rm -f -- "$2.part"' EXIT
    tar -cf "$2.part" -C "$prefix" .
    # An installed package lies in the environment; a checkout may lie anywhere.
    [[ $checkout == "$prefix"/* ]] || tar -rf "$2.part" --transform 's,^,checkout/,S' -C "$checkout" bigtrain
    mv -- "$2.part" "$2"
    ;;
  unpack)
    [[ $# -eq 3 ]] || refuse "wanted: stage-env.sh unpack FILE FOLDER"
    new=$3.$(uname -n).$$
    mkdir -p -- "$new"
    trap 'rm -rf -- "$new"' EXIT
    tar -xf "$2" -C "$new"
    # Where another node sees the same folder, the first one to be ready wins.
    mv -T -- "$new" "$3" 2>/dev/null || [[ -x $3/bin/python ]] || refuse "$2 cannot be unpacked into $3"
    ;;
  *) help >&2 && exit 2 ;;
esac
