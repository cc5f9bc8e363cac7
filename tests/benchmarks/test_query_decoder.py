"""The benchmark of the query decoder on a small phantom: smoke test, its affinities, its seeds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from block_stages import GROUPS, NETWORKS
from query_decoder import main
from scenes import noisy_truth, read_scene, seeds_of

from distill.core.affinity import half_resolution
from distill.core.errors import DistillError
from distill.data.phantom import make_phantom
from distill.inference.options import Runtime
from distill.io.writers.store import write_cremi

STAGES = [stage for titles in GROUPS.values() for stage in titles]
DECODER = ["mask_branch", "instance_features", "pooling", "rounds", "instances"]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "phantom.h5"
    made = make_phantom((4, 72, 72), seed=1)
    write_cremi(path, raw=made.raw, labels=made.labels, resolution=made.resolution, attributes={})
    return path


def test_every_stage_has_time_memory_and_a_floor(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = ["--data", str(volume), "--network", "tiny", "--repeat", "1", "--json", str(out), "--block", "3,65,65"]
    assert main([*words, "--sizes", "4,65,70", "3,33,33", "--components", "7", "2"]) == 0
    text = out.read_text()
    assert str(tmp_path) not in text
    assert str(volume.parent) not in text
    result = json.loads(text)
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["network"] == "tiny"
    assert result["left_out"] == []
    assert [one["block"] for one in result["blocks"]] == [[3, 33, 33], [4, 65, 70]]
    assert [[s["stage"] for s in one["stages"]] for one in result["blocks"]] == [STAGES, STAGES]
    assert [[s["stage"] for s in one["stages"]] for one in result["given_seeds"]] == [DECODER, DECODER]
    learned = NETWORKS["tiny"].decoder.learned
    assert [(one["seeds"], one["queries"]) for one in result["given_seeds"]] == [(2, 2 + learned), (7, 7 + learned)]
    for one in (*result["blocks"], *result["given_seeds"]):
        for stage in one["stages"]:
            assert stage["peak_bytes"] is None or stage["peak_bytes"] >= 0
            for key in ("seconds_min", "seconds_median", "bytes", "floor", "ratio"):
                assert math.isfinite(stage[key]), key
                assert stage[key] > 0, key
            assert stage["ratio"] * stage["floor"] == pytest.approx(stage["seconds_min"])
            assert stage["floor"] >= stage["operations"] / result["peaks"]["32-true"]["per_second"]
            assert stage["floor"] >= stage["bytes"] / max(result[f"{at}copy_bytes_per_second"] for at in ("", "host_"))
    for peak in result["peaks"].values():
        assert peak["per_second"] > 0
    printed = capsys.readouterr().out
    for title in (title for titles in GROUPS.values() for title in titles.values()):
        assert title in printed


def test_operations_are_those_of_the_layers(volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--data", str(volume), "--network", "tiny", "--repeat", "1", "--json", str(out)]
    assert main([*words, "--sizes", "3,33,33", "--block", "3,33,33", "--components", "--precision", "bf16-mixed"]) == 0
    counted = {s["stage"]: s["operations"] for s in json.loads(out.read_text())["blocks"][0]["stages"]}
    voxels, config = 3 * 17 * 17, NETWORKS["tiny"]
    inputs, width = 3 + config.fused, config.decoder.width
    assert counted["mask_branch"] == 2 * voxels * width * (9 * inputs + width)
    assert counted["instance_features"] == 2 * voxels * width * 9 * inputs
    assert counted["affinities"] > 2 * voxels * config.branch_width * 27 * inputs
    assert counted["components"] == counted["instances"] == counted["waterz"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--block 4,73,72",
            "--sizes, --block: found (4, 73, 72), expected at most (4, 72, 72), the size of phantom.h5",
        ),
        ("--block 4,65", "--block: found '4,65', expected three numbers Z,Y,X such as 30,6,6"),
        ("--block 2,33,33 --components 999", r"--components: found \d+ in a block, expected at least 999"),
    ],
)
def test_a_mistake_is_one_line_at_once(
    volume: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(volume), "--network", "tiny", "--components", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == message + "\n" or re.fullmatch(message + "\n", said.err)


def test_affinities_of_the_labels_are_theirs_but_for_noise(volume: Path) -> None:
    scene = read_scene(volume, (4, 65, 65), None, Runtime(torch.device("cpu")))
    assert scene.raw.shape == (1, 1, 4, 65, 65)
    assert scene.half.shape == (1, 3, 4, 33, 33)
    assert 0 <= float(scene.affinity.min()) < 0.1
    assert 0.9 < float(scene.affinity.max()) <= 1
    labels = np.repeat(np.array([3, 8], np.uint64), 8)[None, None].repeat(2, 0).repeat(16, 1)  # a wall at x = 8
    affinity = noisy_truth(labels)
    assert affinity.shape == (3, 2, 16, 16)
    np.testing.assert_array_equal(affinity, noisy_truth(labels))
    assert affinity[2, :, :, 8].mean() < affinity[2, :, :, [4, 12]].mean() - 0.2
    assert affinity[1].mean() > 0.75


@pytest.mark.parametrize("count", [1, 3, 11])
def test_exactly_so_many_seeds(volume: Path, count: int) -> None:
    scene = read_scene(volume, (4, 72, 72), None, Runtime(torch.device("cpu")))
    seeds = seeds_of(scene.half, count)
    sizes = seeds.components.flatten().bincount()
    assert seeds.counts == (count,)
    assert len(sizes) == count + 1
    assert int(sizes[1:].min()) > 20
    assert sizes[1:].tolist() == sorted(sizes[1:].tolist(), reverse=True)


def test_thin_slabs_give_more_seeds_until_there_are_no_more() -> None:
    column = half_resolution(torch.ones(1, 3, 3, 16, 16))  # one object through three sections
    assert seeds_of(column, 3).components.flatten(2).unique(dim=2).tolist() == [[[1], [2], [3]]]
    with pytest.raises(DistillError, match=r"found 3 in a block, expected at least 4"):
        seeds_of(column, 4)
