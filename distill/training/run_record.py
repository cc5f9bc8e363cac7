"""Write run.json of a training."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config import Pair
from distill.core.atomic import replacing
from distill.core.hardware import Chosen
from distill.core.version import VERSION
from distill.training.loop.timing import Split


class RunRecord:
    """Contents of run.json: settings, software, hardware, times and outcome. Written at the start and at the end."""

    def __init__(
        self,
        path: Path,
        command: list[str],
        config: Pair,
        first_step: int,
        ranks: int,
        split: Split,
        chosen: Chosen,
    ) -> None:
        self.path, self.split = path, split
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() and first_step else {}
        self.values: dict[str, Any] = {
            "command": command,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "first_step": first_step,
            "versions": {"affinity-distill": VERSION, "torch": torch.__version__, "numpy": np.__version__},
            "python": sys.version.split()[0],
            "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            **chosen.record(),
            "processes": ranks,
            "seed": config.student.training.seed,
            "earlier": [*before.pop("earlier", []), before] if before else [],
        }
        self.began = time.perf_counter()

    def __enter__(self) -> RunRecord:
        self._write("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._write("done" if error is None else f"{type(error).__name__}: {error}")

    def _write(self, ended: str) -> None:
        values = {**self.values, "seconds": round(time.perf_counter() - self.began, 2), "ended": ended}
        values["time_per_step"] = self.split.to_dict()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
