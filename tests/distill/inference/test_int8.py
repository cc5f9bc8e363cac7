"""Streams, blocks and exports in int8: close to float32, the same bytes every time, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.inference import calibration
from distill.io.volume import open_volume
from students.backends import int8
from students.backends.int8 import load_nncf

pytest.importorskip("openvino")
Cli = Callable[..., Any]
needs_nncf = pytest.mark.skipif(load_nncf() is None, reason="needs nncf")


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory, phantom: Path) -> str:
    """Sections of the phantom, enough for ranges."""
    path = tmp_path_factory.mktemp("tissue") / "raw.h5"
    with h5py.File(phantom) as given, h5py.File(path, "w") as file:
        raw = given["volumes/raw"]
        made = file.create_dataset("raw", data=raw[:6])
        made.attrs["resolution"] = raw.attrs["resolution"]
    return f"{path}:raw"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges from few small windows."""
    monkeypatch.setattr(calibration, "WINDOWS", calibration.Windows(pairs=3, side=64))


def affinity(store: Path) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = open_volume(f"{store}:affinity").read()
    return found


def words(command: str, source: str, out: Path, *more: object) -> list[object]:
    given = [command, source, "--model", "ac4", "--out", out, "--device", "cpu", "--resolution", "30,6,6"]
    return [*given, "--on-bad", "use" if command == "segment" else "bridge", *more]


@needs_nncf
@pytest.mark.commands("stream", "segment")
def test_int8_stays_close_and_gives_the_same_bytes(
    cli: Cli, tissue: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its models from the cache, quantised again, in two processes, and resumed with `auto`."""
    found = {}
    for name, cache in (("made", "cache"), ("kept", "cache"), ("again", "off")):
        monkeypatch.setenv("DISTILL_CACHE", cache if cache == "off" else str(tmp_path / cache))
        done = cli(*words("stream", tissue, tmp_path / f"{name}.zarr", "--precision", "int8", "--no-segment"))
        assert done.code == 0, done.err
        assert "int8: affinities differ from float32 by 0.00" in done.err
        found[name] = affinity(tmp_path / f"{name}.zarr")
    np.testing.assert_array_equal(found["made"], found["kept"])
    np.testing.assert_array_equal(found["made"], found["again"])
    settings = json.loads((tmp_path / "made.zarr" / "stream" / "job.json").read_text())
    assert settings["precision"] == "int8"
    assert len(settings["calibration"]) == 64
    resumed = cli(*words("stream", tissue, tmp_path / "made.zarr", "--resume", "--no-segment"))
    assert resumed.code == 0, resumed.err
    assert "precision int8 (as the run began), backend openvino" in resumed.err

    exact = cli(*words("stream", tissue, tmp_path / "exact.zarr", "--precision", "32-true", "--no-segment"))
    assert exact.code == 0, exact.err
    apart = np.abs(affinity(tmp_path / "exact.zarr").astype(int) - found["made"]).mean() / 255
    assert 0 < apart < 0.03  # ranges from windows of 64 pixels of a phantom are rough

    for workers in ("0", "2"):
        more = ("--precision", "int8", "--workers", workers, "--block", "6,64,64")
        blocks = cli(*words("segment", tissue, tmp_path / f"blocks{workers}.zarr", *more))
        assert blocks.code == 0, blocks.err
    np.testing.assert_array_equal(affinity(tmp_path / "blocks0.zarr"), affinity(tmp_path / "blocks2.zarr"))
    np.testing.assert_array_equal(affinity(tmp_path / "blocks0.zarr")[0, 1:], found["made"][0, 1:])


@needs_nncf
@pytest.mark.commands("export")
def test_an_export_in_int8(cli: Cli, tissue: str, tmp_path: Path, small: None) -> None:
    out = tmp_path / "out"
    given = ("export", "ac4", "--format", "openvino", "--precision", "int8", "--out", out)
    done = cli(*given, "--sample", tissue)
    assert done.code == 0, done.err
    about = json.loads((out / "export.json").read_text())
    assert about["precision"] == "int8"
    assert about["difference"] < 0.01
    assert "int8: affinities differ from float32 by 0.00" in done.out
    assert b"FakeQuantize" in (out / "decode.xml").read_bytes()
    missing = cli(*given, "--overwrite")
    assert missing.code == 2
    assert "--precision int8: found no --sample, expected a volume whose sections give the ranges" in missing.err
    other = cli("export", "ac4", "--format", "onnx", "--precision", "int8", "--sample", tissue, "--out", out)
    assert "--precision: found int8 with --format onnx, expected --format openvino" in other.err


@needs_nncf
def test_too_large_a_difference_is_refused(
    cli: Cli, tissue: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LARGEST_DIFFERENCE", 1e-6)
    out = tmp_path / "out.zarr"
    done = cli(*words("stream", tissue, out, "--precision", "int8"))
    assert done.code == 2
    assert "on average on" in done.err
    assert "expected at most 1e-06; use --precision 32-true" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("stream", ("--backend", "eager"), "found int8 with backend eager, expected the backend openvino"),
        ("stream", ("--method", "query"), "--method: found query with --precision int8, expected --method flood"),
        ("stream", ("--sections", "0:1"), "found no two neighbouring sections"),
        ("segment", ("--network", "teacher"), "found int8 with --network teacher, expected --network student"),
        ("segment", ("--method", "query"), "--method: found query with --precision int8, expected flood, waterz or"),
        ("segment", ("--scheduler", "tcp://nowhere:1"), "found int8 with --scheduler, expected --workers"),
    ],
)
def test_what_int8_cannot_do(
    cli: Cli, tissue: str, tmp_path: Path, command: str, more: tuple[str, ...], message: str
) -> None:
    done = cli(*words(command, tissue, tmp_path / "out.zarr", "--precision", "int8", *more))
    assert done.code == 2, done.err
    assert message in done.err
    assert not (tmp_path / "out.zarr").exists()


def test_without_the_package(cli: Cli, tissue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "load_nncf", lambda: None)
    done = cli(*words("stream", tissue, tmp_path / "out.zarr", "--precision", "int8"))
    assert done.code == 2
    assert "nncf is not installed, expected `pip install 'affinity-distill[int8]'`" in done.err


def test_training_has_no_int8(cli: Cli, tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    configs = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
    pair = (configs / "teacher.yaml", configs / "student.yaml")
    done = cli("train", *pair, "student.training.precision=int8", "--out", tmp_path / "run")
    assert done.code == 2
    assert "training.precision" in done.err
    assert "'auto', '32-true' or 'bf16-mixed'" in done.err
