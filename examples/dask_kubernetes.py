"""Run `distill segment` on Kubernetes: dask-kubernetes starts one pod per worker. Not tested on a cluster; pods and
service were checked against Kubernetes' schema (docs/how-to/blocks.md).

    pip install dask-kubernetes    # and its operator in the cluster
    python examples/dask_kubernetes.py IMAGE CLAIM SOURCE MODEL OUT.zarr 16

IMAGE holds this package and its dependencies; CLAIM is a volume claim that holds SOURCE, MODEL and OUT.zarr, mounted at
/data in every pod and on this machine.
"""

import subprocess
import sys
from typing import Any

from dask_kubernetes.operator import KubeCluster, make_cluster_spec


def cluster_spec(image: str, claim: str, workers: int) -> dict[str, Any]:
    """Return the specification of the cluster: a scheduler and workers with a GPU each, all with the volume claim."""
    spec: dict[str, Any] = make_cluster_spec(name="distill", image=image, n_workers=workers)
    for part in ("worker", "scheduler"):
        pod = spec["spec"][part]["spec"]
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    container = spec["spec"]["worker"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"nvidia.com/gpu": 1, "memory": "32Gi"}}
    container["args"] += ["--nthreads", "1"]
    return spec


if __name__ == "__main__":
    image, claim, source, model, out, workers = sys.argv[1:7]
    with KubeCluster(custom_cluster_spec=cluster_spec(image, claim, int(workers))) as cluster:
        words = ["distill", "segment", source, "--model", model, "--out", out, "--resume", *sys.argv[7:]]
        sys.exit(subprocess.run([*words, "--scheduler", cluster.scheduler_address], check=False).returncode)
