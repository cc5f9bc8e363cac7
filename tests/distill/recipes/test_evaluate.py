"""Where a segmentation lies inside its ground truth, and what that costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.errors import DistillError, ShapeError
from distill.geometry import Box, Triple
from distill.metrics import PRESETS, score
from distill.recipes.evaluate import evaluate
from distill.store import write_cremi

RESOLUTION = (40.0, 4.0, 8.0)


def truth(shape: Triple = (6, 20, 24)) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    labels = np.random.default_rng(1).integers(1, 9, (shape[0], 4, 4)).astype(np.uint64)
    return labels.repeat(shape[1] // 4, 1).repeat(shape[2] // 4, 2)


def written(path: Path, labels: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], offset: Triple = (0, 0, 0)) -> str:
    """The labels at an offset in voxels from (100, 0, 0) nm."""
    place = tuple(o * r for o, r in zip(offset, RESOLUTION, strict=True))
    write_cremi(path, labels=labels, resolution=RESOLUTION, offset=(100 + place[0], place[1], place[2]))
    return str(path)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("start", [(0, 0, 0), (2, 12, 16), (4, 40, 48)])
def test_aligned_by_offset(tmp_path: Path, preset: str, start: Triple) -> None:
    labels = truth((6, 80, 96))  # objects wide enough to have an inside for `cremi`
    box = Box(start, (start[0] + 2, start[1] + 40, start[2] + 48))
    part = labels[box.slices]
    whole, right = written(tmp_path / "truth.h5", labels), written(tmp_path / "right.h5", part + np.uint64(90), start)
    found = evaluate(right, whole, preset)
    assert found.box == box
    assert found.scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert found.scores.arand == pytest.approx(0, abs=1e-12)
    shuffled = np.random.default_rng(2).integers(1, 4, part.shape).astype(np.uint64)
    found = evaluate(written(tmp_path / "wrong.h5", shuffled, start), whole, preset)
    expected = [score(shuffled[z : z + 1], part[z : z + 1], preset, resolution=RESOLUTION) for z in range(2)]
    assert found.scores.voxels == sum(one.voxels for one in expected)
    assert found.scores.preset == preset
    assert found.scores.voi_sum == pytest.approx(score(shuffled, part, preset, resolution=RESOLUTION).voi_sum)
    assert found.scores.voi_sum > 1


def test_worst_objects_carry_the_ground_truth_id(tmp_path: Path) -> None:
    labels = truth()
    split = labels.copy()
    split[3:][split[3:] == 5] = 77
    merged = labels.copy()
    merged[merged == 2] = 3
    whole = written(tmp_path / "truth.h5", labels)
    found = evaluate(written(tmp_path / "split.h5", split), whole, "skimage", worst=2)
    assert found.worst.split[0].id == 5
    assert found.worst.split[0].pieces == 2
    assert len(found.worst.split) == 1  # the others cost nothing
    found = evaluate(written(tmp_path / "merged.h5", merged), whole, "skimage")
    assert found.worst.merged[0].id == 3
    assert found.scores.voi_split == pytest.approx(0, abs=1e-12)
    assert found.scores.voi_merge > 0


def test_does_not_fit(tmp_path: Path) -> None:
    labels = truth()
    whole = written(tmp_path / "truth.h5", labels)
    part = labels[:2, :10, :12]
    for start in ((5, 0, 0), (-1, 0, 0), (0, 11, 0), (0, 0, 13)):
        with pytest.raises(ShapeError, match=r"part\.h5.*covers voxels .* of .*truth\.h5.* which has \(6, 20, 24\)"):
            evaluate(written(tmp_path / "part.h5", part, start), whole, "skimage")
    write_cremi(tmp_path / "part.h5", labels=part, resolution=RESOLUTION, offset=(100, 2, 0))
    with pytest.raises(ShapeError, match=r"lies \[0\.0, 0\.5, 0\.0\] voxels into .*expected whole voxels"):
        evaluate(str(tmp_path / "part.h5"), whole, "skimage")
    write_cremi(tmp_path / "part.h5", labels=part, resolution=(40, 4, 4), offset=(100, 0, 0))
    with pytest.raises(
        ShapeError, match=r"voxels of \(40\.0, 4\.0, 4\.0\) nm, expected those of .*\(40\.0, 4\.0, 8\.0\)"
    ):
        evaluate(str(tmp_path / "part.h5"), whole, "skimage")
    with pytest.raises(DistillError, match="preset: found 'best', expected one of"):
        evaluate(whole, whole, "best")


def test_resolution_for_files_without(tmp_path: Path) -> None:
    labels = truth()
    np.save(tmp_path / "a.npy", labels)
    with pytest.raises(DistillError, match="no resolution found"):
        evaluate(str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "cremi")
    assert evaluate(str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "cremi", RESOLUTION).scores.voi_sum == 0
