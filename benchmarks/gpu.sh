#!/usr/bin/env bash
# Everything that has to be measured on a GPU, in one call of at most ten minutes, without a network:
#
#     python benchmarks/gpu.py prepare ac4.h5 gpu_data/ac4_crop.h5      # beforehand, where the data are
#     bash benchmarks/gpu.sh gpu_data/ac4_crop.h5 gpu_results           # on the machine with the GPU
#
# PYTHON names an interpreter with torch for this GPU and the packages of `pip install '.[baselines,test]'`.
# Results: gpu_results/gpu.json, gpu_results/gpu.log, and gpu_results/run with checkpoints below 16 MB each.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?expected DATA.h5, as written by: python benchmarks/gpu.py prepare ac4.h5 DATA.h5}
out=${2:?expected a folder for the results}
shift 2
python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" >/dev/null; then python=python3; fi
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" benchmarks/gpu.py run "$data" --out "$out" "$@" 2>&1 | tee "$out/gpu.log"
