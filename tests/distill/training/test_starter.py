"""The pair of configurations that `distill init` writes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from distill.config import load_pair
from distill.core.errors import DistillError
from distill.training.data import open_parts
from distill.training.starter import has_bright_membranes, split, write_pair

Cli = Callable[..., Any]
SMALL = (
    *("teacher.filters=[4,4,4,4,4]", "teacher.fused=8", "teacher.decoder.width=8", "teacher.decoder.depth=1"),
    *("teacher.decoder.learned=4", "teacher.queries.start=0", "teacher.queries.every=1", "student.training.steps=2"),
    *("student.training.warmup=0", "student.training.crop=[3,32,32]", "student.training.precision=32-true"),
    *("student.training.workers=0", "student.training.validate_every=2", "student.training.save_every=2"),
)


def volume(path: Path, shape: tuple[int, int, int], nm: tuple[float, ...] | None, labelled: slice | None = None) -> str:
    """CREMI file of square neurons; `labelled` sections have ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(shape, np.uint64)
    labels[labelled or slice(None)] = 1 + (np.indices(shape[1:]) // 16 % 2).sum(0).astype(np.uint64)
    raw = np.random.default_rng(0).integers(90, 160, shape).astype(np.uint8)
    with h5py.File(path, "w") as file:
        for name, values in (("volumes/raw", raw), ("volumes/labels/neuron_ids", labels)):
            made = file.create_dataset(name, data=values)
            if nm is not None:
                made.attrs["resolution"] = nm
    return f"{path}:volumes/raw"


@pytest.mark.commands("init")
def test_the_printed_line_trains(
    cli: Cli, phantom: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(phantom.parent)
    folder = tmp_path / "my cells"
    said = cli("init", folder, "--raw", f"{phantom.name}:volumes/raw", "--device", "cpu")
    assert said.code == 0, said.err
    assert "training 0:14, validation 14:17, test 17:20" in said.out
    pair = load_pair(folder / "teacher.yaml", folder / "student.yaml")
    assert pair.student.training.crop == (6, 96, 96)
    assert not pair.student.data.invert
    assert pair.distils
    monkeypatch.chdir(tmp_path)  # the sources do not depend on the folder
    words = shlex.split(said.out.splitlines()[-1].removeprefix("next: distill "))
    trained = cli(*words, *SMALL, "--device", "cpu")
    assert trained.code == 0, trained.err
    assert f"--model '{folder}/run'" in trained.out or f"--model {folder}/run" in trained.out
    assert (folder / "run" / "run.json").is_file()


def test_without_data_the_sample_is_written(cli: Cli, tmp_path: Path) -> None:
    said = cli("init", tmp_path / "new", "--device", "cpu")
    assert said.code == 0, said.err
    pair = load_pair(tmp_path / "new" / "teacher.yaml", tmp_path / "new" / "student.yaml")
    assert open_parts(pair).resolution == (30.0, 6.0, 6.0)
    assert (tmp_path / "new" / "sample.h5").is_file()


@pytest.mark.parametrize("name", ["teacher.yaml", "student.yaml"])
def test_an_existing_file_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    said = cli("init", tmp_path)
    assert said.code == 2
    assert f"{name}: exists already" in said.err
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("gpu", [False, True])
def test_data_without_resolution_and_with_labels_elsewhere(tmp_path: Path, gpu: bool) -> None:
    raw = volume(tmp_path / "a.h5", (12, 64, 48), None)
    labels = volume(tmp_path / "b.h5", (12, 64, 48), None).replace("raw", "labels/neuron_ids")
    with pytest.raises(DistillError, match="resolution"):
        write_pair(tmp_path, raw, labels)
    made = write_pair(tmp_path, raw, labels, resolution=(40, 8, 8), gpu=gpu)
    pair = load_pair(made.teacher, made.student)
    assert pair.student.data.resolution == (40, 8, 8)
    assert pair.student.training.crop == ((8, 64, 48) if gpu else (6, 64, 48))
    assert pair.teacher.kind == ("agq" if gpu else "superhuman")
    assert open_parts(pair).resolution == (40, 8, 8)


def test_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    raw = volume(tmp_path / "a.h5", (12, 64, 48), (40, 8, 8))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["volumes/labels"]
    with pytest.raises(DistillError, match=r"--labels: not given.*expected --labels SOURCE"):
        write_pair(tmp_path / "new", raw)
    with pytest.raises(DistillError, match=r"b\.h5: (?!.*--labels)"):
        write_pair(tmp_path / "new", str(tmp_path / "b.h5"))
    assert not (tmp_path / "new").exists()


def test_isotropic_volumes_are_thinned(tmp_path: Path) -> None:
    made = write_pair(tmp_path, volume(tmp_path / "a.h5", (48, 32, 32), (8, 8, 8)))
    data = load_pair(made.teacher, made.student).student.data
    assert data.every == 4
    assert (data.train, data.validation, data.test) == ((0, 8), (8, 10), (10, 12))
    assert "one of 4 sections is taken" in made.lines[0]


def test_sections_without_labels_are_left_out(tmp_path: Path) -> None:
    made = write_pair(tmp_path, volume(tmp_path / "a.h5", (30, 32, 32), (40, 8, 8), slice(5, 25)))
    data = load_pair(made.teacher, made.student).student.data
    assert (data.train, data.validation, data.test) == ((5, 19), (19, 22), (22, 25))
    with pytest.raises(DistillError, match="no neuron id in any section"):
        write_pair(tmp_path / "new", volume(tmp_path / "b.h5", (9, 32, 32), (40, 8, 8), slice(0)))


def test_few_sections_have_no_test_part(tmp_path: Path) -> None:
    made = write_pair(tmp_path, volume(tmp_path / "a.h5", (3, 32, 32), (40, 8, 8)))
    data = load_pair(made.teacher, made.student).student.data
    assert data.train == data.validation == (0, 3)
    assert data.test is None
    assert any("too few" in line for line in made.lines)


def test_large_sections_are_judged_in_a_window(tmp_path: Path) -> None:
    train, validation, test = split((0, 100), (100, 5000, 5000))
    assert train == (0, 96)
    assert validation == ((96, 98), (1988, 3012), (1988, 3012))
    assert test == ((98, 100), (1988, 3012), (1988, 3012))


def test_windows_are_written_as_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.training.starter._JUDGED", 1024)
    monkeypatch.setattr("distill.training.starter._WINDOW", 32)
    made = write_pair(tmp_path, volume(tmp_path / "a.h5", (20, 64, 64), (40, 8, 8)), resolution=(40, 8, 8))
    data = load_pair(made.teacher, made.student).student.data
    assert data.volumes[0].validation == ((16, 18), (16, 48), (16, 48))
    assert data.volumes[0].train == (0, 16)


def test_bright_membranes_are_found() -> None:
    labels = np.repeat(np.repeat(np.arange(1, 17).reshape(4, 4), 8, 0), 8, 1).astype(np.uint64)
    inside = np.pad(np.ones((6, 6)), 1)
    dark = 50 + 100 * np.tile(inside, (4, 4)) + np.random.default_rng(0).normal(0, 10, (32, 32))
    assert not has_bright_membranes(dark, labels)
    assert has_bright_membranes(200 - dark, labels)
    assert not has_bright_membranes(dark, np.zeros_like(labels))
