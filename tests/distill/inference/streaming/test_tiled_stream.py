"""Streams in tiles, and places that may not be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from distill.core.errors import SourceError
from distill.inference.streaming.output.manifest import all_lines
from distill.inference.streaming.output.store import StreamStore
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_volume

Go = Callable[..., Streamed]
Files = Callable[[Path], dict[str, bytes]]


def test_tiles_of_a_stream_give_what_whole_sections_give(
    go: Go, folder: Path, tmp_path: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(folder, tmp_path / "whole.zarr", segment=False, embedding="float16")
    tiled = tmp_path / "tiled.zarr"
    go(folder, tiled, segment=False, embedding="float16", tile=64)
    for name, most in (("affinity", 1), ("embedding", 1e-3)):
        one, other = (open_volume(f"{tmp_path / s}.zarr:{name}").read().astype(np.float64) for s in ("whole", "tiled"))
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= most
    # broken off between two pieces of a section, and resumed
    original, seen = StreamStore.write_piece, []

    def failing(self: StreamStore, *given: Any) -> None:
        seen.append(given[0])
        if len(seen) == 18:  # four tiles a section: in the middle of the fifth
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, *given)

    again = tmp_path / "again.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(StreamStore, "write_piece", failing)
        with pytest.raises((SourceError, OSError), match="No space left on device"):
            go(folder, again, segment=False, embedding="float16", tile=64)
    assert len(all_lines(again)) < 13
    go(folder, again, segment=False, embedding="float16", tile=64, resume=True)
    assert files_of(again) == files_of(tiled)


def test_a_place_without_permission(go: Go, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(SourceError, match="cannot be written: no permission to write in"):
        go(folder, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_a_section_without_permission_is_a_bad_one(
    go: Go, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, original = folder / "s_005.tif", tifffile.TiffFile

    def refusing(path: Any, *given: Any, **more: Any) -> tifffile.TiffFile:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *given, **more)

    monkeypatch.setattr(tifffile, "TiffFile", refusing)  # root may read anything
    with pytest.raises(SourceError, match=r"s_005\.tif: section 5 is bad: corrupt \(.*Permission denied"):
        go(folder, tmp_path / "out.zarr")
