"""Run `distill segment` on SLURM: dask-jobqueue submits one job per worker, each with a GPU. Not tested on a cluster.

    pip install dask-jobqueue
    python examples/dask_slurm.py SOURCE MODEL OUT.zarr 16

Runs on a login node; needs a disk that all nodes share. After any interruption start it again.
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    source, model, out, workers = sys.argv[1:5]
    with SLURMCluster(
        cores=1,  # one block at a time; torch itself uses the job's cores
        processes=1,
        memory="32GB",
        job_cpu=8,
        walltime="08:00:00",
        job_extra_directives=["--gres=gpu:1", "--requeue"],
        worker_extra_args=["--no-dashboard"],
    ) as cluster:
        cluster.scale(int(workers))
        words = ["distill", "segment", source, "--model", model, "--out", out, "--resume", *sys.argv[5:]]
        sys.exit(subprocess.run([*words, "--scheduler", cluster.scheduler_address], check=False).returncode)
