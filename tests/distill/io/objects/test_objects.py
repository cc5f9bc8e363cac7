"""Surfaces and skeletons in precomputed: places in nm, closed surfaces, the same by any blocks, resumed runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.io.objects import objects
from distill.io.objects.fragments import block_boxes
from distill.io.objects.objects import Objects, write_objects
from distill.io.writers.copy import Copying, copy

pytest.importorskip("zmesh")
pytest.importorskip("kimimaro")
RESOLUTION, START = (30.0, 6.0, 6.0), (4, 100, 50)  # nm and voxels, z, y, x
Cli = Callable[..., Any]


def quiet(done: int, total: int) -> None:
    """Report nothing."""


@pytest.fixture
def labels() -> NDArray[np.uint64]:
    """A box, a long bar through the volume, and an id of 64 bits in two pieces."""
    found = np.zeros((14, 40, 60), np.uint64)
    found[2:6, 5:15, 7:20] = 3
    found[4:8, 20:28, :] = 12
    found[9:12, 2:10, 30:40] = 2**63 + 5
    found[9:12, 2:10, 45:50] = 2**63 + 5
    return found


@pytest.fixture
def folder(labels: NDArray[np.uint64], tmp_path: Path) -> Path:
    """The volume in precomputed, whose first voxel is not at 0, with a coarser level."""
    np.savez(tmp_path / "labels.npz", data=labels)
    place = tuple(n * r for n, r in zip(START, RESOLUTION, strict=True))
    how = Copying(None, 2, True, None, RESOLUTION, place, False, 1)  # type: ignore[arg-type]
    copy(str(tmp_path / "labels.npz"), str(tmp_path / "seg.precomputed"), how, quiet)
    return tmp_path / "seg.precomputed"


def surface_of(folder: Path, one: int) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Read a surface by the format's description."""
    (name,) = json.loads((folder / "mesh" / f"{one}:0").read_text())["fragments"]
    content = (folder / "mesh" / name).read_bytes()
    (count,) = np.frombuffer(content[:4], "<u4")
    points = np.frombuffer(content[4 : 4 + 12 * count], "<f4").reshape(-1, 3)
    return points, np.frombuffer(content[4 + 12 * count :], "<u4").reshape(-1, 3)


def skeleton_of(folder: Path, one: int) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.float32]]:
    """Read a skeleton by the format's description."""
    content = (folder / "skeletons" / str(one)).read_bytes()
    nodes, edges = np.frombuffer(content[:8], "<u4")
    points = np.frombuffer(content, "<f4", 3 * nodes, 8).reshape(-1, 3)
    links = np.frombuffer(content, "<u4", 2 * edges, 8 + 12 * nodes).reshape(-1, 2)
    return points, links, np.frombuffer(content, "<f4", nodes, 8 + 12 * nodes + 8 * edges)


def bounds(labels: NDArray[np.uint64], one: int) -> NDArray[np.float64]:
    """First and last corner of an object, x, y, z in nm."""
    there = np.argwhere(labels == one)
    corners = np.array([there.min(0), there.max(0) + 1]) + START
    return (corners * RESOLUTION)[:, ::-1]


