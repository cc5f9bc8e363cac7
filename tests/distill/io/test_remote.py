"""Volumes behind HTTP and S3, against servers on localhost that serve what zarr-python and tensorstore wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import tensorstore
import zarr
from numpy.typing import NDArray

import distill.io.readers.remote
from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.inference.streaming.sections.sources import VolumeSource
from distill.io.readers.remote import Remote, parse_address
from distill.io.source import find_arrays, source_kind
from distill.io.volume import open_labels, open_volume

RESOLUTION, OFFSET = (30.0, 6.0, 8.0), (60.0, -12.0, 40.0)
KINDS = ["zarr2", "zarr3", "n5", "precomputed"]


def ramp(*shape: int) -> NDArray[np.uint64]:
    return (np.arange(np.prod(shape), dtype="u8") * 7 % 251).reshape(shape)


def save(folder: Path, kind: str, array: NDArray[Any]) -> str:
    """Write an array of z, y, x the way its kind wants it; the name under which it opens, below the folder."""
    reverse = {"resolution": RESOLUTION[::-1], "offset": OFFSET[::-1]}
    kvstore = {"driver": "file", "path": f"{folder}/{kind}/"}
    if kind in ("zarr2", "zarr3"):
        group = zarr.open_group(folder / kind, mode="w", zarr_format=int(kind[-1]))  # type: ignore[arg-type]
        stored = group.create_array("a/b", shape=array.shape, dtype=array.dtype, chunks=(2, 3, 4))
        stored[...] = array
        stored.attrs.update({"resolution": RESOLUTION, "offset": OFFSET})
        return f"{kind}:a/b"
    if kind == "n5":
        metadata = {
            "dimensions": array.shape[::-1],
            "blockSize": (4, 3, 2),
            "dataType": array.dtype.name,
            "compression": {"type": "gzip"},
            **reverse,
        }
        spec = {"driver": "n5", "kvstore": {**kvstore, "path": f"{folder}/n5/vol/"}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(array.T).result()
        (folder / "n5" / "attributes.json").write_text('{"n5": "2.5.0"}')
        return "n5:vol"
    scale = {
        "size": array.shape[::-1],
        "resolution": RESOLUTION[::-1],
        "voxel_offset": (5, -2, 2),
        "encoding": "raw",
        "chunk_size": (4, 3, 2),
    }
    multiscale = {"data_type": array.dtype.name, "num_channels": 1, "type": "image"}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": kvstore,
        "multiscale_metadata": multiscale,
        "scale_metadata": scale,
    }
    tensorstore.open(spec, create=True).result().write(array.T[..., None]).result()
    return kind


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once."""
    once = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    context = {f"{name}_request_retries": once for name in ("http", "s3", "gcs")}
    monkeypatch.setattr(distill.io.readers.remote, "_CONTEXT", context)


@pytest.fixture
def http(tmp_path: Path, quick: None) -> Iterator[tuple[servers.Store, str]]:
    """A server of `tmp_path` and its address."""
    store = servers.Store(tmp_path)
    with servers.serving(store) as address:
        yield store, address


@pytest.mark.parametrize("kind", KINDS)
def test_over_http_as_from_the_disk(tmp_path: Path, http: tuple[servers.Store, str], kind: str) -> None:
    array = ramp(5, 7, 9)
    name = save(tmp_path, kind, array)
    here, there = open_volume(tmp_path / name), open_volume(f"{http[1]}/{name}")
    assert (there.kind, there.shape, there.dtype, there.chunks) == (here.kind, here.shape, here.dtype, here.chunks)
    assert (there.resolution, there.offset) == (here.resolution, here.offset) == (RESOLUTION, OFFSET)
    np.testing.assert_array_equal(there.read(), array)
    part = Box((1, 2, 3), (4, 7, 8))
    np.testing.assert_array_equal(there.read(part), array[part.slices])
    np.testing.assert_array_equal(np.stack(list(there.sections(1, 4))), array[1:4])
    np.testing.assert_array_equal(open_labels(f"{http[1]}/{name}").read(), array)


