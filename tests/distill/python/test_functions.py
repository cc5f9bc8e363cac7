"""The commands as functions: the same results as from the command line, on the same stores."""

from __future__ import annotations

import ast
import json
import re
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

import distill
from distill.core.errors import DistillError

PRECISE: dict[str, Any] = {"device": "cpu", "precision": "32-true"}
Cli = Callable[..., Any]


def same_arrays(one: Path, other: Path) -> bool:
    """Whether two stores have the same chunks."""
    kept = [
        {path.relative_to(store): path.read_bytes() for path in sorted(store.rglob("c/**/*")) if path.is_file()}
        for store in (one, other)
    ]
    return bool(kept[0]) and kept[0] == kept[1]


def picture(found: Any) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of the image that a notebook shows."""
    shown = re.search('base64,([^"]+)', found._repr_html_())
    assert shown is not None
    image = imread(BytesIO(b64decode(shown[1])))
    return np.rint(image[..., :3] * 255).astype(np.uint8)


def test_a_stream_is_that_of_the_command(
    run: Path, phantom: Path, cli: Cli, cpu: tuple[str, ...], tmp_path: Path
) -> None:
    source, mine, theirs = f"{phantom}:volumes/raw", tmp_path / "mine.zarr", tmp_path / "theirs.zarr"
    seen: list[tuple[int, int | None]] = []
    found = distill.stream(
        source, run, mine, sections=(2, 9), **PRECISE, progress=lambda done, total: seen.append((done, total))
    )
    said = cli("stream", source, "--model", run, "--out", theirs, "--sections", "2:9", *cpu)
    assert said.code == 0, said.err
    assert (found.sections, found.finished) == (7, True)
    assert seen[-1] == (7, 7)
    assert same_arrays(mine, theirs)
    assert repr(found) == f"StoredStream({str(mine)!r}, 7 sections, 0 bad, {found.objects} objects, finished)"
    assert found.objects == np.count_nonzero(np.unique(distill.open_labels(f"{mine}:segmentation").read()))
    assert picture(found).shape == (96, 96, 3)


def test_blocks_are_those_of_the_command(
    run: Path, phantom: Path, cli: Cli, cpu: tuple[str, ...], tmp_path: Path
) -> None:
    source, mine, theirs = f"{phantom}:volumes/raw", tmp_path / "mine.zarr", tmp_path / "theirs.zarr"
    found = distill.segment(source, run, mine, method="waterz", merge=0.4, sections=(0, 6), **PRECISE)
    words = ("--method", "waterz", "--merge", "0.4", "--sections", "0:6")
    said = cli("segment", source, "--model", run, "--out", theirs, *words, *cpu)
    assert said.code == 0, said.err
    assert same_arrays(mine, theirs)
    assert repr(found) == f"StoredBlocks({str(mine)!r}, {found.about['objects']} objects by waterz, 2 x 1 x 1 blocks)"
    ids = distill.open_labels(f"{mine}:segmentation").read()[3]
    assert len(np.unique(picture(found).reshape(-1, 3), axis=0)) == len(np.unique(ids))


def test_a_store_without_neurons_has_no_picture(run: Path, phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    found = distill.stream(f"{phantom}:volumes/raw", run, out, segments=False, sections=(0, 3), **PRECISE)
    assert found._repr_html_() is None
    assert "3 sections, 0 bad, no neurons, finished" in repr(found)


def test_stores_are_continued_or_replaced_only_if_asked(run: Path, phantom: Path, tmp_path: Path) -> None:
    source, out = f"{phantom}:volumes/raw", tmp_path / "out.zarr"
    distill.stream(source, run, out, segments=False, sections=(0, 3), **PRECISE)
    with pytest.raises(DistillError, match="exists already"):
        distill.stream(source, run, out, segments=False, sections=(0, 3), **PRECISE)
    distill.stream(source, run, out, segments=False, sections=(0, 3), **PRECISE, resume=True)
    with pytest.raises(DistillError, match="resume: found overwrite as well"):
        distill.stream(source, run, out, resume=True, overwrite=True)
    distill.stream(source, run, out, segments=False, sections=(0, 2), **PRECISE, overwrite=True)
    assert distill.open_volume(f"{out}:affinity").size[0] == 2


def test_scores_of_sources_and_arrays_are_those_of_the_command(
    run: Path, phantom: Path, cli: Cli, tmp_path: Path
) -> None:
    out, labels = tmp_path / "out.zarr", f"{phantom}:volumes/labels/neuron_ids"
    distill.segment(f"{phantom}:volumes/raw", run, out, sections=(0, 6), **PRECISE)
    result = f"{out}:segmentation"
    found = distill.evaluate(result, labels)
    said = cli("evaluate", result, labels, "--json")
    assert said.code == 0, said.err
    command = json.loads(said.out)
    assert found.voi_sum == pytest.approx(_first(command, "voi_sum"))
    segments, truth = distill.open_labels(result).read(), distill.open_labels(labels).read()[:6]
    assert distill.evaluate(segments, truth).voi_sum == pytest.approx(found.voi_sum)


def _first(tree: Any, key: str) -> Any:
    """The first value of a key anywhere in nested dictionaries."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        for value in tree.values():
            if (found := _first(value, key)) is not None:
                return found
    return None


