"""Oracle rows: what is perfect costs nothing, and the rest is scored as the scores themselves do."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import ways_to_neurons as script
from numpy.typing import NDArray

from distill.core.affinity import affinity_targets, as_label_tensor


def boxes() -> NDArray[np.uint64]:
    """Eight neurons of 6 x 16 x 16 voxels, with membranes of two pixels."""
    labels = np.zeros((6, 34, 66), np.uint64)
    for n in range(8):
        y, x = 17 * (n // 4), 17 * (n % 4)
        labels[:, y + 1 : y + 16, x + 1 : x + 16] = n + 1
    return labels


def test_oracles_of_perfect_affinities_are_perfect() -> None:
    labels = boxes()
    edges = affinity_targets(as_label_tensor(labels)).target.numpy().astype(np.float32)
    for found in script.oracles(edges, labels.astype(np.uint32), 0.5).values():
        np.testing.assert_allclose(found, 0, atol=1e-9)


def test_counts_are_scored_as_volumes() -> None:
    rng = np.random.default_rng(0)
    truth = boxes().astype(np.uint32)
    ids = rng.integers(1, 5, truth.shape).astype(np.uint64)
    inside = truth != 0
    pairs = script.sum_pairs(ids[inside], truth[inside])
    np.testing.assert_allclose(script.of_counts(pairs.u, pairs.v, pairs.count), script.scored(ids, truth), atol=1e-9)


def test_rows_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = boxes()
    edges = affinity_targets(as_label_tensor(labels)).target.numpy()
    for name, array in (("affinity", (edges * 255).astype(np.uint8)), ("labels", labels)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"] = array
            file["x"].attrs["resolution"] = (30.0, 6.0, 6.0)
    words = [str(tmp_path / "affinity.h5:x"), str(tmp_path / "labels.h5:x"), "--choose", "0:3,0:34,0:66"]
    rows = script.main([*words, "--test", "3:6,0:34,0:66", "--ways", "flood", "--json", str(tmp_path / "out.json")])
    assert [row["way"] for row in rows] == [
        "flood",
        "supervoxels merged by the truth",
        "true pieces merged by flood",
    ]
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    assert len(capsys.readouterr().out.splitlines()) == 3
