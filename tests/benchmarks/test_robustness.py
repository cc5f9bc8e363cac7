"""The robustness benchmark: each change does what it says, rows are kept and never mixed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import robustness
import rows
from robustness import CHANGES, Change, changed, resampled

from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi

RAW = np.random.default_rng(0).integers(20, 230, (4, 24, 30), dtype=np.uint8)


@pytest.mark.parametrize("name", list(CHANGES))
def test_every_change_but_the_first_changes_something_and_keeps_the_shape(name: str) -> None:
    change = CHANGES[name]
    found = changed(RAW, change)
    assert found.shape == RAW.shape
    assert found.dtype == (np.uint16 if name == "12 bit" else np.uint8)
    assert np.array_equal(found, RAW) == (name in ("unchanged", "smaller pixels", "larger pixels"))
    if name == "12 bit":
        assert np.array_equal(np.round(found / 4095 * 255), RAW)
    if name == "inverted":
        assert np.array_equal(255 - found, RAW)


@pytest.mark.parametrize("pixels", [5 / 6, 7 / 6])
def test_resampling_keeps_places(pixels: float) -> None:
    y, x = np.mgrid[:60, :72]
    ramp = np.stack([y + 2 * x, 200 - y - x]).astype(np.uint8)  # linear, so that any interpolation gives it exactly
    found = resampled(ramp, pixels)
    assert found.shape == (2, int(60 / pixels), int(72 / pixels))
    v, u = np.mgrid[: found.shape[1], : found.shape[2]]
    wanted = ((v + 0.5) * pixels - 0.5) + 2 * ((u + 0.5) * pixels - 0.5)
    inside = (slice(8, -8), slice(8, -8))
    assert np.abs(found[0][inside] - wanted[inside]).max() <= 1
    ids = (np.arange(60)[:, None] // 10 * 10 + np.arange(72) // 9).astype(np.uint64)[None] << np.uint64(40)
    kept = resampled(ids, pixels, labels=True)
    assert set(np.unique(kept)) == set(np.unique(ids))
    assert kept.dtype == np.uint64


@pytest.fixture
def volume(tmp_path: Path) -> str:
    labels = np.arange(RAW.size, dtype=np.uint64).reshape(RAW.shape) // 90
    write_cremi(tmp_path / "v.h5", raw=RAW, labels=labels, resolution=(30, 6, 6))
    return str(tmp_path / "v.h5")


def arguments(volume: str, out: Path, *more: str) -> list[str]:
    files = (f"{volume}:volumes/raw", f"{volume}:volumes/labels/neuron_ids")
    return [*files, "--model", "ac4", "--out", str(out), "--sections", "1:4", "--box", "4:20,2:30", *more]


def test_rows_are_made_once_and_carry_what_the_commands_said(
    volume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []

    def distill(*words: str) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        if "--help" in words:
            return subprocess.CompletedProcess(words, 0, "--invert", "")
        if words[0] == "segment" and "offset.zarr" in words[3]:
            return subprocess.CompletedProcess(words, 2, "", "some\nError: refused")
        return subprocess.CompletedProcess(
            words, 0, json.dumps({"voi_split": 0.5, "voi_merge": 0.25, "arand": 0.1}), ""
        )

    monkeypatch.setattr(rows, "distill", distill)
    out, result = tmp_path / "rows", tmp_path / "r.json"
    asked = ("--method", "waterz", "--only", "unchanged", "offset", "inverted", "larger pixels")
    assert robustness.main(arguments(volume, out, *asked, "--json", str(result))) == 0
    found = {row["change"]: row for row in json.loads(result.read_text())["rows"]}
    assert list(found) == ["unchanged", "offset", "inverted", "larger pixels"]
    assert found["offset"]["refused"] == "Error: refused"
    assert found["inverted"]["options"] == ["--invert"]
    assert found["larger pixels"]["options"] == []  # the commands of this test have no --rescale
    assert found["unchanged"]["voi"] == 0.75
    written = open_volume(str(out / "unchanged.zarr:raw"))
    assert np.array_equal(written.read(), RAW[1:4, 4:20, 2:30])
    larger = open_labels(str(out / "larger-pixels.zarr:labels"))
    assert larger.resolution == (30, 7, 7)
    assert larger.size == (3, 13, 24)
    done = len(calls)
    assert robustness.main(arguments(volume, out, *asked)) == 0
    assert len(calls) == done
    assert "1.00" in capsys.readouterr().out


def test_a_folder_of_other_settings_is_refused(
    volume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores: Any = json.dumps({"voi_split": 0.5, "voi_merge": 0.25, "arand": 0.1})
    monkeypatch.setattr(rows, "distill", lambda *words: subprocess.CompletedProcess(words, 0, scores, ""))
    assert robustness.main(arguments(volume, tmp_path / "rows", "--only", "unchanged")) == 0
    assert robustness.main(arguments(volume, tmp_path / "rows", "--only", "gain", "--method", "waterz")) == 2
    assert "method query, found waterz; expected another --out" in capsys.readouterr().err
    assert robustness.main(arguments(volume, tmp_path / "x", "--only", "sharpened")) == 2
    assert "--only: found sharpened" in capsys.readouterr().err


def test_a_change_is_clipped_to_its_levels() -> None:
    assert changed(RAW, Change("brighter", lambda raw: raw + 10)).min() == 255