@pytest.mark.parametrize("kind", KINDS)
def test_s3_as_from_the_disk(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    array = ramp(3, 4, 5)
    name = save(tmp_path / "in", kind, array)
    store = servers.Store()
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            store.files[f"bucket/in/{path.relative_to(tmp_path / 'in').as_posix()}"] = path.read_bytes()
    with servers.serving(store) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        there = open_volume(f"s3://bucket/in/{name}")
        assert (there.resolution, there.offset) == (RESOLUTION, OFFSET)
        np.testing.assert_array_equal(there.read(), array)
        assert store.authorised is None
        monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        np.testing.assert_array_equal(open_volume(f"s3://bucket/in/{name}").read(), array)
        assert store.authorised is not None
        assert "Credential=someone/" in store.authorised


@pytest.mark.parametrize(
    ("text", "root", "path", "dataset", "kind"),
    [
        ("https://h.org/a/b.zarr", "https://h.org", "a/b.zarr", None, None),
        ("http://h.org:8080/b.zarr:v/raw", "http://h.org:8080", "b.zarr", "v/raw", None),
        ("http://h.org:8080", "http://h.org:8080", "", None, None),
        ("s3://bucket/x.n5:/vol/", "s3://bucket", "x.n5", "vol", None),
        ("precomputed://gs://bucket/seg/", "gs://bucket", "seg", None, "precomputed"),
        ("precomputed://https://h.org/seg:8_8_40", "https://h.org", "seg", "8_8_40", "precomputed"),
        ("n5://https://h.org/c.n5/vol", "https://h.org", "c.n5/vol", None, "n5"),
        ("zarr2://s3://bucket/a", "s3://bucket", "a", None, "zarr"),
        ("s3://bucket/a.zarr/|zarr3:labels/0/", "s3://bucket", "a.zarr", "labels/0", "zarr"),
        ("gs://bucket/a/|neuroglancer-precomputed:", "gs://bucket", "a", None, "precomputed"),
    ],
)
def test_addresses(text: str, root: str, path: str, dataset: str | None, kind: str | None) -> None:
    found = parse_address(text)
    assert found is not None
    assert (found.place, found.dataset, found.kind) == (Remote(root, path), dataset, kind)


def test_what_is_no_address(tmp_path: Path) -> None:
    for text in ("a.zarr", "/data/a.h5:volumes/raw", "c:/a.tif", "s*.png"):
        assert parse_address(text) is None
    for text in ("ftp://h.org/a.zarr", "https:///a.zarr", "precomputed://nowhere://x", "s3://"):
        with pytest.raises(SourceError, match="expected http://, https://, s3:// or gs://"):
            parse_address(text)
    save(tmp_path, "precomputed", ramp(2, 3, 4))
    assert open_volume(f"precomputed://file://{tmp_path}/precomputed").resolution == RESOLUTION


def test_neuroglancers_prefixes_and_odd_names(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    array = ramp(2, 3, 4)
    folder = tmp_path / "a b%2f#+ü"
    folder.mkdir()
    name = save(folder, "precomputed", array)
    for text in (
        f"precomputed://{http[1]}/{folder.name}/{name}",
        f"{http[1]}/{folder.name}/{name}/|neuroglancer-precomputed:",
    ):
        http[0].asked.clear()
        np.testing.assert_array_equal(open_volume(text).read(), array)
        assert {line.rpartition("/")[2] for line in http[0].asked} == {"info", "5-9_-2-1_2-4"}  # nothing is tried out


def test_a_group_names_its_arrays(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    save(tmp_path, "zarr3", ramp(2, 3, 4))
    with pytest.raises(SourceError, match=r"zarr3: found a group that does not list its arrays, expected an array"):
        open_volume(f"{http[1]}/zarr3")
    with pytest.raises(SourceError, match=r"found a group that does not list its arrays"):
        find_arrays(f"{http[1]}/zarr3")
    with pytest.warns(UserWarning, match="Consolidated"):
        zarr.consolidate_metadata(tmp_path / "zarr3")
    only = open_volume(f"{http[1]}/zarr3")  # the only array that is listed
    assert only.source == f"{http[1]}/zarr3:a/b"
    np.testing.assert_array_equal(only.read(), ramp(2, 3, 4))
    assert [one.source for one in find_arrays(f"{http[1]}/zarr3")] == [f"{http[1]}/zarr3:a/b"]
    zarr.open_group(tmp_path / "zarr3").create_array("a/c", shape=(2, 3, 4), dtype="u1")
    with pytest.warns(UserWarning, match="Consolidated"):
        zarr.consolidate_metadata(tmp_path / "zarr3")
    with pytest.raises(SourceError, match=r"zarr3: found 2 volumes, expected one after a colon: a/b, a/c$"):
        open_volume(f"{http[1]}/zarr3")
    save(tmp_path, "zarr2", ramp(2, 3, 4))
    zarr.consolidate_metadata(tmp_path / "zarr2")
    assert [one.dataset for one in find_arrays(f"{http[1]}/zarr2")] == ["a/b"]


def test_of_an_image_the_finest_level(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    group = zarr.open_group(tmp_path / "image", mode="w", zarr_format=3)
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    levels = []
    for k in range(2):
        group.create_array(f"s{k}", shape=(4, 8 >> k, 8 >> k), dtype="u1")[...] = k + 1
        scale = {"type": "scale", "scale": [30, 6 << k, 6 << k]}
        levels.append({"path": f"s{k}", "coordinateTransformations": [scale]})
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    for source in (tmp_path / "image", f"{http[1]}/image"):
        volume = open_volume(source)
        assert (volume.source, volume.size, volume.resolution) == (f"{source}:s0", (4, 8, 8), (30, 6, 6))
        assert (volume.read() == 1).all()
        assert open_volume(f"{source}:s1").resolution == (30, 12, 12)
        assert [one.dataset for one in find_arrays(source)] == ["s0", "s1"]


def test_what_is_not_there_is_told_from_what_is_forbidden(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    store, address = http
    name = save(tmp_path, "zarr2", ramp(4, 6, 8))
    with pytest.raises(SourceError, match=r"/nothing: found none of zarr.json, .* and info, expected a Zarr"):
        open_volume(f"{address}/nothing:a")
    with pytest.raises(SourceError, match=r"zarr2: found no dataset 'a/c'"):
        open_volume(f"{address}/zarr2:a/c")
    store.missing_is_denied = True
    np.testing.assert_array_equal(open_volume(f"{address}/{name}").read(), ramp(4, 6, 8))
    with pytest.raises(SourceError, match=r"/nothing/info: cannot be read: access denied \(HTTP 403\)$"):
        open_volume(f"{address}/nothing:a")
    store.denied.add("zarr2/a/b/1.1.1")
    volume = open_volume(f"{address}/{name}")
    with pytest.raises(SourceError, match=r"zarr2/a/b: cannot be read: .*1\.1\.1.*: Forbidden$"):
        volume.read()
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (2, 3, 8))), ramp(4, 6, 8)[:2, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_chunk_is_named(tmp_path: Path, http: tuple[servers.Store, str], kind: str) -> None:
    name = save(tmp_path, kind, ramp(4, 6, 8))
    files = [
        p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".json" and p.name[0] != "." and p.name != "info"
    ]
    chunk = max(files)
    chunk.write_bytes(chunk.read_bytes()[:-9])
    volume = open_volume(f"{http[1]}/{name}")
    with pytest.raises(SourceError, match=rf"^{http[1]}/{kind}.*: cannot be read: .*{chunk.name}") as caught:
        volume.read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_broken_metadata_are_named(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    for name, content in (("zarr.json", b"{"), (".zarray", b"\xff"), ("attributes.json", b"[]"), ("info", b"{}")):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(SourceError, match=f"^{http[1]}/{folder.name}"):
            open_volume(f"{http[1]}/{folder.name}")


def test_an_unreachable_host_is_named(quick: None) -> None:
    with servers.serving(servers.Store()) as address:
        pass
    with pytest.raises(SourceError, match=rf"^{address}/a.zarr/zarr.json: cannot be read: .*onnect") as caught:
        open_volume(f"{address}/a.zarr:raw")
    assert "\n" not in str(caught.value)


def test_a_remote_volume_is_streamed_section_by_section(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    array = ramp(6, 7, 9)
    source = f"{http[1]}/{save(tmp_path, 'zarr3', array)}"
    assert source_kind(source) == ("zarr", Remote(http[1], "zarr3"))
    sections = VolumeSource(open_volume(source), (1, 5))
    assert (sections.total, sections.kind.offset) == (4, (90, -12, 40))
    for z in (0, 1, 3):
        section = sections.read(z)
        assert section is not None
        np.testing.assert_array_equal(section.image, array[1 + z])
    assert sections.read(4) is None
    (tmp_path / "zarr3" / "a" / "b" / "c" / "2" / "0" / "0").write_bytes(b"")
    broken = VolumeSource(open_volume(source), None).read(4)
    assert broken is not None
    assert broken.flaw is not None
    assert broken.flaw.kind == "corrupt"


def test_json_of_any_kind_survives(tmp_path: Path, http: tuple[servers.Store, str]) -> None:
    """A group's own attributes of the wrong type do not hide its arrays."""
    name = save(tmp_path, "zarr3", ramp(2, 3, 4))
    file = tmp_path / "zarr3" / "zarr.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"attributes": {"ome": {"multiscales": None}}}))
    assert open_volume(f"{http[1]}/{name}").size == (2, 3, 4)
