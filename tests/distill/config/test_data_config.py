"""Labelled volumes in a configuration: both forms, parts that overlap, and what a message names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config import DataConfig, LabelledVolume, load_pair
from distill.config.data import in_file, meet, part_box
from distill.core.errors import ConfigError
from distill.core.geometry import Box

SHORT: dict[str, Any] = {"raw": "a.h5:raw", "labels": "a.h5:ids", "train": [0, 8], "validation": [8, 10]}
ONE: dict[str, Any] = {"raw": "a.h5:raw", "labels": "a.h5:ids", "train": [[0, 8], [0, 64], [0, 64]]}
TWO: dict[str, Any] = {"raw": "b.h5:raw", "labels": "b.h5:ids", "validation": [2, 4]}

OF_ALL = ("unlabelled", "normalisation", "invert", "memory")


def load(folder: Path, data: dict[str, Any], *words: str) -> DataConfig:
    (folder / "teacher.yaml").write_text("embedding: 16")
    (folder / "student.yaml").write_text(yaml.safe_dump({"data": data}))
    return load_pair(folder / "teacher.yaml", folder / "student.yaml", words).student.data


def test_the_short_form_is_one_volume() -> None:
    data = DataConfig.model_validate(SHORT)
    assert data.labelled == (LabelledVolume.model_validate(SHORT),)
    assert data.key(0) == "student.data"
    assert data.model_dump(mode="json").keys() == {*SHORT, "resolution", "every", "test", *OF_ALL}
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


def test_a_list_of_volumes_is_kept(tmp_path: Path) -> None:
    data = load(tmp_path, {"volumes": [{**ONE, "ignore": 2**64 - 1, "zero": "other"}, TWO]})
    assert [volume.raw for volume in data.labelled] == ["a.h5:raw", "b.h5:raw"]
    assert data.labelled[0].parts == {"train": ((0, 8), (0, 64), (0, 64))}
    assert [number for number, _, _ in data.having("validation")] == [1]
    assert data.key(1) == "student.data.volumes.1"
    written = data.model_dump(mode="json")
    assert written.keys() == {"volumes", *OF_ALL}
    assert DataConfig.model_validate(yaml.safe_load(yaml.safe_dump(written))) == data


def test_entries_are_overridden_by_number(tmp_path: Path) -> None:
    data = load(tmp_path, {"volumes": [ONE, TWO]}, "student.data.volumes.1.validation=[5,7]")
    assert data.labelled[1].validation == (5, 7)
    for word, said in (
        ("student.data.volumes.2.every=2", "found '2', expected a number below 2"),
        ("student.data.volumes.x.every=2", "found 'x', expected a number below 2"),
        ("student.data.volumes.1=2", "holds a list, expected a number and a key"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(tmp_path, {"volumes": [ONE, TWO]}, word)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"volumes": [ONE, {**TWO, "masks": "m.h5"}]}, "unknown key 'data.volumes.1.masks'; did you mean"),
        ({"volumes": [ONE, {**TWO, "validation": [4, 4]}]}, "data.volumes.1: validation: found [4, 4], expected 0 <="),
        ({"volumes": [{**ONE, "train": [[0, 8], [9, 3], [0, 4]]}, TWO]}, "expected 0 <= first < last y"),
        ({"volumes": [{**ONE, "train": [0, 8, 2]}, TWO]}, "data.volumes.0.train: found [0, 8, 2], expected sections"),
        ({"volumes": [{**ONE, "train": [[0, 8], [0, 4]]}, TWO]}, "expected sections [first, last] or a box"),
        ({"volumes": [ONE, {**TWO, "validation": None}]}, "data.volumes.1: found none of train, validation and test"),
        ({"volumes": [ONE]}, "data: volumes: no entry has validation"),
        ({"volumes": [TWO]}, "data: volumes: no entry has train"),
        ({"volumes": [ONE, TWO], "raw": "a.h5"}, "data: raw: set with volumes"),
        ({"volumes": [ONE, TWO, {**ONE, "raw": "c.h5", "weight": 2}]}, "found a weight in some entries with train"),
        ({"volumes": [ONE, {**TWO, "weight": 2}]}, "weight: found 2 without train"),
        ({"volumes": [{**ONE, "weight": 0}, TWO]}, "data.volumes.0.weight: "),
        ({"volumes": [{**ONE, "zero": "nothing"}, TWO]}, "data.volumes.0.zero: "),
        ({"volumes": [{**ONE, "ignore": 2**64}, TWO]}, "data.volumes.0.ignore: "),
        ({"volumes": [{**ONE, "validation": [[7, 9], [0, 9], [60, 70]]}]}, "overlaps train [[0, 8], [0, 64], [0, 64]]"),
        (
            {"volumes": [ONE, {**TWO, "raw": "a.h5:raw"}]},
            "data: volumes.1.validation: [2, 4] overlaps volumes.0.train [[0, 8], [0, 64], [0, 64]] of the same raw",
        ),
        ({k: v for k, v in SHORT.items() if k != "train"}, "data: train: missing, expected raw, labels, train"),
        (
            {"volumes": [ONE, TWO], "unlabelled": [{"raw": "b.h5:raw", "sections": [3, 9]}]},
            "data: unlabelled.0.sections: [3, 9] of the same raw overlap volumes.1.validation [2, 4]",
        ),
    ],
)
def test_what_does_not_go_together_names_its_key(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, data)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/student.yaml: ")


def test_parts_that_only_look_alike_are_apart(tmp_path: Path) -> None:
    adjacent = {**ONE, "validation": [[0, 8], [64, 128], [0, 64]]}
    assert load(tmp_path, {"volumes": [adjacent]}).labelled[0].validation == ((0, 8), (64, 128), (0, 64))
    assert load(tmp_path, {**SHORT, "validation": SHORT["train"]})  # the same on purpose
    assert load(tmp_path, {"volumes": [{**ONE, "validation": ONE["train"]}]})
    thinned = {**TWO, "raw": "a.h5:raw", "every": 4, "validation": [2, 4]}  # sections 8 and 12 of the file
    assert load(tmp_path, {"volumes": [ONE, thinned]})
    with pytest.raises(ConfigError, match="overlaps"):
        load(tmp_path, {"volumes": [ONE, {**thinned, "validation": [1, 3]}]})


def test_boxes_of_parts() -> None:
    assert part_box((2, 5), (9, 10, 11)) == Box((2, 0, 0), (5, 10, 11))
    assert part_box(((2, 5), (1, 3), (4, 6)), (9, 10, 11)) == Box((2, 1, 4), (5, 3, 6))
    assert in_file((1, 3), 4) == (4, 9)
    assert in_file(((1, 3), (0, 5), (0, 6)), 4) == ((4, 9), (0, 5), (0, 6))
    assert meet((0, 3), ((2, 4), (5, 6), (5, 6)))
    assert not meet(((0, 3), (0, 5), (0, 9)), ((2, 4), (5, 6), (5, 6)))
