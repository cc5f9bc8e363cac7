#!/bin/sh
# One stream by a SLURM job array, a GPU each; the last pass once all have succeeded. Submit both:
#     array=$(sbatch --parsable --array=0-3 examples/slurm_array.sh SOURCE MODEL OUT.zarr)
#     sbatch --dependency=afterok:$array --gres=none --wrap "distill finish OUT.zarr"
# A job that is preempted or dies is put back into the queue and resumes where it stopped.
#SBATCH --job-name=distill-stream
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
set -eu
source=$1 model=$2 out=$3
shift 3
exec distill stream "$source" --model "$model" --out "$out" \
    --range "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --resume "$@"
