"""Every example in a docstring of the Python interface runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import distill

MODULES = ("distill", *(f"distill.python.{name}" for name in ("figures", "models", "running", "scoring", "training")))


def test_examples_of_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: object) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("sample", "sample.h5")  # type: ignore[operator]
    assert said.code == 0, said.err
    raw = distill.open_volume("sample.h5:volumes/raw").read()[:3, :96, :96]
    tried = 0
    for name in MODULES:
        module = importlib.import_module(name)
        known = {"distill": distill, "np": np, "raw": raw}
        found = doctest.testmod(module, extraglobs=known, optionflags=doctest.ELLIPSIS)
        assert found.failed == 0, name
        tried += found.attempted
    assert tried >= 10


def test_every_module_with_examples_is_tried() -> None:
    root = Path(distill.__file__).parents[1]
    shown = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for package in ("distill", "students", "teachers", "viz")
        for path in (root / package).rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    ]
    assert shown
    assert set(shown) <= set(MODULES)
