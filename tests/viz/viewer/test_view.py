"""What a view opens and says, how it ends, and that a browser shows it without asking any other machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from browser import SOFTWARE_WEBGL, browser, find_browser

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from distill.io.writers.store import create_zarr, write_group_attributes
from viz.viewer.view import Sources, find_errors, open_browser, open_layers, read_worst, view

NM = (30.0, 6.0, 6.0)
SHAPE = (4, 64, 96)
PLACE = (2 * 30.0, 0.0, 0.0)
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as `distill stream` leaves one, of the sections 2 to 5 of a volume that it names."""
    folder = tmp_path_factory.mktemp("view")
    rng = np.random.default_rng(0)
    truth = np.arange(1, 25, dtype=np.uint64).reshape(1, 4, 6).repeat(8, 0).repeat(16, 1).repeat(16, 2)
    found = truth[2:6] + np.uint64(100)
    found[:, :, 40:48][found[:, :, 40:48] == 103] = 200  # a part of object 3
    found[found == 105] = 106  # objects 5 and 6
    raw = np.where(truth % 2, 90, 160).astype(np.uint8) + rng.integers(0, 40, truth.shape, dtype=np.uint8)
    write_cremi(folder / "volume.h5", raw=raw, labels=truth, resolution=NM)
    out = folder / "out.zarr"
    for name, array in (
        ("segmentation", found),
        ("affinity", rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8)),
        ("embedding", rng.normal(size=(5, *SHAPE)).astype(np.float32)),
    ):
        stored = create_zarr(out, name, shape=array.shape, dtype=array.dtype, resolution=NM, offset=PLACE)
        for z in range(SHAPE[0]):
            stored.write_section(z, np.ascontiguousarray(array[..., z, :, :]))
    write_group_attributes(out, {"made_by": {"source": f"{folder}/volume.h5:volumes/raw"}})
    return out


@pytest.fixture(scope="module")
def evaluation(made: Path, cli: Cli) -> Path:
    """What `distill evaluate --json` says about it."""
    said = cli("evaluate", f"{made}:segmentation", made.parent / "volume.h5", "--json")
    assert said.code == 0, said.err
    path = made.parent / "evaluation.json"
    path.write_text(said.out)
    return path


def names(sources: Sources, out: Path, notes: list[str] | None = None) -> list[tuple[str, str]]:
    shown = open_layers(out, sources, (notes if notes is not None else []).append)
    return [(one.name, one.kind) for one in shown]


@pytest.mark.commands("view")
def test_layers_of_a_store(made: Path, tmp_path: Path) -> None:
    labels = str(made.parent / "volume.h5:volumes/labels/neuron_ids")
    own = [("segmentation", "labels"), ("affinity z y x", "affinity"), ("embedding", "embedding")]
    assert names(Sources(), made) == [("raw", "raw"), *own]
    assert names(Sources(labels=labels), made) == [("raw", "raw"), own[0], ("ground truth", "labels"), *own[1:]]
    shown = open_layers(made, Sources(), print)
    assert shown[0].volume.shape == (8, 64, 96)
    assert shown[1].volume.offset == PLACE
    np.save(tmp_path / "other.npy", np.zeros((2, *SHAPE), np.float32))
    given = Sources(raw=f"{made}:segmentation", embedding=str(tmp_path / "other.npy"), resolution=(1, 2, 3))
    shown = open_layers(made, given, print)
    assert shown[0].volume.source == f"{made}:segmentation"
    assert shown[-1].volume.shape == (2, *SHAPE)
    assert shown[-1].volume.resolution == (1, 2, 3)


def test_image_that_has_gone_is_said(made: Path) -> None:
    notes: list[str] = []
    for attributes in ({"made_by": {"source": "gone.h5"}}, {}, {"made_by": 3}, {"made_by": {}}):
        with mock.patch("viz.viewer.view.zarr_node", return_value=("group3", attributes)):
            assert names(Sources(), made, notes)[0] == ("segmentation", "labels")
    assert notes == ["no image: gone.h5: no such file; give it as --raw"]


def test_nothing_to_show(made: Path, tmp_path: Path) -> None:
    create_zarr(tmp_path / "a.zarr", "other", shape=SHAPE, dtype=np.uint8, resolution=NM)
    for out, found in ((tmp_path / "gone", "no Zarr group"), (tmp_path / "a.zarr", "other"), (made / "affinity", "no")):
        with pytest.raises(
            SourceError, match=rf"{re.escape(str(out))}: found {found}.*expected a store of distill stream"
        ):
            open_layers(out, Sources(), print)


def test_errors_of_an_evaluation(made: Path, evaluation: Path) -> None:
    shown = open_layers(made, Sources(labels=str(made.parent / "volume.h5")), print)
    split, merge = sorted(find_errors(shown, evaluation, lambda done, total: None), key=lambda s: s.kind)[::-1]
    assert (split.kind, split.error.id, split.pieces) == ("split", 3, (103, 200))
    assert (merge.kind, merge.error.id, merge.pieces) == ("merge", 106, (5, 6))
    assert 40 <= split.voxel[2] < 48


