"""The front door: every name is the one of its module, and none is imported before it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import distill


@pytest.mark.parametrize("name", distill.__all__)
def test_names_are_those_of_their_modules(name: str) -> None:
    found = getattr(distill, name)
    assert found.__name__ == name
    assert found.__module__.startswith("distill.")
    assert found.__doc__
    assert name in dir(distill)


def test_the_import_alone_loads_nothing_heavy() -> None:
    code = "import distill, sys; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'distill' has no attribute 'nothing'"):
        _ = distill.nothing  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_package() -> None:
    about = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, name = about["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert distill.__version__ == getattr(importlib.import_module(module), name)
