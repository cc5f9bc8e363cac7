"""Which voxels a training reads, of one volume and of several, from memory and from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tifffile
import torch
import yaml
from numpy.typing import NDArray

from distill.config import Pair, load_pair
from distill.core.errors import ConfigError, DistillError, ShapeError
from distill.core.geometry import Box
from distill.core.known import UNKNOWN, UNKNOWN_ID
from distill.core.normalisation import Normalisation, Normaliser
from distill.data import crop_source
from distill.data.crop_source import FileSource, HeldSource
from distill.data.crops import Crops, Items
from distill.io.volume import open_volume
from distill.io.writers.cremi import write_cremi
from distill.models.checkpoint import read_weights
from distill.training.data import open_parts, training_crops

NM = (30.0, 6.0, 6.0)
SIZE = (10, 24, 28)
TRAIN, VALIDATE = [[0, 6], [0, 24], [4, 28]], [[6, 10], [2, 22], [0, 20]]
Load = Callable[..., Pair]


def volume(path: Path, seed: int, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> dict[str, Any]:
    """Grey noise with blocky ids in one file; an entry of the configuration for it."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, SIZE).astype(np.uint8)
    ids = rng.integers(1, 6, (5, 6, 7)).repeat(2, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    write_cremi(path, raw=raw, labels=ids, resolution=NM, offset=offset)
    return {"raw": f"{path}:volumes/raw", "labels": f"{path}:volumes/labels/neuron_ids"}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A pair with this data and further words."""

    def pair(data: dict[str, Any], *words: str) -> Pair:
        training = {"crop": [3, 8, 8], "steps": 6, "workers": 0, "batch": 2}
        (tmp_path / "teacher.yaml").write_text("embedding: 16")
        (tmp_path / "student.yaml").write_text(yaml.safe_dump({"data": data, "training": training}))
        return load_pair(tmp_path / "teacher.yaml", tmp_path / "student.yaml", words)

    return pair


def crops_of(config: Pair) -> Items:
    return training_crops(config, open_parts(config), 1, lambda note: None)


def same(one: Items, other: Items) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for n in range(len(one)) for a, b in zip(one[n], other[n], strict=True)
    )


def test_one_listed_volume_is_the_short_form(load: Load, tmp_path: Path) -> None:
    entry = volume(tmp_path / "a.h5", 1)
    short, listed = (
        load({**entry, "train": [0, 6], "validation": [6, 10]}),
        load({"volumes": [{**entry, "train": [0, 6], "validation": [6, 10]}]}),
    )
    assert same(crops_of(short), crops_of(listed))
    for config in (short, listed):
        assert same(
            crops_of(config), crops_of(load(config.student.data.model_dump(mode="json"), "student.data.memory=0"))
        )
    (one,), (other,) = open_parts(short).validation, open_parts(listed).validation
    np.testing.assert_array_equal(one.raw, other.raw)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_files_with_white_as_zero_are_inverted(load: Load, tmp_path: Path) -> None:
    entry = volume(tmp_path / "a.h5", 1)
    raw, _ = read(tmp_path / "a.h5")
    for name in ("minisblack", "miniswhite"):
        stored = np.iinfo(raw.dtype).max - raw if name == "miniswhite" else raw
        tifffile.imwrite(tmp_path / f"{name}.tif", stored, photometric=name)
    parts = {**entry, "resolution": [30, 6, 6], "train": [0, 6], "validation": [6, 10]}

    def data(name: str, memory: int, *, invert: bool) -> Pair:
        return load({**parts, "raw": str(tmp_path / f"{name}.tif"), "memory": memory, "invert": invert})

    for memory, invert in ((0, False), (512, False), (512, True)):
        tagged, plain = data("miniswhite", memory, invert=invert), data("minisblack", memory, invert=invert)
        assert same(crops_of(tagged), crops_of(plain))
        (one,), (other,) = open_parts(tagged).validation, open_parts(plain).validation
        np.testing.assert_array_equal(one.raw, other.raw)
    assert not same(crops_of(data("miniswhite", 0, invert=True)), crops_of(data("minisblack", 0, invert=False)))


def test_boxes_and_entries_that_only_validate(load: Load, tmp_path: Path) -> None:
    one, two = volume(tmp_path / "a.h5", 1), volume(tmp_path / "b.h5", 2)
    entries = [{**one, "train": TRAIN}, {**two, "validation": VALIDATE}, {**one, "validation": [8, 10]}]
    parts = open_parts(load({"volumes": entries, "normalisation": "none"}))
    (source,) = parts.training
    assert isinstance(source, HeldSource)
    assert source.shape == (6, 24, 24)
    raw, _ = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(source.raw(Box.of_shape(source.shape)), raw[:6, :, 4:])
    first, second = parts.validation
    np.testing.assert_array_equal(first.raw, read(tmp_path / "b.h5")[0][6:10, 2:22, :20] / np.float32(255))
    np.testing.assert_array_equal(second.raw, raw[8:] / np.float32(255))
    assert (first.box.start, first.name) == ((6, 2, 0), two["raw"])


def read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import h5py

    with h5py.File(path) as file:
        return file["volumes/raw"][()], file["volumes/labels/neuron_ids"][()]


def test_several_volumes_from_memory_and_from_files(load: Load, tmp_path: Path) -> None:
    entries = [{**volume(tmp_path / f"{name}.h5", n), "train": [0, 6]} for n, name in enumerate("ab")]
    entries[1] |= {"validation": [6, 10]}
    other = volume(tmp_path / "c.h5", 5)["raw"]
    data = {"volumes": entries, "unlabelled": [{"raw": other}]}
    words = ("student.training.warmup=0",)
    held, files = load(data, *words), load({**data, "memory": 0}, *words)
    assert all(isinstance(source, HeldSource) for source in crops_of(held).sources)
    assert all(isinstance(source, FileSource) for source in crops_of(files).sources)
    assert same(crops_of(held), crops_of(files))
    weights = open_parts(load({"volumes": [{**entries[0], "weight": 3}, {**entries[1], "weight": 1}]})).weights
    assert weights == (3, 1)
    assert open_parts(held).weights == (6 * 24 * 28,) * 2


@pytest.mark.parametrize("kind", ["mean-std", "local", "percentile"])
def test_whole_sections_decide_about_grey_values(load: Load, tmp_path: Path, kind: str) -> None:
    """Of boxes, too; from memory and from files alike."""
    entry = {**volume(tmp_path / "a.h5", 1), "train": TRAIN, "validation": VALIDATE}
    data = {"volumes": [entry], "normalisation": {"kind": kind, "tile": 16}}
    words = ("student.training.widen_borders=false", "student.augment={flips: false, transposes: false}")
    held, files = (load({**data, "memory": memory}, *words) for memory in (512, 0))
    assert same(crops_of(held), crops_of(files))
    normaliser = held.student.data.normaliser
    whole = normaliser.sections(read(tmp_path / "a.h5")[0])
    (part,) = open_parts(held).validation
    np.testing.assert_array_equal(part.raw, whole[6:10, 2:22, :20])
    (source,) = open_parts(files).training
    crops = Crops.of(source, held.student.training, held.student.augment.only(), normaliser)
    for n in range(4):
        image = crops[n][0][0].numpy()
        windows = np.lib.stride_tricks.sliding_window_view(whole[:6, :, 4:], image.shape)
        assert (windows == image).all((-3, -2, -1)).any()


def test_squares_stand_for_large_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From memory and from files alike, near the statistics of the whole section."""
    monkeypatch.setattr(crop_source, "_WHOLE", 100)
    monkeypatch.setattr(crop_source, "_SQUARE", 3)
    volume(tmp_path / "a.h5", 1)
    raw = read(tmp_path / "a.h5")[0]
    source = FileSource(open_volume(tmp_path / "a.h5"), None, Box((2, 0, 4), (9, 24, 28)))
    normaliser = Normaliser(Normalisation(kind="mean-std"))
    found = [crop_source.section_corrections(one, normaliser) for one in (source, source.held())]
    assert len(found[0]) == len(found[1]) == 7
    for z, (one, other) in enumerate(zip(*found, strict=True), 2):
        assert one.middle == other.middle
        assert one.width == other.width
        rows, columns = (np.linspace(0, size - 3, 8).astype(int) for size in SIZE[1:])
        seen = np.concatenate([raw[z, y : y + 3, x : x + 3].ravel() for y in rows for x in columns])
        wanted = normaliser.of(seen[None])
        assert one.middle == wanted.middle
        assert abs(float(one.middle[0, 0]) - raw[z].mean()) < 15


def test_padded_labels(load: Load, tmp_path: Path) -> None:
    """Labels of a part of the image, placed by their offset, as in CREMI's padded files."""
    entry = volume(tmp_path / "a.h5", 1)
    ids = np.full((4, 8, 8), 3, np.uint64)
    write_cremi(tmp_path / "ids.h5", labels=ids, resolution=NM, offset=(3 * 30, 8 * 6, 12 * 6))
    data = {"volumes": [{**entry, "labels": str(tmp_path / "ids.h5"), "train": [0, 6], "validation": [6, 7]}]}
    config = load(data, "student.training.steps=30", "student.training.widen_borders=false")
    parts = open_parts(config)
    (source,) = parts.training
    assert source.partial
    assert source.shape == (4, 16, 16)  # crops of 3 x 8 x 8 whose middle is labelled
    for image, labels in (crops_of(config)[n] for n in range(60)):
        assert image.shape[1:] == labels.shape
        assert set(labels.unique().tolist()) <= {3, UNKNOWN}
    assert sum(bool((crops_of(config)[n][1] == 3).any()) for n in range(0, 60, 6)) >= 8
    (part,) = parts.validation
    assert (part.labels == UNKNOWN_ID).sum() == part.labels.size - 64
    assert (part.counted > 0).sum() == 64


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"validation": [6, 11]}, ConfigError, r"data\.volumes\.0\.validation: ends at section 11, but .* 10 "),
        (
            {"train": [[0, 6], [0, 24], [0, 29]]},
            ConfigError,
            r"volumes\.0\.train: reaches to \[6, 24, 29\] .* has \[10, 24, 28\] voxels",
        ),
        ({"train": [[0, 6], [0, 7], [0, 28]]}, ConfigError, r"student\.training\.crop: .* \[6, 7, 28\] .*volumes\.0"),
        ({"ignore": 70000, "labels": "SMALL"}, DistillError, r"hold no 70000 to ignore"),
        ({"mask": "MASK"}, ConfigError, r"volumes\.0\.validation: .* have no labels; .* cover \[0, 0, 0\] to \[2, 24"),
        ({"labels": "EMPTY"}, ConfigError, r"volumes\.0\.validation: found no labelled neuron there"),
        ({"labels": "FAR"}, ShapeError, r"covers nothing of .*a\.h5"),
        ({"raw": "FLAT"}, ConfigError, r"volumes\.0\.train: found the single grey value 7 in sections 0, 3 and 5 of"),
    ],
)
def test_what_does_not_fit_names_the_key(
    load: Load, tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    entry = {**volume(tmp_path / "a.h5", 1), "train": [0, 6], "validation": [6, 10]}
    write_cremi(tmp_path / "mask.h5", raw=np.ones((2, 24, 28), np.uint8), resolution=NM)
    write_cremi(tmp_path / "empty.h5", labels=np.zeros(SIZE, np.uint64), resolution=NM)
    write_cremi(tmp_path / "far.h5", labels=np.ones((2, 2, 2), np.uint64), resolution=NM, offset=(3000, 0, 0))
    write_cremi(tmp_path / "flat.h5", raw=np.full(SIZE, 7, np.uint8), resolution=NM)
    np.save(tmp_path / "small.npy", np.ones(SIZE, np.uint8))
    files = {"SMALL": "small.npy", "MASK": "mask.h5", "EMPTY": "empty.h5", "FAR": "far.h5", "FLAT": "flat.h5"}
    change |= {key: str(tmp_path / files[value]) for key, value in change.items() if str(value) in files}
    if "ignore" in change:
        change["resolution"] = list(NM)
    with pytest.raises(error, match=said):
        open_parts(load({"volumes": [{**entry, **change}]}))


def test_the_same_file_by_another_path_is_the_same_volume(load: Load, tmp_path: Path) -> None:
    one = volume(tmp_path / "a.h5", 1)
    (tmp_path / "link.h5").symlink_to(tmp_path / "a.h5")
    again = {"raw": str(tmp_path / "link.h5"), "labels": one["labels"], "validation": [4, 8]}
    with pytest.raises(
        ConfigError, match=r"student\.data: volumes\.1\.validation: \[4, 8\] overlaps volumes\.0\.train"
    ):
        open_parts(load({"volumes": [{**one, "train": [0, 6]}, again]}))
    hidden = {**one, "train": [0, 6], "validation": [6, 10], "unlabelled": [{"raw": str(tmp_path / "a.h5")}]}
    with pytest.raises(ConfigError, match=r"unlabelled\.0\.sections: all of the same raw overlap validation"):
        open_parts(load(hidden))


def test_a_part_that_cannot_fit_into_memory_is_refused(load: Load, tmp_path: Path) -> None:
    entry = {**volume(tmp_path / "a.h5", 1), "train": [0, 6], "validation": [6, 10]}
    with (
        mock.patch("distill.training.data.os.sysconf", return_value=300),
        pytest.raises(
            ConfigError, match=r"volumes\.0\.validation: 4 x 24 x 28 voxels .* expected fewer sections, or a"
        ),
    ):
        open_parts(load({"volumes": [entry]}))


def test_two_volumes_are_trained_on_and_resumed(train: Callable[..., Any], phantom: Path, tmp_path: Path) -> None:
    """From files; a run that is broken off after two steps and resumed is the unbroken one."""
    ids, raw = f"{phantom}:volumes/labels/neuron_ids", f"{phantom}:volumes/raw"
    entries = [
        {"raw": raw, "labels": ids, "train": [0, 8], "validation": [[12, 16], [0, 48], [0, 96]]},
        {"raw": raw, "labels": ids, "train": [8, 12], "validation": [[16, 19], [0, 96], [0, 48]], "zero": "other"},
    ]
    words = (f"student.data={json.dumps({'volumes': entries, 'memory': 0})}", "teacher.decoder.seeds.kind=mean")
    alone = ("teacher.loss.multi_offset=0", "teacher.loss.affinity=0", "teacher.queries.teacher=0")
    words = (*words, *alone, "student.loss.cross=0", "student.loss.graft=0", "student.training.teacher_every=1")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = train(whole, *words, pictures=True)
    assert said.code == 0, said.err
    assert f"next: distill stream {raw} --sections 12:16" in said.out
    with mock.patch("distill.training.loop.loop._on_any_rank", side_effect=[False, True]):
        assert train(broken, *words).code == 130
    assert train(broken, *words, "--resume").code == 0
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, broken)]
    losses, others = ([row["loss"] for row in found if "loss" in row] for found in rows)
    assert losses == others
    one, other = (read_weights(run / "best" / "student.safetensors") for run in (whole, broken))
    assert one.notes == other.notes
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    (judged,) = [row["validation_student"] for row in rows[0] if row["step"] == 4 and "validation_student" in row]
    assert [one["raw"] for one in judged["volumes"]] == [raw, raw]
    weights = [one["voxels"] for one in judged["volumes"]]
    assert judged["voi"] == pytest.approx(np.average([one["voi"] for one in judged["volumes"]], weights=weights))
    assert (whole / "report.html").exists()
