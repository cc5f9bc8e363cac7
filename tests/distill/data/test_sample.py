"""The sample of real tissue: in the package with its attribution, written whole, read by the other commands."""

from __future__ import annotations

import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cc3d
import h5py
import numpy as np
import pytest

from distill.core.errors import SourceError
from distill.data.sample import SAMPLE, write_sample
from distill.io.volume import open_labels, open_volume

ROOT = Path(__file__).parents[3]
RAW, LABELS = "volumes/raw", "volumes/labels/neuron_ids"


@pytest.fixture(scope="module")
def written(cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file that the command writes, not to be changed, and what the command prints."""
    path = tmp_path_factory.mktemp("sample") / "sample.h5"
    said = cli("sample", path)
    assert said.code == 0, said.err
    return path, said.out


@pytest.mark.commands("sample")
def test_the_command_names_source_licence_and_next_step(written: tuple[Path, str]) -> None:
    path, out = written
    lines = out.splitlines()
    assert lines[0] == f"{path}: 20 x 384 x 384 voxels of 30 x 6 x 6 nm (z, y, x), 75 labelled neurons"
    assert lines[1].startswith("source: AC4, mouse")
    assert lines[2].startswith("licence: CC-BY 4.0")
    assert lines[3].startswith("please cite: Kasthuri et al.")
    assert lines[4].startswith("changes: ")
    following = f"distill stream {path}:{RAW} --model ac4 --out {path.with_suffix('.zarr')}"
    assert lines[5] == f"next: {following}"


def test_the_file_is_read_as_every_command_reads_it(written: tuple[Path, str], cli: Callable[..., Any]) -> None:
    path, _ = written
    raw, labels = open_volume(f"{path}:{RAW}"), open_labels(f"{path}:{LABELS}")
    assert raw.size == labels.size == (20, 384, 384)
    assert raw.resolution == labels.resolution == (30.0, 6.0, 6.0)
    assert raw.offset == labels.offset == (2400.0, 3072.0, 3648.0)
    assert raw.dtype == np.uint8
    ids = labels.read()
    assert np.array_equal(np.unique(ids), np.arange(76))
    assert ids.dtype.kind == "u"
    said = cli("evaluate", f"{path}:{LABELS}", f"{path}:{LABELS}", "--json")
    assert said.code == 0, said.err


def test_the_labels_belong_to_the_image(written: tuple[Path, str]) -> None:
    """Neurites are brighter than the membranes between them, and most keep their place from section to section."""
    path, _ = written
    raw, ids = open_volume(f"{path}:{RAW}").read(), open_labels(f"{path}:{LABELS}").read()
    for image, section in zip(raw, ids, strict=True):
        assert image[section > 0].mean() > image[section == 0].mean() + 20
        assert np.unique(section).size > 40
    same = ids[1:] == ids[:-1]
    assert same[ids[1:] > 0].mean() > 0.8
    pieces = cc3d.connected_components(ids, connectivity=26)
    assert 75 <= pieces.max() <= 100


def test_the_file_states_its_licence_itself(written: tuple[Path, str]) -> None:
    with h5py.File(written[0]) as file:
        about = {key: str(value) for key, value in file.attrs.items()}
    adjacent = (SAMPLE.parent / "ATTRIBUTION.md").read_text()
    for text in (" ".join(about.values()), " ".join(adjacent.split())):
        for word in (
            "Kasthuri",
            "Cell 162",
            "SNEMI3D",
            "CC-BY 4.0",
            "creativecommons.org",
            "renumbered",
            "rows 512-895",
        ):
            assert word in text, word


def test_a_file_that_exists_is_replaced_only_if_asked(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "sample.h5"
    path.write_text("mine")
    said = cli("sample", path)
    assert (said.code, said.out, path.read_text()) == (2, "", "mine")
    assert "exists already; expected a new path, or --overwrite" in said.err
    assert cli("sample", path, "--overwrite").code == 0
    assert path.read_bytes() == SAMPLE.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "says"),
    [("sample.zarr", "expected .h5"), ("sample", "expected .h5"), ("file/sample.h5", "file"), ("folder.h5", "exists")],
)
def test_a_place_that_cannot_hold_it_is_refused(cli: Callable[..., Any], tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.h5").mkdir()
    said = cli("sample", tmp_path / name)
    assert said.code == 2
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.h5"]


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found a folder"):
        write_sample_over(tmp_path / "folder.h5")
    assert (tmp_path / "folder.h5").is_dir()


def write_sample_over(path: Path) -> None:
    path.mkdir()
    write_sample(path, overwrite=True)


def test_it_comes_with_the_package_and_stays_small() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["distill"]
    package = ROOT / "distill"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert {SAMPLE, SAMPLE.parent / "ATTRIBUTION.md"} <= shipped
    assert SAMPLE.stat().st_size < 3_000_000


def test_the_script_makes_the_same_voxels_from_ac4(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = real_data("ac4.h5"), tmp_path / "made.h5"
    monkeypatch.setattr(sys, "argv", ["make_sample.py", str(source), str(made)])
    runpy.run_path(str(ROOT / "tools" / "make_sample.py"), run_name="__main__")
    with h5py.File(made) as new, h5py.File(SAMPLE) as shipped, h5py.File(source) as ac4:
        where = np.s_[80:100, 512:896, 608:992]
        assert dict(new.attrs) == dict(shipped.attrs)
        for name in (RAW, LABELS):
            assert np.array_equal(new[name], shipped[name]), name
        assert np.array_equal(shipped[RAW], ac4[RAW][where])
        theirs, ours = ac4[LABELS][where], shipped[LABELS][:]
        pairs = [divmod(int(pair), 1000) for pair in np.unique(theirs * 1000 + ours)]
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) == 76
