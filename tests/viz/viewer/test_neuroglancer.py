"""What the viewer is given: parts that are read when asked for, in their place, and nothing else of a volume."""

from __future__ import annotations

import io
import socket
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box
from distill.io.volume import Volume, open_volume, volume_from_array
from distill.io.writers.store import create_zarr
from viz.embeddings.pca import scores
from viz.viewer.neuroglancer import ColourReader, Mark, Reader, Shown, go_to, middle_section, serve, viewer_state

pytest.importorskip("neuroglancer", reason="the extra `view` is not installed")

RNG = np.random.default_rng(0)
NM = (30.0, 6.0, 4.0)
RAW = RNG.integers(0, 256, (6, 40, 50), dtype=np.uint8)
IDS = RNG.integers(0, 2**63, (6, 40, 50), dtype=np.uint64)
AFFINITY = RNG.integers(0, 256, (5, 6, 40, 50), dtype=np.uint8)
EMBEDDING = RNG.normal(size=(8, 6, 40, 50)).astype(np.float32)


def volume(array: NDArray[Any], offset: tuple[float, float, float] = (0, 0, 0), name: str = "array") -> Volume:
    return volume_from_array(array, NM, offset, name)


def fetched(local: Any, start: tuple[int, ...], stop: tuple[int, ...], scale: str = "1,1,1") -> NDArray[Any]:
    """What the browser gets for a chunk."""
    data, _ = local.get_encoded_subvolume("npz", np.array(start), np.array(stop), scale)
    return np.load(io.BytesIO(zlib.decompress(data)))


def local_volume(state: Any, name: str) -> Any:
    return state.layers[name].layer.source[0].url


def test_chunks_are_the_volume() -> None:
    shown = [Shown("raw", "raw", volume(RAW)), Shown("ids", "labels", volume(IDS))]
    state = viewer_state([*shown, Shown("affinity", "affinity", volume(AFFINITY))])
    for name, array in (("raw", RAW), ("ids", IDS)):
        np.testing.assert_array_equal(fetched(local_volume(state, name), (1, 2, 3), (5, 30, 50)), array[1:5, 2:30, 3:])
    found = fetched(local_volume(state, "affinity"), (0, 1, 2, 3), (3, 5, 30, 50), "1,1,1,1")
    np.testing.assert_array_equal(found, AFFINITY[:3, 1:5, 2:30, 3:])  # further channels are not shown
    assert local_volume(state, "ids").volume_type == "segmentation"
    assert local_volume(state, "raw").volume_type == "image"


def test_types_that_browsers_take() -> None:
    for kind, shown in (("?", "uint8"), ("<f2", "float32"), ("<f8", "float32"), ("<i8", "int32"), ("<u2", "uint16")):
        array = RAW.astype(kind)
        reader = Reader(volume(array))
        part = reader[0:2, 0:3, 0:4]
        assert part.dtype == reader.dtype == np.dtype(shown)
        np.testing.assert_array_equal(part, array[:2, :3, :4].astype(shown))


@pytest.mark.parametrize("offset", [(0, 0, 0), (1920.0, 60.0, -8.0), (45.0, 3.0, 1.0), (-10.0, 0.0, 0.0)])
def test_layers_lie_where_their_volumes_do(offset: tuple[float, float, float]) -> None:
    shown = [Shown("ids", "labels", volume(IDS, offset)), Shown("affinity", "affinity", volume(AFFINITY, offset))]
    state = viewer_state(shown)
    for name in ("ids", "affinity"):
        source = state.layers[name].layer.source[0]
        space = source.url.dimensions
        assert list(space.names)[-3:] == ["z", "y", "x"]
        assert list(space.units)[-3:] == ["m"] * 3
        np.testing.assert_allclose([1e9 * scale for scale in space.scales][-3:], NM)
        start = np.array(source.url.voxel_offset, float)
        if source.transform is not None:
            start += np.array(source.transform.matrix)[:, -1]
            np.testing.assert_array_equal(np.array(source.transform.matrix)[:, :-1], np.eye(len(start)))
        np.testing.assert_allclose(start[-3:] * NM, offset, atol=1e-3)
    centre = [o + r * n / 2 for o, r, n in zip(offset, NM, IDS.shape, strict=True)]
    np.testing.assert_allclose(np.array(state.position)[::-1] * NM, centre, rtol=1e-5)
    assert list(state.dimensions.names) == ["x", "y", "z"]


