"""From files to the error figure: places, the section that is picked, and who is worst."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import viz.errors.survey as recipe
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.evaluation.metrics import score, worst_objects
from distill.evaluation.partners import MERGE, error_codes
from distill.evaluation.worst_objects.connected import Pieces
from distill.io.volume import volume_from_array
from distill.io.writers.cremi import write_cremi
from viz.errors.survey import Extents, errors, hull, survey

RESOLUTION = (40.0, 4.0, 8.0)
SHAPE = (8, 40, 48)
START = (2, 5, 6)  # of the segmentation in the labels
Labels = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
Cli = Callable[..., Any]


def planted() -> tuple[Labels, Labels]:
    """Labels of 8 x 40 x 48 voxels; a segmentation of 5 x 30 x 36 of them with one split and one merge."""
    labels = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((14, 12), int))[:40].astype(np.uint64)
    labels = np.repeat(labels[None], 8, axis=0)
    labels[:, :, 11::12] = 0
    part = labels[2:7, 5:35, 6:42]
    segmentation = np.where(part > 0, part + np.uint64(100), part)
    segmentation[3, 2:9, 8:14] = 500  # in object 2, and beyond it in 0
    segmentation[1:3][part[1:3] == 7] = 106  # object 7, in the segment of 6
    return labels, segmentation


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("errors")
    labels, segmentation = planted()
    raw = np.random.default_rng(0).integers(0, 256, (10, *SHAPE[1:]), dtype=np.uint8)
    place = tuple(s * r for s, r in zip(START, RESOLUTION, strict=True))
    write_cremi(folder / "labels.h5", labels=labels, resolution=RESOLUTION)
    write_cremi(folder / "raw.h5", raw=raw, resolution=RESOLUTION, offset=(-80, 0, 0))
    write_cremi(folder / "found.h5", labels=segmentation, resolution=RESOLUTION, offset=place)
    return {name: str(folder / f"{name}.h5") for name in ("labels", "raw", "found")}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is given to the figure, which is tested with `viz`."""
    kept: list[tuple[Any, ...]] = []
    monkeypatch.setattr(recipe, "errors_figure", lambda *given, **named: kept.append(given))
    return kept


def run(files: dict[str, str], out: Path, **options: Any) -> recipe.Errors:
    return errors(files["found"], files["labels"], files["raw"], out, **options)


def test_planted_errors_are_found_and_placed(
    files: dict[str, str], drawn: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    found = run(files, tmp_path / "a.png", section=5)
    assert (found.section, found.merge, found.both) == (5, 0, 0)
    part = planted()[0][5, 5:35, 6:42]
    assert found.split == np.count_nonzero(part[2:9, 8:14] == 2)
    assert found.counted == np.count_nonzero(part)
    (only,) = found.objects
    assert (only.kind, only.error.id, only.partner) == ("split", 2, 500)
    assert only.box == Box((2, 5, 12), (7, 14, 23))  # object 2 where the segmentation lies, in voxels of the labels
    assert only.piece == Box((5, 7, 14), (6, 14, 20))
    raw, labels, segmentation, _, objects, resolution, _, title = drawn[0]
    assert np.array_equal(labels, part)
    assert np.array_equal(segmentation, planted()[1][3])
    assert np.array_equal(raw, recipe.open_grey(files["raw"]).read()[7, 5:35, 6:42])  # its offset is two sections
    assert (resolution, title, objects) == ((4.0, 8.0), "Section 5", found.objects)


def test_the_section_with_most_wrong_voxels_is_picked(
    files: dict[str, str], drawn: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    found = run(files, tmp_path / "a.png")
    assert found.section == 3  # the first of two with all of object 7 merged
    assert {(o.kind, o.error.id, o.partner) for o in found.objects} == {("merge", 106, 7), ("split", 7, 106)}
    merged = next(o for o in found.objects if o.kind == "merge")
    assert merged.piece == Box((3, 14, 24), (5, 28, 35))
    assert len(run(files, tmp_path / "a.png", worst=1).objects) == 1
    assert run(files, tmp_path / "a.png", worst=0).objects == ()
    perfect = run(files, tmp_path / "a.png", section=2)
    assert (perfect.split, perfect.merge, perfect.both, perfect.objects) == (0, 0, 0, ())


def test_survey_equals_a_look_at_the_whole() -> None:
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 5, (4, 5, 6)), np.ones((1, 4, 4), int)).astype(np.uint64)
    segmentation = np.kron(rng.integers(0, 6, (4, 7, 8)), np.ones((1, 3, 3), int))[:, :20, :24].astype(np.uint64)
    segmentation = segmentation[:, : labels.shape[1]]
    seen: list[tuple[int, int]] = []
    made = [volume_from_array(v, RESOLUTION) for v in (segmentation, labels)]
    found = survey(made[0], Pieces(made[1], {}, 0.0), lambda done, total: seen.append((done, total)))
    assert seen == [(k, 8) for k in range(1, 9)]
    assert found.table.scores() == score(segmentation, labels)
    codes = error_codes(segmentation, labels, found.partners)
    assert found.wrong.tolist() == [np.count_nonzero(section) for section in codes]
    for ids, kept, boxes in ((labels, labels > 0, found.truth), (segmentation, labels > 0, found.segments)):
        assert boxes == {int(i): around((ids == i) & kept) for i in np.unique(ids[kept])}
    for error in worst_objects(found.table, 100).split:
        pieces = {int(v): ((labels == error.id) & (segmentation == v)).sum() for v in np.unique(segmentation)}
        second = sorted(pieces, key=lambda v: (-pieces[v], v))[1]
        assert found.split[error.id] == around((labels == error.id) & (segmentation == second))
    here = {o.error.id: o for o in recipe._worst(found, segmentation[1], labels[1], 100) if o.kind == "merge"}
    for number, one in here.items():
        cost, size = 0.0, int(((segmentation == number) & (labels > 0)).sum())
        for u in np.unique(labels[labels > 0]):
            both = (segmentation == number) & (labels == u)
            wrong = np.count_nonzero(both[1] & (codes[1] & MERGE > 0))
            cost += wrong * np.log2(size / both.sum()) / np.count_nonzero(labels) if wrong else 0
        assert one.bits_here == pytest.approx(cost)
        assert one.bits_here <= one.error.bits + 1e-12
    assert set(here) == set(np.unique(segmentation[1][codes[1] & MERGE > 0]).tolist())


