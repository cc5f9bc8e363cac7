#!/bin/sh
# Two demonstrations, a few minutes on two cores: real neurons by the bundled model, and a training on a phantom.
# BIN: folder of `distill` and its Python; DEMO: folder for the results, which is emptied first.
set -eu
BIN=${BIN:-.venv/bin}
DEMO=${DEMO:-demo}
here=$(dirname "$0")
pair="$here/../configs/phantom_cpu"
rm -rf "$DEMO"
mkdir -p "$DEMO"
began=$(date +%s)

step() { # title, what it does, what to look at
    printf '\n== %s   [%s s]\n   %s\n   Look at: %s\n' "$1" "$(($(date +%s) - began))" "$2" "$3"
}
run() { # a command of distill, shown as one would type it
    echo "\$ distill $*"
    "$BIN/distill" "$@"
}

sample="$DEMO/sample.h5"
truth="$sample:volumes/labels/neuron_ids"
step "1/8 Real tissue" \
    "Writes the sample of mouse cortex that ships with the package: 20 sections, image and annotated neurons." \
    "its source and licence."
run sample "$sample"

step "2/8 Segment it" \
    "Sets each section's brightness and contrast; the student sees two sections at a time; supervoxels are merged into neurons." \
    "sections per second, and the number of objects (the annotators found 75)."
run stream "$sample:volumes/raw" --model ac4 --out "$DEMO/sample.zarr"

step "3/8 Score it" \
    "Compares with the annotation. VOI: bits of split and merged neurons; ARAND: pairs of voxels judged wrongly." \
    "VOI sum and ARAND (0 is perfect), and which neurons cost most."
run evaluate "$DEMO/sample.zarr:segmentation" "$truth"

step "4/8 See it" \
    "Draws the section with most errors (image, annotation, segmentation, errors), and the three worst neurons in 3D." \
    "$DEMO/sample_errors.png and $DEMO/sample_neurons.png."
run errors "$DEMO/sample.zarr:segmentation" "$truth" --raw "$sample:volumes/raw" --out "$DEMO/sample_errors.png"
run render "$DEMO/sample.zarr:segmentation" "$truth" --out "$DEMO/sample_neurons.png"

export PHANTOM="$DEMO/phantom.h5" # the configuration reads it
held_out=48:56
step "5/8 A phantom to train on" \
    "Draws 56 sections of synthetic tissue: 40 to train on, 8 held out, the others to validate on." \
    "nothing yet; it takes some seconds."
run phantom "$PHANTOM" --shape 56,256,256 --seed 7

step "6/8 Train a 3D teacher and a 2D student together" \
    "About two minutes; the student learns from the labels and from the teacher. For comparison: a run of one step." \
    "the loss as it falls; $DEMO/trained/report.html afterwards."
crop="student.training.crop=[6,112,112]" # less memory, and more steps in the same time
run train "$pair/teacher.yaml" "$pair/student.yaml" student.training.steps=1 "$crop" \
    "student.data.validation=[40,42]" --out "$DEMO/untrained"
run train "$pair/teacher.yaml" "$pair/student.yaml" student.training.minutes=2 "$crop" \
    "student.data.validation=[40,42]" --out "$DEMO/trained"

step "7/8 Embeddings of the two networks" \
    "Principal components as colours. The teacher runs in windows, the student over the whole section." \
    "$DEMO/pca.png: seams at the teacher's windows, none in the student's panel; mitochondria and membranes stand out."
run pca "$PHANTOM:volumes/raw" --teacher "$DEMO/trained" --student "$DEMO/trained" --section 52 --window 8,128,128 \
    --out "$DEMO/pca.png"

step "8/8 Trained against untrained" \
    "Both networks segment the held-out sections $held_out, before and after training." \
    "the table: VOI and ARAND fall with training; two minutes are no more than a beginning."
labels="$PHANTOM:volumes/labels/neuron_ids"
for state in untrained trained; do
    for network in student teacher; do
        run segment "$PHANTOM:volumes/raw" --sections "$held_out" --model "$DEMO/$state" --network "$network" \
            --out "$DEMO/phantom_${state}_$network.zarr"
        "$BIN/distill" evaluate "$DEMO/phantom_${state}_$network.zarr:segmentation" "$labels" --worst 0 --json \
            >"$DEMO/phantom_${state}_$network.json"
    done
done
"$BIN/python" "$here/score_table.py" "$DEMO/phantom_untrained_student.json" "$DEMO/phantom_trained_student.json" \
    "$DEMO/phantom_untrained_teacher.json" "$DEMO/phantom_trained_teacher.json"

cat <<END

== Done in $(($(date +%s) - began)) s. To open:
   $DEMO/sample_errors.png, $DEMO/sample_neurons.png, $DEMO/pca.png    figures, in any image viewer
   $DEMO/trained/report.html                                     the training, in a browser
   $BIN/distill view $DEMO/sample.zarr --raw $sample --labels $sample    every section, in a browser
   Next, on sections of your own: $BIN/distill stream SECTIONS --resolution 30,6,6 --model ac4 --out out.zarr
END
