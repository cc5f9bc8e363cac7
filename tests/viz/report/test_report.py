"""The report of a run: what it holds, what it does without, and that it never costs a run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from pages import Page
from PIL import Image

from distill.core.errors import DistillError, SourceError
from distill.evaluation.segmentation import evaluate
from distill.inference.options import Runtime
from distill.io.volume import open_labels, open_volume, volume_from_array
from distill.io.writers.store import create_zarr
from distill.training.data import LabelledPart
from distill.training.run_folder import read_run
from distill.training.train import FinishedTraining
from distill.training.validation import MERGE_THRESHOLDS
from viz.report.report import report, report_after_training
from viz.report.time import split

Cli = Callable[..., Any]


NM = (30.0, 6.0, 6.0)


CPU = Runtime(torch.device("cpu"), "32-true")


SECTIONS = [
    "What was run",
    "Scores",
    "Figures",
    "Seams",
    "Worst errors",
    "Curves",
    "Time",
    "Configuration",
    "How to repeat it",
]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own."""
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("state.pt", "report.html")))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def written(run: Path, **options: Any) -> Page:
    """A report, whose notes fail the test."""

    def note(line: str) -> None:
        raise AssertionError(line)

    return read(report(run, **{"note": note, **options}))


def table(page: Page, caption: str) -> list[list[str]]:
    """Rows of a table, head included."""
    start = next(k for k, one in enumerate(page.elements) if one.tag == "caption" and one.text.startswith(caption))
    rows: list[list[str]] = []
    for one in page.elements[start + 1 :]:
        if one.tag in ("table", "section", "footer"):
            break
        if one.tag == "tr":
            rows.append([])
        elif one.tag in ("th", "td"):
            rows[-1].append(one.text)
    return rows


def store(path: Path, phantom: Path, wrong: bool) -> Path:
    """Sections 12 to 15 of the phantom's labels as a segmentation, with two of its objects joined."""
    labels = open_labels(phantom).read()[12:16]
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    if wrong:
        one, other = ids[np.argsort(counts)[-2:]]
        labels[labels == one] = other
    array = create_zarr(path, "segmentation", shape=labels.shape, dtype=np.uint64, resolution=NM, offset=(360, 0, 0))
    for z, section in enumerate(labels):
        array.write_section(z, section)
    return path


