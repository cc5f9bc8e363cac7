"""Run `distill segment` on SLURM: dask-jobqueue submits one job per worker.

    pip install dask-jobqueue
    python examples/dask_slurm.py SOURCE MODEL OUT.zarr 16 [--gpus 1 --cpus 8 --memory 32GB] [options of segment]

Runs on a login node; needs a disk that all nodes share. After any interruption start it again. Tried on a cluster of
one node without a GPU; docs/how-to/blocks.md states how.
"""

import argparse
import subprocess
import sys

from dask_jobqueue import SLURMCluster


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """Return options of this script, and those that are left for `distill segment`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "model", "out"):
        parser.add_argument(name)
    parser.add_argument("workers", type=int)
    parser.add_argument("--gpus", type=int, default=1, help="per worker; 0 = none")
    parser.add_argument("--cpus", type=int, default=8, help="per worker")
    parser.add_argument("--memory", default="32GB", help="per worker")
    parser.add_argument("--walltime", default="08:00:00")
    return parser.parse_known_args()


if __name__ == "__main__":
    given, others = parsed()
    with SLURMCluster(
        cores=1,  # one block at a time; torch itself uses the job's cores
        processes=1,
        memory=given.memory,
        job_cpu=given.cpus,
        walltime=given.walltime,
        job_extra_directives=[*([f"--gres=gpu:{given.gpus}"] if given.gpus else []), "--requeue"],
        worker_extra_args=["--no-dashboard"],
    ) as cluster:
        cluster.scale(given.workers)
        words = [sys.executable, "-m", "distill", "segment", given.source, "--model", given.model, "--out", given.out]
        words += ["--resume", *others, "--scheduler", cluster.scheduler_address]
        sys.exit(subprocess.run(words, check=False).returncode)
