"""Places of results, and whether they may be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.core.errors import SourceError
from distill.io.volume import volume_from_array
from distill.io.writers.output import Frame, check_free, check_place, frame_of
from distill.io.writers.store import create_zarr


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


def test_free_places(tmp_path: Path) -> None:
    check_free(tmp_path / "a" / "b" / "out.zarr", "raw.h5", overwrite=False)
    store = tmp_path / "out.zarr"
    create_zarr(store, "affinity", shape=(1, 2, 2), dtype="u1", resolution=(1, 1, 1))
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
