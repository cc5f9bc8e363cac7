"""Files of a release agree with each other: version, licence, dependencies, what images copy."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from distill.core.version import VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(re.findall(r"^([^=\s#]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def test_the_version_has_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "distill.core.version.VERSION"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert f"Version {VERSION}\n" in (ROOT / "distill.def").read_text()


def test_citation_names_both_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "license"} <= cited.keys()
    assert cited["license"] == PROJECT["project"]["license"]
    assert [(one["conference"]["name"], one["authors"][0]["family-names"]) for one in cited["references"]] == [
        ("CVPR 2024", "Liu"),
        ("ICLR 2025", "Chen"),
    ]
    assert {one["url"] for one in cited["references"]} == set(PROJECT["project"]["urls"].values())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned() -> None:
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        asked += extra
    names = {normal(re.split(r"[\[><=;~! ]", one)[0]) for one in asked}
    assert names <= {normal(name) for name in PINNED}


@pytest.mark.parametrize("recipe", ["Dockerfile", "distill.def"])
def test_images_hold_all_packages_at_pinned_versions(recipe: str) -> None:
    text = (ROOT / recipe).read_text()
    for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]:
        package = pattern.rstrip("*")
        copied = rf"^(COPY {package} {package}|    {package} /opt/distill/{package})$"
        assert re.search(copied, text, re.MULTILINE), package
    for line in text.splitlines():
        if "pip install" in line:
            assert "-c constraints.txt" in line
    assert re.search(r"python:3\.11\.\d+-slim", text)


def test_the_image_is_sent_what_it_copies() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    assert sent == {name for names in copied for name in names}
    assert all((ROOT / name).exists() for name in sent)


def test_the_conda_environment_installs_this_folder() -> None:
    found = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(one for one in found["dependencies"] if isinstance(one, str) and one.startswith("python="))
    assert f"Programming Language :: Python :: {python.removeprefix('python=')}" in PROJECT["project"]["classifiers"]
    pip = next(one["pip"] for one in found["dependencies"] if isinstance(one, dict))
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip[1])
    assert pip[0] == "-c constraints.txt"
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.skipif(shutil.which("dash") is None and shutil.which("sh") is None, reason="no shell")
def test_the_check_is_a_script_of_any_shell() -> None:
    checked = subprocess.run(["sh", "-n", ROOT / "tools" / "check_release.sh"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
