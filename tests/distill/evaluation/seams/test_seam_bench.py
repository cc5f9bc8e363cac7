"""`distill bench seams`: every network, size and kind of windows, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from distill.core.errors import DistillError
from distill.evaluation.seams import bench
from distill.evaluation.seams.bench import corner
from distill.io.volume import open_volume
from distill.io.writers.cremi import write_cremi

Cli = Callable[..., Any]
COMMON = "--crop", 96, "--depth", 4, "--device", "cpu", "--precision", "32-true"


@pytest.mark.commands("bench seams")
def test_as_it_is_typed(run: Path, phantom: Path, cli: Cli) -> None:
    said = cli("bench", "seams", phantom, "--model", run, "--section", 9, "--window", 48, "--json", *COMMON)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["sections"], found["crop"], found["precision"], found["device"]) == ([9], 96, "32-true", "cpu")
    kinds = [(row["window"], row["kind"], row["network"]) for row in found["rows"]]
    assert kinds == [
        (48, "side by side", "teacher"),
        (48, "side by side", "student, whole"),
        (48, "side by side", "student, windows"),
        (48, "blended", "teacher"),
        (48, "blended", "student, whole"),
    ]
    for row in found["rows"]:
        (section,) = row["sections"]
        assert row["pooled"]["border"]["ratio"] == pytest.approx(section["border"]["ratio"])
        assert section["shift"]["ratio"] >= 0


@pytest.mark.parametrize("rescale", [False, True])
def test_sections_are_seen_on_the_pixels_of_the_model(rescale: bool, tmp_path: Path, cli: Cli) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (6, 40, 48), dtype=np.uint8)
    write_cremi(tmp_path / "v.h5", raw=raw, resolution=(30, 9, 9))
    source, words = f"{tmp_path / 'v.h5'}:volumes/raw", ("--rescale",) if rescale else ()
    with mock.patch.object(bench, "bench_seams", return_value=[]) as measured:
        said = cli("bench", "seams", source, "--model", "ac4", "--json", *words, *COMMON)
    assert said.code == 0, said.err
    volume = measured.call_args.args[0]
    pixel = 6 if rescale else 9
    assert volume.resolution == (30, pixel, pixel)
    assert volume.size == (6, 40 * 9 // pixel, 48 * 9 // pixel)
    rescaled = json.loads(said.out)["rescaled"]
    assert (None if rescaled is None else rescaled["pixel"]) == ([6, 6] if rescale else None)


def test_refused(run: Path, phantom: Path, cli: Cli) -> None:
    for words, expected in (
        (("--section", 20, "--window", 48), "section: found 20, expected 1 to 19"),
        (("--window", 8), "--window: found 8, expected 16 pixels or more"),
        (("--window", 96), "covers the whole section"),
    ):
        said = cli("bench", "seams", phantom, "--model", run, *words, *COMMON)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert expected in said.err
    said = cli("bench", "seams", phantom, "--model", phantom.parent / "gone", *COMMON)
    assert said.code == 2


@pytest.mark.parametrize("section", [1, 5, 19])
@pytest.mark.parametrize("depth", [1, 4, 40])
def test_the_piece_holds_the_section_and_the_one_before(phantom: Path, section: int, depth: int) -> None:
    whole = open_volume(str(phantom))
    piece, there = corner(whole, section, 64, depth)
    assert piece.size[1:] == (64, 64)
    assert piece.size[0] >= min(depth, 20)
    raw = whole.read()[:, :64, :64]
    np.testing.assert_array_equal(piece.read()[there - 1 : there + 1], raw[section - 1 : section + 1])
    with pytest.raises(DistillError, match="expected 1 to 19"):
        corner(whole, 0, 64, depth)
