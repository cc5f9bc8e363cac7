"""The figure of one section shows the section that was asked for, of every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from distill.core.errors import DistillError, ShapeError
from distill.io.volume import open_labels, open_volume
from distill.io.writers.store import create_zarr
from viz.section import section
from viz.viewer.view import Sources

NM = (30.0, 6.0, 6.0)
Cli = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path, phantom: Path) -> Path:
    """Sections 12 to 15 of the phantom's labels as a segmentation, and affinities."""
    out = tmp_path / "out.zarr"
    labels = open_labels(phantom).read()[12:16]
    rng = np.random.default_rng(0)
    for name, shape, dtype in (("segmentation", labels.shape, np.uint64), ("affinity", (3, *labels.shape), np.uint8)):
        array = create_zarr(
            out, name, shape=shape, dtype=dtype, resolution=NM, offset=(12 * NM[0], 0, 0),
            attributes={}, overwrite=True,
        )  # fmt: skip
        for z in range(4):
            given = labels[z] + np.uint64(5) if name == "segmentation" else rng.integers(0, 256, (3, *labels.shape[1:]))
            array.write_section(z, given.astype(dtype))
    return out


def test_every_layer_of_the_section(store: Path, phantom: Path, tmp_path: Path) -> None:
    given: list[Any] = []
    sources = Sources(raw=str(phantom), labels=str(phantom))
    with mock.patch("viz.section.section_figure", side_effect=lambda *some, **named: given.append(some)):
        shown = section(store, sources, 14, tmp_path / "a.png")
    assert shown == ["raw", "segmentation", "affinity z y x", "ground truth"]
    [(raw, affinity, segmentation, labels, resolution, _)] = given
    np.testing.assert_array_equal(raw, open_volume(phantom).read()[14])
    truth = open_labels(phantom).read()[14]
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_array_equal(segmentation, truth + np.uint64(5))
    np.testing.assert_array_equal(affinity, open_volume(f"{store}:affinity").read()[:, 2])
    assert resolution == (6.0, 6.0)


@pytest.mark.commands("section")
def test_as_it_is_typed(store: Path, phantom: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "a.png"
    said = cli("section", store, "--raw", phantom, "--section", 12, "--out", out)
    assert said.code == 0, said.err
    assert said.out == f"section 12: raw, segmentation, affinity z y x\nfigure: {out}\n"
    with Image.open(out) as image:
        assert image.width > 1000
    said = cli("section", store, "--raw", phantom, "--section", 11, "--out", tmp_path / "b.png")
    assert (said.code, said.err) == (
        2,
        f"distill: --section: found 11, expected 12 to 15: the sections that {store} holds\n",
    )


def test_what_does_not_fit(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"--raw: found none \(.*out\.zarr names no image\), expected the sections"):
        section(store, Sources(), 12, tmp_path / "a.png")
    np.save(tmp_path / "small.npy", np.zeros((14, 96, 96), np.uint8))
    with pytest.raises(ShapeError, match=r"covers voxels \(12, 0, 0\) to \(16, .* of .*small\.npy"):
        section(store, Sources(raw=str(tmp_path / "small.npy"), resolution=NM), 12, tmp_path / "a.png")
    with pytest.raises(DistillError, match=r"suffix '\.gif'"):
        section(store, Sources(), 12, tmp_path / "a.gif")