def test_a_volume_larger_than_memory_opens_at_once(tmp_path: Path) -> None:
    shape, place = (4000, 30_000, 30_000), {"resolution": NM, "chunks": (1, 256, 256)}
    for name, kind in (("raw", np.uint8), ("segmentation", np.uint64)):
        create_zarr(tmp_path / "a.zarr", name, shape=shape, dtype=kind, **place)
    create_zarr(
        tmp_path / "a.zarr", "affinity", shape=(3, *shape), dtype=np.uint8, resolution=NM, chunks=(3, 1, 256, 256)
    )
    kinds = {"raw": "raw", "segmentation": "labels", "affinity": "affinity"}
    shown = [
        Shown(name, kind, open_volume(f"{tmp_path}/a.zarr:{name}", missing="zero")) for name, kind in kinds.items()
    ]  # type: ignore[arg-type]
    boxes: list[Box] = []
    read = Volume.read

    def counted(self: Volume, box: Box) -> NDArray[Any]:
        boxes.append(box)
        return read(self, box)

    with mock.patch.object(Volume, "read", counted):
        state = viewer_state(shown)
        assert sum(box.voxels for box in boxes) <= 512 * 512  # the sample that the contrast goes by
        part = fetched(local_volume(state, "segmentation"), (3999, 29_900, 29_000), (4000, 30_000, 29_064))
    assert boxes[-1] == Box((3999, 29_900, 29_000), (4000, 30_000, 29_064))
    assert part.shape == (1, 100, 64)
    source = state.layers["segmentation"].layer.source[0]
    assert source.enable_default_subsources is False  # meshes would read all of it
    assert [name for name, one in source.subsources.items() if one.enabled] == ["default"]
    assert viewer_state([Shown("ids", "labels", volume(IDS))]).layers["ids"].layer.source[0].enable_default_subsources


def test_embedding_has_the_same_colours_in_every_chunk() -> None:
    reader = ColourReader(volume(EMBEDDING))
    whole = reader[0:3, 0:6, 0:40, 0:50]
    assert whole.dtype == np.uint8
    assert whole.shape == (3, 6, 40, 50)
    np.testing.assert_array_equal(reader[0:3, 2:4, 10:20, 5:50], whole[:, 2:4, 10:20, 5:])
    np.testing.assert_array_equal(reader[1:2, 2:4, 10:20, 5:50], whole[1:2, 2:4, 10:20, 5:])
    expected = scores(EMBEDDING[:, 3], reader.basis)
    inside = np.abs(expected) < 2.4
    np.testing.assert_allclose(whole[:, 3][inside], (127.5 + 51 * expected)[inside], atol=0.51)
    assert 100 < whole.mean() < 155


def test_embedding_colours_go_by_the_inside_of_neurites() -> None:
    mixed, inside = EMBEDDING.copy(), np.full((3, 6, 40, 50), 255, np.uint8)
    mixed[0, :, :20] *= 100  # membranes that vary along one direction
    inside[1:, :, :20] = 0
    blind, seeing = ColourReader(volume(mixed)), ColourReader(volume(mixed), volume(inside))
    assert abs(blind.basis.components[0, 0]) > 0.99
    assert seeing.basis.explained[0] < 0.3
    expected = ColourReader(volume(EMBEDDING[:, :, 20:])).basis
    np.testing.assert_allclose(seeing.basis.deviation, expected.deviation, rtol=1e-6)
    for other in (volume(inside, (30, 0, 0)), volume(np.zeros_like(inside)), volume(inside[:, 1:])):
        np.testing.assert_array_equal(ColourReader(volume(mixed), other).basis.mean, blind.basis.mean)
    half = volume(inside / np.float32(255))
    np.testing.assert_array_equal(ColourReader(volume(mixed), half).basis.mean, seeing.basis.mean)


def test_raw_contrast_follows_the_grey_values() -> None:
    grey = (1000 + 100 * RNG.normal(size=(3, 64, 64))).astype(np.uint16)
    shader = viewer_state([Shown("raw", "raw", volume(grey))]).layers["raw"].layer.shader
    low, high = (float(n) for n in shader.split("range=[")[1].split("]")[0].split(","))
    assert 600 < low < 800
    assert 1200 < high < 1400
    flat = viewer_state([Shown("raw", "raw", volume(np.full((3, 4, 5), 7, np.uint8)))]).layers["raw"].layer.shader
    assert "range=[7.0, 8.0]" in flat


def test_middle_is_inside() -> None:
    assert middle_section(volume(RAW)) == Box((3, 0, 0), (4, 40, 50))
    box = middle_section(volume(np.zeros((5, 600, 2000), np.uint8)))
    assert box == Box((2, 44, 744), (3, 556, 1256))