def around(mask: np.ndarray) -> Box:
    places = np.argwhere(mask)
    low, high = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def test_extents_take_any_id() -> None:
    extents = Extents()
    ids = np.array([[0, 2**64 - 2], [5, 0]], np.uint64)
    extents.add(3, ids, np.ones((2, 2), bool))
    extents.add(4, ids[::-1], np.array([[False, True], [True, True]]))
    assert extents.boxes == {
        0: Box((3, 0, 0), (5, 2, 2)),
        5: Box((3, 1, 0), (4, 2, 1)),
        2**64 - 2: Box((3, 0, 1), (5, 2, 2)),
    }
    assert hull(Box((0, 5, 2), (1, 6, 3)), Box((2, 0, 0), (4, 1, 9))) == Box((0, 0, 0), (4, 6, 9))


def test_segmentation_without_an_error(drawn: list[tuple[Any, ...]], tmp_path: Path) -> None:
    labels = np.arange(1, 25, dtype=np.uint64).reshape(2, 3, 4)
    np.save(tmp_path / "same.npy", labels)
    same = str(tmp_path / "same.npy")
    np.save(tmp_path / "raw.npy", np.zeros((2, 3, 4), np.float32))
    found = errors(same, same, str(tmp_path / "raw.npy"), tmp_path / "a.png", resolution=RESOLUTION)
    assert (found.section, found.objects) == (0, ())
    assert drawn[0][0].dtype == np.uint8


@pytest.mark.commands("errors")
def test_command_writes_figure_and_json(cli: Cli, files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "figure.png"
    words = ("errors", files["found"], files["labels"], "--raw", files["raw"], "--out", out)
    said = cli(*words, "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert record["section"] == 3
    assert record["split_pixels"] + record["merge_pixels"] + record["split_and_merge_pixels"] > 0
    assert record["volume"]["voi_sum"] == pytest.approx(record["volume"]["voi_split"] + record["volume"]["voi_merge"])
    first = next(o for o in record["objects"] if o["kind"] == "merge")
    assert (first["id"], first["largest_wrong_piece"]["in"]) == (106, 7)
    assert first["largest_wrong_piece"]["start"] == [3, 14, 24]
    assert out.read_bytes().startswith(b"\x89PNG")
    before = out.read_bytes()
    said = cli(*words, "--section", "5")
    assert (said.code, out.read_bytes()) == (2, before)
    assert "exists already; expected a new name, or --overwrite" in said.err
    said = cli(*words, "--section", "5", "--overwrite")
    assert out.read_bytes() != before
    assert said.out.startswith("section 5: of 990 labelled pixels 42 are split, 0 merged, 0 both")
    assert "1. split: object 2" in said.out
    assert "in segment 500 at 5:6, 7:14, 14:20" in said.out


def test_wrong_use(cli: Cli, files: dict[str, str], tmp_path: Path) -> None:
    words = ("errors", files["found"], files["labels"], "--raw", files["raw"], "--out", tmp_path / "a.png")
    said = cli(*words, "--section", "1")
    assert said.code == 2
    assert "--section: found 1, expected 2 to 6" in said.err
    said = cli(*words[:-1], tmp_path / "a.bmp")
    assert said.code == 2
    assert "expected one of .png, .svg, .pdf" in said.err
    assert not said.out
    short = tmp_path / "short.h5"
    write_cremi(short, raw=np.zeros((1, 40, 48), np.uint8), resolution=RESOLUTION)
    with pytest.raises(DistillError, match=r"covers voxels .* of .*short\.h5"):
        errors(files["found"], files["labels"], str(short), tmp_path / "a.png")
    with pytest.raises(DistillError, match="--worst: found -1"):
        run(files, tmp_path / "a.png", worst=-1)
    assert not list(tmp_path.glob("*.png"))


def test_real_segmentation_files_align(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """A shifted copy of the ground truth is wrong only where it was shifted."""
    path = str(real_data("ac4_quadrant.h5"))
    labels = recipe.open_labels(path)
    box = Box((64, 100, 100), (68, 300, 300))
    part = labels.read(box)
    part[2, 50:] = np.roll(part[2, 50:], 40, axis=1)
    offset = tuple(s * r for s, r in zip(box.start, labels.resolution, strict=True))
    write_cremi(tmp_path / "moved.h5", labels=part, resolution=labels.resolution, offset=offset)
    found = errors(str(tmp_path / "moved.h5"), path, f"{path}:volumes/raw", tmp_path / "a.png")
    assert found.section == 66
    assert found.split > 1000
    assert found.objects
