"""Where a segmentation lies inside its ground truth, and what that costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple
from distill.evaluation.contingency import PRESETS, border_mask
from distill.evaluation.metrics import score
from distill.evaluation.segmentation import evaluate
from distill.io.truth import Known
from distill.io.volume import open_labels
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr

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
    for start in ((6, 0, 0), (-2, 0, 0), (0, 20, 0), (0, 0, 24)):
        with pytest.raises(ShapeError, match=r"part\.h5.*covers voxels .* of .*truth\.h5.* which has \(6, 20, 24\)"):
            evaluate(written(tmp_path / "part.h5", part, start), whole, "skimage")
    write_cremi(tmp_path / "part.h5", labels=part, resolution=RESOLUTION, offset=(100, 2, 0))
    with pytest.raises(ShapeError, match=r"lies .* voxels .* into .*expected whole voxels"):
        evaluate(str(tmp_path / "part.h5"), whole, "skimage")
    with pytest.raises(DistillError, match="preset: found 'best', expected one of"):
        evaluate(whole, whole, "best")


def test_resolution_for_files_without(tmp_path: Path) -> None:
    labels = truth()
    np.save(tmp_path / "a.npy", labels)
    with pytest.raises(DistillError, match="no resolution found"):
        evaluate(str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "cremi")
    assert evaluate(str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "cremi", RESOLUTION).scores.voi_sum == 0


def test_shares_no_voxel_or_no_ground_truth(tmp_path: Path) -> None:
    labels = truth()
    whole = written(tmp_path / "truth.h5", labels)
    with pytest.raises(ShapeError, match=r"which has \(6, 20, 24\); they share no voxel, expected their offsets"):
        evaluate(written(tmp_path / "part.h5", labels[:2], (60, 0, 0)), whole, "skimage")
    nothing = written(tmp_path / "nothing.h5", np.zeros_like(labels))
    says = (
        r"nothing\.h5:volumes/labels/neuron_ids: found no ground truth other than 0 among the 2,880 voxels that .*truth"
    )
    with pytest.raises(DistillError, match=says):
        evaluate(whole, nothing, "skimage")
    checkered = written(tmp_path / "checkered.h5", (np.indices(labels.shape).sum(0) % 2 + 1).astype(np.uint64))
    with pytest.raises(DistillError, match="no ground truth other than 0 away from borders among the 2,880"):
        evaluate(whole, checkered, "cremi")


def test_ids_of_the_upper_half(tmp_path: Path) -> None:
    """Ids from 2**63 on stay what they are; the four highest are marks of "no label" and no ground truth."""
    labels = truth() + np.uint64(2**63)
    for row in range(4):
        labels[0, row] = np.uint64(2**64 - 1 - row)
    found = labels.copy()
    found[found == labels[3, 3, 3]] = 2**64 - 5
    merged = found.copy()
    merged[merged == labels[0, 19, 19]] = 2**64 - 5
    whole = written(tmp_path / "truth.h5", labels)
    clean = evaluate(written(tmp_path / "found.h5", found), whole, "skimage")
    assert clean.scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert clean.scores.voxels == labels.size - 4 * 24
    wrong = evaluate(written(tmp_path / "merged.h5", merged), whole, "skimage")
    assert [one.id for one in wrong.worst.merged] == [2**64 - 5]
    assert wrong.scores == score(merged, np.where(labels > 2**64 - 5, 0, labels), "skimage")


def stored(path: Path, labels: np.ndarray, chunks: Triple, offset: Triple = (0, 0, 0)) -> str:
    array = create_zarr(
        path,
        "ids",
        shape=labels.shape,
        dtype=np.uint64,
        resolution=RESOLUTION,
        offset=tuple(o * r for o, r in zip(offset, RESOLUTION, strict=True)),
        chunks=chunks,
    )
    array.write(Box.of_shape(labels.shape), labels)
    return f"{path}:ids"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 7), st.integers(5, 40), st.integers(5, 40)),
    st.tuples(st.integers(1, 7), st.integers(5, 40), st.integers(5, 40)),
    st.sampled_from(["skimage", "cremi"]),
    st.integers(1, 20_000),
)
def test_by_chunks_is_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    chunks: Triple,
    others: Triple,
    preset: str,
    most: int,
) -> None:
    """Deep chunks, chunks of another shape in the ground truth, blocks of any size: the same table as of the whole."""
    monkeypatch.setattr("distill.evaluation.aligned.BLOCK_VOXELS", most)
    folder, rng = tmp_path_factory.mktemp("chunks"), np.random.default_rng(seed)
    labels = rng.integers(1, 5, (7, 3, 3)).repeat(16, 1).repeat(12, 2).astype(np.uint64)
    part = labels[1:6, 4:40, 3:33]
    found = np.where(rng.random(part.shape) < 0.7, part, rng.integers(0, 6, part.shape)).astype(np.uint64)
    whole = stored(folder / "truth.zarr", labels, others)
    got = evaluate(stored(folder / "found.zarr", found, chunks, (1, 4, 3)), whole, preset)
    assert got.box == Box((1, 4, 3), (6, 40, 33))
    assert got.scores == score(found, part, preset, resolution=RESOLUTION)


def test_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.evaluation.aligned.BLOCK_VOXELS", 1000)
    labels = truth()
    found = np.where(np.random.default_rng(3).random(labels.shape) < 0.8, labels, labels + np.uint64(1))
    words = (stored(tmp_path / "found.zarr", found, (3, 10, 12)), stored(tmp_path / "truth.zarr", labels, (6, 20, 24)))
    seen: list[tuple[int, int]] = []
    two = evaluate(*words, "cremi", workers=2, on_block=lambda a, b: seen.append((a, b)))
    one = evaluate(*words, "cremi")
    assert (two.scores, two.worst) == (one.scores, one.worst)
    assert seen == [(k, 4) for k in range(1, 5)]


@pytest.mark.parametrize("preset", ["agq", "cremi"])
def test_block_scores_are_those_of_the_blocks_alone(tmp_path: Path, preset: str) -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(1, 4, (5, 2, 2)).repeat(24, 1).repeat(16, 2).astype(np.uint64)
    labels[:2, :20, :16] = 0  # the first block has no ground truth
    found = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, 5, labels.shape)).astype(np.uint64)
    whole = written(tmp_path / "truth.h5", labels)
    got = evaluate(written(tmp_path / "found.h5", found), whole, preset, blocks=(2, 20, 16)).blocks
    assert got is not None
    counted = labels
    if preset == "cremi":  # borders are those of the sections, also next to a cut
        counted = np.where(border_mask(labels, RESOLUTION), 0, labels).astype(np.uint64)
    expected = []
    for z, y, x in ((z, y, x) for z in (0, 2, 3) for y in (0, 20, 28) for x in (0, 16)):
        cut = (slice(z, z + 2), slice(y, y + 20), slice(x, x + 16))
        if counted[cut].any():
            expected.append(score(found[cut], counted[cut]))
    assert (len(got.scores), got.empty) == (len(expected), 18 - len(expected))
    assert got.empty >= 1
    for name in ("voi_split", "voi_merge", "voi_sum"):
        values, found_values = [getattr(one, name) for one in expected], got.statistic(name)
        assert found_values is not None
        assert found_values.mean == pytest.approx(statistics.fmean(values))
        assert found_values.std == pytest.approx(statistics.stdev(values))
    numbers = got.to_dict()
    assert (numbers["preset"], numbers["n"], numbers["size_zyx"]) == (preset, len(expected), [2, 20, 16])
    assert (numbers["cremi_score"] is None) == (preset != "cremi")


def test_one_block_has_no_deviation_and_must_have_an_extent(tmp_path: Path) -> None:
    whole = written(tmp_path / "truth.h5", truth())
    got = evaluate(whole, whole, "skimage", blocks=(99, 99, 99)).blocks
    assert got is not None
    assert got.size == (6, 20, 24)
    assert got.to_dict()["voi_sum"] == {"mean": 0.0, "std": None}
    with pytest.raises(DistillError, match=r"--blocks: found \(0, 2, 2\)"):
        evaluate(whole, whole, "skimage", blocks=(0, 2, 2))


def test_a_genuine_cremi_file(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Its own labels, moved and merged by a known amount, against an independent count."""
    file = f"{real_data('cremi_sample_B_sections_46_50.hdf')}:volumes/labels/neuron_ids"
    volume = open_labels(file)
    labels = volume.read()
    assert labels.shape == (5, 500, 500)
    perfect = evaluate(file, file, "cremi")
    assert perfect.scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert perfect.scores.cremi_score == pytest.approx(0, abs=1e-6)
    ids, counts = np.unique(labels, return_counts=True)
    first, second = ids[np.argsort(-counts)[:2]]
    merged = np.where(labels == second, first, labels)
    write_cremi(tmp_path / "merged.h5", labels=merged, resolution=volume.resolution, offset=volume.offset)
    got = evaluate(str(tmp_path / "merged.h5"), file, "skimage", worst=1)
    a, b = sorted(int(counts[ids == one][0]) for one in (first, second))
    entropy = (a * np.log2((a + b) / a) + b * np.log2((a + b) / b)) / labels.size
    assert got.scores.voi_merge == pytest.approx(entropy, abs=1e-9)
    assert got.scores.voi_split == pytest.approx(0, abs=1e-12)
    assert (got.worst.merged[0].id, got.worst.merged[0].pieces) == (int(first), 2)
    z, y, x = volume.offset
    moved = labels[:, :, :-40]
    write_cremi(
        tmp_path / "moved.h5", labels=moved, resolution=volume.resolution, offset=(z, y, x + 40 * volume.resolution[2])
    )
    shifted = evaluate(str(tmp_path / "moved.h5"), file, "cremi")
    assert shifted.box == Box((0, 0, 40), (5, 500, 500))
    assert shifted.scores == score(moved, labels[:, :, 40:], "cremi", resolution=volume.resolution)
    assert shifted.scores.cremi_score is not None
    assert shifted.scores.cremi_score > 0.1


