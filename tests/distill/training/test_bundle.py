"""Models that come with the package: packed small and true, found by name, refused where they would not be the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.core.errors import CheckpointError, SourceError
from distill.inference.in_memory import student_affinity
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models import header
from distill.models.checkpoint import read_weights, save_weights
from distill.models.header import bundled_models
from distill.models.load import find_weights, load_student, load_teacher
from distill.training import bundle as recipe
from distill.training.bundle import LARGEST, bundle

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(run: Path, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a bundle named `tiny`; not to be written to."""
    folder = tmp_path_factory.mktemp("bundled")
    about = folder / "about.md"
    about.write_text("## Attribution\n\nA phantom, nobody's.\n")
    said = cli("bundle", run, "--out", folder / "tiny", "--about", about)
    assert said.code == 0, said.err
    assert "student: affinities differ by 0.0" in said.out
    assert "teacher: affinities differ by 0.0" in said.out
    about.unlink()
    return folder / "tiny"


@pytest.fixture
def bundled(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's only bundled model is `tiny`."""
    monkeypatch.setattr(header, "_BUNDLED", packed.parent)
    return packed


@pytest.mark.commands("bundle")
def test_a_bundle_is_the_run_at_half_precision(run: Path, packed: Path) -> None:
    assert sorted(file.name for file in packed.iterdir()) == [
        "MODEL_CARD.md",
        "student.safetensors",
        "teacher.safetensors",
    ]
    for kind in ("student", "teacher"):
        full, half = read_weights(run / "best" / f"{kind}.safetensors"), read_weights(packed / f"{kind}.safetensors")
        assert (half.kind, half.config) == (full.kind, full.config)
        assert set(half.tensors) == set(full.tensors)
        for name, tensor in full.tensors.items():
            kept = half.tensors[name]
            assert kept.dtype == (torch.float16 if tensor.is_floating_point() else tensor.dtype), name
            torch.testing.assert_close(kept.to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)
        assert half.part("decoder")
        assert {key: value for key, value in half.notes.items() if key != "data"} == {
            key: value for key, value in full.notes.items() if key != "data"
        }
        assert half.notes["data"]["raw"] == "phantom.h5:volumes/raw"
        assert half.notes["data"]["labels"] == "phantom.h5:volumes/labels/neuron_ids"
        assert str(run.parent) not in json.dumps([half.config, half.notes])


def test_the_card_says_what_the_weights_say(run: Path, packed: Path) -> None:
    card = (packed / "MODEL_CARD.md").read_text()
    scores = read_weights(run / "best" / "student.safetensors").notes["validation"]
    assert card.startswith("# tiny\n")
    assert f"| {scores['voi']:.3f} | {scores['arand']:.3f} |" in card
    assert (
        "phantom.h5:volumes/raw, 30 x 6 x 6 nm (z, y, x); train sections 0 to 11, validation sections 12 to 15." in card
    )
    assert "| student, cad |" in card
    assert "| teacher, agq |" in card
    assert card.rstrip().endswith("A phantom, nobody's.")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1


def test_a_bundled_model_goes_by_its_name(
    bundled: Path, run: Path, phantom: Path, cli: Callable[..., Any], cpu: tuple[str, ...], tmp_path: Path
) -> None:
    assert bundled_models() == {"tiny": bundled}
    sections = open_volume(phantom).read()[12:16]
    exact = Runtime(CPU, "32-true")
    ours, theirs = (
        student_affinity(load_student(model, CPU), iter(sections), (4, 96, 96), exact) for model in ("tiny", str(run))
    )
    assert float(np.abs(ours - theirs).mean()) < 0.002
    assert ours.dtype == theirs.dtype
    assert load_teacher("tiny", CPU).path == bundled / "teacher.safetensors"
    said = cli("stream", phantom, "--model", "tiny", "--sections", "12:14", "--out", tmp_path / "out.zarr", *cpu)
    assert said.code == 0, said.err
    reported = cli("info", "tiny")
    assert reported.code == 0
    assert f"bundled model tiny: {bundled}" in reported.out
    assert f"{bundled / 'student.safetensors'}\n  network" in reported.out


def test_what_lies_here_goes_before_a_bundled_model(
    bundled: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_weights("tiny", "student") == bundled / "student.safetensors"
    assert not caplog.records
    shutil.copytree(run / "best", tmp_path / "tiny" / "best")
    assert find_weights("tiny", "student") == Path("tiny") / "best" / "student.safetensors"
    assert f"{tmp_path / 'tiny'}: taken from this folder, not the bundled model of that name" in caplog.text


def test_an_unknown_name_lists_the_bundled_ones(
    bundled: Path, cli: Callable[..., Any], phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cli("stream", phantom, "--model", "tyni", "--out", tmp_path / "out.zarr")
    assert said.code == 2
    assert (
        "tyni: no such file or run folder; expected a run folder or a weights file, or a bundled model: tiny"
        in said.err
    )
    monkeypatch.setattr(header, "_BUNDLED", tmp_path)
    with pytest.raises(CheckpointError, match="no model is bundled with this installation"):
        find_weights("tyni", "student")


def test_a_student_alone(bundled: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "run"
    shutil.copytree(run / "best", alone / "best")
    (alone / "best" / "teacher.safetensors").unlink()
    made = bundle(str(alone), tmp_path / "models" / "alone")
    assert set(made.changes) == {"student"}
    monkeypatch.setattr(header, "_BUNDLED", tmp_path / "models")
    assert load_student("alone", CPU).decoder is not None
    with pytest.raises(CheckpointError, match="alone: the bundled model of that name has no teacher"):
        load_teacher("alone", CPU)


def test_what_cannot_be_bundled(run: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="exists, expected a new folder"):
        bundle(str(run), packed)
    out = tmp_path / "out"
    with pytest.raises(SourceError, match=r"none\.md: cannot be read"):
        bundle(str(run), out, about=tmp_path / "none.md")
    with pytest.raises(CheckpointError, match="holds a teacher, expected a student"):
        bundle(str(run / "best" / "teacher.safetensors"), out)
    wide = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(wide.weight, 1e5)
    save_weights(tmp_path / "wide.safetensors", "student", {"student": wide}, {}, {})
    with pytest.raises(CheckpointError, match=r"student\.weight reaches 100000, expected at most 65504"):
        bundle(str(tmp_path / "wide.safetensors"), out, sample=str(_sample(run)))
    with monkeypatch.context() as strict:
        strict.setattr(recipe, "MEAN_CHANGE", 0.0)
        with pytest.raises(CheckpointError, match="half precision moves affinities by 0"):
            bundle(str(run), out)
    with monkeypatch.context() as small:
        small.setattr(recipe, "LARGEST", 1000)
        with pytest.raises(CheckpointError, match="bytes at half precision, expected at most 1,000"):
            bundle(str(run), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.safetensors"]


def _sample(run: Path) -> str:
    return str(read_weights(run / "best" / "student.safetensors").notes["data"]["raw"])


@pytest.mark.skipif(not bundled_models(), reason="no model is bundled in this checkout")
@pytest.mark.parametrize("name", list(bundled_models()))
def test_the_models_that_come_along(name: str) -> None:
    folder = bundled_models()[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST
    assert "Attribution" in (folder / "MODEL_CARD.md").read_text()
    student, teacher = load_student(name, CPU), load_teacher(name, CPU)
    assert student.decoder is not None
    assert student.notes["resolution"] == teacher.notes["resolution"]
    affinity = student_affinity(
        student, iter(np.full((2, 64, 64), 128, np.uint8)), (2, 64, 64), Runtime(CPU, "32-true")
    )
    assert np.isfinite(affinity).all()
