"""Run `distill segment` on Kubernetes: dask-kubernetes starts one pod per worker. Not tested on a cluster.

    pip install dask-kubernetes    # and its operator in the cluster
    python examples/dask_kubernetes.py IMAGE CLAIM SOURCE MODEL OUT.zarr 16

IMAGE holds this package and its dependencies; CLAIM is a volume claim, mounted at /data in every pod and here too, that
holds SOURCE, MODEL and OUT.zarr.
"""

import subprocess
import sys

from dask_kubernetes.operator import KubeCluster, make_cluster_spec

if __name__ == "__main__":
    image, claim, source, model, out, workers = sys.argv[1:7]
    spec = make_cluster_spec(name="distill", image=image, n_workers=int(workers))
    for part in ("worker", "scheduler"):
        pod = spec["spec"][part]["spec"]
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    container = spec["spec"]["worker"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"nvidia.com/gpu": 1, "memory": "32Gi"}}
    container["args"] += ["--nthreads", "1"]
    with KubeCluster(custom_cluster_spec=spec) as cluster:
        words = ["distill", "segment", source, "--model", model, "--out", out, "--resume", *sys.argv[7:]]
        sys.exit(subprocess.run([*words, "--scheduler", cluster.scheduler_address], check=False).returncode)
