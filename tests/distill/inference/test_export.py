"""Exported functions on their own runtimes, against torch, on real sections."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.cli import command
from distill.config import StudentNetwork
from distill.core.errors import DistillError
from distill.inference.export import export
from distill.models.build import build_student
from distill.models.checkpoint import save_weights

NEEDS = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights files of small students."""

    def make(kind: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"{kind}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            config = StudentNetwork.model_validate({"kind": kind, "width": 4, "embedding": 5})
            save_weights(path, "student", {"student": build_student(config)}, config.model_dump(mode="json"), {})
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("cad", "torch"),
        ("cad", "onnx"),
        ("smp", "onnx"),
        pytest.param("cad", "openvino", marks=pytest.mark.commands("export")),
    ],
)
def test_written_functions_give_what_torch_gives(
    model: Callable[[str], Path], real_data: Callable[[str], Path], tmp_path: Path, kind: str, form: str
) -> None:
    if not all(map(importlib.util.find_spec, NEEDS[form])):
        pytest.skip(f"{form} is not installed")
    sections = real_data("cremi_sample_B_sections_46_50.hdf")
    found = export(str(model(kind)), form, tmp_path / "out", f"{sections}:volumes/raw", overwrite=False)
    assert found.difference.maps < 1e-4
    assert found.difference.embedding < 1e-4
    assert found.difference.affinity <= 1 / 255 + 1e-6
    names = {path.stem for path in found.files}
    assert names == {"encode", "decode", "export"}
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["stride"] == 16
    assert about["functions"]["decode"]["outputs"] == ["affinity", "embedding"]
    assert not list(tmp_path.glob("*.writing"))


def test_the_bundled_model_is_exported(tmp_path: Path) -> None:
    """Its decoder takes the maps of two sections, which an exporter must not take for those of one."""
    found = export("ac4", "torch", tmp_path / "out", None, overwrite=False)
    assert found.difference.maps < 1e-4
    assert found.difference.embedding < 1e-4
    assert found.difference.affinity <= 1 / 255 + 1e-6
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DistillError, match=r"holds mine\.txt, which would be lost"):
        export("ac4", "torch", tmp_path / "out", None, overwrite=True)


def test_a_missing_package_is_one_line(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    words = ["distill", "export", str(model("cad")), "--format", "openvino", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed == "distill: openvino: not installed, expected `pip install openvino`\n"
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(model: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(model("cad"))
    with pytest.raises(DistillError, match="--format: found 'coreml', expected onnx, openvino, torch"):
        export(source, "coreml", tmp_path / "out", None, overwrite=False)
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    with pytest.raises(DistillError, match="exists already"):
        export(source, "torch", there, None, overwrite=False)
    with pytest.raises(DistillError, match="is not an export; it will not be overwritten"):
        export(source, "torch", there, None, overwrite=True)
    assert (there / "mine.txt").read_text() == "mine"
