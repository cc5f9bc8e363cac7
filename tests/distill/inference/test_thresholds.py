"""The thresholds file: what is written is read back, and wrong files are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.core.errors import ConfigError, DistillError, SourceError
from distill.inference.thresholds import (
    ChosenThreshold,
    Provenance,
    edge_of,
    parse_thresholds,
    threshold_from_file,
    write_thresholds,
)

OF = Provenance("a.zarr:affinity", "t.h5", "skimage", {"model": "ac4"})


def test_every_method_comes_back_with_its_own_threshold(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.yaml"
    write_thresholds(
        path, {"waterz": ChosenThreshold(0.4, None, 1, 2, 0.1), "mws": ChosenThreshold(0.85, "highest", 1, 2, 0.1)}, OF
    )
    first = path.read_bytes()
    assert (threshold_from_file(path, "waterz"), threshold_from_file(path, "mws")) == (0.4, 0.85)
    with pytest.raises(ConfigError, match=r"found thresholds for waterz, mws, expected query"):
        threshold_from_file(path, "query")
    write_thresholds(
        path, {"waterz": ChosenThreshold(0.4, None, 1, 2, 0.1), "mws": ChosenThreshold(0.85, "highest", 1, 2, 0.1)}, OF
    )
    assert path.read_bytes() == first
    assert b"t.h5" in first
    assert [file.name for file in tmp_path.iterdir()] == ["thresholds.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [1", "not valid YAML"),
        ("just words", "no key 'methods'"),
        ("methods: 3", "no key 'methods'"),
        ("methods: {query: 0.5}", r"query\.threshold: found None"),
        ("methods: {query: {threshold: 1.5}}", r"query\.threshold: found 1\.5"),
        ("methods: {query: {threshold: true}}", "found True"),
        ("methods: {query: {threshold: .nan}}", "found nan"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DistillError, match=rf"t\.yaml: .*{message}"):
        threshold_from_file(path, "query")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.yaml: no such file"):
        threshold_from_file(tmp_path / "none.yaml", "query")


def test_ranges_hold_their_last_number() -> None:
    assert parse_thresholds("0.3:0.9:0.1", "--mws") == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert parse_thresholds("0.2:0.35:0.1", "--mws") == (0.2, 0.3)
    assert parse_thresholds("0.9,0.1,0.9", "--mws") == (0.1, 0.9)
    for text in ("", "a", "0.1:0.2", "0.2:0.1:0.1", "0:1:0", "0:1:-1", "0.5,1.2", "0:2:0.5"):
        with pytest.raises(ConfigError, match=r"--mws: found"):
            parse_thresholds(text, "--mws")


def test_the_edge_of_what_was_tried() -> None:
    assert [edge_of(t, (0.1, 0.5, 0.9)) for t in (0.1, 0.5, 0.9)] == ["lowest", None, "highest"]
