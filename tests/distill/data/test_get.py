"""Data sets from what a browser has saved and from a server, and what the registry says of each."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.data import catalogue as datasets
from distill.data.catalogue import DATASETS, PublicData, RemoteFile, dataset
from distill.data.get import LABELS, RAW, get
from distill.io.volume import open_volume

SHAPE = (4, 10, 12)
RAW_VALUES = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
IDS = np.random.default_rng(2).integers(0, 9, SHAPE, np.uint16)


def quiet(*_: Any) -> None:
    """Neither progress nor notes."""


def fetched(data: PublicData, out: Path, given: Path | None = None) -> tuple[Path, ...]:
    return get(data, out, given, on_bytes=quiet, note=quiet).files


def small(name: str, **more: Any) -> PublicData:
    """A data set of the registry, its volumes of the tests' size and its files without checksums."""
    data = dataset(name)
    cuts = tuple(replace(cut, shape=SHAPE) for cut in data.cuts)
    files = tuple(replace(file, checksum=None) for file in data.files)
    return replace(data, cuts=cuts, files=files, **more)


def check(path: Path, resolution: tuple[float, ...], *, labels: bool = True) -> None:
    raw = open_volume(f"{path}:{RAW}")
    np.testing.assert_array_equal(raw.read(), RAW_VALUES)
    assert raw.resolution == resolution
    with h5py.File(path) as file:
        assert (LABELS in file) == labels
        assert file.attrs["citation"]
        if labels:
            assert file[LABELS].dtype == np.uint64
            np.testing.assert_array_equal(file[LABELS][()], IDS)


def snemi(folder: Path) -> Path:
    """A zip archive with the folders of the published one."""
    made = folder / "snemi.zip"
    for name, values in (("train-input", RAW_VALUES), ("train-labels", IDS), ("test-input", RAW_VALUES)):
        tifffile.imwrite(folder / f"{name}.tif", values, photometric="minisblack")
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(folder / "train-input.tif", "image/train-input.tif")
        archive.write(folder / "test-input.tif", "image/test-input.tif")
        archive.write(folder / "train-labels.tif", "seg/train-labels.tif")
        archive.writestr("../outside.tif", b"never unpacked")
    for path in folder.glob("*.tif"):
        path.unlink()
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address on localhost."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(Handler, directory=str(folder))
    site = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=site.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{site.server_port}"
    site.shutdown()
    site.server_close()
    thread.join()


def test_an_archive_is_downloaded_and_cut(server: tuple[Path, str], tmp_path: Path) -> None:
    archive = snemi(server[0])
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    file = RemoteFile("snemi.zip", f"{server[1]}/snemi.zip", f"sha256:{sha}")
    data, out = replace(small("snemi3d"), files=(file,)), tmp_path / "data"
    made = fetched(data, out)
    assert sorted(path.name for path in out.iterdir()) == ["snemi.zip", "snemi3d-test.h5", "snemi3d-train.h5"]
    check(made[0], (30.0, 6.0, 6.0))
    check(made[1], (30.0, 6.0, 6.0), labels=False)
    assert not list(tmp_path.rglob("outside.tif"))
    archive.unlink()
    made[1].unlink()
    before = made[0].stat().st_mtime_ns
    fetched(data, out)  # the other volume is rebuilt from the archive that is there
    check(made[1], (30.0, 6.0, 6.0), labels=False)
    assert made[0].stat().st_mtime_ns == before


def test_a_failed_download_names_the_other_way(server: tuple[Path, str], tmp_path: Path) -> None:
    file = RemoteFile("snemi.zip", f"{server[1]}/gone.zip", None)
    data = replace(small("snemi3d"), files=(file,))
    with pytest.raises(SourceError, match=r"answered 404 .*; or open https://zenodo\.org.* --from FILE"):
        fetched(data, tmp_path / "data")


