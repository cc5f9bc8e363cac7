"""The precision of a run: printed first, recorded, and kept by those that continue it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.core import hardware
from distill.io.volume import open_volume

Cli = Callable[..., Any]
ABLE = {"architecture": "x86_64", "avx512_bf16": True}
UNABLE = {"architecture": "x86_64", "avx512_bf16": False}


def processor(monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]) -> None:
    """Give this process another processor."""
    monkeypatch.setattr(hardware, "_flags", lambda: flags)
    monkeypatch.setattr(hardware, "slowdown", lambda device: (17.0, 120.0))


def test_a_stream_keeps_the_precision_that_it_began_with(
    cli: Cli, run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where bfloat16 is fast, continued with `auto` where it is not, and the other way round."""
    out = tmp_path / "out.zarr"
    words = ("stream", f"{phantom}:volumes/raw", "--model", run, "--out", out, "--device", "cpu", "--sections", "0:3")
    words += ("--backend", "eager", "--no-segment")
    processor(monkeypatch, ABLE)
    begun = cli(*words)
    assert begun.code == 0, begun.err
    assert begun.err.splitlines()[0].endswith(", bfloat16), precision bf16-mixed (auto), backend eager")
    settings = json.loads((out / "stream" / "job.json").read_text())
    assert (settings["precision"], settings["precision_by"], settings["backend"]) == ("bf16-mixed", "auto", "eager")
    assert settings["hardware"].endswith(", bfloat16)")
    assert json.loads((out / "zarr.json").read_text())["attributes"]["made_by"]["precision"] == "bf16-mixed"
    processor(monkeypatch, UNABLE)
    resumed = cli(*words, "--resume")
    assert resumed.code == 0, resumed.err
    first, second = resumed.err.splitlines()[:2]
    assert first.endswith(", no bfloat16), precision bf16-mixed (as the run began), backend eager")
    assert second.startswith("warning: precision bf16-mixed: this CPU has no bfloat16: measured now, a convolution ")
    record = json.loads((tmp_path / "out.zarr.run.json").read_text())
    assert (record["precision"], record["precision_by"]) == ("bf16-mixed", "as the run began")
    assert record["hardware"].endswith("no bfloat16)")
    refused = cli(*words, "--resume", "--precision", "32-true")
    assert refused.code == 2
    assert 'was begun with precision "bf16-mixed", found "32-true"' in refused.err


def test_blocks_keep_the_precision_and_the_backend(
    cli: Cli, run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "blocks.zarr"
    words = ("segment", f"{phantom}:volumes/raw", "--model", run, "--out", out, "--device", "cpu", "--sections", "0:4")
    processor(monkeypatch, UNABLE)
    begun = cli(*words, "--backend", "eager", "--merge", "0.5")
    assert begun.code == 0, begun.err
    assert begun.err.splitlines()[0].endswith("no bfloat16), precision 32-true (auto), backend eager")
    settings = json.loads((out / "blocks" / "job.json").read_text())
    assert (settings["precision"], settings["backend"], settings["precision_by"]) == ("32-true", "eager", "auto")
    before = open_volume(f"{out}:segmentation").read().tobytes()
    processor(monkeypatch, ABLE)
    resumed = cli(*words, "--resume", "--merge", "0.5")
    assert resumed.code == 0, resumed.err
    assert resumed.err.splitlines()[0].endswith(", bfloat16), precision 32-true (as the run began), backend eager")
    record = json.loads((tmp_path / "blocks.zarr.run.json").read_text())
    assert (record["precision"], record["precision_by"]) == ("32-true", "as the run began")
    assert open_volume(f"{out}:segmentation").read().tobytes() == before


def test_a_training_keeps_the_precision_that_it_began_with(
    train: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, auto = tmp_path / "run", "student.training.precision=auto"
    alone = ("student.training.warmup=9", "student.training.validate_every=9")
    processor(monkeypatch, UNABLE)
    begun = train(out, auto, *alone, "student.training.steps=2")
    assert begun.code == 0, begun.err
    assert "no bfloat16), precision 32-true (auto)" in begun.err.splitlines()[0]
    assert "precision: 32-true" in (out / "student.yaml").read_text()
    record = json.loads((out / "run.json").read_text())
    assert (record["precision"], record["precision_by"]) == ("32-true", "auto")
    processor(monkeypatch, ABLE)
    resumed = train(out, auto, *alone, "student.training.steps=2", "--resume")
    assert resumed.code == 0, resumed.err
    assert "precision 32-true (as the run began)" in resumed.err.splitlines()[0]
    assert json.loads((out / "run.json").read_text())["precision_by"] == "as the run began"
    other = train(out, "student.training.precision=bf16-mixed", *alone, "student.training.steps=2", "--resume")
    assert (other.code, "differs from the configuration given" in other.err) == (2, True)


def test_workers_elsewhere_get_what_each_of_them_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.inference.options import Options, start

    processor(monkeypatch, ABLE)
    found = [
        start(options, begun, elsewhere=True)
        for options, begun in (
            (Options(device="cuda"), {}),
            (Options(precision="bf16-mixed"), {}),
            (Options(), {"precision": "bf16-mixed", "backend": "compile"}),
        )
    ]
    assert [one.chosen.precision for one in found] == ["32-true", "bf16-mixed", "bf16-mixed"]
    assert [one.backend for one in found] == ["auto", "auto", "compile"]
    assert (
        found[0].lines[0].endswith("(auto: what every worker can do); --precision bf16-mixed where all workers have it")
    )


def test_a_store_that_says_auto_keeps_saying_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.inference.options import Options, start

    processor(monkeypatch, UNABLE)
    found = [start(Options(device="cpu"), begun) for begun in ({"backend": "auto"}, {"backend": "eager"}, {})]
    assert [one.backend for one in found] == ["auto", "eager", "openvino"]
    assert found[0].runtime.backend == "openvino"
    assert found[0].lines[0].endswith(", backend openvino")


def test_openvino_and_a_precision_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.inference.options import Options, start

    processor(monkeypatch, UNABLE)
    lines = start(Options(device="cpu", precision="bf16-mixed", backend="openvino"), {}).lines
    assert (
        lines[-1] == "warning: OpenVINO uses float32 for the student on this CPU; --backend eager keeps the precision"
    )
