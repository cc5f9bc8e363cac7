"""The store takes its name only when it is complete, and never at the cost of what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.errors import SourceError
from distill.recipes.outputs import Frame, Output, check_free, check_place, frame_of
from distill.store import create_zarr
from distill.volume import open_volume, volume_from_array

FRAME = Frame((2, 3, 4), (30.0, 6.0, 6.0), (60.0, 0.0, 0.0), 2)


def test_frame_of_sections() -> None:
    volume = volume_from_array(np.zeros((9, 3, 4), np.uint8), (30, 6, 6), (5, 6, 7))
    assert frame_of(volume, None) == Frame((9, 3, 4), (30, 6, 6), (5, 6, 7), 0)
    assert frame_of(volume, (4, None)) == Frame((5, 3, 4), (30, 6, 6), (125, 6, 7), 4)
    assert frame_of(volume, (8, 9)) == Frame((1, 3, 4), (30, 6, 6), (245, 6, 7), 8)


@pytest.mark.parametrize("sections", [(9, None), (3, 3), (4, 3), (0, 10), (-1, 3)])
def test_frame_of_sections_that_are_not_there(sections: tuple[int, int | None]) -> None:
    volume = volume_from_array(np.zeros((9, 3, 4), np.uint8), (30, 6, 6), source="brain.h5")
    with pytest.raises(SourceError, match=r"--sections: found -?\d+:-?\d+, expected a range within 0:9 of brain\.h5"):
        frame_of(volume, sections)


def test_frame_of_channels() -> None:
    with pytest.raises(SourceError, match="found 3 channels, expected one grey-value volume"):
        frame_of(volume_from_array(np.zeros((3, 9, 3, 4), np.uint8), (30, 6, 6)), None)


def filled(out: Path, value: int) -> Output:
    output = Output(out, FRAME)
    for z in range(2):
        output.write_affinity(z, np.full((3, 3, 4), value, np.uint8))
    output.write_segmentation(0, np.full((2, 3, 4), value, np.uint64))
    return output


def test_store_appears_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.zarr"
    output = filled(out, 7)
    assert not out.exists()
    output.complete({"method": "query"})
    assert [path.name for path in out.parent.iterdir()] == ["out.zarr"]
    assert (open_volume(f"{out}:affinity").read() == 7).all()
    assert (open_volume(f"{out}:segmentation").read() == 7).all()
    assert open_volume(f"{out}:segmentation").offset == (60.0, 0.0, 0.0)


def test_leftovers_of_a_killed_run_do_not_matter(tmp_path: Path) -> None:
    filled(tmp_path / "out.zarr", 3)  # killed: neither complete nor discarded
    output = Output(tmp_path / "out.zarr", FRAME)
    output.complete({})
    assert (open_volume(f"{tmp_path}/out.zarr:affinity").read() == 0).all()
    assert (open_volume(f"{tmp_path}/out.zarr:segmentation").read() == 0).all()


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "out.zarr", 3).discard()
    assert not list(tmp_path.iterdir())


def test_replacing_that_fails_brings_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.zarr"
    filled(out, 1).complete({})
    new = filled(out, 2)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == new.work:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            new.complete({})
    assert (open_volume(f"{out}:affinity").read() == 1).all()
    new.complete({})
    assert (open_volume(f"{out}:affinity").read() == 2).all()
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_free_places(tmp_path: Path) -> None:
    check_free(tmp_path / "a" / "b" / "out.zarr", "raw.h5", overwrite=False)
    store = tmp_path / "out.zarr"
    create_zarr(store, "raw", shape=(1, 2, 2), dtype="u1", resolution=(1, 1, 1))
    with pytest.raises(SourceError, match=r"exists already; expected a new path, or --overwrite"):
        check_free(store, "raw.h5", overwrite=False)
    check_free(store, "raw.h5", overwrite=True)
    check_free(store, f"{tmp_path}/out.zarr2:raw", overwrite=True)
    for source in (f"{store}:raw", f"{store}/raw", f"{tmp_path}/x/../out.zarr:raw", str(store)):
        with pytest.raises(SourceError, match="holds the source"):
            check_free(store, source, overwrite=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="exists already"):
        check_free(tmp_path / "dangling", "raw.h5", overwrite=False)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(SourceError, match=r"out: cannot be written: .*file is not a folder"):
            check_place(place)
    for place in (Path("."), Path("/"), Path("..")):
        with pytest.raises(SourceError, match="a path with a name of its own"):
            check_place(place)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SourceError, match="no permission to write in"):
        check_place(tmp_path / "out")
