"""Skeletons over a segmentation: which voxel a node lies in, units, volume borders, skeletons of labels."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Nanometres
from distill.evaluation.run_length.evaluate_skeletons import (
    evaluate_run_length,
    ids_at,
    node_voxels,
    open_skeletons,
    skeletonize,
)
from distill.evaluation.run_length.skeletons import Skeleton
from distill.io.volume import open_labels, volume_from_array
from distill.io.writers.cremi import write_cremi

NM: Nanometres = (30.0, 4.6, 5.0)
OFFSET: Nanometres = (600.0, 46.0, -10.0)


def halves() -> np.ndarray:
    """Segment 1 in x < 10, segment 2 beyond; section 5 is empty."""
    labels = np.ones((6, 8, 20), np.uint64)
    labels[:, :, 10:] = 2
    labels[5] = 0
    return labels


@pytest.fixture
def halved(tmp_path: Path) -> str:
    write_cremi(tmp_path / "found.h5", labels=halves(), resolution=NM, offset=OFFSET)
    return str(tmp_path / "found.h5")


def swc(path: Path, places: list[tuple[float, float, float]]) -> Path:
    """A chain of nodes z, y, x."""
    path.parent.mkdir(exist_ok=True)
    rows = [f"{k} 0 {x!r} {y!r} {z!r} 1 {k - 1 if k else -1}" for k, (z, y, x) in enumerate(places)]
    path.write_text("\n".join(rows))
    return path


@given(st.integers(0, 2**32 - 1))
def test_nodes_on_faces_and_centres_of_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nm = tuple(rng.choice([4.0, 4.6, 6.0, 29.9, 50.0, 0.1], 3).tolist())
    offset = tuple((rng.integers(-5, 5000, 3) * np.array(nm)).tolist())
    volume = volume_from_array(np.zeros((90, 90, 90), np.uint8), nm, offset)
    voxels = rng.integers(-20, 110, (50, 3))
    for part in (0.0, 0.5, 0.99):
        found, inside = node_voxels(volume, np.array(offset) + (voxels + part) * np.array(nm))
        np.testing.assert_array_equal(found, voxels)
        np.testing.assert_array_equal(inside, ((voxels >= 0) & (voxels < 90)).all(1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_ids_are_those_at_the_voxels(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2**63, (5, 9, 11), np.uint64)
    voxels = np.stack([rng.integers(0, n, 40) for n in labels.shape], 1)
    with mock.patch("distill.evaluation.aligned.BLOCK_VOXELS", most):
        found = ids_at(volume_from_array(labels, NM), voxels)
    np.testing.assert_array_equal(found, labels[tuple(voxels.T)])


def test_units_name_the_same_places(halved: str, tmp_path: Path) -> None:
    voxels = [(2.0, 3.0, 1.0), (2.0, 3.0, 9.0), (2.0, 3.0, 10.0), (2.0, 3.0, 19.0)]
    nm = [tuple(o + (v + 0.5) * r for o, v, r in zip(OFFSET, place, NM, strict=True)) for place in voxels]
    grid = open_labels(halved)
    found = [
        evaluate_run_length(halved, open_skeletons(swc(tmp_path / "s.swc", places), units, grid))
        for units, places in (("voxel", voxels), ("nm", nm), ("um", [tuple(c / 1000 for c in p) for p in nm]))
    ]
    for one in found:
        assert one.ideal == pytest.approx(18 * 5)
        assert one.erl == pytest.approx((40**2 + 45**2) / 90)
        assert one.skeletons[0].split == pytest.approx(5)
    with pytest.raises(DistillError, match="--skeleton-units: found 'px', expected nm, um, voxel"):
        open_skeletons(tmp_path / "s.swc", "px", grid)


def test_a_skeleton_that_leaves_the_volume(halved: str, tmp_path: Path) -> None:
    """Along x from outside through segment 1 and 2 and out again; along z into background."""
    across = [(1.0, 2.0, float(x)) for x in range(-4, 24)]
    down = [(float(z), 4.0, 3.0) for z in range(8)]
    for name, places in (("across", across), ("down", down)):
        swc(tmp_path / "set" / f"{name}.swc", places)
    skeletons = open_skeletons(tmp_path / "set", "voxel", open_labels(halved))
    found = evaluate_run_length(halved, skeletons, workers=1)
    one, two = found.skeletons
    assert (one.length, one.outside, two.length, two.outside) == pytest.approx((95, 40, 150, 60))
    assert (found.nodes, found.outside_nodes) == (26, 10)
    assert [m.segment for m in found.mergers] == [1]  # both neurons lie in it
    assert (one.correct, one.merged, two.merged, two.omitted) == pytest.approx((45, 50, 120, 30))
    assert found.erl == pytest.approx(45**2 / 245)
    alone = evaluate_run_length(halved, skeletons[1:])
    assert alone.erl == pytest.approx(120**2 / 150)


def test_nothing_inside_names_both_places(halved: str, tmp_path: Path) -> None:
    skeletons = open_skeletons(swc(tmp_path / "a.swc", [(0, 0, 0), (10, 10, 10)]), "um", open_labels(halved))
    says = r"no edge .* inside.*: the nodes lie from \[0\.0, 0\.0, 0\.0\] to \[10000\.0, .* see --skeleton-units"
    with pytest.raises(DistillError, match=says):
        evaluate_run_length(halved, skeletons)
    with pytest.raises(SourceError, match="no such file"):
        open_skeletons(tmp_path / "none", "nm", open_labels(halved))


def test_without_kimimaro(halved: str) -> None:
    with (
        mock.patch.dict(sys.modules, {"kimimaro": None}),
        pytest.raises(DistillError, match=r"--skeletonize: kimimaro is not installed, .*affinity-distill\[skeletons\]"),
    ):
        skeletonize(halved, halved)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_skeletons_of_the_labels(tmp_path: Path) -> None:
    """Tubes along z: their skeletons lie in them, are as long as they are, and see a split."""
    pytest.importorskip("kimimaro")
    labels = np.zeros((60, 30, 60), np.uint64)
    labels[:, 8:22, 8:22], labels[:, 8:22, 36:50] = 5, 2**40
    write_cremi(tmp_path / "truth.h5", labels=labels, resolution=(40, 8, 8), offset=OFFSET)
    part = labels[:, 4:26, 3:].copy()
    place = (OFFSET[0], OFFSET[1] + 32, OFFSET[2] + 24)
    write_cremi(tmp_path / "same.h5", labels=part, resolution=(40, 8, 8), offset=place)
    skeletons = skeletonize(str(tmp_path / "same.h5"), str(tmp_path / "truth.h5"))
    assert [one.name for one in skeletons] == ["5", str(2**40)]
    for one in skeletons:
        assert one.lengths.sum() == pytest.approx(59 * 40, rel=0.1)
    same = evaluate_run_length(str(tmp_path / "same.h5"), skeletons)
    assert (same.normalised, same.outside_nodes, len(same.mergers)) == (1, 0, 0)
    split = part.copy()
    split[30:][split[30:] == 5] = 9
    write_cremi(tmp_path / "split.h5", labels=split, resolution=(40, 8, 8), offset=place)
    found = evaluate_run_length(str(tmp_path / "split.h5"), skeletons)
    assert found.skeletons[0].run == pytest.approx(found.skeletons[0].length / 2, rel=0.06)
    assert found.skeletons[1].run == pytest.approx(found.skeletons[1].length)
    joined = np.where(part > 0, np.uint64(1), np.uint64(0))
    write_cremi(tmp_path / "joined.h5", labels=joined, resolution=(40, 8, 8), offset=place)
    assert evaluate_run_length(str(tmp_path / "joined.h5"), skeletons).erl == 0


def test_a_skeleton_of_another_origin() -> None:
    """A node exactly on the far face lies outside."""
    volume = volume_from_array(np.ones((2, 2, 2), np.uint8), (1, 1, 1))
    one = Skeleton("a", np.array([[0.0, 0, 0], [2.0, 1, 1]]), np.array([[0, 1]]))
    assert node_voxels(volume, one.nodes)[1].tolist() == [True, False]
