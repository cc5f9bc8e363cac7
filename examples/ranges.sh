#!/bin/sh
# One stream by several processes on one machine, each with its own GPU where there are some, then the last pass.
#     sh examples/ranges.sh SOURCE MODEL OUT.zarr PROCESSES [further options of distill stream]
# Run it again after any interruption: every process resumes where it stopped.
set -eu
source=$1 model=$2 out=$3 processes=$4
shift 4
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
running=""
index=0
while [ "$index" -lt "$processes" ]; do
    if [ "$gpus" -gt 0 ]; then
        export CUDA_VISIBLE_DEVICES=$((index % gpus))
    fi
    distill stream "$source" --model "$model" --out "$out" --range "$index/$processes" --resume "$@" &
    running="$running $!"
    index=$((index + 1))
done
for process in $running; do
    wait "$process"
done
distill finish "$out"