def test_what_is_not_known_is_not_counted(tmp_path: Path) -> None:
    """One label and what a mask leaves out: nothing that a segmentation says there changes a number."""
    labels, rng = truth(), np.random.default_rng(7)
    stored = labels.copy()
    ignored = rng.random(labels.shape) < 0.2
    stored[ignored] = 77
    mask = (rng.random((5, 20, 24)) < 0.7).astype(np.uint8)  # reaches one section less far than the labels
    whole = written(tmp_path / "truth.h5", stored)
    write_cremi(tmp_path / "mask.h5", raw=mask, resolution=RESOLUTION, offset=(100, 0, 0))
    known = Known(ignore=77, mask=f"{tmp_path}/mask.h5:volumes/raw")
    counts = ~ignored
    counts[:5] &= mask > 0
    counts[5] = False
    found = rng.integers(1, 5, labels.shape).astype(np.uint64)
    wanted = score(found[counts], labels[counts])
    for value in (1, 9):
        other = np.where(counts, found, np.uint64(value))
        seen = evaluate(written(tmp_path / f"found{value}.h5", other), whole, "skimage", known=known)
        assert seen.scores.to_dict() == wanted.to_dict()
        assert {one.id for one in seen.worst.split} <= set(labels[counts].tolist())
    write_cremi(tmp_path / "mask.h5", raw=mask * 0, resolution=RESOLUTION, offset=(100, 0, 0))
    with pytest.raises(DistillError, match="found no ground truth other than 0 where --ignore and --mask leave some"):
        evaluate(str(tmp_path / "found1.h5"), whole, "skimage", known=known)
