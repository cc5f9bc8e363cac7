"""Pages of the site that are made from README.md and from the code: nothing is missing, and links stay right."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import distill
from distill.cli import app
from distill.config import StudentConfig, TeacherConfig
from distill.config.load import _all_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "tools" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_to_pages(pages: ModuleType) -> None:
    text = "[a](docs/method.md#x) ![b](docs/figures/b.png) [c](distill/CARD.md) [d](#own) [e](https://x.org/docs/)"
    found = pages.first_page(text)
    assert found == "[a](method.md#x) ![b](figures/b.png) [c](../distill/CARD.md) [d](#own) [e](https://x.org/docs/)"
    assert "[c]" not in pages.outside_links(found)
    assert "c (`distill/CARD.md`)" in pages.outside_links(found)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("speed.md", "[R](../README.md#measured)", "[R](index.md#measured)"),
        ("reference/a.md", "[R](../../README.md)", "[R](../index.md)"),
        ("reference/a.md", "[P](../python.md)", "[P](../python.md)"),
        ("speed.md", "[`x.py`](../examples/x.py)", "`x.py` (`examples/x.py`)"),
        ("speed.md", "[`examples/x.py`](../examples/x.py)", "`examples/x.py`"),
    ],
)
def test_links_out_of_the_pages(pages: ModuleType, page: str, link: str, expected: str) -> None:
    assert pages.outside_links(link, page) == expected


def test_every_command_and_option_is_described(pages: ModuleType) -> None:
    text = pages.commands_page()

    def check(command: object, name: str) -> int:
        if hasattr(command, "commands"):
            return sum(check(one, f"{name} {inner}".strip()) for inner, one in command.commands.items())
        section = re.split(r"^## ", text.partition(f"\n## {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        options = [one for one in command.params if one.param_type_name == "option"]  # type: ignore[attr-defined]
        for option in options:
            assert f"`{option.opts[0]}" in section, (name, option.opts)
        return len(options)

    assert check(typer.main.get_command(app), "") > 50


def test_every_key_is_described(pages: ModuleType) -> None:
    text = pages.configuration_page()
    for file, model in (("teacher", TeacherConfig), ("student", StudentConfig)):
        for key in _all_keys(model):
            group, _, name = f"{file}.{key}".rpartition(".")
            group = re.sub(r"\.(volumes|unlabelled)$", r".\1.N", group)
            section = text.partition(f"\n### {group}\n")[2].partition("\n### ")[0]
            assert f"| `{name}` |" in section or f"\n### {group}.{name}\n" in text, f"{group}.{name}"
    assert "| `steps` | `int`, at least 1 | `200000` |" in text
    assert "maximum gradient norm, 0 = off" in text
    assert "flood" in text


def test_every_name_of_python_is_described(pages: ModuleType) -> None:
    found = re.findall(r"^::: distill\.(\w+)$", pages.python_page(), re.MULTILINE)
    assert found == distill.__all__


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    groups = [next(iter(group.values())) for group in settings["nav"]]
    named = {page for group in groups for page in ([group] if isinstance(group, str) else group)}
    made = {"index.md", "reference/commands.md", "reference/configuration.md", "reference/python.md"}
    there = {
        str(path.relative_to(ROOT / "docs")) for kind in ("md", "ipynb") for path in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert named == there | made
