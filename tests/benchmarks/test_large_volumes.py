"""The benchmark of training from large volumes: what the volumes hold, and how memory is listed by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import large_volumes
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi


def test_both_volumes_are_the_mirrored_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_volumes, "CHUNK", (2, 8, 8))
    monkeypatch.setattr(large_volumes, "DEPTH", 6)
    rng = np.random.default_rng(0)
    raw, ids = rng.integers(0, 256, (3, 18, 9)).astype(np.uint8), rng.integers(0, 2**40, (3, 18, 9)).astype(np.uint64)
    write_cremi(tmp_path / "a.h5", raw=raw, labels=ids, resolution=(30, 6, 6))
    one, two = large_volumes.make_volumes(tmp_path / "a.h5", tmp_path / "made", 6 * 40**2 / 1e9)

    def mirrored(part: NDArray[Any]) -> NDArray[Any]:
        period = np.pad(part[:2, :16, :8], [(0, n) for n in (2, 16, 8)], mode="symmetric")
        return np.pad(period, [(0, 2), (0, 8), (0, 24)], mode="wrap")

    for image, labels in ((one, one), (f"{two}:raw", f"{two}:labels")):
        np.testing.assert_array_equal(open_volume(image).read(), mirrored(raw))
        np.testing.assert_array_equal(open_labels(labels).read(), mirrored(ids))
        assert open_volume(image).resolution == (30, 6, 6)
    written = one.stat().st_mtime_ns
    assert large_volumes.make_volumes(tmp_path / "a.h5", tmp_path / "made", 1.0) == (one, two)
    assert one.stat().st_mtime_ns == written


def test_peaks_by_step() -> None:
    seen = [(0, 900.0, 9.0), (1, 10.0, 1.0), (2, 12.0, 0.0), (3, 11.0, 4.0), (4, 99.0, 99.0)]
    found = list(large_volumes._peaks(seen, 4, 2))
    assert [(peak.first, peak.last, peak.main_mb, peak.workers_mb) for peak in found] == [
        (1, 2, 12.0, 1.0),
        (3, 4, 11.0, 4.0),
    ]