def test_cremi_files_stay_as_they_are(server: tuple[Path, str], phantom: Path, tmp_path: Path) -> None:
    body = phantom.read_bytes()
    (server[0] / "sample.hdf").write_bytes(body)
    file = RemoteFile("sample.hdf", f"{server[1]}/sample.hdf", "sha256:" + hashlib.sha256(body).hexdigest())
    data = replace(dataset("cremi-a"), files=(file,), resolution=(30.0, 6.0, 6.0))
    (made,) = fetched(data, tmp_path / "data")
    assert made.read_bytes() == body
    assert fetched(data, tmp_path / "other", phantom.parent / phantom.name) == (phantom,)
    with pytest.raises(ShapeError, match=r"found voxels of \(30\.0, 6\.0, 6\.0\) nm, expected \(40\.0"):
        fetched(replace(data, resolution=(40.0, 4.0, 4.0)), tmp_path / "data")
    wrong = replace(data, files=(replace(file, checksum="sha256:00"),))
    with pytest.raises(SourceError, match=r"expected 00; it is not changed"):
        fetched(wrong, tmp_path / "other", phantom)
    assert phantom.read_bytes() == body


def test_a_folder_that_a_browser_filled(tmp_path: Path) -> None:
    given = tmp_path / "saved" / "deeper"
    given.mkdir(parents=True)
    for name, values in (("wafer4_inputs.h5", RAW_VALUES), ("wafer4_labels.h5", IDS)):
        with h5py.File(given / name, "w") as file:
            file["main"] = values
    (made,) = fetched(small("wafer4"), tmp_path / "data", tmp_path / "saved")
    check(made, (35.0, 8.0, 8.0))
    again = given / "again"
    again.mkdir()
    (again / "wafer4_labels.h5").write_bytes(b"")
    made.unlink()
    with pytest.raises(SourceError, match=r"found wafer4_labels\.h5 2 times, expected it once"):
        fetched(small("wafer4"), tmp_path / "data", tmp_path / "saved")
    with pytest.raises(SourceError, match=r"wafer4_inputs\.h5: found sha256"):
        fetched(dataset("wafer4"), tmp_path / "data", given)


def test_pieces_become_neurons(server: tuple[Path, str], tmp_path: Path) -> None:
    for sample in ("training_sample2", "validation_sample"):
        folder = server[0] / sample
        folder.mkdir()
        with h5py.File(folder / "grayscale_maps.h5", "w") as file:
            file["raw"] = RAW_VALUES
        with h5py.File(folder / "groundtruth.h5", "w") as file:
            file["stack"] = IDS.astype(np.uint64) * 1000
            file["transforms"] = np.array([[3000, 7], [1000, 2**40], [2000, 7], [0, 0], [8000, 1]], np.uint64)
    data = small("fib25")
    files = tuple(replace(file, url=f"{server[1]}/{file.name}") for file in data.files)
    made = fetched(replace(data, files=files), tmp_path / "data")
    expected = np.zeros(SHAPE, np.uint64)
    for old, new in ((3, 7), (1, 2**40), (2, 7), (8, 1)):
        expected[old == IDS] = new
    assert [path.name for path in made] == ["fib25-train.h5", "fib25-validation.h5"]
    for path in made:
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file[LABELS][()], expected)
            np.testing.assert_array_equal(file[RAW][()], RAW_VALUES)


