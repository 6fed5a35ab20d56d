#!/usr/bin/env bash
# Pins in constraints.txt what setting up installs: everything that the requirements of pyproject.toml lead to.
#
#   launch/constraints.sh              pin what is new, drop what nothing needs any longer, keep all other pins
#   launch/constraints.sh --upgrade    take the newest releases that the requirements admit
#   launch/constraints.sh --check      change nothing; status 1 where constraints.txt is not what pyproject.toml needs
#
# One file serves Linux and macOS, all versions of Python that pyproject.toml admits, and machines with GPUs and without.
set -euo pipefail
cd "$(dirname "$0")/.."

options=()
case "$#${1:-}" in
  0 | 1--check) ;;
  1--upgrade) options=(--upgrade) ;;
  *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac

launch/setup.sh dev # brings uv, which resolves in seconds; for every platform, not only for this one
new=$(mktemp)
trap 'rm -f "$new" "$new.pins"' EXIT
cp constraints.txt "$new.pins" # uv keeps what its output file has pinned
DS_BUILD_OPS=0 .venv/bin/uv pip compile --quiet --universal --all-extras --fork-strategy fewest --no-header \
  --no-annotate --output-file "$new.pins" "${options[@]}" pyproject.toml
{
  sed -n '/^#/p' constraints.txt
  # PyTorch's builds differ in the CUDA packages that they bring, and each names the versions that it needs.
  grep -vE "^(cuda|nvidia)-|sys_platform == 'emscripten'" "$new.pins"
} >"$new"

if [[ ${1:-} == --check ]]; then
  diff --unified=0 constraints.txt "$new" >&2 || {
    echo 'error: constraints.txt is not what pyproject.toml needs (+ missing, - not needed); run launch/constraints.sh' >&2
    exit 1
  }
else
  cat "$new" >constraints.txt
fi