def enclosed(points: NDArray[Any], faces: NDArray[Any]) -> float:
    """Volume of a closed surface whose triangles face outwards."""
    a, b, c = (points[faces[:, k]].astype(np.float64) for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("block", [(64, 512, 512), (5, 16, 16), (14, 7, 60)])
def test_surfaces_lie_where_the_objects_are(block: Any, folder: Path, labels: NDArray[np.uint64]) -> None:
    (made,) = write_objects(folder, Objects(block=block, error=0), quiet)
    assert made.count == 3
    for one in (3, 12, 2**63 + 5):
        points, faces = surface_of(folder, one)
        np.testing.assert_allclose([points.min(0), points.max(0)], bounds(labels, one), atol=0.01)
        pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        assert set(np.unique(pairs, axis=0, return_counts=True)[1]) == {2}  # closed, without cracks between blocks
        nm = (labels == one).sum() * np.prod(RESOLUTION)
        assert 0.9 * nm < enclosed(points - points.min(0), faces) < nm  # its edges are cut


def test_blocks_do_not_change_surfaces(folder: Path) -> None:
    write_objects(folder, Objects(error=0), quiet)
    whole = surface_of(folder, 12)
    write_objects(folder, Objects(block=(5, 16, 16), error=0, overwrite=True), quiet)
    blocks = surface_of(folder, 12)
    np.testing.assert_array_equal(whole[0], blocks[0])
    assert {tuple(sorted(face)) for face in whole[1].tolist()} == {tuple(sorted(face)) for face in blocks[1].tolist()}


def test_simplified_surfaces_are_small_and_near(folder: Path, labels: NDArray[np.uint64]) -> None:
    write_objects(folder, Objects(error=0), quiet)
    full = surface_of(folder, 12)
    write_objects(folder, Objects(error=6, overwrite=True), quiet)
    points, faces = surface_of(folder, 12)
    assert len(faces) < len(full[1]) / 4
    np.testing.assert_allclose([points.min(0), points.max(0)], bounds(labels, 12), atol=30)
    assert enclosed(points - full[0].min(0), faces) == pytest.approx(
        enclosed(full[0] - full[0].min(0), full[1]), rel=0.1
    )


@pytest.mark.parametrize("block", [(64, 512, 512), (14, 40, 25)])
def test_skeletons_run_through_the_objects(block: Any, folder: Path, labels: NDArray[np.uint64]) -> None:
    (made,) = write_objects(folder, Objects(("skeletons",), block=block, smallest=10, twig=100), quiet)
    assert made.count == 3
    points, links, radii = skeleton_of(folder, 12)
    assert len(links) == len(points) - 1 == len(radii) - 1  # one tree
    voxels = np.floor(points[:, ::-1] / RESOLUTION - START + 1e-3).astype(int)
    assert set(labels[tuple(voxels.T)].tolist()) == {12}
    assert np.ptp(points[:, 0]) > 0.8 * 60 * 6  # along the bar
    assert 0 < radii.max() <= 0.6 * 4 * 30
    info = json.loads((folder / "skeletons" / "info").read_text())
    assert (info["@type"], info["vertex_attributes"][0]["id"]) == ("neuroglancer_skeletons", "radius")


def test_a_coarser_level_lies_in_the_same_place(folder: Path, labels: NDArray[np.uint64]) -> None:
    write_objects(folder, Objects(level=1, error=0), quiet)
    points, _ = surface_of(folder, 3)
    np.testing.assert_allclose([points.min(0), points.max(0)], bounds(labels, 3), atol=12.01)


def test_the_info_names_both_and_the_volume_still_opens(folder: Path, cli: Cli) -> None:
    before = json.loads((folder / "info").read_text())
    write_objects(folder, Objects(("mesh", "skeletons"), smallest=10), quiet)
    assert json.loads((folder / "info").read_text()) == before | {"mesh": "mesh", "skeletons": "skeletons"}
    assert json.loads((folder / "mesh" / "info").read_text()) == {"@type": "neuroglancer_legacy_mesh"}
    said = cli("info", folder)
    assert said.code == 0, said.err


def test_a_run_that_was_stopped_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_objects(folder, Objects(block=(14, 20, 20), error=0), quiet)
    wanted = surface_of(folder, 12)
    cut, tried = objects._cut, []

    def stops(kind: Any, volume: Any, box: Any, how: Any) -> Any:
        tried.append(box)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return cut(kind, volume, box, how)

    monkeypatch.setattr(objects, "_cut", stops)
    again = Objects(block=(14, 20, 20), error=0, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        write_objects(folder, again, quiet)
    np.testing.assert_array_equal(surface_of(folder, 12)[0], wanted[0])  # the earlier ones are still there
    (made,) = write_objects(folder, again, quiet)
    assert made.count == 3
    assert (
        len(tried) == len(block_boxes((14, 40, 60), (14, 20, 20))) + 1
    )  # only the block that was stopped is cut twice
    np.testing.assert_array_equal(surface_of(folder, 12)[0], wanted[0])
    assert not list(folder.glob(".*"))


def test_what_is_there_is_kept(folder: Path) -> None:
    write_objects(folder, Objects(), quiet)
    with pytest.raises(DistillError, match="names mesh 'mesh' already, expected none, or --overwrite"):
        write_objects(folder, Objects(), quiet)
    (folder / "mesh" / "notes.txt").write_text("mine")
    with pytest.raises(DistillError, match=r"holds notes\.txt, which would be lost"):
        write_objects(folder, Objects(overwrite=True), quiet)


def test_what_is_no_segmentation(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="found no precomputed volume"):
        write_objects(tmp_path, Objects(), quiet)
    with pytest.raises(DistillError, match="--level: found 7, expected one of 0 to 1"):
        write_objects(folder, Objects(level=7), quiet)
    np.save(tmp_path / "grey.npy", np.zeros((3, 20, 20), np.uint8))
    how = Copying(None, 1, False, None, RESOLUTION, None, False, 1)
    copy(str(tmp_path / "grey.npy"), str(tmp_path / "grey.precomputed"), how, quiet)
    with pytest.raises(DistillError, match="found type 'image', expected a segmentation"):
        write_objects(tmp_path / "grey.precomputed", Objects(), quiet)


@pytest.mark.commands("mesh")
def test_the_command_and_a_copy_that_would_lose_its_result(folder: Path, cli: Cli, tmp_path: Path) -> None:
    said = cli("mesh", folder, "--skeletons", "--smallest", "10", "--block", "14,20,60")
    assert said.code == 0, said.err
    assert f"{folder}/mesh: 3 objects" in said.out
    assert f"{folder}/skeletons: 3 objects" in said.out
    assert cli("mesh", folder, "--no-meshes").code == 2
    words = ("--resolution", "30,6,6", "--labels", "--overwrite")
    copied = cli("copy", tmp_path / "labels.npz", folder, *words)
    assert copied.code == 2
    assert "holds mesh, skeletons, which would be lost" in copied.err
