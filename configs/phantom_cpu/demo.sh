#!/bin/sh
# The whole path on a phantom, a few minutes on two cores. BIN: where `distill` lies, DEMO: folder for the results.
set -eu
BIN=${BIN:-.venv/bin}
DEMO=${DEMO:-demo}
here=$(dirname "$0")
rm -rf "$DEMO"
mkdir -p "$DEMO"
export PHANTOM="$DEMO/phantom.h5"
held_out=48:56

echo "== a phantom volume: 40 sections to train on, 8 to validate on, the last 8 that nobody sees"
"$BIN/distill" phantom "$PHANTOM" --shape 56,320,320 --seed 7
"$BIN/distill" info "$PHANTOM"

echo "== teacher and student, together"
"$BIN/distill" train "$here/teacher.yaml" "$here/student.yaml" --out "$DEMO/run"

echo "== the student streams over held-out sections"
"$BIN/distill" stream "$PHANTOM:volumes/raw" --sections "$held_out" --model "$DEMO/run" --out "$DEMO/student.zarr"
"$BIN/distill" segment "$PHANTOM:volumes/raw" --sections "$held_out" --model "$DEMO/run" --network teacher \
    --out "$DEMO/teacher.zarr"
"$BIN/distill" segment "$PHANTOM:volumes/raw" --sections "$held_out" --model "$DEMO/run" --method waterz \
    --out "$DEMO/waterz.zarr"
"$BIN/distill" pca "$PHANTOM:volumes/raw" --teacher "$DEMO/run" --student "$DEMO/run" --section 52 \
    --window 8,160,160 --out "$DEMO/pca.png"

labels="$PHANTOM:volumes/labels/neuron_ids"
for name in student teacher waterz; do
    echo "== $name, held-out sections $held_out"
    "$BIN/distill" evaluate "$DEMO/$name.zarr:segmentation" "$labels"
done
echo "== done: $DEMO/run, $DEMO/student.zarr, $DEMO/teacher.zarr, $DEMO/waterz.zarr, $DEMO/pca.png"