def test_every_result_has_a_panel_over_the_image() -> None:
    shown = [
        Shown("raw", "raw", volume(RAW)),
        Shown("ids", "labels", volume(IDS)),
        Shown("truth", "labels", volume(IDS)),
    ]
    marks = [Mark((45.0, 63.0, 82.0), "long", "short", {"ids": (5, 6), "truth": (7,)})]
    state = viewer_state(shown, marks)
    assert [list(group.layers) for group in state.layout.children] == [
        ["raw", "ids", "errors"],
        ["raw", "truth", "errors"],
        ["ids", "errors"],
    ]
    assert [group.layout.type for group in state.layout.children] == ["xy", "xy", "3d"]
    assert state.selected_layer.layer == "errors"
    np.testing.assert_allclose(state.position, [82 / 4, 63 / 6, 45 / 30])
    (note,) = state.layers["errors"].layer.annotations
    np.testing.assert_allclose(note.point, state.position)
    assert note.description == "1. short"
    listed = state.layers["errors"].layer
    assert dict(listed.linked_segmentation_layer) == {"ids": "ids", "truth": "truth"}
    linked = dict(zip(listed.annotation_relationships, note.segments, strict=True))
    assert {name: list(ids) for name, ids in linked.items()} == {"ids": [5, 6], "truth": [7]}
    assert {name: set(state.layers[name].layer.segments) for name in ("ids", "truth")} == {"ids": {5, 6}, "truth": {7}}
    go_to(state, Mark((0.0, 0.0, 4.0), "", "", {"ids": (9,)}), shown[1].volume)
    assert list(state.position) == [1, 0, 0]
    assert {name: set(state.layers[name].layer.segments) for name in ("ids", "truth")} == {"ids": {9}, "truth": set()}
    alone = viewer_state(shown[:1])
    assert [list(group.layers) for group in alone.layout.children] == [["raw"]]  # no objects, no surfaces
    many = viewer_state([*shown, *(Shown(f"more {k}", "labels", volume(IDS)) for k in range(2))])
    assert many.layout.type == "column"
    rows = [[list(group.layers) for group in row.children] for row in many.layout.children]
    assert rows == [[["raw", "ids"], ["raw", "truth"]], [["raw", "more 0"], ["raw", "more 1"]], [["ids"]]]


def test_objects_have_surfaces_where_they_lie() -> None:
    ids = np.zeros((5, 40, 50), np.uint64)
    ids[1:4, 10:20, 30:45] = 7
    state = viewer_state([Shown("ids", "labels", volume(ids))])
    mesh = local_volume(state, "ids").get_object_mesh(7)
    count = int(np.frombuffer(mesh[:4], "<u4")[0])
    vertices = 1e9 * np.frombuffer(mesh[4 : 4 + 12 * count], "<f4").reshape(-1, 3)  # z, y, x in m
    np.testing.assert_allclose(vertices.min(0), (np.array([1, 10, 30]) - 0.5) * NM, atol=0.1)
    np.testing.assert_allclose(vertices.max(0), (np.array([4, 20, 45]) - 0.5) * NM, atol=0.1)


def test_what_cannot_be_shown() -> None:
    with pytest.raises(ShapeError, match=r"ids: found shape \(5, 6, 40, 50\), expected z, y, x for the labels layer"):
        viewer_state([Shown("a", "labels", volume(AFFINITY, name="ids"))])
    with pytest.raises(
        ShapeError, match=r"found shape \(6, 40, 50\), expected channels, z, y, x for the embedding layer"
    ):
        viewer_state([Shown("a", "embedding", volume(RAW))])
    with pytest.raises(ShapeError, match="found 2 channels, expected at least 3"):
        viewer_state([Shown("a", "affinity", volume(AFFINITY[:2]))])


def get(address: str) -> tuple[int, bytes]:
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with straight.open(address, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def test_served_here_alone_and_gone_afterwards() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(DistillError, match=rf"--port: {port} cannot be had: "),
            serve([Shown("raw", "raw", volume(RAW))], [], port),
        ):
            pass
    with serve([Shown("raw", "raw", volume(RAW))], [], port) as address:
        assert address.startswith(f"http://127.0.0.1:{port}/v/")
        status, client = get(address)
        assert (status, b"<title>neuroglancer</title>" in client) == (200, True)
        token = address.rstrip("/").rpartition("/")[2]
        assert len(token) >= 32
        assert get(address.replace(token, "0" * len(token)))[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(address)


def test_without_the_extra() -> None:
    with (
        mock.patch.dict(sys.modules, {"neuroglancer": None}),
        pytest.raises(DistillError, match=r"expected the extra: pip install 'affinity-distill\[view\]'"),
        serve([Shown("raw", "raw", volume(RAW))], []),
    ):
        pass