def test_a_label_can_be_left_out() -> None:
    truth = np.zeros((2, 4, 4), np.int64)
    truth[:, :, :2], truth[:, :, 2:] = 5, -1
    right = np.where(truth == 5, 1, np.arange(32).reshape(2, 4, 4) + 2).astype(np.uint64)
    assert distill.evaluate(right, truth, ignore=-1).voi_sum == 0


def test_two_kinds_of_input_are_not_mixed() -> None:
    ids = np.ones((2, 4, 4), np.uint64)
    with pytest.raises(DistillError, match="two arrays or two sources"):
        distill.evaluate(ids, "labels.h5")
    with pytest.raises(DistillError, match=r"segmentation: found shape .2, 4, 4. of float64, expected integer ids"):
        distill.evaluate(ids.astype(float), ids)


def test_thresholds_are_chosen_as_by_the_command(run: Path, phantom: Path, tmp_path: Path) -> None:
    store, labels = tmp_path / "out.zarr", f"{phantom}:volumes/labels/neuron_ids"
    distill.stream(f"{phantom}:volumes/raw", run, store, segments=False, sections=(0, 6), **PRECISE)
    curves = distill.sweep(f"{store}:affinity", labels, tmp_path / "sweep", methods=["waterz"], thresholds=[0.3, 0.6])
    assert [curve.method for curve in curves] == ["waterz"]
    assert (tmp_path / "sweep" / "thresholds.yaml").exists()


def test_a_training_is_that_of_the_command(
    run: Path, phantom: Path, tiny: tuple[str, ...], tmp_path: Path, no_pictures: None, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    configs = Path(__file__).parents[3] / "configs" / "phantom_cpu"
    steps: list[int] = []
    with mock.patch("viz.report.report.report_after_training"):
        found = distill.train(
            configs / "teacher.yaml",
            configs / "student.yaml",
            tmp_path / "run",
            overrides=tiny,
            device="cpu",
            progress=lambda done, total: steps.append(done),
        )
    assert (found.steps, steps[-1]) == (4, 4)
    assert set(found.validated) == {"teacher", "student"}
    weights = [folder / "checkpoints" / "student-0000004.safetensors" for folder in (found.folder, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_figure_of_embeddings(run: Path, phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "pca.png"
    found = distill.pca(f"{phantom}:volumes/raw", run, out, teacher=run, section=3, window=(4, 48, 48), **PRECISE)
    assert out.stat().st_size > 10_000
    assert found.teacher is not None


@pytest.mark.parametrize(
    ("name", "beneath"),
    [
        ("segment.py", {"distill.inference.streaming.stream", "distill.inference.blockwise.segment"}),
        ("evaluate.py", {"distill.evaluation.evaluate", "viz.scores"}),
        ("sweep.py", {"distill.evaluation.sweep", "viz.charts.sweep"}),
        ("figures.py", {"viz.embeddings.figure"}),
    ],
)
def test_commands_call_the_interface_and_nothing_beneath(name: str, beneath: set[str]) -> None:
    path = Path(distill.__file__).parent / "cli" / name
    functions = [one for one in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(one, ast.FunctionDef)]
    inside = {one.module for function in functions for one in ast.walk(function) if isinstance(one, ast.ImportFrom)}
    assert any(str(module).startswith("distill.python.") for module in inside)
    assert not inside & beneath
