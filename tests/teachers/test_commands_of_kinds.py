"""Every kind of teacher in the commands that take one: `info`, `segment --network teacher`, `pca` with seam scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config import TeacherConfig
from distill.core.normalisation import NONE
from distill.io.volume import open_volume
from distill.models.build import build_decoder
from distill.models.checkpoint import save_weights
from distill.models.load import teacher_metadata
from teachers.teacher import Teacher

RESOLUTION = (30.0, 6.0, 6.0)
DECODER = {"width": 8, "depth": 1, "rounds": 1, "learned": 4, "block": [3, 64, 64], "overlap": [1, 16, 16]}


def test_a_kind_in_the_commands(
    kind: str,
    tiny_values: Callable[[str], dict[str, Any]],
    tiny_teacher: Callable[..., Teacher],
    cli: Callable[..., Any],
    cpu: tuple[str, ...],
    run: Path,
    phantom: Path,
    tmp_path: Path,
) -> None:
    config = TeacherConfig.model_validate({**tiny_values(kind), "decoder": DECODER})
    torch.manual_seed(0)
    modules = {"teacher": tiny_teacher(kind), "decoder": build_decoder(config.decoder, 8, RESOLUTION)}
    file = tmp_path / "teacher.safetensors"
    metadata = teacher_metadata(config, config.decoder, RESOLUTION, NONE)
    save_weights(file, "teacher", modules, metadata, {"resolution": list(RESOLUTION)})
    said = cli("info", file)
    assert (said.code, f"teacher, {kind}" in said.out) == (0, True), said.err or said.out

    source, out = f"{phantom}:volumes/raw", tmp_path / "out.zarr"
    words = ("--model", file, "--network", "teacher", "--method", "mws", "--out", out, *cpu)
    said = cli("segment", source, *words, "--box", "4,0,0:8,96,96")
    assert said.code == 0, said.err
    affinity = open_volume(f"{out}:affinity").read()
    assert affinity.shape == (3, 4, 96, 96)
    assert len(np.unique(affinity)) > 1  # an untrained network may saturate

    figure = tmp_path / "pca.png"
    said = cli(
        *("pca", source, "--student", run, "--teacher", file, "--section", 5, "--out", figure, "--json", *cpu),
        *("--window", "3,48,48", "--overlap", "1,16,16", "--membranes"),
    )
    assert said.code == 0, said.err
    assert figure.stat().st_size > 1000
    found = json.loads(said.out)["teacher"]
    assert found["ratio"] is None or math.isfinite(found["ratio"]), found
