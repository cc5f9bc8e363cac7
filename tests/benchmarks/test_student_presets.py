"""The benchmark of the students at a tiny size; multiply-adds against the paper."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import student_presets
import torch
from student_presets import PRESETS, main, make


def test_every_way_to_run_has_time_memory_and_a_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "out.json", torch.get_num_threads()
    words = ["--presets", "smp-resnet10t", "--size", "48", "--threads", "1", "--repeat", "1"]
    assert main([*words, "--json", str(out)]) == 0
    assert torch.get_num_threads() == threads
    text = out.read_text()
    assert str(tmp_path) not in text
    result = json.loads(text)
    assert result["machine"]["threads"] == [1]
    assert [one["preset"] for one in result["presets"]] == ["smp-resnet10t"]
    for one in result["presets"]:
        assert one["parameters"] == sum(p.numel() for p in make(one["preset"]).parameters())
        assert one["encode_multiply_adds"] > 0
        assert one["decode_multiply_adds"] > 0
        assert 32 < min(one["receptive_field"]) <= max(one["receptive_field"]) < 512
        ways = {(t["threads"], t["precision"], t["channels_last"]) for t in one["timings"]}
        assert len(ways) == len(one["timings"]) == 4
        for timing in one["timings"]:
            assert timing["peak_bytes"] is None or timing["peak_bytes"] >= 0
            assert timing["seconds_min"] >= timing["encode"] + timing["decode"] - 1e-9
            for key in ("encode", "decode", "seconds_median", "floor", "ratio"):
                assert math.isfinite(timing[key]), key
                assert timing[key] > 0, key
    printed = capsys.readouterr().out
    assert "receptive field px" in printed
    assert "1 thread, bf16-mixed" in printed


def test_a_pair_takes_the_operations_that_the_paper_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liu et al., CVPR 2024: 147.7 G operations for a pair of 1024 x 1024; they grow with the area."""
    monkeypatch.setattr(student_presets, "DTYPES", {"32-true": torch.float32})  # operations are those of any precision
    out = tmp_path / "out.json"
    assert main(["--presets", "cad", "--size", "64", "--threads", "1", "--repeat", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["presets"][0]
    pair = 2 * (2 * found["encode_multiply_adds"] + found["decode_multiply_adds"]) * (1024 / 64) ** 2
    assert pair / 1e9 == pytest.approx(147.7, abs=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs(preset: str) -> None:
    student, section = make(preset), torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        found = student(section, section)
    assert found.current.shape == (1, PRESETS[preset].embedding, 32, 32)
