"""The report's pace: seconds of steps, against single steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, find_browser

from distill.training.run_folder import pace, read_run
from viz.report.sections import command_line
from viz.report.time import duration


def test_pace_against_single_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = [10, 20, 25, 40, 41, 60]
    seconds, waited = rng.uniform(0.1, 1, len(steps)), rng.uniform(0, 0.1, len(steps))
    rows: list[dict[str, Any]] = [
        {"step": s, "loss": 1.0, "seconds": a, "waited": b} for s, a, b in zip(steps, seconds, waited, strict=True)
    ]
    rows.insert(3, {"step": 25, "validation_seconds": 9.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    each, waits, before = [], [], 0
    for s, a, b in zip(steps, seconds, waited, strict=True):
        each += [a] * (s - before)
        waits += [b] * (s - before)
        before = s
    for first, last in ((0, 60), (0, 25), (25, 60), (20, 41)):
        found = pace(run, first, last)
        assert found is not None
        assert (found.first, found.last) == (first, last)
        assert found.seconds == pytest.approx(sum(each[first:last]))
        assert found.median == pytest.approx(np.median(each[first:last]))
        assert found.waited == pytest.approx(sum(waits[first:last]) / sum(each[first:last]))
    assert pace(run, 60, 70) is None


def test_commands_and_durations() -> None:
    long = ["/usr/bin/distill", "stream", "a b.h5", *(f"--option{k} value{k}".split() for k in ())]
    assert command_line(long) == "distill stream 'a b.h5'"
    words = ["distill", "train", *[word for k in range(12) for word in (f"--option-{k}", f"value{k}")]]
    lines = command_line(words).split(" \\\n")
    assert " ".join(line.strip() for line in lines) == " ".join(words)
    assert len(lines) > 2
    assert max(map(len, lines)) < 110
    assert not any(line.split()[-1].startswith("--") for line in lines)
    assert command_line(None) == command_line([]) == ""
    said = [duration(s) for s in (0.04, 59.9, 60, 3599.6, 3600, 7325, float("nan"))]
    assert said == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "1 h 00 min", "2 h 02 min", "unknown time"]


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed")
def test_in_a_browser(run: Path, tmp_path: Path) -> None:
    """Light, dark and on paper: legible, nothing cut off, no request except for the page itself, no complaint."""
    seen = {}
    path = run / "report.html"
    with browser(tmp_path) as page:
        page.size(1280, 800)
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            page.goto(path.as_uri())
            page.wait("Array.from(document.images).every(image => image.complete && image.naturalWidth > 0)")
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            assert page.evaluate("getComputedStyle(document.body).fontFamily").startswith("system-ui")
            seen[scheme] = page.screenshot().astype(int)
        for name in ("Scores", "Worst errors", "How to repeat it", "validation_student.png"):
            assert name in page.evaluate("document.body.innerText")
        paper = page.pdf()
        assert set(page.requests()) == {path.as_uri()}
        assert page.complaints() == []
    assert seen["light"].shape == (800, 1280, 3)
    assert np.median(seen["light"]) > 240
    assert np.median(seen["dark"]) < 40
    for pixels in seen.values():  # text stands out
        assert (np.abs(pixels - np.median(pixels)).max(-1) > 120).mean() > 0.005
    assert paper.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 3
