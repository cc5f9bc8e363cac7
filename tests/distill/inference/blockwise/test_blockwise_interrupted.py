"""Segmentations in blocks that are interrupted, resumed or merged by another threshold."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks_of_labels import EXACT, Setting, piece, tree
from blocks_of_stores import Make, labels_of
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import Killed, killed_at
from numpy.typing import NDArray

import distill.inference.blockwise.finish as lay_module
import distill.inference.blockwise.merge as merge_module
import distill.inference.blockwise.phases as phases
import distill.inference.blockwise.segment as recipe
import distill.inference.blockwise.worker as work_module
from distill.core.claim import claim
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box, Triple
from distill.core.normalisation import NONE, Normaliser
from distill.inference.blockwise.corrections import Sections
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.plan import Plan
from distill.inference.options import Options
from distill.io.volume import open_volume, volume_from_array
from distill.io.writers.cremi import write_cremi


def with_threshold(merge: float) -> Options:
    return replace(EXACT, merge=merge)


def test_another_threshold_merges_anew(setting: Setting, tmp_path: Path) -> None:
    loose = Options(device="cpu", precision="32-true", merge=0.3)
    setting.run(tmp_path / "a" / "out.zarr", loose)
    out = tmp_path / "b" / "out.zarr"
    strict = setting.run(out).about
    setting.known.solved.clear()
    found = setting.run(out, loose, resume=True).about
    assert setting.known.solved == []
    assert found["objects"] < strict["objects"]
    a, b = tree(tmp_path / "a" / "out.zarr"), tree(out)
    assert {name for name in a if a[name] != b.get(name)} == {"blocks/job.json"}  # begun with another threshold
    assert setting.run(out, loose, resume=True).about == found


def tried(setting: Setting, out: Path, options: Options, at: int) -> bool:
    """Resume a store, or begin it, and die at an operation; whether it came to its end before."""
    with killed_at(at) as killer, suppress(Killed):
        setting.run(out, options, resume=True)
        return True
    assert killer.dead
    return False


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_operation_with_any_threshold_it_ends_as_an_unbroken_run(
    setting: Setting, tmp_path: Path, seed: int
) -> None:
    """Deaths and thresholds at random, blocks done again under other numbers, until the last run is let to its end."""
    rng, thresholds = random.Random(seed), (0.3, 0.5, 0.9)
    wanted = {}
    for merge in thresholds:
        setting.run(tmp_path / f"{merge}" / "out.zarr", with_threshold(merge))
        wanted[merge] = tree(tmp_path / f"{merge}" / "out.zarr")
    out = tmp_path / "killed" / "out.zarr"
    with killed_at(-1) as counted:
        setting.run(tmp_path / "counted.zarr")
    for _ in range(5):
        tried(setting, out, with_threshold(rng.choice(thresholds)), rng.randrange(counted.count))
    assert tried(setting, out, with_threshold(last := rng.choice(thresholds)), -1)
    found = tree(out)
    assert {name for name in found if found[name] != wanted[last].get(name)} <= {"blocks/job.json"}, seed
    assert found.keys() == wanted[last].keys()
    assert [path.name for path in out.parent.iterdir()] == ["out.zarr"]


def test_a_finished_store_merged_again_and_killed_at_every_operation(setting: Setting, tmp_path: Path) -> None:
    """The metadata never tell of another segmentation than the one in place once a run has ended."""
    first, second = with_threshold(0.3), with_threshold(0.9)
    labels = {}
    for options in (first, second):
        setting.run(tmp_path / f"{options.merge}.zarr", options)
        labels[options.merge] = labels_of(tmp_path / f"{options.merge}.zarr")
    out = tmp_path / "out.zarr"
    setting.run(out, first)
    with killed_at(-1) as counted:
        setting.run(out, second, resume=True)
    for at in range(0, counted.count, 5):
        for options in ((second, first), (first, second))[at % 2]:
            tried(setting, out, options, at)
        again = (first, second)[at // 2 % 2]
        assert setting.run(out, again, resume=True).about["merge_threshold"] == again.merge
        np.testing.assert_array_equal(labels_of(out), labels[again.merge], err_msg=f"killed at operation {at}")


def test_a_block_done_again_under_other_numbers_is_compared_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may number the same instances otherwise; what was recorded of them before does not count."""
    import blocks_of_labels

    setting.run(tmp_path / "whole.zarr")
    wanted, out = labels_of(tmp_path / "whole.zarr"), tmp_path / "out.zarr"

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lay_module, "task_report", stop)
        with pytest.raises(KeyboardInterrupt):
            setting.run(out)  # blocks, pairs and the merge are done
    (out / "blocks" / "supervoxels" / "c" / "1" / "0" / "0").unlink()

    def renumbered(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint64]:
        ids = piece(labels, number)
        return np.roll(np.arange(1, ids.max() + 1), 1).astype(np.uint64)[ids.astype(int) - 1]

    monkeypatch.setattr(blocks_of_labels, "piece", renumbered)
    setting.known.solved.clear()
    setting.run(out, resume=True)
    assert setting.known.solved == [4]
    found = labels_of(out)
    pairs = np.unique(np.stack([found.ravel(), wanted.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(wanted)) == len(np.unique(found))  # the same objects


def test_the_first_of_two_workers_at_one_block_wins(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was thought dead and numbers otherwise leaves neither voxels nor a table of its own."""
    import blocks_of_labels

    out, solve, done = tmp_path / "out.zarr", phases.solve_block, piece

    def twice(work: Any, index: int) -> Any:
        found = solve(work, index)
        with monkeypatch.context() as patch:
            patch.setattr(blocks_of_labels, "piece", lambda labels, number: done(labels, number + 1000))
            solve(work, index)
        return found

    setting.run(tmp_path / "whole.zarr")
    monkeypatch.setattr(phases, "solve_block", twice)
    setting.run(out)
    assert tree(out) == tree(tmp_path / "whole.zarr")


def test_a_worker_of_a_store_that_was_replaced_writes_nothing(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    setting.known.fails = {7: 99}
    with pytest.raises(DistillError):
        setting.run(out)
    work = replace(setting.work(recipe.SegmentRequest("", "", out, EXACT, Blocking())), created="the day before")
    with pytest.raises(SourceError, match=r"out\.zarr: was begun at .*, expected the one of the day before"):
        work_module.solve_block(work, 3)


def test_two_at_one_store(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with claim(out), pytest.raises(SourceError, match=r"out\.zarr: another process is writing to it"):
        setting.run(out)
    assert list(tmp_path.iterdir()) == [tmp_path / "given"]
    setting.run(out)
    for options in (EXACT, replace(EXACT, overwrite=True)):
        with claim(out), pytest.raises(SourceError, match="another process is writing"):
            setting.run(out, options, resume=not options.overwrite)


@pytest.mark.parametrize("name", ["out", "out.zarr", "a[1].zarr"])
def test_what_others_begin_next_to_it_stays(setting: Setting, tmp_path: Path, name: str) -> None:
    out = tmp_path / "results" / name
    out.parent.mkdir()
    mine, other = out.parent / f".{name}.0123abcd.new", out.parent / f".{name}.x.0123abcd.new"
    for folder in (mine, other):
        folder.mkdir()
    setting.run(out)
    assert sorted(out.parent.iterdir()) == sorted([out, other])


def test_progress_memory_and_time(setting: Setting, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = setting.run(tmp_path / "out.zarr", on_progress=lambda done, total, rate: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]
    record = found.record()
    assert {"network", "stitch", "write", "merge", "ids"} <= record["stages"].keys()
    assert all(peak > 2**20 for peak in record["peak_bytes"].values())
    assert len(record["peak_bytes"]) == 2
    assert record["blocks"] == [2, 2, 2]


def test_ids_beyond_53_bits_become_compact(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, at = make((3, 30, 20)), Plan.at
    far = 2**31

    def renumbered(self: Plan, *place: int) -> Any:
        from dataclasses import replace

        block = at(self, *place)
        return replace(block, tiles=tuple((number + far, box) for number, box in block.tiles))

    monkeypatch.setattr(Plan, "at", renumbered)
    about = setting.run(tmp_path / "out.zarr", EXACT).about
    assert open_volume(f"{tmp_path}/out.zarr:supervoxels").read().min() > 2**62
    assert labels_of(tmp_path / "out.zarr").max() == about["objects"] < 2**20


def test_a_border_has_the_scale_of_its_method() -> None:
    assert merge_module.border_threshold("waterz", 0.2) == pytest.approx(0.8)
    assert merge_module.border_threshold("mws", 0.2) == 0.2


def test_blocks_of_another_device_go_on(setting: Setting, tmp_path: Path) -> None:
    """The backend follows from the device; on the same one it decides what is written."""
    out = tmp_path / "out.zarr"
    setting.known.fails = {5: 9}
    with pytest.raises(DistillError, match="no such luck"):
        setting.run(out)
    setting.known.fails = {}
    path = out / "blocks" / "job.json"
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"backend": "compile"}))
    with pytest.raises(SourceError, match='was begun with backend "compile", found "eager"; expected the same'):
        setting.run(out, resume=True)
    path.write_text(json.dumps(begun | {"backend": "compile", "device": "cuda", "hardware": "a GPU"}))
    setting.run(out, resume=True)
    setting.run(tmp_path / "whole.zarr")
    np.testing.assert_array_equal(labels_of(out), labels_of(tmp_path / "whole.zarr"))


@pytest.mark.parametrize("block", [(3, 16, 18), (3, 30, 40)])
def test_what_is_empty_is_counted_by_the_blocks_that_own_it(make: Make, tmp_path: Path, block: Triple) -> None:
    setting = make((5, 40, 40))
    setting.labels[1:4, 4:30, 7:33] = 0
    write_cremi(setting.source, raw=setting.labels, resolution=(30, 6, 6))
    out = tmp_path / "out.zarr"
    about = setting.run(out, block=block).about
    assert about["empty"] == pytest.approx(np.mean(setting.labels == 0), abs=1e-6)
    assert setting.run(out, with_threshold(0.9), block=block, resume=True).about["empty"] == about["empty"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
def test_sections_count_zeros_where_they_are_owned(seed: int, z: int, y: int, x: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (4, 8, 9)).astype(np.uint8)
    volume = volume_from_array(labels, resolution=(30, 6, 6))
    box, own = Box((0, 0, 1), (4, 8, 9)), Box((z, y, 1 + x), (4, 8, 9))
    found, empty = Sections(volume, 0, [Normaliser(NONE).of(labels[0])]).read_counted(box, own)
    np.testing.assert_allclose(found, labels[box.slices] / np.float32(255), atol=1e-7)
    assert empty == np.count_nonzero(labels[own.slices] == 0)
