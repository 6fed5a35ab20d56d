#!/usr/bin/env bash
# Makes .venv with bigtrain in it, or brings it up to date; does nothing when nothing has changed.
#
#   launch/setup.sh [EXTRAS]      for example: launch/setup.sh hf        launch/setup.sh dev
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-hf}
wanted=$(cat pyproject.toml constraints.txt launch/setup.sh | cksum)
for stamp in .venv/installed-dev ".venv/installed-$extras"; do # dev includes all others
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0
done

"${PYTHON:-python3}" -m venv .venv # harmless where it stands already, and mends one whose making was interrupted
echo "installing bigtrain[$extras] into .venv ..." >&2
# constraints.txt pins every release, so that pip has nothing to search for. pip would compile Python on one core.
install=(.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt)
# First what DeepSpeed, which comes as source, needs to be built. The pinned setuptools builds all that comes so.
"${install[@]}" setuptools torch
if [[ $extras == dev ]]; then
  "${install[@]}" seqeval # comes as source and asks for setuptools_scm, without which its version would be 0.0.0
  # llama.cpp comes as source too. The tests need what it computes, not its speed, its server or its eyes: built like this
  # it takes 90 seconds of one core. A cache of its own keeps the slow build from everybody else.
  echo 'set(LLAMA_BUILD_COMMON OFF)' >.venv/without-common.cmake
  off=(LLAVA_BUILD GGML_NATIVE GGML_SSE42 GGML_AVX GGML_AVX2 GGML_BMI2 GGML_FMA GGML_F16C)
  off+=(GGML_LLAMAFILE GGML_CPU_REPACK GGML_OPENMP)
  lean="$(printf -- '-D%s=OFF ' "${off[@]}") -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O0"
  lean+=" -DCMAKE_PROJECT_llama.cpp_INCLUDE_BEFORE=$PWD/.venv/without-common.cmake"
  CMAKE_ARGS=$lean "${install[@]}" --cache-dir "${XDG_CACHE_HOME:-${HOME:-$PWD/.venv}/.cache}/bigtrain/llama.cpp" llama-cpp-python
fi
DS_BUILD_OPS=0 "${install[@]}" --no-build-isolation --editable ".[$extras]"
if [[ $extras == dev && $(uname) == Linux ]] && ! .venv/bin/python -c "import triton" 2>/dev/null; then
  # PyTorch's builds for GPUs bring Triton along. Those for CPUs would import it into every process, for a second and 74 MB;
  # so it lies beside the packages, where the tests of our kernels look for its interpreter and its compiler.
  "${install[@]}" --no-deps --upgrade --target .venv/triton triton
fi
# Packages' own tests are left out; some packages hold files that are no Python.
.venv/bin/python -m compileall -qq -j 0 -x /tests/ .venv/lib >/dev/null || true
echo "$wanted" >"$stamp"
