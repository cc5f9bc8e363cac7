"""Which neurons are rendered, from which pieces, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import viz.meshes.render as recipe
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.io.writers.cremi import write_cremi
from viz.meshes.figure import Neuron
from viz.meshes.render import Foreign, Rendered, SharedVoxels, render
from viz.style import label_colours

RESOLUTION = (30.0, 10.0, 10.0)
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Five bars along x: 1 is cut in two, 2 has 3 and a sliver of 4 merged to it, 5 loses half to nothing."""
    folder = tmp_path_factory.mktemp("render")
    labels = np.zeros((8, 60, 80), np.uint64)
    for k in range(5):
        labels[1:7, 2 + 12 * k : 10 + 12 * k, 4:76] = k + 1
    found = np.where(labels > 0, labels + np.uint64(10), labels)[2:]
    part = labels[2:]
    found[..., 50:][part[..., 50:] == 1] = 21
    found[part == 3] = 12
    found[:1, 38:39, 4:10] = 12
    found[:, :, :40][part[:, :, :40] == 5] = 0
    write_cremi(folder / "labels.h5", labels=labels, resolution=RESOLUTION)
    write_cremi(folder / "found.h5", labels=found, resolution=RESOLUTION, offset=(60, 0, 0))
    return str(folder / "found.h5"), str(folder / "labels.h5")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Neuron]:
    kept: list[Neuron] = []
    monkeypatch.setattr(recipe, "meshes_figure", lambda neurons, out: kept.extend(neurons))
    return kept


def extent(neuron: Neuron, label: str) -> tuple[list[float], list[float]]:
    """Corners in nm of the solid whose legend begins with a text."""
    solid = next(p.solid for p in (neuron.truth, *neuron.prediction) if p.label.startswith(label))
    assert solid is not None
    return solid.surface.vertices.min(axis=0).tolist(), solid.surface.vertices.max(axis=0).tolist()


def test_planted_split(files: tuple[str, str], drawn: list[Neuron], tmp_path: Path) -> None:
    (found,) = render(*files, tmp_path / "a.png", [1])
    assert found.pieces == (SharedVoxels(11, 5 * 8 * 46), SharedVoxels(21, 5 * 8 * 26))
    assert found.foreign == ()
    assert found.box == Box((2, 2, 4), (7, 10, 76))
    (one,) = drawn
    assert one.frame == ((60, 20, 40), (210, 100, 760))
    assert [p.label for p in one.prediction] == ["segment 11: 63.9 %", "segment 21: 36.1 %"]
    assert one.truth.label == "object 1: 2,880 voxels"
    assert [p.colour for p in (one.truth, *one.prediction)] == [
        tuple(c) for c in label_colours([1, 11, 21]).astype(float).tolist()
    ]
    for label, x in (("object 1", (40, 760)), ("segment 11", (40, 500)), ("segment 21", (500, 760))):
        low, high = extent(one, label)
        assert np.allclose(low, (60, 20, x[0]), atol=12)
        assert np.allclose(high, (210, 100, x[1]), atol=12)


def test_planted_merge(files: tuple[str, str], drawn: list[Neuron], tmp_path: Path) -> None:
    (found,) = render(*files, tmp_path / "a.png", [2])
    assert found.pieces == (SharedVoxels(12, 2880),)
    assert found.foreign == (Foreign(3, 12, 2880),)  # the sliver of object 4 is too small to be drawn
    assert found.box == Box((2, 14, 4), (7, 34, 76))
    merged = drawn[0].prediction[-1]
    assert merged.label == "merged: 2,880 voxels of object 3"
    assert merged.hatched
    assert merged.solid is not None
    assert merged.solid.hatched
    assert merged.colour == (213, 94, 0)
    low, high = extent(drawn[0], "merged")
    assert np.allclose(low, (60, 260, 40), atol=12)
    assert np.allclose(high, (210, 340, 760), atol=12)
    assert not any(p.hatched for p in drawn[0].prediction[:-1])


def test_swallowed_neuron_shows_who_swallowed_it(files: tuple[str, str], drawn: list[Neuron], tmp_path: Path) -> None:
    (found,) = render(*files, tmp_path / "a.png", [3])
    assert found.pieces == (SharedVoxels(12, 2880),)
    assert found.foreign == (Foreign(2, 12, 2880),)
    assert drawn[0].title == "Neuron 3"


