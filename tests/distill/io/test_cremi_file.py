"""A genuine CREMI file from opening to scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.io.source import find_arrays
from distill.io.volume import open_labels, open_volume

Cli = Callable[..., Any]


def test_opened_streamed_scored_copied(
    cli: Cli, real_data: Callable[[str], Path], tmp_path: Path, cpu: tuple[str, ...]
) -> None:
    path = real_data("cremi_sample_B_sections_46_50.hdf")
    raw, labels = open_volume(path), open_labels(path)
    assert {one.dataset for one in find_arrays(path)} == {
        *("volumes/raw", "volumes/labels/neuron_ids", "volumes/labels/fragments", "volumes/membrane")
    }
    assert (raw.size, raw.resolution, labels.dtype) == ((5, 500, 500), (40, 4, 4), np.uint64)
    out = tmp_path / "out.zarr"
    words = ("--model", "ac4", "--normalise", "none", "--backend", "eager", "--sections", "0:3", *cpu)
    said = cli("stream", path, "--out", out, *words)
    assert said.code == 0, said.err
    segmentation = open_labels(f"{out}:segmentation")
    assert (segmentation.size, segmentation.resolution) == ((3, 500, 500), (40, 4, 4))
    truth = tmp_path / "truth.h5"
    assert cli("copy", path, truth, "--sections", "0:3").code == 0
    said = cli("copy", f"{path}:volumes/labels/neuron_ids", truth, "--sections", "0:3", "--labels")
    assert said.code == 0, said.err
    np.testing.assert_array_equal(open_labels(truth).read(), labels.read()[:3])
    np.testing.assert_array_equal(open_volume(truth).read(), raw.read()[:3])
    found = json.loads(cli("evaluate", f"{out}:segmentation", truth, "--json").out)
    ids, counts = np.unique(labels.read()[:3], return_counts=True)
    share = counts / counts.sum()
    assert found["n_true"] == np.count_nonzero(ids)
    assert found["voi_split"] + found["voi_merge"] < -(share @ np.log2(share))  # better than one object for all
