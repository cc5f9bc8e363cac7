#!/bin/sh
# The main job on real sections: train, stream, segment, evaluate on the validation sections. BIN: where `distill` lies,
# OUT: folder for the results, DISTILL_DATA: folder that holds ac4_quadrant.h5.
set -eu
BIN=${BIN:-.venv/bin}
OUT=${OUT:-runs/ac4_cpu}
here=$(dirname "$0")
data=${DISTILL_DATA:-../shared/data}/ac4_quadrant.h5
sections=64:80

[ -d "$OUT/best" ] || "$BIN/distill" train "$here/teacher.yaml" "$here/student.yaml" --out "$OUT" --resume
"$BIN/distill" stream "$data:volumes/raw" --sections $sections --model "$OUT" --out "$OUT/student_query.zarr" --overwrite
"$BIN/distill" segment "$data:volumes/raw" --sections $sections --model "$OUT" --method waterz \
    --out "$OUT/student_waterz.zarr" --overwrite
"$BIN/distill" segment "$data:volumes/raw" --sections $sections --model "$OUT" --network teacher \
    --out "$OUT/teacher_query.zarr" --overwrite
"$BIN/distill" segment "$data:volumes/raw" --sections $sections --model "$OUT" --network teacher --method waterz \
    --out "$OUT/teacher_waterz.zarr" --overwrite
for name in student_waterz student_query teacher_waterz teacher_query; do
    echo "== $name, sections $sections"
    "$BIN/distill" evaluate "$OUT/$name.zarr:segmentation" "$data:volumes/labels/neuron_ids"
done
