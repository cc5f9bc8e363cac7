"""The list of worst objects: every row points into the wrong piece, in a table and in Neuroglancer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from distill.core.errors import DistillError, SourceError
from distill.evaluation.contingency import Contingency
from distill.evaluation.metrics import worst_objects
from distill.evaluation.worst_objects.error_list import error_rows, neuroglancer_state, write_list
from distill.evaluation.worst_objects.locate import Spot, find_spots
from distill.io.volume import Volume, volume_from_array

NM = (30.0, 6.0, 5.0)
OFFSET = (300.0, 60.0, -50.0)


def listed() -> tuple[list[Spot], Volume, Volume]:
    """Object 7 is cut at x = 12, its right part joined with object 3."""
    truth = np.full((4, 20, 40), 3, np.uint64)
    truth[:, :, :30] = 7
    found = np.full_like(truth, 50)
    found[1:, 2:, :12] = 2**63 + 1
    table = Contingency()
    table.add(found, truth)
    volumes = volume_from_array(found, NM, OFFSET), volume_from_array(truth, NM, OFFSET)
    return find_spots(*volumes, worst_objects(table, 3)), *volumes


def test_rows_point_into_the_wrong_piece() -> None:
    spots, found, truth = listed()
    rows = error_rows(spots, found)
    assert [(row["number"], row["error"], row["id"]) for row in rows] == [(1, "merge", 50), (2, "split", 7)]
    ids, labels = found.read(), truth.read()
    for row in rows:
        own, other = (labels, ids) if row["error"] == "split" else (ids, labels)
        at = tuple(row["point_voxel_zyx"])
        assert own[at] == row["id"]
        assert other[at] == row["piece"] == row["partners"][1]
        piece = (own == row["id"]) & (other == row["piece"])
        assert row["piece_voxels"] == piece.sum()
        box = tuple(slice(a, b) for a, b in zip(row["box_start_zyx"], row["box_stop_zyx"], strict=True))
        assert piece[box].sum() == piece.sum()
        world = [(nm - o) / r - 0.5 for nm, o, r in zip(row["point_nm_zyx"], OFFSET, NM, strict=True)]
        assert world == pytest.approx(list(at))
        json.dumps(row)


def test_table(tmp_path: Path) -> None:
    spots, found, _ = listed()
    path = tmp_path / "made" / "errors.csv"
    write_list(path, spots, found)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = error_rows(spots, found)
    assert len(rows) == len(expected) == 2
    for row, one in zip(rows, expected, strict=True):
        assert (row["error"], int(row["id"]), int(row["piece"])) == (one["error"], one["id"], one["piece"])
        assert [int(i) for i in row["partners"].split()] == one["partners"]
        assert [int(row[axis]) for axis in "zyx"] == one["point_voxel_zyx"]
        assert [float(row[f"{axis}_nm"]) for axis in "zyx"] == one["point_nm_zyx"]
        assert [int(row[f"{axis}_first"]) for axis in "zyx"] == one["box_start_zyx"]
        assert [int(row[f"{axis}_last"]) + 1 for axis in "zyx"] == one["box_stop_zyx"]
        assert float(row["bits"]) == one["bits"]
    assert list(path.parent.iterdir()) == [path]


def test_neuroglancer_takes_the_state(tmp_path: Path) -> None:
    neuroglancer = pytest.importorskip("neuroglancer")
    spots, found, _ = listed()
    write_list(tmp_path / "errors.json", spots, found)
    state = neuroglancer.ViewerState(json.loads((tmp_path / "errors.json").read_text()))
    layer = state.layers["errors"].layer
    assert layer.type == "annotation"
    scales = [float(s) * 1e9 for s in state.dimensions.scales]
    assert scales == pytest.approx(NM[::-1])
    assert len(layer.annotations) == len(spots)
    for annotation, row in zip(layer.annotations, error_rows(spots, found), strict=True):
        nm = [p * s for p, s in zip(annotation.point, scales, strict=True)]
        assert nm == pytest.approx(row["point_nm_zyx"][::-1])
        assert f"{row['error']} {row['bits']:.3f} bits" in annotation.description
    assert neuroglancer_state([], found)["layers"][0]["annotations"] == []


def test_places_that_will_not_do(tmp_path: Path) -> None:
    spots, found, _ = listed()
    with pytest.raises(DistillError, match=r"--list: found '.*errors\.txt', expected a file ending in \.csv"):
        write_list(tmp_path / "errors.txt", spots, found)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="is not a folder"):
        write_list(tmp_path / "file" / "errors.csv", spots, found)
