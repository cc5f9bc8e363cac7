"""The package of a student for bioimage.io; tests/neighbours runs it by bioimage.io's own library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distill.core.errors import DistillError
from distill.inference.bioimageio import export_bioimageio

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
WHO: dict[str, Any] = {"licence": "CC-BY-4.0", "authors": ["The distill contributors"], "overwrite": False}
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled student."""
    out = tmp_path_factory.mktemp("bioimageio") / "ac4"
    export_bioimageio("ac4", out, None, **WHO)
    return out


def test_the_files_name_each_other(package: Path) -> None:
    about = yaml.safe_load((package / "rdf.yaml").read_text(encoding="utf-8"))
    named = {about["documentation"], *about["covers"], about["weights"]["onnx"]["source"]}
    named |= {about[kind][0]["test_tensor"]["source"] for kind in ("inputs", "outputs")}
    assert named | {"rdf.yaml"} == {path.name for path in package.iterdir()}
    given, wanted = np.load(package / "test_input.npy"), np.load(package / "test_output.npy")
    assert given.shape == (1, 2, *wanted.shape[2:])
    assert wanted.shape[1] == 3
    assert 0 <= wanted.min() < wanted.max() <= 1


@pytest.mark.commands("export")
def test_the_command_asks_for_licence_and_authors(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "package"
    said = cli("export", "ac4", "--format", "bioimageio", "--out", out)
    assert (said.code, out.exists()) == (2, False)
    assert "--license, --author: found none, expected both" in said.err
    words = ("--license", "CC-BY-4.0", "--author", "The distill contributors")
    said = cli("export", "ac4", "--format", "bioimageio", "--out", out, *words)
    assert said.code == 0, said.err
    assert "height and width: multiples of" in said.out
    assert cli("export", "ac4", "--format", "onnx", "--out", tmp_path / "other", *words).code == 2


def test_a_package_is_replaced_only_if_asked(package: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="exists already"):
        export_bioimageio("ac4", package, None, **WHO)
    (tmp_path / "other").mkdir()
    with pytest.raises(DistillError, match=r"is not a package for bioimage\.io"):
        export_bioimageio("ac4", tmp_path / "other", None, **{**WHO, "overwrite": True})