@pytest.mark.commands("report")
def test_training_ends_with_a_report(run: Path, phantom: Path) -> None:
    found = read(run / "report.html")
    assert found.text_of("h2") == SECTIONS
    assert found.text_of("h1") == [f"Run {run.name}"]
    assert "finished" in found.text_of("p")[0]
    assert found.text_of("p")[0].startswith("Teacher agq, student cad: 4 steps in ")
    facts = dict(zip(found.text_of("dt"), found.text_of("dd"), strict=True))
    assert facts["Seed"] == "1"
    assert facts["Image"] == f"{phantom}:volumes/raw"
    assert facts["Sections, train"] == "0:12 (the last one excluded)"
    assert "torch" in facts["Versions"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = {row["step"]: row["validation_student"] for row in rows if "validation_student" in row}
    shown = [row for row in table(found, "Validation, preset skimage") if row[0].startswith("student")]
    assert [row[4] for row in shown] == [f"{scored[int(row[1])]['voi']:.3f}" for row in shown]
    best = min(scored, key=lambda step: scored[step]["voi"])
    assert facts["VOI, student"].startswith(f"{scored[best]['voi']:.3f}bits, step {best}")
    terms = read_run(run).terms()
    charts = [drawing.attributes["aria-label"] or "" for drawing in found.all("svg")]
    assert len(charts) == 4 + 1 + len(terms) + 2
    assert f"loss: {rows[-2]['loss']:.4g} at 4." in next(label for label in charts if label.startswith("Loss, the sum"))
    pictures = [image.attributes["alt"] or "" for image in found.all("img")]
    for name in ("validation_student.png", "validation_teacher.png", "sweep.png", "pca.png", "curves.png"):
        assert sum(alt.startswith(name) for alt in pictures) == 1
    assert found.text_of("code")[:2] == [(run / name).read_text() for name in ("teacher.yaml", "student.yaml")]
    assert not list(run.glob("*.writing"))


def test_training_keeps_its_last_section(run: Path, phantom: Path) -> None:
    kept = run / "last_validation.zarr"
    raw, labels = open_volume(f"{kept}:raw"), open_labels(f"{kept}:labels")
    assert raw.offset == labels.offset == (14 * 30.0, 0.0, 0.0)
    np.testing.assert_array_equal(raw.read()[0], open_volume(phantom).read()[14])
    np.testing.assert_array_equal(labels.read()[0], open_labels(phantom).read()[14])
    rows = table(read(run / "report.html"), "Segmentations against ground truth")[1:]
    assert [row[0] for row in rows] == ["last validation, student", "last validation, teacher"]
    for row, name in zip(rows, ("student", "teacher"), strict=True):
        scores = evaluate(f"{kept}:{name}", str(phantom), "skimage").scores
        assert row[3:] == ["skimage", *(f"{n:.3f}" for n in (scores.voi_split, scores.voi_merge, scores.voi_sum)),
                           f"{scores.arand:.3f}", str(scores.n_true), str(scores.n_pred)]  # fmt: skip
        assert row[2] == "14:15"
    errors = [text for text in read(run / "report.html").text_of("figcaption") if text.startswith(("Merge", "Split"))]
    assert errors
    assert all("; section 14, y " in text for text in errors)


def test_stores_in_the_run_folder_are_scored(copy: Path, phantom: Path) -> None:
    store(copy / "right.zarr", phantom, wrong=False)
    wrong = store(copy / "wrong.zarr", phantom, wrong=True)
    (copy / "wrong.zarr.run.json").write_text(
        json.dumps({"command": ["/x/distill", "segment", "a b", "--out", "o"], "method": "query", "network": "teacher"})
    )
    found = written(copy)
    rows = table(found, "Segmentations against ground truth")
    assert [row[0] for row in rows] == ["Segmentation", "right.zarr", "wrong.zarr"]
    assert rows[1][1:8] == ["–", "12:16", "skimage", "0.000", "0.000", "0.000", "0.000"]
    scores = evaluate(f"{wrong}:segmentation", str(phantom), "skimage").scores
    assert rows[2][1:4] == ["teacher, query", "12:16", "skimage"]
    assert rows[2][5] == f"{scores.voi_merge:.3f}"
    errors = [text for text in found.text_of("figcaption") if text.startswith(("Merge", "Split"))]
    assert len(errors) == 1
    assert re.fullmatch(
        r"Merge \d\.\d{3} bits: segment \d+ covers 2 objects; [\d,]+ voxels; section 1[2-5], .*", errors[0]
    )
    assert "No error." in found.text_of("p")
    assert "distill segment 'a b' --out o" in found.text_of("code")
    named = written(copy, segmentations=[str(wrong)], preset="cremi")
    assert [row[0] for row in table(named, "Segmentations against")][1:] == ["wrong.zarr"]
    assert table(named, "Segmentations against")[1][3] == "cremi"


def test_what_cannot_be_scored_is_said_and_left_out(copy: Path, phantom: Path, cli: Cli) -> None:
    store(copy / "right.zarr", phantom, wrong=False)
    broken = store(copy / "broken.zarr", phantom, wrong=False)
    (broken / "segmentation" / "zarr.json").write_text('{"node_type": "array", "shape": [4, 4, 4]}')
    said = cli("report", copy)
    assert said.code == 0
    assert said.err.startswith("broken.zarr is not scored: ")
    assert said.out.startswith(f"{copy}/report.html: ")
    assert len(table(read(copy / "report.html"), "Segmentations against ground truth")) == 2
    said = cli("report", copy, "--segmentation", broken)
    assert (said.code, said.err.count("\n")) == (2, 1)
    said = cli("report", copy, "--labels", "gone.h5")
    assert (said.code, said.err) == (2, "distill: gone.h5: no such file\n")


def test_markup_in_names_stays_text(copy: Path) -> None:
    evil = "<script>alert(1)<"
    folder = copy.parent / evil / "script><img src=x onerror=alert(2)>"  # a path that holds a whole script element
    folder.parent.mkdir()
    copy.rename(folder)
    (folder / "figures" / "<b>bold<.png").write_bytes((folder / "figures" / "curves.png").read_bytes())
    record = json.loads((folder / "run.json").read_text())
    record |= {"ended": "<script>x</script>", "command": ["distill", "</code><script>"], "seed": "<i>"}
    record["machine"] = {"<u>": {"</dd>": "<s>"}}
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"step": 4, "loss": 1.0, "<script>alert(3)</script>": 2.0, "validation_<p>": {"voi": 1}}))
    with (folder / "student.yaml").open("a") as text:
        text.write("# </code></pre><script>alert(4)</script>\n")
    found = written(folder)  # its reader refuses any script element
    assert found.text_of("h1") == [f"Run {folder.name}"]
    facts = dict(zip(found.text_of("dt"), found.text_of("dd"), strict=True))
    assert facts["Run folder"] == str(folder)
    assert "<script>" in facts["Run folder"]
    assert facts["Machine"] == "<u> </dd> <s>"
    assert "<b>bold<.png" in "".join(found.text_of("figcaption"))
    assert any("<script>alert(4)" in text for text in found.text_of("code"))


