"""What proofreaders are given is read back by other code, and is the segmentation at every threshold."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from blocks_of_labels import EXACT, Setting
from numpy.typing import NDArray
from typer.testing import CliRunner

import distill.inference.review.places as places_module
from distill.cli import app
from distill.core.errors import DistillError, SourceError
from distill.inference.review.review import ReviewOptions, review
from distill.inference.review.tables import DoubtfulContact
from distill.io.volume import volume_from_array
from distill.io.writers.copy import Copying, copy
from viz.viewer.queue import Served, queue_state

Make = Callable[[tuple[int, int, int]], Setting]
Pair = tuple[int, int]
WIDE = ReviewOptions(within=0.25, thresholds=(0.2, 0.35, 0.6, 0.9))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def array_of(path: Path) -> NDArray[Any]:
    return np.asarray(zarr.open_array(path, mode="r")[:])


def brute_contacts(ids: NDArray[Any], affinity: NDArray[np.uint8]) -> dict[Pair, list[Any]]:
    """Every pair of touching ids: affinities and later voxels of its edges."""
    found: dict[Pair, list[Any]] = {}
    for axis in range(3):
        for place in np.ndindex(*ids.shape):
            if place[axis] == 0:
                continue
            before = tuple(at - (k == axis) for k, at in enumerate(place))
            a, b = int(ids[before]), int(ids[place])
            if a and b and a != b:
                found.setdefault((min(a, b), max(a, b)), []).append((affinity[(axis, *place)] / 255, place))
    return found


def brute_merges(contacts: dict[Pair, list[Any]], sizes: dict[int, int], lowest: float) -> list[tuple[float, int, int]]:
    """Mean, edges and smaller side of every merge above a mean, strongest first."""
    sums = {pair: [sum(a for a, _ in edges), len(edges)] for pair, edges in contacts.items()}
    held, merges = dict(sizes), []
    while sums:
        pair = max(sums, key=lambda one: (sums[one][0] / sums[one][1], -one[0], -one[1]))
        total, count = sums.pop(pair)
        if total / count <= lowest:
            break
        a, b = pair
        merges.append((total / count, count, min(held[a], held[b])))
        held[a] += held.pop(b)
        for other in [one for one in sums if b in one]:
            moved, rest = sums.pop(other), (set(other) - {b}).pop()
            kept = sums.setdefault((min(a, rest), max(a, rest)), [0.0, 0])
            kept[0], kept[1] = kept[0] + moved[0], kept[1] + moved[1]
    return merges


@pytest.fixture
def stored(make: Make, tmp_path: Path) -> tuple[Setting, Path]:
    """A segmentation by the contacts of supervoxels of 2 x 3 x 3 blocks."""
    setting = make((5, 40, 44))
    setting.known.method = "flood"
    out = tmp_path / "out.zarr"
    setting.run(out, replace(EXACT, merge=0.35), block=(3, 20, 22))
    return setting, out


@pytest.mark.parametrize("method", ["flood", "query"])
def test_agglomerate_files_are_the_segmentation_at_their_thresholds(make: Make, tmp_path: Path, method: str) -> None:
    setting, out, to = make((5, 40, 44)), tmp_path / "out.zarr", tmp_path / "review"
    setting.known.method = method
    setting.run(out, replace(EXACT, merge=0.35), block=(3, 20, 22))
    found = review(out, to, WIDE)
    layer = array_of(to / "webknossos" / "supervoxels" / "1")
    assert layer.dtype == np.uint32
    assert set(np.unique(layer)) == set(range(1, found.supervoxels + 1))
    assert found.thresholds == (0.2, 0.35, 0.6, 0.9)
    for threshold in found.thresholds:
        setting.run(out, replace(EXACT, merge=threshold), block=(3, 20, 22), resume=True)
        wanted = array_of(out / "segmentation")
        with h5py.File(to / "webknossos" / "supervoxels" / "agglomerates" / f"merge_{threshold:g}.hdf5") as file:
            named = {name: file[name][:] for name in file}
        np.testing.assert_array_equal(named["segment_to_agglomerate"][layer], wanted)
        assert named["segment_to_agglomerate"][0] == 0
        check_format(named, layer)


def check_format(named: dict[str, NDArray[Any]], layer: NDArray[Any]) -> None:
    """The invariants of the published layout."""
    segments, offsets = named["agglomerate_to_segments"], named["agglomerate_to_segments_offsets"].astype(int)
    edges, edge_offsets = named["agglomerate_to_edges"].astype(int), named["agglomerate_to_edges_offsets"].astype(int)
    count = int(named["segment_to_agglomerate"].max())
    assert len(offsets) == len(edge_offsets) == count + 2
    assert offsets[0] == offsets[1] == edge_offsets[0] == edge_offsets[1] == 0
    assert offsets[-1] == len(segments) == layer.max()
    assert edge_offsets[-1] == len(edges) == len(named["agglomerate_to_affinities"])
    assert named["agglomerate_to_affinities"].dtype == np.float32
    x, y, z = named["agglomerate_to_positions"].astype(int).T
    np.testing.assert_array_equal(layer[z, y, x], segments)
    for number in range(1, count + 1):
        own = segments[offsets[number] : offsets[number + 1]]
        assert (named["segment_to_agglomerate"][own] == number).all()
        assert (np.diff(own.astype(int)) > 0).all()
        links = edges[edge_offsets[number] : edge_offsets[number + 1]]
        assert (links[:, 0] < links[:, 1]).all()
        assert [tuple(one) for one in links] == sorted(map(tuple, links))
        reached, before = {0}, 0
        while len(reached) != before:
            before = len(reached)
            reached |= {b for a, b in links.tolist() if a in reached} | {a for a, b in links.tolist() if b in reached}
        assert len(reached) == len(own), "a segment is one graph"


def test_edges_and_supervoxels_are_those_of_the_voxels(stored: tuple[Setting, Path], tmp_path: Path) -> None:
    setting, out = stored
    review(out, tmp_path / "review", WIDE)
    layer = array_of(tmp_path / "review" / "webknossos" / "supervoxels" / "1")
    contacts = brute_contacts(layer, setting.known.affinity)
    rows = rows_of(tmp_path / "review" / "edges.csv")
    listed = {(int(row["supervoxel_a"]), int(row["supervoxel_b"])): row for row in rows}
    assert len(listed) == len(rows)
    assert listed.keys() == contacts.keys()
    for pair, edges in contacts.items():
        assert float(listed[pair]["score"]) == pytest.approx(np.mean([a for a, _ in edges]), abs=1e-6)
        assert int(listed[pair]["contact_edges"]) == len(edges)
    ids, segments = array_of(out / "supervoxels"), array_of(out / "segmentation")
    for row in rows_of(tmp_path / "review" / "supervoxels.csv"):
        own = layer == int(row["supervoxel"])
        assert own.sum() == int(row["voxels"])
        assert set(ids[own]) == {int(row["store_id"])}
        assert set(segments[own]) == {int(row["segment"])}
        assert own[int(row["z"]), int(row["y"]), int(row["x"])]


def test_queue_is_the_merges_near_the_threshold(
    stored: tuple[Setting, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the agglomeration in dictionaries; places lie at the contact, in boxes of any size."""
    setting, out = stored
    monkeypatch.setattr(places_module, "_STEP", (2, 16, 16))
    found = review(out, tmp_path / "review", WIDE)
    rows = rows_of(tmp_path / "review" / "queue.csv")
    layer = array_of(tmp_path / "review" / "webknossos" / "supervoxels" / "1").astype(int)
    contacts = brute_contacts(layer, setting.known.affinity)
    sizes = {int(one): int((layer == one).sum()) for one in np.unique(layer)}
    wanted = [one for one in brute_merges(contacts, sizes, 0.1) if abs(one[0] - 0.35) < 0.25]
    assert len(wanted) == len(rows) == found.doubtful >= 20
    listed = [(float(r["score"]), int(r["contact_edges"]), int(r["smaller_voxels"])) for r in rows]
    np.testing.assert_allclose(sorted(listed), sorted(wanted), atol=1e-6)
    weights = [float(row["weight"]) for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    segments = array_of(out / "segmentation")
    for row in rows:
        score, smaller, a, b = float(row["score"]), int(row["smaller_voxels"]), row["segment_a"], row["segment_b"]
        assert float(row["weight"]) == pytest.approx(smaller * (1 - abs(score - 0.35) / 0.25), rel=1e-6)
        assert (row["merged"] == "yes") == (score > 0.35) == (a == b)
        place = tuple(int(row[axis]) for axis in "zyx")
        pair = int(row["supervoxel_a"]), int(row["supervoxel_b"])
        assert place in [at for _, at in contacts[pair]]
        for supervoxel, segment in zip(pair, (a, b), strict=True):
            assert set(segments[layer == supervoxel]) == {int(segment)}
        nm = [(at + 0.5) * size for at, size in zip(place, (30, 6, 6), strict=True)]
        assert [float(row[f"{axis}_nm"]) for axis in "zyx"] == nm


def test_the_queue_is_cut_to_the_most_important(stored: tuple[Setting, Path], tmp_path: Path) -> None:
    whole = review(stored[1], tmp_path / "whole", WIDE)
    cut = review(stored[1], tmp_path / "cut", replace(WIDE, most=7))
    assert cut.queue == whole.queue[:7]
    assert cut.doubtful == whole.doubtful
    none = review(stored[1], tmp_path / "none", ReviewOptions(within=1e-9))
    assert none.queue == []
    assert len(rows_of(tmp_path / "none" / "queue.csv")) == 0


def test_an_export_replaces_nothing_but_an_export(stored: tuple[Setting, Path], tmp_path: Path) -> None:
    _, out = stored
    review(out, tmp_path / "review")
    with pytest.raises(SourceError, match=r"review: exists already; expected a new path, or --overwrite"):
        review(out, tmp_path / "review")
    review(out, tmp_path / "review", ReviewOptions(overwrite=True))
    with pytest.raises(SourceError, match=r"out\.zarr: found something else than an export of distill review"):
        review(out, out, ReviewOptions(overwrite=True))
    assert (out / "segmentation").is_dir()


def test_stores_and_options_without_contacts_are_refused(make: Make, tmp_path: Path) -> None:
    setting, out = make((3, 20, 22)), tmp_path / "out.zarr"
    with pytest.raises(SourceError, match="found no supervoxels, expected a store of distill stream or distill segm"):
        review(tmp_path / "none.zarr", tmp_path / "review")
    setting.known.method = "waterz"
    setting.run(out, replace(EXACT, merge=0.5))
    with pytest.raises(SourceError, match=r"by waterz, which keeps no supervoxels.* expected one by .*--method flood"):
        review(out, tmp_path / "review")
    setting.known.method = "query"
    setting.run(tmp_path / "query.zarr", replace(EXACT, merge=None))
    with pytest.raises(
        SourceError, match=r"found no merge threshold, expected .*distill segment \.\.\. --resume --mer"
    ):
        review(tmp_path / "query.zarr", tmp_path / "review")
    for options, words in ((ReviewOptions(within=0), "--within: found 0"), (ReviewOptions(most=0), "--most: found 0")):
        with pytest.raises(DistillError, match=words):
            review(out, tmp_path / "review", options)
    assert not (tmp_path / "review").exists()


def test_the_data_set_states_size_and_files(stored: tuple[Setting, Path], tmp_path: Path) -> None:
    found = review(stored[1], tmp_path / "review")
    folder = tmp_path / "review" / "webknossos"
    document = json.loads((folder / "datasource-properties.json").read_text())
    (layer,) = document["dataLayers"]
    assert document["scale"] == {"factor": [6, 6, 30], "unit": "nanometer"}
    box = layer["boundingBox"]
    assert (box["depth"], box["height"], box["width"]) == found.shape == (5, 40, 44)
    assert layer["largestSegmentId"] == found.supervoxels
    array = zarr.open_array(folder / layer["mags"][0]["path"], mode="r")
    order = layer["mags"][0]["axisOrder"]
    assert [array.metadata.dimension_names[order[axis]] for axis in "xyz"] == list("xyz")  # type: ignore[union-attr, index]
    files = layer["attachments"]["agglomerates"]
    assert [one["name"] for one in files] == ["merge_0.25", "merge_0.3", "merge_0.35", "merge_0.4", "merge_0.45"]
    assert all((folder / one["path"]).is_file() for one in files)


def test_neuroglancer_takes_the_state(stored: tuple[Setting, Path], tmp_path: Path) -> None:
    """The command's file, by Neuroglancer's own classes; every address is a file of the folder that is served."""
    neuroglancer = pytest.importorskip("neuroglancer", reason="the extra `view` is not installed")
    setting, out = stored
    grey = tmp_path / "grey.precomputed"
    copy(str(setting.source), str(grey), Copying(labels=False), lambda done, total: None)
    words = ["review", str(out), "--out", str(tmp_path / "review"), "--grey", str(grey), "--within", "0.25"]
    ran = CliRunner().invoke(app, [*words, "--at", "0.3,0.5", "--url", "http://host:9000/"])
    assert ran.exit_code == 0, ran.output
    assert "agglomerate files merged above 0.3, 0.35, 0.5" in ran.output
    document = json.loads((tmp_path / "review" / "queue.json").read_text())
    state = neuroglancer.ViewerState(document)
    assert [layer.name for layer in state.layers] == ["image", "segmentation", "queue"]
    assert list(state.dimensions.names) == ["x", "y", "z"]
    np.testing.assert_allclose(state.dimensions.scales, [6e-9, 6e-9, 30e-9])
    image, segmentation = (state.layers[name].source[0] for name in ("image", "segmentation"))
    for source, prefix, file in ((image, "precomputed://", "info"), (segmentation, "zarr://", "zarr.json")):
        address = source.url.removeprefix(f"{prefix}http://host:9000/")
        assert (tmp_path / address / file).is_file()
    np.testing.assert_allclose(segmentation.transform.output_dimensions.scales, [30e-9, 6e-9, 6e-9])
    rows = rows_of(tmp_path / "review" / "queue.csv")
    points = state.layers["queue"].annotations
    assert len(points) == len(rows) > 0
    for point, row in zip(points, rows, strict=True):
        nm = np.array([float(row[f"{axis}_nm"]) for axis in "xyz"])
        np.testing.assert_allclose(point.point * [6, 6, 30], nm, atol=0.1)
        assert [int(one) for one in point.segments[0]] == list(
            dict.fromkeys([int(row["segment_a"]), int(row["segment_b"])])
        )
    assert set(state.layers["segmentation"].segments) == {int(rows[0]["segment_a"]), int(rows[0]["segment_b"])}
    np.testing.assert_allclose(state.position, points[0].point)


def test_volumes_are_addresses_of_the_served_folder(tmp_path: Path) -> None:
    served = Served(tmp_path / "data", "http://host/")
    volume = volume_from_array(np.zeros((2, 8, 8), np.uint8), (30, 6, 6), (60, 0, 12), "array")
    copied = tmp_path / "data" / "deep" / "grey.zarr"
    with h5py.File(tmp_path / "grey.h5", "w") as file:
        file["raw"] = volume.read()
    for name in ("grey.zarr", "grey.n5"):
        to = copied.with_name(name)
        copy(f"{tmp_path / 'grey.h5'}:raw", str(to), Copying(resolution=(30, 6, 6)), lambda done, total: None)
    assert served.source(str(copied), (30, 6, 6), (0, 0, 0)) == "zarr://http://host/deep/grey.zarr"
    assert served.source("gs://bucket/x", (30, 6, 6), (0, 0, 0)) == "gs://bucket/x"
    array = next(path.parent for path in copied.rglob("zarr.json") if "array" in path.read_text())
    found = served.source(str(array), (30, 6, 6), (60, 0, 12))
    assert found["url"] == f"zarr://http://host/deep/grey.zarr/{array.relative_to(copied).as_posix()}"
    assert found["transform"]["matrix"] == [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 2]]
    for path, words in (
        (tmp_path / "grey.h5", "lies outside .*which --url serves; expected a path inside"),
        (tmp_path / "data" / "deep", "found no folder of precomputed, Zarr or N5 format, expected one: distill copy"),
    ):
        with pytest.raises(SourceError, match=words):
            served.source(str(path), (30, 6, 6), (0, 0, 0))


def test_a_state_without_doubts_opens(tmp_path: Path) -> None:
    neuroglancer = pytest.importorskip("neuroglancer", reason="the extra `view` is not installed")
    queue: list[DoubtfulContact] = []
    state = neuroglancer.ViewerState(queue_state(queue, {"segmentation": "zarr://http://host/x"}, (30, 6, 6), "x"))
    assert [layer.name for layer in state.layers] == ["segmentation", "queue"]