def test_section_images_inside_an_archive(tmp_path: Path) -> None:
    made = tmp_path / "vnc.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for stack in ("stack1", "stack2"):
            for z, section in enumerate(RAW_VALUES):
                tifffile.imwrite(tmp_path / "section.tif", section)
                archive.write(tmp_path / "section.tif", f"repository-master/{stack}/raw/{z:02d}.tif")
    files = fetched(small("vnc"), tmp_path / "data", made)
    assert [path.name for path in files] == ["vnc-stack1.h5", "vnc-stack2.h5"]
    for path in files:
        check(path, (50.0, 4.6, 4.6), labels=False)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with pytest.raises(DistillError, match=r"wafer4: cannot be downloaded by a program; open https://github\.com/"):
        fetched(dataset("wafer4"), out)
    with pytest.raises(SourceError, match=r"none: no such file or folder, expected a folder with wafer4_inputs\.h5, w"):
        fetched(dataset("wafer4"), out, tmp_path / "none")
    with pytest.raises(SourceError, match=r"found no wafer4_inputs\.h5"):
        fetched(dataset("wafer4"), out, tmp_path)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(SourceError, match="found neither a folder nor a zip archive"):
        fetched(small("snemi3d"), out, tmp_path / "text.zip")
    archive = snemi(tmp_path)
    with pytest.raises(ShapeError, match=r"found \(4, 10, 12\) voxels, expected \(100, 1024, 1024\)"):
        fetched(replace(dataset("snemi3d"), files=small("snemi3d").files), out, archive)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(SourceError):
        fetched(small("snemi3d"), out, archive)
    assert list(out.glob("*.h5")) == []
    assert list(tmp_path.glob(".unpacked-*")) == []


def test_the_registry_is_whole() -> None:
    names = [data.name for data in DATASETS]
    assert len(set(names)) == len(names)
    for data in DATASETS:
        addresses = [file.url for file in data.files]
        assert (data.by_hand is not None) == (not addresses or None in addresses), data.name
        assert data.cuts or len(data.files) == 1
        for address in (data.page, *(url for url in addresses if url)):
            assert address.startswith("https://")
        for file in data.files:
            kind, _, digest = (file.checksum or "md5:" + 32 * "0").partition(":")
            assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        for cut in data.cuts:
            assert "/" not in cut.name


@pytest.mark.commands("data list", "data get")
def test_the_command_line(
    cli: Callable[..., Any], phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cli("data", "list")
    assert said.code == 0
    assert all(data.name in said.out for data in DATASETS)
    assert "licence unknown" in said.out
    said = cli("data", "list", "snemi3d")
    assert "md5:3d25a7025f66698f33c7850ace885939" in said.out
    said = cli("data", "get", "snemi")
    assert (said.code, "found 'snemi', expected a name such as snemi3d" in said.err) == (2, True)
    said = cli("data", "get", "ac3-ac4", "--out", tmp_path)
    assert (said.code, "access" in said.err or "code weih" in said.err) == (2, True)
    own = replace(dataset("cremi-a"), resolution=(30.0, 6.0, 6.0), files=(RemoteFile("phantom.h5", "https://x"),))
    monkeypatch.setattr(datasets, "DATASETS", (own,))
    said = cli("data", "get", "cremi-a", "--from", phantom, "--out", tmp_path)
    assert said.code == 0, said.err
    assert f"{phantom}:{RAW}" in said.out
    assert "licence: unknown, see https://cremi.org/data" in said.out


def test_folders_of_an_archive_are_not_mixed(tmp_path: Path) -> None:
    made = tmp_path / "vnc.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for part, grey in (("train", 0), ("test", 9)):
            for z in range(2):
                tifffile.imwrite(tmp_path / "section.tif", np.full((10, 12), grey, np.uint8))
                archive.write(tmp_path / "section.tif", f"{part}/stack1/raw/{z:02d}.tif")
    with pytest.raises(SourceError, match=r"found stack1/raw/\*\.tif in 2 folders, expected one"):
        fetched(small("vnc"), tmp_path / "data", made)


@pytest.mark.parametrize("name", ["../stack1/raw/00.tif", "/stack1/raw/00.tif", "a/./stack1/raw/00.tif"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    made = tmp_path / "in" / "vnc.zip"
    made.parent.mkdir()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(SourceError, match=r"found a file named '.*', expected names that stay in the archive"):
        fetched(small("vnc"), tmp_path / "data", made)
    assert sorted(path.name for path in made.parent.iterdir()) == ["vnc.zip"]


def test_an_archive_that_fills_the_disk_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "vnc.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("stack1/raw/00.tif", bytes(10**6))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6 - 1))
    with pytest.raises(SourceError, match=r"found 0\.0 GB of files inside, expected at most the 0\.0 GB that are free"):
        fetched(small("vnc"), tmp_path / "data", made)