def test_a_folder_with_little_in_it(copy: Path, tmp_path: Path, cli: Cli) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (bare / "metrics.jsonl").write_text(lines[0] + '\n[1]\n{"step": "x"}\n' + lines[1][:-20])  # cut off by a crash
    found = written(bare)
    assert found.text_of("h2") == ["What was run", "Scores", "Worst errors", "Curves", "Time", "How to repeat it"]
    assert "No validation was logged." in found.text_of("p")
    (bare / "metrics.jsonl").write_text("")
    assert written(bare).text_of("h2")[0] == "What was run"
    said = cli("report", tmp_path)
    assert (said.code, said.err) == (
        2,
        f"distill: {tmp_path}: found no metrics.jsonl, expected a run folder of distill train\n",
    )
    (bare / "run.json").write_text("{")
    with pytest.raises(SourceError, match="bare: cannot be read"):
        written(bare)


def test_the_best_step_has_the_lowest_voi(tmp_path: Path) -> None:
    rows = [(10, 2.0, 0.3), (20, 1.25, 0.4), (30, 1.5, 0.2)]
    lines = [json.dumps({"step": s, "validation_student": {"voi": voi, "arand": a}}) for s, voi, a in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = written(tmp_path)
    facts = dict(zip(found.text_of("dt"), found.text_of("dd"), strict=True))
    assert facts["VOI, student"] == "1.250bits, step 20, validation"
    assert facts["ARAND, student"] == "0.400same step"
    assert [row[0] for row in table(found, "Validation")[1:]] == ["student", "student, best", "student"]


def test_places(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    assert read(report(copy, tmp_path / "deep" / "a.HTM", note=print)).text_of("h2") == SECTIONS
    for out in ("report.h5", "report", ""):
        with pytest.raises(DistillError, match=r"expected a name that ends in \.html"):
            report(copy, tmp_path / out, note=print)
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"a\.html: cannot be written"):
        report(copy, tmp_path / "file" / "a.html", note=print)
    (tmp_path / "dir.html").mkdir()
    with pytest.raises(SourceError, match=r"dir\.html: cannot be written"):
        report(copy, tmp_path / "dir.html", note=print)
    (copy / "student.yaml").unlink()
    with pytest.raises(DistillError, match="--labels: found none, nor any in"):
        report(copy, segmentations=["a.zarr"], note=print)


def test_figures_are_bounded_in_number_and_size(copy: Path) -> None:
    folder = copy / "figures"
    noise = np.random.default_rng(0).integers(0, 256, (100, 200), dtype=np.uint8)
    for k in range(30):
        Image.fromarray(noise).save(folder / f"extra_{k:02d}.png")
    (folder / "extra_05.png").write_bytes(b"no image")
    found = written(copy)
    shown = [text for text in found.text_of("figcaption") if ".png" in text]
    assert len(shown) == 24 - 1 + 1  # the embeddings have a section of their own
    hints = "\n".join(found.text_of("p"))
    assert hints.count("not shown, this page holds 24 figures") == 34 - 24
    assert "extra_05.png: cannot be shown" in hints
    assert [text.partition(".")[0] for text in shown[:4]] == [
        "validation_student",
        "validation_teacher",
        "sweep",
        "curves",
    ]


@pytest.mark.parametrize("error", [SourceError("no room"), OSError(28, "No space left"), KeyError("defect")])
def test_a_failing_report_does_not_fail_the_run(copy: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.read_bytes() for path in (copy / "best").iterdir()}
    volume = volume_from_array(np.zeros((1, 2, 2), np.uint64), (30, 6, 6))
    nothing = LabelledPart(volume.read(), volume.read(), volume, volume.box, "nothing")
    with mock.patch("viz.report.report._document", side_effect=error), caplog.at_level(logging.WARNING):
        report_after_training(FinishedTraining(copy, {}, nothing, CPU))
    (said,) = caplog.records
    assert said.getMessage().startswith("no report")
    assert f"distill report {copy}" in said.getMessage()
    assert (said.exc_info is not None) == isinstance(error, KeyError)
    assert {path: path.read_bytes() for path in (copy / "best").iterdir()} == before
    assert not (copy / "report.html").exists()
    report_after_training(FinishedTraining(copy, {}, nothing, CPU))  # a resumed run that was done already
    assert (copy / "report.html").is_file()


def test_seam_scores_of_training_are_shown(run: Path) -> None:
    found = json.loads((run / "figures" / "seams.json").read_text())
    assert found["section"] == 14
    assert found["window_zyx"] == [4, 48, 48]
    rows = table(
        read(run / "report.html"), "Seam scores with 95 % intervals, section 14, windows of 4 × 48 × 48 voxels"
    )
    assert rows[0][2:4] == ["Teacher", "Student"]
    for row, key in zip(rows[1:], ("border", "shift"), strict=True):  # one border has no stride
        for cell, name in zip(row[2:4], ("teacher", "student"), strict=True):
            score = found[name] if key == "border" else found[name][key]
            assert cell == f"{score['ratio']:.2f} ({score['low']:.2f} to {score['high']:.2f})"
    assert [row[1] for row in rows[1:]] == ["1", "0"]


def test_seams_are_measured_on_demand(copy: Path, cli: Cli) -> None:
    before = (copy / "figures" / "seams.json").read_text()
    for name in ("seams.json", "pca.png"):
        (copy / "figures" / name).unlink()
    assert "Seams" not in written(copy).text_of("h2")
    assert cli("report", copy, "--seams", "--device", "cpu", "--precision", "bf16-mixed").code == 0
    assert json.loads((copy / "figures" / "seams.json").read_text())["section"] == json.loads(before)["section"]
    assert "Seams" in read(copy / "report.html").text_of("h2")
    (copy / "figures" / "pca.png").write_bytes(b"no image")
    (copy / "figures" / "seams.json").write_text('{"teacher": {"ratio": "<b>"}, "student": 3}')
    assert any("pca.png: cannot be shown" in text for text in written(copy).text_of("p"))
    said = cli("report", copy, "--seams", "--precision", "fp16")
    assert (said.code, said.err) == (
        2,
        "distill: Invalid value for '--precision': 'fp16' is not one of 'auto', '32-true', 'bf16-mixed', 'int8'.\n",
    )


def test_the_sweep_is_that_of_the_best_validation(copy: Path) -> None:
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "validation_student" in row:
            one = row["validation_student"]
            assert [t for t, *_ in one["sweep"]] == [None, *MERGE_THRESHOLDS]
            best = min(one["sweep"], key=lambda s: s[1] + s[2])
            assert (best[0], best[1] + best[2]) == (one["merge_threshold"], pytest.approx(one["voi"]))
    drawn: list[Any] = []
    with mock.patch("viz.report.images.sweep_figure", side_effect=lambda *given: drawn.append(given)):
        written(copy)
        [(points, out, chosen, *_)] = drawn
        assert out == copy / "figures" / "sweep.png"
        for name in ("student", "teacher"):
            scored = [row[f"validation_{name}"] for row in rows if f"validation_{name}" in row]
            best = min(scored, key=lambda one: one["voi"])
            own = [p for p in points if p.method == f"{name} + queries"]
            assert [(p.split, p.merge, p.arand) for p in own] == [tuple(s[1:]) for s in best["sweep"]]
            assert chosen[f"{name} + queries"] == (best["merge_threshold"] or 1.0)
            assert own[0].threshold == 1.0
        broken = {"step": 1, "validation_student": {"voi": 1, "sweep": [[1]]}}
        (copy / "metrics.jsonl").write_text(json.dumps(broken))
        said: list[str] = []
        report(copy, note=said.append)
        assert said[0].startswith("the threshold sweep is not drawn")


def test_time_split_against_single_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    steps, names = [10, 20, 25, 40], ("data", "teacher", "backward")
    rows, each, before = [], [], 0
    for step in steps:
        parts = dict(zip(names, rng.uniform(0.1, 0.3, 3).tolist(), strict=True))
        rows.append({"step": step, "loss": 1.0, "seconds": sum(parts.values()) + 0.05, "parts": parts})
        each += [[*parts.values(), 0.05]] * (step - before)
        before = step
    rows.insert(2, {"step": 20, "validation_seconds": 9.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    for first, last in ((0, 40), (0, 20), (20, 40)):
        found = split(run, first, last)
        assert list(found) == [*names, "other"]
        np.testing.assert_allclose(list(found.values()), np.mean(each[first:last], axis=0))
    assert split(run, 40, 50) == {}
    head, row = table(written(tmp_path), "Where the time of a step goes")
    assert head == ["Part", "Data", "Teacher", "Backward", "Other"]
    shares = [int(re.search(r"\((\d+) %\)", cell)[1]) for cell in row[1:]]  # type: ignore[index]
    assert abs(sum(shares) - 100) <= 2


def test_resumed_runs_tell_their_parts(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    earlier = {"started": "2026-01-02T03:04:05+0000", "first_step": 0, "seconds": 3700.0, "ended": "Interrupted: stop"}
    (copy / "run.json").write_text(json.dumps(record | {"earlier": [earlier], "first_step": 2, "seconds": 20.0}))
    found = written(copy)
    assert table(found, "Earlier parts")[1] == ["2026-01-02T03:04:05+0000", "0", "1 h 01 min", "Interrupted: stop"]
    assert "in 1 h 02 min" in found.text_of("p")[0]
    (copy / "run.json").write_text(json.dumps(record | {"ended": "running"}))
    assert "not finished when this page was written" in written(copy).text_of("p")[0]
