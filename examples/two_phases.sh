#!/bin/sh
# A teacher alone, then students from its saved weights, for machines that cannot train both at once:
#     sh examples/two_phases.sh configs/ac4_cpu runs/ac4
# trains the teacher of a pair of configurations into OUT/teacher and, with that teacher frozen, the students of the
# ablation table into OUT/ablation. TEACHER_STEPS, SEEDS, VARIANTS: see below; BIN: where `distill` lies; DISTILL_DATA: the
# folder that holds the volumes.
set -eu
BIN=${BIN:-.venv/bin}
pair=$1
out=$2

"$BIN/distill" train "$pair/teacher.yaml" "$pair/student.yaml" --out "$out/teacher" --resume \
    student.loss.slice=0 student.loss.cross=0 student.loss.graft=0 teacher.queries.student=0 \
    "student.training.crop=[8,128,128]" student.training.teacher_every=1 student.training.steps="${TEACHER_STEPS:-3600}" \
    student.training.validate_every="${TEACHER_STEPS:-3600}"
"$BIN/distill" ablate "$pair/teacher.yaml" "$pair/student.yaml" --out "$out/ablation" \
    --seeds "${SEEDS:-0,1,2}" --variants "${VARIANTS:-none,cross,graft,both,both+masks}" \
    teacher.weights="$out/teacher" teacher.frozen=true