def test_missing_part_is_grey_and_slivers_are_one(files: tuple[str, str], drawn: list[Neuron], tmp_path: Path) -> None:
    found = render(*files, tmp_path / "a.png", [5, 4])
    assert found[0].pieces == (SharedVoxels(0, 1440), SharedVoxels(15, 1440))
    assert found[1].pieces[1] == SharedVoxels(12, 6)
    nothing, _ = drawn[0].prediction
    assert (nothing.label, nothing.colour) == ("no segment (0): 50.0 %", recipe._NOTHING)
    assert [p.label for p in drawn[1].prediction] == ["segment 14: 99.8 %", "1 more segment: 0.2 %"]
    assert drawn[1].prediction[1].colour == recipe._REST


def test_the_worst_come_by_default(files: tuple[str, str], drawn: list[Neuron], tmp_path: Path) -> None:
    found = render(*files, tmp_path / "a.png")
    # merge of 2 and 3: 2 x 2,880 bits; splits: 5 costs 2,880 x 1 bit, 1 costs 2,880 x 0.94 bits
    assert [one.neuron for one in found] == [2, 5, 1]
    assert len(drawn) == 3


def test_without_errors_the_largest_are_drawn(drawn: list[Neuron], tmp_path: Path) -> None:
    labels = np.zeros((4, 30, 30), np.uint64)
    for k, width in enumerate((4, 12, 8, 6)):
        labels[:, 7 * k : 7 * k + 5, :width] = k + 1
    np.save(tmp_path / "same.npy", labels)
    same = str(tmp_path / "same.npy")
    found = render(same, same, tmp_path / "a.png", resolution=RESOLUTION)
    assert [one.neuron for one in found] == [2, 3, 4]
    assert all(len(one.pieces) == 1 and not one.foreign for one in found)


@pytest.mark.parametrize("step", [(1, 1, 1), (1, 2, 3), (3, 4, 5)])
def test_shares_are_block_means(
    files: tuple[str, str], step: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Any] = []
    whole = recipe._shares

    def keep(found: Any, one: Rendered, shown: list[int], _: Any) -> Any:
        kept.append((one, shown, whole(found, one, shown, step)))
        return whole(found, one, shown, (1, 1, 1))

    monkeypatch.setattr(recipe, "_shares", keep)
    monkeypatch.setattr(recipe, "meshes_figure", lambda *_: None)
    render(*files, tmp_path / "a.png", [1])
    one, shown, shares = kept[0]
    labels = recipe.open_labels(files[1]).read(one.box)
    segments = recipe.open_labels(files[0]).read(one.box.relative_to((2, 0, 0)))
    for share, mask in zip(shares, [labels == 1, *((labels == 1) & (segments == s) for s in shown)], strict=False):
        assert share.shape == tuple(-(-n // s) for n, s in zip(one.box.shape, step, strict=True))
        assert share.sum() * np.prod(step) == pytest.approx(mask.sum(), rel=1e-5)
        corner = mask[: step[0], : step[1], : step[2]]
        assert share[0, 0, 0] == pytest.approx(corner.sum() / np.prod(step), abs=1e-6)
    assert not shares[-1].any()
    assert not shares[-2].any()


def test_cells_are_about_cubes_and_few() -> None:
    wide = Box((0, 0, 0), (16, 512, 512))
    assert recipe._step(wide, (30, 6, 6)) == (1, 2, 2)
    assert recipe._step(Box((0, 0, 0), (100, 100, 100)), (8, 8, 8)) == (1, 1, 1)
    assert recipe._step(Box((0, 0, 0), (1000, 5120, 5120)), (30, 6, 6)) == (4, 20, 20)


@pytest.mark.commands("render")
def test_command_writes_figure_and_json(cli: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "neurons.png"
    said = cli("render", *files, "--neuron", "1,2", "--out", out, "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert [one["neuron"] for one in record] == [1, 2]
    assert record[1]["foreign"] == [{"object": 3, "segment": 12, "voxels": 2880}]
    assert out.read_bytes().startswith(b"\x89PNG")
    said = cli("render", *files, "--out", out, "--overwrite")
    assert said.out.splitlines()[0] == ("neuron 2: in 1 segment: 12 (100.0 %); merged to it: 3 (2,880 voxels)")


def test_wrong_use(cli: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    said = cli("render", *files, "--neuron", "1,b", "--out", tmp_path / "a.png")
    assert (said.code, said.out) == (2, "")
    assert "--neuron: found '1,b'" in said.err
    with pytest.raises(DistillError, match="--neuron: found 9, expected an id of"):
        render(*files, tmp_path / "a.png", [1, 9])
    with pytest.raises(DistillError, match=r"expected one of \.png"):
        render(*files, tmp_path / "a.txt", [1])