def test_marks_lie_on_their_objects_and_pick_their_ids(made: Path, evaluation: Path) -> None:
    labels = str(made.parent / "volume.h5")
    lines: list[str] = []
    with mock.patch("viz.viewer.view.serve") as served, mock.patch("threading.Event.wait"):
        served.return_value.__enter__.return_value = "http://x"
        view(
            made,
            Sources(labels=labels, evaluation=evaluation),
            7,
            on_block=lambda done, total: None,
            note=lines.append,
            ready=lambda address, errors: lines.extend([address, *errors]),
        )
    shown, marks, port = served.call_args.args
    assert ([one.name for one in shown][:3], port) == (["raw", "segmentation", "ground truth"], 7)
    truth, found = open_labels(labels).read(), open_labels(f"{made}:segmentation").read()
    assert lines[0] == "http://x"
    for mark, line in zip(marks, lines[1:], strict=True):
        z, y, x = (int(place // nm) for place, nm in zip(mark.place, NM, strict=True))
        assert line == f"{mark.text}; x {x}, y {y}, z {z}"
        wanted = ({"ground truth": (3,), "segmentation": (103, 200)}, {"segmentation": (106,), "ground truth": (5, 6)})
        assert mark.ids == wanted["merge" in mark.text]
        assert truth[z, y, x] in mark.ids["ground truth"]
        assert found[z - 2, y, x] in mark.ids["segmentation"]


def test_evaluations_that_do_not_fit(made: Path, evaluation: Path, tmp_path: Path) -> None:
    labels = str(made.parent / "volume.h5:volumes/labels/neuron_ids")
    shown = open_layers(made, Sources(labels=labels), print)
    worst = {"id": 999, "bits": 1.0, "voxels": 3, "pieces": 2}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"worst": {"split": [worst], "merged": []}}))
    with pytest.raises(DistillError, match=r"other\.json: is of other volumes: .*no voxel of id 999"):
        find_errors(shown, other, lambda done, total: None)
    with pytest.raises(DistillError, match="--labels: found none, expected the ground truth of the evaluation"):
        find_errors(open_layers(made, Sources(), print), evaluation, lambda done, total: None)
    part = open_layers(made, Sources(labels=f"{made}:segmentation"), print)
    part[2] = part[2].__class__("ground truth", "labels", open_volume(labels, offset=(3000, 0, 0)))
    with pytest.raises(ShapeError, match="does not cover the voxels"):
        find_errors(part, evaluation, lambda done, total: None)
    for text in (
        "{",
        "[]",
        "{}",
        '{"worst": 3}',
        '{"worst": {"split": []}}',
        '{"worst": {"split": [{"id": 1}], "merged": []}}',
    ):
        other.write_text(text)
        with pytest.raises(DistillError, match=r"other\.json: found .*, expected what distill evaluate --json prints"):
            read_worst(other)
    other.write_text(json.dumps({"worst": {"split": [worst | {"id": "1"}], "merged": []}}))
    with pytest.raises(DistillError, match="expected what distill evaluate --json prints"):
        read_worst(other)
    with pytest.raises(SourceError, match=r"gone\.json: cannot be read: No such file"):
        read_worst(tmp_path / "gone.json")


def test_wrong_use_of_the_command(made: Path, cli: Cli) -> None:
    said = cli("view", made.parent / "gone.zarr")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "gone.zarr: found no Zarr group" in said.err
    assert cli("view", made, "--port", "70000").code == 2
    with mock.patch.dict(sys.modules, {"neuroglancer": None}):
        said = cli("view", made, "--no-open")
    assert said.code == 2
    assert "expected the extra: pip install 'affinity-distill[view]'" in said.err


def test_a_browser_opens_only_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with mock.patch("webbrowser.open") as opened:
        open_browser("http://a")
        assert not opened.called
        monkeypatch.setenv("DISPLAY", ":0")
        open_browser("http://b")
        assert opened.mock_calls == [mock.call("http://b")]


@contextmanager
def viewing(*words: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`distill view WORDS` as a process of its own, once it has said its address; what it said till then."""
    pytest.importorskip("neuroglancer", reason="the extra `view` is not installed")
    command = [sys.executable, "-W", "error", "-c", "from distill.cli import main; main()", "view", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--no-open"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if "http://" in line:
                break
        assert said, "it ended without a word"
        assert "http://127.0.0.1:" in said[-1], said
        yield process, said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly(made: Path, number: int) -> None:
    with viewing(made) as (process, said):
        address = said[-1].split()[0]
        straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with straight.open(address, timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "viewer ended\n"


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed")
def test_in_a_browser(made: Path, evaluation: Path, tmp_path: Path) -> None:
    """The page draws, its chunks come, `j` goes to the next error, and all of it comes from this machine."""
    with (
        viewing(made, "--labels", made.parent / "volume.h5", "--evaluation", evaluation) as (process, said),
        browser(tmp_path, *SOFTWARE_WEBGL, "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1") as page,
    ):
        address = said[-1].split()[0]
        errors = [line for line in said if re.match(r"\d\. (split|merge) ", line)]
        places = [tuple(map(int, re.findall(r"[xyz] (\d+)", line))) for line in errors]
        assert len(errors) == 2
        page.size(900, 600)
        page.goto(address, "!!document.querySelector('canvas')", 30)
        fields = "Array.from(document.querySelectorAll('.neuroglancer-position-dimension-coordinate'))"
        at = fields + ".slice(0, 3).map(field => field.value).join()"
        page.wait(f"{at} === '{','.join(map(str, places[0]))}'", 20)
        page.wait_until(lambda: len(np.unique(page.screenshot()[150:500, 50:550].reshape(-1, 3), axis=0)) > 500, 30)
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, code="KeyJ", key="j", windowsVirtualKeyCode=74)
        page.wait(f"{at} === '{','.join(map(str, places[1]))}'", 20)
        assert f"error 2 of 2: {errors[1][3:].partition(';')[0]}" in page.evaluate("document.body.innerText")
        origin = address.partition("/v/")[0]
        asked = page.requests()
        assert any("/neuroglancer/info/" in url for url in asked)
        assert any("/neuroglancer/npz/" in url for url in asked)
        assert {url for url in asked if not url.startswith((origin, f"blob:{origin}"))} == set()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
